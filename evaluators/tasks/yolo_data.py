"""ultralytics' own data sets: a YAML file that names folders of images, beside each a folder of labels.

    path: datasets/birds        # of the rest; absolute, or below the YAML file's folder
    train: images/train         # a folder, a text file of images, or a list of either
    val: images/val
    test: images/test           # optional: without it, or with val again, those are halved, see detection_data.halves
    names: {0: wren, 1: robin}  # or a list

The labels of ``images/train/7.jpg`` stand in ``labels/train/7.txt``: class, then middle and size of the box as shares
of the picture's width and height; or class, then the corners of a polygon, whose bounding box counts. A line that is
there twice counts once, as it does for ultralytics. An image without a file of labels shows nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.settings import DataSettings
from evaluators.tasks.detection_data import (
    DETECTOR_ENDINGS,
    EDGE_TOLERANCE,
    Corners,
    DetectionFiles,
    Thing,
    check_apart,
    inside,
    judging,
    letterbox_format,
    read_text,
    size_of,
)
from evaluators.tasks.image_files import is_clutter
from spaces.errors import SpecError
from spaces.yaml_text import read_yaml

_Row = tuple[int, Corners, bool]  # class, corners as shares of width and height, whether it has no area


class YoloData(DetectionFiles):
    """Images with boxes in the layout above; ``data.root`` is the YAML file. Opening it reads all labels."""

    name = "yolo"

    def __init__(self, settings: DataSettings) -> None:
        if settings.root is None or not settings.root.is_file():
            given = settings.root and str(settings.root)
            raise SpecError("data.root", given, "the YAML file of a data set in ultralytics' layout is needed")
        self._file = settings.root
        said = read_yaml(self._file)
        if not isinstance(said, Mapping) or not said.get("train") or not said.get("val") or not said.get("names"):
            raise self._wrong("needs train, val and names")
        self.classes = self._class_names(said["names"], said.get("nc"))
        self._keypoints = bool(said.get("kpt_shape"))
        self.picture = letterbox_format(settings.image_size)
        self._base = self._file.parent / self._path("path", said.get("path") or ".")
        train, val, test = (self._images(role, said.get(role)) for role in ("train", "val", "test"))
        validation, test = judging(val, test or val)
        self._roles = {"train": train, "validation": validation, "test": test}
        check_apart(self._roles)
        for role, files in self._roles.items():
            if not files:
                raise self._wrong(f"names no images for {role}")
            for file in files:
                self._rows(_labels_of(file))

    def things(self, file: Path) -> Sequence[Thing]:
        """The boxes of an image's file of labels, without what reaches over its edges."""
        width, height = size_of(file)
        return [
            Thing(self.classes[label], (left * width, top * height, right * width, bottom * height), False, degenerate)
            for label, (left, top, right, bottom), degenerate in self._rows(_labels_of(file))
        ]

    # -- the YAML file -------------------------------------------------------------------------------------------------

    def _class_names(self, names: Any, count: Any) -> tuple[str, ...]:
        if isinstance(names, Mapping):
            names = self._in_order(names)
        if not isinstance(names, list):
            raise self._wrong(f"names is '{names}'; a list is needed, or a name for each number from 0")
        classes = tuple(map(str, names))
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise self._wrong(f"names has '{twice}' more than once; each class needs a name of its own")
        if count not in (None, len(classes), str(len(classes))):
            raise self._wrong(f"names has {len(classes)} classes, and nc says {count}; make them agree")
        return classes

    def _in_order(self, names: Mapping[Any, Any]) -> list[Any]:
        """The names by their numbers, which may be text."""
        keys = [str(key) for key in names]
        if sorted(keys) != sorted(map(str, range(len(names)))):
            raise self._wrong(f"names has the keys {', '.join(keys)}; 0 to {len(keys) - 1} are needed, each once")
        return [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]

    def _images(self, role: str, named: Any) -> list[Path]:
        """The image files that stand for a role, each once."""
        places = [self._place(role, each) for each in (named if isinstance(named, list) else [named]) if each]
        files = list(dict.fromkeys(file for place in places for file in self._images_at(place)))
        if files and not any(_labels_of(file).is_file() for file in files):
            looked = f"{_labels_of(files[0])} and the like"
            raise self._wrong(f"no image of {role} has a file of labels; looked for {looked}")
        return files

    def _images_at(self, place: Path) -> list[Path]:
        files = _images_below(place) if place.is_dir() else self._listed(place)
        folders = {_labels_of(file).parent for file in files}
        if folders and not any(folder.is_dir() for folder in folders):
            raise self._wrong(f"{min(folders)} is missing, where the labels of {place} belong")
        return files

    def _listed(self, place: Path) -> list[Path]:
        lines = (line.strip() for line in read_text(place).splitlines())
        files = [place.parent / line for line in lines if line]
        for file in files:
            if not file.is_file():
                raise SpecError("data.root", str(place), f"lists {file}, which is not there")
        return files

    def _place(self, role: str, named: Any) -> Path:
        """A folder or a list of images. What exporters write as ``../train/images`` may lie beside the YAML file, as in
        ultralytics.
        """
        named = self._path(role, named)
        beside = Path(*named.parts[1:]) if named.parts[:1] == ("..",) else named
        for place in (self._base / named, self._base / beside):
            if place.is_dir() or (place.suffix == ".txt" and place.is_file()):
                return place
        raise self._wrong(f"names {self._base / named} for {role}, which is neither a folder nor a list of images")

    def _path(self, key: str, named: Any) -> Path:
        try:
            return Path(str(named)).expanduser()
        except RuntimeError as error:  # the home of a user who does not exist
            raise self._wrong(f"{key} is {named}: {error}") from None

    def _wrong(self, what: str) -> SpecError:
        return SpecError("data.root", str(self._file), what)

    # -- labels --------------------------------------------------------------------------------------------------------

    def _rows(self, labels: Path) -> list[_Row]:
        if not labels.is_file():
            return []
        lines: dict[tuple[str, ...], int] = {}
        for number, line in enumerate(read_text(labels).splitlines(), 1):
            lines.setdefault(tuple(line.split()), number)  # a line that stands there twice counts once
        return list(self._checked(labels, lines))

    def _checked(self, labels: Path, lines: Mapping[tuple[str, ...], int]) -> Iterator[_Row]:
        for fields, number in lines.items():
            if not fields:
                continue
            try:
                yield self._row(fields)
            except ValueError as error:
                where = f"{labels}, line {number}"
                raise SpecError("data.root", where, f"not readable as labels of boxes: {error}") from None

    def _row(self, fields: Sequence[str]) -> _Row:
        label = float(fields[0])
        if not label.is_integer() or not 0 <= label < len(self.classes):
            raise ValueError(f"class {fields[0]}; names has the classes 0 to {len(self.classes) - 1}")
        numbers = [float(field) for field in (fields[1:5] if self._keypoints else fields[1:])]
        x, y, across, down = _box(numbers)
        if not _are_shares(x, y, across, down):
            worst = max(numbers, key=lambda number: abs(number - 0.5) if math.isfinite(number) else math.inf)
            raise ValueError(f"{worst:g}; shares of the picture's width and height are needed, from 0 to 1")
        corners = inside((x - across / 2, y - down / 2, x + across / 2, y + down / 2), 1, 1)
        left, top, right, bottom = corners
        return int(label), corners, right <= left or bottom <= top


def _box(numbers: list[float]) -> Corners:
    """Middle and size of a box that is given so, or as a polygon."""
    if len(numbers) == 4:
        x, y, across, down = numbers
        return x, y, across, down
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers after the class; four make a box, pairs of them a polygon")
    if not all(map(math.isfinite, numbers)):
        return math.nan, math.nan, math.nan, math.nan
    left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _are_shares(x: float, y: float, across: float, down: float) -> bool:
    """Whether ultralytics takes them, too; a box drawn backwards has a negative size and is left out here."""
    least = all(number >= -EDGE_TOLERANCE for number in (x, y))
    return least and all(abs(number) <= 1 + EDGE_TOLERANCE for number in (x, y, across, down))


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in DETECTOR_ENDINGS and not any(map(is_clutter, path.relative_to(folder).parts))
    )


def _labels_of(picture: Path) -> Path:
    """The last folder called images becomes labels, as ultralytics has it."""
    before, found, after = str(picture).rpartition(f"{os.sep}images{os.sep}")
    path = Path(f"{before}{os.sep}labels{os.sep}{after}") if found else picture
    return path.with_suffix(".txt")
