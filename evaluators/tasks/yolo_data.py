"""ultralytics' own data sets: a YAML file that names folders of images, beside each a folder of labels.

    path: datasets/birds        # of the rest; absolute, or below the YAML file's folder
    train: images/train         # a folder, a text file of images, or a list of either
    val: images/val
    test: images/test           # optional: without it the val images are halved
    names: {0: wren, 1: robin}

The labels of ``images/train/7.jpg`` stand in ``labels/train/7.txt``: class, then middle and size of the box as shares
of the picture's width and height.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.settings import DataSettings
from evaluators.tasks.detection_data import DetectionFiles, Thing, letterbox_format, size_of
from spaces.errors import SpecError
from spaces.yaml_text import read_yaml

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class YoloData(DetectionFiles):
    """Images with boxes in the layout above; ``data.root`` is the YAML file."""

    name = "yolo"

    def __init__(self, settings: DataSettings) -> None:
        if settings.root is None or not settings.root.is_file():
            given = settings.root and str(settings.root)
            raise SpecError("data.root", given, "the YAML file of a data set in ultralytics' layout is needed")
        self._file = settings.root
        said = read_yaml(self._file)
        if not isinstance(said, Mapping) or not said.get("train") or not said.get("val") or not said.get("names"):
            raise self._wrong("needs train, val and names")
        names = said["names"]
        self.classes = tuple(map(str, (names[key] for key in sorted(names)) if isinstance(names, Mapping) else names))
        self.picture = letterbox_format(settings.image_size)
        self._base = self._file.parent / Path(str(said.get("path", ""))).expanduser()
        train, val, test = (self._pictures(said.get(role)) for role in ("train", "val", "test"))
        validation, test = (val, test) if test else (val[::2], val[1::2])
        self._roles = {"train": train, "validation": validation, "test": test}
        for role, files in self._roles.items():
            if not files:
                raise self._wrong(f"names no images for {role}")

    def things(self, file: Path) -> Sequence[Thing]:
        """See :class:`DetectionFiles`."""
        labels = _labels_of(file)
        if not labels.is_file():
            return ()
        width, height = size_of(file)
        try:
            return tuple(
                self._thing(line.split(), width, height) for line in labels.read_text().splitlines() if line.strip()
            )
        except (ValueError, IndexError) as error:
            raise SpecError("data.root", str(labels), f"not readable as labels of boxes: {error}") from None

    def _thing(self, row: list[str], width: int, height: int) -> Thing:
        label, (x, y, across, down) = int(row[0]), map(float, row[1:])
        corners = (
            (x - across / 2) * width,
            (y - down / 2) * height,
            (x + across / 2) * width,
            (y + down / 2) * height,
        )
        return Thing(self.classes[label], corners, difficult=False, degenerate=across <= 0 or down <= 0)

    def _pictures(self, named: Any) -> list[Path]:
        if isinstance(named, list):
            return [file for each in named for file in self._pictures(each)]
        if not named:
            return []
        place = self._base / str(named)
        if place.is_dir():
            return sorted(path for path in place.rglob("*") if path.suffix.lower() in _ENDINGS)
        if place.suffix == ".txt" and place.is_file():
            lines = (line.strip() for line in place.read_text().splitlines())
            return [place.parent / line for line in lines if line]
        raise self._wrong(f"names {place}, which is neither a folder nor a list of images")

    def _wrong(self, what: str) -> SpecError:
        return SpecError("data.root", str(self._file), what)


def _labels_of(picture: Path) -> Path:
    """The last folder called images becomes labels, as ultralytics has it."""
    before, found, after = str(picture).rpartition(f"{os.sep}images{os.sep}")
    path = Path(f"{before}{os.sep}labels{os.sep}{after}") if found else picture
    return path.with_suffix(".txt")
