"""Data sets of picture files with boxes around the things in them: what their layouts have in common."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluators.edge.picture import PictureFormat, open_picture
from evaluators.store import file_digest
from evaluators.tasks.data import Dataset, LabelledImages, sample
from spaces.errors import SpecError

PICTURE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
EDGE_TOLERANCE = 0.01  # of width or height: how far a box may reach over the edge, as ultralytics has it
_MEND = "remove it or save it anew"
_READERS = 4  # files are waited for, not computed
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
        with naming(self.files[index]):
            return open_picture(str(self.files[index]), self._picture)


class DetectionFiles(Dataset):
    """A data set of picture files with boxes.

    Labels are one tensor of rows (picture, class, left, top, right, bottom, difficult), in pixels of the picture as it
    lies on disk. Boxes without area are left out.
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
        rows = [str(self.classes)]
        with ThreadPoolExecutor(_READERS) as pool:
            for role, files in self._roles.items():
                digests = pool.map(_digest, files)
                rows += [f"{role} {digest} {self.things(file)}" for file, digest in zip(files, digests, strict=True)]
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
        return LabelledImages(ImageFiles(files, self.picture), labels, [picture_size(file) for file in files])


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


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is an operating system's, not a part of a data set."""
    return name.startswith(".") or name == "__MACOSX"


def read_text(file: Path) -> str:
    """A text file of a data set. Raises SpecError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError("data.root", str(file), "a UTF-8 text file is needed") from None


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turns errors of reading a picture into one that names its file."""
    try:
        yield
    except FileNotFoundError:
        raise SpecError("data.root", str(file), "there is no such picture") from None
    except (SpecError, MemoryError):
        raise
    except ImportError:  # from ultralytics, which replaces Image.open and wants a package for what Pillow cannot read
        raise SpecError("data.root", str(file), f"not readable as a picture; {_MEND}") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise SpecError("data.root", str(file), f"not readable as a picture: {error}; {_MEND}") from None


def picture_size(file: Path) -> tuple[int, int]:
    """As :func:`size_of`. Raises SpecError where the file is no picture."""
    with naming(file):
        return size_of(file)


def _digest(file: Path) -> str:
    with naming(file):
        return file_digest(file)


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of a picture file, from its header."""
    with Image.open(file) as image:
        return image.size


def letterbox_format(size: int) -> PictureFormat:
    """What detectors take: values in 0..1, the picture in the middle of a grey square."""
    return PictureFormat(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), letterbox=True)
