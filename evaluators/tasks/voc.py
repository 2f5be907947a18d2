"""Pascal VOC's layout: images with boxes around the things in them.

``VOCdevkit/<name>/`` holds ``JPEGImages``, ``Annotations`` (one XML file a picture) and lists of images in
``ImageSets/Main``. Several names side by side count as one data set.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from evaluators.settings import DataSettings
from evaluators.tasks.archives import Archive, find_root
from evaluators.tasks.detection_data import (
    DETECTOR_ENDINGS,
    EDGE_TOLERANCE,
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

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# What ``download: true`` fetches; the checksums are those that readers of VOC have gone by for years.
_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
VOC_0712 = (
    Archive(url=f"{_HOST}/voc2007/VOCtrainval_06-Nov-2007.tar", md5="c52e279531787c972589f7e41ab4ae64"),
    Archive(url=f"{_HOST}/voc2007/VOCtest_06-Nov-2007.tar", md5="b6e924de25625d8de591ea690078ad9f"),
    Archive(url=f"{_HOST}/voc2012/VOCtrainval_11-May-2012.tar", md5="6cd6e144f989b92b3379bac3b3de84fd"),
)
_SLACK = 2.0  # pixels over the edge that are let pass whatever the picture's size, since some count from 0
_DEEPEST = 3  # folders between the root and VOCdevkit/<name>
_SPLIT_SEED = 2  # fixed for everybody, so that no search ever sees a test picture


class Voc(DetectionFiles):
    """Images with boxes in Pascal VOC's layout.

    Train and search-validation are the ``train`` and ``val`` lists, test the ``test`` list; without a ``val`` list
    train is ``trainval``, and the test list is halved as :func:`evaluators.tasks.detection_data.halves` does it, as are
    two lists of the same pictures. A line of a list is a picture's name, with or without its ending. Opening reads all
    annotations.
    """

    name = "voc"
    public: tuple[Archive, ...] = ()

    def __init__(self, settings: DataSettings) -> None:
        self._root = find_root(settings, public=self.public)
        self._sets = sorted(_sets_below(self._root))
        if not self._sets:
            raise SpecError("data.root", str(self._root), "holds no VOCdevkit/<name>/ImageSets/Main")
        self.picture = letterbox_format(settings.image_size)
        self._annotated = {file: _things(file) for folder in self._sets for file in _annotations_in(folder)}
        found = {thing.name for things in self._annotated.values() for thing in things}
        self.classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
        self._pictures = {folder: _pictures_in(folder / "JPEGImages") for folder in self._sets}
        self._roles = self._divided()
        for role, files in self._roles.items():
            self._check(role, files)
        check_apart(self._roles)

    def things(self, file: Path) -> Sequence[Thing]:
        """The boxes of the annotation beside an image."""
        annotation, size = _annotation_of(file), size_of(file)
        things = self._annotated[annotation]
        for thing in things:
            _check_place(thing, size, annotation)
        return things

    def _divided(self) -> dict[str, list[Path]]:
        train, val, test = self._list("train"), self._list("val"), self._list("test")
        if not val:
            train = self._list("trainval") or train
            val = test
        val, test = judging(val, test)
        return {"train": train, "validation": val, "test": test}

    def _check(self, role: str, files: list[Path]) -> None:
        if not files:
            needed = "ImageSets/Main needs train, val and test.txt, or trainval and test.txt, with images in them"
            raise SpecError("data.root", str(self._root), f"has no images for {role}; {needed}")
        for file in files:
            if _annotation_of(file) not in self._annotated:
                missing = f"is listed for {role}, and its annotation {_annotation_of(file)} is missing"
                raise SpecError("data.root", str(file), missing)

    def _list(self, name: str) -> list[Path]:
        """The images of a list of all sets, each once."""
        lists = [(folder, folder / "ImageSets" / "Main" / f"{name}.txt") for folder in self._sets]
        return list(dict.fromkeys(self._listed(*each, line) for each in lists for line in _lines(each[1])))

    def _listed(self, folder: Path, images: Path, line: str) -> Path:
        """The picture that a line names; numbers after the name, as in VOC's lists of one class, say nothing here."""
        pictures = self._pictures[folder]
        for name in (line, re.sub(r"\s+[-+]?\d+$", "", line)):
            if name in pictures:
                return pictures[name]
        missing = (
            f"lists '{line}', and JPEGImages beside it has no picture of that name ({', '.join(DETECTOR_ENDINGS)})"
        )
        raise SpecError("data.root", str(images), missing)


