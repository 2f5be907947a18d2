"""``CutTraining``: one training that answers for every AE ratio and bit-width of a cut."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from evaluators.compression.bottleneck import new_bottleneck
from evaluators.compression.nested import Member, NestedBottleneck
from evaluators.edge import context
from evaluators.training.candidate import Candidate, load_modules, save_modules
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import PartitionPoint

RECIPE = 1  # raise when this training changes
_HISTORY = "history.json"


@dataclass(frozen=True, kw_only=True)
class CutTraining:
    """What it left; between uses on the CPU. Head as a :class:`Candidate` has it; all members share it and the tail."""

    bottleneck: NestedBottleneck
    tail: nn.Module
    history: list[dict[str, Any]]
    head: nn.Module | None = None

    def member(self, config: SplitConfig) -> Candidate:
        """The candidate of a configuration, its levels not yet chosen."""
        alone = self.bottleneck.cut_out(member_of(config))
        return Candidate(bottleneck=alone, tail=self.tail, levels=(), history=self.history, head=self.head)


def member_of(config: SplitConfig) -> Member:
    """Which member of a nested bottleneck a configuration is."""
    return (float(config.ae_ratio), config.bits)


def new_nested(point: PartitionPoint, config: SplitConfig, budget: Budget, image_size: int) -> NestedBottleneck:
    """An untrained nested bottleneck of all members that fit a point.

    Args:
        point: the configuration's.
        config: one of the members.
        budget: says which members there are.
        image_size: side of the pictures in pixels.

    Raises:
        InfeasibleSplit: the configuration does not fit its point.
    """
    members = {member_of(config): new_bottleneck(point, config, image_size)}
    for ratio, bits in budget.shared:
        if config.rate > 0 and bits > context.MOST_BITS:
            continue  # the penalty knows no such context models
        try:
            members[ratio, bits] = new_bottleneck(point, replace(config, ae_ratio=ratio, bits=bits), image_size)
        except InfeasibleSplit:
            continue
    return NestedBottleneck(members)


def cut_fields(config: SplitConfig, nested: NestedBottleneck) -> dict[str, Any]:
    """What the training depends on: as a configuration's own, with all members in place of one."""
    fields = {name: value for name, value in config.training_fields.items() if name not in ("ae_ratio", "bits")}
    return fields | {"members": [list(member) for member in nested.members]}


def save_cut_training(trained: CutTraining, folder: Path, *, tail_learned: bool) -> None:
    """Write weights and history into an existing folder; a tail that did not learn is the uncut model's."""
    modules = {"bottleneck": trained.bottleneck, "head": trained.head, "tail": trained.tail if tail_learned else None}
    save_modules(modules, folder)
    (folder / _HISTORY).write_text(json.dumps(trained.history))


def load_cut_training(
    folder: Path, bottleneck: NestedBottleneck, tail: nn.Module, head: nn.Module | None
) -> CutTraining:
    """Read what :func:`save_cut_training` wrote into fresh modules of the same architecture."""
    load_modules(folder, {"bottleneck": bottleneck, "tail": tail, "head": head})
    history = json.loads((folder / _HISTORY).read_text())
    return CutTraining(bottleneck=bottleneck, tail=tail, history=history, head=head)
