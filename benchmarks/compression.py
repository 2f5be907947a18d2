"""Accuracy against payload bytes: what training does for a feature map of few bits.

    python benchmarks/compression.py                 # every run of the plan that is not there yet
    python benchmarks/compression.py --plan stem     # one group of it; --list shows them
    python benchmarks/compression.py --table         # the table from what there is, without running anything

ResNet-50 on 50 classes of TinyImageNet, weights and pictures as in studies/resnet50_tinyimagenet50.yaml. Each run
fine-tunes one bottleneck (and the tail behind it) and sends each of the 1,250 search-validation pictures through real
bytes. Methods:

    none      principal components, levels fitted, no training at all
    plain     fine-tuning, quantization afterwards
    tcl       fine-tuning with TCL, quantization afterwards
    qat       straight-through: quantization during fine-tuning
    tcl+qat   both

A drop is paired, picture by picture, against the uncut model after the same fine-tuning with the same seed. Results are
appended to benchmarks/results/compression.jsonl as they come.
"""

import argparse
import copy
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evaluators.candidates import Candidates
from evaluators.edge.picture import from_jpeg, to_jpeg
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import FinetuneSettings
from evaluators.tasks.data import Pictures
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.features import FeatureBank
from evaluators.tasks.scoring import paired_drop_pp
from evaluators.tasks.training import Lesson, finetune
from search.spec import load_spec
from spaces.config import SplitConfig
from spaces.partition import OUTPUT

