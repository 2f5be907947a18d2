"""Data sets of picture files with boxes around the things in them: what their layouts have in common."""

from __future__ import annotations

import functools
import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluators.edge.picture import PictureError, PictureFormat, upright_size
from evaluators.tasks.data import Dataset, LabelledImages, sample
from evaluators.tasks.image_files import content_digest, read_picture
from spaces.errors import SpecError

DETECTOR_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # what ultralytics' trainer reads
EDGE_TOLERANCE = 0.01  # of width or height: how far a box may reach over the edge, as ultralytics has it
_RUNS, _RUN_LENGTH = 10, 10  # at most so many runs when a list is halved, of at least so many images

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One annotated object; corners left, top, right, bottom in pixels of the picture, from 0.

    A ``degenerate`` box has its right or bottom end at its left or top one, a slip of whoever drew it.
    """

    name: str
    corners: Corners
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
        return read_picture(self.files[index], self._picture)


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
        """SHA-256 over classes, and over the bytes and boxes of every image of all three roles, in their order."""
        files = [(role, file) for role, listed in self._roles.items() for file in listed]
        rows = [str(self.classes), *(f"{role} {self.things(file)}" for role, file in files)]
        return hashlib.sha256("\n".join([*rows, content_digest(files)]).encode()).hexdigest()

    @functools.cached_property
    def degenerate_boxes(self) -> int:
        """How many boxes were left out because they have no area."""
        files = (file for role in self._roles.values() for file in role)
        return sum(thing.degenerate for file in files for thing in self.things(file))

    def train(self, count: int | None, seed: int) -> LabelledImages:
        """A sample of the training images, drawn without regard to classes, of which a picture may hold several."""
        files = self._roles["train"]
        chosen = sample(np.zeros(len(files), int), np.arange(len(files)), count, seed)
        return self._read([files[i] for i in chosen])

    def validation(self) -> LabelledImages:
        return self._read(self._roles["validation"])

    def test(self) -> LabelledImages:
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


def judging(val: list[Path], test: list[Path]) -> tuple[list[Path], list[Path]]:
    """Search-validation and test: two lists as they are, one that serves both roles as :func:`halves` divides it."""
    return (val, test) if set(val) != set(test) else halves(val)


def check_apart(roles: Mapping[str, Sequence[Path]]) -> None:
    """Raise SpecError where an image has two roles: it would be judged by what it was learned from or chosen by."""
    for one, other in itertools.combinations(roles, 2):
        taken = set(roles[one])
        if shared := [file for file in roles[other] if file in taken]:
            more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
            twice = f"is listed for {one} and for {other}{more}; each image may serve one of them"
            raise SpecError("data.root", str(shared[0]), twice)


def halves(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """One list for two roles, in runs of neighbours that go to the one and the other in turn.

    Images that follow each other are often frames of one video and nearly the same: taking every second one would put a
    twin of each search-validation image into test. Of ten runs only the nine borders have neighbours on both sides;
    lists of fewer than a hundred images have fewer runs, so that each has ten images where possible.
    """
    runs = 2 * max(1, min(_RUNS, len(files) // _RUN_LENGTH) // 2)
    number_of = [number * runs // len(files) for number in range(len(files))]
    parts = [[file for file, run in zip(files, number_of, strict=True) if run % 2 == part] for part in (0, 1)]
    return parts[0], parts[1]


def inside(corners: Corners, width: int, height: int) -> Corners:
    """A box without what reaches over the picture's edges."""
    left, top, right, bottom = corners
    return _between(left, width), _between(top, height), _between(right, width), _between(bottom, height)


def _between(value: float, most: int) -> float:
    return min(max(value, 0.0), float(most))


def read_text(file: Path) -> str:
    """A text file of a data set. Raises SpecError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError("data.root", str(file), "a UTF-8 text file is needed") from None


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of a picture, turned upright as its EXIF says; from the file's header.

    Raises:
        SpecError: the file is no picture.
    """
    try:
        return upright_size(file)
    except PictureError as error:
        raise SpecError("data.root", str(file), f"{str(error).removeprefix(f'{file}: ')}") from None


def letterbox_format(size: int) -> PictureFormat:
    """What detectors take: values in 0..1, the picture in the middle of a grey square."""
    return PictureFormat(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), letterbox=True)
