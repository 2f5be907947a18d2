"""Times the stages of a half, one by one, and says on which machine.

Inside a timed stage: what has to happen for each picture. Outside: loading models, opening files, the link.

    device   head        normalise the picture, run the head
             encode      run the encoder
             pack        quantize, pack, header and checksum
             compress    the lossless coder, or the picture codec for a server-only folder
    server   decompress  the lossless coder, or the picture codec
             unpack      check the header, unpack, dequantize; normalise the picture for a server-only folder
             decode      run the decoder
             tail        run the tail

A folder may ask for several bit-widths in one go, as stages ``pack b1`` and ``pack b4``, and a server-only folder for
several picture codecs, as ``compress webp 50``. A codec that the machine's Pillow lacks has no stages.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from . import circumstances, halves
from . import picture as images
from . import wire as wires
from .picture_codecs import PictureCoding

WARMUP_S = 0.5
BUDGET_S = 1.5
LEAST_REPEATS = 10
PRECISION, PRECISION_MS = 0.02, 0.01  # half the interval of a median that is narrow enough: of the median, or in all


def time_stages(
    stages: dict[str, Callable[[], object]],
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict]:
    """Run the stages one after the other, as for one picture after the other, and time each.

    In this order, not stage by stage: normalising a picture takes several times longer between two runs of a network,
    whose threads keep the processor busy, than in a loop of its own.

    Runs go on until the median of every stage is known to within 2 % or 10 us either way (95 % confidence), or the
    budget ends.

    Args:
        stages: in order, each ready to be called. Those whose names begin with an underscore are run as well, and not
            reported.
        budget_s: seconds for all of them together, at most; there are at least ten runs whatever it is.
        clock: seconds.

    Returns:
        Stage to statistics, see :func:`statistics`. The runs of the first half second are not counted.
    """
    if not stages:
        return {}
    start = clock()
    while True:
        _run_once(stages, clock)
        if clock() - start >= WARMUP_S:
            break
    times: dict[str, list[float]] = {name: [] for name in stages if not name.startswith("_")}
    start, look_at = clock(), LEAST_REPEATS
    while True:
        found = _run_once(stages, clock)
        for name, runs in times.items():
            runs.append(found[name])
        done = len(next(iter(times.values())))
        if done >= LEAST_REPEATS and clock() - start >= budget_s:
            break
        if done == look_at:
            if all(_narrow(statistics(runs)) for runs in times.values()):
                break
            look_at *= 2
    return {name: statistics(runs) for name, runs in times.items()}


def _run_once(stages: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each stage."""
    times = {}
    for name, stage in stages.items():
        before = clock()
        stage()
        times[name] = (clock() - before) * 1000
    return times


def statistics(times_ms: list[float]) -> dict:
    """Of one stage's runs, in milliseconds.

    Returns:
        ``p50_ms`` and ``p90_ms``; ``spread``: interquartile range over median; ``interval_ms``: of the median, 95 %
        confidence, from the binomial distribution of ranks; ``repeats``; ``runs_ms``: the runs themselves, in order.
    """
    ordered = np.sort(times_ms)
    count = len(ordered)
    low, median, high, p90 = np.percentile(ordered, [25, 50, 75, 90])
    reach = 0.98 * count**0.5  # 1.96 deviations of a binomial count with probability 1/2
    first, last = int(max(np.floor(count / 2 - reach), 0)), int(min(np.ceil(count / 2 + reach), count - 1))
    return {
        "p50_ms": float(median),
        "p90_ms": float(p90),
        "spread": float((high - low) / median) if median else 0.0,
        "interval_ms": [float(ordered[first]), float(ordered[last])],
        "repeats": count,
        "runs_ms": [round(ms, 6) for ms in times_ms],
    }


def _narrow(row: dict) -> bool:
    low, high = row["interval_ms"]
    return bool(high - low <= 2 * max(PRECISION * row["p50_ms"], PRECISION_MS))


def device_stages(half: halves.DeviceHalf) -> dict[str, Callable[[], object]]:
    """The stages of a device folder in order, each ready to be called on the folder's sample picture."""
    pixels = np.load(half.folder / "sample.npy")
    stages: dict[str, Callable[[], object]] = {}
    for ending, coding in _codings(half).items():
        if coding is not None:
            stages[f"compress{ending}"] = functools.partial(coding.encode, pixels)
    if half.has("head"):
        stages["head"] = lambda: half.head(pixels)
    if half.wire is not None and half.has("encoder"):
        wire = half.wire
        features = half.head(pixels)
        activations = half.activations(features)
        packed = wires.pack_tensors(activations, wire)
        stages["encode"] = lambda: half.activations(features)
        for number, (ending, form) in enumerate(_forms(half, wire).items()):
            if number:  # another picture: packing right after packing is faster than after a network
                stages[f"_head{ending}"], stages[f"_encode{ending}"] = stages["head"], stages["encode"]
            stages[f"pack{ending}"] = functools.partial(_pack, activations, form)
        if wire.coder != "packed":
            stages["compress"] = lambda: wires.compress(packed, wire)
    return stages


