"""The work of a network, or of a part of one, as counted operations: what a modelled latency is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations for one picture, by the kinds that cost a small device differently.

    A *layer* is a convolution or a matrix product. *Fused* is what runtimes for deployment compute within the layer
    before it: BatchNorm, and activations that are piecewise linear such as ReLU. Everything else that writes values of
    its own (sums, pooling, concatenation, a smooth activation, a BatchNorm before its convolution) is *other*.

    Attributes:
        winograd_macs: multiply-accumulate operations of 3x3 convolutions at stride 1, which many runtimes compute with
            fewer multiplications, by Winograd's method.
        convolution_macs: of all other convolutions in one group with a kernel larger than 1x1.
        pointwise_macs: of 1x1 convolutions, and of matrix products over several positions such as attention's.
        grouped_macs: of convolutions in several groups of several channels.
        depthwise_macs: of convolutions with one channel a group.
        dense_macs: of fully connected layers, which use every weight once.
        weights: values that layers read besides their input.
        layer_elements: values that layers write.
        copied_elements: values that are only put elsewhere: concatenation, permutation, padding.
        other_elements: values that other operations write.
        fused_elements: values that the fused operations write where they are not fused.
        layers: number of them.
        copies: number of operations that only put values elsewhere.
        others: number of other operations.
        fused: number of fused operations.
    """

    winograd_macs: int = 0
    convolution_macs: int = 0
    pointwise_macs: int = 0
    grouped_macs: int = 0
    depthwise_macs: int = 0
    dense_macs: int = 0
    weights: int = 0
    layer_elements: int = 0
    copied_elements: int = 0
    other_elements: int = 0
    fused_elements: int = 0
    layers: int = 0
    copies: int = 0
    others: int = 0
    fused: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"Work.{name} is {value}; work is counted, and cannot be negative")

    def __add__(self, other: Work) -> Work:
        return Work(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __sub__(self, other: Work) -> Work:
        return Work(**{name: value - getattr(other, name) for name, value in asdict(self).items()})

    @property
    def macs(self) -> int:
        """All multiply-accumulate operations."""
        return self.amount("+".join(name for name in WORK_FIELDS if name.endswith("_macs")))

    def amount(self, feature: str) -> int:
        """The value of a feature: one attribute, or several added up, ``convolution_macs+pointwise_macs``.

        Raises:
            ValueError: a name that is no attribute.
        """
        names = feature.split("+")
        unknown = [name for name in names if name not in WORK_FIELDS]
        if unknown:
            raise ValueError(f"no such kind of work: {', '.join(unknown)}; known: {', '.join(WORK_FIELDS)}")
        return sum(getattr(self, name) for name in names)

    def to_dict(self) -> dict[str, int]:
        """By attribute. JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Work:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a key that is no attribute, or a value that is no whole number from 0.
        """
        for name, value in data.items():
            if name not in WORK_FIELDS:
                raise ValueError(f"no such kind of work: {name}; known: {', '.join(WORK_FIELDS)}")
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"Work.{name} is {value!r}; a whole number from 0 is needed")
        return cls(**data)


WORK_FIELDS = tuple(field.name for field in fields(Work))
