"""What a study file says about model, data and training, as checked values. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network. Without ``weights`` splitsearch trains it first."""

    name: str
    num_classes: int
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which pictures. ``image_size`` is the side of the network's square input in pixels."""

    name: str
    image_size: int
    root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Quick training of one candidate.

    ``images`` and ``epochs`` set the budget; ``scope`` what is trained: ``bottleneck`` (encoder and decoder) or
    ``tail`` (those and everything after the cut). The head stays as it is.
    """

    images: int = 4000
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 2e-3
    tail_learning_rate: float = 3e-5
    scope: Literal["bottleneck", "tail"] = "tail"


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Training of the uncut network where no weights are given."""

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 2e-3
