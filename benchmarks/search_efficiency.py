"""Seconds of training and scoring until a search has found the front, on tables where everything is known.

    python benchmarks/search_table.py quickstart
    python benchmarks/search_table.py quickstart-once
    python benchmarks/search_efficiency.py quickstart   # 20 seeds of each search; minutes
    python benchmarks/search_efficiency.py resnet50

A search asks for configurations, the table answers, and the clock adds the seconds that the answer took when the table
was made. What is shared by all configurations of a cut and head is added once. Searches of plain Optuna
(plain_optuna.py) train every configuration in full, and a repeated one costs them nothing. The front and its
hypervolume are those of the whole table, within the study's limits. Where one training answers for a cut ("once per
cut"), accuracies and seconds are of a table of their own, latencies those of the first, and the first's front is what
is to be found. Results go to benchmarks/results/search_efficiency.md.

splitsearch's own searches stand there with each of its three ideas on and off, and one without what training takes.
Without known latency the sampler is Optuna's TPE, which learns latency from trials as it learns accuracy; rungs stop a
trial by what it takes all the same. The rungs of a training that answers for a cut are its price alone. Rows of the
cheap rungs in the tables were scored on all search-validation pictures; a run scores fewer of them there, in less time
than is counted here.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plain_optuna
from scipy.stats import spearmanr
from search_table import RESULTS, study_of

from evaluators.base import Progress
from evaluators.fake import FakeEvaluator
from evaluators.result import Evaluation, LatencyParts, Price, Source, Sources
from search.front import corner_of
from search.hypervolume import Corner, Staircase
from search.objective import prepare, run_trials
from search.points import baseline_points
from search.spec import StudySpec
from search.storage import start_or_resume
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.space import SearchSpace

GOALS = (0.9, 0.95, 0.99)
SEEDS = 20
KEPT = RESULTS / "search_efficiency.json"
_PAGE = """# Seconds until a search has found the front

