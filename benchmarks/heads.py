"""Own and distilled heads of the two other networks, beside the pictures' codecs: accuracy, bytes and latency.

    python benchmarks/heads.py yolov10n_bccd                      # trains the uncut network first: ten minutes
    python benchmarks/heads.py efficientnet_v2_s_tinyimagenet50   # that, too: a good hour
    python benchmarks/heads.py yolov10n_bccd --weights FILE       # trained elsewhere, by the study's recipe
    python benchmarks/heads.py yolov10n_voc2012_animals --baseline "server-only, JPEG 70, fine-tuned"   # and no more
    python benchmarks/heads.py efficientnet_v2_s_tinyimagenet50 --seed 1   # the distilled heads once more, after that

Everything is the study's own (data, hardware, link, seed), but for the training of EfficientNetV2-S's candidates, which
is the full one of squeeze.py on half of its pictures, and the steps of the blood cells' distilled heads. Baselines are
fine-tuned as candidates are.

Rows are appended to benchmarks/results/heads.jsonl as they come; the table goes to benchmarks/results/heads.md.
"""

import argparse
import datetime
import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from evaluators.result import Evaluation
from search.spec import load_spec
from search.wiring import build_evaluator
from spaces.config import SplitConfig

RESULTS = Path(__file__).parent / "results" / "heads.jsonl"
RUNS = Path("runs") / "benchmarks" / "heads"
_FULL = {
    "images": 12_000,
    "epochs": 1,
    "head_steps": 4000,
    "reconstruction_steps": 1500,
    "learning_rate": 5e-4,
    "tail_learning_rate": 1e-4,
    "quantization": "straight-through",
}
TRAINING: dict[str, dict[str, Any]] = {
    "efficientnet_v2_s_tinyimagenet50": _FULL,
    "yolov10n_bccd": {"head_steps": 3000},  # a narrow head has not learned all that it can after the study's 800
}
HEADS = ("own", "distilled")
_DETECTOR = [
    SplitConfig(partition="model.4", ae_ratio=0.25, bits=bits, head=head) for bits, head in product((2, 3), HEADS)
]
PLANS = {
    "yolov10n_bccd": [
        SplitConfig(partition="model.4", ae_ratio=ratio, bits=2, head=head)
        for ratio, head in product((0.125, 0.25), (*HEADS, "distilled-narrow"))
    ],
    "yolov10n_voc2012_animals": _DETECTOR,
    "efficientnet_v2_s_tinyimagenet50": [
        SplitConfig(partition="features.3.3", ae_ratio=ratio, bits=1, head=head)
        for ratio, head in product((1.0, 0.5), HEADS)
    ],
}
_ALWAYS = ("all-on-device", "all-on-device, fine-tuned", "server-only, raw", "server-only, raw, fine-tuned")
_PAGE = """# Own and distilled heads of EfficientNetV2-S and YOLOv10n

`python benchmarks/heads.py STUDY`; its first lines say what is what. The study's own seed, or the one that is named.
Accuracies are of the search-validation images (of YOLOv10n mAP50-95), drops against the uncut network after the same
fine-tuning (the study's seed). Device and link are modelled, the server is this machine, measured. The last column is
at which link rates a split is faster than every picture sent, raw or a codec's, that is answered as well or better. Of
the baselines, those that no other one beats; of yolov10n_voc2012_animals' codecs only JPEG 50 and 70 were tried, of
yolov10n_bccd's JPEG 20, 30, 50 and 60, WebP 50 and AVIF 40.
"""


def evaluations(
    study: str, weights: Path | None, seed: int | None, there: set[str], only: list[str] | None
) -> Iterator[Evaluation]:
    """The baselines, then the plan's candidates that are not there yet; with a seed, its distilled ones alone."""
    spec = load_spec(study)
    if weights is not None:
        spec = replace(spec, model=replace(spec.model, weights=weights))
    spec = replace(spec, finetune=replace(spec.finetune, **TRAINING.get(study, {})))
    evaluator = build_evaluator(spec, RUNS / study)
    evaluator.prepare(None, print)
    if seed is None and "all-on-device" not in there:
        yield from evaluator.baselines(trained=True, only=None if only is None else [*_ALWAYS, *only])
    for config in PLANS[study]:
        if config.label not in there and (seed is None or config.head != "own"):
            yield evaluator.evaluate(config, seed=seed)


