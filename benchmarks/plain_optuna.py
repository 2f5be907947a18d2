"""The search that a competent user writes instead: Optuna with two objectives, every trial trained in full.

No command of its own; benchmarks/search_efficiency.py runs it beside splitsearch's.
"""

from collections.abc import Callable

import optuna

from evaluators.base import Evaluator
from search.spec import Constraints
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.space import SearchSpace

WORST_MS = 1e6  # of what cannot run; Optuna prunes no trials with two objectives


def search(
    evaluator: Evaluator,
    space: SearchSpace,
    limits: Constraints,
    sampler: optuna.samplers.BaseSampler,
    trials: int,
    found: Callable[[SplitConfig, float, float, bool], bool],
) -> None:
    """Optimise accuracy and latency; ``found`` is told each result and whether it keeps the limits, and ends it all."""
    scored: dict[SplitConfig, tuple[float, float, list[float]]] = {}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        config = space.suggest(trial)
        if config not in scored:  # a repeat costs nothing
            try:
                result = evaluator.evaluate(config)
            except InfeasibleSplit:
                return 0.0, WORST_MS
            excess = list(limits.excess(result).values())
            scored[config] = (result.accuracy, result.latency_ms, excess)
        accuracy, latency_ms, excess = scored[config]
        for number, value in enumerate(excess):
            trial.set_constraint(f"c{number}", value)
        if found(config, accuracy, latency_ms, all(value <= 0 for value in excess)):
            trial.study.stop()
        return accuracy, latency_ms

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=trials)
