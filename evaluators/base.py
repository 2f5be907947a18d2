"""The ``Evaluator`` contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluators.result import Evaluation
from spaces.config import SplitConfig
from spaces.partition import PartitionPoint

Progress = Callable[[str], None]


class Evaluator(ABC):
    """Scores configurations of one model on one data set and one set of hardware.

    A search calls, in this order: :meth:`partition_points` once, to choose what to search; :meth:`prepare` once; then
    :meth:`evaluate` any number of times; :meth:`baselines` once, before or after; and :meth:`export` for a
    configuration that was evaluated. ``partition_points`` works without ``prepare``.

    An evaluator does not know that it is in a search. Evaluating the same configuration twice gives the same accuracy
    and payload, and costs nothing the second time where nothing has to be measured again.
    """

    @abstractmethod
    def partition_points(self) -> Sequence[PartitionPoint]:
        """Every point from ``input`` to ``output``, in order. Names are unique."""

    @abstractmethod
    def head_ms(self, points: Sequence[PartitionPoint]) -> list[float | None]:
        """Latency of the head of each point on the device; None where it is not known."""

    @abstractmethod
    def prepare(self, partitions: Sequence[str], progress: Progress) -> None:
        """Do what is done once and takes long, such as training the uncut model. Calling it again costs nothing.

        Args:
            partitions: the points that will be evaluated; what can be measured for them beforehand is measured now, in
                one go, so that the points stay comparable on a machine whose speed varies.
            progress: told what is going on.
        """

    @abstractmethod
    def evaluate(self, config: SplitConfig) -> Evaluation:
        """Score one configuration. Must not keep anything that changes a later evaluation's result.

        Raises:
            InfeasibleSplit: the configuration cannot run; the message is the reason.
            MeasurementError: the device did not answer.
        """

    @abstractmethod
    def baselines(self, *, trained: bool) -> list[Evaluation]:
        """The honest alternatives, measured the same way: all on the device, server only (raw and JPEG).

        Args:
            trained: also the uncut model after the same fine-tuning, which takes a training.
        """

    @abstractmethod
    def export(self, config: SplitConfig, directory: Path) -> dict[str, Any]:
        """Write ``device/`` and ``server/`` for an evaluated configuration into an existing directory.

        Returns:
            Evidence for ``bundle.json``: how well the halves agree with the evaluation, on how many images.
        """

    def notes(self) -> list[str]:
        """Sentences that help to judge whether the model was loaded as meant."""
        return []

    def describe(self) -> dict[str, Any]:
        """What a reader needs to trust the numbers: machine, versions, hardware, data. JSON-ready."""
        return {}
