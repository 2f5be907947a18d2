"""Data sets by name, each split into three roles: train, search-validation and test.

Search-validation and test are images the model has never seen. A data set with val and test lists of its own uses
them; one with a single validation split has that halved, class by class (TinyImageNet: its own test split has no
labels). One that comes undivided is divided 60 : 20 : 20, which only serves models that splitsearch trains itself.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluators import user_code
from evaluators.edge.picture import PictureFormat, fit_picture, open_picture
from evaluators.settings import DataSettings
from evaluators.tasks.archives import Archive, find_root
from evaluators.tasks.data import Dataset, LabelledImages, divide, sample
from evaluators.tasks.voc import Voc, Voc0712
from evaluators.tasks.yolo_data import YoloData
from spaces.errors import SpecError, nearest

# Fixed for everybody, apart from the search's seed, so that no search ever sees a test picture. Of the seeds 0 to 5
# this is the one whose two TinyImageNet-50 halves the uncut ResNet-50 finds most alike (54.96 % and 54.56 %).
_SPLIT_SEED = 2
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES, _CARVED = (0.5, 0.5), (0.6, 0.2, 0.2)
_PICTURE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

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
        """See :class:`Dataset`."""
        return self._pictures(sample(self._labels, self._roles[0], count, seed))

    def validation(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._pictures(self._roles[1])

    def test(self) -> LabelledImages:
        """See :class:`Dataset`."""
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
        """See :class:`Dataset`."""
        rows = [f"{path.relative_to(self._root).as_posix()} {path.stat().st_size}" for path, _ in self._roles["train"]]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def train(self, count: int | None, seed: int) -> LabelledImages:
        """See :class:`Dataset`."""
        labels = np.array([label for _, label in self._roles["train"]])
        return self._read("train", sample(labels, np.arange(len(labels)), count, seed))

    def validation(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._read("validation")

    def test(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._read("test")

    def _read(self, role: str, index: Sequence[int] | np.ndarray | None = None) -> LabelledImages:
        rows = self._roles[role]
        chosen = [rows[i] for i in index] if index is not None else rows
        pixels = [open_picture(str(path), self.picture) for path, _ in chosen]
        return LabelledImages(pixels, torch.tensor([label for _, label in chosen]))

    def _share(self, rows: list[tuple[Path, int]], shares: tuple[float, ...], roles: tuple[str, ...]) -> None:
        """Divide files among roles, class by class."""
        parts = divide(np.array([label for _, label in rows]), shares, _SPLIT_SEED)
        self._roles |= {role: [rows[i] for i in part] for role, part in zip(roles, parts, strict=True)}


class TinyImageNet(_Files):
    """TinyImageNet in its original layout, all 200 classes or a part of them."""

    name = "tinyimagenet"
    coded_before = "JPEG, quality 75, 4:2:0; at 64 pixels, coding them as JPEG 75 again loses almost nothing"

    def __init__(self, settings: DataSettings) -> None:
        self._root = root = find_root(settings, "wnids.txt", (TINY_IMAGENET,))
        self.picture = PictureFormat(settings.image_size, _IMAGENET_MEAN, _IMAGENET_STD)
        self.classes = tuple((root / "wnids.txt").read_text().split())
        number = {name: index for index, name in enumerate(self.classes)}
        train = [
            (path, number[name])
            for name in self.classes
            for path in sorted((root / "train" / name).glob("images/*.JPEG"))
        ]
        if not train:
            raise SpecError("data.root", str(root), "no images found in it as train/<class>/images/*.JPEG")
        self._roles = {"train": train}
        rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
        held_out = [(root / "val" / "images" / row[0], number[row[1]]) for row in rows if row[1] in number]
        self._share(held_out, _HALVES, ("validation", "test"))


class ImageFolder(_Files):
    """Images in folders named after their classes: ``train/<class>/*``, ``val/<class>/*``, ``test/<class>/*``.

    Of ``val`` and ``test`` one is enough; without ``train`` the class folders stand at the root, undivided.
    """

    name = "imagefolder"

    def __init__(self, settings: DataSettings) -> None:
        self._root = root = find_root(settings)
        self.picture = PictureFormat(settings.image_size, _IMAGENET_MEAN, _IMAGENET_STD)
        self.carved = not (root / "train").is_dir()
        base = root if self.carved else root / "train"
        self.classes = tuple(sorted(path.name for path in base.iterdir() if path.is_dir()))
        train = self._list(base)
        if not train:
            raise SpecError("data.root", str(root), "no images found in it as train/<class>/* or <class>/*")
        self._roles = {"train": train}
        if self.carved:
            self._share(train, _CARVED, ("train", "validation", "test"))
            return
        held_out = [root / name for name in ("val", "valid", "validation", "test") if (root / name).is_dir()]
        if not held_out:
            raise SpecError("data.root", str(root), "beside train/ it needs val/ or test/, with the same classes")
        if len(held_out) == 1:
            self._share(self._list(held_out[0]), _HALVES, ("validation", "test"))
        else:
            self._roles |= {"validation": self._list(held_out[0]), "test": self._list(root / "test")}

    def _list(self, base: Path) -> list[tuple[Path, int]]:
        unknown = {path.name for path in base.iterdir() if path.is_dir()} - set(self.classes)
        if unknown:
            raise SpecError(
                "data.root", str(base), f"holds classes that train/ lacks: {', '.join(sorted(unknown)[:10])}"
            )
        return [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((base / name).glob("**/*"))
            if path.suffix.lower() in _PICTURE_ENDINGS
        ]


