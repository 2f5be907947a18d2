"""Predicted against measured latency, part by part, on a pair that runs."""

from __future__ import annotations

import functools
import json
import statistics
import time
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from . import points, staged
from .client import LinkNumbers, Reply, ServerClient
from .halves import DeviceHalf

FILE = "predicted.json"
FORMAT = 1
DEVICE = ("head", "encode", "pack", "compress")
SERVER = ("decompress", "unpack", "decode", "tail")
PARTS = (*DEVICE, "link", *SERVER)
MOST_ERROR = 0.10
_WARMUP = 5


def write_prediction(folder: Path, latency_ms: dict, sources: dict, payload_bytes: float, link: dict) -> None:
    """Put what is expected of a pair into its device half.

    Args:
        folder: the device half.
        latency_ms: ``head_ms`` and so on.
        sources: of ``device``, ``server`` and ``link``.
        payload_bytes: in the mean.
        link: ``rate_mb_per_s`` and ``rtt_ms``.
    """
    about = {"format": FORMAT, "latency": latency_ms, "sources": sources, "payload_bytes": payload_bytes, "link": link}
    (folder / FILE).write_text(json.dumps(about, indent=1) + "\n")


def read_prediction(folder: Path) -> dict:
    """What :func:`write_prediction` wrote. Raises ValueError where there is none."""
    path = folder / FILE
    if not path.exists():
        raise ValueError(f"{path}: not there, so nothing was predicted; export the bundle with this version")
    about = json.loads(path.read_text())
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: format {about.get('format')!r} given, {FORMAT} known here; export the bundle again")
    return dict(about)


def verify(
    half: DeviceHalf,
    client: ServerClient,
    link: Optional[LinkNumbers] = None,
    repeats: int = 50,
    version: str = points.FIRST,
) -> dict:
    """Send the half's sample picture through the pair, again and again, and compare.

    Args:
        half: the device's.
        client: of the server that runs the other half.
        link: what to predict the link with; None takes the prediction's own, for the sample's payload.
        repeats: pictures that count.
        version: of the point, where the bundle has several.

    Returns:
        JSON-ready: ``rows`` of ``part``, ``predicted_ms``, ``measured_ms`` (the median; of the link what is left of
        the round trip without the server's stages, HTTP included), ``source``; ``total`` likewise, with ``error``:
        measured over predicted minus one; ``payload_bytes``; ``repeats``; ``link``; ``within``.

    Raises:
        ServerError: the server does not answer.
        ValueError: no such point, or nothing was predicted of it.
    """
    point = points.open_point(half, version)
    predicted = read_prediction(point.folder)
    asking = functools.partial(client.infer, half.sealed.name, version="" if version == points.FIRST else version)
    runs, payload = _runs(point, asking, repeats)
    expected = {part: float(predicted["latency"].get(f"{part}_ms", 0.0)) for part in PARTS}
    sources = dict(predicted["sources"])
    if link is not None:
        expected["link"], sources["link"] = link.rtt_ms + len(payload) / link.rate_mb_per_s / 1000, "measured"
    elif rate := predicted["link"].get("rate_mb_per_s"):  # a coder makes more or less of this picture than in the mean
        expected["link"] += (len(payload) - predicted["payload_bytes"]) / rate / 1000
    rows = [
        {
            "part": part,
            "predicted_ms": expected[part],
            "measured_ms": _median(runs, part),
            "source": sources[_place(part)],
        }
        for part in PARTS
        if expected[part] or _median(runs, part)
    ]
    predicted_ms, measured_ms = sum(expected.values()), _median(runs, "total")
    error = measured_ms / predicted_ms - 1 if predicted_ms else float("inf")
    return {
        "format": FORMAT,
        "rows": rows,
        "total": {"predicted_ms": predicted_ms, "measured_ms": measured_ms, "error": error},
        "payload_bytes": len(payload),
        "repeats": repeats,
        "link": {"rate_mb_per_s": link.rate_mb_per_s, "rtt_ms": link.rtt_ms} if link else predicted["link"],
        "within": abs(error) <= MOST_ERROR,
    }


def table(found: dict) -> str:
    """What :func:`verify` found, for people."""
    rows = [*found["rows"], {"part": "end to end", "source": "", **found["total"]}]
    lines = [f"{'part':<12}{'predicted ms':>14}{'measured ms':>14}{'difference':>12}  predicted from"]
    for row in rows:
        off = f"{row['measured_ms'] / row['predicted_ms'] - 1:+.1%}" if row["predicted_ms"] else ""
        lines.append(
            f"{row['part']:<12}{row['predicted_ms']:>14.3f}{row['measured_ms']:>14.3f}{off:>12}  {row['source']}"
        )
    verdict = "within" if found["within"] else "NOT within"
    lines.append(
        f"the end-to-end error is {abs(found['total']['error']):.1%}, {verdict} {MOST_ERROR:.0%}; medians of "
        f"{found['repeats']} pictures of {found['payload_bytes']} bytes; the link includes HTTP"
    )
    return "\n".join(lines)


def _runs(half: DeviceHalf, ask: Callable[[bytes], Reply], repeats: int) -> tuple[list[dict[str, float]], bytes]:
    """Milliseconds of every part, and of all together, of each picture that counts."""
    pixels = np.load(half.folder / "sample.npy")
    size, runs, payload = (pixels.shape[1], pixels.shape[0]), [], b""
    for _ in range(_WARMUP + repeats):
        start = time.perf_counter()
        payload, stages = staged.encode(half, pixels, size)
        sent = time.perf_counter()
        reply = ask(payload)
        end = time.perf_counter()
        there = {stage: float(reply.said.get(f"{stage}_ms", 0.0)) for stage in SERVER}
        link = (end - sent) * 1000 - sum(there.values())
        runs.append({**stages, **there, "link": link, "total": (end - start) * 1000})
    return runs[_WARMUP:], payload


def _median(runs: list[dict[str, float]], part: str) -> float:
    return statistics.median(run.get(part, 0.0) for run in runs)


def _place(part: str) -> str:
    return "link" if part == "link" else "device" if part in DEVICE else "server"
