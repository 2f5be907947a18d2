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

from evaluators.compression.bottleneck import Bottleneck, Tensors, channel_rows
from evaluators.compression.tcl import LevelGrid, clustering_loss, ramp, settled_share
from evaluators.settings import FinetuneSettings

# Adam's rates: of the autoencoder here, and of the staircases' sharpness here and in fine-tuning.
_LEARNING_RATE = 1e-2
SHARPNESS_RATE = 2e-2
# Places a batch has about, over at least 8 and at most 64 pictures.
_BATCH_PLACES = 8192
# All channels count at least this much, in units of the mean importance.
_LEAST_IMPORTANCE = 0.1


def importance(gradients: Sequence[torch.Tensor], channel_axes: Sequence[int]) -> list[torch.Tensor]:
    """How much the task loss cares about errors, for each tensor a (C, C) matrix of mean importance 1.

    The second moments of the loss's gradient over pictures and places (an empirical Fisher information, of the
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


def warm_start(
    bottleneck: Bottleneck,
    features: Tensors,
    importances: Sequence[torch.Tensor],
    settings: FinetuneSettings,
    *,
    grid: LevelGrid,
    tcl: float = 0.0,
    total_steps: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a bottleneck to rebuild features, in place, where it is.

    The loss is the weighted squared error over that of always answering the mean, plus TCL. With straight-through
    quantization the decoders see the levels from the first step.

    Args:
        features: the frozen head's outputs, (N, ...) for each tensor that crosses the cut.
        importances: see :func:`importance`.
        settings: ``warm_start`` is the number of steps; quantization and ramp as in fine-tuning.
        total_steps: of warm start and fine-tuning together, for TCL's ramp.
        grid, tcl, seed: as in :func:`evaluators.tasks.training.finetune`.

    Returns:
        A row like those of the fine-tuning's epochs, with ``rebuilding_loss`` for the task's; means over the last tenth
        of the steps.
    """
    sharpness = bottleneck.sharpness()
    others = [parameter for name, parameter in bottleneck.named_parameters() if not name.endswith("sharpness")]
    optimizer = torch.optim.Adam(
        [{"params": others, "lr": _LEARNING_RATE}, {"params": sharpness, "lr": SHARPNESS_RATE}]
    )
    steps = settings.warm_start
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    generator = torch.Generator().manual_seed(seed)
    device = others[0].device
    moved = [encoder.moved for encoder in bottleneck.encoders]
    weights = [torch.linalg.cholesky(matrix).float().to(device) for matrix in importances]
    worst = [_weighted(tensor - tensor.mean(0), last, weight.cpu()) for tensor, last, weight in
             zip((tensor[:256] for tensor in features), moved, weights)]  # fmt: skip
    places = max(tensor[0].numel() // kept_channels for tensor, kept_channels in zip(features, bottleneck.channels))
    batch = min(max(_BATCH_PLACES // places, 8), 64, len(features[0]))
    sums, counted = torch.zeros(3), 0
    for step in range(steps):
        index = torch.randint(len(features[0]), (batch,), generator=generator)
        wanted = [tensor[index].to(device) for tensor in features]
        activations, settling = bottleneck.activations(*wanted)
        rounded = settings.quantization == "straight-through"
        rebuilt = bottleneck.decoder(*(grid.snap(z) if rounded else z for z in activations))
        loss = sum(
            (
                _weighted(one - other, last, weight) / norm.to(device).clamp_min(1e-12)
                for one, other, last, weight, norm in zip(rebuilt, wanted, moved, weights, worst)
            ),
            torch.zeros((), device=device),
        ) / len(wanted)
        joined = torch.cat([tensor.flatten(1) for tensor in settling], 1)
        cluster = clustering_loss(joined, grid)
        total = loss + tcl * ramp(step / max(total_steps - 1, 1), settings.ramp) * cluster if tcl > 0 else loss
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(others, 5.0)
        optimizer.step()
        schedule.step()
        if step >= steps - max(1, steps // 10):
            sums += torch.tensor([loss.item(), cluster.item(), settled_share(joined, grid).item()])
            counted += 1
    rebuilding, clustering, settled = (sums / max(counted, 1)).tolist()
    return {
        "epoch": 0,
        "rebuilding_loss": rebuilding,
        "clustering_loss": clustering,
        "settled": settled,
        "quantization_error": clustering * grid.step**2,
    }


def warm_cosine(step: int, total: int) -> float:
    """Share of the learning rate: up over the first twentieth, then down to nothing as a cosine."""
    warm = max(1, total // 20)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total))


def _weighted(errors: torch.Tensor, channels_last: bool, weight: torch.Tensor) -> torch.Tensor:
    """Mean of e' M e over all places, for M = weight weight'."""
    return ((channel_rows(errors, channels_last) @ weight) ** 2).sum(1).mean()
