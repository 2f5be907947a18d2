"""``FeatureCache``: outputs of frozen heads, computed once and kept while there is room."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from evaluators.compression.bottleneck import Tensors
from evaluators.compute import compute_device
from evaluators.models.cut import SplitModel
from evaluators.settings import Scope
from evaluators.tasks.data import Dataset, LabelledImages
from evaluators.tasks.task import Task
from evaluators.training.batchnorm import Statistics, recalibrate_batchnorm, set_statistics, statistics_of
from evaluators.training.finetune import FinetuneData
from spaces.partition import INPUT, OUTPUT

Role = Literal["train", "validation"]

_BATCH = 100
_ROOM_BYTES = 4_000_000_000


class FeatureCache:
    """Feature maps of the images that a study trains and chooses on.

    A head never changes, so each picture goes through it once for each partition point, not once for each epoch and
    trial. The least recently used points make room for new ones.
    """

    def __init__(self, split: SplitModel, dataset: Dataset, task: Task, train_images: int, seed: int) -> None:
        self.dataset, self.task = dataset, task
        self._split, self._train_pictures, self._seed = split, train_images, seed
        self._kept: OrderedDict[tuple[str, Role], Tensors] = OrderedDict()
        self._statistics: dict[str, Statistics] = {}  # of tails, renewed

    @functools.cached_property
    def train(self) -> LabelledImages:
        """The images that candidates are fine-tuned on."""
        return self.dataset.train(self._train_pictures, self._seed)

    @functools.cached_property
    def validation(self) -> LabelledImages:
        """The images that candidates are scored on."""
        return self.dataset.validation()

    def features(self, partition: str, role: Role) -> Tensors:
        """The tensors that cross at a point, (N, ...) each, float32, in the order of the role's images."""
        key = (partition, role)
        if key not in self._kept:
            images = self.train if role == "train" else self.validation
            self._kept[key] = self.through_head(partition, images)
            self._make_room(key)
        self._kept.move_to_end(key)
        return self._kept[key]

    def answers(self, role: Role) -> torch.Tensor:
        """Those of the uncut model, see :class:`Task`."""
        return self.features(OUTPUT, role)[0]

    def through_head(self, partition: str, images: LabelledImages) -> Tensors:
        """Feature maps of any images; not kept."""
        return self.through(self._split.head(partition), images)

    def through(self, head: nn.Module, images: LabelledImages) -> Tensors:
        """Feature maps of any images from any head, which is on the CPU before and afterwards; not kept."""
        return tuple(torch.cat(tensors) for tensors in zip(*self._stream(head, images)))

    def batches(self, partition: str, head: nn.Module | None = None) -> Iterator[Tensors]:
        """Feature maps of the search-validation images, some images at a time.

        Args:
            partition: where they cross.
            head: a head of a candidate's own. The uncut model's are computed once and kept, if they leave room for
                those of other points.
        """
        size = self._split.tap(partition).point.float_bytes * len(self.validation)
        if head is None and size <= _ROOM_BYTES / 2:
            yield from zip(*(tensor.split(_BATCH) for tensor in self.features(partition, "validation")), strict=True)
        else:
            yield from self._stream(self._split.head(partition) if head is None else head, self.validation)

    def _stream(self, head: nn.Module, images: LabelledImages) -> Iterator[Tensors]:
        head.to(compute_device())
        for start in range(0, len(images), _BATCH):
            with torch.no_grad():
                found = head(self._inputs(images, slice(start, start + _BATCH)))
            yield tuple(tensor.cpu() for tensor in found)
        head.cpu()  # it may share its modules with the uncut model, which others expect here

    def finetune_data(self, partition: str, scope: Scope) -> FinetuneData:
        """What candidates at a point learn from.

        The teacher is the uncut model with the BatchNorm statistics that the tails get as well, where they change.
        """
        inputs = self.train.inputs(self.dataset.picture) if scope == "all" else None
        teacher = self._teacher if scope == "bottleneck" else self._renewed_teacher
        criterion = self.task.criterion(self.train, teacher)
        return FinetuneData(features=self.features(partition, "train"), criterion=criterion, inputs=inputs)

    def tail(self, partition: str, scope: Scope) -> nn.Module:
        """A copy of the uncut model's tail for a candidate to learn with, on the CPU.

        Where the tail may change, its BatchNorm statistics are those of the training images behind the given head.
        """
        # A copy: the tail shares its modules with the uncut model, which must not change.
        tail = copy.deepcopy(self._split.tail(partition))
        if scope == "bottleneck":
            return tail
        if partition not in self._statistics:
            self._renew(tail.to(compute_device()), self.features(partition, "train"))
            self._statistics[partition] = statistics_of(tail.cpu())
        set_statistics(tail, self._statistics[partition])
        return tail

    def _renew(self, tail: nn.Module, features: Tensors) -> None:
        criterion = self.task.criterion(self.train)

        def loss(index: torch.Tensor) -> torch.Tensor:
            # Copies, as an index makes them: a tail may work in place, and others need these.
            return criterion(tail(*(tensor[index].to(compute_device()) for tensor in features)), index, 0.0)

        with criterion.learning(tail, 0.0):
            recalibrate_batchnorm(tail, loss, len(criterion))

    @functools.cached_property
    def _teacher(self) -> Tensors:
        """What the uncut model says of the training images."""
        return self.through(_Teacher(self._split.tail(INPUT), self.task), self.train)

    @functools.cached_property
    def _renewed_teacher(self) -> Tensors:
        """The same with its BatchNorm statistics renewed."""
        network = copy.deepcopy(self._split.tail(INPUT)).to(compute_device())
        criterion = self.task.criterion(self.train)

        def loss(index: torch.Tensor) -> torch.Tensor:
            part = slice(int(index[0]), int(index[-1]) + 1)
            return criterion(network(self._inputs(self.train, part)), index, 0.0)

        with criterion.learning(network, 0.0):
            recalibrate_batchnorm(network, loss, len(criterion))
        return self.through(_Teacher(network.cpu(), self.task), self.train)

    def _inputs(self, images: LabelledImages, part: slice) -> torch.Tensor:
        found = images.inputs(self.dataset.picture, part.start, part.stop).to(compute_device())
        return found.to(memory_format=torch.channels_last)

    def _make_room(self, newest: tuple[str, Role]) -> None:
        # The uncut model's scores are small, and needed by every trial.
        removable = [key for key in self._kept if key != newest and key[0] != OUTPUT]
        while removable and sum(tensor.nbytes for kept in self._kept.values() for tensor in kept) > _ROOM_BYTES:
            del self._kept[removable.pop(0)]


class _Teacher(nn.Module):
    """A whole network that returns what a task's criterion wants of a teacher."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self._task = network, task

    def forward(self, images: torch.Tensor) -> Tensors:
        return self._task.teaching(self.network(images))
