"""Times the stages of a half, one by one, and says on which machine.

Inside a timed stage: what has to happen for each picture. Outside: loading models, opening files, the link.

    device   head        normalise the picture, run the head
             encode      run the encoder
             pack        quantize, pack, header and checksum
             compress    the lossless coder, or JPEG for a server-only folder
    server   decompress  the lossless coder, or JPEG
             unpack      check the header, unpack, dequantize; normalise the picture for a server-only folder
             decode      run the decoder
             tail        run the tail
"""

from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path
from typing import Callable

import numpy as np
import onnxruntime
import PIL

from . import halves
from . import picture as pictures
from . import wire as wires

WARMUP_S = 0.5
BUDGET_S = 0.7
LEAST_REPEATS = 10


def time_stages(
    stages: dict[str, Callable[[], object]], budget_s: float = BUDGET_S, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict]:
    """Run the stages one after the other, as for one picture after the other, and time each.

    In this order, not stage by stage: normalising a picture takes several times longer between two runs of a network,
    whose threads keep the processor busy, than in a loop of its own.

    Args:
        stages: in order, each ready to be called.
        budget_s: seconds for all of them together; there are at least ten runs whatever it is.
        clock: seconds.

    Returns:
        Stage to median, 90th percentile, spread (interquartile range over median) and number of runs. The runs of the
        first half second are not counted.
    """
    _repeat(stages, WARMUP_S, 1, clock)
    times = _repeat(stages, budget_s, LEAST_REPEATS, clock)
    return {name: _statistics(runs) for name, runs in times.items()}


def _repeat(
    stages: dict[str, Callable[[], object]], budget_s: float, least: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in stages}
    start, done = clock(), 0
    while done < least or clock() - start < budget_s:
        for name, stage in stages.items():
            before = clock()
            stage()
            times[name].append((clock() - before) * 1000)
        done += 1
    return times


def _statistics(times: list[float]) -> dict:
    low, median, high, p90 = np.percentile(times, [25, 50, 75, 90])
    return {
        "p50_ms": float(median),
        "p90_ms": float(p90),
        "spread": float((high - low) / median),
        "repeats": len(times),
    }


def device_stages(half: halves.DeviceHalf) -> dict[str, Callable[[], object]]:
    """The stages of a device folder in order, each ready to be called on the folder's sample picture."""
    pixels = np.load(half.folder / "sample.npy")
    stages: dict[str, Callable[[], object]] = {}
    if half.jpeg_quality is not None:
        stages["compress"] = functools.partial(pictures.to_jpeg, pixels, half.jpeg_quality)
    if half.has("head"):
        stages["head"] = lambda: half.head(pixels)
    if half.wire is not None and half.has("encoder"):
        wire = half.wire
        features = half.head(pixels)
        activations = half.activations(features)
        packed = wires.pack_tensors(activations, wire)
        stages["encode"] = lambda: half.activations(features)
        stages["pack"] = lambda: wires.frame(wires.pack_tensors(activations, wire), wire)
        if wire.coder != "packed":
            stages["compress"] = lambda: wires.compress(packed, wire)
    return stages


def server_stages(half: halves.ServerHalf) -> dict[str, Callable[[], object]]:
    """The stages of a server folder in order, each ready to be called on the folder's sample."""
    if (half.folder / "features.npz").exists():
        with np.load(half.folder / "features.npz") as stored:
            tensors = [stored[name] for name in stored.files]
        return {"tail": lambda: half.run("tail", tensors)}
    if half.wire is None:
        return _picture_stages(half)
    wire = half.wire
    payload = (half.folder / "sample.payload").read_bytes()
    activations = [tensor[None] for tensor in wires.decode(payload, wire)]
    features = half.run("decoder", activations)
    body = wires.unframe(payload, wire)
    packed = wires.decompress(body, wire)
    stages: dict[str, Callable[[], object]] = {}
    if wire.coder != "packed":
        stages["decompress"] = lambda: wires.decompress(body, wire)
    stages["unpack"] = lambda: (wires.unframe(payload, wire), wires.unpack_tensors(packed, wire))
    stages["decode"] = lambda: half.run("decoder", activations)
    stages["tail"] = lambda: half.run("tail", features)
    return stages


def _picture_stages(half: halves.ServerHalf) -> dict[str, Callable[[], object]]:
    pixels = np.load(half.folder / "sample.npy")
    stages: dict[str, Callable[[], object]] = {}
    if half.jpeg_quality is not None:
        data = pictures.to_jpeg(pixels, half.jpeg_quality)
        pixels = pictures.from_jpeg(data)
        stages["decompress"] = lambda: pictures.from_jpeg(data)
    tensor = pictures.to_input(pixels, half.picture)
    stages["unpack"] = lambda: pictures.to_input(pixels, half.picture)
    stages["tail"] = lambda: half.run("tail", [tensor])
    return stages


def machine() -> dict:
    """What a timing is worth nothing without: processor, cores, versions."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or "unknown"


def measure(folder: Path, only: list[str] | None = None, budget_s: float = BUDGET_S) -> dict:
    """Time the stages of a device or server folder.

    Args:
        folder: holds ``device.json`` or ``server.json``.
        only: names of the stages wanted, all of them when not given; the others run as well, unreported.

    Returns:
        ``{"format": 1, "machine": {...}, "threads": int, "stages": {stage: statistics}}``, the statistics as in
        :func:`time_stages`.
    """
    folder = Path(folder)
    half: halves.Half
    if (folder / "device.json").exists():
        half = halves.DeviceHalf(folder)
        stages = device_stages(half)
    else:
        half = halves.ServerHalf(folder)
        stages = server_stages(half)
    timed = {name: row for name, row in time_stages(stages, budget_s).items() if only is None or name in only}
    return {"format": 1, "machine": machine(), "threads": half.manifest["threads"], "stages": timed}
