"""Predicted against measured end-to-end latency over a rate-limited link.

    .venv/bin/python benchmarks/link_check.py    # as root, on a quiet Linux machine, some six minutes

A device half and a server half of ResNet-50 run as processes of their own in two network namespaces, joined by a pair
of virtual interfaces; what the device sends is limited by ``tc ... tbf``. For each configuration and rate:

    predicted   medians of the stages, from ``python device measure`` and ``python server measure`` in the same
                namespaces on the same cores, taken before and after and averaged, plus the link: the payload at the
                rate, and the round trip, that evaluators/edge/probe.py measured over this very pair
    measured    median over images, from having the pixels to having the answer: encode, send over TCP, decode to
                scores, answer back

Rates are of payload, 10^6 bytes a second; the shaper is set higher by what Ethernet, IP and TCP headers take. Each half
has one thread and its own core, so neither disturbs the other. The shaper's bucket holds one frame: a larger one would
let small payloads pass at once, and even this one makes the measured time up to 1.5 ms shorter at 1 MB/s than on a link
that has no bucket. Where other work cannot be stopped, ``chrt -f 1`` before the command keeps it from getting in
between. Results go to benchmarks/results/link-check.json and link-check.md.

    .venv/bin/python benchmarks/link_check.py --repeats 5 --budget 0.3 --rates 1,10 --out /tmp/check    # does it run?
    .venv/bin/python benchmarks/link_check.py folders DIR    # only the folders, as benchmarks/aarch64.sh needs them
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from evaluators.edge import halves, threads
from evaluators.edge import picture as images
from evaluators.edge.circumstances import machine
from evaluators.edge.picture_codecs import CODECS, PictureCoding
from evaluators.latency.links import LinkProfile, measured_link

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PROBE = ROOT / "evaluators" / "edge" / "probe.py"
WEIGHTS = ROOT.parent / "shared" / "weights" / "resnet50-tinyimagenet50.safetensors"
PHOTOS = ROOT.parent / "shared" / "data" / "voc2007-15.tar.gz"

SIZE = 224
FORM = images.PictureFormat(size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = 50
RATES_MB_PER_S = (1.0, 2.0, 5.0, 10.0)
REPEATS = 30
WARMUP = 3
BUDGET_S = 1.0  # of one measurement of the stages of one half
TIMEOUT_S = 120.0

DEVICE_IP, SERVER_IP, PORT, PROBE_PORT = "10.201.77.1", "10.201.77.2", 5701, 5702
MTU_BYTES = 1500
FRAME_BYTES = MTU_BYTES + 14  # with the Ethernet header
SEGMENT_BYTES = MTU_BYTES - 20 - 32  # without those of IP and TCP, timestamps included
BURST_BYTES = 1600  # one frame, and what the kernel's rounding needs

_LENGTH = struct.Struct("!I")
_ANSWER = struct.Struct("!if")  # class and score


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration. Without a cut the picture is sent, raw or as a codec's file."""

    name: str
    cut: str = ""
    ae_ratio: float = 1.0
    bits: int = 8
    coder: str = "packed"
    coding: PictureCoding | None = None

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return self.name.replace(" ", "-").replace(",", "")


CASES = (
    Case(name="raw picture"),
    Case(name="JPEG 75", coding=PictureCoding(CODECS["jpeg"], 75)),
    Case(name="stem, 16 channels, 1 bit", cut="stem", ae_ratio=0.25, bits=1),
    Case(name="stem, 64 channels, 3 bit", cut="stem", ae_ratio=1.0, bits=3),
    Case(name="layer2.3, 64 channels, 1 bit, LZMA", cut="layer2.3", ae_ratio=0.125, bits=1, coder="lzma"),
    Case(name="layer3.5, 64 channels, 8 bit", cut="layer3.5", ae_ratio=0.0625, bits=8),
)


