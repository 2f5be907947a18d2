"""Lossless coders for packed symbols, by name.

    packed    nothing more is done
    lzma      Python's own, as a raw LZMA2 stream with fixed filters
    zstd      Zstandard; needs the package zstandard on both ends
    brotli    Brotli; needs the package brotli
    context   our own range coder with a context model (context.py), 1 to 4 bits

Headers that these formats would spend on what both ends know are left out. No decoder produces more than was asked for.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Callable, Optional

from .errors import PayloadError
from .libraries import brotli, zstandard

# The .xz container costs 60 bytes, more than some of our payloads. lc=0 because packed symbols have no "previous
# character". The dictionary is small because the encoder's tables are cleared for every payload.
_LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0}]
_BROTLI_WINDOW = 16  # 64 KiB, for the same reason
_ZSTD_LEVEL = 19


def _lzma_compress(packed: bytes) -> bytes:
    return lzma.compress(packed, format=lzma.FORMAT_RAW, filters=_LZMA_FILTERS)


def _lzma_decompress(body: bytes, expected_bytes: int) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    try:
        return decoder.decompress(body, max_length=expected_bytes + 1)
    except lzma.LZMAError as error:
        raise PayloadError(f"the LZMA stream is broken: {error}") from None


def _zstd_compress(packed: bytes) -> bytes:
    settings = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        source_size=len(packed),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=settings).compress(packed)


def _zstd_decompress(body: bytes, expected_bytes: int) -> bytes:
    decoder = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << 23)
    try:
        with decoder.stream_reader(body) as reader:
            return reader.read(expected_bytes + 1)
    except zstandard.ZstdError as error:
        raise PayloadError(f"the Zstandard stream is broken: {error}") from None


def _brotli_compress(packed: bytes) -> bytes:
    return brotli.compress(packed, quality=11, lgwin=_BROTLI_WINDOW)


def _brotli_decompress(body: bytes, expected_bytes: int) -> bytes:
    decoder = brotli.Decompressor()
    found = b""
    try:
        found = decoder.process(body, output_buffer_limit=expected_bytes + 1)
        while len(found) <= expected_bytes and not decoder.can_accept_more_data():
            found += decoder.process(b"", output_buffer_limit=expected_bytes + 1 - len(found))
    except brotli.error as error:
        raise PayloadError(f"the Brotli stream is broken: {error}") from None
    return found


@dataclass(frozen=True)
class Coder:
    """``number`` stands in a payload's header, ``library`` is the package it needs.

    ``decompress`` takes the number of bytes that are expected and returns at most a few more. A context model works on
    symbols, not on bytes, and has neither function here.
    """

    number: int
    library: str = ""
    available: bool = True
    compress: Optional[Callable[[bytes], bytes]] = None
    decompress: Optional[Callable[[bytes, int], bytes]] = None


CODERS = {
    "packed": Coder(0, compress=lambda packed: packed, decompress=lambda body, expected_bytes: body),
    "lzma": Coder(1, compress=_lzma_compress, decompress=_lzma_decompress),
    "zstd": Coder(2, "zstandard", zstandard is not None, _zstd_compress, _zstd_decompress),
    "brotli": Coder(3, "brotli", brotli is not None, _brotli_compress, _brotli_decompress),
    "context": Coder(4),
}
