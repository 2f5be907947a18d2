"""Every configuration of a space, trained and scored at every rung: what searches are compared on, without training.

    python benchmarks/search_table.py quickstart   # 360 configurations; an hour on two cores
    python benchmarks/search_table.py quickstart-once   # the same, where one training answers for a cut; 20 minutes
    python benchmarks/search_table.py resnet50     # 240 configurations; many hours

The spaces are those of the studies with TCL on a grid. A rung is a training that is stopped early: the closed-form
start, reconstruction alone, all of it. Seconds are of the processor: of training and scoring, where ``full`` goes on
from ``reconstruction``; ``scoring`` is to score once more what is trained. What all configurations of a cut and head
share (features, a distilled head) is ``shared_s``. With one thread (OMP_NUM_THREADS=1) other work on the machine
changes little.

Rows are appended to benchmarks/results/search_table_NAME.jsonl as they come; a run goes on where the last one stopped.
Latencies are the study's own, at the study's own link, of this machine where they are measured.
"""

import argparse
import contextlib
import datetime
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from evaluators.base import Evaluator
from evaluators.result import Evaluation
from search.spec import StudySpec, load_spec
from search.wiring import build_evaluator
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

_QUICKSTART = {"ae_ratio": [0.03125, 0.125, 0.25], "bits": [1, 2, 4], "tcl": [0.0, 30.0]}
_STEPS = {"head_steps": 400, "reconstruction_steps": 400}  # the study's own when the tables were recorded
SPACES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "quickstart": ("quickstart", _QUICKSTART, _STEPS),
    "quickstart-once": ("quickstart", _QUICKSTART, {**_STEPS, "once_per_cut": True}),
    "resnet50": (
        "resnet50_tinyimagenet50",
        {
            "partition": ["stem", "layer1.2", "layer2.3", "layer3.5"],
            "ae_ratio": [0.0625, 0.125, 0.25, 0.5, 1.0],
            "bits": [1, 2, 4],
            "tcl": [0.0, 30.0],
        },
        {},
    ),
}
RESULTS = Path(__file__).parent / "results"
CACHE = Path("runs") / "benchmarks" / "search_table"


def study_of(name: str) -> StudySpec:
    """The study with its space on a grid."""
    study, changes, training = SPACES[name]
    whole = yaml.safe_load(load_spec(study).file.read_text())
    whole["space"] |= changes
    whole["finetune"] = {**whole["finetune"], "once_per_cut": False, **training}
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{study}.yaml"
        path.write_text(yaml.safe_dump(whole))
        return replace(load_spec(str(path)), file=path)


def rows_of(evaluator: Evaluator, config: SplitConfig, full: Budget, shared_s: float) -> Iterator[dict[str, Any]]:
    """One row for each rung of a configuration, and one more for LZMA after all of the training."""
    for rung, budget in full.rungs.items():
        for coder in ("packed", "lzma") if rung == "full" else ("packed",):
            coded = replace(config, lossless=coder)
            start = time.process_time()
            row = {"config": coded.to_dict(), "rung": rung, "shared_s": round(shared_s, 3)}
            try:
                found = evaluator.evaluate(coded, budget=budget)
            except InfeasibleSplit as reason:
                yield row | {"infeasible": str(reason)}
                continue
            yield row | figures(found) | {"seconds": round(time.process_time() - start, 3)}
    with contextlib.suppress(InfeasibleSplit):
        start = time.process_time()
        evaluator.evaluate(config)
        yield {"config": config.to_dict(), "rung": "scoring", "seconds": round(time.process_time() - start, 3)}


def figures(found: Evaluation) -> dict[str, Any]:
    """What a search gets to know of an evaluation."""
    return {
        "accuracy": found.accuracy,
        "accuracy_drop_pp": found.accuracy_drop_pp,
        "latency": found.latency.to_dict(),
        "payload_bytes": found.payload_bytes,
        "busy_ms": found.link_busy_ms,
        "device_model_mb": found.details["device_model_mb"],
        "divergence": found.details.get("divergence"),
    }


def shared_seconds(evaluator: Evaluator, config: SplitConfig, full: Budget) -> float:
    """What the first configuration of a cut and head pays for all of them: the distilled head, features, timings; and
    the training, where one answers for all.
    """
    took = []
    least = dict(full.rungs).get("start", full)
    for bits in (2, 4) if full.shared else (8, 7):  # the latter are of no table, so trained neither before nor after
        begun = time.process_time()
        evaluator.evaluate(replace(config, bits=bits), budget=least)
        took.append(time.process_time() - begun)
    return max(0.0, took[0] - took[1])


def main() -> None:
    """Go on with a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(SPACES))
    parser.add_argument("--part", default="1/1", help="of the configurations, 1/2 and 2/2 side by side")
    options = parser.parse_args()
    name, (part, parts) = options.name, map(int, options.part.split("/"))
    spec, results = study_of(name), RESULTS / f"search_table_{name}.jsonl"
    evaluator = build_evaluator(spec, CACHE / name)
    space = spec.space(list(evaluator.partition_points()))
    evaluator.prepare(space, print)
    there = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {json.dumps(row["config"]) for row in there if row.get("rung") == "full"}
    with results.open("a") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        if not there and part == 1:
            write(
                {
                    "study": name,
                    "date": f"{datetime.date.today()}",
                    "seed": spec.search.seed,
                    "space": spec.raw["space"],
                    "versions": {"python": platform.python_version(), "torch": torch.__version__},
                    "baselines": [
                        {"name": each.name, "accuracy": each.accuracy, "latency_ms": each.latency_ms}
                        for each in evaluator.baselines(trained=True)
                    ],
                }
            )
        shared: dict[tuple[str, str, float], float] = {}
        configs = [config for config in space.grid() if config.lossless == "packed"]
        for number, config in list(enumerate(configs, 1))[part - 1 :: parts]:
            if json.dumps(replace(config, lossless="lzma").to_dict()) in done:
                continue
            place = (config.partition, config.head, config.tcl if spec.finetune.shared else 0.0)
            try:
                if place not in shared:
                    shared[place] = shared_seconds(evaluator, config, spec.finetune.budget)
            except InfeasibleSplit:
                shared[place] = 0.0
            for row in rows_of(evaluator, config, spec.finetune.budget, shared[place]):
                write(row)
            print(f"{number} of {len(configs)}: {config.label}", flush=True)


if __name__ == "__main__":
    main()
