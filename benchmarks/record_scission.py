"""Recorded profiles of ResNet-50 from blocks that others measured on a Raspberry Pi 4 and on a server.

    python benchmarks/record_scission.py                    # reads ../shared/data/pi4, writes hardware_profiles/devices
    python benchmarks/record_scission.py --data DIR

The data set (qub-blesson/Scission, commit b765b2bd, April 2020, arXiv 2008.03523) has the latency of every block of
Keras networks on five machines, with TensorFlow 2.1 in eager mode. Its blocks of ResNet-50 end at the sum of each
residual block, ours one operation later, after the activation; its first block holds the max-pooling that our
``stem`` ends with. Both steps were measured elsewhere in the same data, on the same machine with the same runtime:

    max-pooling   the very same operation (3x3, stride 2, of 64x114x114) is a block of its own in ResNet50V2
    activation    two are blocks of their own in ResNet-50, of 802,816 and of 100,352 values; between those sizes
                  the latency is taken to be a straight line

So a head is the sum of the blocks up to its point, plus one such step; a tail is the whole minus the head.

What is assumed: Keras' blocks stand for torchvision's, although Keras' ResNet-50 has its strides in the first
convolution of a block, torchvision's in the second, which is 6 % more arithmetic in all. And each block was called by
itself, which adds overhead that a whole network does not have.
"""

import argparse
import csv
import textwrap
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "hardware_profiles" / "devices"
FILE = "scission_blocks_all_devices.csv"
# First Keras layer of the block that ends with our point's residual sum.
BLOCKS = {
    **dict(zip((6, 18, 28), ("layer1.0", "layer1.1", "layer1.2"))),
    **dict(zip((38, 50, 60, 70), ("layer2.0", "layer2.1", "layer2.2", "layer2.3"))),
    **dict(zip((80, 92, 102, 112, 122, 132), (f"layer3.{number}" for number in range(6)))),
    **dict(zip((142, 154, 164), ("layer4.0", "layer4.1", "layer4.2"))),
}
STEM_LAYERS = (0, 2, 3, 4)  # padding, convolution, normalisation, activation
STEM_PADDING, RELU_LARGE, RELU_SMALL, POOLING, CLASSIFIER = 5, 4, 174, 175, 176
MAX_POOLING_OF_V2 = 4
MACHINES = {
    "device-raspi4": ("raspberry_pi_4b_resnet50", "Raspberry Pi 4"),
    "cloud-6700k(GPU)": ("i7_6700k_gpu_resnet50", "i7-6700K with a GPU"),
}


@dataclass(frozen=True)
class Block:
    """One row: the Keras layers from ``first`` on."""

    first: int
    ms: float
    elements: int  # that it returns


def read_blocks(path: Path, device: str, network: str) -> dict[int, Block]:
    """The blocks of a network on a machine, by their first layer, in order."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["device"], row["model"]) == (device, network)]
    blocks = [
        Block(int(row["first_keras_layer"]), float(row["latency_ms"]), (int(row["output_npy_bytes"]) - 128) // 4)
        for row in rows
    ]
    return {block.first: block for block in sorted(blocks, key=lambda block: block.first)}


def heads(blocks: dict[int, Block], max_pooling_ms: float) -> dict[str, float]:
    """Latency of the head of each of our partition points, in milliseconds.

    Args:
        blocks: of ResNet-50.
        max_pooling_ms: of the stem's.
    """

    def until(layer: int) -> float:
        return sum(block.ms for block in blocks.values() if block.first <= layer)

    large, small = blocks[RELU_LARGE], blocks[RELU_SMALL]
    slope = (large.ms - small.ms) / (large.elements - small.elements)
    relu = until(RELU_LARGE)
    found = {"relu": relu, "stem": relu + blocks[STEM_PADDING].ms + max_pooling_ms}
    for first, point in BLOCKS.items():
        # The last block's activation is a row of its own, and lies on the line by construction.
        found[point] = until(first) + small.ms + slope * (blocks[first].elements - small.elements)
    found["avgpool"] = until(POOLING)
    found["output"] = until(CLASSIFIER)
    return found


def _section(profile: str, key: str) -> list[str]:
    """The lines of a section of another profile of the same board."""
    lines = (FOLDER / f"{profile}.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith(" "))
    return lines[start:end]


def profile_text(name: str, machine: str, found: dict[str, float]) -> str:
    """The profile as YAML."""
    whole = found["output"]
    tails = {"input": whole} | {point: whole - ms for point, ms in found.items() if point != "output"}
    note = (
        f"Sums of measured blocks, on a {machine}; how Keras' blocks map onto these partition points, and what is "
        "assumed, stands in benchmarks/record_scission.py, which wrote this file. Spread and number of runs are not "
        "known. Calling each block by itself adds overhead, so proportions deserve more trust than absolute times."
    )
    source = (
        "qub-blesson/Scission benchmark_data at commit b765b2bd, April 2020 (arXiv 2008.03523), measured by its authors"
    )
    lines = ["format: 1", f"name: {name}", "kind: recorded", "model: torchvision/resnet50", "image_size: 224"]
    lines += ["runtime: TensorFlow 2.1 (Keras, eager, block by block)", "threads: all", "precision: fp32"]
    lines += ["date: 2020-04", "source: >-", *_folded(source), "note: >-", *_folded(note)]
    if name == "raspberry_pi_4b_resnet50":
        lines += _section("raspberry_pi_4b", "interpreter")  # nobody timed packing and compressing there
    lines += ["timings:"]
    for stage, rows in (("head", found), ("tail", tails)):
        lines += [f"  {stage}:  # ms", *(f"    {point}: {ms:.2f}" for point, ms in rows.items())]
    return "\n".join(lines) + "\n"


def _folded(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")


def main() -> None:
    """Write both profiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pi4"), help="folder of the CSV files")
    path = parser.parse_args().data / FILE
    for device, (name, machine) in MACHINES.items():
        blocks = read_blocks(path, device, "resnet50")
        max_pooling_ms = read_blocks(path, device, "resnet50v2")[MAX_POOLING_OF_V2].ms
        target = FOLDER / f"{name}.yaml"
        target.write_text(profile_text(name, machine, heads(blocks, max_pooling_ms)))
        print(target)


if __name__ == "__main__":
    main()
