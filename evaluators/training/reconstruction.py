"""Before a bottleneck is trained together with the tail, it learns to rebuild the features by itself.

A step takes hundredths of a second where one through the tail takes half a second or more, so hundreds of them come
first. What is rebuilt well is what the task loss cares about: an error e of the features at one place costs e' M e,
with M as :func:`importance` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Bottleneck, channel_rows
from evaluators.compression.nested import NestedBottleneck
from evaluators.compute import autocast
from evaluators.settings import FinetuneSettings
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.squeezing import Squeezing, mean_pull

# Adam's rates: of the autoencoder and of a distilled head here; of the staircases' sharpness in fine-tuning too.
_LEARNING_RATE = 3e-3
HEAD_RATE = 2e-3
SHARPNESS_RATE = 2e-2
# Places a batch has about, over at least 8 and at most 64 images.
_BATCH_PLACES = 8192
# With fewer places the autoencoder's rate is lower in proportion: the gradient is less sure.
_ENOUGH_PLACES = 1024
_NORM_PICTURES = 256
_GRADIENT_NORM = 5.0
# All channels count at least this much, in units of the mean importance.
_LEAST_IMPORTANCE = 0.1


def importance(gradients: Sequence[torch.Tensor], channel_axes: Sequence[int]) -> list[torch.Tensor]:
    """How much the task loss cares about errors, for each tensor a (C, C) matrix of mean importance 1.

    The second moments of the loss's gradient over images and places (an empirical Fisher information, of the
    features in place of weights), plus a tenth of the identity.

    Args:
        gradients: of the loss with respect to each tensor at the cut, (N, C, H, W) or as the network has it.
        channel_axes: axis of each tensor's channels, batch dimension included: 1 or -1.
    """
    found = []
    for gradient, axis in zip(gradients, channel_axes, strict=True):
        rows = channel_rows(gradient, axis == -1).double()
        moments = rows.T @ rows
        mean = moments.diagonal().mean().clamp_min(1e-30)
        found.append(moments / mean + _LEAST_IMPORTANCE * torch.eye(len(moments), dtype=moments.dtype))
    return found


def reconstruct(
    bottleneck: Bottleneck | NestedBottleneck,
    data: FinetuneData,
    importances: Sequence[torch.Tensor],
    settings: FinetuneSettings,
    squeezing: Squeezing,
    *,
    head: nn.Module | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a bottleneck to rebuild features, in place, where it is.

    The loss is the weighted squared error over that of always answering the mean, plus what regularizers add. With
    straight-through quantization the decoders see the levels from the first step.

    Args:
        data: whose features are to be rebuilt.
        importances: see :func:`importance`.
        settings: ``reconstruction_steps`` is the number of steps.
        squeezing: the bottleneck with the regularizers of its activations.
        head: a distilled one, which learns too; without it the encoders see the features themselves.
        seed: of the batches' order.

    Returns:
        A row like those of the fine-tuning's epochs, with ``rebuilding_loss`` for the task's; means over the last tenth
        of the steps.
    """
    steps, device, features = settings.reconstruction_steps, next(bottleneck.parameters()).device, data.features
    places = most_places(bottleneck, features)
    batch = min(max(_BATCH_PLACES // places, 8), 64, len(features[0]))
    rate = _LEARNING_RATE * min(1.0, batch * places / _ENOUGH_PLACES)
    groups: list[dict[str, Any]] = [{"params": bottleneck.weights(), "lr": rate}]
    if head is not None:
        groups.append({"params": list(head.parameters()), "lr": HEAD_RATE})
    weights = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.Adam([*groups, {"params": bottleneck.sharpness(), "lr": SHARPNESS_RATE}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    generator = torch.Generator().manual_seed(seed)
    rebuilding = _Rebuilding(bottleneck, [tensor[:_NORM_PICTURES].float() for tensor in features], importances)
    last = torch.zeros(3)
    for step in range(steps):
        index = torch.randint(len(features[0]), (batch,), generator=generator)
        wanted = tuple(tensor[index].to(device).float() for tensor in features)
        with autocast(bottleneck):
            maps = wanted if head is None else head(data.pictures(index, device))
            squeezed = squeezing.each(maps, step)
        pull = mean_pull(squeezed)
        loss = torch.stack([rebuilding([tensor.float() for tensor in each], wanted) for each, _ in squeezed]).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + pull.loss).backward()
        nn.utils.clip_grad_norm_(weights, _GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        machine_lock.make_way()
        counted = max(1, steps // 10)
        if step >= steps - counted:
            last += torch.tensor([loss.item(), pull.clustering.item(), pull.settled.item()]) / counted
    loss_mean, *means = last.tolist()
    return {"epoch": 0, "rebuilding_loss": loss_mean} | squeezing.row(*means)


def most_places(bottleneck: Bottleneck | NestedBottleneck, features: Sequence[torch.Tensor]) -> int:
    """Vectors that one image has, in the tensor that has most: H * W of (N, C, H, W)."""
    return max(tensor[0].numel() // count for tensor, count in zip(features, bottleneck.channels, strict=True))


class _Rebuilding:
    """Mean over tensors of the weighted squared error over that of always answering the mean."""

    def __init__(
        self,
        bottleneck: Bottleneck | NestedBottleneck,
        features: Sequence[torch.Tensor],
        importances: Sequence[torch.Tensor],
    ) -> None:
        device = next(bottleneck.parameters()).device
        self._channels_last = [encoder.channels_last for encoder in bottleneck.encoders]
        self._factors = [torch.linalg.cholesky(matrix).float().to(device) for matrix in importances]
        centred = [(tensor - tensor.mean(0)).to(device) for tensor in features]
        self._norms = [norm.clamp_min(1e-12) for norm in self._errors(centred)]

    def __call__(self, rebuilt: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        errors = self._errors([one - other for one, other in zip(rebuilt, wanted, strict=True)])
        return torch.stack([error / norm for error, norm in zip(errors, self._norms)]).mean()

    def _errors(self, differences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Mean of e' M e over all places, M = factor factor'."""
        parts = zip(differences, self._channels_last, self._factors)
        return [((channel_rows(tensor, last) @ factor) ** 2).sum(1).mean() for tensor, last, factor in parts]


def warm_cosine(step: int, total: int) -> float:
    """Share of the learning rate: up over the first twentieth, then down to nothing as a cosine."""
    warm = max(1, total // 20)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total))
