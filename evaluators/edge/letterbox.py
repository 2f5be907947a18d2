"""Where a picture lies in a detector's square input: scaled by one factor, in the middle, grey around it.

Sizes, offsets and interpolation are those of ultralytics' own validation, pixel for pixel up to rounding, so that
weights trained there see here what they are used to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

GREY = (114, 114, 114)  # what detectors are trained with around a picture


@dataclass(frozen=True)
class Letterbox:
    """The place of one picture in the square: its size there and its left and top edge, in pixels."""

    picture_width: int
    picture_height: int
    size: int

    @property
    def scale(self) -> float:
        """Pixels in the square for one pixel of the picture."""
        return self.size / max(self.picture_width, self.picture_height)

    @property
    def width(self) -> int:
        """Of the picture in the square."""
        return min(self.size, math.ceil(self.picture_width * self.scale))

    @property
    def height(self) -> int:
        """Of the picture in the square."""
        return min(self.size, math.ceil(self.picture_height * self.scale))

    @property
    def left(self) -> int:
        """Grey columns before the picture."""
        return round((self.size - self.width) / 2 - 0.1)

    @property
    def top(self) -> int:
        """Grey rows above the picture."""
        return round((self.size - self.height) / 2 - 0.1)

    def to_square(self, corners: np.ndarray) -> np.ndarray:
        """Boxes (N, 4), left, top, right, bottom, from the picture's pixels to the square's."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        return np.asarray(corners, np.float32) * self._scales + offset

    def to_picture(self, corners: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_square`, cut off at the picture's edges."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        found = (np.asarray(corners, np.float32) - offset) / self._scales
        return np.clip(found, 0, np.array([self.picture_width, self.picture_height] * 2, np.float32))

    @property
    def _scales(self) -> np.ndarray:
        across, down = self.width / self.picture_width, self.height / self.picture_height
        return np.array([across, down] * 2, np.float32)


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """An RGB or grey picture at another size: bilinear between the nearest four pixels, as OpenCV does it.

    Pillow's own ``resize`` averages over more pixels when it makes a picture smaller. That looks better and is not what
    detectors were trained with.
    """
    if image.size == (width, height):
        return image
    step = (image.width / width, 0, 0, 0, image.height / height, 0)
    return image.transform((width, height), Image.Transform.AFFINE, step, Image.Resampling.BILINEAR)


def letterboxed(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pixels (H, W, 3) or (H, W) in the middle of a grey square: uint8, (size, size, 3)."""
    image = Image.fromarray(pixels).convert("RGB")
    place = Letterbox(image.width, image.height, size)
    square = Image.new("RGB", (size, size), GREY)
    square.paste(resized(image, place.width, place.height), (place.left, place.top))
    return np.asarray(square)
