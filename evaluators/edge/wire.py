"""The payload: symbols of a quantized feature map, packed, optionally compressed, behind a ten-byte header.

    byte 0      version of this layout
    byte 1      number of the coder, see coders.py
    bytes 2-5   fingerprint of the configuration that made it (levels, shapes, bit-width)
    bytes 6-9   CRC-32 of all that follows
    bytes 10-   only where a configuration says so (detectors): width and height of the picture, two bytes each
    then        body

Symbols come channel by channel, row by row, tensors one after the other, and are packed as bit planes: the most
significant bit of each, then the next; the last byte is filled with zeros. Their number follows from the configuration,
so it is not sent. A lossless coder may follow. (LZMA makes as much of planes as of whole symbols side by side, and
planes pack many times faster: benchmarks/results/coders.md.)
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from . import context
from .coders import CODERS
from .errors import PayloadError

WIRE_VERSION = 3  # 1 knew no coder but LZMA; 2 had a library's range coder
_HEADER = struct.Struct("<BB4sI")
HEADER_BYTES = _HEADER.size
_SIZE = struct.Struct("<HH")
MOST_PIXELS = 2**16 - 1


@dataclass(frozen=True)
class TensorLevels:
    """Quantization levels of one tensor: ``2**bits`` evenly spaced values from ``low`` to ``high``, per channel.

    ``shape`` is (C, H, W) or (C,), without the batch dimension; ``low`` and ``high`` hold C float32 each.
    """

    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            values = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            if values.shape != (self.shape[0],) or not np.isfinite(values).all():
                raise ValueError(f"{name}: needs {self.shape[0]} finite numbers, got an array of shape {values.shape}")
            object.__setattr__(self, name, values)
        if not (self.high > self.low).all():
            raise ValueError("high: must lie above low in every channel")

    @property
    def elements(self) -> int:
        """Symbols in the tensor."""
        return int(np.prod(self.shape))

    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        """low and step, shaped to broadcast over ``shape``."""
        column = (-1,) + (1,) * (len(self.shape) - 1)
        return self.low.reshape(column), (self.high - self.low).reshape(column)


@dataclass(frozen=True)
class WireFormat:
    """Everything both ends must agree on: bit-width, levels of each tensor, coder.

    ``tables`` are those of a context model, one for each tensor, see :func:`evaluators.edge.context.learn`. With
    ``carries_image_size`` the payload says how large the picture was, which whoever gets boxes has to know.
    """

    bits: int
    tensors: tuple[TensorLevels, ...]
    coder: str = "packed"
    tables: tuple[np.ndarray, ...] = ()
    carries_image_size: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits} given, 1 to 8 allowed")
        if self.coder not in CODERS:
            raise ValueError(f"coder: {self.coder!r} given; known: {', '.join(CODERS)}")
        if not CODERS[self.coder].available:
            package = CODERS[self.coder].library
            raise ValueError(f"coder: {self.coder!r} needs the package {package}: pip install {package}")
        if (self.coder == "context") != (len(self.tables) == len(self.tensors) > 0):
            raise ValueError("tables: one for each tensor is needed for a context model, and none without")
        for table, tensor in zip(self.tables, self.tensors):
            context.check(table, tensor.shape, self.bits)

    @property
    def elements(self) -> int:
        """Symbols in one payload."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed symbols, before compression and without the header."""
        return (self.elements * self.bits + 7) // 8

    @property
    def header_bytes(self) -> int:
        """Bytes of a payload before its body."""
        return HEADER_BYTES + (_SIZE.size if self.carries_image_size else 0)

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """Four bytes that differ between configurations whose payloads must not be mixed."""
        digest = hashlib.sha256(json.dumps([WIRE_VERSION, self.bits, [t.shape for t in self.tensors]]).encode())
        for tensor in self.tensors:
            digest.update(tensor.low.astype("<f4").tobytes() + tensor.high.astype("<f4").tobytes())
        for table in self.tables:
            digest.update(table.astype("<i2").tobytes())
        if self.carries_image_size:
            digest.update(b"carries_image_size")
        return digest.digest()[:4]

    def to_dict(self) -> dict:
        """As JSON-ready values; float32 numbers survive the round trip exactly."""
        tensors = [{"shape": list(t.shape), "low": t.low.tolist(), "high": t.high.tolist()} for t in self.tensors]
        tables = [
            {"shape": list(table.shape), "int16": base64.b64encode(table.astype("<i2").tobytes()).decode()}
            for table in self.tables
        ]
        return {
            "version": WIRE_VERSION,
            "bits": self.bits,
            "coder": self.coder,
            "tensors": tensors,
            "tables": tables,
            "carries_image_size": self.carries_image_size,
        }

    @classmethod
    def from_dict(cls, data: dict) -> WireFormat:
        """The inverse of :meth:`to_dict`. Raises ValueError for another version."""
        if data.get("version") != WIRE_VERSION:
            raise ValueError(f"wire format version {data.get('version')!r} given, {WIRE_VERSION} known here")
        tensors = tuple(
            TensorLevels(tuple(t["shape"]), np.array(t["low"], np.float32), np.array(t["high"], np.float32))
            for t in data["tensors"]
        )
        tables = tuple(
            np.frombuffer(base64.b64decode(t["int16"]), "<i2").reshape(t["shape"]).astype(np.int16)
            for t in data["tables"]
        )
        carries_image_size = data.get("carries_image_size", False)
        return cls(
            bits=data["bits"],
            tensors=tensors,
            coder=data["coder"],
            tables=tables,
            carries_image_size=carries_image_size,
        )


