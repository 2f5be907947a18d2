"""Accuracy against payload bytes: what training does for a feature map of few bits.

    python benchmarks/compression.py                 # every run of the plan that is not there yet
    python benchmarks/compression.py --plan stem     # one group of it; --list shows them
    python benchmarks/compression.py --table         # table and plot from what there is, without running anything

ResNet-50 on 50 classes of TinyImageNet, weights and images as in studies/resnet50_tinyimagenet50.yaml. Each run
fine-tunes one bottleneck (and the tail behind it) and sends each of the 1,250 search-validation images through real
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
import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import wire
from evaluators.edge.picture_codecs import CODECS, PictureCoding
from evaluators.identity import arithmetic, state_digest
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import FinetuneSettings
from evaluators.store import Store
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.intervals import paired_drop_pp
from evaluators.training.candidate import Candidate
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.references import answers, as_coded, finetuned_uncut
from evaluators.training.trainers import FinetuneTrainer, StoredTrainer
from search.spec import load_spec
from spaces.config import SplitConfig
from spaces.partition import INPUT, OUTPUT

STUDY = "resnet50_tinyimagenet50"
RESULTS = Path(__file__).parent / "results" / "compression.jsonl"
KEPT = Path("runs") / "benchmarks" / "splits"  # trained candidates, some 90 MB each; benchmarks/coders.py reads them
QUALITIES = (5, 10, 25, 50, 75, 95)
STRENGTHS = {"tcl": 100.0, "tcl+qat": 10.0}  # of those tried with seed 0, the group "strengths", the best
BUDGETS = {
    "quick": FinetuneSettings(images=4000, epochs=1),
    "full": FinetuneSettings(images=24_980, epochs=1),  # every training picture
}


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
            return replace(settings, epochs=0, reconstruction_steps=0)
        return replace(settings, quantization="straight-through" if "qat" in self.method else "post-training")


DEEPER = (("layer2.3", 0.125), ("layer3.5", 0.0625))
METHODS = ("none", "plain", "tcl", "qat", "tcl+qat")


def methods(partition: str, ae_ratio: float, bits: int, among: Sequence[str] = METHODS, **more: Any) -> Iterator[Run]:
    """All five of one configuration, or some of them."""
    for method in among:
        strength = STRENGTHS.get(method, 0.0)
        yield Run(partition=partition, ae_ratio=ae_ratio, bits=bits, method=method, tcl=strength, **more)


STEM_16, STEM_64 = ("stem", 0.25), ("stem", 1.0)
TRAINED = METHODS[1:]


def points(cuts: Sequence[tuple[str, float]], bits: Sequence[int], among: Sequence[str], seed: int = 0) -> list[Run]:
    """The methods at each of the cuts and bit-widths."""
    return [run for cut, ratio in cuts for width in bits for run in methods(cut, ratio, width, among, seed=seed)]


def seeds(seed: int) -> list[Run]:
    """What decides, with another seed."""
    return [
        *points((STEM_64,), (1,), TRAINED[1:], seed),
        *points((STEM_16,), (1,), TRAINED, seed),
        *points(DEEPER[:1], (1,), ("qat", "tcl+qat"), seed),
        *points((STEM_16,), (2, 3), ("plain", "tcl"), seed),
    ]


# In the order of what they decide, so that a stop costs the least; runs that share a seed share their feature maps.
PLANS: dict[str, list[Run]] = {
    "stem": points((STEM_64, STEM_16), (1,), METHODS),
    "deeper": [*points(DEEPER[:1], (1,), METHODS), *points(DEEPER[1:], (1,), ("qat", "tcl+qat"))],
    "bits": points((STEM_16,), (2, 3), METHODS),
    "coders": points(DEEPER, (2, 3), ("tcl+qat",)),
    "seed-1": seeds(1),
    "seed-2": seeds(2),
    "full": [
        run for seed in (0, 1, 2) for run in methods("stem", 0.25, 1, ("qat", "tcl+qat"), budget="full", seed=seed)
    ],
    "quarter": [*points(DEEPER[:1], (1,), ("tcl",), 1), *points(DEEPER[:1], (1,), ("tcl",), 2)],
    "weaker": [replace(run, tcl=10.0) for seed in (0, 1, 2) for run in points((STEM_16,), (3,), ("tcl",), seed)],
    "deepest": points(DEEPER[1:], (1,), ("none", "plain", "tcl")),
    "strengths": [
        *(replace(run, tcl=tcl) for tcl in (10.0, 30.0) for run in points((STEM_16,), (1,), ("tcl",))),
        *(replace(run, tcl=tcl) for tcl in (3.0, 30.0) for run in points((STEM_16,), (1, 2), ("tcl+qat",))),
        *(replace(run, tcl=tcl) for tcl in (3.0, 30.0) for run in points(DEEPER[1:], (1,), ("tcl+qat",))),
    ],
}


class Bench:
    """The uncut model, its images, and what a run needs of them."""

    def __init__(self) -> None:
        spec = load_spec(STUDY)
        self.dataset = open_dataset(spec.data)
        self.split = SplitModel(build(spec.model).network.to(memory_format=torch.channels_last), spec.data.image_size)
        self.validation = self.dataset.validation()
        self.feature_cache = FeatureCache(self.split, self.dataset, Classification())

    def trainer(self, settings: FinetuneSettings) -> StoredTrainer:
        """Trains candidates by this recipe, or finds them again."""
        inner = FinetuneTrainer(self.split, self.feature_cache, settings)
        depends_on = {"weights": state_digest(self.split.tail(INPUT)), "images": self.dataset.fingerprint}
        depends_on |= arithmetic()
        return StoredTrainer(inner, Store(KEPT), depends_on, self.split, settings, carries_image_size=False)

    def hits(self, scores: torch.Tensor) -> np.ndarray:
        """Which of the search-validation images are classified right."""
        return Classification().judge(scores, self.validation).right

    def score(self, run: Run) -> dict:
        """Train, send, count."""
        start = time.perf_counter()
        settings = run.settings()
        feature_cache, trainer = self.feature_cache, self.trainer(settings)
        config = SplitConfig(
            partition=run.partition, ae_ratio=run.ae_ratio, bits=run.bits, tcl=run.tcl, lossless="lzma"
        )
        candidate = trainer.train(config, settings.budget, run.seed)
        with_context = replace(config, lossless="context")
        coded = trainer.train(with_context, settings.budget, run.seed)
        scores = {
            coder: candidate.score(replace(config, lossless=coder), feature_cache) for coder in ("packed", "lzma")
        }
        smallest = min(scores.values(), key=lambda score: score.payload_bytes)
        right = self.hits(smallest.answers)
        uncut = self.hits(feature_cache.answers("validation"))
        finetuned = self.finetuned(run.partition, run.seed, run.budget)
        drop, interval = paired_drop_pp(finetuned, right)
        levels = {name: replace(candidate, levels=each) for name, each in self.rivals(candidate, run).items()}
        found = {name: self.hits(rival.score(config, feature_cache).answers) for name, rival in levels.items()}
        return {
            **asdict(run),
            "accuracy": float(right.mean()),
            "uncut": float(uncut.mean()),
            "uncut_finetuned": float(finetuned.mean()),
            "drop_pp": drop,
            "drop_interval_pp": interval,
            "packed_bytes": scores["packed"].payload_bytes,
            "lzma_bytes": scores["lzma"].payload_bytes,
            "context_bytes": coded.score(with_context, feature_cache).payload_bytes,
            "bits_per_element": 8 * smallest.payload_bytes / self.split.tap(run.partition).point.elements,
            **{f"accuracy_{name}": float(each.mean()) for name, each in found.items()},
            "precision": "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32",
            "training": candidate.history,
            "seconds": round(time.perf_counter() - start, 1),
        }

    def rivals(self, candidate: Candidate, run: Run) -> dict[str, tuple[wire.TensorLevels]]:
        """Levels that post-training quantization could also send: fitted to each channel, fitted to all channels
        together, and those that training pulls to.
        """
        if run.settings().quantization == "straight-through":
            return {}
        sample = TrainSample(BUDGETS[run.budget].images, run.seed)
        features = self.feature_cache.features(run.partition, sample)
        with torch.no_grad():
            (found,) = candidate.bottleneck.encoder(*(each[:1000] for each in features))
        together = calibrate(found.reshape(len(found), 1, -1), run.bits)
        shape, ones = tuple(found.shape[1:]), np.ones(found.shape[1], np.float32)
        return {
            "per_channel": (calibrate(found, run.bits),),
            "per_tensor": (wire.TensorLevels(shape, ones * together.low, ones * together.high),),
            "grid": (LevelGrid(run.bits).levels(shape),),
        }

    def finetuned(self, partition: str, seed: int, budget: str) -> np.ndarray:
        """Whether the uncut model is right after the fine-tuning that candidates at this point get."""
        path = KEPT / f"finetuned-{partition}-{seed}-{budget}.npy"
        if not path.exists():
            settings = BUDGETS[budget]
            feature_cache = self.feature_cache
            path.parent.mkdir(parents=True, exist_ok=True)
            network = finetuned_uncut(feature_cache, partition, settings, seed)
            np.save(path, self.hits(answers(network, feature_cache, feature_cache.images("validation"))))
        return np.load(path)

    @functools.cached_property
    def _networks(self) -> dict[str, nn.Module]:
        """The uncut model as given, and after a quick fine-tuning."""
        finetuned = finetuned_uncut(self.feature_cache, "stem", BUDGETS["quick"], 0)
        return {"accuracy": self.split.head(OUTPUT), "accuracy_finetuned": finetuned}

    def jpeg(self, quality: int) -> dict:
        """The uncut model on JPEG images."""
        feature_cache = self.feature_cache
        images, size = as_coded(self.validation, PictureCoding(CODECS["jpeg"], quality))
        found = {key: self.hits(answers(network, feature_cache, images)) for key, network in self._networks.items()}
        accuracies = {key: float(right.mean()) for key, right in found.items()}
        return {"method": "jpeg", "quality": quality, **accuracies, "bytes": size}


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
    rows = list(kept().values())
    print(table(rows))
    plot(rows, RESULTS.with_suffix(".png"))


def plot(rows: list[dict], path: Path) -> None:
    """Accuracy against bytes: one panel for each cut, a line for each method, JPEG in all of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    runs = [row for row in rows if row["method"] != "jpeg" and row["budget"] == "quick"]
    runs = [row for row in runs if row["tcl"] in (0.0, STRENGTHS.get(row["method"]))]
    jpeg = sorted((row["bytes"], 100 * row["accuracy_finetuned"]) for row in rows if row["method"] == "jpeg")
    cuts = sorted({(row["partition"], row["ae_ratio"]) for row in runs}, key=lambda cut: (cut[0] != "stem", *cut))
    figure, panels = pyplot.subplots(1, len(cuts), figsize=(4.2 * len(cuts), 4.2), sharey=True, squeeze=False)
    for panel, (cut, ratio) in zip(panels[0], cuts):
        panel.plot(*zip(*jpeg), color="0.6", marker="x", label="JPEG, uncut, fine-tuned")
        uncut = [row for row in runs if (row["partition"], row["ae_ratio"]) == (cut, ratio)]
        panel.axhline(100 * uncut[0]["uncut"], color="0.3", linestyle=":", label="uncut, as given")
        panel.axhline(
            100 * np.mean([row["uncut_finetuned"] for row in uncut]), color="0.3", ls="--", label="uncut, fine-tuned"
        )
        for colour, method in enumerate(METHODS):
            found: dict[int, list[dict]] = {}
            for row in uncut:
                if row["method"] == method:
                    found.setdefault(row["bits"], []).append(row)
            means = sorted(
                tuple(float(np.mean([row[name] for row in same])) for name in ("lzma_bytes", "accuracy"))
                for same in found.values()
            )
            if means:
                sizes, shares = [size for size, _ in means], [100 * share for _, share in means]
                panel.plot(sizes, shares, color=f"C{colour}", marker="o", label=method)
        panel.set_title(f"{cut}, AE {ratio:g}")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda size, _: f"{size:g}"))
        panel.set_xlabel("mean payload bytes, with LZMA")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("top-1, % of 1,250 search-validation images")
    named = {label: line for panel in panels[0] for line, label in zip(*panel.get_legend_handles_labels())}
    figure.suptitle("ResNet-50, 50 classes of TinyImageNet: 1, 2 and 3 bits, from left to right on each line")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(named.values(), named.keys(), loc="lower center", ncols=len(named), fontsize="small")
    figure.savefig(path, dpi=110)


