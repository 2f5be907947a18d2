"""The paper's headline on recorded hardware.

    python benchmarks/headline.py          # about two minutes; writes benchmarks/results/headline.md

The tables: ResNet-50 at 224 pixels, cut after the stem, between the recorded Raspberry Pi 4 and the recorded server
with a GPU (TensorFlow, block by block), at 1 to 10 MB/s with a round trip of 2 ms; once more with the Raspberry Pi as
it is modelled for ncnn. Payloads are packed values, no lossless coder, so their size is known exactly; encoder, packing
and JPEG are timed here and scaled. The JPEG is the one of about 11.5 kB that the field reports to keep 74 % of ImageNet
(sc2bench, read off a figure). Where accuracies were measured, the rate below which a cut beats a codec is in
squeeze.md.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluators.edge import wire
from evaluators.edge.picture import PictureFormat
from evaluators.edge.picture_codecs import CODECS, PictureCoding
from evaluators.latency.compose import compose
from evaluators.latency.links import LinkProfile
from evaluators.latency.machine_for import machine_for
from evaluators.latency.machines import Machine
from evaluators.latency.profiles import load_machine
from evaluators.latency.stage_timer import Stages, StageTimer, untrained
from evaluators.latency.table import StageTable
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import ModelSettings
from evaluators.store import Store
from spaces.config import SplitConfig

RESULTS = Path(__file__).parent / "results"
TABLES = Path("runs") / "benchmarks"  # timings of this machine, one store for each picture size
RATES = (1.0, 2.0, 5.0, 10.0)
RTT_MS = 2.0
MODEL, CLASSES = "torchvision/resnet50", 50
JPEG_BYTES = 11_500  # keeps some 74 % of ImageNet


@dataclass(frozen=True, eq=False)
class Way:
    """A way to an answer: stages on both sides, and bytes between."""

    name: str
    stages: Stages
    payload_bytes: float
    accuracy: float = 0.0

    def latency_ms(self, rate_mb_per_s: float) -> float:
        """All of it, over a link of this rate."""
        link = LinkProfile(rate_mb_per_s=rate_mb_per_s, rtt_ms=RTT_MS)
        return compose(self.stages.timings, link, self.payload_bytes).total_ms

    @property
    def compute_ms(self) -> float:
        """Without the link."""
        return sum(timing.p50_ms for timing in self.stages.timings.values())


class ReplayResult:
    """ResNet-50 at one size between two machines."""

    def __init__(self, split: SplitModel, device: Machine, server: Machine) -> None:
        size = split.image_size
        picture = PictureFormat(size=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        # Noise: JPEG takes longest with it, so the picture's own contents do JPEG no favour.
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        self.split, self.watch = split, StageTimer(device, server, split, picture, _smooth(noise))

    def cut(self, config: SplitConfig, accuracy: float = 0.0) -> Way:
        """A cut with packed payloads."""
        squeeze = untrained(self.split, config)
        activations = [np.zeros(levels.shape, np.float32) for levels in squeeze.form.tensors]
        payload = wire.encode(activations, squeeze.form)
        return Way(config.label, self.watch.split(config, squeeze, payload), len(payload), accuracy)

    def picture(self, quality: int | None, payload_bytes: float, accuracy: float = 0.0, codec: str = "jpeg") -> Way:
        """The picture itself, raw or as a codec's file."""
        if quality is None:
            return Way("raw picture", self.watch.server_only(), payload_bytes, accuracy)
        coding = PictureCoding(CODECS[codec], quality)
        return Way(coding.label, self.watch.server_only_coded([coding])[0], payload_bytes, accuracy)

    def on_device(self) -> Way:
        """Everything on the device."""
        return Way("all on the device", self.watch.all_on_device(), 0.0)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Noise with some likeness to a picture: each value the mean of its neighbourhood."""
    found = noise.astype(np.float32)
    for axis in (0, 1):
        found = sum(np.roll(found, shift, axis) for shift in range(-2, 3)) / 5
    return (255 * (found - found.min()) / (found.max() - found.min())).astype(np.uint8)


def headline(table: StageTable, board: str) -> str:
    """The first table, for one way of knowing the Raspberry Pi."""
    split = SplitModel(build(ModelSettings(name=MODEL, num_classes=1000)).network, 224)
    device = machine_for(load_machine(board, "device"), table)
    server = machine_for(load_machine("i7_6700k_gpu_resnet50", "server"), table)
    result = ReplayResult(split, device, server)
    alone = result.on_device()
    raw, jpeg = result.picture(None, 3 * 224 * 224), result.picture(75, JPEG_BYTES)
    cuts = [
        result.cut(SplitConfig(partition="stem", ae_ratio=ratio, bits=bits))
        for ratio in (1.0, 0.25)
        for bits in (1, 2, 3)
    ]
    heads = (
        "rate",
        "cut after the stem",
        "bytes",
        "ms",
        "raw",
        "speed-up",
        "JPEG",
        "speed-up",
        "on device",
        "speed-up",
    )
    lines = [_row(heads), "| ---: | --- |" + " ---: |" * 8]
    for rate in RATES:
        for way in cuts:
            ms = way.latency_ms(rate)
            rivals = [each.latency_ms(rate) for each in (raw, jpeg, alone)]
            cells = " | ".join(f"{rival:.1f} | {rival / ms:.2f}x" for rival in rivals)
            what = way.name.removeprefix("stem, ")
            lines.append(f"| {rate:g} MB/s | {what} | {way.payload_bytes:,.0f} | {ms:.1f} | {cells} |")
    parts = compose(cuts[0].stages.timings, LinkProfile(rate_mb_per_s=1.0), 0).to_dict()
    sources = {stage: str(timing.source) for stage, timing in cuts[0].stages.timings.items()}
    said = ", ".join(f"{stage} {parts[f'{stage}_ms']:.2f} ({source})" for stage, source in sources.items())
    return "\n".join([*lines, "", f"Parts of the first row in ms, without the link: {said}."])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def crossover(cut: Way, jpeg: Way) -> float | None:
    """The link rate in MB/s below which the cut is faster: infinite where it always is, None where it sends no less."""
    saved_bytes = jpeg.payload_bytes - cut.payload_bytes
    if saved_bytes <= 0:
        return None
    extra_ms = cut.compute_ms - jpeg.compute_ms
    return saved_bytes / (1000.0 * extra_ms) if extra_ms > 0 else float("inf")


_HEAD = """# The headline

`python benchmarks/headline.py` on {date}; its first lines say what is what. The paper (abstract): ResNet-50 cut after
the convolutional stem is 2.33 times as fast as the server-only solution and 1.85 times as fast as all-on-node.
"""


def main() -> None:
    """Compute the tables and write them down."""
    large = StageTable(Store(TABLES / "headline-224"))
    sections = {
        "Recorded: Raspberry Pi 4 with TensorFlow": headline(large, "raspberry_pi_4b_resnet50"),
        "Modelled: Raspberry Pi 4 with ncnn": headline(large, "raspberry_pi_4b"),
    }
    parts = [f"## {name}\n\n{text}\n" for name, text in sections.items()]
    parts.insert(0, _HEAD.format(date=datetime.date.today()))
    (RESULTS / "headline.md").write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
