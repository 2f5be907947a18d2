"""``FeatureCache``: outputs of frozen heads, computed once and kept while there is room."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Tensors
from evaluators.compute import compute_device
from evaluators.models.cut import SplitModel
from evaluators.settings import Scope
from evaluators.tasks.data import Dataset, LabelledImages
from evaluators.tasks.task import Task
from evaluators.training.batchnorm import Statistics, recalibrate_batchnorm, set_statistics, statistics_of
from evaluators.training.finetune import FinetuneData
from spaces.partition import INPUT, OUTPUT

_BATCH = 100
_ROOM_BYTES = 4_000_000_000


@dataclass(frozen=True)
class TrainSample:
    """Which training images: how many, and the seed that they are drawn with."""

    images: int
    seed: int


Part = Literal["validation", "test"] | TrainSample


class FeatureCache:
    """Feature maps of the images that a study trains and chooses on.

    A head never changes, so each image goes through it once for each partition point, not once for each epoch and
    trial. The least recently used points make room for new ones.
    """

    def __init__(self, split: SplitModel, dataset: Dataset, task: Task) -> None:
        self.dataset, self.task = dataset, task
        self._split = split
        self._images: OrderedDict[Part, LabelledImages] = OrderedDict()
        self._kept: OrderedDict[tuple[str, Part], Tensors] = OrderedDict()
        self._statistics: dict[tuple[str, TrainSample], Statistics] = {}  # of tails, recalibrated
        self._teachers: dict[tuple[TrainSample, bool], Tensors] = {}

    def images(self, part: Part) -> LabelledImages:
        """The images of a part, read once; of training samples the last one is kept."""
        if part not in self._images:
            if isinstance(part, TrainSample):
                self._forget_samples()
                self._images[part] = self.dataset.train(part.images, part.seed)
            else:
                self._images[part] = self.dataset.validation() if part == "validation" else self.dataset.test()
        return self._images[part]

    def features(self, partition: str, part: Part) -> Tensors:
        """The tensors that cross at a point, (N, ...) each, float32, in the order of the part's images."""
        images = self.images(part)  # first: another training sample makes room
        key = (partition, part)
        if key not in self._kept:
            self._kept[key] = self.through_head(partition, images)
            self._make_room(key)
        self._kept.move_to_end(key)
        return self._kept[key]

    def answers(self, part: Part) -> torch.Tensor:
        """Those of the uncut model, see :class:`Task`."""
        return self.features(OUTPUT, part)[0]

    def through_head(self, partition: str, images: LabelledImages) -> Tensors:
        """Feature maps of any images; not kept."""
        return self.through(self._split.head(partition), images)

    def through(self, head: nn.Module, images: LabelledImages) -> Tensors:
        """Feature maps of any images from any head, which is on the CPU before and afterwards; not kept."""
        return tuple(torch.cat(tensors) for tensors in zip(*self._stream(head, images)))

    def batches(self, partition: str, part: Part, head: nn.Module | None = None) -> Iterator[Tensors]:
        """Feature maps of a part's images, some images at a time.

        Args:
            partition: where they cross.
            part: whose images.
            head: a head of a candidate's own. The uncut model's are computed once and kept, if they leave room for
                those of other points.
        """
        size = self._split.tap(partition).point.float_bytes * len(self.images(part))
        if head is None and size <= _ROOM_BYTES / 2:
            yield from zip(*(tensor.split(_BATCH) for tensor in self.features(partition, part)), strict=True)
        else:
            yield from self._stream(self._split.head(partition) if head is None else head, self.images(part))

    def finetune_data(self, partition: str, sample: TrainSample, scope: Scope) -> FinetuneData:
        """What candidates at a point learn from.

        The teacher is the uncut model with the BatchNorm statistics that the tails get as well, where they change.
        """
        images = self.images(sample)
        inputs = images.inputs(self.dataset.picture) if scope == "all" else None
        criterion = self.task.criterion(images, self._teacher(sample, recalibrated=scope != "bottleneck"))
        return FinetuneData(features=self.features(partition, sample), criterion=criterion, inputs=inputs)

    def tail(self, partition: str, sample: TrainSample, scope: Scope) -> nn.Module:
        """A copy of the uncut model's tail for a candidate to learn with, on the CPU.

        Where the tail may change, its BatchNorm statistics are those of the training images behind the given head.
        """
        # A copy: the tail shares its modules with the uncut model, which must not change.
        tail = copy.deepcopy(self._split.tail(partition))
        if scope == "bottleneck":
            return tail
        if (partition, sample) not in self._statistics:
            features = self.features(partition, sample)
            # Copies, as an index makes them: a tail may work in place, and others need these.
            self._recalibrate(
                tail, sample, lambda index: tail(*(tensor[index].to(compute_device()) for tensor in features))
            )
            self._statistics[partition, sample] = statistics_of(tail)
        set_statistics(tail, self._statistics[partition, sample])
        return tail

    def _teacher(self, sample: TrainSample, *, recalibrated: bool) -> Tensors:
        """What the uncut model says of the training images, with its BatchNorm statistics recalibrated or as given."""
        key = (sample, recalibrated)
        if key not in self._teachers:
            network, images = self._split.tail(INPUT), self.images(sample)
            if recalibrated:
                network = copy.deepcopy(network)
                self._recalibrate(
                    network, sample, lambda index: network(self._inputs(images, int(index[0]), int(index[-1]) + 1))
                )
            self._teachers[key] = self.through(_Teacher(network, self.task), images)
        return self._teachers[key]

    def _recalibrate(self, network: nn.Module, sample: TrainSample, run: Callable[[torch.Tensor], Any]) -> None:
        """Statistics of a network or tail on training images, in place; it is on the CPU before and afterwards."""
        criterion = self.task.criterion(self.images(sample))
        network.to(compute_device())
        with machine_lock.training(), criterion.learning(network, 0.0):
            recalibrate_batchnorm(network, lambda index: criterion(run(index), index, 0.0), len(criterion))
        network.cpu()

    def _stream(self, head: nn.Module, images: LabelledImages) -> Iterator[Tensors]:
        head.to(compute_device())
        for start in range(0, len(images), _BATCH):
            with machine_lock.training(), torch.no_grad():
                found = head(self._inputs(images, start, start + _BATCH))
            yield tuple(tensor.cpu() for tensor in found)
        head.cpu()  # it may share its modules with the uncut model, which others expect here

    def _inputs(self, images: LabelledImages, start: int, stop: int) -> torch.Tensor:
        found = images.inputs(self.dataset.picture, start, stop).to(compute_device())
        return found.to(memory_format=torch.channels_last)

    def _forget_samples(self) -> None:
        """Make room for another training sample: of images, features and teachers there is one set at a time."""
        self._teachers.clear()
        for part in [part for part in self._images if isinstance(part, TrainSample)]:
            del self._images[part]
        for key in [key for key in self._kept if isinstance(key[1], TrainSample)]:
            del self._kept[key]

    def _make_room(self, newest: tuple[str, Part]) -> None:
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
