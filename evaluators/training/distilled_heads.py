"""Distilled heads, trained: each learns the features of its point before any bottleneck comes, once for all of them.

The lessons are the uncut model's own features, of training images and their mirror images; no label is needed. What
stands between the head's maps and the features meanwhile is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Decoder, Tensors, channel_rows
from evaluators.compute import autocast, compute_device
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import DistilledHead, distilled_head
from evaluators.models.weights import save_state
from evaluators.store import Store, StoreKey
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.reconstruction import HEAD_RATE, warm_cosine
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

RECIPE = 2  # raise when this training changes
_WEIGHTS = "weights.safetensors"
_WEIGHT_DECAY, _GRADIENT_NORM = 1e-4, 5.0
_START_IMAGES = 512


class DistilledHeads:
    """Trains the distilled head of a partition point, or finds it again.

    Args:
        split: the uncut network, with its weights.
        feature_cache: of the same network.
        store: keeps heads; without one each is trained every time.
        depends_on: what they depend on besides point, size, budget and seed.
        batch_size: images in a step.
    """

    def __init__(
        self,
        split: SplitModel,
        feature_cache: FeatureCache,
        store: Store | None = None,
        depends_on: Mapping[str, Any] | None = None,
        batch_size: int = 64,
    ) -> None:
        self._split, self._feature_cache, self._batch_size = split, feature_cache, batch_size
        self._store, self._depends_on = store, dict(depends_on or {})

    def sample(self, budget: Budget, seed: int) -> TrainSample:
        """The images that a distilled head learns from: with their mirror images where those are of the same kind."""
        return TrainSample(budget.images, seed, mirrored=self._feature_cache.dataset.mirrored)

    def get(self, config: SplitConfig, budget: Budget, seed: int) -> DistilledHead:
        """The trained head of a configuration, on the CPU, a module of the caller's own.

        Raises:
            InfeasibleSplit: the point has no map that a distilled head makes, or the training diverged.
        """
        point = self._split.tap(config.partition).point
        head = distilled_head(config.head, point, self._split.image_size, seed)
        if self._store is None:
            return self._trained(head, config.partition, budget, seed)
        recipe = {"version": RECIPE, "images": budget.images, "steps": budget.head_steps, "batch": self._batch_size}
        own = {"partition": config.partition, "head": config.head, "recipe": recipe, "seed": seed}
        own["renewed"] = self._feature_cache.base is not self._split  # whose features it learns

        def make(folder: Path) -> None:
            save_state(self._trained(head, config.partition, budget, seed), folder / _WEIGHTS)

        key = StoreKey("distilled-head", {**self._depends_on, **own})
        folder = self._store.get(key, make, f"{config.head} head of {config.partition}")
        head.load_state_dict(load_file(folder / _WEIGHTS))
        return head.eval()

    def _trained(self, head: DistilledHead, partition: str, budget: Budget, seed: int) -> DistilledHead:
        data = self._feature_cache.finetune_data(partition, self.sample(budget, seed))
        axes, device = self._split.channel_axes(partition), compute_device()
        with machine_lock.training():
            distil(head.to(device), data, axes, budget.head_steps, seed, self._batch_size)
        return head.cpu().eval()


def distil(
    head: DistilledHead,
    data: FinetuneData,
    channel_axes: tuple[int, ...],
    steps: int,
    seed: int,
    batch_size: int = 64,
) -> float:
    """Train a head so that the features can be told from its maps, in place, where it is.

    The loss is the mean over tensors of the squared error over the features' variance.

    Args:
        data: features, and the images they are of.
        channel_axes: axis of the channels of each tensor at the point, batch dimension included.
        steps: of one batch each.
        seed: of the batches and of what stands between meanwhile.
        batch_size: images in a step.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        InfeasibleSplit: the loss is no longer a number.
    """
    device, features = next(head.parameters()).device, data.features
    generator = torch.Generator().manual_seed(seed)
    between = _between(head, features, channel_axes, generator).to(device)
    scales = [tensor[:_START_IMAGES].float().var().clamp_min(1e-12).item() for tensor in features]
    parameters = [*head.parameters(), *between.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=HEAD_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    head.train()
    counted, last = max(1, steps // 10), 0.0
    for step in range(steps):
        index = torch.randint(len(features[0]), (min(batch_size, len(features[0])),), generator=generator)
        with autocast(between):
            rebuilt = [part(one) for part, one in zip(between, head(data.pictures(index, device)), strict=True)]
        errors = [(one.float() - other[index].to(device)) ** 2 for one, other in zip(rebuilt, features, strict=True)]
        loss = torch.stack([error.mean() / scale for error, scale in zip(errors, scales, strict=True)]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        machine_lock.make_way()
        if step >= steps - counted:
            last += loss.item() / counted
    head.eval()
    if not torch.isfinite(torch.tensor(last)):
        raise InfeasibleSplit(f"training a distilled head diverged: its loss is {last}")
    return last


def _between(
    head: DistilledHead, features: Tensors, channel_axes: tuple[int, ...], generator: torch.Generator
) -> nn.ModuleList:
    """What makes features of maps: a decoder for each tensor, which starts by answering the features' mean."""
    parts = []
    for count, tensor, axis in zip(head.channels, features, channel_axes, strict=True):
        last = axis == -1
        decoder = Decoder(count, tensor.shape[axis], tuple(tensor.shape[1:]), 1, last)
        with torch.no_grad():
            mean = channel_rows(tensor[:_START_IMAGES].float(), last).mean(0)
            decoder.start(generator)
            decoder.layer.weight.zero_()
            decoder.layer.bias.copy_(mean)  # type: ignore[union-attr]
        parts.append(decoder)
    return nn.ModuleList(parts)
