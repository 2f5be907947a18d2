"""``SplitConfig``: the five choices that make one candidate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from spaces.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """One candidate: where to cut and how to squeeze.

    Attributes:
        partition: name of the partition point.
        ae_ratio: bottleneck channels over feature channels, in (0, 1].
        bits: bit-width of one transmitted value, 1 to 8.
        tcl: strength of the time-dependent clustering loss; 0 is off.
        lzma: whether LZMA runs over the packed values.

    Raises:
        SpecError: a value outside these bounds.
    """

    partition: str
    ae_ratio: float
    bits: int
    tcl: float = 0.0
    lzma: bool = False

    def __post_init__(self) -> None:
        check_ae_ratio(self.ae_ratio)
        check_bits(self.bits)
        check_tcl(self.tcl)
        check_lzma(self.lzma)

    @property
    def training_key(self) -> str:
        """Equal for two configurations exactly when they need the same training; LZMA changes nothing there."""
        return f"{self.partition}_r{self.ae_ratio:g}_b{self.bits}_t{float(self.tcl)!r}"

    @property
    def label(self) -> str:
        """For people: ``layer3.1, AE 0.25, 2 bit, TCL 31, LZMA``."""
        parts = [self.partition, f"AE {self.ae_ratio:g}", f"{self.bits} bit"]
        parts += [f"TCL {self.tcl:.3g}"] if self.tcl else []
        parts += ["LZMA"] if self.lzma else []
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Keys as in the study file and in ``front --json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SplitConfig:
        """The inverse of :meth:`to_dict`."""
        return cls(**data)


def is_number(value: object) -> bool:
    """A finite int or float; YAML's true and false do not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_ae_ratio(value: object) -> None:
    """Raise SpecError unless the value is an AE ratio."""
    if not (is_number(value) and 0 < value <= 1):  # type: ignore[operator]
        raise SpecError("ae_ratio", value, "numbers above 0 and up to 1 are allowed (bottleneck over feature channels)")


def check_bits(value: object) -> None:
    """Raise SpecError unless the value is a bit-width."""
    if not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8):
        raise SpecError("bits", value, "whole numbers from 1 to 8 are allowed")


def check_tcl(value: object) -> None:
    """Raise SpecError unless the value is a TCL strength."""
    if not (is_number(value) and value >= 0):  # type: ignore[operator]
        raise SpecError("tcl", value, "numbers from 0 (off) are allowed")


def check_lzma(value: object) -> None:
    """Raise SpecError unless the value switches LZMA."""
    if not isinstance(value, bool):
        raise SpecError("lzma", value, "true and false are allowed")
