"""What a study file says about model, data and training, as checked values. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from spaces.budget import Budget

PRETRAINED = "pretrained"

Scope = Literal["bottleneck", "tail", "all"]
Quantization = Literal["post-training", "straight-through"]
Ramp = Literal["cosine", "linear", "constant"]
Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network.

    ``weights`` is a file, or ``pretrained`` for those that the library offers; without them splitsearch trains the
    network first. ``options`` go to whatever builds the network, as keyword arguments.
    """

    name: str
    num_classes: int
    weights: Path | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images.

    ``image_size`` is the side of the network's square input in pixels; ``download`` lets the public archive be fetched
    where nothing is at ``root``.
    """

    name: str
    image_size: int
    root: Path | None = None
    download: bool = False


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Quick training of one candidate.

    ``images`` and ``epochs`` set the budget, after ``reconstruction_steps`` steps in which the bottleneck alone
    learns to rebuild the features. A distilled head learns for ``head_steps`` steps before that, once for each
    partition point, from the same images and their mirror images. Each step takes ``batch_size`` images.
    ``scope`` says what is trained: ``bottleneck``
    (encoder and decoder), ``tail`` (those and everything after the cut) or ``all`` (the head too, which then has to run
    for every picture of every epoch); a distilled head always is. ``quantization`` comes after training, or takes part
    in it (straight-through). ``ramp`` is how TCL rises over training. ``distillation`` is the share of the task loss
    that is distillation from the uncut model; the rest is cross-entropy with the labels. At 1 no label is needed:
    images that the uncut model was trained on teach little else. ``shared`` are the AE ratios and bit-widths that one
    training of a cut answers for; with none, each configuration is trained by itself.
    """

    images: int = 4000
    epochs: int = 1
    reconstruction_steps: int = 400
    head_steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 3e-4
    tail_learning_rate: float = 3e-5
    distillation: float = 1.0
    scope: Scope = "tail"
    quantization: Quantization = "post-training"
    ramp: Ramp = "cosine"
    shared: tuple[tuple[float, int], ...] = ()

    @property
    def budget(self) -> Budget:
        """How much training these settings ask for."""
        return Budget(
            images=self.images,
            reconstruction_steps=self.reconstruction_steps,
            epochs=self.epochs,
            head_steps=self.head_steps,
            shared=self.shared,
        )

    def within(self, budget: Budget) -> FinetuneSettings:
        """The same recipe with another budget."""
        amounts = {name: value for name, value in vars(budget).items() if name != "until"}
        return replace(self, **amounts)


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Training of the uncut network where no weights are given.

    ``learning_rate`` is the peak of the schedule; None is 1e-3 for AdamW and 0.1 for SGD.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
