"""Lossless coding with a context model: the model says what a symbol probably is, a range coder makes bytes of it.

    learn     training images' symbols -> table, frozen and known to both ends
    encode    symbols and tables -> bytes
    decode    the inverse
    costs     what each symbol would have cost, in bits, for training

The order of symbols stands in steps.py, the model in context_model.py, the coder in range_coder.py.
"""

from __future__ import annotations

import functools

import numpy as np

from . import range_coder
from .context_learning import learn
from .context_model import MOST_BITS, Model, groups, model, pairwise
from .steps import size_of, steps

__all__ = ["FORMAT", "MOST_BITS", "costs", "decode", "encode", "learn"]

FORMAT = 2  # of the tables and of the stream; 1 was counts and a library's coder


def check(table: np.ndarray, shape: tuple[int, ...], bits: int) -> None:
    """Raise ValueError unless a table fits a tensor of this shape and bit-width."""
    if model(table, size_of(shape[1:])).bits != bits or len(table) != shape[0]:
        raise ValueError(f"tables: one of shape {table.shape} does not fit {shape[0]} channels of {bits} bits")


def encode(tensors: list[np.ndarray], tables: list[np.ndarray]) -> bytes:
    """Code the symbols of each tensor, (K, ...) uint8, with its table."""
    decisions = [_decisions(symbols, table) for symbols, table in zip(tensors, tables)]
    ones, bits = (np.concatenate(each) for each in zip(*decisions))
    return range_coder.encode(ones, bits)


def decode(body: bytes, shapes: list[tuple[int, ...]], tables: list[np.ndarray]) -> list[np.ndarray]:
    """The inverse of :func:`encode`.

    Raises:
        PayloadError: no such stream, or bytes left over.
    """
    coder = range_coder.Decoder(body)
    tensors = [_decoded(coder, shape, table) for shape, table in zip(shapes, tables)]
    coder.finish()
    return tensors


def costs(symbols: np.ndarray, table: np.ndarray, bits: int) -> np.ndarray:
    """Bits that each level would cost at each place, all other symbols being as given.

    Args:
        symbols: uint8, (N, K, ...).
        table: of :func:`learn`.
        bits: bit-width of both.

    Returns:
        float32, (N, K, ..., 2**bits). What the symbols themselves cost adds up to the length of their stream.

    Raises:
        ValueError: a table of another bit-width.
    """
    found = model(table, size_of(symbols.shape[2:]))
    if found.bits != bits:
        raise ValueError(f"a table of {found.bits} bits given, symbols of {bits}")
    spent = np.empty((*symbols.shape[:2], len(found.order), 2**bits), np.float32)
    for picture, own in zip(symbols, spent):
        own[:, found.order] = _costs(found, picture.reshape(len(picture), -1)[:, found.order])
    return spent.reshape(*symbols.shape, 2**bits)


def _costs(found: Model, flat: np.ndarray) -> np.ndarray:
    """(K, H*W, levels)."""
    contexts, given = found.contexts(flat, found.whole), found.from_channels(flat, found.whole.channels)
    total = np.zeros((*flat.shape, 1), np.float32)
    for plane in range(found.bits):
        both = np.empty((*flat.shape, 2**plane, 2), np.float32)
        for prefix in range(2**plane):
            ones = found.ones(contexts, plane, np.full(flat.shape, prefix), given)
            both[:, :, prefix, 0] = _spent().take(range_coder.ONE - ones)
            both[:, :, prefix, 1] = _spent().take(ones)
        total = (total[..., None] + both).reshape(*flat.shape, -1)
    return total


@functools.lru_cache(maxsize=1)
def _spent() -> np.ndarray:
    """Bits that a decision costs whose probability is so many 4,096ths."""
    return (range_coder.PRECISION - np.log2(np.maximum(1, np.arange(range_coder.ONE + 1)))).astype(np.float32)


def _decisions(symbols: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a 1 and what was decided, in the order of coding, in whole groups."""
    found = model(table, size_of(symbols.shape[1:]))
    flat = symbols.reshape(len(symbols), -1).take(found.order, axis=1)
    contexts, given = found.contexts(flat, found.whole), found.from_channels(flat, found.whole.channels)
    ones = np.full((found.bits, flat.size + 1), range_coder.ONE, np.int64)
    decided = np.ones(ones.shape, np.uint8)  # the last of each plane fills up groups
    for plane in range(found.bits):
        ones[plane, :-1] = found.ones(contexts, plane, flat >> (found.bits - plane), given).ravel()
        decided[plane, :-1] = (flat >> (found.bits - 1 - plane) & 1).ravel()
    order = _order(len(symbols), size_of(symbols.shape[1:]), found.bits)
    return ones.take(order), decided.take(order)


@functools.lru_cache(maxsize=64)
def _order(channels: int, size: tuple[int, int], bits: int) -> np.ndarray:
    """Indices of (bits, K * H*W + 1) decisions in the order of coding."""
    places = size[0] * size[1]
    stride, found = channels * places + 1, []
    ends = np.cumsum([0] + [len(step.places) for step in steps(*size)]).tolist()
    for first, last in pairwise(groups(channels)):
        for start, end in pairwise(ends):
            batch = (np.arange(first, last)[:, None] * places + np.arange(start, end)).ravel()
            batch = np.concatenate([batch, np.full(-len(batch) % range_coder.GROUP, stride - 1)])
            found += [batch + plane * stride for plane in range(bits)]
    return np.concatenate(found)


def _decoded(coder: range_coder.Decoder, shape: tuple[int, ...], table: np.ndarray) -> np.ndarray:
    found = model(table, size_of(shape[1:]))
    flat = np.zeros((shape[0], len(found.order)), np.uint8)
    for batches in found.batches:
        channels = batches[0].channels
        given = found.from_channels(flat[: channels.start], channels) if channels.start else None
        own = flat[channels]
        for batch in batches:
            at_step = None if given is None else given[:, :, batch.places]
            own[:, batch.places] = _batch(coder, found, found.contexts(own, batch), at_step)
    symbols = np.empty_like(flat)
    symbols[:, found.order] = flat
    return symbols.reshape(shape)


def _batch(coder: range_coder.Decoder, found: Model, contexts: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    """The symbols of one batch, (K, n)."""
    symbols: np.ndarray = np.zeros(0, np.uint8)
    for plane in range(found.bits):
        decided = coder.decode(found.ones(contexts, plane, symbols, given).ravel()).reshape(contexts.shape)
        symbols = 2 * symbols + decided if plane else decided
    return symbols
