"""Own and distilled heads against picture codecs: accuracy, bytes, and what they take on a Raspberry Pi.

    python benchmarks/squeeze.py                  # every run of the plan that is not there yet, then the tables
    python benchmarks/squeeze.py --plan decides   # one group of it; --list shows them all
    python benchmarks/squeeze.py --table          # tables alone, from what there is

ResNet-50 on 50 classes of TinyImageNet, weights and images as in studies/resnet50_tinyimagenet50.yaml. Each run trains
one candidate and sends each of the 1,250 search-validation images through real bytes. Drops are paired, image by image,
against the uncut model with renewed BatchNorm statistics after the same fine-tuning on the same images (mirror images
too where the candidate had them), same seed. Picture codecs stand before a network that was fine-tuned as long on
images of that codec, with the BatchNorm statistics of each quality.

Results are appended to benchmarks/results/squeeze.jsonl as they come, tables go to benchmarks/results/squeeze.md.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluators.edge.picture_codecs import CODECS, QUALITIES, PictureCoding
from evaluators.identity import arithmetic, state_digest
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import FinetuneSettings
from evaluators.store import Store, StoreKey
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.intervals import paired_drop_pp
from evaluators.training.distilled_heads import DistilledHeads
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.references import Whole, answers, as_coded, at_quality, finetuned_behind, finetuned_uncut
from evaluators.training.renewal import kept_statistics, renewed
from evaluators.training.trainers import FinetuneTrainer, StoredTrainer
from search.spec import load_spec
from spaces.config import SplitConfig

STUDIES = {"resnet50": "resnet50_tinyimagenet50", "efficientnetv2s": "efficientnet_v2_s_tinyimagenet50"}
RESULTS = Path(__file__).parent / "results" / "squeeze.jsonl"
STORE = Path("runs") / "benchmarks" / "squeeze"
QUICK = FinetuneSettings(images=4000, epochs=1, head_steps=1500, quantization="straight-through")
FULL = FinetuneSettings(
    images=24_980,
    epochs=1,
    head_steps=4000,
    reconstruction_steps=1500,
    learning_rate=5e-4,
    tail_learning_rate=1e-4,
    quantization="straight-through",
)
BUDGETS = {"quick": QUICK, "full": FULL}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the plan: a configuration, or a picture codec with the networks behind all its qualities."""

    partition: str = ""
    head: str = "own"
    ae_ratio: float = 1.0
    bits: int = 1
    stride: int = 1
    tcl: float = 0.0
    rate: float = 0.0
    codec: str = ""
    seed: int = 0
    budget: str = "full"
    model: str = "resnet50"

    @property
    def config(self) -> SplitConfig:
        """Of a candidate, with the context coder."""
        names = ("partition", "head", "ae_ratio", "bits", "stride", "tcl", "rate")
        return SplitConfig(**{name: getattr(self, name) for name in names}, coder="context")


def _distilled(ae_ratio: float, seed: int, **more: Any) -> Run:
    return Run(partition="layer2.3", head="distilled", ae_ratio=ae_ratio, seed=seed, **more)


PLANS: dict[str, list[Run]] = {
    "decides": [_distilled(ratio, seed) for seed in (0, 1, 2) for ratio in (0.125, 0.0625)],
    "own": [
        replace(_distilled(0.125, 0), head="own"),
        Run(partition="stem", ae_ratio=0.25),
        Run(partition="stem", ae_ratio=1.0, stride=2),
    ],
    "codecs": [Run(codec=codec) for codec in ("webp", "jpeg")],
    "fewer": [_distilled(ratio, 0) for ratio in (0.03125, 0.25)],
    "cuts": [
        Run(partition=cut, head=head, ae_ratio=ratio, budget="quick")
        for cut, ratio in (("stem", 0.25), ("layer2.3", 0.125), ("layer3.5", 0.25))
        for head in ("own", "distilled")
    ],
    "rate": [_distilled(0.125, 0, rate=rate) for rate in (0.1, 0.5)],
    "tcl": [_distilled(0.125, 0, tcl=tcl) for tcl in (10.0,)],
    "wide": [replace(_distilled(0.125, 0), head="distilled-wide")],
}


