"""Range coding with a context model: what neighbours hold says what a symbol probably is.

Symbols go from coarse to fine. A sparse grid comes first, without context; then, halving the spacing again and again,
the places in the middle of four known ones, diagonally first, then those between them. All symbols of one step are
coded together, for all channels, so a map of 16x16 takes seven steps and not 256: both ends stay fast in Python.

    x . x        x . x        x o x          x: known    o: coded in this step
    . . .   ->   . o .   ->   o x o
    x . x        x . x        x o x

A context is the kind of step and the sum of the four neighbours, mirrored at the border; the probabilities of each
channel are counted on training images, frozen, and known to both ends. Only the range coder itself is a library's
(constriction), the model is this file.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from .errors import PayloadError
from .libraries import constriction

FORMAT = 1  # of the tables
MOST_BITS = 4
_KINDS = 6  # no context; four places away or more; two, diagonally and straight; one, diagonally and straight
# Counts that every symbol starts with: what all channels together say, and one for all symbols alike.
_SHARED_WEIGHT = 4.0
_FLAT_WEIGHT = 0.05


@dataclass(frozen=True)
class _Step:
    """Places that are coded together, (n,), and the four known ones around each, (4, n), as flat indices."""

    kind: int
    places: np.ndarray
    neighbours: np.ndarray


def learn(symbols: np.ndarray, bits: int) -> np.ndarray:
    """Count a model on quantized maps.

    Args:
        symbols: uint8, (N, K, H, W), or with fewer or more axes behind the channels.
        bits: bit-width, 1 to 4.

    Returns:
        Weights of the symbols in each context, uint16, (K, kinds, contexts, 2**bits).

    Raises:
        ValueError: more bits.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"a context model knows 1 to {MOST_BITS} bits; {bits} given")
    levels = 2**bits
    maps = _as_maps(symbols)  # (N, K, H*W)
    counts = np.zeros((maps.shape[1], _KINDS, contexts(bits), levels))
    rows = np.arange(maps.shape[1])[:, None] * contexts(bits)
    for step in _steps(*_size(symbols.shape[2:])):
        for picture in maps:
            cells = (rows + _context(picture, step)) * levels + picture[:, step.places]
            found = np.bincount(cells.ravel(), minlength=counts[:, 0].size)
            counts[:, step.kind] += found.reshape(counts[:, 0].shape)
    shared = counts.sum(0, keepdims=True)
    shared = (shared + _FLAT_WEIGHT) / (shared + _FLAT_WEIGHT).sum(-1, keepdims=True)
    weights = counts + _SHARED_WEIGHT * shared
    return np.maximum(1, np.round(weights / weights.max(-1, keepdims=True) * 65535)).astype(np.uint16)


def contexts(bits: int) -> int:
    """How many sums four neighbours can have."""
    return 4 * (2**bits - 1) + 1


def encode(tensors: list[np.ndarray], tables: list[np.ndarray]) -> bytes:
    """Range-code the symbols of each tensor, (K, ...) uint8, with its table."""
    encoder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    for symbols, table in zip(tensors, tables):
        flat = _as_maps(symbols[None])[0]
        for step in _steps(*_size(symbols.shape[1:])):
            probabilities = _probabilities(flat, step, table)
            encoder.encode(flat[:, step.places].reshape(-1).astype(np.int32), family, probabilities)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode(body: bytes, shapes: list[tuple[int, ...]], tables: list[np.ndarray]) -> list[np.ndarray]:
    """The inverse of :func:`encode`.

    Raises:
        PayloadError: no such stream, or bytes left over.
    """
    if len(body) % 4:
        raise PayloadError(f"{len(body)} bytes are not whole 32-bit words")
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(body, "<u4").astype(np.uint32))
    family = constriction.stream.model.Categorical(perfect=False)
    tensors = []
    try:
        for shape, table in zip(shapes, tables):
            flat = np.zeros((shape[0], int(np.prod(shape[1:]))), np.uint8)
            for step in _steps(*_size(shape[1:])):
                found = decoder.decode(family, _probabilities(flat, step, table))
                flat[:, step.places] = found.reshape(len(flat), -1)
            tensors.append(flat.reshape(shape))
    except AssertionError as error:  # the library's word for an impossible stream
        raise PayloadError("the stream fits no symbols of this configuration") from error
    if not decoder.maybe_exhausted():
        raise PayloadError("the stream holds more than this configuration's symbols")
    return tensors


def _probabilities(flat: np.ndarray, step: _Step, table: np.ndarray) -> np.ndarray:
    """Weights for each symbol of a step, (K * n, levels) float32, channel by channel."""
    rows = table[np.arange(len(flat))[:, None], step.kind, _context(flat, step)]
    return rows.reshape(-1, table.shape[-1]).astype(np.float32)


def _context(flat: np.ndarray, step: _Step) -> np.ndarray:
    """(K, n), from maps (K, H*W) whose neighbours are known."""
    if step.kind == 0:
        return np.zeros((len(flat), len(step.places)), np.intp)
    return flat[:, step.neighbours].sum(1, dtype=np.intp)


def _as_maps(symbols: np.ndarray) -> np.ndarray:
    """(N, K, ...) as (N, K, places)."""
    return symbols.reshape(symbols.shape[0], symbols.shape[1], -1)


def _size(axes: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of whatever lies behind the channels."""
    return (int(np.prod(axes[:-1])), axes[-1]) if axes else (1, 1)


@functools.lru_cache(maxsize=64)
def _steps(height: int, width: int) -> tuple[_Step, ...]:
    spacing = 1
    while 2 * spacing < max(height, width):
        spacing *= 2
    rows, columns = np.mgrid[0:height:spacing, 0:width:spacing]
    first = (rows * width + columns).ravel()
    steps = [_Step(0, first, np.zeros((4, len(first)), np.intp))]
    while spacing > 1:
        half = spacing // 2
        rows, columns = np.mgrid[half:height:spacing, half:width:spacing]
        diagonal = [(rows + up, columns + left) for up in (-half, half) for left in (-half, half)]
        steps.append(_step(height, width, half, True, rows, columns, diagonal))
        grids = [np.mgrid[half:height:spacing, 0:width:spacing], np.mgrid[0:height:spacing, half:width:spacing]]
        rows, columns = (np.concatenate([grid[axis].ravel() for grid in grids]) for axis in (0, 1))
        straight = [(rows - half, columns), (rows + half, columns), (rows, columns - half), (rows, columns + half)]
        steps.append(_step(height, width, half, False, rows, columns, straight))
        spacing = half
    return tuple(step for step in steps if len(step.places))


def _step(
    height: int,
    width: int,
    half: int,
    diagonal: bool,
    rows: np.ndarray,
    columns: np.ndarray,
    around: list[tuple[np.ndarray, np.ndarray]],
) -> _Step:
    kind = 1 if half >= 4 else {(2, True): 2, (2, False): 3, (1, True): 4, (1, False): 5}[half, diagonal]
    places = (rows * width + columns).ravel()
    neighbours = []
    for y, x in around:
        # Mirrored at the border; where even that lies outside, the map is one place wide: take the other axis.
        y = np.where((y < 0) | (y >= height), 2 * rows - y, y)
        x = np.where((x < 0) | (x >= width), 2 * columns - x, x)
        neighbours.append((y.ravel(), x.ravel()))
    inside = [(y >= 0) & (y < height) & (x >= 0) & (x < width) for y, x in neighbours]
    flat = [np.where(good, y * width + x, -1) for (y, x), good in zip(neighbours, inside)]
    known = np.max(flat, axis=0)
    return _Step(kind, places, np.stack([np.where(each < 0, known, each) for each in flat]))
