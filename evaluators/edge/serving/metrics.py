"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Callable

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PREFIX = "splitsearch_"


class Metrics:
    """Counters and one histogram; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._buckets = [0] * (len(_BUCKETS_S) + 1)
        self._seconds = 0.0
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name][_labels(labels)] += amount

    def observe_answer(self, seconds: float) -> None:
        """One request that was answered took so long, from its headers to its answer."""
        place = sum(seconds > bound for bound in _BUCKETS_S)
        with self._lock:
            self._buckets[place] += 1
            self._seconds += seconds

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        """Ask for a value whenever the metrics are read."""
        self._gauges[name] = value

    def text(self) -> str:
        """Everything, in Prometheus' text format 0.0.4."""
        with self._lock:
            lines = [line for name, rows in sorted(self._counters.items()) for line in _counter(name, rows)]
            lines += self._histogram()
        for name, value in self._gauges.items():
            lines += [f"# TYPE {_PREFIX}{name} gauge", f"{_PREFIX}{name} {value():g}"]
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[str]:
        name, total, lines = f"{_PREFIX}answer_seconds", 0, []
        for bound, count in zip([*map(str, _BUCKETS_S), "+Inf"], self._buckets):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [f"# TYPE {name} histogram", *lines, f"{name}_sum {self._seconds:.6f}", f"{name}_count {total}"]


def _counter(name: str, rows: dict[str, float]) -> list[str]:
    full = f"{_PREFIX}{name}_total"
    return [f"# TYPE {full} counter", *(f"{full}{labels} {value:.10g}" for labels, value in sorted(rows.items()))]


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}" if labels else ""
