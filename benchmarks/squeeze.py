"""Own and distilled heads against picture codecs: accuracy, bytes, and what they take on a Raspberry Pi.

    python benchmarks/squeeze.py                  # every run of the plan that is not there yet, then the tables
    python benchmarks/squeeze.py --plan decides   # one group of it; --list shows them all
    python benchmarks/squeeze.py --plan longer --part 1/4   # every fourth of it and no tables, for several at once
    python benchmarks/squeeze.py --table          # tables alone, from what there is

ResNet-50 on 50 classes of TinyImageNet, weights and images as in studies/resnet50_tinyimagenet50.yaml. Each run trains
one candidate and sends each of the 1,250 search-validation images through real bytes. Drops are paired, image by image,
against the uncut model with renewed BatchNorm statistics after the same fine-tuning on the same images (mirror images
too where the candidate had them), same seed. Picture codecs stand before a network that was fine-tuned as long on
images of that codec, with the BatchNorm statistics of each quality; on their mirror images too in the longer budget.

What a few bits cost is a group by itself (``--plan few-bits``): quick trainings, and none at all (principal components
and fitted levels).

Results are appended to benchmarks/results/squeeze.jsonl as they come, tables go to benchmarks/results/squeeze.md.
"""

import argparse
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluators.edge.picture_codecs import CODECS, QUALITIES, PictureCoding
from evaluators.identity import arithmetic, state_digest
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import load_machine
from evaluators.latency.table import StageTable
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.models.work import module_work
from evaluators.settings import FinetuneSettings, Quantization
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
LONGER = replace(FULL, epochs=3)
UNTRAINED = replace(QUICK, epochs=0, reconstruction_steps=0)
BUDGETS = {"untrained": UNTRAINED, "quick": QUICK, "full": FULL, "longer": LONGER}
# Whose candidates are set against the codecs of a budget: those that had no more training.
NO_MORE = {"quick": ("quick",), "full": ("full",), "longer": ("full", "longer")}
_TIMED = ("stem", "layer1.2", "layer2.3", "layer3.5")
_PAGE = """# Own and distilled heads against picture codecs

`python benchmarks/squeeze.py` on {date}; its first lines say what is what. Accuracies are of the 1,250
search-validation images; the test split took no part. Payloads in the last table are packed values, header included.
"""


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
    quantization: Quantization = "straight-through"
    model: str = "resnet50"

    @property
    def settings(self) -> FinetuneSettings:
        """How a candidate, or the network behind a codec, is trained."""
        return replace(BUDGETS[self.budget], quantization=self.quantization)

    @property
    def reference(self) -> str:
        """The budget of the uncut model that a drop is against."""
        return "quick" if self.budget == "untrained" else self.budget

    @property
    def config(self) -> SplitConfig:
        """Of a candidate, with the context coder."""
        names = ("partition", "head", "ae_ratio", "bits", "stride", "tcl", "rate")
        return SplitConfig(**{name: getattr(self, name) for name in names}, lossless="context")

    @property
    def plain(self) -> SplitConfig:
        """The same with packed payloads."""
        return replace(self.config, lossless="packed")


def _distilled(ae_ratio: float, seed: int, **more: Any) -> Run:
    return Run(partition="layer2.3", head="distilled", ae_ratio=ae_ratio, seed=seed, **more)


# Ways to few bits: what a run of each differs in.
WAYS: dict[str, dict[str, Any]] = {
    "principal components, no training": {"budget": "untrained", "quantization": "post-training"},
    "fine-tuning, then quantization": {"budget": "quick", "quantization": "post-training"},
    "the same with TCL 100": {"budget": "quick", "quantization": "post-training", "tcl": 100.0},
    "straight-through": {"budget": "quick"},
    "straight-through with TCL 30": {"budget": "quick", "tcl": 30.0},
}
ONE_BIT = (("stem", 0.25), ("layer1.2", 0.0625), ("layer2.3", 0.125), ("layer3.5", 0.25))  # 512 bytes packed each


