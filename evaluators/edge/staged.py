"""What the halves do for one picture, with the milliseconds of each stage: the same work as encode and decode."""

from __future__ import annotations

import time
from typing import Callable, Optional

import numpy as np

from . import wire as wires
from .halves import DeviceHalf, ServerHalf

Tail = Callable[[list[np.ndarray]], tuple[np.ndarray, dict[str, float]]]


class Laps:
    """Milliseconds between one call and the next, by name."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        """What went before, since the last call, belongs to this stage."""
        now = time.perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + (now - self._last) * 1000
        self._last = now


def encode(half: DeviceHalf, pixels: np.ndarray, size: tuple[int, int]) -> tuple[bytes, dict[str, float]]:
    """As :meth:`DeviceHalf.encode`, with the milliseconds of head, encode, pack and, with a coder, compress."""
    wire, laps = half.wire, Laps()
    assert wire is not None
    features = half.head(pixels)
    laps.end("head")
    activations = half.activations(features)
    laps.end("encode")
    packed = wires.pack_tensors(activations, wire)
    laps.end("pack")
    body = packed
    if wire.coder != "packed":
        body = wires.compress(packed, wire)
        laps.end("compress")
    payload = wires.frame(body, wire, size)
    laps.end("pack")
    return payload, laps.ms


def decode(half: ServerHalf, payload: bytes, tail: Optional[Tail] = None) -> tuple[np.ndarray, dict[str, float]]:
    """As :meth:`ServerHalf.decode`, with the milliseconds of its stages.

    Args:
        half: of the same bundle as the payload.
        payload: of one picture.
        tail: runs decoder and tail, as :func:`run_tail` does.
    """
    wire, laps = half.wire, Laps()
    assert wire is not None
    body = wires.unframe(payload, wire)
    laps.end("unpack")
    packed = wires.decompress(body, wire)
    if wire.coder != "packed":
        laps.end("decompress")
    activations = wires.unpack_tensors(packed, wire)
    laps.end("unpack")
    answer, tail_ms = tail(activations) if tail else run_tail(half, activations)
    return answer, {**laps.ms, **tail_ms}


def run_tail(half: ServerHalf, activations: list[np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
    """The network's answer to one picture's activations, with the milliseconds of decode and tail."""
    laps = Laps()
    features = half.run("decoder", [tensor[None] for tensor in activations])
    laps.end("decode")
    answer = half.run("tail", features)[0][0]
    laps.end("tail")
    return answer, laps.ms
