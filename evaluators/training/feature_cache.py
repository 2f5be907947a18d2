"""``FeatureCache``: outputs of frozen heads, computed once and kept while there is room."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Tensors
from evaluators.compute import autocast, compute_device
from evaluators.models.cut import SplitModel
from evaluators.tasks.data import Dataset, LabelledImages, few_of
from evaluators.tasks.task import Task
from evaluators.training.finetune_data import FinetuneData, KeptInputs
from spaces.partition import INPUT, OUTPUT

_BATCH = 100
_ROOM_BYTES = 4_000_000_000


@dataclass(frozen=True)
class TrainSample:
    """Which training images: how many, the seed that they are drawn with, and whether their mirror images follow."""

    images: int
    seed: int
    mirrored: bool = False


Part = Literal["validation", "test", "validation, few"] | TrainSample
"""Whose images: a role of the data, the few of search-validation that cheap rungs are scored on, or a sample."""
FEW: Part = "validation, few"


class FeatureCache:
    """Feature maps of the images that a study trains and chooses on.

    A head never changes, so each image goes through it once for each partition point, not once for each epoch and
    trial. The least recently used points make room for new ones.

    Args:
        split: the uncut model as given, whose answers are compared with.
        dataset, task: what images, and what their answers mean.
        base: makes the network that candidates are cut from, see :func:`evaluators.training.renewal.renewed`; the
            uncut model itself by default.
    """

    def __init__(
        self, split: SplitModel, dataset: Dataset, task: Task, base: Callable[[], SplitModel] | None = None
    ) -> None:
        self.dataset, self.task = dataset, task
        self._split, self._make_base = split, base or (lambda: split)
        self._images: OrderedDict[Part, LabelledImages] = OrderedDict()
        self._kept: OrderedDict[tuple[str, Part], Tensors] = OrderedDict()
        self._teachers: dict[TrainSample, Tensors] = {}
        self._inputs_of: dict[TrainSample, KeptInputs] = {}
        self._answers: dict[Part, torch.Tensor] = {}

    @functools.cached_property
    def base(self) -> SplitModel:
        """The network that candidates are cut from."""
        return self._make_base()

    @functools.cached_property
    def _few(self) -> list[int]:
        return few_of(self.images("validation"))

    def images(self, part: Part) -> LabelledImages:
        """The images of a part, read once; of training samples the last one is kept."""
        if part not in self._images:
            if part == FEW:
                self._images[part] = self.images("validation").only(self._few)
            elif isinstance(part, TrainSample):
                self._forget_others(part)
                found = self.dataset.train(part.images, part.seed)
                self._images[part] = found + found.mirrored() if part.mirrored else found
            else:
                self._images[part] = self.dataset.validation() if part == "validation" else self.dataset.test()
        return self._images[part]

    def features(self, partition: str, part: Part) -> Tensors:
        """The base's tensors that cross at a point, (N, ...) each, in the order of the part's images.

        In float32, or in bfloat16 for training images that come with their mirror images, of which there are many.
        """
        if part == FEW:
            return tuple(tensor[self._few] for tensor in self.features(partition, "validation"))
        images = self.images(part)  # first: another training sample makes room
        key = (partition, part)
        if key not in self._kept:
            self._kept[key] = self.through(self.base.head(partition), images, rough=_is_rough(part))
            self._make_room(key)
        self._kept.move_to_end(key)
        return self._kept[key]

    def answers(self, part: Part) -> torch.Tensor:
        """Those of the uncut model as given, see :class:`Task`."""
        if part == FEW:
            return self.answers("validation")[self._few]
        if part not in self._answers:
            self._answers[part] = self.through(self._split.head(OUTPUT), self.images(part))[0]
        return self._answers[part]

    def through(self, head: nn.Module, images: LabelledImages, *, rough: bool = False) -> Tensors:
        """Feature maps of any images from any head, which is on the CPU before and afterwards; not kept.

        Rough ones are computed as in training and come in bfloat16.
        """
        return _joined(self._stream(head, images, rough=rough), len(images))

    def batches(self, partition: str, part: Part, head: nn.Module | None = None) -> Iterator[Tensors]:
        """Feature maps of a part's images, some images at a time.

        Args:
            partition: where they cross.
            part: whose images.
            head: a head of a candidate's own. The base's are computed once and kept, if they leave room for those of
                other points.
        """
        kept: Part = "validation" if part == FEW else part
        size = self._split.tap(partition).point.float_bytes * len(self.images(kept))
        if head is None and size <= _ROOM_BYTES / 2:
            yield from zip(*(tensor.split(_BATCH) for tensor in self.features(partition, part)), strict=True)
        else:
            yield from self._stream(self.base.head(partition) if head is None else head, self.images(part))

    def finetune_data(self, partition: str, sample: TrainSample) -> FinetuneData:
        """What candidates at a point learn from; the base is the teacher."""
        images = self.images(sample)
        if sample not in self._inputs_of:
            self._inputs_of[sample] = KeptInputs(images, self.dataset.picture)
        criterion = self.task.criterion(images, self._teacher(sample))
        return FinetuneData(
            features=self.features(partition, sample),
            criterion=criterion,
            inputs=self._inputs_of[sample],
            versions=2 if sample.mirrored else 1,
        )

    def tail(self, partition: str) -> nn.Module:
        """A copy of the base's tail for a candidate to learn with, on the CPU."""
        return copy.deepcopy(self.base.tail(partition))

    def _teacher(self, sample: TrainSample) -> Tensors:
        """What the base says of the training images."""
        if sample not in self._teachers:
            self._teachers[sample] = self.through(
                _Teacher(self.base.tail(INPUT), self.task), self.images(sample), rough=_is_rough(sample)
            )
        return self._teachers[sample]

    def _stream(self, head: nn.Module, images: LabelledImages, *, rough: bool = False) -> Iterator[Tensors]:
        head.to(compute_device())
        try:
            for start in range(0, len(images), _BATCH):
                with machine_lock.training(), torch.no_grad(), autocast(head) if rough else contextlib.nullcontext():
                    found = head(self._inputs(images, start, start + _BATCH))
                yield tuple(tensor.cpu().bfloat16() if rough else tensor.cpu() for tensor in found)
        finally:
            head.cpu()  # it may share its modules with the uncut model, which others expect here

    def _inputs(self, images: LabelledImages, start: int, stop: int) -> torch.Tensor:
        found = images.inputs(self.dataset.picture, start, stop).to(compute_device())
        return found.to(memory_format=torch.channels_last)

    def _forget_others(self, sample: TrainSample) -> None:
        """Make room for another training sample: of one at a time there are images, features and teachers, with and
        without mirror images.
        """

        def stays(part: Part) -> bool:
            return not isinstance(part, TrainSample) or (part.images, part.seed) == (sample.images, sample.seed)

        self._images = OrderedDict(item for item in self._images.items() if stays(item[0]))
        self._kept = OrderedDict(item for item in self._kept.items() if stays(item[0][1]))
        self._teachers = dict(item for item in self._teachers.items() if stays(item[0]))
        self._inputs_of = dict(item for item in self._inputs_of.items() if stays(item[0]))

    def _make_room(self, newest: tuple[str, Part]) -> None:
        removable = [key for key in self._kept if key != newest]
        while removable and sum(tensor.nbytes for kept in self._kept.values() for tensor in kept) > _ROOM_BYTES:
            del self._kept[removable.pop(0)]


def _is_rough(part: Part) -> bool:
    """Whether there are so many images that features half as large will do."""
    return isinstance(part, TrainSample) and part.mirrored


def _joined(parts: Iterator[Tensors], count: int) -> Tensors:
    """Tensors that come some rows at a time, as whole ones of ``count`` rows; never twice in memory."""
    whole: list[torch.Tensor] = []
    start = 0
    for part in parts:
        whole = whole or [tensor.new_empty((count, *tensor.shape[1:])) for tensor in part]
        for tensor, rows in zip(whole, part, strict=True):
            tensor[start : start + len(rows)] = rows
        start += len(part[0])
    return tuple(whole)


class _Teacher(nn.Module):
    """A whole network that returns what a task's criterion wants of a teacher."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self._task = network, task

    def forward(self, images: torch.Tensor) -> Tensors:
        return self._task.teaching(self.network(images))
