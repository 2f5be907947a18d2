"""Images with labels, and what a data set is: three roles, of which the model has seen only the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from evaluators.edge.picture import PictureFormat, to_input

_FEW_SHARE, _FEW_LEAST = 0.25, 200
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images: uint8 pixels as a device would have them, and class indices (N,), or boxes as rows.

    ``sizes`` are width and height of each picture, upright, before it was scaled down to what the device needs; boxes
    are in its pixels. Only detection has them.
    """

    pixels: Sequence[np.ndarray]
    labels: torch.Tensor
    sizes: Sequence[tuple[int, int]] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def __add__(self, other: LabelledImages) -> LabelledImages:
        """Both, one after the other; the number of a picture stands first in a row of labels where there are rows."""
        labels = other.labels.clone()
        if labels.ndim > 1:
            labels[:, 0] += len(self)
        pixels = _Joined(self.pixels, other.pixels)
        return LabelledImages(pixels, torch.cat([self.labels, labels]), [*self.sizes, *other.sizes])

    def only(self, index: Sequence[int]) -> LabelledImages:
        """Some of the images, in the order of an index; none of them is looked at."""
        sizes = [self.sizes[number] for number in index] if self.sizes else []
        if self.labels.ndim == 1:
            labels = self.labels[list(index)]
        else:
            rows = [self.labels[self.labels[:, 0] == number] for number in index]
            for place, row in enumerate(rows):
                row[:, 0] = place
            labels = torch.cat([self.labels[:0], *rows])
        return LabelledImages(_Chosen(self.pixels, index), labels, sizes)

    def mirrored(self) -> LabelledImages:
        """The same images, left and right exchanged."""
        labels = self.labels.clone()
        if labels.ndim > 1:
            widths = torch.tensor([self.sizes[int(number)][0] for number in labels[:, 0]], dtype=labels.dtype)
            labels[:, 2], labels[:, 4] = widths - self.labels[:, 4], widths - self.labels[:, 2]
        return LabelledImages(_Mirrored(self.pixels), labels, self.sizes)

    def inputs(self, picture: PictureFormat, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """A slice as network input, (B, 3, S, S)."""
        return self.chosen(picture, range(*slice(start, stop).indices(len(self))))

    def chosen(self, picture: PictureFormat, index: Iterable[int]) -> torch.Tensor:
        """The images of an index as network input, (B, 3, S, S)."""
        return torch.from_numpy(np.concatenate([to_input(self.pixels[number], picture) for number in index]))


class _Joined(Sequence[np.ndarray]):
    """Two sequences of images as one, without looking at any."""

    def __init__(self, one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> None:
        self._one, self._other = one, other

    def __len__(self) -> int:
        return len(self._one) + len(self._other)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._one[index] if index < len(self._one) else self._other[index - len(self._one)]


class _Chosen(Sequence[np.ndarray]):
    """Some of a sequence's images, without looking at any."""

    def __init__(self, pixels: Sequence[np.ndarray], index: Sequence[int]) -> None:
        self._pixels, self._index = pixels, tuple(index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return _Chosen(self._pixels, self._index[index])
        return self._pixels[self._index[index]]


class _Mirrored(Sequence[np.ndarray]):
    """Images with left and right exchanged, when they are looked at."""

    def __init__(self, pixels: Sequence[np.ndarray]) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return _Mirrored(self._pixels[index])
        return self._pixels[index][:, ::-1]


class Dataset(ABC):
    """A named data set. Opening it checks that it is there; images are read when asked for."""

    name: str
    task: Literal["classification", "detection"] = "classification"
    picture: PictureFormat
    classes: tuple[str, ...]
    mirrored: bool
    """Whether a picture's mirror image is of the same class; training then shows both."""
    carved: bool = False
    """Whether search-validation and test were carved out of what weights from elsewhere may have been trained on."""
    coded_before: str = ""
    """How its pictures were coded before, where that favours a picture codec."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Text that differs between data sets of other content, images or labels of any role; where they lie does not
        matter.
        """

    @abstractmethod
    def train(self, count: int | None, seed: int) -> LabelledImages:
        """A class-balanced sample of the training images; all of them without a count."""

    @abstractmethod
    def validation(self) -> LabelledImages:
        """The search-validation split."""

    @abstractmethod
    def test(self) -> LabelledImages:
        """The test split. For reporting confirmed points, never for choosing."""


def divide(labels: np.ndarray, shares: tuple[float, ...], seed: int) -> list[np.ndarray]:
    """Indices by share, each with the same mixture of classes."""
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        index = generator.permutation(np.flatnonzero(labels == label))
        bounds = np.round(np.cumsum(shares)[:-1] * len(index)).astype(int)
        for part, piece in zip(parts, np.split(index, bounds)):
            part.append(piece)
    return [np.sort(np.concatenate([np.empty(0, np.int64), *part])) for part in parts]


def few_of(images: LabelledImages) -> list[int]:
    """Numbers of the images that a first impression is taken of: a quarter of them, at least 200, always the same.

    The classes have equal shares as far as they can; of images with boxes, which have no class of their own, any.
    """
    one_each = images.labels.ndim == 1
    labels = images.labels.numpy() if one_each else np.zeros(len(images), np.int64)
    count = max(_FEW_LEAST, round(_FEW_SHARE * len(images)))
    return sorted(sample(labels, np.arange(len(images)), count, seed=0).tolist())


def sample(labels: np.ndarray, among: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """``count`` of the indices ``among``, as evenly over classes as they allow, shuffled."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(among)
    if count is None or count >= len(among):
        return shuffled
    # Rank each picture within its class, then take the lowest ranks: every class gives its first before any its second.
    order = np.argsort(labels[shuffled], kind="stable")
    by_class = labels[shuffled][order]
    rank = np.arange(len(order)) - np.searchsorted(by_class, by_class)
    chosen = order[np.argsort(rank, kind="stable")[:count]]
    return shuffled[np.sort(chosen)]
