"""Pascal VOC's layout: images with boxes around the things in them.

``VOCdevkit/<name>/`` holds ``JPEGImages``, ``Annotations`` (one XML file a picture) and lists of images in
``ImageSets/Main``. Several names side by side count as one data set.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluators.settings import DataSettings
from evaluators.tasks.archives import Archive, find_root
from evaluators.tasks.detection_data import DetectionFiles, Thing, letterbox_format
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
_DEEPEST = 3  # folders between the root and VOCdevkit/<name>
_SPLIT_SEED = 2  # fixed for everybody, so that no search ever sees a test picture


class Voc(DetectionFiles):
    """Images with boxes in Pascal VOC's layout.

    Train and search-validation are the ``train`` and ``val`` lists, test the ``test`` list; without a ``val`` list
    train is ``trainval``, and the test list is halved.
    """

    name = "voc"
    public: tuple[Archive, ...] = ()

    def __init__(self, settings: DataSettings) -> None:
        self._root = find_root(settings, public=self.public)
        self._sets = sorted(_sets_below(self._root))
        if not self._sets:
            raise SpecError("data.root", str(self._root), "holds no VOCdevkit/<name>/ImageSets/Main")
        self.picture = letterbox_format(settings.image_size)
        annotations = [path for folder in self._sets for path in sorted((folder / "Annotations").glob("*.xml"))]
        found = {thing.name for file in annotations for thing in _things(file)}
        self.classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
        self._roles = self._divided()
        for role, files in self._roles.items():
            if not files:
                needed = "ImageSets/Main needs train, val and test.txt, or trainval and test.txt, with images in them"
                raise SpecError("data.root", str(self._root), f"has no images for {role}; {needed}")

    def things(self, file: Path) -> Sequence[Thing]:
        """See :class:`DetectionFiles`."""
        return _things(file.parent.parent / "Annotations" / f"{file.stem}.xml")

    def _divided(self) -> dict[str, list[Path]]:
        train, val, test = self._list("train"), self._list("val"), self._list("test")
        if not val:
            train = self._list("trainval") or train
            val, test = test[::2], test[1::2]
        return {"train": train, "validation": val, "test": test}

    def _list(self, name: str) -> list[Path]:
        lists = [(folder, folder / "ImageSets" / "Main" / f"{name}.txt") for folder in self._sets]
        return [
            folder / "JPEGImages" / f"{line.split()[0]}.jpg"
            for folder, path in lists
            if path.is_file()
            for line in path.read_text().splitlines()
            if line.strip()
        ]


class Voc0712(Voc):
    """VOC2007 and VOC2012 as detectors are usually trained and compared: train is the ``trainval`` of both.

    The test list of 2007, shuffled, is one half search-validation and one half test.
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
    return [path.parent.parent for pattern in patterns for path in root.glob(pattern)]


@functools.lru_cache(maxsize=50_000)
def _things(annotation: Path) -> tuple[Thing, ...]:
    try:
        tree = ElementTree.parse(annotation)
        return tuple(_thing(node) for node in tree.iterfind("object"))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise SpecError("data.root", str(annotation), f"not readable as a VOC annotation: {error}") from None


def _thing(node: ElementTree.Element) -> Thing:
    left, top, right, bottom = (float(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[arg-type]
    difficult = (node.findtext("difficult") or "0").strip() == "1"
    # VOC counts pixels from 1, both ends included: the picture's first column is 1 to 1, here 0 to 1.
    corners, degenerate = (left - 1, top - 1, right, bottom), right <= left or bottom <= top
    return Thing((node.findtext("name") or "").strip(), corners, difficult, degenerate)
