"""Classification: cross-entropy, distillation of class scores, top-1 accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from evaluators.compression.bottleneck import Tensors
from evaluators.models.answer import first_tensor
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.intervals import paired_drop_pp
from evaluators.tasks.task import Criterion, Task

_TEMPERATURE = 2.0  # of the distillation


@dataclass(frozen=True)
class Hits:
    """Whether each picture's class was found, (N,)."""

    right: np.ndarray

    @property
    def accuracy(self) -> float:
        """Top-1, in 0..1."""
        return float(self.right.mean())

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing beside it."""
        return {}


class Classification(Task):
    """One class a picture. Labels are class indices (N,), answers class scores (N, classes)."""

    metric = "top-1"

    def judge(self, answers: torch.Tensor, images: LabelledImages) -> Hits:
        return Hits((answers.argmax(1) == images.labels).numpy())

    def drop_pp(self, reference: Hits, other: Hits) -> tuple[float, tuple[float, float]]:
        """The drop of top-1 with a score interval, paired picture by picture."""
        return paired_drop_pp(reference.right, other.right)

    def agreement(self, answers: torch.Tensor, others: torch.Tensor) -> float:
        return float((answers.argmax(1) == others.argmax(1)).float().mean())

    def divergence(self, answers: torch.Tensor, others: torch.Tensor) -> float:
        """Kullback-Leibler divergence of the class probabilities, mean over pictures."""
        one, other = answers.float().log_softmax(1), others.float().log_softmax(1)
        return float((one.exp() * (one - other)).sum(1).mean())

    def teaching(self, output: Any) -> Tensors:
        """Class scores."""
        return (first_tensor(output),)

    def criterion(self, images: LabelledImages, teacher: Tensors | None = None) -> Criterion:
        return ClassCriterion(images.labels, teacher[0] if teacher is not None else None)


class ClassCriterion(Criterion):
    """Cross-entropy with labels (N,) and distillation (Hinton et al., arXiv 1503.02531) from a teacher's scores
    (N, classes).
    """

    def __init__(self, labels: torch.Tensor, teacher: torch.Tensor | None = None) -> None:
        self._labels, self._teacher = labels, teacher

    def __len__(self) -> int:
        return len(self._labels)

    def __call__(self, output: Any, index: torch.Tensor, distillation: float) -> torch.Tensor:
        scores = first_tensor(output).float()
        hard = functional.cross_entropy(scores, self._labels[index].to(scores.device))
        if self._teacher is None or distillation == 0:
            return hard
        soft = functional.kl_div(
            functional.log_softmax(scores / _TEMPERATURE, 1),
            functional.softmax(self._teacher[index].to(scores.device).float() / _TEMPERATURE, 1),
            reduction="batchmean",
        )
        return (1.0 - distillation) * hard + distillation * _TEMPERATURE**2 * soft