# -- the check ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Predicted against measured latency over a rate-limited link.")
    parser.add_argument("part", nargs="?", default="check", choices=("check", "folders", "device", "server"))
    parser.add_argument("folder", nargs="?", type=Path, help="for folders, and for the halves that check starts")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="images per configuration and rate")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for each measurement of the stages")
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES_MB_PER_S), help="MB/s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for link-check.json and link-check.md")
    options = parser.parse_args()
    if options.part == "folders":
        write_folders(options.folder)
    elif options.part == "device":
        threads.share()
        run_device(options.folder)
    elif options.part == "server":
        threads.share()
        run_server(options.folder)
    elif missing := what_is_missing():
        print(f"the link check needs {missing}; nothing was done", file=sys.stderr)
        return 1
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # through every clean-up
        result = check([float(rate) for rate in options.rates.split(",")], options.repeats, options.budget)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "link-check.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "link-check.md").write_text(report(result))
        print(report(result))
    return 0


def what_is_missing() -> str:
    """Empty if namespaces and shapers can be made here."""
    if not sys.platform.startswith("linux"):
        return "Linux"
    if os.geteuid() != 0:
        return "root, for network namespaces and tc"
    return " and ".join(f"the command {name}" for name in ("ip", "tc", "taskset") if shutil.which(name) is None)


def check(rates: Sequence[float], repeats: int, budget_s: float) -> dict[str, Any]:
    """Everything that is measured, JSON-ready."""
    began = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    device_core, server_core = cores[0], cores[-1]
    with tempfile.TemporaryDirectory(prefix="link-check-") as scratch, joined_namespaces() as pair:
        say("exporting both halves of every configuration")
        write_folders(Path(scratch))
        links = {rate: probed(pair, rate) for rate in rates}
        rows = []
        for case in CASES:
            halves_of = Halves(pair, Path(scratch) / case.folder, device_core, server_core, budget_s)
            rows += rows_of(case, halves_of, links, repeats)
    return {
        "format": 1,
        "machine": machine(),
        "cores": {"device": device_core, "server": server_core},
        "load": os.getloadavg()[0],
        "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
        "seconds": round(time.monotonic() - began),
        "images": repeats,
        "links": [{"asked_mb_per_s": rate, **link.describe()} for rate, link in links.items()],
        "rows": rows,
        **errors(rows),
    }


def rows_of(case: Case, run: Halves, links: dict[float, LinkProfile], repeats: int) -> list[dict[str, Any]]:
    """One row for each rate, the stages measured before and after each."""
    rows = []
    with run.processes() as send:
        before = run.stages()
        for rate, link in links.items():
            run.pair.limit(rate)
            times_ms, payload_bytes = send(repeats)
            after = run.stages()
            stages = {name: (before[name] + after[name]) / 2 for name in before}
            rows.append(row(case.name, rate, payload_bytes, stages, link, times_ms))
            say(line(rows[-1]))
            before = after
    return rows


def row(
    name: str, rate: float, payload_bytes: int, stages: dict[str, float], link: LinkProfile, times_ms: Sequence[float]
) -> dict[str, Any]:
    """Predicted and measured for one configuration at one rate."""
    link_ms = link.latency_ms(payload_bytes)
    predicted_ms = sum(stages.values()) + link_ms
    low, measured_ms, high = np.percentile(times_ms, [25, 50, 75]).tolist()
    return {
        "configuration": name,
        "rate_mb_per_s": rate,
        "payload_bytes": payload_bytes,
        "stages_ms": stages,
        "link_ms": link_ms,
        "predicted_ms": predicted_ms,
        "measured_ms": measured_ms,
        "measured_spread": (high - low) / measured_ms,
        "error_pct": 100 * (predicted_ms - measured_ms) / measured_ms,
    }