def quantize(values: np.ndarray, levels: TensorLevels, bits: int) -> np.ndarray:
    """Index of the nearest level for each value; halves go up, values outside go to the nearest end.

    The one definition of rounding in this project: training, scoring and the device all call it.

    Args:
        values: float32 array of ``levels.shape``, or with a batch dimension before it.

    Returns:
        uint8 symbols of the same shape.

    Raises:
        PayloadError: a value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise PayloadError("the encoder produced NaN or infinite values; refusing to encode them")
    low, span = levels._columns()
    top = np.float32(2**bits - 1)
    scaled = (np.asarray(values, np.float32) - low) * (top / span) + np.float32(0.5)
    return np.floor(np.clip(scaled, 0, top + np.float32(0.5))).astype(np.uint8)


def dequantize(symbols: np.ndarray, levels: TensorLevels, bits: int) -> np.ndarray:
    """The level of each symbol as float32, same shape."""
    low, span = levels._columns()
    return low + symbols.astype(np.float32) * (span / np.float32(2**bits - 1))


def pack(symbols: np.ndarray, bits: int) -> bytes:
    """Symbols as bit planes: the most significant bit of all of them, then the next."""
    flat = np.ascontiguousarray(symbols, np.uint8).reshape(-1)
    planes = np.empty((bits, flat.size), np.uint8)
    for plane, place in zip(planes, reversed(range(bits))):
        np.bitwise_and(flat, np.uint8(1 << place), out=plane)
    return np.packbits(planes.reshape(-1)).tobytes()  # whatever is not 0 is a 1


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """The inverse of :func:`pack`: ``count`` symbols as a flat uint8 array."""
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=bits * count).reshape(bits, count)
    symbols = planes[0]
    for plane in planes[1:]:
        symbols += symbols  # a shift by one, but faster
        symbols |= plane
    return symbols


def compress(packed: bytes, wire: WireFormat) -> bytes:
    """Packed symbols through the configuration's coder."""
    coder = CODERS[wire.coder]
    if coder.compress is not None:
        return coder.compress(packed)
    return context.encode(_split(unpack(packed, wire.bits, wire.elements), wire), list(wire.tables))


def decompress(body: bytes, wire: WireFormat) -> bytes:
    """The inverse of :func:`compress`.

    Raises:
        PayloadError: the stream is broken, too short or too long.
    """
    coder = CODERS[wire.coder]
    if coder.decompress is None:
        shapes = [levels.shape for levels in wire.tensors]
        symbols = context.decode(body, shapes, list(wire.tables))
        return pack(np.concatenate([tensor.ravel() for tensor in symbols]), wire.bits)
    packed = coder.decompress(body, wire.packed_bytes)
    if len(packed) != wire.packed_bytes:
        found = "more" if len(packed) > wire.packed_bytes else f"only {len(packed)}"
        raise PayloadError(f"the payload holds {found} bytes where the configuration asks for {wire.packed_bytes}")
    return packed


