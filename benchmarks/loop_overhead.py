"""What the search loop costs besides evaluating: milliseconds a trial with an evaluator that takes none.

    python benchmarks/loop_overhead.py       # some two minutes; writes benchmarks/results/loop-overhead.md

Each study is one of its own in an SQLite file with SQLite's usual durability, as users have it. A trial's time is that
of the whole loop, the sampler included, in blocks; the front is read from a study of 10,000 trials as ``splitsearch
front`` reads it. Beside them stands a loop of Optuna's own with a random sampler that keeps the same result of each
trial in such a file: what is above that row is ours. Times of one run on one machine: look at the ratios.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import optuna
import yaml

from evaluators.edge.circumstances import machine
from evaluators.fake import FakeEvaluator
from search.front import pareto_front
from search.objective import prepare, run_trials
from search.points import EVALUATION, trial_points
from search.spec import StudySpec, load_spec, with_trials
from search.storage import OwnStudy, open_study, start_or_resume
from spaces.errors import InfeasibleSplit
from spaces.space import SearchSpace

RESULTS = Path(__file__).parent / "results" / "loop-overhead.md"
STUDY = {
    "format": 1,
    "name": "overhead",
    "model": {"name": "torchvision/resnet18", "num_classes": 10},
    "data": {"name": "digits", "image_size": 32},
    "link": {"rate_mb_per_s": 1.0},
    "space": {
        "partition": "all",
        "ae_ratio": [0.0625, 0.125, 0.25, 0.5, 1.0],
        "bits": [1, 2, 3, 4, 8],
        "tcl": {"low": 1.0, "high": 1000.0, "log": True, "off": True},
        "lzma": [False, True],
    },
}
BLOCKS = (100, 200, 300, 600, 1000)
SAMPLERS = ("front", "tpe", "random")
MANY = 10_000


def started(spec: StudySpec, folder: Path) -> tuple[OwnStudy, SearchSpace, FakeEvaluator]:
    """A study that is ready for its first trial."""
    evaluator = FakeEvaluator()
    space = spec.space(list(evaluator.partition_points()))
    study = start_or_resume(spec, space, folder, contents=evaluator.identity(), ask_price=evaluator.price)
    prepare(study, space, evaluator, lambda _: None)
    return study, space, evaluator


def milliseconds(file: Path, folder: Path) -> list[float]:
    """Of a trial, on average in each block."""
    spec = load_spec(str(file))
    study, space, evaluator = started(spec, folder)
    found, before = [], 0
    for until in BLOCKS:
        start = time.perf_counter()
        run_trials(study, with_trials(spec, until), space, evaluator, folder)
        found.append(1000 * (time.perf_counter() - start) / (until - before))
        before = until
    return found


def plain_milliseconds(file: Path, folder: Path) -> list[float]:
    """The same of Optuna alone: asked, the result kept with the trial, told."""
    spec, evaluator = load_spec(str(file)), FakeEvaluator()
    space = spec.space(list(evaluator.partition_points()))
    folder.mkdir()
    sampler = optuna.samplers.RandomSampler(seed=0)
    storage = f"sqlite:///{folder / 'plain.db'}"
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"], sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        try:
            result = evaluator.evaluate(space.suggest(trial))
        except InfeasibleSplit:
            return 0.0, 1e6
        trial.set_user_attr(EVALUATION, json.dumps(result.to_dict()))
        return result.accuracy, result.latency_ms

    found, before = [], 0
    for until in BLOCKS:
        start = time.perf_counter()
        study.optimize(objective, n_trials=until - before)
        found.append(1000 * (time.perf_counter() - start) / (until - before))
        before = until
    return found


def seconds_to_read(file: Path, folder: Path) -> float:
    """Of opening a study of 10,000 trials and computing its front."""
    spec = load_spec(str(file))
    study, space, evaluator = started(spec, folder)
    configs = [space.suggest(optuna.trial.FixedTrial(params)) for params in drawn(space, MANY)]
    trials = []
    for config in configs:
        try:
            found = evaluator.evaluate(config)
        except InfeasibleSplit:
            continue
        attributes = {EVALUATION: json.dumps(found.to_dict())}
        values = (found.accuracy, found.latency_ms)
        trials.append(optuna.trial.create_trial(values=values, user_attrs=attributes))
    study.add_trials(trials * 2)
    start = time.perf_counter()
    opened = open_study(spec, folder)
    points = trial_points(opened)
    pareto_front(points)
    taken = time.perf_counter() - start
    print(f"{len(points):,} trials read in {taken:.2f} s")
    return taken * MANY / len(points)


def drawn(space: SearchSpace, count: int) -> list[dict]:
    """Parameters of configurations at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count // 2 + count // 8):
        trial = study.ask()
        space.suggest(trial)
        found.append(trial.params)
    return found


def row(name: str, found: list[float]) -> str:
    """A line of the table, printed."""
    line = f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in found) + " |"
    print(line)
    return line


def main() -> None:
    """Run the samplers and the reading, print, keep."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for sampler in SAMPLERS:
            file = Path(scratch) / f"{sampler}.yaml"
            file.write_text(yaml.safe_dump(STUDY | {"search": {"sampler": sampler, "trials": 1000, "seed": 0}}))
            rows.append(row(sampler, milliseconds(file, Path(scratch) / sampler)))
        rows.append(row("Optuna alone, random", plain_milliseconds(file, Path(scratch) / "plain")))
        seconds = seconds_to_read(file, Path(scratch) / "many")
    spans = [f"to {until}" for until in BLOCKS]
    lines = [
        "# What the loop costs",
        "",
        f"`python benchmarks/loop_overhead.py`, seed 0, {machine()['processor']}, Optuna {optuna.__version__}.",
        "Milliseconds a trial with the fake evaluator, which takes none, on average over the trials up to each number",
        "from the one before. The last row is a loop of Optuna's own, which keeps the same result with each trial.",
        "",
        f"| sampler | {' | '.join(spans)} |",
        f"| --- |{' ---: |' * len(spans)}",
        *rows,
        "",
        f"A front of {MANY:,} trials is read in {seconds:.1f} s.",
        "",
    ]
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