`python benchmarks/search_efficiency.py quickstart resnet50`; its first lines say what is counted. The last column is
processor time of all seeds together with the table in place of training: the search's own arithmetic. Three ideas, each
off where nothing stands: latency is known before training; trials are stopped at rungs; one training answers for a cut.
"""
_RUNGS = ("", "start", "reconstruction", "full", "scoring")
_MEASURED = Sources(device=Source.MEASURED, server=Source.MEASURED, link=Source.MODELLED)


class Table(FakeEvaluator):
    """Answers from a table, and adds up what the answers took.

    Args:
        path: of benchmarks/search_table.py's rows.
        spec: the study.
        timed: where latencies come from, if not from the same rows.

    Attributes:
        tells_training: whether prices say what training takes.
    """

    def __init__(self, path: Path, spec: StudySpec, timed: "Table | None" = None) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.described, self._spec = next(row for row in rows if "study" in row), spec
        self._rows = {(SplitConfig.from_dict(row["config"]), row["rung"]): row for row in rows if "config" in row}
        self._timed = timed
        self.tells_training = True
        self._shared: dict[tuple[object, ...], float] = {}
        for (config, _), row in self._rows.items():
            place = self._place(config)  # what another process had shared already costs a part less
            self._shared[place] = max(row.get("shared_s", 0.0), self._shared.get(place, 0.0))
        self.restart()

    def _place(self, config: SplitConfig) -> tuple[object, ...]:
        """What the configurations have in common that share something."""
        return (config.partition, config.head, config.tcl if self._spec.finetune.shared else 0.0)

    def restart(self) -> None:
        """Set the clock to 0."""
        self.seconds, self._paid, self._trained = 0.0, set[tuple[object, ...]](), dict[str, str]()

    @property
    def configs(self) -> list[SplitConfig]:
        """All that are in the table."""
        return [config for config, rung in self._rows if rung == "full"]

    @property
    def has_rungs(self) -> bool:
        """Whether trainings that are stopped early are in it."""
        return any(rung == "reconstruction" for _, rung in self._rows)

    @property
    def exhaustive_seconds(self) -> float:
        """What training and scoring all of them in full took."""
        self.restart()
        for config in self.configs:
            with contextlib.suppress(InfeasibleSplit):
                self.evaluate(config)
        return self.seconds

    def look(self, config: SplitConfig, rung: str = "full") -> Evaluation:
        """A row, without the clock."""
        row = self._rows[config, rung]
        if "infeasible" in row:
            raise InfeasibleSplit(row["infeasible"])
        timed = row if self._timed is None else self._timed._rows[config, rung]
        return Evaluation(
            name=config.label,
            config=config,
            accuracy=row["accuracy"],
            payload_bytes=row["payload_bytes"],
            latency=LatencyParts(**timed["latency"]),
            sources=_MEASURED,
            link_busy_ms=timed["busy_ms"],
            accuracy_drop_pp=row["accuracy_drop_pp"],
            details={name: row[name] for name in ("device_model_mb", "training_macs")},
        )

    def prepare(self, space: SearchSpace | None, progress: Progress) -> None:
        pass

    def identity(self) -> dict[str, str]:
        return {"table": self.described["date"]}

    def price(self, config: SplitConfig) -> Price:
        matching = dataclasses.replace(config, tcl=self._spec.raw["space"]["tcl"][0], lossless="packed")
        found = self.look(matching)
        return Price(
            latency=found.latency,
            payload_bytes=found.payload_bytes,
            busy_ms=found.link_busy_ms,
            device_model_mb=found.details["device_model_mb"],
            training_macs=found.details["training_macs"] if self.tells_training else 0.0,
        )

    def evaluate(
        self, config: SplitConfig, *, budget: Budget | None = None, seed: int | None = None, split: Any = "validation"
    ) -> Evaluation:
        rung = "full" if budget is None else budget.until
        place = self._place(config)
        if place not in self._paid:
            self._paid.add(place)
            self.seconds += self._shared[place]
        self.seconds += self._seconds(config, rung)
        return self.look(config, rung)

    def _seconds(self, config: SplitConfig, rung: str) -> float:
        """Of a coded configuration, training included where it was not trained before."""
        plain = dataclasses.replace(config, lossless="packed")
        taken = {name: float(row.get("seconds", 0.0)) for name in _RUNGS if (row := self._rows.get((plain, name)))}
        scoring = taken.get("scoring", 0.0)
        coding = float(self._rows[config, rung].get("seconds", 0.0)) if config != plain else 0.0
        done = self._trained.get(plain.training_key, "")
        self._trained[plain.training_key] = max(rung, done, key=_RUNGS.index)
        if done == rung:
            return coding or scoring
        if rung == "full" and done != "reconstruction":
            return taken.get("reconstruction", scoring) + taken["full"] - scoring + coding
        return taken[rung] + coding

    def baselines(self, *, trained: bool) -> list[Evaluation]:
        return [
            Evaluation(
                name=row["name"],
                config=None,
                accuracy=row["accuracy"],
                payload_bytes=0.0,
                latency=LatencyParts(head_ms=row["latency_ms"]),
                sources=_MEASURED,
            )
            for row in self.described["baselines"]
        ]


@dataclasses.dataclass
class Run:
    """When a search reached its goals: seconds and trials, None for never."""

    seconds: dict[float, float | None]
    trials: dict[float, int | None]


class Watch:
    """Follows a search until it has reached every goal."""

    def __init__(self, table: Table, corner: Corner, whole: float) -> None:
        self._table, self._corner, self._whole = table, corner, whole
        self._results: list[tuple[float, float]] = []
        self._trials = 0
        self.run = Run(seconds=dict.fromkeys(GOALS), trials=dict.fromkeys(GOALS))

    def take(self, accuracy: float, latency_ms: float, feasible: bool) -> bool:
        """A trial ended; whether all goals are reached."""
        self._trials += 1
        if feasible:
            self._results.append((accuracy, latency_ms))
        share = Staircase(self._results, self._corner).hypervolume / self._whole
        for goal in GOALS:
            if share >= goal and self.run.seconds[goal] is None:
                self.run.seconds[goal], self.run.trials[goal] = self._table.seconds, self._trials
        return share >= max(GOALS)


class _Reached(Exception):
    """Every goal is reached."""


def ours(table: Table, spec: StudySpec, space: SearchSpace, watch: Watch, seed: int, **settings: Any) -> None:
    """splitsearch's own search."""
    spec = dataclasses.replace(
        spec, search=dataclasses.replace(spec.search, seed=seed, trials=len(table.configs), patience=None, **settings)
    )
    with tempfile.TemporaryDirectory() as folder:
        study = start_or_resume(spec, space, Path(folder), contents=table.identity(), ask_price=table.price)
        prepare(study, space, table, lambda _: None)

        def finished() -> None:
            trial = study.get_trials(deepcopy=False)[-1]
            if watch.take(*trial.values, all(value <= 0 for value in trial.constraints.values())):
                raise _Reached

        with contextlib.suppress(_Reached):
            run_trials(study, spec, space, table, Path(folder), finished=finished)


