"""Searched live, with real trainings: splitsearch's searches and the script that a competent user writes, equally long.

    python benchmarks/live.py quickstart --seconds 120
    OMP_NUM_THREADS=1 python benchmarks/live.py resnet50_tinyimagenet50 --search "front (the default)" \
        --search "plain TPE" --beside

Each search is a process of its own over the study's whole space, one after the other on the quiet machine or, with
``--beside``, all at once, a core for each. What all of them need before they begin (the uncut network, its baselines,
timings) is made once and shared; what a search trains is its own. A trial counts if it has ended within the seconds.
The hypervolume is between the front, the drop that the study allows, and the slowest baseline without a picture codec:
nobody has to wait for codecs, of which there are three times ten. Rows are appended to benchmarks/results/live.jsonl,
the table goes to live.md.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import plain_optuna

from evaluators.base import Evaluator
from evaluators.result import FINE_TUNED, Price
from search.front import corner_of
from search.hypervolume import Corner, Staircase
from search.objective import prepare, run_trials
from search.points import baseline_points, trial_points
from search.spec import StudySpec, load_spec
from search.storage import start_or_resume
from search.wiring import build_evaluator
from spaces.config import SplitConfig
from spaces.space import SearchSpace

RESULTS = Path(__file__).parent / "results"
CACHE = Path("runs") / "benchmarks" / "live"
TRAINED = (
    "candidate",
    "distilled-head",
    "cut-training",
    "context-tables",
)  # kinds of the store that are a search's own
UNCODED = [way + end for way in ("all-on-device", "server-only, raw") for end in ("", FINE_TUNED)]
EQUALLY_LONG = "front, all trainings taken as equally long"
MOMENTS = (0.25, 0.5, 1.0)  # of the time
SAMPLERS: dict[str, Callable[[int], Any]] = {
    "plain TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "plain GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
}
OURS = {"front (the default)": False, EQUALLY_LONG: False, "front, once per cut": True}
_PAGE = """# Searched live

`python benchmarks/live.py`; its first lines say how. Hypervolumes are parts of the largest that a search of the same
study, machine and seed came to.
"""
Result = tuple[float, float, float, bool]  # seconds, accuracy, latency in ms, whether it keeps the limits


def spec_of(study: str, way: str, seed: int) -> StudySpec:
    """The study with its whole space, for one of the searches."""
    spec = load_spec(study)
    space = SearchSpace.from_dict(spec.raw["space"], ["any"])
    shared = itertools.product(sorted(space.ae_ratios), sorted(space.bits)) if OURS.get(way, False) else ()
    return replace(
        spec,
        finetune=replace(spec.finetune, shared=tuple(shared)),
        search=replace(spec.search, sampler="front", pruning="none", patience=None, trials=10_000, seed=seed),
    )


def searched(study: str, way: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One search in this process. No way is to prepare what all of them need.

    Returns:
        ``results``, a :data:`Result` each, and ``corner``.
    """
    spec = spec_of(study, way, seed)
    evaluator = build_evaluator(spec, folder)
    evaluator.baselines = partial(evaluator.baselines, only=UNCODED)  # type: ignore[method-assign]
    if way == EQUALLY_LONG:
        evaluator.price = partial(untold, evaluator.price)  # type: ignore[method-assign]
    space = spec.space(list(evaluator.partition_points()))
    opened = start_or_resume(spec, space, folder, contents=evaluator.identity(), ask_price=evaluator.price)
    prepare(opened, space, evaluator, lambda said: print(said, file=sys.stderr, flush=True))
    corner, results, start = corner_of(baseline_points(opened), spec.constraints), list[Result](), time.perf_counter()

    def found(_: Any, accuracy: float, latency_ms: float, feasible: bool) -> bool:
        results.append((time.perf_counter() - start, accuracy, latency_ms, feasible))
        return results[-1][0] >= seconds

    def finished() -> None:
        last = max(trial_points(opened), key=lambda point: point.trial or 0)
        found(None, last.accuracy, last.latency_ms, last.feasible)

    if way in SAMPLERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain_optuna.search(evaluator, space, spec.constraints, SAMPLERS[way](seed), spec.search.trials, found)
    elif way:
        run_trials(opened, spec, space, evaluator, folder, timeout_s=seconds, finished=finished)
    return {"results": results, "corner": [corner.accuracy, corner.latency_ms], **_about(evaluator)}


