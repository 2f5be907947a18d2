"""Fits a model of Raspberry Pi 4 B latency on published latencies of whole networks, one fit for each runtime.

    python benchmarks/fit_raspberry_pi.py ../shared/data/pi4

Needs the extras ``timm`` and ``yolo``; takes about two minutes. The folder holds ``pi4_latency.csv`` (whole networks,
by runtime) and ``scission_blocks_all_devices.csv`` (blocks of Keras networks, measured one by one). Every network that
can be built here as the very architecture that was timed is built, its work counted (``spaces/work.py``) and the
latencies fitted (``evaluators/latency/fit.py``). Printed are the published, the fitted and the left-out latency
of each network. Written are ``benchmarks/results/raspberry-pi-4b-fit.md``, which holds errors and sources but not
the published numbers, which are not ours to spread, and ``fits`` in ``hardware_profiles/devices/raspberry_pi_4b.yaml``.
"""

import argparse
import csv
import datetime
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import yaml
from raspberry_pi_networks import KERAS, NCNN, QNNPACK, Network, of_torchvision, of_ultralytics

from evaluators.latency.fit import Features, LatencyFit, choose, fit, leave_one_out, nested_errors, predict_ms
from evaluators.models.cut import SplitModel
from evaluators.models.work import head_work, module_work
from spaces.work import WORK_FIELDS, Work

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "benchmarks" / "results" / "raspberry-pi-4b-fit.md"
PROFILE = ROOT / "hardware_profiles" / "devices" / "raspberry_pi_4b.yaml"

MACS = "+".join(name for name in WORK_FIELDS if name.endswith("_macs"))
OTHER_MACS = MACS.replace("winograd_macs+", "")
WRITTEN = "layer_elements+copied_elements+other_elements"
OPERATIONS = "layers+copies+others"

FEATURE_SETS: dict[str, Features] = {
    "arithmetic": (MACS,),
    "arithmetic, traffic": (MACS, WRITTEN),
    "Winograd apart": ("winograd_macs", OTHER_MACS, "weights", WRITTEN),
    "Winograd apart, overhead": ("winograd_macs", OTHER_MACS, "weights", WRITTEN, OPERATIONS),
    "nothing fused": (MACS, "weights", f"{WRITTEN}+fused_elements", f"{OPERATIONS}+fused"),
    "copies dear": (MACS, "copied_elements", "layers+others"),
}


LEFT_OUT = (
    ("ncnn: vision_transformer", "the only network made of matrix products, so its error could not be told; see below"),
    (
        "ncnn: shufflenet (v1), squeezenet_ssd, mobilenet_yolo, mobilenetv2_yolov3, nanodet_m, yolo-fastest-1.1, "
        "yolo-fastestv2, FastestDet",
        "none of the libraries at hand has them, and they were not rebuilt here",
    ),
    ("ncnn, int8", "8 networks, of which 7 can be built here"),
    ("ncnn on an overclocked board, and YOLO11n by other people", "another clock, unstated settings; see below"),
    ("TensorFlow: nasnetmobile", "none of the libraries at hand has it"),
    ("TensorFlow, other sources", "4 object detectors, TensorFlow and TensorFlow Lite, threads not stated"),
    ("PyTorch, int8: shufflenet_v2_x1_5 with 2 threads", "the only row with 2 threads"),
    ("PyTorch, fp32", "2 rows, one network at two sizes"),
    ("XNNPACK", "4 networks, all MobileNets: too few for any fit, and of a 32-bit system"),
    ("ONNX Runtime", "2 rows in fp32 and 2 in int8, one network at two sizes: too few for any fit"),
    ("TensorFlow Lite", "4 networks in int8 on an overclocked board, 1 cell of a search space in fp32: too few"),
)


# -- published latencies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runtime:
    """What was published for one runtime on this board."""

    label: str
    title: str
    threads: int
    precision: str
    source: str
    networks: dict[str, Network]
    latencies_ms: dict[str, float]


