"""Records a machine: what a network's heads or tails take there, kept as a profile that needs the machine no more."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from evaluators.edge.picture import PictureFormat
from evaluators.latency.machines import Measuring
from evaluators.latency.stage_timer import Stages, StageTimer
from evaluators.models.cut import SplitModel
from evaluators.result import Timing, stage_kind
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit, SpecError
from spaces.partition import INPUT, OUTPUT

ROLES = ("device", "server", "both")
Timed = dict[str, dict[str, Timing]]  # by stage, by what it depends on


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is recorded.

    Attributes:
        role: ``device`` is heads, encoders and packing; ``server`` tails, decoders and unpacking.
        squeezed: points at which bottlenecks are recorded as well.
        ae_ratios, bits, strides, heads: of these bottlenecks; what is not recorded has to be modelled when the profile
            is used.
    """

    role: str
    squeezed: Sequence[str] = ()
    ae_ratios: Sequence[float] = ()
    bits: Sequence[int] = ()
    strides: Sequence[int] = (1,)
    heads: Sequence[str] = ("own",)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise SpecError("--role", self.role, f"{', '.join(ROLES)} are allowed")


def record(split: SplitModel, machine: Measuring, scope: Scope, progress: Callable[[str], None]) -> Timed:
    """Time every stage in scope; those that the machine's table knows are not timed again.

    Args:
        split: the network, with any weights.
        machine: at hand.
        progress: told what is timed, one line each.

    Raises:
        MeasurementError: the machine did not answer; what was timed before is kept in its table.
    """
    size = split.image_size
    picture = PictureFormat(size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    watch = StageTimer(machine, machine, split, picture, np.zeros((size, size, 3), np.uint8))
    found: Timed = {}
    for what, time in _tasks(split, watch, scope):
        progress(what)
        try:
            stages = time()
        except InfeasibleSplit:
            continue  # a ratio that leaves no channel there, a head that makes no such map
        for stage, timing in stages.timings.items():
            found.setdefault(stage_kind(stage), {})[stages.stage_keys[stage].key] = timing
    return found


def _tasks(split: SplitModel, watch: StageTimer, scope: Scope) -> Iterator[tuple[str, Callable[[], Stages]]]:
    names = [point.name for point in split.points]
    sides = ("device", "server") if scope.role == "both" else (scope.role,)
    if scope.role != "server":
        yield from ((f"head of {name}", functools.partial(watch.head, name)) for name in names if name != INPUT)
    if scope.role != "device":
        yield from ((f"tail of {name}", functools.partial(watch.tail, name)) for name in names if name != OUTPUT)
    for name, head, ratio, stride in product(scope.squeezed, scope.heads, scope.ae_ratios, scope.strides):
        config = SplitConfig(partition=name, ae_ratio=ratio, bits=min(scope.bits), stride=stride, head=head)
        what = config.label.partition(f", {config.bits} bit")[0]
        yield f"bottleneck at {what}", functools.partial(watch.bottleneck, config, scope.bits, sides)


def profile_of(
    name: str,
    model: str,
    image_size: int,
    machine: Measuring,
    timed: Timed,
    programs: Mapping[str, Timing],
    today: datetime.date,
) -> dict[str, Any]:
    """A recorded profile as :func:`evaluators.latency.profiles.load_machine` reads it.

    ``programs`` are what small Python programs take there, see ``evaluators/edge/programs.py``: they price what a
    study times besides networks, bottlenecks and packing.
    """
    who = machine.runner.machine() | {key: machine.place[key] for key in ("torch", "gpu") if machine.place.get(key)}
    versions = ", ".join(f"{key} {who[key]}" for key in ("onnxruntime", "torch", "numpy", "python") if who.get(key))
    processors = " with ".join(str(who[key]) for key in ("processor", "gpu") if key in who)
    return {
        "format": 1,
        "name": name,
        "kind": "recorded",
        "model": model,
        "image_size": image_size,
        "runtime": "torch" if "torch" in who else "onnxruntime",
        "threads": machine.profile.threads or f"one for each of {who.get('cores', 'its')} cores",
        "precision": "fp32",
        "date": today.isoformat(),
        "source": f"splitsearch profile {machine.profile.name}, on {processors} ({versions})",
        "interpreter": [
            {"program": program, "board_ms": _short(timing.p50_ms), "source": f"timed there, {today.isoformat()}"}
            for program, timing in programs.items()
        ],
        "timings": {stage: {key: _row(timing) for key, timing in rows.items()} for stage, rows in timed.items()},
    }


def _row(timing: Timing) -> dict[str, Any]:
    row = timing.to_dict()
    del row["source"], row["caveat"]
    for name in ("p50_ms", "p90_ms", "spread", "others"):
        row[name] = _short(row[name])
    return row


def _short(value: float) -> float:
    return float(f"{value:.4g}")
