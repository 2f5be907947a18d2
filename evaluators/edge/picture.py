"""From a picture file to the array a network takes. Training, scoring and the device use this same code."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from .letterbox import Letterbox, letterboxed, resized


@dataclass(frozen=True)
class PictureFormat:
    """How a picture becomes the network's input.

    ``size`` is the square input's side in pixels; ``mean`` and ``std`` are per RGB channel, for values in 0..1. With
    ``letterbox`` a picture keeps its proportions, the rest of the square is grey; else it is stretched.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    letterbox: bool = False

    def to_dict(self) -> dict:
        """As JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> PictureFormat:
        """The inverse of :meth:`to_dict`."""
        return cls(
            size=data["size"], mean=tuple(data["mean"]), std=tuple(data["std"]), letterbox=data.get("letterbox", False)
        )


def open_picture(source: str | io.BytesIO, picture: PictureFormat) -> np.ndarray:
    """The pixels of a picture file no larger than the network needs: uint8, (H, W, 3), or (H, W) when greyscale.

    A picture that is not square is cropped around its centre first, unless it goes into a letterbox; one that is larger
    than the network's input is scaled down. A smaller one stays as it is, since enlarging it on the device would only
    make the raw picture longer to send.
    """
    with Image.open(source) as file:
        return fit_picture(file, picture)


def fit_picture(file: Image.Image, picture: PictureFormat) -> np.ndarray:
    """As :func:`open_picture`, for a picture that is open already."""
    image, size = file.convert("L" if file.mode in ("1", "L", "I;16") else "RGB"), picture.size
    if picture.letterbox:
        place = Letterbox(image.width, image.height, size)
        return np.asarray(image if place.scale >= 1 else resized(image, place.width, place.height))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side > size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_input(pixels: np.ndarray, picture: PictureFormat) -> np.ndarray:
    """Pixels as the network's input: float32, (1, 3, size, size), scaled, converted to RGB and normalised."""
    pixels = letterboxed(pixels, picture.size) if picture.letterbox else to_rgb(pixels, picture.size)
    mean, std = np.array(picture.mean, np.float32), np.array(picture.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std  # (H, W, 3)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def to_rgb(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pixels (H, W, 3) or (H, W) scaled to a square of ``size`` and converted to RGB: uint8, (size, size, 3)."""
    if pixels.shape[:2] != (size, size):
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels
