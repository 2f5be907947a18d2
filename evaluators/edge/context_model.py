"""How probable each symbol of a quantized map is, given its neighbours and earlier channels. Integers alone decide.

A symbol of several bits is a path of decisions from the most significant bit down: one node for the first bit, two for
the second, and so on. In each node a decision's log-odds are a sum, in 64ths:

    what the kind of step and the sum of the four neighbours say
    + the weighted values of a few places in earlier channels: the same place or one of the eight around it

Channels come in groups, and a group looks at whole maps of earlier groups. Values are ``2 * symbol - (levels - 1)``, or
0 outside of a map. A table's rows are channels, in int16: sources (channel, then place of nine), slopes, weights, and
what the neighbours say. Above 2 bits the sums of neighbours share 13 entries, and a slope tells them apart.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np

from .range_coder import ONE
from .steps import KINDS, steps

SOURCES = 12
UNIT = 64  # log-odds of 1
_MOST = 8 * UNIT
MOST_SUMS = 13
MOST_BITS = 4
_NUMBERS = 2**20  # that are gathered at a time


def nodes(bits: int) -> int:
    """Decisions of which a symbol's path takes ``bits``."""
    return 2**bits - 1


def sums(bits: int) -> int:
    """How many sums four neighbours can have."""
    return 4 * (2**bits - 1) + 1


def entries(bits: int) -> np.ndarray:
    """Which entry of a table stands for each sum of four neighbours."""
    return np.arange(sums(bits)) * (min(MOST_SUMS, sums(bits)) - 1) // (sums(bits) - 1)


def columns(bits: int) -> int:
    """Length of a table's rows."""
    return 2 * SOURCES + nodes(bits) * (1 + SOURCES + KINDS * min(MOST_SUMS, sums(bits)))


def groups(channels: int) -> tuple[int, ...]:
    """Where each group of channels starts, and where the last one ends."""
    return tuple(sorted({0, -(-channels // 8), -(-channels // 4), -(-channels // 2), channels}))


@functools.lru_cache(maxsize=1)
def _curve() -> np.ndarray:
    """Probabilities of a 1 in 4,096ths for all log-odds from -8 up; decimal rounds alike everywhere."""
    exact = Context(prec=20)
    odds = (exact.exp(exact.divide(Decimal(-each), Decimal(UNIT))) for each in range(-_MOST, _MOST + 1))
    rounded = [int(exact.divide(Decimal(ONE), exact.add(Decimal(1), each)) + Decimal("0.5")) for each in odds]
    return np.clip(np.array(rounded, np.int64), 1, ONE - 1)


def padded(values: np.ndarray, size: tuple[int, int], dtype: type = np.int32) -> np.ndarray:
    """Maps (..., H*W) with a border of zeros, (..., (H+2) * (W+2))."""
    height, width = size
    room = np.zeros((*values.shape[:-1], height + 2, width + 2), dtype)
    room[..., 1:-1, 1:-1] = values.reshape(*values.shape[:-1], height, width)
    return room.reshape(*values.shape[:-1], -1)


@functools.lru_cache(maxsize=64)
def inside(size: tuple[int, int]) -> np.ndarray:
    """Where each place of a map lies in the padded one, (H*W,)."""
    height, width = size
    return ((np.arange(height) + 1)[:, None] * (width + 2) + np.arange(width) + 1).ravel()


def shifts(size: tuple[int, int]) -> np.ndarray:
    """How far the nine places around one lie from it in a padded map; number 4 is the place itself."""
    return np.array([down * (size[1] + 2) + right for down in (-1, 0, 1) for right in (-1, 0, 1)])


@dataclass(frozen=True)
class Parts:
    """A table's parts: int16 arrays, channels first."""

    sources: np.ndarray  # (K, SOURCES, 2)
    slopes: np.ndarray  # (K, nodes)
    weights: np.ndarray  # (K, nodes, SOURCES)
    base: np.ndarray  # (K, nodes, KINDS, entries)

    def join(self) -> np.ndarray:
        """The table."""
        parts = (self.sources, self.slopes, self.weights, self.base)
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.int16)


def parts(table: np.ndarray, bits: int) -> Parts:
    """The inverse of :meth:`Parts.join`."""
    channels, count = len(table), nodes(bits)
    ends = np.cumsum([2 * SOURCES, count, count * SOURCES])
    sources, slopes, weights, base = np.split(table, ends, axis=1)
    return Parts(
        sources=sources.reshape(channels, SOURCES, 2),
        slopes=slopes,
        weights=weights.reshape(channels, count, SOURCES),
        base=base.reshape(channels, count, KINDS, -1),
    )


@dataclass(frozen=True)
class Batch:
    """Symbols that are coded together: a group's channels at a step's places."""

    channels: slice
    places: slice  # in the order of coding
    neighbours: np.ndarray  # (4, n), in the order of coding
    rows: np.ndarray  # (K, n), where in the base each channel and kind starts


class Model:
    """A table made ready for maps of one size.

    Args:
        table: int16, (K, columns).
        size: height and width.

    Raises:
        ValueError: no such table.

    Attributes:
        bits: bit-width.
        order: places in the order of coding, (H*W,). All maps here, ``flat``, have that order.
        whole: all of a map as one batch, for whoever knows it.
        batches: for each group of channels, what is coded together.
    """

    def __init__(self, table: np.ndarray, size: tuple[int, int]) -> None:
        self.bits, self._size, self._channels = _bits_of(table), size, len(table)
        found = parts(table.astype(np.int32), self.bits)
        if (found.sources < 0).any() or (found.sources >= [self._channels, 9]).any():
            raise ValueError("a context table names channels or places that are not there")
        self.order = np.concatenate([step.places for step in steps(*size)])
        self._inside = inside(size)[self.order]
        self.whole = self._whole()
        self.batches = [self._batches(start, end) for start, end in pairwise(groups(self._channels))]
        self._prepare_channels(found)
        self._prepare_base(found)

    def _whole(self) -> Batch:
        inverse = np.argsort(self.order)
        neighbours = np.concatenate([inverse[step.neighbours] for step in steps(*self._size)], axis=1)
        kinds = np.concatenate([np.full(len(step.places), step.kind) for step in steps(*self._size)])
        rows = (np.arange(self._channels)[:, None] + kinds * self._channels) * sums(self.bits)
        return Batch(slice(0, self._channels), slice(0, len(self.order)), neighbours, rows)

    def _batches(self, first: int, last: int) -> list[Batch]:
        found, ends = [], np.cumsum([0] + [len(step.places) for step in steps(*self._size)]).tolist()
        for start, end in pairwise(ends):
            rows = np.ascontiguousarray(self.whole.rows[first:last, start:end])
            neighbours = np.ascontiguousarray(self.whole.neighbours[:, start:end])
            found.append(Batch(slice(first, last), slice(start, end), neighbours, rows))
        return found

    def _prepare_channels(self, found: Parts) -> None:
        channels, places = found.sources[:, :, 0], found.sources[:, :, 1]
        bounds = groups(self._channels)
        known = channels < np.repeat(bounds[:-1], np.diff(bounds))[:, None]
        self._weights = np.where(known[:, None], found.weights, 0)
        self._room = (self._size[0] + 2) * (self._size[1] + 2)
        self._first = np.where(known, channels, 0) * self._room + shifts(self._size)[places]  # of all padded maps
        self._chunk = max(1, _NUMBERS // (SOURCES * len(self._inside)))

    def _prepare_base(self, found: Parts) -> None:
        """All sums of neighbours one after the other, with their slope: (nodes, KINDS, K, sums), flat."""
        centred = 2 * np.arange(sums(self.bits)) - 4 * (2**self.bits - 1)
        base = found.base[..., entries(self.bits)] + found.slopes[:, :, None, None] * centred
        base[:, :, 0] = found.base[:, :, 0, :1]  # without neighbours
        self._base = base.transpose(1, 2, 0, 3).ravel() + _MOST
        self._node = KINDS * self._channels * sums(self.bits)

    def from_channels(self, flat: np.ndarray, channels: slice) -> np.ndarray:
        """What earlier channels, (K, H*W), say of some channels: (K, nodes, H*W)."""
        room = np.zeros((len(flat), self._room), np.int32)
        room[:, self._inside] = 2 * flat.astype(np.int32) - (2**self.bits - 1)
        found = np.empty((channels.stop - channels.start, *self._weights.shape[1:2], len(self._inside)), np.int32)
        for start in range(channels.start, channels.stop, self._chunk):
            some = slice(start, min(start + self._chunk, channels.stop))
            values = room.take(self._first[some, :, None] + self._inside)
            into = found[some.start - channels.start : some.stop - channels.start]
            np.einsum("kns,ksp->knp", self._weights[some], values, out=into)
        return found

    def contexts(self, flat: np.ndarray, batch: Batch) -> np.ndarray:
        """What a batch's neighbours say, (K, n), as :meth:`ones` takes it, from the batch's channels."""
        around = flat.take(batch.neighbours, axis=1)
        found: np.ndarray = batch.rows + around.sum(1, dtype=np.uint8)
        return found

    def ones(self, contexts: np.ndarray, plane: int, prefix: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """Probabilities of a 1 in 4,096ths, (K, n).

        Args:
            contexts: of the neighbours.
            plane: number of the bit, 0 for the most significant one.
            prefix: the bits above it.
            given: what earlier channels say, (K, nodes, n); None where there are none.
        """
        if plane == 0:
            log_odds = self._base.take(contexts)
            return probabilities(log_odds if given is None else log_odds + given[:, 0])
        node = prefix.astype(np.intp) + (2**plane - 1)
        log_odds = self._base.take(contexts + node * self._node)
        if given is not None:
            log_odds += np.take_along_axis(given, node[:, None], axis=1)[:, 0]
        return probabilities(log_odds)


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """Of a 1, in 4,096ths, from log-odds above the least."""
    return _curve().take(log_odds, mode="clip")


def pairwise(bounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each start with its end."""
    return zip(bounds, bounds[1:])  # noqa: RUF007 - itertools has it from Python 3.10 on


def _bits_of(table: np.ndarray) -> int:
    for bits in range(1, MOST_BITS + 1):
        if table.ndim == 2 and table.shape[1] == columns(bits):
            return bits
    raise ValueError(f"a context table of shape {table.shape} belongs to no bit-width")


@functools.lru_cache(maxsize=16)
def _model(raw: bytes, channels: int, size: tuple[int, int]) -> Model:
    return Model(np.frombuffer(raw, "<i2").reshape(channels, -1), size)


def model(table: np.ndarray, size: tuple[int, int]) -> Model:
    """A table made ready for maps of one size; the last ones are kept."""
    return _model(table.astype("<i2", copy=False).tobytes(), len(table), size)
