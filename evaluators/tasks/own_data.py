"""Data from a function of the user's own, ``python:path/to/file.py:function``."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from evaluators import user_code
from evaluators.edge.picture import PictureError, PictureFormat, fit_picture, upright
from evaluators.settings import DataSettings
from evaluators.tasks.data import IMAGENET_MEAN, IMAGENET_STD, Dataset, LabelledImages, sample
from spaces.errors import SpecError, nearest

_ROLES = ("train", "validation", "test")
_IMAGE_KEYS = ("image", "img", "picture", "pixels", "jpg", "png")
_LABEL_KEYS = ("label", "target", "class", "category", "fine_label", "cls", "y")
_ITEMS = f"pairs of (picture, label), or mappings with {_IMAGE_KEYS[0]} and {_LABEL_KEYS[0]}, are needed"
_MOST_CLASSES = 1_000_000  # beyond that a label is no class index, and a name for each would fill the memory
_SAMPLED = 1000  # images of each role, at even distances, that the fingerprint looks at: decoding all may take minutes
_READ_TWICE = 8  # of those, to find out whether a data set gives the same image each time

_log = logging.getLogger("splitsearch")


class OwnData(Dataset):
    """Data from a function of the user's own.

    The function (called with ``root`` if it takes that) returns a mapping with ``train``, ``validation`` and ``test``,
    each a sequence or an iterable of (picture, label), as torchvision's data sets are, or of mappings with ``image``
    and ``label``. A picture is a PIL image, which is turned upright as its EXIF says, or uint8 pixels in an array or
    tensor: (H, W), (H, W, C) or (C, H, W). A label is the index of a class, or a word.

    Also understood: ``classes`` (names; without them, of words, the words in alphabetical order), ``mean`` and ``std``
    (three numbers, for values in 0..1), ``mirrored`` (whether a mirror image is of the same class).
    """

    name = "own"

    def __init__(self, settings: DataSettings) -> None:
        self._given_name = settings.name
        given = self._call(user_code.load_factory(settings.name, "data.name"), settings)
        if not isinstance(given, Mapping) or not set(_ROLES) <= set(given):
            raise self._wrong("a mapping with train, validation and test is needed")
        self._items = {role: self._sequence(role, given[role]) for role in _ROLES}
        labels = {role: self._labels_as_given(role) for role in _ROLES}
        self.classes, self._labels = self._numbered(labels, self._names(given.get("classes")))
        self.mirrored = bool(given.get("mirrored", True))
        mean = self._three(given, "mean", IMAGENET_MEAN, least=0.0)
        std = self._three(given, "std", IMAGENET_STD, least=1e-6)
        self.picture = PictureFormat(settings.image_size, mean, std)
        for role in _ROLES:
            self._image(role, 0)  # what cannot be used is better known before anything starts

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 over the function's source, all labels, and up to 1,000 images of each role.

        Where an image is another one at each reading, as random transforms make it, images are left out.
        """
        made_of = hashlib.sha256(user_code.source_digest(self._given_name).encode())
        made_of.update(repr((self.classes, self.mirrored)).encode())
        looks = self._repeats()
        if not looks:
            _log.warning(
                "data.name: %s gives other images each time it is read, so results will not repeat, and a change of "
                "the images goes unnoticed; leave random transforms out",
                self._given_name,
            )
        for role in _ROLES:
            made_of.update(role.encode() + self._labels[role].tobytes())
            for index in self._sampled(role) if looks else ():
                made_of.update(self._bytes(role, index))
        return made_of.hexdigest()

    def train(self, count: int | None, seed: int) -> LabelledImages:
        labels = self._labels["train"]
        return self._read("train", sample(labels, np.arange(len(labels)), count, seed))

    def validation(self) -> LabelledImages:
        return self._read("validation", np.arange(len(self._labels["validation"])))

    def test(self) -> LabelledImages:
        return self._read("test", np.arange(len(self._labels["test"])))

    def _read(self, role: str, index: np.ndarray) -> LabelledImages:
        pixels = [fit_picture(self._image(role, int(i)), self.picture) for i in index]
        return LabelledImages(pixels, torch.from_numpy(self._labels[role][index]))

    # -- items ------------------------------------------------------------------------------------------------------

    def _sequence(self, role: str, items: Any) -> Sequence[Any]:
        """Items that can be counted and looked up, read into memory where they cannot."""
        if isinstance(items, DataLoader):
            raise self._wrong("a DataLoader gives batches; its data set is needed (loader.dataset)", role)
        if items is None or isinstance(items, (str, bytes, Mapping)):
            raise self._wrong(f"{_ITEMS}, not {type(items).__name__}", role)
        countable = hasattr(items, "__len__") and hasattr(items, "__getitem__")
        with self._blaming(role):
            found = items if countable and not isinstance(items, IterableDataset) else list(items)
            count = len(found)
        if not count:
            raise self._wrong("there are no images in it; every role needs some", role)
        return found  # type: ignore[no-any-return]

    def _pair(self, role: str, index: int) -> tuple[Any, Any]:
        place = f"{role}[{index}]"
        with self._blaming(place):
            item = self._items[role][index]
        if isinstance(item, Mapping):
            return self._value(item, _IMAGE_KEYS, place), self._value(item, _LABEL_KEYS, place)
        try:
            return item[0], item[1]
        except (TypeError, IndexError, KeyError):
            raise self._wrong(f"{_ITEMS}, not {type(item).__name__}", place) from None

    def _value(self, item: Mapping[Any, Any], keys: tuple[str, ...], place: str) -> Any:
        for key in keys:
            if key in item:
                return item[key]
        raise self._wrong(f"has {', '.join(map(str, item))}; one of {', '.join(keys)} is needed", place)

    # -- labels -----------------------------------------------------------------------------------------------------

    def _labels_as_given(self, role: str) -> list[Any]:
        """Labels as numbers or words, without decoding images where the data set keeps them apart."""
        items = self._items[role]
        kept = getattr(items, "targets", None)
        if kept is None or getattr(items, "target_transform", None) is not None:
            kept = [self._pair(role, index)[1] for index in range(len(items))]
        if len(kept) != len(items):
            raise self._wrong(f"{len(items)} images and {len(kept)} targets", role)
        return [_plain(label) for label in kept]

    def _numbered(
        self, labels: dict[str, list[Any]], names: tuple[str, ...] | None
    ) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """Names of the classes, and labels as their indices."""
        everything = [label for each in labels.values() for label in each]
        worded = all(isinstance(label, str) for label in everything)
        if worded and names is None:
            names = tuple(sorted(set(everything)))
        if worded and names is not None:
            number = {name: index for index, name in enumerate(names)}
            if len(number) < len(names):
                raise self._wrong("classes has a name twice, so words cannot tell them apart")
            check = functools.partial(self._check_word, number=number)
        else:
            check = functools.partial(self._check_number, count=len(names) if names is not None else None)
        indices = {
            role: np.array([check(label, f"{role}[{i}]") for i, label in enumerate(each)], dtype=np.int64)
            for role, each in labels.items()
        }
        count = 1 + max(int(each.max()) for each in indices.values())
        return names if names is not None else tuple(map(str, range(count))), indices

    def _check_word(self, label: str, place: str, number: Mapping[str, int]) -> int:
        if label not in number:
            raise self._wrong(f"its label is '{label}', which classes lacks; {nearest(label, number)}", place)
        return number[label]

    def _check_number(self, label: Any, place: str, count: int | None) -> int:
        if not isinstance(label, int):
            raise self._wrong(f"its label is {label!r}; a class index, or a word everywhere, is needed", place)
        if not 0 <= label < (_MOST_CLASSES if count is None else count):
            allowed = "class indices count from 0" if count is None else f"classes has 0 to {count - 1}"
            raise self._wrong(f"its label is {label}; {allowed}", place)
        return label

    def _names(self, given: Any) -> tuple[str, ...] | None:
        if given is None:
            return None
        if isinstance(given, Mapping) and sorted(given, key=str) == sorted(range(len(given)), key=str):
            given = [given[index] for index in range(len(given))]
        if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
            raise self._wrong(f"classes is {given!r}; a list of names is needed")
        return tuple(map(str, given))

    # -- images -----------------------------------------------------------------------------------------------------

    def _image(self, role: str, index: int) -> Image.Image:
        """An image upright, in 8-bit grey or RGB."""
        picture, _ = self._pair(role, index)
        try:
            return upright(_as_image(picture))
        except PictureError as error:
            raise self._wrong(str(error), f"{role}[{index}]") from None

    def _bytes(self, role: str, index: int) -> bytes:
        image = self._image(role, index)
        return repr((image.mode, image.size)).encode() + image.tobytes()

    def _sampled(self, role: str) -> list[int]:
        count = len(self._items[role])
        return [int(i) for i in np.linspace(0, count - 1, min(count, _SAMPLED))]

    def _repeats(self) -> bool:
        """Whether an image is the same when it is read again."""
        return all(
            self._bytes(role, index) == self._bytes(role, index)
            for role in _ROLES
            for index in self._sampled(role)[:_READ_TWICE]
        )

    # -- what can go wrong ------------------------------------------------------------------------------------------

    def _three(self, given: Mapping[str, Any], key: str, default: tuple[float, ...], least: float) -> Any:
        """Three numbers for red, green and blue."""
        try:
            numbers = tuple(float(number) for number in given.get(key, default))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 3 or not all(least <= number < float("inf") for number in numbers):
            raise self._wrong(f"{key} is {given.get(key)!r}; three numbers, for values in 0..1, are needed")
        return numbers

    def _call(self, factory: Callable[..., Any], settings: DataSettings) -> Any:
        try:
            return user_code.call(factory, root=settings.root)
        except Exception as error:  # the user's own code, which may raise anything
            raise self._wrong(f"calling it fails: {type(error).__name__}: {error}") from error

    @contextmanager
    def _blaming(self, place: str) -> Iterator[None]:
        """Whatever the user's own code raises, as a SpecError that says where."""
        try:
            yield
        except Exception as error:
            raise self._wrong(f"reading it fails: {type(error).__name__}: {error}", place) from error

    def _wrong(self, what: str, place: str = "") -> SpecError:
        return SpecError("data.name", self._given_name, f"{place}: {what}" if place else what)