def _ways(partition: str, ae_ratio: float, bits: Sequence[int], among: Sequence[str], seed: int = 0) -> list[Run]:
    return [
        Run(partition=partition, ae_ratio=ae_ratio, bits=width, seed=seed, **WAYS[way])
        for width in bits
        for way in among
    ]


_TRAINED, _BOTH = list(WAYS)[1:], list(WAYS)[-1:]
# In the order of what they decide, so that a stop costs the least.
PLANS: dict[str, list[Run]] = {
    "quick": [
        _distilled(0.125, 0, budget="quick"),
        Run(codec="webp", budget="quick"),
        Run(partition="layer2.3", ae_ratio=0.125, budget="quick"),
        _distilled(0.0625, 0, budget="quick"),
        Run(codec="jpeg", budget="quick"),
        _distilled(0.125, 0, budget="quick", rate=0.3),
        Run(partition="stem", ae_ratio=0.25, budget="quick"),
        Run(partition="stem", ae_ratio=1.0, stride=2, budget="quick"),
        *(
            replace(run, budget="quick", seed=seed)
            for seed in (1, 2)
            for run in (_distilled(0.125, 0), _distilled(0.0625, 0), replace(_distilled(0.125, 0), head="own"))
        ),
    ],
    "decides": [_distilled(ratio, seed) for seed in (0, 1, 2) for ratio in (0.125, 0.0625)],
    "longer": [
        _distilled(0.125, 1, budget="longer"),
        _distilled(0.125, 0, budget="longer"),
        *(Run(codec=codec, budget="longer") for codec in ("webp", "jpeg")),
        _distilled(0.125, 2, budget="longer"),
        *(_distilled(0.0625, seed, budget="longer") for seed in (1, 0, 2)),
    ],
    "own": [
        replace(_distilled(0.125, 0), head="own"),
        Run(partition="stem", ae_ratio=0.25),
        Run(partition="stem", ae_ratio=1.0, stride=2),
    ],
    "codecs": [Run(codec=codec) for codec in ("webp", "jpeg")],
    "sizes": [_distilled(ratio, seed) for seed in (1, 0) for ratio in (0.25, 0.03125)],
    "cuts": [
        Run(partition=partition, head=head, ae_ratio=ratio, budget="quick")
        for partition, ratio in ONE_BIT
        for head in ("own", "distilled")
    ],
    "few-bits": [
        *_ways("stem", 0.25, (1, 2, 3), list(WAYS)),
        *_ways("layer2.3", 0.125, (1,), list(WAYS)),
        *_ways("layer2.3", 0.125, (2, 3), _BOTH),
        *_ways("layer3.5", 0.0625, (1, 2, 3), _BOTH),
    ],
    "few-bits-seeds": [
        run
        for seed, (cut, ratio) in itertools.product((1, 2), (("stem", 0.25), ("layer2.3", 0.125)))
        for run in _ways(cut, ratio, (1,), _TRAINED, seed)
    ],
    "deep": [
        Run(partition="avgpool", head="distilled", ae_ratio=ratio, bits=4, budget="quick") for ratio in (1.0, 0.0625)
    ],
    "rate": [_distilled(0.125, 0, rate=rate) for rate in (0.1, 0.5)],
    "tcl": [_distilled(0.125, 0, tcl=tcl) for tcl in (10.0,)],
    "wide": [replace(_distilled(0.125, 0), head="distilled-wide")],
    "narrow": [
        replace(_distilled(0.125, seed, budget="quick"), head=head)
        for seed in (0, 1)
        for head in ("distilled-narrow", "distilled")
    ],
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
            seconds = round(time.perf_counter() - start, 1)
            yield {**asdict(run), **row, **uncut, "seconds": seconds, "trained_on": trained_on()}

    def trainer(self, run: Run) -> StoredTrainer:
        """Trains the candidate of a run, or finds it again."""
        store = Store(STORE)
        heads = DistilledHeads(self.split, self.cache, store, self.depends_on)
        inner = FinetuneTrainer(self.split, self.cache, run.settings, heads)
        return StoredTrainer(inner, store, self.depends_on, self.split, run.settings, carries_image_size=False)

    def _split(self, run: Run) -> dict[str, Any]:
        candidate = self.trainer(run).train(run.config, run.settings.budget, run.seed)
        scores = {
            coder: candidate.score(replace(run.config, lossless=coder), self.cache)
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
        path = STORE / f"finetuned-{run.model}-{run.partition}-{run.seed}-{run.reference}-{mirrored}.npy"
        if not path.exists():
            settings = BUDGETS[run.reference]
            network = finetuned_uncut(self.cache, run.partition, settings, run.seed, mirrored=mirrored)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.right(answers(network, self.cache, self.cache.images("validation"))))
        return np.load(path)

    def _coded(self, run: Run) -> Iterator[dict[str, Any]]:
        codec, settings = CODECS[run.codec], run.settings
        mirrored = run.budget == "longer"
        network: Whole = finetuned_behind(codec, self.cache, "stem", settings, run.seed, mirrored=mirrored)
        for quality in QUALITIES:
            coding = PictureCoding(codec, quality)
            tuned = at_quality(network, coding, self.cache, TrainSample(settings.images, run.seed))
            images, size = as_coded(self.cache.images("validation"), coding)
            found = {"accuracy": tuned, "accuracy_given": self.split.head("output")}
            shares = {name: float(self.right(answers(each, self.cache, images)).mean()) for name, each in found.items()}
            yield {"quality": quality, "bytes": size, **shares}


def trained_on() -> str:
    """The GPU's name, or what a CPU is called."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def macs(head: nn.Module, size: int) -> int:
    """Multiply-accumulate operations for one picture."""
    return module_work(head, [torch.zeros(1, 3, size, size)]).macs


def kept() -> list[dict[str, Any]]:
    """Rows that are there already."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [{**asdict(Run()), **json.loads(line)} for line in lines]


def is_there(run: Run, rows: list[dict[str, Any]]) -> bool:
    """Whether a run has its rows."""
    return any(is_row_of(run, row) for row in rows)


def is_row_of(run: Run, row: dict[str, Any]) -> bool:
    """Whether it is of this very run."""
    return all(row[name] == value for name, value in asdict(run).items())


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Candidates, one row for all seeds of each."""
    same: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["codec"]:
            run = {name: row[name] for name in asdict(Run()) if name != "seed"}
            same.setdefault(json.dumps(run), []).append(row)
    numbers = ["accuracy", "uncut_finetuned", "drop_pp", "kl", "head_macs"]
    numbers += ["packed_bytes", "lzma_bytes", "context_bytes"]
    return [
        {**json.loads(key), "seeds": len(each), "spread": _spread(each)}
        | {name: statistics.fmean(row[name] for row in each) for name in numbers if all(name in row for row in each)}
        for key, each in same.items()
    ]


def _spread(seeds: list[dict[str, Any]]) -> str:
    """How sure a mean drop is: its 95 % interval if there is one seed, otherwise the drop of each seed."""
    if len(seeds) > 1:
        return " (" + ", ".join(f"{row['drop_pp']:.1f}" for row in sorted(seeds, key=lambda row: row["seed"])) + ")"
    low, high = seeds[0]["drop_interval_pp"]
    return f" ({low:.1f} to {high:.1f})"


def candidates_table(rows: list[dict[str, Any]]) -> str:
    """One line for each candidate."""
    lines = [
        "| budget | candidate | head MMACs | top-1 | uncut, fine-tuned | drop (95 % interval, or of each seed) "
        "| KL to the renewed uncut | packed | LZMA | context | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in means([row for row in rows if not is_way(row)]):
        config = Run(**{name: row[name] for name in asdict(Run()) if name != "seed"}).config
        context = f"{row['context_bytes']:,.0f}" if "context_bytes" in row else ""
        lines.append(
            f"| {row['budget']} | {config.label.removesuffix(', context')} | {row['head_macs'] / 1e6:.1f} "
            f"| {row['accuracy']:.1%} | {row['uncut_finetuned']:.1%} | {row['drop_pp']:.1f} pp{row['spread']} "
            f"| {row['kl']:.3f} | {row['packed_bytes']:,.0f} | {row['lzma_bytes']:,.0f} "
            f"| {context} | {row['seeds']} |"
        )
    return "\n".join(lines)


def is_way(row: dict[str, Any]) -> bool:
    """Whether a candidate is one of those that the group ``few-bits`` compares."""
    return any(is_row_of(run, row) for run in PLANS["few-bits"] + PLANS["few-bits-seeds"])


def few_bits_table(rows: list[dict[str, Any]]) -> str:
    """One line for each cut, bit-width and way to few bits."""
    lines = [
        "| cut | bits | way | top-1 | uncut, fine-tuned | drop (95 % interval, or of each seed) "
        "| packed | LZMA | context | seeds |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found = means([row for row in rows if is_way(row)])
    places = sorted({(row["partition"], row["ae_ratio"], row["bits"]) for row in found}, key=_in_order)
    for place, (way, asks) in itertools.product(places, WAYS.items()):
        for row in found:
            asked = asdict(Run(**dict(zip(("partition", "ae_ratio", "bits"), place, strict=True)), **asks))
            if any(row[name] != value for name, value in asked.items() if name != "seed"):
                continue
            sizes = " | ".join(f"{row[f'{coder}_bytes']:,.0f}" for coder in ("packed", "lzma", "context"))
            lines.append(
                f"| {place[0]}, AE {place[1]:g} | {place[2]} | {way} | {row['accuracy']:.1%} "
                f"| {row['uncut_finetuned']:.1%} | {row['drop_pp']:.1f} pp{row['spread']} | {sizes} | {row['seeds']} |"
            )
    return "\n".join(lines)


def cuts_table(rows: list[dict[str, Any]]) -> str:
    """One line for each cut of the group ``cuts``: its two heads, side by side."""
    lines = [
        "| cut | AE | packed | own head MMACs | drop (95 % interval) | context | distilled head MMACs "
        "| drop (95 % interval) | context |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for own, distilled in zip(PLANS["cuts"][::2], PLANS["cuts"][1::2], strict=True):
        found = [row for run in (own, distilled) for row in rows if is_row_of(run, row)]
        if len(found) == 2:
            heads = " | ".join(
                f"{row['head_macs'] / 1e6:.1f} | {row['drop_pp']:.1f} pp ({low:.1f} to {high:.1f}) "
                f"| {row['context_bytes']:,.0f}"
                for row in found
                for low, high in [row["drop_interval_pp"]]
            )
            packed = found[0]["packed_bytes"]
            lines.append(f"| {own.partition} | {own.ae_ratio:g} | {packed:,.0f} | {heads} |")
    return "\n".join(lines)


def _in_order(place: tuple[str, float, int]) -> tuple[int, float, int]:
    return _TIMED.index(place[0]), *place[1:]


def codecs_table(rows: list[dict[str, Any]]) -> str:
    """One line for each quality of a codec."""
    lines = ["| budget | codec | bytes | fine-tuned behind it | as given |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        if row["codec"]:
            label = PictureCoding(CODECS[row["codec"]], row["quality"]).label
            lines.append(
                f"| {row['budget']} | {label} | {row['bytes']:,.0f} "
                f"| {row['accuracy']:.1%} | {row['accuracy_given']:.1%} |"
            )
    return "\n".join(lines)


def crossings_table(rows: list[dict[str, Any]], budget: str) -> str:
    """Below which link rate the fastest candidate beats the smallest setting of a codec, both within a drop.

    Each candidate's drop is against the uncut model with its own training, codecs' against the one with theirs.
    """
    from headline import ReplayResult, Way, crossover

    split = SplitModel(build(load_spec(STUDIES["resnet50"]).model).network, 64)
    table = StageTable(Store(STORE))
    server = machine_for(load_machine("local", "server"), table)
    rows = [row for row in rows if row["budget"] in NO_MORE[budget] and row["model"] == "resnet50"]
    found = means(rows)
    rows = [row for row in rows if row["budget"] == budget]
    reference = max(row["uncut_finetuned"] for row in found if row["budget"] == budget)
    lines = [
        "| device | drop at most | candidate | top-1 | bytes | ms without link | codec | top-1 | bytes | ms "
        "| candidate is faster below |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    machines = {"Raspberry Pi 4 B, ncnn (modelled)": "raspberry_pi_4b", "this machine (measured)": "local"}
    for name, machine in machines.items():
        result = ReplayResult(split, machine_for(load_machine(machine, "device"), table), server)
        # All points of the plan, so that a timing has neighbours to be compared with.
        ratios = sorted({row["ae_ratio"] for row in found})
        result.watch.time_ahead(_TIMED, ratios, [1], [1], ["own", "distilled"], print)
        for most in (1.0, 2.0, 3.0, 5.0):
            cuts = [
                result.cut(Run(**{key: row[key] for key in asdict(Run()) if key != "seed"}).plain, row["accuracy"])
                for row in found
                if row["drop_pp"] <= most
            ]
            for codec in dict.fromkeys(row["codec"] for row in rows if row["codec"]):
                ways = [
                    result.picture(row["quality"], row["bytes"], row["accuracy"], codec)
                    for row in rows
                    if row["codec"] == codec and row["accuracy"] >= reference - most / 100
                ]
                if not cuts or not ways:
                    lines.append(f"| {name} | {most:g} pp | {'none' if not cuts else ''} | | | | {codec} | | | | |")
                    continue
                rival = min(ways, key=lambda way: way.payload_bytes)
                rates: list[tuple[float, Way]] = [(crossover(cut, rival) or 0.0, cut) for cut in cuts]
                rate, cut = max(rates, key=lambda pair: (pair[0], -pair[1].payload_bytes))
                below = "any rate" if rate == float("inf") else f"{rate:.2g} MB/s" if rate else "never"
                cells = (
                    f"{way.name} | {way.accuracy:.1%} | {way.payload_bytes:,.0f} | {way.compute_ms:.2f}"
                    for way in (cut, rival)
                )
                lines.append(f"| {name} | {most:g} pp | {' | '.join(cells)} | {below} |")
    return "\n".join(lines)


TABLES = {
    "Candidates": candidates_table,
    "What a few bits cost, quick": few_bits_table,
    "One bit at every cut, quick, one seed": cuts_table,
    "Picture codecs": codecs_table,
}


def write_tables(rows: list[dict[str, Any]]) -> None:
    """Make the page of results anew."""
    parts = {name: table(rows) for name, table in TABLES.items()}
    if any(row["codec"] for row in rows):
        budget = max((row["budget"] for row in rows if row["codec"]), key=list(BUDGETS).index)
        parts[f"The link rate below which a candidate is faster than a codec, {budget}"] = crossings_table(rows, budget)
    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in parts.items())
    RESULTS.with_suffix(".md").write_text(f"{_PAGE.format(date=datetime.date.today())}\n{text}\n")
    print(text)


def main() -> None:
    """Run what is missing, then make the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=list(PLANS), action="append", help="a group of runs; all of them by default")
    parser.add_argument("--part", default="", help="1/4: every fourth run of the plan from the first on, and no tables")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    plan = [run for name in options.plan or PLANS for run in PLANS[name]]
    part, parts = map(int, (options.part or "1/1").split("/"))
    missing = [run for run in plan[part - 1 :: parts] if not is_there(run, kept())]
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
    if not options.part:
        write_tables(kept())


if __name__ == "__main__":
    main()