STUDY = "resnet50_tinyimagenet50"
RESULTS = Path(__file__).parent / "results" / "compression.jsonl"
QUALITIES = (5, 10, 25, 50, 75, 95)
STRENGTH = 100.0
BUDGETS = {"quick": FinetuneSettings(images=4000, epochs=1), "full": FinetuneSettings(images=20000, epochs=2)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the plan."""

    partition: str
    ae_ratio: float
    bits: int
    method: str
    seed: int = 0
    budget: str = "quick"
    tcl: float = 0.0

    def settings(self) -> FinetuneSettings:
        """How the candidate is trained."""
        settings = BUDGETS[self.budget]
        if self.method == "none":
            return replace(settings, epochs=0)
        return replace(settings, quantization="straight-through" if "qat" in self.method else "post-training")


def methods(partition: str, ae_ratio: float, bits: int, **more: object) -> Iterator[Run]:
    """All five of one configuration."""
    for method in ("none", "plain", "tcl", "qat", "tcl+qat"):
        strength = STRENGTH if "tcl" in method else 0.0
        yield Run(partition=partition, ae_ratio=ae_ratio, bits=bits, method=method, tcl=strength, **more)  # type: ignore[arg-type]


PLANS: dict[str, list[Run]] = {
    # The points that decide: three seeds.
    "stem": [
        run
        for seed, ratio in itertools.product(range(3), (1.0, 0.25))
        for run in methods("stem", ratio, 1, seed=seed)
        if run.method != "none" or seed == 0
    ],
    "bits": [run for bits, ratio in itertools.product((2, 3), (0.25, 1.0)) for run in methods("stem", ratio, bits)],
    "deeper": [
        run
        for partition, ratio in (("layer1.2", 0.125), ("layer2.3", 0.125), ("layer3.5", 0.0625))
        for bits in (1, 2)
        for run in methods(partition, ratio, bits)
    ],
    "full": [run for run in methods("stem", 0.25, 1, budget="full") if run.method in ("plain", "qat", "tcl+qat")],
}


class Bench:
    """The uncut model, its pictures, and what a run needs of them."""

    def __init__(self) -> None:
        spec = load_spec(STUDY)
        self.dataset = open_dataset(spec.data)
        self.split = SplitModel(build(spec.model).network.to(memory_format=torch.channels_last), spec.data.image_size)
        self._banks: dict[tuple[int, int], FeatureBank] = {}
        self._finetuned: dict[tuple[str, int, str], np.ndarray] = {}
        self.labels = self.dataset.validation().labels.numpy()

    def bank(self, images: int, seed: int) -> FeatureBank:
        """Feature maps of that many training pictures; one bank at a time, they are large."""
        if (images, seed) not in self._banks:
            self._banks = {(images, seed): FeatureBank(self.split, self.dataset, images, seed)}
        return self._banks[images, seed]

    def score(self, run: Run) -> dict:
        """Train, send, count."""
        start = time.perf_counter()
        settings = run.settings()
        bank = self.bank(settings.images, run.seed)
        config = SplitConfig(partition=run.partition, ae_ratio=run.ae_ratio, bits=run.bits, tcl=run.tcl, lzma=True)
        with tempfile.TemporaryDirectory() as folder:
            candidate = Candidates(Path(folder), self.split, bank, settings, run.seed).get(config)
        features = bank.features(run.partition, "validation")
        scores = {lzma: candidate.score(replace(config, lzma=lzma), features) for lzma in (False, True)}
        smallest = min(scores.values(), key=lambda score: score.payload_bytes)
        right = smallest.predictions == self.labels
        uncut = bank.scores("validation").argmax(1).numpy() == self.labels
        finetuned = self.finetuned(run.partition, run.seed, run.budget)
        drop, interval = paired_drop_pp(finetuned, right)
        return {
            **asdict(run),
            "accuracy": float(right.mean()),
            "uncut": float(uncut.mean()),
            "uncut_finetuned": float(finetuned.mean()),
            "drop_pp": drop,
            "drop_interval_pp": interval,
            "packed_bytes": scores[False].payload_bytes,
            "lzma_bytes": scores[True].payload_bytes,
            "bits_per_element": 8 * smallest.payload_bytes / sum(tensor[0].numel() for tensor in features),
            "training": candidate.history,
            "seconds": round(time.perf_counter() - start, 1),
        }

    def finetuned(self, partition: str, seed: int, budget: str) -> np.ndarray:
        """Whether the uncut model is right after the fine-tuning that candidates at this point get."""
        key = (partition, seed, budget)
        if key not in self._finetuned:
            settings = BUDGETS[budget]
            bank = self.bank(settings.images, seed)
            tail = copy.deepcopy(self.split.tail(partition))
            features, train = bank.features(partition, "train"), bank.train
            finetune(
                tail,
                None,
                Lesson(features=features, labels=train.labels, teacher=bank.scores("train")),
                settings,
                seed=seed,
            )
            with torch.no_grad():
                batches = zip(*(tensor.split(125) for tensor in bank.features(partition, "validation")))
                scores = torch.cat([tail(*(tensor.clone() for tensor in batch)) for batch in batches])
            self._finetuned[key] = scores.argmax(1).numpy() == self.labels
        return self._finetuned[key]

    def jpeg(self, quality: int) -> dict:
        """The uncut model on JPEG pictures."""
        pixels = self.dataset.validation().pixels
        files = [to_jpeg(picture, quality) for picture in pixels]
        decoded = Pictures([from_jpeg(data) for data in files], torch.from_numpy(self.labels))
        found = self.bank(4000, 0).through_head(OUTPUT, decoded)[0].argmax(1).numpy() == self.labels
        return {
            "method": "jpeg",
            "quality": quality,
            "accuracy": float(found.mean()),
            "bytes": float(np.mean([len(data) for data in files])),
        }


def key_of(row: dict) -> str:
    """What makes two rows the same run."""
    names = ("partition", "ae_ratio", "bits", "method", "seed", "budget", "tcl", "quality")
    return json.dumps([row.get(name) for name in names])


def kept() -> dict[str, dict]:
    """Rows that are there already."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {key_of(row): row for row in rows}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=list(PLANS), action="append", help="a group of runs; all of them by default")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    plan = [run for name in options.plan or PLANS for run in PLANS[name]]
    missing = [run for run in plan if key_of(asdict(run)) not in kept()]
    if options.list:
        for run in plan:
            print("missing" if run in missing else "there  ", run)
        return
    if not options.table:
        bench = Bench()
        rows = (
            bench.jpeg(quality) for quality in QUALITIES if key_of({"method": "jpeg", "quality": quality}) not in kept()
        )
        for row in itertools.chain(rows, (bench.score(run) for run in missing)):
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({name: value for name, value in row.items() if name != "training"}, flush=True)
    print(table(list(kept().values())))


def table(rows: list[dict]) -> str:
    """Markdown: one line for each configuration and method, mean over seeds."""
    lines = ["| cut | AE | bits | method | seeds | accuracy | drop pp | bytes | with LZMA | bits an element |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    runs = [row for row in rows if row["method"] != "jpeg"]

    def group(row: dict) -> tuple:
        return row["budget"], row["partition"], row["ae_ratio"], row["bits"], row["method"], row["tcl"]

    for (budget, partition, ratio, bits, method, tcl), found in itertools.groupby(sorted(runs, key=group), group):
        same = list(found)
        mean = {name: float(np.mean([row[name] for row in same])) for name in
                ("accuracy", "drop_pp", "packed_bytes", "lzma_bytes", "bits_per_element")}  # fmt: skip
        what = f"{method} {tcl:g}" if tcl else method
        what += "" if budget == "quick" else f" ({budget})"
        lines.append(
            f"| {partition} | {ratio:g} | {bits} | {what} | {len(same)} | {mean['accuracy']:.1%} "
            f"| {mean['drop_pp']:+.1f} | {mean['packed_bytes']:,.0f} | {mean['lzma_bytes']:,.0f} "
            f"| {mean['bits_per_element']:.3f} |"
        )
    for row in sorted((row for row in rows if row["method"] == "jpeg"), key=lambda row: row["quality"]):
        lines.append(f"| input | | | JPEG {row['quality']} | | {row['accuracy']:.1%} | | {row['bytes']:,.0f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