class Bench:
    """One uncut model, its images, and what a run needs of them."""

    def __init__(self, model: str) -> None:
        spec = load_spec(STUDIES[model])
        self.dataset, self.task = open_dataset(spec.data), Classification()
        network = build(spec.model).network.to(memory_format=torch.channels_last)
        self.split, size = SplitModel(network, spec.data.image_size), spec.data.image_size
        self.depends_on = {"weights": state_digest(network), "images": self.dataset.fingerprint, **arithmetic()}
        key = StoreKey("batchnorm-statistics", self.depends_on)
        self.cache = FeatureCache(
            self.split,
            self.dataset,
            self.task,
            lambda: renewed(
                network, size, self.dataset, self.task, lambda make: kept_statistics(Store(STORE), key, make)
            ),
        )

    def right(self, scores: torch.Tensor) -> np.ndarray:
        """Which of the search-validation images are classified right."""
        return self.task.judge(scores, self.cache.images("validation")).right

    def rows(self, run: Run) -> Iterator[dict[str, Any]]:
        """Train, send, count: one row of a candidate, one of each quality of a codec."""
        start = time.perf_counter()
        for row in self._coded(run) if run.codec else [self._split(run)]:
            uncut = {"uncut": float(self.right(self.cache.answers("validation")).mean())}
            yield {**asdict(run), **row, **uncut, "seconds": round(time.perf_counter() - start, 1)}

    def _split(self, run: Run) -> dict[str, Any]:
        settings, store = BUDGETS[run.budget], Store(STORE)
        heads = DistilledHeads(self.split, self.cache, store, self.depends_on)
        inner = FinetuneTrainer(self.split, self.cache, settings, heads)
        trainer = StoredTrainer(inner, store, self.depends_on, self.split, settings, carries_image_size=False)
        candidate = trainer.train(run.config, settings.budget, run.seed)
        scores = {
            coder: candidate.score(replace(run.config, lzma=coder == "lzma", coder=coder_of(coder)), self.cache)
            for coder in ("packed", "lzma", "context")
        }
        right = self.right(scores["packed"].answers)
        reference = self._finetuned(run)
        drop, interval = paired_drop_pp(reference, right)
        head = candidate.head or self.split.head(run.partition)
        return {
            "accuracy": float(right.mean()),
            "uncut_finetuned": float(reference.mean()),
            "drop_pp": drop,
            "drop_interval_pp": interval,
            "kl": self.task.divergence(self._base_scores(), scores["packed"].answers),
            **{f"{coder}_bytes": score.payload_bytes for coder, score in scores.items()},
            "head_macs": macs(head, self.dataset.picture.size),
            "training": candidate.history,
        }

    def _base_scores(self) -> torch.Tensor:
        """Class scores of the renewed network on the search-validation images."""
        return answers(self.cache.base.head("output"), self.cache, self.cache.images("validation"))

    def _finetuned(self, run: Run) -> np.ndarray:
        """Whether the uncut model is right after the fine-tuning that such candidates get."""
        mirrored = run.head != "own"
        path = STORE / f"finetuned-{run.model}-{run.partition}-{run.seed}-{run.budget}-{mirrored}.npy"
        if not path.exists():
            settings = BUDGETS[run.budget]
            network = finetuned_uncut(self.cache, run.partition, settings, run.seed, mirrored=mirrored)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.right(answers(network, self.cache, self.cache.images("validation"))))
        return np.load(path)

    def _coded(self, run: Run) -> Iterator[dict[str, Any]]:
        codec, settings = CODECS[run.codec], BUDGETS[run.budget]
        network: Whole = finetuned_behind(codec, self.cache, "stem", settings, run.seed)
        for quality in QUALITIES:
            coding = PictureCoding(codec, quality)
            tuned = at_quality(network, coding, self.cache, TrainSample(settings.images, run.seed))
            images, size = as_coded(self.cache.images("validation"), coding)
            found = {"accuracy": tuned, "accuracy_given": self.split.head("output")}
            shares = {name: float(self.right(answers(each, self.cache, images)).mean()) for name, each in found.items()}
            yield {"quality": quality, "bytes": size, **shares}


def coder_of(coder: str) -> str | None:
    """As a configuration spells it."""
    return coder if coder not in ("packed", "lzma") else None


def macs(head: nn.Module, size: int) -> int:
    """Multiply-accumulate operations for one picture."""
    from evaluators.models.work import module_work

    return module_work(head, [torch.zeros(1, 3, size, size)]).macs


def kept() -> list[dict[str, Any]]:
    """Rows that are there already."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def is_there(run: Run, rows: list[dict[str, Any]]) -> bool:
    """Whether a run has its rows."""
    return any(all(row[name] == value for name, value in asdict(run).items()) for row in rows)


def main() -> None:
    """Run what is missing, then make the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=list(PLANS), action="append", help="a group of runs; all of them by default")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    plan = [run for name in options.plan or PLANS for run in PLANS[name]]
    missing = [run for run in plan if not is_there(run, kept())]
    if options.list:
        for run in plan:
            print("missing" if run in missing else "there  ", run)
        return
    benches: dict[str, Bench] = {}
    for run in [] if options.table else missing:
        bench = benches.setdefault(run.model, Bench(run.model))
        for row in bench.rows(run):
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({name: value for name, value in row.items() if name != "training"}, flush=True)


if __name__ == "__main__":
    main()
