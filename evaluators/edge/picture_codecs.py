"""Picture codecs: what a camera node would send in place of a payload. Encoding is the device's part, decoding the
server's; both are timed where they run.

Each codec has the settings that a camera node would use. Measured with Pillow 13.0 on one core of a two-core EPYC, 60
TinyImageNet pictures of 64 pixels and 12 photographs of 320x240 (quality 50):

- JPEG with Huffman tables of its own (``optimize``): 330 bytes less at 64 pixels, for 0.02 ms more.
- WebP by method 4, libwebp's default. Method 6 is 6 % smaller at 64 pixels, and takes 1.2 ms instead of 0.45 (16
  instead of 6.4 at 320x240), which only pays on links slower than 0.1 MB/s.
- AVIF at speed 10. Speed 6, the usual one, is 3 to 6 % smaller, and takes 4.4 ms instead of 0.9 (68 instead of 4.8).
  One thread both ways: more never decoded faster up to 640 pixels, and took 0.26 ms instead of 0.11 at 64.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass, field
from typing import Iterator

import numpy as np
import PIL
from PIL import Image

try:
    from PIL import AvifImagePlugin
except ImportError:  # before Pillow 11.3
    AvifImagePlugin = None  # type: ignore[assignment]

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclass(frozen=True)
class PictureCodec:
    """One codec as Pillow has it.

    Attributes:
        name: in manifests and keys of timings.
        label: for people; also Pillow's name of the format, in any case.
        endings: of its files, the usual one first.
        since: the first Pillow whose own builds have it.
        options: of encoding.
        grey_options: in place of those, for greyscale pictures.
    """

    name: str
    label: str
    endings: tuple[str, ...]
    since: str
    options: dict = field(default_factory=dict)
    grey_options: dict = field(default_factory=dict)

    def encode(self, pixels: np.ndarray, quality: int) -> bytes:
        """A file of uint8 pixels, (H, W, 3) or (H, W); qualities go from 1 to 100."""
        options = self.grey_options or self.options if pixels.ndim == 2 else self.options
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, self.label.upper(), quality=quality, **options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """Pixels of a file: uint8, (H, W, 3), or (H, W) for a greyscale one, which WebP does not know."""
        with _one_thread(), Image.open(io.BytesIO(data), formats=[self.label.upper()]) as image:
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))

    @property
    def available(self) -> bool:
        """Whether the Pillow that runs here can write and read it."""
        return _works(self.name)

    @property
    def lacking(self) -> str:
        """What to say and do where it is not available."""
        return f"this Pillow ({PIL.__version__}) has no {self.label}; its own builds have it from {self.since} on"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """While entered, Pillow decodes AVIF on one thread, which :func:`PIL.Image.open` has no option for."""
    if AvifImagePlugin is None:
        yield
        return
    before = AvifImagePlugin.DEFAULT_MAX_THREADS
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        yield
    finally:
        AvifImagePlugin.DEFAULT_MAX_THREADS = before


_AVIF = {"speed": 10, "max_threads": 1}

CODECS = {
    codec.name: codec
    for codec in (
        PictureCodec("jpeg", "JPEG", (".jpg", ".jpeg"), "1.0", {"optimize": True}),
        PictureCodec("webp", "WebP", (".webp",), "2.0", {"method": 4}),
        # Without colour its planes of colour are left out, which files of other pictures always have.
        PictureCodec("avif", "AVIF", (".avif",), "11.3", _AVIF, {**_AVIF, "subsampling": "4:0:0"}),
    )
}


@functools.lru_cache(maxsize=None)
def _works(name: str) -> bool:
    codec, pixels = CODECS[name], np.zeros((8, 8, 3), np.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return codec.decode(codec.encode(pixels, 50)).shape == pixels.shape
    except (KeyError, OSError, ValueError, TypeError):  # Pillow raises each of them, by version and build
        return False


@dataclass(frozen=True)
class PictureCoding:
    """A codec at one quality: ``picture_codec`` in a folder's manifest."""

    codec: PictureCodec
    quality: int

    def __str__(self) -> str:
        return f"{self.codec.name} {self.quality}"

    @property
    def label(self) -> str:
        """For people: ``WebP 50``."""
        return f"{self.codec.label} {self.quality}"

    def encode(self, pixels: np.ndarray) -> bytes:
        """A file of uint8 pixels, (H, W, 3) or (H, W)."""
        return self.codec.encode(pixels, self.quality)

    def decode(self, data: bytes) -> np.ndarray:
        """Pixels of a file, see :meth:`PictureCodec.decode`."""
        return self.codec.decode(data)

    def to_dict(self) -> dict:
        """As in a manifest."""
        return {"name": self.codec.name, "quality": self.quality}

    @classmethod
    def from_dict(cls, data: dict) -> PictureCoding:
        """The inverse of :meth:`to_dict`. Raises ValueError for a codec that is not known here."""
        codec = CODECS.get(data["name"])
        if codec is None:
            raise ValueError(f"picture codec {data['name']!r} given; {', '.join(CODECS)} are known here")
        return cls(codec, data["quality"])
