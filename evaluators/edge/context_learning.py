"""Fits context tables to training images. Floats are fine here: what comes out is rounded, frozen and sent along.

Each channel gets the sources that explain most of what neighbours leave open, found by orthogonal matching pursuit on
all places of earlier channels and their surroundings. Then each node's log-odds are fitted by Newton's method. A rare
context has few examples, so what neighbours say is pulled to what all channels together say, and weights to 0.
"""

from __future__ import annotations

import numpy as np

from .context_model import (
    MOST_BITS,
    SOURCES,
    UNIT,
    Parts,
    entries,
    groups,
    inside,
    nodes,
    padded,
    pairwise,
    shifts,
    sums,
)
from .steps import KINDS, size_of, steps

_SYMBOLS = 4_000_000  # that are learned from, of all channels together
_PLACES = 16_000  # of a channel, at least
_CANDIDATES = 128  # channels that sources are chosen from, at most
_NUMBERS = 2e7  # of the matrix that sources are chosen with
_BASE_PULL = 1.0
_WEIGHT_PULL = 4.0
_ROUNDS = 6
_LEAST_CURVATURE = 1e-4


def learn(symbols: np.ndarray, bits: int) -> np.ndarray:
    """Fit a model to quantized maps.

    Args:
        symbols: uint8, (N, K, H, W), or with fewer or more axes behind the channels.
        bits: bit-width, 1 to 4.

    Returns:
        The table, int16, (K, columns), see context_model.py.

    Raises:
        ValueError: more bits.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"a context model knows 1 to {MOST_BITS} bits; {bits} given")
    size = size_of(symbols.shape[2:])
    per_image = int(np.prod(symbols.shape[1:]))
    maps = symbols.reshape(symbols.shape[0], symbols.shape[1], -1)[
        : max(_SYMBOLS // per_image, -(-_PLACES // (size[0] * size[1])))
    ]
    return _Learner(maps, size, bits).parts().join()


class _Learner:
    """Learns from maps (N, K, H*W)."""

    def __init__(self, maps: np.ndarray, size: tuple[int, int], bits: int) -> None:
        self._maps, self._size, self._bits = maps, size, bits
        self._images, self._channels, self._places = maps.shape
        self._levels, self._entries = 2**bits, int(entries(bits)[-1]) + 1
        self._values = padded(2 * maps.astype(np.int8) - np.int8(self._levels - 1), size, np.int8)  # (N, K, room)
        self._kinds, self._sums = self._neighbours()
        self._contexts = self._kinds * self._entries + entries(bits).astype(np.int16)[self._sums]  # (N, K, H*W)
        self._slope = bits > 2  # where an entry stands for several sums

    def _neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Kind of step of each place and sum of its neighbours, 0 where it has none."""
        kinds, sums_of = np.zeros(self._places, np.int16), np.zeros(self._maps.shape, np.int16)
        for step in steps(*self._size):
            kinds[step.places] = step.kind
            if step.kind:
                sums_of[:, :, step.places] = self._maps[:, :, step.neighbours].sum(2, dtype=np.int16)
        return kinds, sums_of

    def parts(self) -> Parts:
        """All that a table holds."""
        chosen, count = self._sources(), nodes(self._bits)
        sources = np.zeros((self._channels, SOURCES, 2))
        slopes = np.zeros((self._channels, count))
        weights = np.zeros((self._channels, count, SOURCES))
        base = np.zeros((self._channels, count, KINDS * self._entries))
        shared = [self._shared(node) for node in range(count)]
        for channel, own in enumerate(chosen):
            sources[channel, : len(own)] = np.stack([own // 9, own % 9], axis=1)
            features = self._features(channel, own)
            for node, start in enumerate(shared):
                base[channel, node], found = self._fit(channel, node, start, features)
                slopes[channel, node], weights[channel, node, : len(own)] = found[0], found[1:]
        shaped = base.reshape(self._channels, count, KINDS, self._entries)
        return Parts(sources, _rounded(slopes), _rounded(weights), _rounded(shaped))

    def _sources(self) -> list[np.ndarray]:
        """For each channel up to SOURCES numbers of candidates: channel * 9 + place around."""
        found: list[np.ndarray] = []
        for start, end in pairwise(groups(self._channels)):
            if not start:
                found += [np.zeros(0, np.intp)] * end
                continue
            earlier = min(start, _CANDIDATES)
            images = max(1, min(self._images, int(_NUMBERS / (9 * earlier * self._places))))
            seen = self._seen(images, earlier)
            gram = (seen @ seen.T).astype(np.float64)
            left = np.stack([self._unexplained(channel, images) for channel in range(start, end)], axis=1)
            found += [_pursuit(gram, each) for each in (seen @ left).T.astype(np.float64)]
        return found

    def _seen(self, images: int, channels: int) -> np.ndarray:
        """All that the first channels offer, (channels * 9, images * H*W) float32."""
        where = inside(self._size) + shifts(self._size)[:, None]
        found = self._values[:images, :channels][:, :, where]  # (images, channels, 9, H*W)
        return found.transpose(1, 2, 0, 3).reshape(9 * channels, -1).astype(np.float32)

    def _unexplained(self, channel: int, images: int) -> np.ndarray:
        """What is left of a channel's symbols once neighbours have said what they can, flat, float32."""
        contexts, symbols = self._contexts[:images, channel].ravel(), self._maps[:images, channel].ravel()
        counts = np.maximum(1, np.bincount(contexts))
        return (symbols - (np.bincount(contexts, symbols) / counts)[contexts]).astype(np.float32)

    def _features(self, channel: int, chosen: np.ndarray) -> np.ndarray:
        """The slope's, then those of the sources, (1 + S, N, H*W) float32."""
        features = np.zeros((1 + len(chosen), self._images, self._places), np.float32)
        if self._slope:
            centred = 2 * self._sums[:, channel] - np.int16(sums(self._bits) - 1)
            features[0] = np.where(self._kinds > 0, centred, 0)
        for feature, source in zip(features[1:], chosen):
            feature[:] = self._values[:, source // 9, inside(self._size) + shifts(self._size)[source % 9]]
        return features

    def _at_node(self, symbols: np.ndarray, node: int) -> tuple[np.ndarray, np.ndarray]:
        """Which symbols come by a node, and what is decided there."""
        plane = (node + 1).bit_length() - 1
        passing = symbols >> (self._bits - plane) == node + 1 - 2**plane
        return passing, symbols >> (self._bits - 1 - plane) & 1

    def _shared(self, node: int) -> np.ndarray:
        """Log-odds in each context, all channels together."""
        passing, decided = self._at_node(self._maps, node)
        counts = np.bincount(2 * self._contexts[passing] + decided[passing], minlength=2 * KINDS * self._entries)
        zeros, ones = counts.reshape(-1, 2).T + 0.5
        found: np.ndarray = np.log(ones / zeros)
        return found

    def _fit(self, channel: int, node: int, shared: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What contexts say and what features weigh."""
        passing, decided = self._at_node(self._maps[:, channel], node)
        contexts = self._contexts[:, channel][passing]
        return _newton(contexts, features[:, passing], decided[passing].astype(np.float32), shared)


def _rounded(log_odds: np.ndarray) -> np.ndarray:
    return np.clip(np.round(log_odds * UNIT), -9999, 9999)


def _pursuit(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Numbers of the rows that together explain a target best, greedily."""
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-9))
    chosen: list[int] = []
    left = target
    while len(chosen) < min(SOURCES, len(gram)):
        scores = np.abs(left) / scale
        scores[chosen] = -1
        chosen.append(int(np.argmax(scores)))
        inner = gram[np.ix_(chosen, chosen)] + np.eye(len(chosen))
        left = target - gram[:, chosen] @ np.linalg.solve(inner, target[chosen])
    return np.array(chosen)


def _newton(
    contexts: np.ndarray, features: np.ndarray, decided: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression of decisions (n,) on contexts (n,) and features (F, n), by Newton's method.

    The curvature of contexts is diagonal, so only one matrix as large as the features is solved with.
    """
    base, weights = shared.copy(), np.zeros(len(features))
    for _ in range(_ROUNDS):
        log_odds = base.astype(np.float32)[contexts] + weights.astype(np.float32) @ features
        ones = 1 / (1 + np.exp(-np.clip(log_odds, -12, 12)))
        wrong, curvature = decided - ones, np.maximum(ones * (1 - ones), _LEAST_CURVATURE)
        base_slope = np.bincount(contexts, wrong, len(base)) - _BASE_PULL * (base - shared)
        base_curve = np.bincount(contexts, curvature, len(base)) + _BASE_PULL
        curved = features * curvature
        both = np.stack([np.bincount(contexts, each, len(base)) for each in curved]) / base_curve
        slope = (features @ wrong).astype(np.float64) - _WEIGHT_PULL * weights - both @ base_slope
        curve = (curved @ features.T).astype(np.float64) + _WEIGHT_PULL * np.eye(len(weights))
        change = np.linalg.solve(curve - (both * base_curve) @ both.T, slope)
        base += np.clip(base_slope / base_curve - change @ both, -2, 2)
        weights += np.clip(change, -1, 1)
    return base, weights
