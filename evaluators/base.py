"""The ``Evaluator`` contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from evaluators.result import Evaluation, HeadCost, Price
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import SplitsearchError
from spaces.partition import PartitionPoint
from spaces.space import SearchSpace

Progress = Callable[[str], None]
Split = Literal["validation", "test"]


class Evaluator(ABC):
    """Scores configurations of one model on one data set and one set of hardware. Knows nothing of a search.

    The order of calls:

    - :meth:`partition_points`, :meth:`head_ms`, :meth:`distilled_heads`, :meth:`rehearse`, :meth:`identity`,
      :meth:`describe`, :meth:`notes` and :meth:`share_cores` may be called at any time and any number of times; they
      train nothing that is kept.
    - :meth:`baselines` without training raises NotFinished until the uncut model has its weights.
    - :meth:`prepare` comes before :meth:`price`, :meth:`evaluate`, ``baselines(trained=True)`` and :meth:`export`, in
      every process; a second call costs nothing.
    - :meth:`evaluate` and :meth:`export` take any configuration, in any order, any number of times.
    - :meth:`export_whole` may follow :meth:`export` into the same directory.

    Evaluating the same configuration twice with the same budget and seed gives the same accuracy and payload, and costs
    nothing the second time where nothing has to be measured again.
    """

    @abstractmethod
    def partition_points(self) -> Sequence[PartitionPoint]:
        """Every point from ``input`` to ``output``, in order. Names are unique."""

    @abstractmethod
    def head_ms(self, points: Sequence[PartitionPoint]) -> list[float | None]:
        """Latency of the head of each point on the device in milliseconds; None where it is not known."""

    def distilled_heads(self, space: SearchSpace) -> list[HeadCost]:
        """What each distilled head of a space takes, and at which of its points there is none."""
        return []

    def rehearse(self, space: SearchSpace | None = None) -> None:  # noqa: B027  (nothing to try is fine)
        """Try in seconds what a run does in hours: a training step, the form of the answer, an export.

        Args:
            space: what will be searched; where it has distilled heads, one of them is tried too.

        Raises:
            SplitsearchError: something would fail later; says what and what to do.
        """

    def share_cores(self, workers: int) -> None:  # noqa: B027  (who needs no cores has none to share)
        """From now on train with no more than this process's share of the cores, at least one.

        Two trainings that both use all of two cores take many times as long as one after the other. What is measured
        is measured with all cores, as nobody else works meanwhile.

        Args:
            workers: processes that train on this machine, this one among them.
        """

    @abstractmethod
    def prepare(self, space: SearchSpace | None, progress: Progress) -> None:
        """Do what is done once and takes long, such as training the uncut model.

        Args:
            space: what will be evaluated; all that can be measured for it beforehand is measured now, in one go, so
                that configurations stay comparable on a machine whose speed varies. None measures nothing.
            progress: told what is going on.
        """

    @abstractmethod
    def price(self, config: SplitConfig) -> Price:
        """What a configuration takes, without training it. Costs next to nothing for one of a prepared space.

        Raises:
            InfeasibleSplit: the configuration cannot run; the message is the reason.
            MeasurementError: the device did not answer.
        """

    @abstractmethod
    def evaluate(
        self, config: SplitConfig, *, budget: Budget | None = None, seed: int | None = None, split: Split = "validation"
    ) -> Evaluation:
        """Score one configuration. Keeps nothing that changes a later evaluation's result.

        Args:
            config: what to score.
            budget: how much to train; the study's own unless given. A training that stops before ``full`` may be
                scored on some of the search-validation images, always the same; ``details["scored_images"]`` says on
                how many.
            seed: of the training; the study's own unless given.
            split: which images to score on. ``test`` is for reporting a point that was chosen without it.

        Raises:
            InfeasibleSplit: the configuration cannot run, or its training diverged; the message is the reason.
            MeasurementError: the device did not answer.
        """

    @abstractmethod
    def baselines(
        self, *, trained: bool, split: Split = "validation", only: Collection[str] | None = None
    ) -> list[Evaluation]:
        """The honest alternatives, measured the same way: all on the device, server only (raw and picture codecs).

        Args:
            trained: also the uncut model after the same fine-tuning, and behind each codec after fine-tuning on images
                coded by it, which takes trainings.
            split: the images they are scored on.
            only: names of those that are wanted; all unless given.

        Raises:
            NotFinished: the uncut model is not trained yet.
        """

    @abstractmethod
    def export(
        self, config: SplitConfig, directory: Path, *, budget: Budget | None = None, seed: int | None = None
    ) -> dict[str, Any]:
        """Write ``device/`` and ``server/`` for a configuration into an existing directory.

        Budget and seed are those of :meth:`evaluate`.

        Returns:
            Evidence for ``bundle.json``: how well the halves agree with the evaluation, on how many images.

        Raises:
            SplitsearchError: the halves do not give the evaluation's answers.
        """

    def export_whole(self, directory: Path) -> dict[str, Any]:
        """Add the uncut network to an exported ``device/``, which can then answer without a server.

        Returns:
            Evidence for ``bundle.json``: its accuracy, on how many images.
        """
        raise SplitsearchError("this evaluator has no whole network to export; leave --with-whole out")

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Digests of what results depend on besides the study's settings: weights, images, code, recipe.

        Two evaluators with equal settings and equal identity give equal results.
        """

    def notes(self) -> list[str]:
        """Sentences that help to judge whether the model was loaded as meant."""
        return []

    def describe(self) -> dict[str, Any]:
        """What a reader needs to trust the numbers: machine, versions, hardware, data. JSON-ready."""
        return {}
