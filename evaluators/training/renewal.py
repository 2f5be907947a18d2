"""The network that candidates are cut from: the uncut model, its BatchNorm statistics renewed where that helps.

Statistics are of the images that a network was trained on, which are rarely those that it will see: ResNet-50 for 50
classes of TinyImageNet, trained at three sizes, finds 55.0 % of the search-validation images at 64 pixels as given and
60.9 % with statistics of 1,000 training images at that size; with those of the layers behind layer2.3 alone 59.2 %.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evaluators import machine_lock
from evaluators.compute import compute_device
from evaluators.models.cut import SplitModel
from evaluators.store import Store, StoreKey
from evaluators.tasks.data import Dataset
from evaluators.tasks.task import Task
from evaluators.training.batchnorm import PICTURES, Statistics, recalibrate_batchnorm, set_statistics, statistics_of
from spaces.partition import INPUT

_STATISTICS = "statistics.safetensors"
Kept = Callable[[Callable[[], Statistics]], Statistics]


def renewed(
    network: nn.Module, image_size: int, dataset: Dataset, task: Task, kept: Kept = lambda make: make()
) -> SplitModel:
    """A copy of the network with its statistics renewed, to be cut.

    Args:
        network: the uncut model, with its weights.
        image_size: side of its input in pixels.
        dataset: whose training images the statistics are of; the first 1,000 of a fixed sample.
        task: knows whether they help.
        kept: returns the statistics of an earlier time, or has them made.
    """
    split = SplitModel(copy.deepcopy(network), image_size)
    whole = split.tail(INPUT)
    set_statistics(whole, kept(lambda: _statistics(whole, dataset, task)))
    return split


def kept_statistics(store: Store, key: StoreKey, make: Callable[[], Statistics]) -> Statistics:
    """Statistics from the store, made and kept if they are not there."""

    def write(folder: Path) -> None:
        rows = enumerate(make())
        tensors = {f"{layer}.{name}": value for layer, state in rows for name, value in state.items()}
        save_file(tensors, folder / _STATISTICS)

    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(store.get(key, write, "BatchNorm statistics") / _STATISTICS).items():
        layer, _, of = name.partition(".")
        found.setdefault(int(layer), {})[of] = value
    return [found[layer] for layer in sorted(found)]


def _statistics(whole: nn.Module, dataset: Dataset, task: Task) -> Statistics:
    images, device = dataset.train(PICTURES, 0), compute_device()
    criterion = task.criterion(images)

    def loss(index: torch.Tensor) -> torch.Tensor:
        inputs = images.chosen(dataset.picture, index.tolist()).to(device)
        return criterion(whole(inputs.to(memory_format=torch.channels_last)), index, 0.0)

    whole.to(device)
    with machine_lock.training(), criterion.learning(whole, 0.0):
        recalibrate_batchnorm(whole, loss, len(images))
    whole.cpu()
    return statistics_of(whole)