def errors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median and worst of the errors, signs left out."""
    sizes = [abs(each["error_pct"]) for each in rows]
    return {"median_error_pct": statistics.median(sizes), "worst_error_pct": max(sizes)}


def line(found: dict[str, Any]) -> str:
    """A row for whoever watches."""
    return (
        f"{found['configuration']:<36}{found['rate_mb_per_s']:4g} MB/s  predicted {found['predicted_ms']:7.2f} ms  "
        f"measured {found['measured_ms']:7.2f} ms  {found['error_pct']:+5.1f} %"
    )


def report(result: dict[str, Any]) -> str:
    """The Markdown table."""
    about = result["machine"]
    probes = "\n".join(
        f"- {each['asked_mb_per_s']:g} MB/s asked: {each['rate_mb_per_s']:.3f} MB/s, round trip {each['rtt_ms']:.3f} ms"
        for each in result["links"]
    )
    priority = "at real-time priority" if result["real_time"] else "at normal priority"
    head = f"""# Predicted against measured, over a link

`python benchmarks/link_check.py`; its first lines say how things are measured. {about["processor"]}, one core for each
half, {priority}, load {result["load"]:.1f} at the end, ONNX Runtime {about["onnxruntime"]}, ResNet-50 at {SIZE} px,
{result["images"]} images for each row. The links as the probe found them:

{probes}

**Error: median {result["median_error_pct"]:.1f} %, worst {result["worst_error_pct"]:.1f} %**, of
{len(result["rows"])} rows. Goal: median below 5 %, worst below 10 %.

| configuration | bytes | MB/s | halves ms | link ms | predicted ms | measured ms | error |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
    rows = [
        f"| {each['configuration']} | {each['payload_bytes']:,} | {each['rate_mb_per_s']:g} "
        f"| {sum(each['stages_ms'].values()):.2f} | {each['link_ms']:.2f} | {each['predicted_ms']:.2f} "
        f"| {each['measured_ms']:.2f} | {each['error_pct']:+.1f} % |"
        for each in result["rows"]
    ]
    return head + "\n".join(rows) + "\n"


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


# -- namespaces and processes in them ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two network namespaces with a cable between them."""

    device: str
    server: str

    def limit(self, rate_mb_per_s: float) -> None:
        """Limit what the device sends; the way back stays as it is."""
        bits_per_s = round(rate_mb_per_s * 8e6 * FRAME_BYTES / SEGMENT_BYTES)
        tbf = ("tbf", "rate", f"{bits_per_s}bit", "burst", f"{BURST_BYTES}", "limit", "4mb")
        _run("tc", "-n", self.device, "qdisc", "replace", "dev", "cable", "root", *tbf)

    def command(self, side: str, core: int | None, *command: str | Path) -> list[str]:
        """A command as it runs in one of the namespaces, on one core."""
        pinned = ["taskset", "-c", str(core)] if core is not None else []
        return ["ip", "netns", "exec", getattr(self, side), *pinned, *map(str, command)]


@contextmanager
def joined_namespaces() -> Iterator[Pair]:
    """Make both namespaces and the cable; remove them whatever happens."""
    pair = Pair(device=f"link-check-device-{os.getpid()}", server=f"link-check-server-{os.getpid()}")
    with ExitStack() as undo:
        for name in (pair.device, pair.server):
            _run("ip", "netns", "add", name)
            undo.callback(_run, "ip", "netns", "del", name)  # its end of the cable goes with it
        ends = ("type", "veth", "peer", "name", "cable", "netns", pair.server)
        _run("ip", "link", "add", "cable", "netns", pair.device, *ends)
        for name, address in ((pair.device, DEVICE_IP), (pair.server, SERVER_IP)):
            _run("ip", "-n", name, "link", "set", "lo", "up")
            # One frame at a time: the kernel would hand over many as one, larger than the bucket.
            _run("ip", "-n", name, "link", "set", "cable", "mtu", str(MTU_BYTES), "gso_max_segs", "1")
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _run("ip", "-n", name, "link", "set", "cable", "up")
        yield pair


def probed(pair: Pair, rate: float) -> LinkProfile:
    """The link as the probe finds it once its rate is set."""
    pair.limit(rate)
    serve = pair.command("server", None, sys.executable, PROBE, "serve", "--host", SERVER_IP, "--port", str(PROBE_PORT))
    measure = pair.command("device", None, sys.executable, PROBE, "measure", f"{SERVER_IP}:{PROBE_PORT}")
    with process(serve, stdout=subprocess.PIPE) as server:
        _line(server)  # it listens
        link = measured_link(json.loads(_run(*measure)), f"tbf {rate:g}")
    say(f"asked for {rate:g} MB/s, the probe found {link.label}")
    return link


