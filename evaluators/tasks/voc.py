"""Pascal VOC's layout: pictures with boxes around the things in them.

``VOCdevkit/<name>/`` holds ``JPEGImages``, ``Annotations`` (one XML file a picture) and lists of pictures in
``ImageSets/Main``. Several names side by side count as one data set, as VOC2007 and VOC2012 usually do.
"""

from __future__ import annotations

import functools
import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluators.edge.picture import PictureFormat
from evaluators.settings import DataSettings
from evaluators.tasks.archives import find_root
from evaluators.tasks.data import Dataset, Pictures, sample
from spaces.errors import SpecError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_DEEPEST = 3  # folders between the root and VOCdevkit/<name>


@dataclass(frozen=True)
class _Thing:
    """One annotated object; corners in pixels of the picture, from 0.

    A ``degenerate`` box has its right or bottom end at its left or top one, a slip of whoever drew it.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    degenerate: bool


class Voc(Dataset):
    """Pictures with boxes in Pascal VOC's layout.

    Train and search-validation are the ``train`` and ``val`` lists, test the ``test`` list; without a ``val`` list
    train is ``trainval``, and the test list is halved. Labels are one tensor of rows (picture, class, left, top, right,
    bottom, difficult), in pixels of the picture as it lies on disk. Boxes without area are left out.
    """

    name = "voc"
    task = "detection"
    mirrored = True

    def __init__(self, settings: DataSettings) -> None:
        self._root = find_root(settings)
        self._sets = sorted(_sets_below(self._root))
        if not self._sets:
            raise SpecError("data.root", str(self._root), "holds no VOCdevkit/<name>/ImageSets/Main")
        self.picture = PictureFormat(settings.image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), letterbox=True)
        found = {thing.name for file in self._annotations() for thing in _things(file)}
        self.classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """See :class:`Dataset`."""
        rows = [f"{path.name} {path.stat().st_size}" for path in self._roles["train"]]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @functools.cached_property
    def degenerate_boxes(self) -> int:
        """How many boxes were left out because they have no area."""
        return sum(thing.degenerate for file in self._annotations() for thing in _things(file))

    def train(self, count: int | None, seed: int) -> Pictures:
        """See :class:`Dataset`; a sample is drawn without regard to classes, of which a picture may hold several."""
        files = self._roles["train"]
        chosen = sample(np.zeros(len(files), int), np.arange(len(files)), count, seed)
        return self._read([files[i] for i in chosen])

    def validation(self) -> Pictures:
        """See :class:`Dataset`."""
        return self._read(self._roles["validation"])

    def test(self) -> Pictures:
        """See :class:`Dataset`."""
        return self._read(self._roles["test"])

    @functools.cached_property
    def _roles(self) -> dict[str, list[Path]]:
        train, val, test = self._list("train"), self._list("val"), self._list("test")
        if not val:
            train = self._list("trainval") or train
            val, test = test[::2], test[1::2]
        roles = {"train": train, "validation": val, "test": test}
        for role, files in roles.items():
            if not files:
                needed = "ImageSets/Main needs train, val and test.txt, or trainval and test.txt, with pictures in them"
                raise SpecError("data.root", str(self._root), f"has no pictures for {role}; {needed}")
        return roles

    def _annotations(self) -> list[Path]:
        return [path for folder in self._sets for path in sorted((folder / "Annotations").glob("*.xml"))]

    def _list(self, name: str) -> list[Path]:
        lists = [(folder, folder / "ImageSets" / "Main" / f"{name}.txt") for folder in self._sets]
        return [
            folder / "JPEGImages" / f"{line.split()[0]}.jpg"
            for folder, path in lists
            if path.is_file()
            for line in path.read_text().splitlines()
            if line.strip()
        ]

    def _read(self, files: list[Path]) -> Pictures:
        rows = []
        for number, file in enumerate(files):
            annotation = file.parent.parent / "Annotations" / f"{file.stem}.xml"
            for thing in _things(annotation):
                if not thing.degenerate:
                    label = self.classes.index(thing.name)
                    rows.append([number, label, *thing.corners, float(thing.difficult)])
        return Pictures(_Files(files), torch.tensor(rows, dtype=torch.float32).reshape(-1, 7))


class _Files(Sequence[np.ndarray]):
    """Pictures read when they are looked at: a whole VOC does not fit into memory."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return _Files(self._files[index])
        with Image.open(self._files[index]) as image:
            return np.asarray(image.convert("RGB"))


def _sets_below(root: Path) -> list[Path]:
    patterns = ["/".join(["*"] * depth + ["ImageSets", "Main"]) for depth in range(_DEEPEST + 1)]
    return [path.parent.parent for pattern in patterns for path in root.glob(pattern)]


@functools.lru_cache(maxsize=50_000)
def _things(annotation: Path) -> tuple[_Thing, ...]:
    try:
        tree = ElementTree.parse(annotation)
        return tuple(_thing(node) for node in tree.iterfind("object"))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise SpecError("data.root", str(annotation), f"not readable as a VOC annotation: {error}") from None


def _thing(node: ElementTree.Element) -> _Thing:
    left, top, right, bottom = (float(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[arg-type]
    difficult = (node.findtext("difficult") or "0").strip() == "1"
    # VOC counts pixels from 1, both ends included: the picture's first column is 1 to 1, here 0 to 1.
    corners, degenerate = (left - 1, top - 1, right, bottom), right <= left or bottom <= top
    return _Thing((node.findtext("name") or "").strip(), corners, difficult, degenerate)
