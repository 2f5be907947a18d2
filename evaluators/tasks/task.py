"""``Task``: what a network's answers mean, how wrong they are in training and how good they are in the end.

Everything else (cutting, squeezing, sending, timing) is the same for every task.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from evaluators.compression.bottleneck import Tensors
from evaluators.tasks.data import LabelledImages


class TaskMetrics(Protocol):
    """How good the answers to a list of images are."""

    @property
    def accuracy(self) -> float:
        """The objective, in 0..1."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What else people of the field ask for, by name."""

    @property
    def right(self) -> np.ndarray | None:
        """Whether each answer was right, (N,) bools; None where an answer is more than right or wrong."""


class Criterion(ABC):
    """How wrong a network is about a fixed list of images."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def __call__(self, output: Any, index: torch.Tensor, distillation: float) -> torch.Tensor:
        """The mean loss, a scalar, in float32.

        Args:
            output: all that the network returns for those images, inside :meth:`learning` if it learns from them.
            index: which images of the list, (B,).
            distillation: share of the loss that is distance from the teacher; the rest is distance from the labels.
        """

    def learning(self, network: nn.Module, distillation: float) -> contextlib.AbstractContextManager[None]:
        """While entered, the network returns all that such a loss can use, which may be more than its answers need."""
        return contextlib.nullcontext()


class Task(ABC):
    """Classification, detection.

    *Answers* are the first tensor that a network returns, one row a picture: class scores (N, classes), or boxes
    (N, M, 6).
    """

    metric: str
    """What accuracy is, for people."""

    @abstractmethod
    def judge(self, answers: torch.Tensor, images: LabelledImages) -> TaskMetrics:
        """Compare answers with the images' labels."""

    @abstractmethod
    def drop_pp(self, reference: Any, other: Any) -> tuple[float, tuple[float, float]]:
        """How much less accurate ``other`` is than ``reference``, in percentage points, with a 95 % interval; both are
        verdicts of this task on the same images in the same order.
        """

    @abstractmethod
    def agreement(self, answers: torch.Tensor, others: torch.Tensor) -> float:
        """Share of images to which both give the same answer."""

    def divergence(self, answers: torch.Tensor, others: torch.Tensor) -> float | None:
        """How far ``others`` are from ``answers``, in nats a picture; None where answers are no probabilities.

        Less noisy than a drop in accuracy, which hears of a picture only when its answer changes.
        """
        return None

    @abstractmethod
    def teaching(self, output: Any) -> Tensors:
        """What a teacher's output has for a criterion, one row a picture in each tensor."""

    @abstractmethod
    def criterion(self, images: LabelledImages, teacher: Tensors | None = None) -> Criterion:
        """The loss on these images. Without a teacher there is no distillation."""
