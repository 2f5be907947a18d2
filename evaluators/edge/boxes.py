"""A detector's answer as boxes in the pixels of the picture, and as a drawing on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .letterbox import Letterbox

LEAST_SCORE = 0.25  # what detectors show unless told otherwise
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True)
class Box:
    """One found thing: class index, score in 0..1, and corners in pixels of the picture, from its left top corner."""

    label: int
    score: float
    left: float
    top: float
    right: float
    bottom: float

    def to_dict(self, classes: Sequence[str]) -> dict:
        """JSON-ready, with the class's name where there are names."""
        name = classes[self.label] if self.label < len(classes) else str(self.label)
        found = {key: value for key, value in asdict(self).items() if key != "label"}
        return {"class": self.label, "name": name, **found}


def boxes_of(answer: np.ndarray, place: Letterbox, least_score: float = LEAST_SCORE) -> list[Box]:
    """A detector's answer (M, 6), rows of left, top, right, bottom in its input's pixels, score and class; the surest
    first, those below the least score left out.
    """
    kept = answer[answer[:, 4] >= least_score]
    kept = kept[np.argsort(-kept[:, 4], kind="stable")]
    corners = place.to_picture(kept[:, :4])
    return [
        Box(int(row[5]), round(float(row[4]), 4), *(round(float(value), 2) for value in corner))
        for row, corner in zip(kept, corners)
    ]


def drawn(picture: Image.Image, boxes: Sequence[Box], classes: Sequence[str]) -> Image.Image:
    """A copy of the picture with boxes, names and scores on it."""
    image = picture.convert("RGB")
    pen = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / 300))
    for box in reversed(boxes):  # the surest on top
        colour = _COLOURS[box.label % len(_COLOURS)]
        pen.rectangle((box.left, box.top, box.right, box.bottom), outline=colour, width=width)
        name = classes[box.label] if box.label < len(classes) else str(box.label)
        _write(pen, f"{name} {box.score:.2f}", (box.left + width, max(0.0, box.top - 12)), colour)
    return image


def _write(pen: ImageDraw.ImageDraw, text: str, place: tuple[float, float], colour: str) -> None:
    try:
        around = pen.textbbox(place, text)
    except UnicodeEncodeError:  # before 10.1, and without FreeType, Pillow's own font has the letters of Latin-1 alone
        text = text.encode("latin-1", "replace").decode("latin-1")
        around = pen.textbbox(place, text)
    pen.rectangle(around, fill=colour)
    pen.text(place, text, fill="white")