@dataclass(frozen=True)
class Halves:
    """The two halves of one configuration."""

    pair: Pair
    folder: Path
    device_core: int
    server_core: int
    budget_s: float

    def stages(self) -> dict[str, float]:
        """Median milliseconds of each stage of both halves, from ``measure`` as everyone runs it."""
        found: dict[str, float] = {}
        for side, core in (("device", self.device_core), ("server", self.server_core)):
            # A device that sends the raw picture does nothing before.
            if side == "device" and not has_stages(self.folder / side):
                continue
            measure = (sys.executable, self.folder / side, "measure", "--json", "--budget", f"{self.budget_s:g}")
            rows = json.loads(_run(*self.pair.command(side, core, *measure)))["stages"]
            found |= {f"{side} {stage}": timing["p50_ms"] for stage, timing in rows.items()}
        return found

    @contextmanager
    def processes(self) -> Iterator[Callable[[int], tuple[list[float], int]]]:
        """Start both; yields what sends so many images and returns their milliseconds and the payload's bytes."""

        def command(side: str, core: int) -> list[str]:
            return self.pair.command(side, core, sys.executable, __file__, side, self.folder / side)

        with (
            process(command("server", self.server_core), stdout=subprocess.PIPE) as server,
            process(command("device", self.device_core), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as device,
        ):
            _line(server)  # it listens
            assert device.stdin is not None
            requests: IO[str] = device.stdin

            def send(count: int) -> tuple[list[float], int]:
                requests.write(f"{count}\n")
                requests.flush()
                answer = json.loads(_line(device))
                return answer["times_ms"], answer["payload_bytes"]

            yield send


@contextmanager
def process(command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone afterwards."""
    running = subprocess.Popen(command, text=True, env=_environment(), **more)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        for stream in (running.stdin, running.stdout):
            if stream is not None:
                stream.close()


def _line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    text = running.stdout.readline()
    if not text:
        raise SystemExit(f"a half ended before it answered: {running.args!r}")
    return text


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=_environment())
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


# -- what the two halves do for each picture ---------------------------------------------------------------------------


def has_stages(folder: Path) -> bool:
    """Whether a device has anything to do before it sends."""
    return (folder / "head.onnx").exists() or "picture_codec" in json.loads((folder / "device.json").read_text())


def run_device(folder: Path) -> None:
    """For each number on standard input, send the sample so many times; print the milliseconds of each."""
    half = halves.DeviceHalf(folder)
    pixels = np.load(folder / "sample.npy")
    encode = encoder_of(half)
    with _connected() as connection:
        for request in sys.stdin:
            times_ms, payload = [], b""
            for _ in range(WARMUP + int(request)):
                start = time.perf_counter()
                payload = encode(pixels)
                connection.sendall(_LENGTH.pack(len(payload)) + payload)
                _ANSWER.unpack(_receive(connection, _ANSWER.size))
                times_ms.append((time.perf_counter() - start) * 1000)
            print(json.dumps({"times_ms": times_ms[WARMUP:], "payload_bytes": len(payload)}), flush=True)


def encoder_of(half: halves.DeviceHalf) -> Callable[[np.ndarray], bytes]:
    """What makes a payload of a picture."""
    if half.wire is not None:
        return half.encode
    return np.ndarray.tobytes if half.coding is None else half.coding.encode


def run_server(folder: Path) -> None:
    """Answer one device's payloads with class and score until it goes."""
    half = halves.ServerHalf(folder)
    decode = decoder_of(half)
    with socket.create_server((SERVER_IP, PORT)) as listener:
        print("listening", flush=True)
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while True:
                try:
                    (count,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
                except EOFError:
                    return
                scores = decode(_receive(connection, count))
                best = int(scores.argmax())
                connection.sendall(_ANSWER.pack(best, float(scores[best])))


def decoder_of(half: halves.ServerHalf) -> Callable[[bytes], np.ndarray]:
    """What makes scores of a payload."""
    if half.wire is not None:
        return half.decode
    shape = (half.picture.size, half.picture.size, 3)

    def decode(payload: bytes) -> np.ndarray:
        coding = half.coding
        pixels = np.frombuffer(payload, np.uint8).reshape(shape) if coding is None else coding.decode(payload)
        return half.run("tail", [images.to_input(pixels, half.picture)])[0][0]

    return decode


def _connected() -> socket.socket:
    """The server listens once its models are there."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((SERVER_IP, PORT))
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if got == 0:
            raise EOFError
        view = view[got:]
    return bytes(data)


# -- folders -----------------------------------------------------------------------------------------------------------


def write_folders(root: Path) -> None:
    """A device and a server folder for each configuration, with real payloads; needs torch, the halves do not."""
    import torch

    from evaluators import folders
    from evaluators.compression.bottleneck import Bottleneck
    from evaluators.compression.calibrate import calibrate
    from evaluators.edge import wire
    from evaluators.models.cut import SplitModel
    from evaluators.models.load import build
    from evaluators.models.onnx_export import OnnxNetwork, save_module
    from evaluators.settings import ModelSettings
    from spaces.partition import INPUT, OUTPUT

    photos = read_photos()
    weights = WEIGHTS if WEIGHTS.exists() else None  # random ones take as long and have the same shapes
    loaded = build(ModelSettings(name="torchvision/resnet50", num_classes=CLASSES, weights=weights))
    split = SplitModel(loaded.network, SIZE)
    network = OnnxNetwork(split)
    batch = torch.from_numpy(np.concatenate([images.to_input(photo, FORM) for photo in photos]))
    for case in CASES:
        device, server = root / case.folder / "device", root / case.folder / "server"
        manifest: dict[str, Any] = {"picture": FORM.to_dict(), "threads": 1}
        if case.coding is not None:
            manifest["picture_codec"] = case.coding.to_dict()
        if not case.cut:
            folders.write_device(device, manifest, photos[0])
            folders.write_server(server, manifest, photos[0])
            network.save_part(INPUT, OUTPUT, server / "tail.onnx")
            continue
        with torch.no_grad():
            features = split.head(case.cut)(batch)
            bottleneck = Bottleneck(
                [tuple(tensor.shape[1:]) for tensor in features], split.channel_axes(case.cut), case.ae_ratio, case.bits
            ).eval()
            bottleneck.start_from(features)
            activations = bottleneck.encoder(*features)
        levels = tuple(calibrate(tensor, case.bits) for tensor in activations)
        wire_format = wire.WireFormat(bits=case.bits, tensors=levels, coder=case.coder)
        manifest["wire"] = wire_format.to_dict()
        payload = wire.encode([tensor[0].numpy() for tensor in activations], wire_format)
        folders.write_device(device, manifest, photos[0])
        folders.write_server(server, manifest, payload=payload)
        network.save_part(INPUT, case.cut, device / "head.onnx")
        network.save_part(case.cut, OUTPUT, server / "tail.onnx")
        save_module(bottleneck.encoder, [each[:1] for each in features], device / "encoder.onnx", len(features))
        save_module(bottleneck.decoder, [each[:1] for each in activations], server / "decoder.onnx", len(features))


def read_photos() -> list[np.ndarray]:
    """Pixels of real photographs where there are some, else of smooth noise: uint8, (224, 224, 3) each."""
    if PHOTOS.exists():
        with tarfile.open(PHOTOS) as archive:
            names = sorted(name for name in archive.getnames() if name.endswith(".jpg"))
            files = [archive.extractfile(name) for name in names]
            data = [io.BytesIO(file.read()) for file in files if file is not None]
        return [images.to_rgb(images.open_picture(each, FORM), SIZE) for each in data]
    random = np.random.default_rng(0)
    coarse = [Image.fromarray(random.integers(0, 256, (28, 28, 3), np.uint8)) for _ in range(8)]
    return [np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in coarse]


if __name__ == "__main__":
    sys.exit(main())