def frame(body: bytes, wire: WireFormat, picture_size: tuple[int, int] = (0, 0)) -> bytes:
    """The payload: header, the picture's width and height where the format is ``carries_image_size``, and body."""
    if wire.carries_image_size and max(picture_size) > MOST_PIXELS:
        raise PayloadError(f"a picture of {picture_size[0]}x{picture_size[1]}; up to {MOST_PIXELS} a side can be sent")
    rest = _SIZE.pack(*picture_size) + body if wire.carries_image_size else body
    return _HEADER.pack(WIRE_VERSION, CODERS[wire.coder].number, wire.fingerprint, zlib.crc32(rest)) + rest


def unframe(payload: bytes, wire: WireFormat) -> bytes:
    """The body of a payload, after every check that the header allows.

    Raises:
        PayloadError: too short, another version, coder or configuration, or damaged on the way.
    """
    if len(payload) < wire.header_bytes:
        raise PayloadError(
            f"{len(payload)} bytes are too few for a payload; its header alone takes {wire.header_bytes}"
        )
    version, coder, fingerprint, checksum = _HEADER.unpack_from(payload)
    rest = payload[HEADER_BYTES:]
    if version != WIRE_VERSION:
        raise PayloadError(f"payload of version {version}; this end knows version {WIRE_VERSION}")
    if coder != CODERS[wire.coder].number:
        named = next((name for name, known in CODERS.items() if known.number == coder), coder)
        raise PayloadError(f"payload coded as {named}; this configuration has {wire.coder}")
    if fingerprint != wire.fingerprint:
        raise PayloadError("payload of another configuration; device and server must come from the same bundle")
    if zlib.crc32(rest) != checksum:
        raise PayloadError("payload damaged on the way: its checksum does not match")
    return payload[wire.header_bytes :]


def picture_size(payload: bytes, wire: WireFormat) -> tuple[int, int]:
    """Width and height of the picture, from a payload of a ``carries_image_size`` format.

    Raises:
        PayloadError: as :func:`unframe`, or a picture without area.
    """
    unframe(payload, wire)
    width, height = _SIZE.unpack_from(payload, HEADER_BYTES)
    if not width or not height:
        raise PayloadError("the payload does not say how large its picture was")
    return width, height


def encode(tensors: list[np.ndarray], wire: WireFormat, picture_size: tuple[int, int] = (0, 0)) -> bytes:
    """One picture's bottleneck activations as a payload.

    Args:
        tensors: one float32 array per ``wire.tensors``, of that shape.
        picture_size: width and height, up to 65,535; sent where the format is ``carries_image_size``.

    Raises:
        PayloadError: NaN or infinite activations, or too large a picture.
    """
    return frame(compress(pack_tensors(tensors, wire), wire), wire, picture_size)


def decode(payload: bytes, wire: WireFormat) -> list[np.ndarray]:
    """The inverse of :func:`encode` up to quantization: float32 arrays on the levels.

    Raises:
        PayloadError: whatever is wrong with the payload.
    """
    return unpack_tensors(decompress(unframe(payload, wire), wire), wire)


def pack_tensors(tensors: list[np.ndarray], wire: WireFormat) -> bytes:
    """Quantize and pack, tensor after tensor."""
    symbols = [quantize(values, levels, wire.bits).ravel() for values, levels in zip(tensors, wire.tensors)]
    return pack(np.concatenate(symbols), wire.bits)


def unpack_tensors(packed: bytes, wire: WireFormat) -> list[np.ndarray]:
    """Unpack and dequantize, tensor after tensor."""
    symbols = _split(unpack(packed, wire.bits, wire.elements), wire)
    return [dequantize(part, levels, wire.bits) for part, levels in zip(symbols, wire.tensors)]


def _split(symbols: np.ndarray, wire: WireFormat) -> list[np.ndarray]:
    """A payload's symbols, flat, as one array for each tensor."""
    bounds = np.cumsum([levels.elements for levels in wire.tensors])[:-1]
    return [part.reshape(levels.shape) for part, levels in zip(np.split(symbols, bounds), wire.tensors)]
