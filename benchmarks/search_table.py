"""Every configuration of a space, trained and scored at every rung: what searches are compared on, without training.

    python benchmarks/search_table.py quickstart   # 360 configurations; an hour on two cores
    python benchmarks/search_table.py quickstart-once   # the same, where one training answers for a cut; 20 minutes
    OMP_NUM_THREADS=1 python benchmarks/search_table.py resnet50 --part 1/2   # and 2/2 beside it: 216 configurations

The spaces are those of the studies with TCL on a grid. A rung is a training that is stopped early: the closed-form
start, reconstruction alone, all of it. Seconds are of the processor: of training and scoring, where ``full`` goes on
from ``reconstruction``; ``scoring`` is to score once more what is trained. What all configurations of a cut and head
share (features, a distilled head) is ``shared_s``. With one thread (OMP_NUM_THREADS=1) other work on the machine
changes little.

ResNet-50 has half of its study's training pictures and steps, no rung but the last, more room for accuracy to drop
(less training loses more), and no picture codecs among its baselines.

Rows are appended to benchmarks/results/search_table_NAME.jsonl as they come; a run goes on where the last one stopped.
Latencies are the study's own, at the study's own link, of this machine where they are measured.
"""

import argparse
import datetime
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from evaluators.base import Evaluator
from evaluators.result import FINE_TUNED, Evaluation
from search.spec import StudySpec, load_spec
from search.wiring import build_evaluator
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A study's space on a grid.

    Attributes:
        study: its name.
        space, finetune, constraints: what is not the study's own.
        rungs: whether the cheap ones are recorded too.
        baselines: their names; None for all.
    """

    study: str
    space: dict[str, Any]
    finetune: dict[str, Any]
    constraints: dict[str, Any] = field(default_factory=dict)
    rungs: bool = True
    baselines: list[str] | None = None


_QUICKSTART = {"ae_ratio": [0.03125, 0.125, 0.25], "bits": [1, 2, 4], "tcl": [0.0, 30.0]}
_STEPS = {"head_steps": 400, "reconstruction_steps": 400}  # the study's own when the tables were recorded
_RESNET50 = Grid(
    study="resnet50_tinyimagenet50",
    space={
        "partition": ["stem", "layer2.3", "layer3.5"],
        "ae_ratio": [0.0625, 0.25, 1.0],
        "bits": [1, 2, 4],
        "tcl": [0.0, 30.0],
    },
    finetune={"images": 2000, "head_steps": 750, "reconstruction_steps": 200},
    constraints={"max_accuracy_drop_pp": 10.0},
    rungs=False,
    baselines=[way + end for way in ("all-on-device", "server-only, raw") for end in ("", FINE_TUNED)],
)
SPACES = {
    "quickstart": Grid(study="quickstart", space=_QUICKSTART, finetune=_STEPS),
    "quickstart-once": Grid(study="quickstart", space=_QUICKSTART, finetune={**_STEPS, "once_per_cut": True}),
    "resnet50": _RESNET50,
    "resnet50-once": replace(_RESNET50, finetune={**_RESNET50.finetune, "once_per_cut": True}),
}
RESULTS = Path(__file__).parent / "results"
CACHE = Path("runs") / "benchmarks" / "search_table"


def study_of(name: str) -> StudySpec:
    """The study with its space on a grid."""
    grid = SPACES[name]
    whole = yaml.safe_load(load_spec(grid.study).file.read_text())
    whole["space"] |= grid.space
    whole["constraints"] = {**whole["constraints"], **grid.constraints}
    whole["finetune"] = {**whole["finetune"], "once_per_cut": False, **grid.finetune}
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{grid.study}.yaml"
        path.write_text(yaml.safe_dump(whole))
        return replace(load_spec(str(path)), file=path)


def rows_of(
    evaluator: Evaluator, config: SplitConfig, rungs: Mapping[str, Budget], shared_s: float
) -> Iterator[dict[str, Any]]:
    """One row for each rung of a configuration, and after all of the training one more for LZMA: the same network,
    scored once more, which is what ``scoring`` takes.
    """
    macs = {"training_macs": evaluator.price(config).training_macs}
    for rung, budget in rungs.items():
        for coder in ("packed", "lzma") if rung == "full" else ("packed",):
            coded = replace(config, lossless=coder)
            start = time.process_time()
            row = {"config": coded.to_dict(), "rung": rung, "shared_s": round(shared_s, 3)}
            try:
                found = evaluator.evaluate(coded, budget=budget)
            except InfeasibleSplit as reason:
                yield row | {"infeasible": str(reason)}
                continue
            seconds = round(time.process_time() - start, 3)
            yield row | figures(found) | macs | {"seconds": seconds}
            if coder == "lzma":
                yield {"config": config.to_dict(), "rung": "scoring", "seconds": seconds}


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


def shared_seconds(evaluator: Evaluator, config: SplitConfig, cheapest: Budget) -> float:
    """What the first configuration of a cut and head pays for all of them: the distilled head, features, timings; and
    the training, where one answers for all.
    """
    took = []
    for bits in (2, 4) if cheapest.shared else (8, 7):  # 8 and 7 are in no table, so trained by nothing else
        begun = time.process_time()
        evaluator.evaluate(replace(config, bits=bits), budget=cheapest)
        took.append(time.process_time() - begun)
    return max(0.0, took[0] - took[1])


def main() -> None:
    """Go on with a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(SPACES))
    parser.add_argument("--part", default="1/1", help="of the cuts and heads, 1/2 and 2/2 side by side")
    options = parser.parse_args()
    name, (part, parts) = options.name, map(int, options.part.split("/"))
    spec, grid, results = study_of(name), SPACES[name], RESULTS / f"search_table_{name}.jsonl"
    rungs = {rung: budget for rung, budget in spec.finetune.budget.rungs.items() if grid.rungs or rung == "full"}
    cheapest = next(iter(spec.finetune.budget.rungs.values()))
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
                        for each in evaluator.baselines(trained=True, only=grid.baselines)
                    ],
                }
            )
        shared: dict[tuple[str, str, float], float] = {}
        configs = [config for config in space.grid() if config.lossless == "packed"]
        cuts = list(dict.fromkeys((config.partition, config.head) for config in configs))[part - 1 :: parts]
        for number, config in enumerate(configs, 1):
            if (config.partition, config.head) not in cuts:
                continue
            if json.dumps(replace(config, lossless="lzma").to_dict()) in done:
                continue
            place = (config.partition, config.head, config.tcl if spec.finetune.shared else 0.0)
            try:
                if place not in shared:
                    shared[place] = shared_seconds(evaluator, config, cheapest)
            except InfeasibleSplit:
                shared[place] = 0.0
            for row in list(rows_of(evaluator, config, rungs, shared[place])):  # all of them or none
                write(row)
            print(f"{number} of {len(configs)}: {config.label}", flush=True)


if __name__ == "__main__":
    main()
