"""``FeatureBank``: outputs of frozen heads, computed once and kept while there is room."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

from evaluators.compression.bottleneck import Tensors
from evaluators.models.cut import SplitModel, first_tensor
from evaluators.settings import Scope
from evaluators.tasks.data import Dataset, Pictures
from evaluators.tasks.statistics import Statistics, renew_statistics, set_statistics, statistics_of
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
        self._statistics: dict[str, Statistics] = {}  # of tails, renewed

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
                batch = self._inputs(pictures, slice(start, start + _BATCH))
                parts.append([tensor.cpu() for tensor in head(batch)])
        head.cpu()  # it may share its modules with the uncut model, which others expect here
        return tuple(torch.cat(tensors) for tensors in zip(*parts))

    def lesson(self, partition: str, scope: Scope) -> Lesson:
        """What candidates at a point learn from.

        The teacher is the uncut model with the BatchNorm statistics that the tails get as well, where they change.
        """
        inputs = self.train.inputs(self.dataset.picture) if scope == "all" else None
        teacher = self.scores("train") if scope == "bottleneck" else self._renewed_scores
        return Lesson(
            features=self.features(partition, "train"), labels=self.train.labels, teacher=teacher, inputs=inputs
        )

    def tail(self, partition: str, scope: Scope) -> nn.Module:
        """A copy of the uncut model's tail for a candidate to learn with, on the CPU.

        Where the tail may change, its BatchNorm statistics are those of the training pictures behind the given head.
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
        def scores(part: slice) -> torch.Tensor:
            # Copies: a tail may work in place, and others need these.
            return first_tensor(tail(*(tensor[part].to(compute_device(), copy=True) for tensor in features)))

        renew_statistics(tail, scores, self.train.labels)

    @functools.cached_property
    def _renewed_scores(self) -> torch.Tensor:
        """Class scores of the uncut model on the training pictures, its BatchNorm statistics renewed."""
        network = copy.deepcopy(self._split.head(OUTPUT)).to(compute_device())

        def scores(part: slice) -> torch.Tensor:
            found: torch.Tensor = network(self._inputs(self.train, part))[0]
            return found

        renew_statistics(network, scores, self.train.labels)
        return self.through(network.cpu(), self.train)[0]

    def _inputs(self, pictures: Pictures, part: slice) -> torch.Tensor:
        found = pictures.inputs(self.dataset.picture, part.start, part.stop).to(compute_device())
        return found.to(memory_format=torch.channels_last)

    def _make_room(self, newest: tuple[str, Role]) -> None:
        # The uncut model's scores are small, and needed by every trial.
        removable = [key for key in self._kept if key != newest and key[0] != OUTPUT]
        while removable and sum(tensor.nbytes for kept in self._kept.values() for tensor in kept) > _ROOM_BYTES:
            del self._kept[removable.pop(0)]
