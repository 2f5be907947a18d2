"""What candidates are compared with: the uncut model after the same fine-tuning, and the uncut model on JPEG files."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from evaluators.compute import compute_device
from evaluators.edge.picture import from_jpeg, to_jpeg
from evaluators.models.answer import first_tensor
from evaluators.models.cut import SplitModel
from evaluators.settings import FinetuneSettings
from evaluators.tasks.data import LabelledImages
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.finetune import finetune


class Whole(nn.Module):
    """Head and tail in one again: images (B, 3, S, S) to a tuple that holds the answers."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = head, tail

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Answers (B, ...), alone in a tuple as a head would return them."""
        return (first_tensor(self.tail(*self.head(images))),)


def finetuned_uncut(
    split: SplitModel, feature_cache: FeatureCache, partition: str, settings: FinetuneSettings, seed: int
) -> Whole:
    """The uncut model after the fine-tuning that candidates at a partition point get, without a bottleneck.

    Where only bottlenecks are trained, its tail is trained all the same: what fine-tuning alone can do.
    """
    device = compute_device()
    if settings.scope == "bottleneck":
        settings = replace(settings, scope="tail")
    sample = TrainSample(settings.images, seed)
    tail = feature_cache.tail(partition, sample, settings.scope).to(device)
    head = copy.deepcopy(split.head(partition))
    learns = head.to(device) if settings.scope == "all" else None
    finetune(
        tail, None, feature_cache.finetune_data(partition, sample, settings.scope), settings, head=learns, seed=seed
    )
    return Whole(head.cpu(), tail.cpu())


def answers(network: nn.Module, feature_cache: FeatureCache, images: LabelledImages) -> torch.Tensor:
    """What a network like :class:`Whole` says of images, (N, ...)."""
    return feature_cache.through(network, images)[0]


def as_jpeg(feature_cache: FeatureCache, quality: int) -> tuple[LabelledImages, float]:
    """The search-validation images after JPEG; mean bytes of the files."""
    files = [to_jpeg(pixels, quality) for pixels in feature_cache.images("validation").pixels]
    decoded = replace(feature_cache.images("validation"), pixels=[from_jpeg(data) for data in files])
    return decoded, float(np.mean([len(data) for data in files]))