@dataclass(frozen=True)
class Fitted:
    """A fit with all that is known of its errors."""

    runtime: Runtime
    works: dict[str, Work]
    features: Features
    fit: LatencyFit
    left_out: dict[str, float]
    by_family: list[float]
    nested: list[float]
    means: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def runtimes(folder: Path) -> list[Runtime]:
    """Those with enough rows."""
    rows = read(folder / "pi4_latency.csv")
    ncnn = "Tencent/ncnn benchmark/README.md at commit a4d2ea1d, Raspberry Pi 4 Model B (BCM2711B0, 1.8 GHz)"
    keras = (
        "qub-blesson/Scission benchmark_data at commit b765b2bd (April 2020, arXiv 2008.03523), Raspberry Pi 4, all "
        "cores by default; sums of blocks called one by one, so that a call's cost is part of an operation's"
    )
    torch_int8 = (
        "pytorch/tutorials intermediate_source/realtime_rpi.rst at commit 3c4e4e01, Raspberry Pi 4 Model B 4 GB"
    )
    return [
        Runtime("ncnn", "ncnn", 4, "fp32", ncnn, NCNN, of_ncnn(rows, "4")),
        Runtime("ncnn-1-thread", "ncnn", 1, "fp32", ncnn, NCNN, of_ncnn(rows, "1")),
        Runtime("tensorflow", "TensorFlow 2.1, Keras, eager", 4, "fp32", keras, KERAS, sums(blocks(folder))),
        Runtime("pytorch-int8", "PyTorch, qnnpack", 4, "int8", torch_int8, QNNPACK, of_pytorch(rows)),
    ]


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of_ncnn(rows: list[dict[str, str]], threads: str) -> dict[str, float]:
    """ncnn's own benchmark, by network."""
    return {
        row["model"]: float(row["latency_ms"])
        for row in rows
        if row["source_repo_or_doc"].startswith("Tencent/ncnn") and row["threads"] == threads
    }


def of_pytorch(rows: list[dict[str, str]]) -> dict[str, float]:
    """The PyTorch tutorial's table, by network."""
    return {
        row["model"]: float(row["latency_ms"])
        for row in rows
        if row["source_repo_or_doc"].startswith("pytorch/tutorials") and row["threads"] == "4"
    }