def _plain(label: Any) -> Any:
    """A label as int or str where it is one number or word, else as it is."""
    if isinstance(label, torch.Tensor):
        label = label.detach().cpu().numpy()
    if isinstance(label, (np.ndarray, np.generic)) and label.size == 1:
        label = label.item()
    if isinstance(label, (bool, int)) or (isinstance(label, float) and label.is_integer()):
        return int(label)
    return label


def _as_image(picture: Any) -> Image.Image:
    """A PIL image of what a user's data set gives. Raises PictureError for what is no picture."""
    if isinstance(picture, Image.Image):
        return picture
    first = isinstance(picture, torch.Tensor)  # where torch has its channels
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu().numpy()
    allowed = "images are PIL images, or uint8 arrays or tensors (H, W), (H, W, C) or (C, H, W)"
    if not isinstance(picture, np.ndarray):
        raise PictureError(f"{type(picture).__name__} given; {allowed}")
    if picture.dtype != np.uint8:
        hint = "; leave out what scales them, as ToTensor does" if picture.dtype.kind == "f" else ""
        raise PictureError(f"{picture.dtype} given; {allowed}{hint}")
    pixels = _channels_last(picture, first)
    if pixels is None:
        raise PictureError(f"an array of shape {picture.shape} given; {allowed}")
    return Image.fromarray(pixels)


def _channels_last(pixels: np.ndarray, first: bool) -> np.ndarray | None:
    """(H, W) or (H, W, C) of an array whose channels stand first or last; None where that cannot be told.

    Where both could be, as in (3, 3, 3), ``first`` decides.
    """
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3:
        return None
    if pixels.shape[0] in (1, 3, 4) and (first or pixels.shape[2] not in (1, 2, 3, 4)):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.shape[2] not in (1, 2, 3, 4):
        return None
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
