"""Which trials are not worth more training: those that will not enter the front."""

from __future__ import annotations

from collections.abc import Mapping

from evaluators.result import Evaluation
from search.knowledge import Knowledge
from spaces.config import SplitConfig

_DOUBT = 2.0  # standard deviations that an accuracy may come out better than expected


class Pruning:
    """Says when to stop a trial.

    Args:
        knowledge: of the study's trials.
        most_accuracy: what no configuration is expected to exceed: the best baseline's, and two standard errors more.
    """

    def __init__(self, knowledge: Knowledge, most_accuracy: float) -> None:
        self._knowledge, self._most_accuracy = knowledge, most_accuracy

    def by_price(self, config: SplitConfig) -> str:
        """Why a configuration needs no training at all, or nothing: something faster is as good as it can become."""
        price = self._knowledge.price(config)
        if price is None:
            return ""  # it says itself why it cannot run
        least_ms = price.latency_ms() if config.lossless == "packed" else price.least_ms
        reached = self._knowledge.front().level(least_ms)
        if reached < self._most_accuracy:
            return ""
        return (
            f"not trained: it takes {least_ms:.2f} ms at least, and {reached:.1%} was found in less; "
            f"{self._most_accuracy:.1%} is the most to be hoped for"
        )

    def by_rung(self, config: SplitConfig, scores: Mapping[str, Evaluation]) -> str:
        """Why more training is in vain, or nothing.

        Args:
            config: of the trial.
            scores: after its rungs so far, by their names.
        """
        knowledge, (rung, score) = self._knowledge, list(scores.items())[-1]
        accuracy, error = score.accuracy, score.accuracy_error
        latency_ms, promise = knowledge.expected_ms(config), knowledge.promise(rung, accuracy, error)
        if latency_ms is None or promise is None:
            return ""
        hoped_for, reached = promise[0] + _DOUBT * promise[1], knowledge.front().level(latency_ms)
        if hoped_for > reached:
            return ""
        return (
            f"stopped after {rung}: {accuracy:.1%} there promises {hoped_for:.1%} at most, and at {latency_ms:.2f} ms "
            f"only more than {reached:.1%} helps"
        )

    def tells(self, rung: str) -> bool:
        """Whether a rung is worth scoring."""
        return self._knowledge.tells(rung)
