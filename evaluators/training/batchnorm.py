"""BatchNorm statistics, estimated anew on the images that a network will see.

Weights come with statistics of their own training, of augmented images and perhaps of other sizes. The given
ResNet-50 was trained at 32, 48 and 64 pixels, so that its statistics fit none of these sizes by itself; statistics of
1,000 training images at 64 pixels alone make it several points more accurate there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = list[dict[str, torch.Tensor]]  # state of each BatchNorm layer, in order

PICTURES = 1000
_BATCH = 125


def statistics_of(network: nn.Module) -> Statistics:
    """A copy of its BatchNorm layers' states."""
    return [{name: value.clone() for name, value in layer.state_dict().items()} for layer in _layers(network)]


def set_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Give its BatchNorm layers these states."""
    for layer, state in zip(_layers(network), statistics, strict=True):
        layer.load_state_dict(state)


@torch.no_grad()
def recalibrate_batchnorm(
    network: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], images: int, *, judging: int = PICTURES
) -> bool:
    """Replace the statistics of all BatchNorm layers by means over training images, in place, if that helps.

    It helps where the loss on these images falls; otherwise everything stays as it was.

    Args:
        network: in eval mode, before and afterwards.
        loss: runs the network on the images of an index (B,) and returns its mean loss on them.
        images: how many there are; the first 1,000 are used.
        judging: of how many of these the loss is looked at, before and after, up to a whole batch of 125.

    Returns:
        Whether the statistics were replaced.
    """
    layers = _layers(network)
    parts = torch.arange(min(PICTURES, images)).split(_BATCH)
    parts = [part for part in parts if len(part) > 1]  # a variance needs two
    judged = parts[: math.ceil(judging / _BATCH)]
    if not layers or not parts:
        return False

    def total() -> float:
        return sum(loss(part).item() * len(part) for part in judged)

    kept, momenta, before = statistics_of(network), [layer.momentum for layer in layers], total()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    for part in parts:
        loss(part)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
        layer.eval()
    if total() < before:
        return True
    set_statistics(network, kept)
    return False


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [each for each in network.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