def figures(found: Evaluation) -> dict[str, Any]:
    """What of an evaluation is kept."""
    return {
        "name": found.name,
        "candidate": found.config is not None,
        "accuracy": found.accuracy,
        "payload_bytes": found.payload_bytes,
        "head_macs": found.details.get("head_macs"),
        "latency_ms": found.latency_ms,
        "latency": found.latency.to_dict(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Candidates, then the front of the baselines and what needs no codec, of one study."""
    uncut = next(row["accuracy"] for row in rows if row["name"] == "all-on-device, fine-tuned")
    candidates = [row for row in rows if row["candidate"]]
    rivals = [row for row in rows if not row["candidate"]]
    shown = [row for row in rivals if not any(beats(other, row) for other in rivals)]
    shown += [row for row in rivals if row["name"] in ("all-on-device", "server-only, raw") and row not in shown]
    lines = [
        "| what | head MMACs | accuracy | drop pp | bytes | ms | device | link | server | faster at |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in candidates + sorted(shown, key=lambda row: row["latency_ms"]):
        parts = row["latency"]
        device = sum(parts[name] for name in ("head_ms", "encode_ms", "pack_ms", "compress_ms"))
        server = row["latency_ms"] - device - parts["link_ms"]
        name = row["name"] if row.get("seed") is None else f"{row['name']}, seed {row['seed']}"
        macs = f"{row['head_macs'] / 1e6:.1f}" if row["head_macs"] else ""
        lines.append(
            f"| {name} | {macs} | {row['accuracy']:.1%} | {100 * (uncut - row['accuracy']):.1f} "
            f"| {row['payload_bytes']:,.0f} | {row['latency_ms']:.2f} | {device:.2f} | {parts['link_ms']:.2f} "
            f"| {server:.2f} | {faster_at(row, rivals) if row['candidate'] else ''} |"
        )
    return "\n".join(lines)


def faster_at(candidate: dict[str, Any], rivals: list[dict[str, Any]]) -> str:
    """The link rates at which a candidate is faster than every picture sent that is answered as well or better."""

    def besides_link(row: dict[str, Any]) -> float:
        return float(row["latency_ms"] - row["latency"]["link_ms"])

    above, below = 0.0, math.inf  # MB/s
    for rival in rivals:
        if not rival["payload_bytes"] or rival["accuracy"] < candidate["accuracy"]:
            continue
        saved_kb = (rival["payload_bytes"] - candidate["payload_bytes"]) / 1e3
        slower_ms = besides_link(candidate) - besides_link(rival)
        if slower_ms > 0:
            below = min(below, max(saved_kb / slower_ms, 0.0))
        elif saved_kb < 0:
            above = max(above, saved_kb / slower_ms if slower_ms else math.inf)
    if above >= below:
        return "never"
    ends = [("above", above)] * (above > 0) + [("below", below)] * (below < math.inf)
    said = (f"{side} {rate:.0f}" if rate >= 10 else f"{side} {rate:.2g}" for side, rate in ends)
    return f"{', '.join(said)} MB/s" if ends else "any rate"


def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one is at least as accurate and as fast, and better in one of the two."""
    first, second = ((row["accuracy"], -row["latency_ms"]) for row in (one, other))
    return first != second and first[0] >= second[0] and first[1] >= second[1]


def kept() -> list[dict[str, Any]]:
    """Rows that are there already."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=list(PLANS))
    parser.add_argument("--weights", type=Path, help="of the uncut network, which is then not trained")
    parser.add_argument(
        "--seed", type=int, help="of further trainings of the distilled heads; the study's unless given"
    )
    parser.add_argument("--baseline", action="append", help="one that sends a codec's file; all unless some are named")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("splitsearch").setLevel(logging.INFO)  # what is trained, and for how long
    study = options.study
    there = {row["name"] for row in kept() if row["study"] == study and row.get("seed") == options.seed}
    for found in evaluations(study, options.weights, options.seed, there, options.baseline):
        row = {"study": study, "date": datetime.date.today().isoformat(), "seed": options.seed, **figures(found)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{found.name}: {found.accuracy:.2%}, {found.payload_bytes:.0f} bytes", flush=True)
    rows = kept()
    studies = dict.fromkeys(row["study"] for row in rows)
    tables = (f"## {study}\n\n{table([row for row in rows if row['study'] == study])}\n" for study in studies)
    RESULTS.with_suffix(".md").write_text("\n".join([_PAGE, *tables]))


if __name__ == "__main__":
    main()