def _forms(half: halves.Half, wire: wires.WireFormat) -> dict[str, wires.WireFormat]:
    """What packing is timed with, by what is added to the stages' names: the folder's own format, or several."""
    forms = [wires.WireFormat.from_dict(each) for each in half.manifest.get("timed_wires", ())]
    return {f" b{form.bits}": form for form in forms} or {"": wire}


def _pack(activations: list[np.ndarray], wire: wires.WireFormat) -> bytes:
    return wires.frame(wires.pack_tensors(activations, wire), wire)


def _unpack(payload: bytes, packed: bytes, wire: wires.WireFormat) -> list[np.ndarray]:
    wires.unframe(payload, wire)
    return wires.unpack_tensors(packed, wire)


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
    stages: dict[str, Callable[[], object]] = {}
    if wire.coder != "packed":
        stages["decompress"] = lambda: wires.decompress(body, wire)
    for number, (ending, form) in enumerate(_forms(half, wire).items()):
        if number:
            stages[f"_tail{ending}"] = functools.partial(half.run, "tail", features)
        sent = payload if form is wire else wires.encode([tensor[0] for tensor in activations], form)
        arrived = wires.decompress(wires.unframe(sent, form), form)
        stages[f"unpack{ending}"] = functools.partial(_unpack, sent, arrived, form)
    stages["decode"] = lambda: half.run("decoder", activations)
    stages["tail"] = lambda: half.run("tail", features)
    return stages


def _codings(half: halves.Half) -> dict[str, Optional[PictureCoding]]:
    """What is timed of a folder's picture codecs, by what is added to the stages' names; None is the raw picture."""
    if half.timed_codings:
        return {f" {coding}": coding for coding in half.timed_codings if coding.codec.available}
    return {"": half.coding}


def _picture_stages(half: halves.ServerHalf) -> dict[str, Callable[[], object]]:
    """Those of a server that takes pictures, of each codec in turn as for one picture after the other."""
    stages: dict[str, Callable[[], object]] = {}
    for ending, coding in _codings(half).items():
        stages.update({f"{name}{ending}": stage for name, stage in _stages_behind(half, coding).items()})
    return stages


def _stages_behind(half: halves.ServerHalf, coding: Optional[PictureCoding]) -> dict[str, Callable[[], object]]:
    pixels = np.load(half.folder / "sample.npy")
    stages: dict[str, Callable[[], object]] = {}
    if coding is not None:
        data = coding.encode(pixels)
        pixels = coding.decode(data)
        stages["decompress"] = lambda: coding.decode(data)
    tensor = images.to_input(pixels, half.picture)
    stages["unpack"] = lambda: images.to_input(pixels, half.picture)
    stages["tail"] = lambda: half.run("tail", [tensor])
    return stages


def measure(
    folder: Path,
    only: list[str] | None = None,
    budget_s: float = BUDGET_S,
    device_half: type[halves.DeviceHalf] = halves.DeviceHalf,
    server_half: type[halves.ServerHalf] = halves.ServerHalf,
) -> dict:
    """Time the stages of a device or server folder.

    Args:
        folder: holds ``device.json`` or ``server.json``.
        only: names of the stages wanted, all of them when not given; the others run as well, unreported.
        budget_s: seconds for all stages together.
        device_half, server_half: what opens the folder; others than the usual ones run it with another library.

    Returns:
        What :func:`timed` returns, and ``threads``.
    """
    folder = Path(folder)
    half: halves.Half
    if (folder / "device.json").exists():
        half = device_half(folder)
        stages = device_stages(half)
    else:
        half = server_half(folder)
        stages = server_stages(half)
    found = timed(stages, budget_s)
    rows = {name: row for name, row in found["stages"].items() if only is None or name in only}
    return {**found, "threads": half.manifest["threads"], "stages": rows}


def timed(stages: dict[str, Callable[[], object]], budget_s: float = BUDGET_S) -> dict:
    """Time stages, and say on which machine and what else went on there.

    Returns:
        ``{"format": 3, "machine": {...}, "before": {...}, "after": {...}, "throttling": [...], "others": float,
        "stages": {stage: statistics}}``: states of the machine as in :func:`.circumstances.state`, what slowed it down
        in between, which share of the processor's time other work took meanwhile (None where it does not tell), and
        statistics as in :func:`statistics`.
    """
    before = circumstances.state()
    start, work_before = time.perf_counter(), circumstances.processor_times()
    rows = time_stages(stages, budget_s)
    work_after, seconds = circumstances.processor_times(), time.perf_counter() - start
    after = circumstances.state()
    return {
        "format": 3,
        "machine": circumstances.machine(),
        "before": before,
        "after": after,
        "throttling": circumstances.throttling_between(before, after),
        "others": circumstances.others_share(work_before, work_after, seconds),
        "stages": rows,
    }