def equally_long(table: Table, *search: Any) -> None:
    """splitsearch's default, which is not told what training takes."""
    table.tells_training = False
    ours(table, *search, **Ideas(latency=True).settings)
    table.tells_training = True


def plain(
    table: Table, spec: StudySpec, space: SearchSpace, watch: Watch, seed: int, make: Callable[[int], Any]
) -> None:
    """A plain Optuna script."""

    def found(config: SplitConfig, accuracy: float, latency_ms: float, feasible: bool) -> bool:
        return watch.take(accuracy, latency_ms, feasible)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain_optuna.search(table, space, spec.constraints, make(seed), 2 * len(table.configs), found)


SAMPLERS: dict[str, Callable[[int], Any]] = {
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "TPE, multivariate": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


@dataclasses.dataclass(frozen=True)
class Ideas:
    """Which of splitsearch's three ideas a search has."""

    latency: bool = False
    rungs: bool = False
    once: bool = False

    @property
    def name(self) -> str:
        """Of a search of splitsearch's own."""
        more = [", rungs"] * self.rungs + [", once per cut"] * self.once
        default = " (the default)" if self == Ideas(latency=True) else ""
        return f"splitsearch: {'front' if self.latency else 'TPE'}{''.join(more)}{default}"

    @property
    def settings(self) -> dict[str, Any]:
        """Of the study's ``search``; once per cut is a table of its own."""
        return {"sampler": "front" if self.latency else "tpe", "pruning": "rungs" if self.rungs else "none"}

    @property
    def cells(self) -> list[str]:
        """Of the table."""
        return ["yes" if has else "" for has in dataclasses.astuple(self)]


OURS = [Ideas(*on) for on in itertools.product((True, False), repeat=3)]


def row_of(name: str, ideas: Ideas, runs: Sequence[Run], exhaustive: float, own_s: float) -> str:
    """A line of the table: medians, and how many seeds reached the goal."""
    cells = ideas.cells
    for goal in GOALS:
        reached = [run.seconds[goal] for run in runs if run.seconds[goal] is not None]
        trials = [run.trials[goal] for run in runs if run.trials[goal] is not None]
        if len(reached) <= len(runs) // 2:
            cells += ["", f"{len(reached)} of {len(runs)}"]
            continue
        never = [float("inf")] * (len(runs) - len(reached))
        median = statistics.median([*reached, *never])
        cells += [f"{median:,.0f} s ({median / exhaustive:.1%})", f"{statistics.median([*trials, *never]):.0f}"]
    return f"| {name} | {' | '.join(cells)} | {len(runs)} | {own_s:.0f} |"


def main() -> None:
    """Run all searches on a table, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="+")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", help="searches with this in their names")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in options.name:
        spec = study_of(name)
        table = Table(RESULTS / f"search_table_{name}.jsonl", spec)
        shared = RESULTS / f"search_table_{name}-once.jsonl"
        once = Table(shared, study_of(f"{name}-once"), table) if shared.exists() else None
        partitions = list(dict.fromkeys(config.partition for config in table.configs))
        space = SearchSpace.from_dict(spec.raw["space"], partitions)
        assert space.size == len(table.configs), (space.size, len(table.configs))
        feasible, corner = every_result(table, spec)
        whole = Staircase(feasible, corner).hypervolume
        searches: dict[str, tuple[Ideas, Callable[..., None]]] = {
            **{
                each.name: (each, lambda *a, s=each.settings: ours(*a, **s))
                for each in OURS
                if (table.has_rungs or not each.rungs) and (once is not None or not each.once)
            },
            "splitsearch: front, all trainings taken as equally long": (Ideas(latency=True), equally_long),
            **{f"plain Optuna: {each}": (Ideas(), lambda *a, m=make: plain(*a, m)) for each, make in SAMPLERS.items()},
        }
        exhaustive = table.exhaustive_seconds
        found = kept.setdefault(name, {"rows": {}})
        found["about"] = (
            f"{len(table.configs)} configurations, {len(feasible)} within the study's limits, a front of hypervolume "
            f"{whole:.3g}; training and scoring all of them in full took {exhaustive:,.0f} s. Medians over seeds; rows "
            f"of {table.described['date']}, torch {table.described['versions']['torch']}."
        )
        if once is not None:
            found["about"] += f"\n\n{agreement(table, once)}"
        for title, (ideas, search) in searches.items():
            if options.only and options.only not in title:
                continue
            runs, start = [], time.process_time()
            asked, study = (once, study_of(f"{name}-once")) if ideas.once and once is not None else (table, spec)
            for seed in range(options.seeds):
                asked.restart()
                watch = Watch(asked, corner, whole)
                search(asked, study, space, watch, seed)
                runs.append(watch.run)
            found["rows"][title] = row_of(title, ideas, runs, exhaustive, time.process_time() - start)
            print(found["rows"][title], flush=True)
            found["rows"] = {title: found["rows"][title] for title in searches if title in found["rows"]}
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    write_page(kept)


def agreement(alone: Table, once: Table) -> str:
    """How accuracies out of one training for a cut compare with those of trainings of their own."""
    pairs = []
    for config in alone.configs:
        with contextlib.suppress(InfeasibleSplit, KeyError):
            if config.lossless == "packed":
                pairs.append((config, once.look(config).accuracy, alone.look(config).accuracy))
    ours, theirs = (np.array([pair[number] for pair in pairs]) for number in (1, 2))
    cuts: dict[object, list[int]] = {}
    for number, (config, *_) in enumerate(pairs):
        cuts.setdefault((config.partition, config.head, config.tcl), []).append(number)
    within = [float(spearmanr(ours[of], theirs[of]).statistic) for of in cuts.values() if len(set(theirs[of])) > 1]
    kinds = [f"TCL {tcl:g}: " + _difference([p for p in pairs if p[0].tcl == tcl]) for tcl in (0.0, 30.0)]
    return (
        f"One training for each cut, head and strength ({once.exhaustive_seconds:,.0f} s for all) against one for each "
        f"configuration: rank correlation (Spearman) {spearmanr(ours, theirs).statistic:.2f} over all {len(pairs)} "
        f"trainings, {statistics.median(within):.2f} within a cut (median of {len(within)}). {'; '.join(kinds)}."
    )


def _difference(pairs: Sequence[tuple[SplitConfig, float, float]]) -> str:
    by = 100 * statistics.fmean(once - alone for _, once, alone in pairs)
    return f"{abs(by):.2f} pp {'more' if by >= 0 else 'less'} accurate in the mean"


def write_page(kept: dict[str, Any]) -> None:
    """All that was run so far."""
    parts = [_PAGE.rstrip()]
    for name, found in kept.items():
        lines = [
            "| search | latency known | rungs | once per cut "
            + "".join(f"| to {goal:.0%} of the hypervolume | trials " for goal in GOALS)
            + "| seeds | own s |",
            "| --- | --- | --- | --- |" + " ---: | ---: |" * len(GOALS) + " ---: | ---: |",
            *found["rows"].values(),
        ]
        parts.append(f"## {name}\n\n{found['about']}\n\n" + "\n".join(lines))
    (RESULTS / "search_efficiency.md").write_text("\n\n".join(parts) + "\n")


def every_result(table: Table, spec: StudySpec) -> tuple[list[tuple[float, float]], Corner]:
    """All feasible results, and the corner of the hypervolume."""
    found = []
    for config in table.configs:
        try:
            result = table.look(config)
        except InfeasibleSplit:
            continue
        if not spec.constraints.broken(result):
            found.append((result.accuracy, result.latency_ms))
    study = optuna.create_study()
    study.set_user_attr("baselines", [each.to_dict() for each in table.baselines(trained=True)])
    return found, corner_of(baseline_points(study), spec.constraints)


if __name__ == "__main__":
    main()
