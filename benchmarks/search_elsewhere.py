"""How soon searches find the front of problems that resemble the recorded one only in what was trained.

    python benchmarks/search_elsewhere.py   # 16 problems; minutes

Problems are made from benchmarks/results/search_table_quickstart.jsonl, and from the accuracies of -once.jsonl on the
same configurations: each with three to five of the partition points, the link up to 100 times as fast, the device up to
316 times as slow, and accuracies shifted by 0.4 points (standard deviation), all of it drawn by seed. So some are a
matter of bytes, some of the device's arithmetic. What a search makes of them does not depend on one table's luck. The
share of the problem's hypervolume after so many trials goes to benchmarks/results/search_elsewhere.md; seconds would be
those of the table once more.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import optuna
from search_efficiency import SAMPLERS, Table, Watch, every_result, ours, plain
from search_table import RESULTS, study_of

from evaluators.result import Evaluation, LatencyParts
from search.hypervolume import Corner, Staircase
from search.spec import StudySpec
from spaces.config import SplitConfig
from spaces.space import SearchSpace

SEEDS = 8
LOOKS = (5, 10, 20, 40)  # trials
_PAGE = """# Searches on changed problems

`python benchmarks/search_elsewhere.py`; its first lines say what is changed. {count} problems. Share of the hypervolume
of all configurations that a search has found after so many trials: mean over the problems, and the least.

| search | {looks} |
| --- | {dashes} |
"""


class Elsewhere(Table):
    """The table on another link and device, with fewer points and other accuracies.

    Args:
        accuracies: the table they are taken from.
        seed: of the changes.
    """

    def __init__(self, accuracies: str, spec: StudySpec, seed: int) -> None:
        super().__init__(RESULTS / "search_table_quickstart.jsonl", spec)
        other = Table(RESULTS / f"search_table_{accuracies}.jsonl", spec)
        draw = np.random.default_rng(1000 + seed)
        self._link, self._device = 10 ** draw.uniform(-2, 0), 10 ** draw.uniform(0, 2.5)
        points = list(dict.fromkeys(config.partition for config, _ in self._rows))
        kept = set(draw.permutation(points)[: draw.integers(3, 6)])
        rows = {key: row for key, row in self._rows.items() if key[0].partition in kept}
        taken = ("accuracy", "accuracy_drop_pp")
        self._rows = {key: row | _some(other._rows.get(key, {}), taken) for key, row in rows.items()}
        plain_ones = dict.fromkeys(_uncoded(config) for config, _ in self._rows)
        self._shift = {config: float(draw.normal(0, 0.004)) for config in plain_ones}

    def look(self, config: SplitConfig, rung: str = "full") -> Evaluation:
        found = super().look(config, rung)
        latency = dataclasses.replace(
            found.latency,
            head_ms=found.latency.head_ms * self._device,
            encode_ms=found.latency.encode_ms * self._device,
            link_ms=found.latency.link_ms * self._link,
        )
        return dataclasses.replace(
            found,
            latency=latency,
            link_busy_ms=found.link_busy_ms * self._link,
            accuracy=min(1.0, max(0.0, found.accuracy + self._shift[_uncoded(config)])),
        )

    def baselines(self, *, trained: bool) -> list[Evaluation]:
        slow = LatencyParts(head_ms=0.8 * max(self.look(config).latency_ms for config in self.configs))
        return [dataclasses.replace(each, latency=slow) for each in super().baselines(trained=trained)]


def _some(row: dict[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: row[name] for name in names if name in row}


def _uncoded(config: SplitConfig) -> SplitConfig:
    return dataclasses.replace(config, lossless="packed")


class Follow(Watch):
    """Remembers the share of the hypervolume after each trial, until the last look."""

    def __init__(self, table: Table, corner: Corner, whole: float) -> None:
        super().__init__(table, corner, whole)
        self.shares: list[float] = []

    def take(self, accuracy: float, latency_ms: float, feasible: bool) -> bool:
        super().take(accuracy, latency_ms, feasible)
        self.shares.append(Staircase(self._results, self._corner).hypervolume / self._whole)
        return len(self.shares) >= max(LOOKS)


SEARCHES: dict[str, Callable[..., None]] = {
    "splitsearch: front (the default)": lambda *a: ours(*a, sampler="front", pruning="none"),
    "splitsearch: TPE": lambda *a: ours(*a, sampler="tpe", pruning="none"),
    **{f"plain Optuna: {name}": lambda *a, m=make: plain(*a, m) for name, make in SAMPLERS.items()},
}


def main() -> None:
    """Search every problem in every way, and write the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec, shares = study_of("quickstart"), dict[str, list[list[float]]]()
    problems = list(itertools.product(("quickstart", "quickstart-once"), range(SEEDS)))
    for accuracies, seed in problems:
        table = Elsewhere(accuracies, spec, seed)
        points = list(dict.fromkeys(config.partition for config in table.configs))
        space = SearchSpace.from_dict(spec.raw["space"] | {"partition": points}, points)
        feasible, corner = every_result(table, spec)
        for name, search in SEARCHES.items():
            table.restart()
            follow = Follow(table, corner, Staircase(feasible, corner).hypervolume)
            search(table, spec, space, follow, seed)
            shares.setdefault(name, []).append([follow.shares[min(look, len(follow.shares)) - 1] for look in LOOKS])
    looks = " | ".join(f"{look} trials" for look in LOOKS)
    page = _PAGE.format(count=len(problems), looks=looks, dashes=" | ".join(["---:"] * len(LOOKS)))
    for name, found in shares.items():
        columns = np.array(found).T
        page += f"| {name} | {' | '.join(f'{each.mean():.1%} ({each.min():.0%})' for each in columns)} |\n"
    (RESULTS / "search_elsewhere.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
