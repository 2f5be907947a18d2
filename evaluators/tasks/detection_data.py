"""Data sets of picture files with boxes around the things in them: what their layouts have in common."""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluators.edge.picture import PictureFormat, open_picture, upright_size
from evaluators.tasks.data import Dataset, LabelledImages, sample


@dataclass(frozen=True)
class Thing:
    """One annotated object; corners left, top, right, bottom in pixels of the picture, from 0.

    A ``degenerate`` box has its right or bottom end at its left or top one, a slip of whoever drew it.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    degenerate: bool


class ImageFiles(Sequence[np.ndarray]):
    """Images read when they are looked at, as a device would have them: a whole VOC does not fit into memory."""

    def __init__(self, files: Sequence[Path], picture: PictureFormat) -> None:
        self.files, self._picture = list(files), picture

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return ImageFiles(self.files[index], self._picture)
        return open_picture(str(self.files[index]), self._picture)


class DetectionFiles(Dataset):
    """A data set of picture files with boxes.

    Labels are one tensor of rows (picture, class, left, top, right, bottom, difficult), in pixels of the upright
    picture. Boxes without area are left out.
    """

    task = "detection"
    mirrored = True
    _roles: dict[str, list[Path]]

    @abstractmethod
    def things(self, file: Path) -> Sequence[Thing]:
        """What is annotated in a picture."""

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """See :class:`Dataset`."""
        rows = [f"{path.name} {path.stat().st_size} {self.things(path)}" for path in self._roles["train"]]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @functools.cached_property
    def degenerate_boxes(self) -> int:
        """How many boxes were left out because they have no area."""
        files = (file for role in self._roles.values() for file in role)
        return sum(thing.degenerate for file in files for thing in self.things(file))

    def train(self, count: int | None, seed: int) -> LabelledImages:
        """See :class:`Dataset`; a sample is drawn without regard to classes, of which a picture may hold several."""
        files = self._roles["train"]
        chosen = sample(np.zeros(len(files), int), np.arange(len(files)), count, seed)
        return self._read([files[i] for i in chosen])

    def validation(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._read(self._roles["validation"])

    def test(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._read(self._roles["test"])

    def _read(self, files: list[Path]) -> LabelledImages:
        rows = [
            [number, self.classes.index(thing.name), *thing.corners, float(thing.difficult)]
            for number, file in enumerate(files)
            for thing in self.things(file)
            if not thing.degenerate
        ]
        labels = torch.tensor(rows, dtype=torch.float32).reshape(-1, 7)
        return LabelledImages(ImageFiles(files, self.picture), labels, [size_of(file) for file in files])


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of a picture, turned upright as its EXIF says; from the file's header."""
    return upright_size(file)


def letterbox_format(size: int) -> PictureFormat:
    """What detectors take: values in 0..1, the picture in the middle of a grey square."""
    return PictureFormat(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), letterbox=True)