def blocks(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Keras networks on the Raspberry Pi: index of each block's last layer and the block's latency, in order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read(folder / "scission_blocks_all_devices.csv"):
        if row["device"] == "device-raspi4":
            found.setdefault(row["model"], []).append((int(row["last_keras_layer"]), float(row["latency_ms"])))
    return {name: sorted(rows) for name, rows in found.items()}


def sums(blocks_of: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    """Latency of whole networks."""
    return {name: sum(ms for _, ms in rows) for name, rows in blocks_of.items()}


# -- fitting -----------------------------------------------------------------------------------------------------------


def count(network: Network) -> Work:
    """Work of the whole network."""
    return module_work(network.make(), [torch.zeros(1, 3, network.side, network.side)])


def fitted(runtime: Runtime, works: dict[str, Work]) -> Fitted:
    """The fit with the feature set that predicts networks left out best, and its errors."""
    names = list(runtime.networks)
    rows, latencies_ms = [works[name] for name in names], [runtime.latencies_ms[name] for name in names]
    families = [runtime.networks[name].family for name in names]
    sets = list(FEATURE_SETS.values())
    features = choose(rows, latencies_ms, names, sets)
    left_out = leave_one_out(rows, latencies_ms, names, features)
    coefficients = fit(rows, latencies_ms, features)
    errors = [abs(error) for error in left_out]
    by_family = leave_one_out(rows, latencies_ms, families, features)
    result = LatencyFit(
        runtime=runtime.title,
        threads=runtime.threads,
        precision=runtime.precision,
        coefficients={feature: float(f"{value:.4g}") for feature, value in coefficients.items()},
        networks=len(names),
        median_error=round(statistics.median(errors), 4),
        worst_error=round(max(errors), 4),
        family_error=round(statistics.median(map(abs, by_family)), 4),
        source=runtime.source,
    )
    return Fitted(
        runtime=runtime,
        works=works,
        features=features,
        fit=result,
        left_out=dict(zip(names, left_out)),
        by_family=by_family,
        nested=nested_errors(rows, latencies_ms, names, sets),
        means={label: spread(leave_one_out(rows, latencies_ms, names, each)) for label, each in FEATURE_SETS.items()},
    )


def spread(errors: Sequence[float]) -> tuple[float, float, float]:
    """Median, mean and worst of relative errors, without their sign."""
    sizes = [abs(error) for error in errors]
    return statistics.median(sizes), statistics.fmean(sizes), max(sizes)


# -- heads, against measured blocks ------------------------------------------------------------------------------------

STAGES = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
CUT_AT = {
    # For each partition point, the Keras layer that ends there.
    "resnet50": {
        "relu": 4,
        **dict(zip(STAGES, (17, 27, 37, 49, 59, 69, 79, 91, 101, 111, 121, 131, 141, 153, 163, 173))),
    },
    "vgg16": {"features.4": 3, "features.9": 6, "features.16": 10, "features.23": 14, "features": 18},
    "densenet121": {
        **{"features.relu0": 4, "features.transition1.conv": 51},
        **{"features.transition2.conv": 139, "features.transition3.conv": 311},
    },
    "mobilenetv2": {
        **{"features.1": 9, "features.3": 27, "features.6": 54, "features.10": 90, "features.13": 116},
        **{"features.16": 143, "features.17": 151, "features.18": 154},
    },
}


def heads(tensorflow: Fitted, folder: Path) -> tuple[list[list[str]], list[list[float]]]:
    """Heads of Keras networks, predicted without the network and without its whole family, against measured blocks."""
    measured = blocks(folder)
    rows, errors = [], []
    for name, ends in CUT_AT.items():
        network = KERAS[name]
        split = SplitModel(network.make().eval(), network.side)
        relatives = [each for each in KERAS if KERAS[each].family == network.family]
        fits = [without(tensorflow, left_out) for left_out in ([name], relatives)]
        total = sum(ms for _, ms in measured[name])
        for point, last in ends.items():
            truth = sum(ms for index, ms in measured[name] if index <= last)
            work = head_work(split, point)
            errors.append([predict_ms(coefficients, work) / truth - 1 for coefficients in fits])
            rows.append([name, point, f"{truth / total:.0%}", *(f"{error:+.0%}" for error in errors[-1])])
    return rows, errors


def without(fitted: Fitted, left_out: list[str]) -> dict[str, float]:
    """Coefficients of a fit that has not seen these networks."""
    names = [name for name in fitted.works if name not in left_out]
    latencies_ms = [fitted.runtime.latencies_ms[name] for name in names]
    return fit([fitted.works[name] for name in names], latencies_ms, fitted.features)


def small(fits: list[Fitted]) -> list[list[str]]:
    """Heads of ResNet-50 at two sizes: the modelled latency, and how much of it is arithmetic."""
    rows = []
    for side in (224, 64):
        split = SplitModel(of_torchvision("resnet50").eval(), side)
        for point in ("stem", "layer1.2", "layer2.3", "layer3.5", "output"):
            work = head_work(split, point)
            row = [f"{side} px", point]
            for each in fits:
                terms = each.fit.terms_ms(work)
                arithmetic = sum(ms for feature, ms in terms.items() if "macs" in feature)
                row.append(f"{sum(terms.values()):.1f} ms, {arithmetic / sum(terms.values()):.0%}")
            rows.append(row)
    return rows


def elsewhere(ncnn: Fitted, single: Fitted, rows: list[dict[str, str]]) -> list[list[str]]:
    """Networks outside the fit of ncnn: a transformer, and YOLO as other people timed it."""
    transformer = count(Network(partial(of_torchvision, "vit_b_32", image_size=384), 384, ""))
    table = []
    for each in (ncnn, single):
        truth = each.runtime.latencies_ms["vision_transformer"]
        error = each.fit.predict_ms(transformer) / truth - 1
        table.append(["vision_transformer, 384 px", f"ncnn itself, {threads(each)}", f"{error:+.0%}"])
    for model, name, classes in (
        ("YOLO11n (5 classes)", "yolo11n", 5),
        ("YoloV8n", "yolov8n", 80),
        ("YoloV8s", "yolov8s", 80),
        ("YoloV10n", "yolov10n", 80),
    ):
        for row in rows:
            if row["model"] == model and row["runtime"].startswith("ncnn"):
                side = int(row["input"].partition("x")[0])
                work = count(Network(partial(of_ultralytics, name, classes), side, ""))
                error = ncnn.fit.predict_ms(work) / float(row["latency_ms"]) - 1
                board = ", at 1.95 GHz" if "1950" in row["device"] else ""
                source = row["source_repo_or_doc"].split()[0].partition("@")[0] + board
                table.append([f"{model}, {side} px", source, f"{error:+.0%}"])
    return table


# -- telling -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, numbers to the right."""
    ruler = ["---:" if cell.lstrip("*+-")[:1].isdigit() else "---" for cell in rows[0]]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def networks_table(each: Fitted, published: bool) -> str:
    """One row for each network, with or without the published number."""
    header = ["network", "side", "family", *(["published ms"] if published else []), "fitted ms", "error left out"]
    rows = []
    for name, network in each.runtime.networks.items():
        ms = [f"{each.runtime.latencies_ms[name]:.1f}"] if published else []
        predicted = each.fit.predict_ms(each.works[name])
        rows.append([name, str(network.side), network.family, *ms, f"{predicted:.1f}", f"{each.left_out[name]:+.1%}"])
    return table(header, rows)


def summary(fits: list[Fitted]) -> str:
    """One row for each runtime."""
    header = ["runtime", "networks", "median", "mean", "worst", "families: median", "worst", "nested: median", "worst"]
    rows = []
    for each in fits:
        family, nested = spread(each.by_family), spread(each.nested)
        errors = [*spread(list(each.left_out.values())), family[0], family[2], nested[0], nested[2]]
        rows.append([each.runtime.label, str(each.fit.networks), *(f"{error:.1%}" for error in errors)])
    return table(header, rows)


def sets_table(fits: list[Fitted]) -> str:
    """Errors of every feature set that was tried; the chosen one in bold."""
    rows = []
    for label, features in FEATURE_SETS.items():
        row = [f"{label} ({len(features)})"]
        for each in fits:
            median, mean, worst = each.means[label]
            text = f"{median:.1%}, {mean:.1%}, {worst:.0%}"
            row.append(f"**{text}**" if features == each.features else text)
        rows.append(row)
    return table(["features", *(each.runtime.label for each in fits)], rows)


def coefficients_table(each: Fitted) -> str:
    """What a million of each feature costs."""
    rows = []
    for feature, value in each.fit.coefficients.items():
        short = (
            feature.replace(MACS, "all MACs")
            .replace(OTHER_MACS, "other MACs")
            .replace("+fused_elements", ", fused too")
        )
        rows.append(
            [
                short.replace(WRITTEN, "elements written")
                .replace(OPERATIONS, "operations")
                .replace("+fused", ", fused too"),
                f"{1e6 * value:,.{3 if value < 1e-4 else 0}f}",
            ]
        )
    return table(["feature", "ns each"], rows)


INTRODUCTION = """\
# Raspberry Pi 4 B, modelled

`python benchmarks/fit_raspberry_pi.py ../shared/data/pi4`, {date}. Latencies of whole networks, published by others,
fitted as a sum over counted work (`spaces/work.py`) by non-negative least squares on relative errors. Sources:

{sources}

Errors are of networks left out: the fit predicts a network that it has not seen. *Families* leaves out all relatives at
once (all ResNets, say), which is what a network of another kind must expect. *Nested* chooses the feature set anew
without the network that is predicted.

{summary}

Median, mean and worst error of the {sets} feature sets that the choice was made from, the chosen one (smallest root
mean square) in bold; in brackets the number of coefficients. The errors of the chosen one are somewhat too good, and so
are the nested ones: which kinds of work are told apart, and these sets, were settled by hand before, in some forty fits
of the same latencies. Winograd convolutions are apart because VGG came out too slow, copies because ShuffleNet came out
too fast in int8. The first rule was the smallest mean; for ncnn with 4 threads it takes "nothing fused" by a hair, with
a lower median and a worst error twice as large, which is why the rule became the root mean square.

{feature_sets}
"""

HEADS = """
## Heads

A cut needs the latency of a head. TensorFlow's blocks were measured one by one, so the fit can be held against the sum
of the blocks up to a partition point. No fit here has seen a block, only whole networks, and not this one; the last
column is of a fit that has seen none of its family either. Median and worst error: {network} without the network,
{family} without the family. Heads are predicted worse than whole networks, most of all early in ResNet and DenseNet,
where tensors are large and the fit overestimates what writing them costs. For the other runtimes no blocks
are published.
"""

SMALL = """
## Small images

Modelled latency of torchvision's ResNet-50 and of its heads, and the share of it that is arithmetic. One network in the
fits saw a picture of 128 px (BlazeFace, with ncnn), all others 224 px or more, and nothing at 64 px was published: the
rows at 64 px are extrapolation, and no error is known for them. There, reading weights and starting operations count
for more, which whole networks at 224 px tell poorly. ncnn's fits have no cost of an operation (offered one, the fit
makes it zero, and BlazeFace comes out too slow without it), and little or none of reading weights; PyTorch's has none
of weights. Deep in a network at 64 px, where weights are read for a few positions only, these three are probably
too fast.
"""

OUTSIDE = """
## Outside the fit

ncnn, with 4 threads unless said. The transformer is another kind of network, whose attention ncnn computes slowly:
**for transformers these fits are far too fast**. The detectors were timed by other people, on another clock or with
fp16 storage, and partly with the decoding of boxes, so the fit cannot be blamed for all of the difference.
"""


def threads(each: Fitted) -> str:
    """In words."""
    return f"{each.fit.threads} thread" + ("s" if each.fit.threads > 1 else "")


def report(fits: list[Fitted], folder: Path, ncnn_elsewhere: list[list[str]]) -> str:
    """The file that is kept."""
    by_source: dict[str, list[str]] = {}
    for each in fits:
        by_source.setdefault(each.runtime.source, []).append(f"`{each.runtime.label}`")
    sources = "\n".join(f"- {', '.join(labels)}: {source}" for source, labels in by_source.items())
    parts = [
        INTRODUCTION.format(
            date=datetime.date.today().isoformat(),
            sources=sources,
            sets=len(FEATURE_SETS),
            summary=summary(fits),
            feature_sets=sets_table(fits),
        )
    ]
    for each in fits:
        title = f"## {each.runtime.label}: {each.fit.runtime}, {threads(each)}, {each.fit.precision}"
        parts += [title, coefficients_table(each), networks_table(each, published=False)]
    tensorflow = next(each for each in fits if each.runtime.label == "tensorflow")
    head_rows, head_errors = heads(tensorflow, folder)
    network, family = ("{0:.0%} and {2:.0%}".format(*spread(errors)) for errors in zip(*head_errors))
    head_header = ["network", "cut after", "share of the latency", "without the network", "without the family"]
    parts += [
        HEADS.format(network=network, family=family),
        table(head_header, head_rows),
        SMALL,
        table(["picture", "cut after", *(each.runtime.label for each in fits)], small(fits)),
        OUTSIDE,
        table(["network", "timed by", "error"], ncnn_elsewhere),
        "## Left out",
        table(["rows", "why"], LEFT_OUT),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def profile(fits: list[Fitted]) -> str:
    """The device profile: what is there up to its last key, and these fits."""
    kept, _, _ = PROFILE.read_text(encoding="utf-8").partition("\nfits:")
    found = {"fits": {each.runtime.label: each.fit.to_dict() for each in fits}}
    return f"{kept.rstrip()}\n{yaml.safe_dump(found, sort_keys=False, width=120)}"


def main() -> None:
    """Count, fit, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "pi4")
    folder = parser.parse_args().folder
    warnings.filterwarnings("ignore", module="timm")
    counted: dict[int, dict[str, Work]] = {}
    fits = []
    for runtime in runtimes(folder):
        key = id(runtime.networks)
        if key not in counted:
            counted[key] = {name: count(network) for name, network in runtime.networks.items()}
        fits.append(fitted(runtime, counted[key]))
        print(f"\n{fits[-1].runtime.label}\n\n{networks_table(fits[-1], published=True)}")
    print(f"\n{summary(fits)}\n\n{sets_table(fits)}")
    outside = elsewhere(fits[0], fits[1], read(folder / "pi4_latency.csv"))
    REPORT.write_text(report(fits, folder, outside), encoding="utf-8")
    PROFILE.write_text(profile(fits), encoding="utf-8")
    print(f"\nwritten: {REPORT.relative_to(ROOT)}, {PROFILE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