def untold(price: Callable[[SplitConfig], Price], config: SplitConfig) -> Price:
    """A price that does not say what training takes."""
    return replace(price(config), training_macs=0.0)


def _about(evaluator: Evaluator) -> dict[str, Any]:
    described = evaluator.describe()
    return {"compute": described.get("compute")}


def hypervolume(row: dict[str, Any], until_s: float, corner: Corner) -> float:
    """Of what a search had found after so many seconds."""
    kept = [(accuracy, ms) for at, accuracy, ms, feasible in row["results"] if feasible and at <= until_s]
    return Staircase(kept, corner).hypervolume


@contextlib.contextmanager
def cache_of(way: str, study: str) -> Iterator[dict[str, str]]:
    """The environment of one search: a store with all that is shared, and nothing that any search trained."""
    shared, own = CACHE / study / "shared", CACHE / study / "own" / way
    if way:
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(shared, own, ignore=shutil.ignore_patterns(*TRAINED, ".locks"), copy_function=os.link)
    place = own if way else shared
    yield {**os.environ, "SPLITSEARCH_CACHE": str(place.resolve())}
    if way:
        shutil.rmtree(own, ignore_errors=True)


def run(study: str, way: str, seed: int, seconds: float) -> dict[str, Any]:
    """One search in a process of its own."""
    place = CACHE / study / "runs" / (way or "shared")
    shutil.rmtree(place, ignore_errors=True)
    arguments = [study, "--one", way, "--seed", str(seed), "--seconds", str(seconds), "--folder", str(place)]
    with cache_of(way, study) as environment:
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of hypervolumes, as parts of the largest of the same study, machine and seed."""
    lines = [
        "| study | machine | seconds | seed | at once | search | trials | "
        + " | ".join(f"after {moment:.0%} of the time" for moment in MOMENTS)
        + " |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: |" + " ---: |" * len(MOMENTS),
    ]
    places = ("study", "machine", "seed")  # of what can be compared
    rows = [{**row, "machine": row.get("machine", "")} for row in rows]
    for row in sorted(rows, key=lambda row: [row[name] for name in places]):
        peers = [each for each in rows if all(each[name] == row[name] for name in places)]
        accuracies, latencies = zip(*(each["corner"] for each in peers), strict=True)
        corner = Corner(accuracy=max(accuracies), latency_ms=min(latencies))  # rows of before had codecs among them
        most = max(hypervolume(each, each["seconds"], corner) for each in peers) or 1.0
        parts = (hypervolume(row, moment * row["seconds"], corner) / most for moment in MOMENTS)
        ended = sum(at <= row["seconds"] for at, *_ in row["results"])
        cells = [
            row["study"],
            row["machine"],
            f"{row['seconds']:g}",
            row["seed"],
            row.get("at_once", 1),
            row["search"],
            ended,
            *(f"{part:.1%}" for part in parts),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", action="append", choices=[*OURS, *SAMPLERS], help="one of them; all unless given")
    parser.add_argument("--beside", action="store_true", help="all at once")
    parser.add_argument("--machine", default=platform.machine(), help="what to call it where rows of several are kept")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(searched(options.study, options.one, options.seed, options.seconds, options.folder)))
        return
    kept = RESULTS / "live.jsonl"
    run(options.study, "", options.seed, 0.0)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    asked = {name: getattr(options, name) for name in ("study", "machine", "seed", "seconds")}
    there = {row["search"] for row in rows if asked.items() <= row.items()}
    missing = [way for way in options.search or (*OURS, *SAMPLERS) if way not in there]
    at_once = len(missing) if options.beside else 1
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        started = {pool.submit(run, options.study, way, options.seed, options.seconds): way for way in missing}
        for ended in as_completed(started):
            way, found = started[ended], ended.result()
            row = {**asked, "search": way, "at_once": at_once, "date": datetime.date.today().isoformat(), **found}
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(way, len(found["results"]), "trials", flush=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    (RESULTS / "live.md").write_text(f"{_PAGE}\n{table(rows)}\n")


if __name__ == "__main__":
    main()
