"""The payload: symbols of a quantized feature map, packed, optionally compressed, behind a ten-byte header.

    byte 0      version of this layout
    byte 1      coder: 0 packed symbols, 1 the same through LZMA
    bytes 2-5   fingerprint of the configuration that made it (levels, shapes, bit-width)
    bytes 6-9   CRC-32 of the body as sent
    bytes 10-   body

Symbols go channel by channel, row by row, each as ``bits`` bits, most significant first, tensors one after the other;
the last byte is filled with zeros. Their number follows from the configuration, so it is not sent.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import struct
import zlib
from dataclasses import dataclass

import numpy as np

WIRE_VERSION = 1
_HEADER = struct.Struct("<BB4sI")
HEADER_BYTES = _HEADER.size
_PACKED, _LZMA = 0, 1

# A raw stream: the .xz container costs 60 bytes, more than some of our payloads. lc=0 because packed symbols have no
# "previous character". The dictionary is small because the encoder's tables are cleared for every payload.
_LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0}]


class PayloadError(ValueError):
    """A payload that cannot be what the device sent for this configuration; the message says why."""


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
    """Everything both ends must agree on: bit-width, levels of each tensor, coder."""

    bits: int
    tensors: tuple[TensorLevels, ...]
    lzma: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits} given, 1 to 8 allowed")

    @property
    def elements(self) -> int:
        """Symbols in one payload."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed symbols, before compression and without the header."""
        return (self.elements * self.bits + 7) // 8

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """Four bytes that differ between configurations whose payloads must not be mixed."""
        digest = hashlib.sha256(json.dumps([WIRE_VERSION, self.bits, [t.shape for t in self.tensors]]).encode())
        for tensor in self.tensors:
            digest.update(tensor.low.astype("<f4").tobytes() + tensor.high.astype("<f4").tobytes())
        return digest.digest()[:4]

    def to_dict(self) -> dict:
        """As JSON-ready values; float32 numbers survive the round trip exactly."""
        tensors = [{"shape": list(t.shape), "low": t.low.tolist(), "high": t.high.tolist()} for t in self.tensors]
        return {"version": WIRE_VERSION, "bits": self.bits, "lzma": self.lzma, "tensors": tensors}

    @classmethod
    def from_dict(cls, data: dict) -> WireFormat:
        """The inverse of :meth:`to_dict`. Raises ValueError for another version."""
        if data.get("version") != WIRE_VERSION:
            raise ValueError(f"wire format version {data.get('version')!r} given, {WIRE_VERSION} known here")
        tensors = tuple(
            TensorLevels(tuple(t["shape"]), np.array(t["low"], np.float32), np.array(t["high"], np.float32))
            for t in data["tensors"]
        )
        return cls(bits=data["bits"], tensors=tensors, lzma=data["lzma"])


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
    """Symbols as ``bits`` bits each, most significant bit first."""
    flat = np.ascontiguousarray(symbols, np.uint8).reshape(-1)
    if bits == 8:
        return flat.tobytes()
    if bits == 1:
        return np.packbits(flat).tobytes()
    # Eight symbols fill as many bytes as a symbol has bits, so they pass through one integer.
    eights = np.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    whole = _integer(bits)
    joined = np.zeros(len(eights), whole)
    for column in eights.T:
        joined = joined << whole.type(bits) | column
    in_bytes = joined.astype(whole.newbyteorder(">")).view(np.uint8).reshape(-1, whole.itemsize)[:, -bits:]
    return in_bytes.tobytes()[: (len(flat) * bits + 7) // 8]


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """The inverse of :func:`pack`: ``count`` symbols as a flat uint8 array."""
    raw = np.frombuffer(data, np.uint8)
    if bits == 8:
        return raw[:count]
    if bits == 1:
        return np.unpackbits(raw, count=count)
    whole = _integer(bits)
    in_bytes = np.pad(raw, (0, -len(raw) % bits)).reshape(-1, bits)
    in_bytes = np.pad(in_bytes, ((0, 0), (whole.itemsize - bits, 0)))
    joined = in_bytes.view(whole.newbyteorder(">")).reshape(-1).astype(whole)
    eights = np.empty((len(joined), 8), np.uint8)
    for column in range(8):
        eights[:, column] = joined >> whole.type(bits * (7 - column)) & whole.type(2**bits - 1)
    return eights.reshape(-1)[:count]


def _integer(bits: int) -> np.dtype:
    """One that holds eight symbols."""
    return np.dtype(np.uint32 if bits <= 4 else np.uint64)


def compress(packed: bytes) -> bytes:
    """Packed symbols through raw LZMA2 with fixed filters."""
    return lzma.compress(packed, format=lzma.FORMAT_RAW, filters=_LZMA_FILTERS)


def decompress(body: bytes, expected_bytes: int) -> bytes:
    """The inverse of :func:`compress`, never producing more than ``expected_bytes`` plus one.

    Raises:
        PayloadError: the stream is broken, too short or too long.
    """
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    try:
        packed = decoder.decompress(body, max_length=expected_bytes + 1)
    except lzma.LZMAError as error:
        raise PayloadError(f"the LZMA stream is broken: {error}") from None
    if len(packed) != expected_bytes:
        found = "more" if len(packed) > expected_bytes else f"only {len(packed)}"
        raise PayloadError(f"the LZMA stream holds {found} bytes where the configuration asks for {expected_bytes}")
    return packed


def frame(body: bytes, wire: WireFormat) -> bytes:
    """The payload: header and body."""
    coder = _LZMA if wire.lzma else _PACKED
    return _HEADER.pack(WIRE_VERSION, coder, wire.fingerprint, zlib.crc32(body)) + body


def unframe(payload: bytes, wire: WireFormat) -> bytes:
    """The body of a payload, after every check that the header allows.

    Raises:
        PayloadError: too short, another version, coder or configuration, or damaged on the way.
    """
    if len(payload) < HEADER_BYTES:
        raise PayloadError(f"{len(payload)} bytes are too few for a payload; its header alone takes {HEADER_BYTES}")
    version, coder, fingerprint, checksum = _HEADER.unpack_from(payload)
    body = payload[HEADER_BYTES:]
    if version != WIRE_VERSION:
        raise PayloadError(f"payload of version {version}; this end knows version {WIRE_VERSION}")
    if coder != (_LZMA if wire.lzma else _PACKED):
        raise PayloadError(f"payload coded as {coder}; this configuration has lzma: {str(wire.lzma).lower()}")
    if fingerprint != wire.fingerprint:
        raise PayloadError("payload of another configuration; device and server must come from the same bundle")
    if zlib.crc32(body) != checksum:
        raise PayloadError("payload damaged on the way: its checksum does not match")
    if not wire.lzma and len(body) != wire.packed_bytes:
        raise PayloadError(f"payload body of {len(body)} bytes; this configuration packs to {wire.packed_bytes}")
    return body


def encode(tensors: list[np.ndarray], wire: WireFormat) -> bytes:
    """One picture's bottleneck activations as a payload.

    Args:
        tensors: one float32 array per ``wire.tensors``, of that shape.

    Raises:
        PayloadError: NaN or infinite activations.
    """
    packed = pack_tensors(tensors, wire)
    return frame(compress(packed) if wire.lzma else packed, wire)


def decode(payload: bytes, wire: WireFormat) -> list[np.ndarray]:
    """The inverse of :func:`encode` up to quantization: float32 arrays on the levels.

    Raises:
        PayloadError: whatever is wrong with the payload.
    """
    body = unframe(payload, wire)
    return unpack_tensors(decompress(body, wire.packed_bytes) if wire.lzma else body, wire)


def pack_tensors(tensors: list[np.ndarray], wire: WireFormat) -> bytes:
    """Quantize and pack, tensor after tensor."""
    symbols = [quantize(values, levels, wire.bits).ravel() for values, levels in zip(tensors, wire.tensors)]
    return pack(np.concatenate(symbols), wire.bits)


def unpack_tensors(packed: bytes, wire: WireFormat) -> list[np.ndarray]:
    """Unpack and dequantize, tensor after tensor."""
    symbols = unpack(packed, wire.bits, wire.elements)
    bounds = np.cumsum([levels.elements for levels in wire.tensors])[:-1]
    return [
        dequantize(part.reshape(levels.shape), levels, wire.bits)
        for part, levels in zip(np.split(symbols, bounds), wire.tensors)
    ]
