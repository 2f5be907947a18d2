"""The command lines of the two folders: ``python device ...`` and ``python server ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from . import boxes, console, halves, infer, measure, picture, probe, threads, verify
from .camera import camera_of
from .client import Access, ServerClient, read_token
from .console import number_from
from .errors import PayloadError
from .infer import unique_targets

_SECONDS = number_from(0.1, float)
_INTERRUPTED = 130  # as shells say it: 128 and the number of the signal


def device(folder: Path, arguments: list[str] | None = None) -> int:
    """``python device measure [--json]``, ``encode IMAGE... --out DIR``, ``infer IMAGE... --server URL``,
    ``verify --server URL`` and ``probe [HOST]:PORT``. Without arguments, those that this process was started with.
    """
    parser = argparse.ArgumentParser(prog="python device", description="The device half of a split network.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_measure(commands)
    encode = commands.add_parser("encode", help="turn images into payloads")
    encode.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    encode.add_argument("--out", required=True, type=Path, help="folder for the payloads; made if absent")
    probing = commands.add_parser("probe", help="measure the link to a server where a probe is awaited; prints JSON")
    probing.add_argument("server", metavar="[HOST]:PORT", help="without a host: where the SSH connection comes from")
    _add_infer(commands)
    _add_verify(commands)
    options = _parsed(parser, arguments)
    known = {"measure": _measure, "encode": _encode, "probe": _probe, "infer": _infer, "verify": _verify}
    work = known[options.command]
    return _guard(lambda: work(folder, options))


def server(folder: Path, arguments: list[str] | None = None) -> int:
    """``python server measure [--json]``, ``serve`` and ``decode PAYLOAD... [--json]``; a detector's ``decode`` also
    takes ``--least-score`` and ``--draw DIR --on PICTURE...``. Without arguments, those that this process was started
    with.
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
    _add_serve(commands)
    options = _parsed(parser, arguments)
    work = {"measure": _measure, "decode": _decode, "serve": _serve}[options.command]
    return _guard(lambda: work(folder, options))


def _parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    if arguments is None:  # the process is ours alone
        threads.share()
        console.print_any_name()
    return parser.parse_args(arguments)


def _guard(work: Callable[[], Optional[int]]) -> int:
    try:
        return work() or 0
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add_infer(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("infer", help="turn pictures into answers, through a server")
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    parser.add_argument("--camera", metavar="COMMAND", help="takes one picture and writes it to standard output")
    parser.add_argument("--frames", type=number_from(1), metavar="N", help="of the camera; without it, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="everything, one JSON list")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="for detectors: draw the boxes; DIR is made if absent")
    parser.add_argument("--least-score", type=float, default=boxes.LEAST_SCORE, help="default: %(default)s")
    parser.add_argument("--max-drop-pp", type=float, help="of the points to choose from, where there are several")
    _add_access(parser)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("verify", help="compare what was predicted with what this pair takes")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--repeats", type=number_from(1), default=50, help="pictures that count; default: %(default)s")
    parser.add_argument("--point", default="1", help="of a bundle with several; default: %(default)s")
    parser.add_argument("--measured-link", action="store_true", help="predict with the link as it is now")
    _add_access(parser)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="URL", help="http://HOST:PORT or https://HOST:PORT")
    parser.add_argument("--token-file", type=Path, help="holds the bearer token; else SPLITSEARCH_TOKEN")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="PEM of whom to trust; the system's unless given")
    parser.add_argument("--timeout", type=_SECONDS, default=10.0, metavar="S", help="default: %(default)s")
    parser.add_argument("--retries", type=number_from(0), default=4, metavar="N", help="default: %(default)s")


def _add_serve(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("serve", help="answer payloads over HTTP, by the Open Inference Protocol")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8500, help="0 is any free one; default: %(default)s")
    parser.add_argument("--token-file", type=Path, help="holds the bearer token; else SPLITSEARCH_TOKEN")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="PEM certificate for TLS")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key")
    parser.add_argument("--insecure", action="store_true", help="beyond loopback even without token or TLS")
    parser.add_argument("--deadline", type=_SECONDS, default=10.0, metavar="S", help="default: %(default)s")
    parser.add_argument("--batch", type=number_from(1), metavar="N", help="pictures at once; measured unless given")


def _infer(folder: Path, options: argparse.Namespace) -> int:
    wishes = infer.Wishes(options.json, options.draw, options.least_score, options.max_drop_pp)
    access = _access(options) if options.server else None
    return infer.infer(folder, options.images, access, wishes, camera_of(options.camera, options.frames))


def _verify(folder: Path, options: argparse.Namespace) -> int:
    if not options.server:
        raise ValueError("--server URL is needed")
    half = halves.DeviceHalf(folder)
    with ServerClient(_access(options), half.sealed.fingerprint) as client:
        link = client.measure_link() if options.measured_link else None
        found = verify.verify(half, client, link, options.repeats, options.point)
    print(json.dumps(found) if options.json else verify.table(found))
    return 0 if found["within"] else 1


def _access(options: argparse.Namespace) -> Access:
    token = read_token(options.token_file)
    return Access(options.server, token, options.ca, options.timeout, options.retries)


def _serve(folder: Path, options: argparse.Namespace) -> None:
    try:
        from .serving.server import Settings, serve
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install starlette uvicorn") from None
    serve(
        folder,
        Settings(
            host=options.host,
            port=options.port,
            token_file=options.token_file,
            certificate=options.cert,
            key=options.key,
            insecure=options.insecure,
            deadline_s=options.deadline,
            batch=options.batch,
        ),
    )


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
    targets = unique_targets(options.images, options.out, ".payload")
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
    classes = half.classes
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
    classes = half.classes
    if options.draw and len(options.on or []) != len(options.payloads):
        raise ValueError(f"--draw needs --on with {len(options.payloads)} images, one for each payload")
    targets = unique_targets(options.payloads, options.draw, ".png", options.on) if options.draw else []
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
