"""Decoder and tail on several pictures at once, where that was measured to pay."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy as np

from ..halves import ServerHalf
from ..staged import Laps

SIZES = (2, 4, 8)
LEAST_GAIN = 1.3  # in throughput
MOST_WAIT = 1.1  # of the median picture when a whole batch arrives at once, against one after the other
_SECONDS = 1.5  # of measuring


@dataclass(frozen=True)
class Decision:
    """How many pictures go through the tail together at most, and why.

    ``gains`` and ``waits`` are what was measured for each size: throughput against that of one at a time, and how long
    the median picture takes when so many arrive at once, against one after the other.
    """

    size: int
    why: str
    gains: dict[int, float] = field(default_factory=dict)
    waits: dict[int, float] = field(default_factory=dict)


def decide(half: ServerHalf, clock: Callable[[], float] = time.perf_counter) -> Decision:
    """Time the tail with one picture and with several, and take the size that gains most within the limits."""
    try:
        seconds = _seconds(half, clock)
    except Exception as error:  # what onnxruntime raises for a shape has no common name
        return Decision(1, f"the network takes one picture at a time ({type(error).__name__})")
    gains = {size: round(size * seconds[1] / seconds[size], 2) for size in SIZES}
    waits = {size: round(seconds[size] / ((size + 1) / 2 * seconds[1]), 2) for size in SIZES}
    good = [size for size in SIZES if gains[size] >= LEAST_GAIN and waits[size] <= MOST_WAIT]
    if not good:
        return Decision(1, f"no size gains {LEAST_GAIN} in throughput for a wait of at most {MOST_WAIT}", gains, waits)
    best = max(good, key=lambda size: gains[size])
    return Decision(best, f"{gains[best]} times the throughput, the median wait times {waits[best]}", gains, waits)


def as_told(half: ServerHalf, size: int) -> Decision:
    """So many at once. Raises ValueError where the network does not take them."""
    assert half.wire is not None
    try:
        half.run("tail", half.run("decoder", [np.zeros((size, *each.shape), np.float32) for each in half.wire.tensors]))
    except Exception as error:  # what onnxruntime raises for a shape has no common name
        raise ValueError(
            f"batch: {size} given, but this network takes one at a time ({type(error).__name__})"
        ) from None
    return Decision(size, "as told")


def _seconds(half: ServerHalf, clock: Callable[[], float]) -> dict[int, float]:
    """Lower quartile of the seconds of decoder and tail, by number of pictures; runs in turn, as other work varies."""
    assert half.wire is not None
    sent = {size: [np.zeros((size, *levels.shape), np.float32) for levels in half.wire.tensors] for size in (1, *SIZES)}
    for tensors in sent.values():
        half.run("tail", half.run("decoder", tensors))
    times: dict[int, list[float]] = {size: [] for size in sent}
    end = clock() + _SECONDS
    while len(times[1]) < 3 or (clock() < end and len(times[1]) < 200):
        for size, tensors in sent.items():
            start = clock()
            half.run("tail", half.run("decoder", tensors))
            times[size].append(clock() - start)
    return {size: float(np.percentile(runs, 25)) for size, runs in times.items()}


class Batcher:
    """Runs decoder and tail for whatever waits, up to ``size`` pictures at once; nobody waits for a batch to fill.

    Called by many threads. ``lanes`` of them run the network at the same time; each takes what has come meanwhile.
    """

    def __init__(self, half: ServerHalf, size: int, lanes: int, told: Optional[Callable[[int], None]] = None) -> None:
        self._half, self._size, self._told = half, size, told
        self._lanes, self._lock = threading.Semaphore(lanes), threading.Lock()
        self._waiting: list[tuple[list[np.ndarray], Future]] = []

    def __call__(self, activations: list[np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
        """One picture's answer, and the milliseconds of the stages; those of a batch are everyone's in it."""
        mine: Future = Future()
        with self._lock:
            self._waiting.append((activations, mine))
        while not mine.done():
            with self._lanes:
                with self._lock:
                    taken, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
                if taken:
                    self._run(taken)
                elif not mine.done():
                    break  # another lane has it
        return mine.result()

    def _run(self, taken: list[tuple[list[np.ndarray], Future]]) -> None:
        laps = Laps()
        try:
            stacked = [np.stack(tensors) for tensors in zip(*(activations for activations, _ in taken))]
            features = self._half.run("decoder", stacked)
            laps.end("decode")
            answers = self._half.run("tail", features)[0]
            laps.end("tail")
        except Exception as error:
            for _, future in taken:
                future.set_exception(error)
            return
        if self._told:
            self._told(len(taken))
        for (_, future), answer in zip(taken, answers):
            future.set_result((answer, dict(laps.ms)))
