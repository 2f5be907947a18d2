"""From a picture file to the array a network takes. Training, scoring and the device use this same code.

Every picture is turned upright first, as its EXIF orientation says; its size, and boxes in it, are those of the upright
picture. 16-bit grey is scaled to 8 bits; transparency is dropped; of an animation the first frame counts.
"""

from __future__ import annotations

import io
import os
import struct
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Iterator, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from .letterbox import Letterbox, letterboxed, resized

PictureSource = Union[str, "os.PathLike[str]", io.BytesIO]

# What turns a picture upright, by its EXIF orientation. 1 is upright already; from 5 on width and height change places.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG = 256, 257, 274  # TIFF's numbers, and EXIF's


class PictureError(ValueError):
    """A picture that cannot be used; the message says which file, why, and what to do."""


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


def open_picture(source: PictureSource, picture: PictureFormat) -> np.ndarray:
    """The pixels of a picture file no larger than the network needs: uint8, (H, W, 3), or (H, W) when greyscale.

    A picture that is not square is cropped around its centre first, unless it goes into a letterbox; one that is larger
    than the network's input is scaled down. A smaller one stays as it is, since enlarging it on the device would only
    make the raw picture longer to send.

    Raises:
        PictureError: the file cannot be read as a picture.
    """
    return fit_picture(open_upright(source), picture)


def open_upright(source: PictureSource) -> Image.Image:
    """A picture file decoded, upright, in 8-bit grey or RGB. Raises PictureError, which names the file."""
    with _naming(source), Image.open(source) as file:
        return upright(file)


def upright_size(source: PictureSource) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header. Raises PictureError, which names the file."""
    with _naming(source), Image.open(source) as file:
        tags = getattr(file, "tag_v2", None)  # of a TIFF file, whose size newer Pillows turn themselves
        width, height = (tags[_WIDTH_TAG], tags[_HEIGHT_TAG]) if tags else file.size
        turned = not _is_plain_png(file) and _orientation(file) >= 5
        return (height, width) if turned else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """A copy of a picture as it is meant to be seen: turned as its EXIF says, in 8-bit grey or RGB.

    Raises:
        PictureError: it cannot be decoded, or its pixels have no defined grey or RGB value.
    """
    with _naming(None):
        image.load()
        if 0 in image.size:
            raise PictureError("it has no pixels")
        turn = _TURNS.get(_orientation(image))
        plain = _eight_bits(image)
        plain = plain if turn is None else plain.transpose(turn)
        plain.info.clear()  # the orientation with it, which must not count twice
        return plain


def fit_picture(image: Image.Image, picture: PictureFormat) -> np.ndarray:
    """As :func:`open_picture`, for a picture from :func:`open_upright` or :func:`upright`."""
    size = picture.size
    if picture.letterbox:
        place = Letterbox(image.width, image.height, size)
        return np.asarray(image if place.scale >= 1 else resized(image, place.width, place.height))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side > size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


@contextmanager
def _naming(source: PictureSource | None) -> Iterator[None]:
    """Turn whatever Pillow raises into a PictureError that says which picture it is about."""
    place = f"{os.fspath(source)}: " if isinstance(source, (str, os.PathLike)) else ""
    try:
        yield
    except PictureError as error:
        raise PictureError(f"{place}{error}") from None
    except FileNotFoundError:
        raise PictureError(f"{place}there is no such file") from None
    except (UnidentifiedImageError, ImportError):  # ultralytics makes Pillow look for one more package
        raise PictureError(f"{place}not a picture that Pillow can read; remove it or save it anew") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{place}too large ({error}); make it smaller") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise PictureError(f"{place}not readable as a picture ({reason}); remove it or save it anew") from None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where nothing sensible is said of it."""
    try:
        said = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF makes Pillow raise almost anything, and the pixels may be fine all the same
        return 1
    return said if isinstance(said, int) and said in _TURNS else 1


def _is_plain_png(file: Image.Image) -> bool:
    """Whether a file is a PNG without EXIF. Pillow would decode it to answer, as EXIF may come after the pixels."""
    stream = getattr(file, "fp", None)
    if file.format != "PNG" or stream is None:
        return False
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        start = stream.read(min(length, 24)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        if kind == b"eXIf" or start.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
            return False
        stream.seek(length - len(start) + 4, os.SEEK_CUR)
    return True


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in mode L or RGB."""
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise PictureError("its pixels are floating-point numbers without a fixed white; save it with 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns of transparency that is lost on the way to RGB
    return image.convert("RGB")


def _from_16_bits(values: np.ndarray) -> Image.Image:
    """16-bit grey as 8 bits, 65535 becoming 255."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise PictureError(f"its pixels go from {low} to {high}; grey of 8 or 16 bits, 0 to 65535, is needed")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


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
