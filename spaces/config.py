"""``SplitConfig``: the choices that make one candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spaces.errors import SpecError, nearest

OTHER_CODERS = ("zstd", "brotli", "context")
"""Lossless coders besides LZMA; ``zstd`` and ``brotli`` need a package each, on both ends."""
CODERS = ("packed", "lzma", *OTHER_CODERS)
HEADS = ("own", "distilled", "distilled-wide", "distilled-narrow")
"""What runs on the device before the encoder: the network's own layers, or a small network that learned to stand in."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """One candidate: where to cut and how to squeeze.

    Attributes:
        partition: name of the partition point.
        ae_ratio: bottleneck channels over feature channels, in (0, 1].
        bits: bit-width of one transmitted value, 1 to 8.
        tcl: strength of the time-dependent clustering loss; 0 is off.
        lossless: what runs over the packed values, one of ``CODERS``; ``packed`` is nothing. In :meth:`to_dict` it is
            ``lzma``, true or false, and ``coder`` beside it for one of ``OTHER_CODERS``.
        stride: of the encoder along each spatial axis; in :meth:`to_dict` only where it is not 1.
        head: one of ``HEADS``; in :meth:`to_dict` only where it is not the network's own.
        rate: strength of the penalty on estimated bits, what a bit a value adds to the loss; 0 is off, and then not in
            :meth:`to_dict`.

    Raises:
        SpecError: a value outside these bounds.
    """

    partition: str
    ae_ratio: float
    bits: int
    tcl: float = 0.0
    lossless: str = "packed"
    stride: int = 1
    head: str = "own"
    rate: float = 0.0

    def __post_init__(self) -> None:
        check_ae_ratio(self.ae_ratio)
        check_bits(self.bits)
        check_tcl(self.tcl)
        check_coder(self.lossless)
        check_stride(self.stride)
        check_head(self.head)
        check_rate(self.rate)

    @property
    def training_fields(self) -> dict[str, Any]:
        """What training depends on: everything but the lossless coder."""
        exact = {"ae_ratio": float(self.ae_ratio), "tcl": float(self.tcl), "rate": float(self.rate)}
        return {
            "partition": self.partition,
            "head": self.head,
            "bits": self.bits,
            "stride": self.stride,
            **exact,
        }

    @property
    def training_key(self) -> str:
        """The same as text: equal for two configurations exactly when they need the same training."""
        head = f"_{self.head}" if self.head != "own" else ""
        stride = f"_s{self.stride}" if self.stride > 1 else ""
        rate = f"_p{float(self.rate)!r}" if self.rate else ""
        squeeze = f"_r{float(self.ae_ratio)!r}{stride}_b{self.bits}_t{float(self.tcl)!r}{rate}"
        return f"{self.partition}{head}{squeeze}"

    @property
    def label(self) -> str:
        """For people: ``layer3.1, AE 0.25, 2 bit, TCL 31, LZMA``."""
        parts = [self.partition]
        parts += [f"{self.head} head"] if self.head != "own" else []
        parts += [f"AE {self.ae_ratio:g}"]
        parts += [f"stride {self.stride}"] if self.stride > 1 else []
        parts += [f"{self.bits} bit"]
        parts += [f"TCL {float(f'{self.tcl:.3g}'):g}"] if self.tcl else []
        parts += [f"rate {self.rate:.3g}"] if self.rate else []
        parts += ["LZMA" if self.lossless == "lzma" else self.lossless] if self.lossless != "packed" else []
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Keys as in the study file and in ``front --json``."""
        unused = {"coder": "packed", "stride": 1, "head": "own", "rate": 0.0}
        values = asdict(self)
        coder = values.pop("lossless")
        named = {name: values.pop(name) for name in ("stride", "head", "rate")}
        named = {"coder": coder if coder in OTHER_CODERS else "packed", **named}
        used = {name: value for name, value in named.items() if value != unused[name]}
        return {**values, "lzma": coder == "lzma", **used}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SplitConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            SpecError: a value that is not allowed, or two lossless coders.
        """
        values = dict(data)
        lzma, coder = values.pop("lzma", False), values.pop("coder", None)
        check_lzma(lzma)
        if lzma and coder is not None:
            raise SpecError("coder", coder, "one lossless coder at a time: leave out lzma or coder")
        return cls(**values, lossless=coder if coder is not None else "lzma" if lzma else "packed")


def check_coder(value: object) -> None:
    """Raise SpecError unless the value is one of ``CODERS``."""
    if value not in CODERS:
        raise SpecError("coder", value, nearest(str(value), CODERS))


def is_number(value: object) -> bool:
    """A finite int or float; YAML's true and false do not count."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def check_ae_ratio(value: object) -> None:
    """Raise SpecError unless the value is an AE ratio."""
    if not (is_number(value) and 0 < value <= 1):  # type: ignore[operator]
        raise SpecError("ae_ratio", value, "numbers above 0 and up to 1 are allowed (bottleneck over feature channels)")


def check_bits(value: object) -> None:
    """Raise SpecError unless the value is a bit-width."""
    if not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8):
        raise SpecError("bits", value, "whole numbers from 1 to 8 are allowed")


def check_stride(value: object) -> None:
    """Raise SpecError unless the value is a stride."""
    if not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8):
        raise SpecError("stride", value, "whole numbers from 1 to 8 are allowed")


def check_tcl(value: object) -> None:
    """Raise SpecError unless the value is a TCL strength."""
    if not (is_number(value) and value >= 0):  # type: ignore[operator]
        raise SpecError("tcl", value, "numbers from 0 (off) are allowed")


def check_rate(value: object) -> None:
    """Raise SpecError unless the value is a strength of the rate penalty."""
    if not (is_number(value) and value >= 0):  # type: ignore[operator]
        raise SpecError("rate", value, "numbers from 0 (off) are allowed")


def check_head(value: object) -> None:
    """Raise SpecError unless the value is one of the heads."""
    if value not in HEADS:
        raise SpecError("head", value, nearest(str(value), HEADS))


def check_lzma(value: object) -> None:
    """Raise SpecError unless the value switches LZMA."""
    if not isinstance(value, bool):
        raise SpecError("lzma", value, "true and false are allowed")