def table(rows: list[dict]) -> str:
    """Markdown: one line for each configuration and method, mean over seeds."""
    heads = (
        "cut",
        "AE",
        "bits",
        "method",
        "seeds",
        "accuracy",
        "drop pp",
        "bytes",
        "LZMA",
        "context",
        "bits an element",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | ---: | --- |" + 7 * " ---: |"]
    runs = [row for row in rows if row["method"] != "jpeg"]

    def group(row: dict) -> tuple:
        return row["budget"], row["partition"], row["ae_ratio"], row["bits"], row["method"], row["tcl"]

    for (budget, partition, ratio, bits, method, tcl), found in itertools.groupby(sorted(runs, key=group), group):
        same = list(found)
        mean = {name: float(np.mean([row[name] for row in same])) for name in
                ("accuracy", "drop_pp", "packed_bytes", "lzma_bytes", "bits_per_element")}  # fmt: skip
        modelled = [
            row["context_bytes"] for row in same if "context_bytes" in row
        ]  # rows of an earlier version have none
        what = f"{method} {tcl:g}" if tcl else method
        what += "" if budget == "quick" else f" ({budget})"
        lines.append(
            f"| {partition} | {ratio:g} | {bits} | {what} | {len(same)} | {mean['accuracy']:.1%} "
            f"| {mean['drop_pp']:+.1f} | {mean['packed_bytes']:,.0f} | {mean['lzma_bytes']:,.0f} "
            f"| {f'{np.mean(modelled):,.0f}' if modelled else ''} "
            f"| {mean['bits_per_element']:.3f} |"
        )
    for row in sorted((row for row in rows if row["method"] == "jpeg"), key=lambda row: row["quality"]):
        for key, what in (("accuracy", ""), ("accuracy_finetuned", ", fine-tuned")):
            lines.append(
                f"| input | | | JPEG {row['quality']}{what} | 1 | {row[key]:.1%} | | {row['bytes']:,.0f} | | | |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
