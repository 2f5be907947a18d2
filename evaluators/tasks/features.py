"""``FeatureBank``: outputs of frozen heads, computed once and kept while there is room."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

from evaluators.compression.bottleneck import Tensors
from evaluators.models.cut import SplitModel
from evaluators.tasks.data import Dataset, Pictures
from evaluators.tasks.training import Lesson, compute_device
from spaces.partition import OUTPUT

Role = Literal["train", "validation"]

_BATCH = 100
_ROOM_BYTES = 4_000_000_000


class FeatureBank:
    """Feature maps of the pictures that a study trains and chooses on.

    A head never changes, so each picture goes through it once for each partition point, not once for each epoch and
    trial. The least recently used points make room for new ones.
    """

    def __init__(self, split: SplitModel, dataset: Dataset, train_pictures: int, seed: int) -> None:
        self.dataset = dataset
        self._split, self._train_pictures, self._seed = split, train_pictures, seed
        self._kept: OrderedDict[tuple[str, Role], Tensors] = OrderedDict()

    @functools.cached_property
    def train(self) -> Pictures:
        """The pictures that candidates are fine-tuned on."""
        return self.dataset.train(self._train_pictures, self._seed)

    @functools.cached_property
    def validation(self) -> Pictures:
        """The pictures that candidates are scored on."""
        return self.dataset.validation()

    def features(self, partition: str, role: Role) -> Tensors:
        """The tensors that cross at a point, (N, ...) each, float32, in the order of the role's pictures."""
        key = (partition, role)
        if key not in self._kept:
            pictures = self.train if role == "train" else self.validation
            self._kept[key] = self.through_head(partition, pictures)
            self._make_room(key)
        self._kept.move_to_end(key)
        return self._kept[key]

    def scores(self, role: Role) -> torch.Tensor:
        """Class scores of the uncut model, (N, classes)."""
        return self.features(OUTPUT, role)[0]

    def through_head(self, partition: str, pictures: Pictures) -> Tensors:
        """Feature maps of any pictures; not kept."""
        return self.through(self._split.head(partition), pictures)

    def through(self, head: nn.Module, pictures: Pictures) -> Tensors:
        """Feature maps of any pictures from any head, which is on the CPU before and afterwards; not kept."""
        device = compute_device()
        head.to(device)
        parts = []
        with torch.no_grad():
            for start in range(0, len(pictures), _BATCH):
                batch = pictures.inputs(self.dataset.picture, start, start + _BATCH).to(device)
                parts.append([tensor.cpu() for tensor in head(batch.to(memory_format=torch.channels_last))])
        head.cpu()  # it may share its modules with the uncut model, which others expect here
        return tuple(torch.cat(tensors) for tensors in zip(*parts))

    def lesson(self, partition: str, with_pictures: bool) -> Lesson:
        """What candidates at a point learn from."""
        inputs = self.train.inputs(self.dataset.picture) if with_pictures else None
        features, labels = self.features(partition, "train"), self.train.labels
        return Lesson(features=features, labels=labels, teacher=self.scores("train"), inputs=inputs)

    def _make_room(self, newest: tuple[str, Role]) -> None:
        # The uncut model's scores are small, and needed by every trial.
        removable = [key for key in self._kept if key != newest and key[0] != OUTPUT]
        while removable and sum(tensor.nbytes for kept in self._kept.values() for tensor in kept) > _ROOM_BYTES:
            del self._kept[removable.pop(0)]