class OwnData(Dataset):
    """Data from a function of the user's own, ``python:path/to/file.py:function``.

    The function (called with ``root`` if it takes that) returns a mapping with ``train``, ``validation`` and ``test``,
    each a sequence of (picture, class index), as torchvision's data sets are; a picture is a PIL image or uint8 pixels,
    (H, W, 3) or (H, W). Also understood: ``classes`` (names), ``mean`` and ``std`` (three numbers, for values in 0..1),
    ``mirrored`` (whether a mirror image is of the same class).
    """

    name = "own"
    _ROLES = ("train", "validation", "test")

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        given = self._call(user_code.load_factory(settings.name, "data.name"))
        if not isinstance(given, Mapping) or not set(self._ROLES) <= set(given):
            raise self._wrong("a mapping with train, validation and test is needed")
        self._items = {role: given[role] for role in self._ROLES}
        self._labels = {role: _labels_of(items) for role, items in self._items.items()}
        count = 1 + max(int(labels.max(initial=0)) for labels in self._labels.values())
        self.classes = tuple(map(str, given.get("classes", range(count))))
        self.mirrored = bool(given.get("mirrored", True))
        mean, std = given.get("mean", _IMAGENET_MEAN), given.get("std", _IMAGENET_STD)
        self.picture = PictureFormat(settings.image_size, tuple(mean), tuple(std))
        if min(len(labels) for labels in self._labels.values()) == 0 or len(self.classes) < count:
            raise self._wrong("every role needs images, and classes a name for every index")

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """See :class:`Dataset`. Of the function's file and the training labels; the images are not looked at."""
        made_of = user_code.source_digest(self._settings.name) + str(self._settings.root)
        return hashlib.sha256(made_of.encode() + self._labels["train"].tobytes()).hexdigest()

    def train(self, count: int | None, seed: int) -> LabelledImages:
        """See :class:`Dataset`."""
        labels = self._labels["train"]
        return self._read("train", sample(labels, np.arange(len(labels)), count, seed))

    def validation(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._read("validation", np.arange(len(self._labels["validation"])))

    def test(self) -> LabelledImages:
        """See :class:`Dataset`."""
        return self._read("test", np.arange(len(self._labels["test"])))

    def _read(self, role: str, index: np.ndarray) -> LabelledImages:
        items = self._items[role]
        return LabelledImages(
            [self._pixels(items[int(i)][0]) for i in index], torch.from_numpy(self._labels[role][index])
        )

    def _pixels(self, picture: Any) -> np.ndarray:
        if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim in (2, 3):
            picture = Image.fromarray(picture)
        if not isinstance(picture, Image.Image):
            raise self._wrong(f"images are PIL images or uint8 arrays (H, W, 3), not {type(picture).__name__}")
        return fit_picture(picture, self.picture)

    def _call(self, factory: Callable[..., Any]) -> Any:
        try:
            return user_code.call(factory, root=self._settings.root)
        except Exception as error:  # the user's own code, which may raise anything
            raise self._wrong(f"calling it fails: {type(error).__name__}: {error}") from error

    def _wrong(self, what: str) -> SpecError:
        return SpecError("data.name", self._settings.name, what)


def _labels_of(items: Any) -> np.ndarray:
    """Class indices, without decoding images where the data set keeps them apart."""
    targets = getattr(items, "targets", None)
    labels = targets if targets is not None else [items[index][1] for index in range(len(items))]
    return np.asarray(labels, dtype=np.int64)


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
