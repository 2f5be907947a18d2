"""Partition points as values, and the rule for which of them are worth searching."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spaces.errors import SpecError, nearest

INPUT = "input"
OUTPUT = "output"
_CHEAP_ENCODER = 0.1  # of the head's arithmetic


def model_mb(parameters: int) -> float:
    """Size of a network with so many float32 parameters, in 10^6 bytes."""
    return 4 * parameters / 1e6


@dataclass(frozen=True, kw_only=True)
class PartitionPoint:
    """A place where the network can be cut.

    Attributes:
        name: as in the model's module tree, ``layer1.2``; ``input`` and ``output`` are the two ends.
        shapes: of the tensors that cross the cut, without the batch dimension: (C, H, W) or (C,), or with the channels
            last in networks that keep them there, (N, C) or (H, W, C).
        head_macs: multiply-accumulate operations of one picture before the cut.
        tail_macs: the same after the cut.
        head_params: parameters used before the cut.
        tail_params: parameters used after it; one used on both sides counts on both.
        channel_axes: for each tensor the axis of its channels, batch dimension included: 1 or -1. Empty: 1 for all.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    head_macs: int
    tail_macs: int
    head_params: int = 0
    tail_params: int = 0
    channel_axes: tuple[int, ...] = ()

    @property
    def channels(self) -> list[int]:
        """Channels of each tensor."""
        axes = self.channel_axes or (1,) * len(self.shapes)
        return [shape[axis - 1 if axis > 0 else axis] for shape, axis in zip(self.shapes, axes, strict=True)]

    def encoder_macs(self, ae_ratio: float) -> int:
        """Multiply-accumulate operations of the encoders here, 1x1 convolutions, for one picture."""
        pairs = zip(self.tensor_elements, self.channels, strict=True)
        return sum(elements * round(channels * ae_ratio) for elements, channels in pairs)

    @property
    def tensor_elements(self) -> list[int]:
        """Values in each tensor, for one picture."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def maps(self) -> list[tuple[int, ...]]:
        """Of each tensor the axes beside its channels: (H, W), (N,), or () where there are none."""
        axes = self.channel_axes or (1,) * len(self.shapes)
        return [shape[1:] if axis > 0 else shape[:-1] for shape, axis in zip(self.shapes, axes, strict=True)]

    @property
    def elements(self) -> int:
        """Values that cross the cut for one picture."""
        return sum(self.tensor_elements)

    @property
    def float_bytes(self) -> int:
        """Their size as float32."""
        return 4 * self.elements

    @property
    def is_end(self) -> bool:
        """Whether this is ``input`` (server only) or ``output`` (all on device)."""
        return self.name in (INPUT, OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A partition point with the verdict of the search space: searched or not, and why; perhaps with a warning."""

    point: PartitionPoint
    kept: bool
    why: str
    warning: str = ""


def choose(points: Sequence[PartitionPoint], wanted: str | Sequence[str]) -> list[Choice]:
    """Decide which points are searched.

    Args:
        points: all points from input to output.
        wanted: ``auto`` (drop a point when another costs the device no more and sends less however hard both are
            squeezed), ``all``, a name, a glob such as ``layer3.*``, or a list of names and globs.

    Raises:
        SpecError: a name or glob that fits no point.
    """
    inner = [point for point in points if not point.is_end]
    if wanted == "auto":
        return [_auto(point, inner) for point in points]
    patterns = ["*"] if wanted == "all" else [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(point.name, pattern) for point in inner):
            raise SpecError("partition", pattern, nearest(pattern, [point.name for point in inner]))
    return [_named(point, patterns, wanted) for point in points]


def warn_of_encoders(choices: Sequence[Choice], ae_ratios: Sequence[float]) -> list[Choice]:
    """Say at which of the points that are kept an encoder is no small thing beside its head."""
    return [_warned(choice, max(ae_ratios)) if choice.kept else choice for choice in choices]


def _warned(choice: Choice, ae_ratio: float) -> Choice:
    share = choice.point.encoder_macs(ae_ratio) / max(choice.point.head_macs, 1)
    if share <= _CHEAP_ENCODER:
        return choice
    return replace(choice, warning=f"at AE {ae_ratio:g} its encoder takes {share:.0%} of the head's MACs")


def _end(point: PartitionPoint) -> Choice:
    return Choice(point=point, kept=False, why="server only" if point.name == INPUT else "all on the device")


def _auto(point: PartitionPoint, inner: list[PartitionPoint]) -> Choice:
    if point.is_end:
        return _end(point)
    for other in inner:
        if other.head_macs <= point.head_macs and _always_sends_less(other, point):
            why = f"{other.name} costs the device no more and sends less at every AE ratio and stride"
            return Choice(point=point, kept=False, why=why)
    return Choice(point=point, kept=True, why="no other point costs the device as little and always sends less")


def _always_sends_less(one: PartitionPoint, other: PartitionPoint) -> bool:
    """Whether one point's payload is smaller than another's at every AE ratio and stride.

    It is where each of its tensors can be set against a tensor of the other with no fewer channels and no smaller map,
    and something is left over. The number of values alone does not tell: few channels on a large map and many on a
    small one are squeezed in different ways, and which of them is right at the same payload is for the search to find.
    """
    left = sorted(zip(other.channels, other.maps), key=lambda tensor: (tensor[0], math.prod(tensor[1])))
    for channels, size in sorted(zip(one.channels, one.maps), reverse=True):
        larger = next((each for each in left if channels <= each[0] and _fits_in(size, each[1])), None)
        if larger is None:
            return False
        left.remove(larger)
    return one.elements < other.elements


def _fits_in(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a map is no larger than another along any axis. Rows of tokens and maps of places are not comparable."""
    if not size or not other:
        return math.prod(size) == 1
    return len(size) == len(other) and all(a <= b for a, b in zip(size, other))


def _named(point: PartitionPoint, patterns: list[str], wanted: str | Sequence[str]) -> Choice:
    if point.is_end:
        return _end(point)
    kept = any(fnmatch.fnmatchcase(point.name, pattern) for pattern in patterns)
    # A list of many would fill the column of a table, line after line.
    asked = f": {wanted}" if isinstance(wanted, str) else ""
    return Choice(point=point, kept=kept, why=f"{'asked for' if kept else 'left out'} by partition{asked}")
