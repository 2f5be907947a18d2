"""``SearchSpace``: what each choice may be, and how a sampler draws from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spaces.config import (
    SplitConfig,
    check_ae_ratio,
    check_bits,
    check_coder,
    check_head,
    check_lzma,
    check_rate,
    check_stride,
    check_tcl,
    is_number,
)
from spaces.errors import SpecError, nearest


class Trial(Protocol):
    """The part of an Optuna trial that drawing a configuration needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True, kw_only=True)
class TclRange:
    """TCL strengths from ``low`` to ``high``; with ``off``, half of the prior is no TCL at all."""

    low: float
    high: float
    log: bool = True
    off: bool = True

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            check_tcl(getattr(self, name))
        for name in ("log", "off"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(name, getattr(self, name), "true and false are allowed")
        if self.high <= self.low or (self.log and self.low <= 0):
            allowed = "low must be above 0 (when log is true) and below high"
            raise SpecError("", f"low: {self.low}, high: {self.high}", allowed)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The choices of a study. Everything is checked here, so what it suggests is always valid.

    The space is flat: every trial draws every parameter, also the strength of a TCL that is off, because samplers
    such as NSGA-II fall back to random on conditional spaces. Only strides, heads and rates, which a study may leave
    alone, are no parameters where there is one choice.

    A space whose ``lossless`` coders are none or LZMA asks a trial whether LZMA runs (``lzma``), any other which
    ``coder``.
    """

    partitions: tuple[str, ...]
    ae_ratios: tuple[float, ...]
    bits: tuple[int, ...]
    tcl: TclRange | tuple[float, ...]
    lossless: tuple[str, ...] = ("packed", "lzma")
    strides: tuple[int, ...] = (1,)
    heads: tuple[str, ...] = ("own",)
    rates: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        checks: dict[str, tuple[Sequence[Any], Callable[[Any], None]]] = {
            "ae_ratio": (self.ae_ratios, check_ae_ratio),
            "bits": (self.bits, check_bits),
        }
        checks |= {"coder": (self.lossless, check_coder), "stride": (self.strides, check_stride)}
        checks |= {"head": (self.heads, check_head), "rate": (self.rates, check_rate)}
        if not isinstance(self.tcl, TclRange):
            checks["tcl"] = (self.tcl, check_tcl)
        for key, (values, check) in checks.items():
            if not values:
                raise SpecError(key, "an empty list", "at least one value is needed")
            for value in values:
                check(value)
            if len(set(values)) < len(values):
                raise SpecError(key, list(values), "each value may stand there once")
        if not self.partitions:
            raise SpecError("partition", "an empty list", "at least one partition point is needed")

    def suggest(self, trial: Trial) -> SplitConfig:
        """Draw one configuration."""
        return SplitConfig(
            partition=trial.suggest_categorical("partition", self.partitions),
            ae_ratio=trial.suggest_categorical("ae_ratio", self.ae_ratios),
            bits=trial.suggest_categorical("bits", self.bits),
            tcl=self._suggest_tcl(trial),
            stride=_choose(trial, "stride", self.strides),
            head=_choose(trial, "head", self.heads),
            rate=float(_choose(trial, "rate", self.rates)),
            lossless=self._suggest_coder(trial),
        )

    def _suggest_coder(self, trial: Trial) -> str:
        if set(self.lossless) <= {"packed", "lzma"}:
            runs = trial.suggest_categorical("lzma", tuple(coder == "lzma" for coder in self.lossless))
            return "lzma" if runs else "packed"
        return str(trial.suggest_categorical("coder", self.lossless))

    def _suggest_tcl(self, trial: Trial) -> float:
        if not isinstance(self.tcl, TclRange):
            return float(trial.suggest_categorical("tcl", self.tcl))
        on = trial.suggest_categorical("tcl_on", (False, True)) if self.tcl.off else True
        strength = trial.suggest_float("tcl", self.tcl.low, self.tcl.high, log=self.tcl.log)
        return strength if on else 0.0

    @property
    def size(self) -> int | None:
        """Number of configurations; None when TCL strength is continuous."""
        if isinstance(self.tcl, TclRange):
            return None
        axes = (self.partitions, self.ae_ratios, self.bits, self.tcl, self.lossless, self.strides)
        return math.prod(len(values) for values in (*axes, self.heads, self.rates))

    def grid(self) -> Iterator[SplitConfig]:
        """Every configuration. Raises ValueError when there are infinitely many."""
        if isinstance(self.tcl, TclRange):
            raise ValueError("a continuous TCL strength has no grid; give tcl as a list")
        names = ("partition", "ae_ratio", "bits", "tcl", "stride", "head", "rate", "lossless")
        tcl, rates = map(float, self.tcl), map(float, self.rates)
        values = (self.partitions, self.ae_ratios, self.bits, tcl, self.strides, self.heads, rates, self.lossless)
        for chosen in itertools.product(*values):
            named: dict[str, Any] = dict(zip(names, chosen, strict=True))
            yield SplitConfig(**named)

    @classmethod
    def from_dict(cls, data: dict[str, Any], partitions: Sequence[str]) -> SearchSpace:
        """Read the ``space`` section of a study file; ``partition`` in it is already resolved to ``partitions``.

        Raises:
            SpecError: an unknown key or a value that is not allowed.
        """
        known = {"partition", "ae_ratio", "bits", "tcl", "lzma", "coder", "stride", "head", "rate"}
        for key in data:
            if key not in known:
                raise SpecError(str(key), data[key], f"no such key; {nearest(str(key), known)}")
        if "coder" in data and "lzma" in data:
            raise SpecError("coder", data["coder"], "give lzma or coder, not both; coder knows lzma too")
        return cls(
            partitions=tuple(partitions),
            ae_ratios=_values(data.get("ae_ratio", [0.0625, 0.125, 0.25, 0.5, 1.0])),
            bits=_values(data.get("bits", [1, 2, 3, 4, 8])),
            tcl=_tcl(data.get("tcl", 0.0)),
            lossless=_lossless(data),
            strides=_values(data.get("stride", 1)),
            heads=_values(data.get("head", ["own", "distilled"])),
            rates=_values(data.get("rate", 0.0)),
        )


def _choose(trial: Trial, name: str, values: Sequence[Any]) -> Any:
    """One of the values; where there is but one, it is no parameter of the trial."""
    return trial.suggest_categorical(name, values) if len(values) > 1 else values[0]


def _lossless(data: dict[str, Any]) -> tuple[str, ...]:
    if "coder" in data:
        return _values(data["coder"])
    runs = _values(data.get("lzma", [False, True]))
    for value in runs:
        check_lzma(value)
    return tuple("lzma" if value else "packed" for value in runs)


def _values(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _tcl(value: Any) -> TclRange | tuple[float, ...]:
    if not isinstance(value, dict):
        return _values(value)
    known = {"low", "high", "log", "off"}
    for key in value:
        if key not in known:
            raise SpecError(f"tcl.{key}", value[key], f"no such key; {nearest(str(key), known)}")
    for key in ("low", "high"):
        if not is_number(value.get(key)):
            raise SpecError(f"tcl.{key}", value.get(key), "a number is needed")
    try:
        return TclRange(**value)
    except SpecError as error:
        raise error.inside("tcl") from None
