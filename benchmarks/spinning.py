"""What the threads of one network cost the next one of the same half.

    python benchmarks/spinning.py

A server half runs a decoder and then a tail, each an onnxruntime session. Three ways to give them threads:

    own, spinning   onnxruntime's default: each network has its own, and the decoder's keep the cores busy for a while
                    after it has returned
    own, stopping   each has its own, which stop when it has returned (``session.force_spinning_stop``)
    shared          one pool for both, which is what a half's own program does (``evaluators/edge/threads.py``)

Each way is timed in processes of its own, in turn, round by round, and the whole network in the same rounds, which is
all that a server runs behind a picture; without a pause between pictures, as stages are timed, and with one. Weights
are random.

Results go to benchmarks/results/spinning.md.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from evaluators.latency.stage_timer import untrained
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.models.onnx_export import OnnxNetwork, save_module
from evaluators.settings import ModelSettings
from spaces.config import SplitConfig

RESULTS = Path(__file__).parent / "results" / "spinning.md"
NETWORKS = {
    "torchvision/resnet50": (64, SplitConfig(partition="layer2.3", ae_ratio=0.125, bits=1, head="distilled")),
    "ultralytics/yolov10n": (320, SplitConfig(partition="model.4", ae_ratio=0.25, bits=2, head="distilled")),
}
ROUNDS, RUNS, WARM = 6, 40, 10
PAUSES_S = (0.0, 0.03)
OWN_SPINNING, OWN_STOPPING, SHARED = WAYS = ("own, spinning", "own, stopping", "shared")
Milliseconds = dict[str, list[float]]
_PAGE = """# Threads of one network while the next one runs

`python benchmarks/spinning.py` on {date}, {cores} cores, onnxruntime {version}; its first lines say what is what.
Medians over {rounds} rounds of the median of {runs} runs, and the least and the greatest of the rounds, in ms.

| network | pause | threads | decoder | tail behind it | both | the whole network |
| --- | ---: | --- | ---: | ---: | ---: | ---: |
"""


def save_parts(model: str, image_size: int, config: SplitConfig, folder: Path) -> None:
    """Decoder, tail and whole network as ONNX."""
    split = SplitModel(build(ModelSettings(name=model, num_classes=50)).network, image_size)
    exported, squeeze = OnnxNetwork(split), untrained(split, config)
    received = [torch.zeros(1, *levels.shape) for levels in squeeze.form.tensors]
    save_module(
        squeeze.decoder.eval(), received, folder / "decoder.onnx", len(split.tap(config.partition).point.shapes)
    )
    exported.save_part(config.partition, "output", folder / "tail.onnx")
    exported.save_part("input", "output", folder / "whole.onnx")


def one_round(folder: Path, way: str, pause_s: float) -> dict[str, float]:
    """Medians of decoder and tail, run in turn, then of the whole network, in ms; a pause before each picture."""
    if way == SHARED:
        onnxruntime.set_global_thread_pool_sizes(os.cpu_count() or 1, 1)
    found: Milliseconds = {"decoder": [], "tail": [], "whole": []}
    for names in (("decoder", "tail"), ("whole",)):
        runs = [(name, *_session(folder / f"{name}.onnx", way)) for name in names]
        for number in range(WARM + RUNS):
            if pause_s:
                time.sleep(pause_s)
            for name, session, inputs in runs:
                start = time.perf_counter()
                session.run(None, inputs)
                if number >= WARM:
                    found[name].append(1000 * (time.perf_counter() - start))
        del runs
        time.sleep(0.1)
    return {name: statistics.median(times) for name, times in found.items()}


def _session(path: Path, way: str) -> tuple[onnxruntime.InferenceSession, dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    if way == SHARED:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = os.cpu_count() or 1
        options.add_session_config_entry("session.force_spinning_stop", "1" if way == OWN_STOPPING else "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    return session, {
        each.name: random.standard_normal([1, *each.shape[1:]]).astype(np.float32) for each in session.get_inputs()
    }


def rows(model: str, folder: Path, pause_s: float) -> Iterator[str]:
    """One line of the table for each way."""
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            command = [sys.executable, __file__, "--folder", str(folder), "--way", way, "--pause", str(pause_s)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds[way].append(json.loads(said))
    for way, found in rounds.items():
        columns = [[each[name] for each in found] for name in ("decoder", "tail")]
        columns += [[each["decoder"] + each["tail"] for each in found], [each["whole"] for each in found]]
        cells = (f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" for times in columns)
        yield f"| {model} | {1000 * pause_s:g} ms | {way} | {' | '.join(cells)} |"


def write_page() -> None:
    """Time both networks all ways and write the page."""
    version = onnxruntime.__version__
    today = datetime.date.today()
    text = _PAGE.format(date=today, cores=os.cpu_count(), version=version, rounds=ROUNDS, runs=RUNS)
    for model, (image_size, config) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            save_parts(model, image_size, config, Path(folder))
            for pause_s in PAUSES_S:
                for row in rows(f"{model}, {image_size} px, {config.partition}", Path(folder), pause_s):
                    print(row, flush=True)
                    text += f"{row}\n"
    RESULTS.write_text(text)


def main() -> None:
    """The page; or one round of one way, in a process of its own."""
    parser = argparse.ArgumentParser(description="What the threads of one network cost the next one.")
    parser.add_argument("--folder", type=Path, help="one round: where the networks are")
    parser.add_argument("--way", choices=WAYS, help="one round: how they get their threads")
    parser.add_argument("--pause", type=float, default=0.0, help="one round: seconds before each picture")
    options = parser.parse_args()
    if options.folder is None:
        write_page()
    else:
        print(json.dumps(one_round(options.folder, options.way, options.pause)))


if __name__ == "__main__":
    main()