class Voc0712(Voc):
    """VOC2007 and VOC2012 as detectors are usually trained and compared: train is the ``trainval`` of both.

    The test list of 2007, shuffled, is one half search-validation and one half test: unlike frames of a video, these
    photographs have no neighbours that a shuffle would separate.
    """

    name = "voc0712"
    public = VOC_0712

    def _divided(self) -> dict[str, list[Path]]:
        held_out = self._list("test")
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(held_out))
        halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        validation, test = ([held_out[i] for i in half] for half in halves)
        return {"train": self._list("trainval"), "validation": validation, "test": test}


def _sets_below(root: Path) -> list[Path]:
    patterns = ["/".join(["*"] * depth + ["ImageSets", "Main"]) for depth in range(_DEEPEST + 1)]
    found = [path for pattern in patterns for path in root.glob(pattern)]
    return [path.parent.parent for path in found if not any(map(is_clutter, path.relative_to(root).parts))]


def _annotations_in(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "Annotations").glob("*.xml") if not is_clutter(path.name))


def _annotation_of(picture: Path) -> Path:
    return picture.parent.parent / "Annotations" / f"{picture.stem}.xml"


def _pictures_in(folder: Path) -> dict[str, Path]:
    """Pictures by name with and without ending; of several with one name the ``.jpg``."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in DETECTOR_ENDINGS and not is_clutter(path.name)]
    found: dict[str, Path] = {path.name: path for path in files}
    for path in sorted(files, key=lambda path: (path.suffix != ".jpg", path.name)):
        found.setdefault(path.stem, path)
    return found


def _lines(images: Path) -> Iterator[str]:
    text = read_text(images) if images.is_file() else ""
    return (line.strip() for line in text.splitlines() if line.strip())


def _things(annotation: Path) -> tuple[Thing, ...]:
    try:
        tree = ElementTree.parse(annotation)
        return tuple(_thing(node) for node in tree.iterfind("object"))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise SpecError("data.root", str(annotation), f"not readable as a VOC annotation: {error}") from None


def _thing(node: ElementTree.Element) -> Thing:
    name = (node.findtext("name") or "").strip()
    left, top, right, bottom = (float(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[arg-type]
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"the box of '{name}' is {left:g}, {top:g}, {right:g}, {bottom:g}; pixels are needed")
    difficult = (node.findtext("difficult") or "0").strip() == "1"
    # VOC counts pixels from 1, both ends included: the picture's first column is 1 to 1, here 0 to 1.
    corners, degenerate = (left - 1, top - 1, right, bottom), right <= left or bottom <= top
    return Thing(name, corners, difficult, degenerate)


def _check_place(thing: Thing, size: tuple[int, int], annotation: Path) -> None:
    """Raises SpecError for a box that reaches out of its picture by more than a slip."""
    over = [abs(corner - kept) for corner, kept in zip(thing.corners, inside(thing.corners, *size))]
    if any(each > max(EDGE_TOLERANCE * side, _SLACK) for each, side in zip(over, size * 2)) and not thing.degenerate:
        box = ", ".join(f"{corner:g}" for corner in thing.corners)
        what = f"the box of '{thing.name}' ({box} from 0) lies outside its picture of {size[0]}x{size[1]} pixels"
        raise SpecError("data.root", str(annotation), what)
