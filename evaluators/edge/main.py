"""The command lines of the two folders: ``python device ...`` and ``python server ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Callable

import numpy as np

from . import boxes, halves, measure, picture, probe
from .errors import PayloadError


def device(folder: Path, arguments: list[str] | None = None) -> int:
    """``python device measure [--json]`` and ``python device encode IMAGE... --out DIR``."""
    parser = argparse.ArgumentParser(prog="python device", description="The device half of a split network.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_measure(commands)
    encode = commands.add_parser("encode", help="turn images into payloads")
    encode.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    encode.add_argument("--out", required=True, type=Path, help="folder for the payloads; made if absent")
    probing = commands.add_parser("probe", help="measure the link to a server where a probe is awaited; prints JSON")
    probing.add_argument("server", metavar="[HOST]:PORT", help="without a host: where the SSH connection comes from")
    options = parser.parse_args(arguments)
    work = {"measure": _measure, "encode": _encode, "probe": _probe}[options.command]
    return _guard(lambda: work(folder, options))


def server(folder: Path, arguments: list[str] | None = None) -> int:
    """``python server measure [--json]`` and ``python server decode PAYLOAD... [--json]``; a detector's server half
    also takes ``--least-score`` and ``--draw DIR --on PICTURE...``.
    """
    parser = argparse.ArgumentParser(prog="python server", description="The server half of a split network.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_measure(commands)
    decode = commands.add_parser("decode", help="turn payloads into class scores, or into boxes")
    decode.add_argument("payloads", nargs="+", type=Path, metavar="PAYLOAD")
    decode.add_argument("--json", action="store_true", help="everything, one JSON list")
    finding = decode.add_argument_group("for detectors")
    finding.add_argument("--least-score", type=float, default=boxes.LEAST_SCORE, help="default: %(default)s")
    finding.add_argument("--draw", type=Path, metavar="DIR", help="draw the boxes; DIR is made if absent")
    finding.add_argument("--on", nargs="+", type=Path, metavar="PICTURE", help="to draw on, one for each payload")
    options = parser.parse_args(arguments)
    return _guard(lambda: _measure(folder, options) if options.command == "measure" else _decode(folder, options))


def _guard(work: Callable[[], None]) -> int:
    try:
        work()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_measure(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("measure", help="time every stage on this machine")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--stages", help="only these stages, with commas between")
    parser.add_argument("--budget", type=float, default=measure.BUDGET_S, help="seconds for all stages together")


def _measure(folder: Path, options: argparse.Namespace) -> None:
    only = options.stages.split(",") if options.stages else None
    result = measure.measure(folder, only, options.budget)
    if options.json:
        print(json.dumps(result))
        return
    for stage, timing in result["stages"].items():
        print(f"{stage:<12}{timing['p50_ms']:10.3f} ms   spread {timing['spread']:4.0%}   {timing['repeats']} runs")


def _encode(folder: Path, options: argparse.Namespace) -> None:
    targets = _targets(options.images, options.out, ".payload")
    half = halves.DeviceHalf(folder)
    options.out.mkdir(parents=True, exist_ok=True)
    for path, target in zip(options.images, targets):
        image = picture.open_upright(path)
        try:
            payload = half.encode(picture.fit_picture(image, half.picture), image.size)
        except PayloadError as error:
            raise ValueError(f"{path}: {error}") from None
        target.write_bytes(payload)
        print(f"{target}  {len(payload)} bytes")


def _targets(sources: list[Path], folder: Path, ending: str) -> list[Path]:
    """The file to write for each source, called like it. Raises ValueError where one would overwrite another."""
    taken: dict[Path, Path] = {}
    for source in sources:
        other = taken.setdefault(folder / f"{source.stem}{ending}", source)
        if other.resolve() != source.resolve():
            raise ValueError(
                f"{other} and {source} would both become {folder / source.stem}{ending}; nothing was written. "
                f"Rename one of them, or give each its own output folder"
            )
    return [folder / f"{source.stem}{ending}" for source in sources]


def _probe(folder: Path, options: argparse.Namespace) -> None:
    host, _, port = options.server.rpartition(":")
    host = host or os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    if not host or not port.isdigit():
        raise ValueError(f"{options.server!r} given; HOST:PORT is needed, or :PORT in an SSH session")
    print(json.dumps(probe.probe(host, int(port))))


def _decode(folder: Path, options: argparse.Namespace) -> None:
    half = halves.ServerHalf(folder)
    if half.finds_boxes:
        _detect(half, options)
        return
    classes = half.manifest.get("classes") or []
    rows = []
    for path in options.payloads:
        try:
            scores = half.decode(path.read_bytes())
        except PayloadError as error:
            raise ValueError(f"{path}: {error}") from None
        best = int(np.argmax(scores))
        rows.append({"payload": str(path), "class": best, "scores": scores.tolist()})
        if not options.json:
            print(f"{path}  {classes[best] if classes else best}  score {scores[best]:.3f}")
    if options.json:
        print(json.dumps(rows))


def _detect(half: halves.ServerHalf, options: argparse.Namespace) -> None:
    classes = half.manifest.get("classes") or []
    if options.draw and len(options.on or []) != len(options.payloads):
        raise ValueError(f"--draw needs --on with {len(options.payloads)} images, one for each payload")
    targets = _targets(options.payloads, options.draw, ".png") if options.draw else []
    rows: list[dict] = []
    for number, path in enumerate(options.payloads):
        try:
            found = half.boxes(path.read_bytes(), options.least_score)
        except PayloadError as error:
            raise ValueError(f"{path}: {error}") from None
        rows.append({"payload": str(path), "boxes": [box.to_dict(classes) for box in found]})
        if options.draw:
            options.draw.mkdir(parents=True, exist_ok=True)
            boxes.drawn(picture.open_upright(options.on[number]), found, classes).save(targets[number])
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['payload']}  {len(row['boxes'])} found")
        for box in row["boxes"]:
            corners = "  ".join(f"{box[key]:7.1f}" for key in ("left", "top", "right", "bottom"))
            print(f"  {box['name']:<16}{box['score']:6.3f}  {corners}")
