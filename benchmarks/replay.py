"""How long a replay takes: a study of 1,000 trials, composed anew for other hardware.

    python benchmarks/replay.py          # seconds; prints a table, see benchmarks/results/replay.md

The study is in an SQLite file, as a user's is; its trials are those of the closed-form evaluator. Timed is everything
from opening the study to the last result, without starting Python.
"""

import itertools
import json
import tempfile
import time
from pathlib import Path

import optuna

from evaluators.fake import FakeEvaluator
from evaluators.latency.links import load_link
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import load_machine
from evaluators.latency.table import StageTable
from evaluators.store import Store
from search import objective, replay, spec, storage
from spaces.config import SplitConfig

TRIALS = 1000
REPEATS = 5
POINTS = {"stem": 7.0, "middle": 8.0, "deep": 9.0, "output": 40.0, "input": 0.0}
STUDY = """
{format: 1, name: many, model: {name: torchvision/resnet18, num_classes: 10}, data: {name: digits, image_size: 32},
 link: {rate_mb_per_s: 1.0}, space: {partition: all, ae_ratio: 1.0, bits: 1}}
"""
BOARD = """
{{format: 1, name: board, kind: recorded, model: torchvision/resnet18, image_size: 32, runtime: r, threads: 1,
 precision: fp32, date: d, source: s, timings: {{head: {rows}, encode: {rows}, pack: {rows}, compress: {rows}}}}}
"""


def fill(loaded: spec.StudySpec, folder: Path) -> None:
    """A finished study of so many trials."""
    evaluator = FakeEvaluator()
    space = loaded.space(list(evaluator.partition_points()))
    opened = storage.start_or_resume(loaded, space, folder, contents=evaluator.identity(), ask_price=evaluator.price)
    objective.prepare(opened, space, evaluator, lambda _: None)
    grid = itertools.product(("stem", "middle"), range(1, 9), ("packed", "lzma"), range(1, 100))
    trials = []
    for partition, bits, coder, percent in itertools.islice(grid, TRIALS):
        found = evaluator.evaluate(SplitConfig(partition=partition, ae_ratio=percent / 100, bits=bits, lossless=coder))
        values, kept = (found.accuracy, found.latency_ms), {"evaluation": json.dumps(found.to_dict())}
        trials.append(optuna.trial.create_trial(values=values, user_attrs=kept))
    opened.add_trials(trials)


def main() -> None:
    """Fill a study, then replay it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "many.yaml").write_text(STUDY)
        (folder / "board.yaml").write_text(BOARD.format(rows=POINTS))
        loaded = spec.load_spec(str(folder / "many.yaml"))
        fill(loaded, folder)
        device = machine_for(load_machine(str(folder / "board.yaml"), "device"), StageTable(Store(folder / "none")))
        links = tuple(load_link(f"rate_{rate}_mb_per_s") for rate in (1, 2, 5, 10))
        results = {
            "another link": replay.Changes(links=links[:1]),
            "another device": replay.Changes(device=device),
            "another device, four links": replay.Changes(device=device, links=links),
        }
        print(f"| {TRIALS:,} trials | seconds, median of {REPEATS} |\n| --- | ---: |")
        for name, changes in results.items():
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                replay.replay_study(storage.open_study(loaded, folder), loaded, changes)
                times.append(time.perf_counter() - start)
            print(f"| {name} | {sorted(times)[REPEATS // 2]:.2f} |")


if __name__ == "__main__":
    main()
