"""A served bundle: predicted against measured over limited links, many clients, restarts, and what a device needs.

    .venv/bin/python benchmarks/serve.py link               # as root on Linux; some six minutes
    .venv/bin/python benchmarks/serve.py load BUNDLE        # 32 clients for a minute, and again with restarts
    .venv/bin/python benchmarks/serve.py device BUNDLE      # an environment without torch: size, time to import
    .venv/bin/python benchmarks/serve.py table              # benchmarks/results/serve.md from what the others found

BUNDLE is a folder of ``splitsearch export``. Each part writes ``serve-<part>.json`` into ``--out``.

**link**: ``python server serve`` and ``python device verify`` of four cuts of a ResNet-50 at 224 px, in two network
namespaces joined by a cable whose device end is limited by ``tc ... tbf``; see link_check.py, whose namespaces, folders
and stage timings these are. Predicted: medians of the stages from ``measure`` on both sides, before and after, plus
payload over rate and round trip as evaluators/edge/probe.py measured them over this very link. Measured: the median
from having the pixels to having the answer, over HTTP. Where other work cannot be stopped: ``chrt -f 1`` before it.

**load**: clients in four processes, each on a connection of its own with TLS and token, ask one after the other; every
answer is compared with what the server half says of that payload by itself. The second time the server is killed
(SIGKILL) and started again while they ask.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import link_check
import numpy as np

from evaluators.edge import halves, seal, verify
from evaluators.edge.circumstances import machine
from evaluators.edge.client import Access, ServerClient, ServerError

RESULTS = Path(__file__).parent / "results"
PORT = 8500
CLIENTS, PROCESSES = 32, 4
KILLS_EVERY_S = 15.0
PAYLOADS = 16
_WRONG = 1e-3  # difference of an answer that is not a matter of the last digits
_IMPORTS = 9


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("link", "load", "device", "table"))
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=30, help="link: pictures for each row")
    parser.add_argument("--rates", default="1,2,5,10", help="link: MB/s")
    parser.add_argument("--seconds", type=float, default=60.0, help="load: each time")
    parser.add_argument("--python", default=sys.executable, help="device: what makes the environment")
    options = parser.parse_args()
    if options.part == "table":
        (options.out / "serve.md").write_text(table(options.out))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    if options.part == "link":
        found = link([float(rate) for rate in options.rates.split(",")], options.repeats)
    elif options.part == "load":
        found = load(options.bundle, options.seconds)
    else:
        found = device(options.bundle, options.python)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"format": 1, "machine": machine(), "load": os.getloadavg()[0], **found}
    (options.out / f"serve-{options.part}.json").write_text(json.dumps(about, indent=1) + "\n")
    return 0


# -- over limited links ------------------------------------------------------------------------------------------------


def link(rates: Sequence[float], repeats: int) -> dict[str, Any]:
    """Predicted and measured for each cut at each rate."""
    if missing := link_check.what_is_missing():
        raise SystemExit(f"this needs {missing}; nothing was done")
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch, link_check.joined_namespaces() as pair:
        link_check.write_folders(Path(scratch))
        links = {rate: link_check.probed(pair, rate) for rate in rates}
        for case in link_check.CASES:
            if case.cut:
                folder = Path(scratch) / case.folder
                verify.write_prediction(folder / "device", {}, dict.fromkeys(("device", "server", "link"), ""), 0, {})
                seal.write(folder, "resnet50")
                run = link_check.Halves(pair, folder, cores[0], cores[-1], link_check.BUDGET_S)
                rows += rows_of(case.name, run, links, repeats)
    probed = [{"asked_mb_per_s": rate, **each.describe()} for rate, each in links.items()]
    real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    return {"images": repeats, "real_time": real_time, "links": probed, "rows": rows, **link_check.errors(rows)}


def rows_of(name: str, run: link_check.Halves, links: dict[float, Any], repeats: int) -> list[dict[str, Any]]:
    """One row for each rate, the stages measured before and after each."""
    serve = (
        sys.executable,
        run.folder / "server",
        "serve",
        "--host",
        link_check.SERVER_IP,
        "--port",
        PORT,
        "--insecure",
    )
    rows = []
    command = run.pair.command("server", run.server_core, *map(str, serve))
    with running(command):
        before = run.stages()
        for rate, each in links.items():
            run.pair.limit(rate)
            found = verified(run, repeats)
            after = run.stages()
            stages = {stage: (before[stage] + after[stage]) / 2 for stage in before}
            row = link_check.row(name, rate, found["payload_bytes"], stages, each, [found["total"]["measured_ms"]])
            row["measured_parts_ms"] = {part["part"]: part["measured_ms"] for part in found["rows"]}
            link_check.say(link_check.line(row))
            rows.append(row)
            before = after
    return rows


def verified(run: link_check.Halves, repeats: int) -> dict[str, Any]:
    """What ``python device verify`` measures in the device's namespace."""
    url = f"http://{link_check.SERVER_IP}:{PORT}"
    verifying = (sys.executable, run.folder / "device", "verify", "--server", url, "--json", "--repeats", repeats)
    command = run.pair.command("device", run.device_core, *map(str, verifying))
    done = subprocess.run(command, capture_output=True, text=True, timeout=link_check.TIMEOUT_S)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


@contextmanager
def running(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A server that listens; yields the events that it logged until then, by their names."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield listening(process)
        finally:
            process.kill()


def listening(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a server to listen, then keep its log from filling the pipe; what it logged until then."""
    events: dict[str, Any] = {}
    assert process.stderr is not None
    while "listening" not in events:
        line = process.stderr.readline()
        if not line.startswith("{"):
            raise SystemExit(f"the server did not start: {line}")
        event = json.loads(line)
        events[event["event"]] = event
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return events


# -- many clients ------------------------------------------------------------------------------------------------------


def load(bundle: Path, seconds: float) -> dict[str, Any]:
    """Many clients on one server, undisturbed and with the server killed meanwhile."""
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
        key, certificate, token = credentials(Path(scratch))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serving = [sys.executable, str(bundle / "server"), "serve", "--port", str(port)]
        serving += ["--cert", str(certificate), "--key", str(key), "--token-file", str(token)]
        access = Access(f"https://127.0.0.1:{port}", token.read_text().strip(), certificate)
        found: dict[str, Any] = {}
        for name, every_s in (("undisturbed", 0.0), ("restarts", KILLS_EVERY_S)):
            with kept_running(serving, every_s) as events:
                found[name] = asked(bundle, access, seconds) | {"kills": events["kills"]}
            found["batching"] = {key: events["batching"][key] for key in ("size", "why", "gains", "waits")}
            link_check.say(f"{name}: {found[name]}")
    return {"clients": CLIENTS, "seconds": seconds, **found}


def credentials(folder: Path) -> tuple[Path, Path, Path]:
    """A key, a certificate for this machine, and a token."""
    key, certificate, token = folder / "key.pem", folder / "cert.pem", folder / "token"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    token.write_text(os.urandom(16).hex())
    return key, certificate, token


@contextmanager
def kept_running(command: Sequence[str], kill_every_s: float) -> Iterator[dict[str, Any]]:
    """A server that is killed from time to time and started again at once; yields its events, ``kills`` among them."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    events, over = {**listening(process), "kills": 0}, threading.Event()

    def disturb() -> None:
        nonlocal process
        while not over.wait(kill_every_s):
            process.kill()
            process.wait()
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            listening(process)
            events["kills"] += 1

    thread = threading.Thread(target=disturb)
    if kill_every_s:
        thread.start()
    try:
        yield events
    finally:
        over.set()
        if kill_every_s:
            thread.join()
        process.kill()
        process.wait()


def asked(bundle: Path, access: Access, seconds: float) -> dict[str, Any]:
    """What came of it when many clients asked for so long."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        jobs = [(bundle, access, seconds, CLIENTS // PROCESSES, number) for number in range(PROCESSES)]
        rows = [row for rows in pool.starmap(ask, jobs) for row in rows]
    times = sorted(row["ms"] for row in rows if row["outcome"] == "answered")
    outcomes = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("answered", "failed", "wrong")}
    return {
        "asked": len(rows),
        **outcomes,
        "tried_again": sum(row["tries"] > 1 for row in rows),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "answers_per_s": len(times) / seconds,
    }


def ask(bundle: Path, access: Access, seconds: float, clients: int, number: int) -> list[dict[str, Any]]:
    """So many clients in this process: one row for each request."""
    half, device_half = halves.ServerHalf(bundle / "server"), halves.DeviceHalf(bundle / "device")
    random = np.random.default_rng(number)
    size = device_half.picture.size
    pictures = random.integers(0, 256, (PAYLOADS, size, size, 3), np.uint8)
    payloads = [device_half.encode(pixels) for pixels in pictures]
    pairs = [(payload, half.decode(payload)) for payload in payloads]
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=_ask, args=(device_half, access, pairs, end, rows)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


def _ask(
    half: halves.DeviceHalf,
    access: Access,
    pairs: list[tuple[bytes, np.ndarray]],
    end: float,
    rows: list[dict[str, Any]],
) -> None:
    client, turn = ServerClient(access, half.sealed.fingerprint), 0
    while time.monotonic() < end:
        payload, expected = pairs[turn % len(pairs)]
        turn, start = turn + 1, time.perf_counter()
        try:
            reply = client.infer(half.sealed.name, payload)
        except ServerError as error:
            rows.append({"outcome": "failed", "ms": 0.0, "tries": 1, "error": str(error)})
            continue
        ms = (time.perf_counter() - start) * 1000
        outcome = "answered" if np.allclose(reply.answer, expected, atol=_WRONG) else "wrong"
        rows.append({"outcome": outcome, "ms": ms, "tries": reply.tries})


# -- what a device needs -----------------------------------------------------------------------------------------------


def device(bundle: Path, python: str) -> dict[str, Any]:
    """An environment with numpy, pillow and onnxruntime alone: its size, and the seconds to import the device half."""
    whole = bundle / "device" / "whole.onnx"
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
        subprocess.run([python, "-m", "venv", scratch], check=True)
        own = Path(scratch) / "bin" / "python"
        empty = megabytes(Path(scratch))
        subprocess.run([own, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"], check=True)
        listed = subprocess.check_output([own, "-m", "pip", "list", "--format", "json"], text=True)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

        def seconds(code: str) -> float:
            times = []
            for _ in range(_IMPORTS):
                start = time.perf_counter()
                subprocess.run([own, "-c", code], check=True, cwd=bundle / "device", env=clean)
                times.append(time.perf_counter() - start)
            return statistics.median(times)

        return {
            "packages": {each["name"]: each["version"] for each in json.loads(listed)},
            "packages_mb": megabytes(Path(scratch)) - empty,
            "python": subprocess.check_output([own, "-V"], text=True).strip(),
            "whole_mb": whole.stat().st_size / 1e6 if whole.exists() else 0.0,
            "device_mb": megabytes(bundle / "device"),
            "code_mb": megabytes(bundle / "device" / "edge"),
            "python_s": seconds("pass"),
            "import_s": seconds("import edge.main"),
        }


def megabytes(folder: Path) -> float:
    """Size of all files below a folder, compiled Python left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts) / 1e6


# -- the page ----------------------------------------------------------------------------------------------------------


def table(folder: Path) -> str:
    """The Markdown page of whatever was found."""
    sections = {"link": link_table, "load": load_table, "device": device_table}
    text = "# A served bundle\n\n`python benchmarks/serve.py`; its first lines say how things are measured.\n"
    for part, section in sections.items():
        path = folder / f"serve-{part}.json"
        if path.exists():
            text += section(json.loads(path.read_text()))
    return text


def link_table(found: dict[str, Any]) -> str:
    """Predicted against measured, row by row."""
    probes = "\n".join(
        f"- {each['asked_mb_per_s']:g} MB/s asked: {each['rate_mb_per_s']:.3f} MB/s, round trip {each['rtt_ms']:.3f} ms"
        for each in found["links"]
    )
    rows = [
        f"| {each['configuration']} | {each['payload_bytes']:,} | {each['rate_mb_per_s']:g} "
        f"| {each['predicted_ms']:.2f} | {each['measured_ms']:.2f} | {each['error_pct']:+.1f} % |"
        for each in found["rows"]
    ]
    priority = "real-time" if found["real_time"] else "normal"
    return f"""
## Over limited links

Device and server in two network namespaces, over HTTP; ResNet-50 at 224 px, one thread and one core each,
{found["machine"]["processor"]}, {priority} priority, {found["images"]} pictures a row. The links as the probe found
them:

{probes}

**Error: median {found["median_error_pct"]:.1f} %, worst {found["worst_error_pct"]:.1f} %.** Goal: below 5 %.

| configuration | bytes | MB/s | predicted ms | measured ms | error |
| --- | ---: | ---: | ---: | ---: | ---: |
""" + "".join(row + "\n" for row in rows)


def load_table(found: dict[str, Any]) -> str:
    """Many clients, undisturbed and disturbed."""
    rows = []
    for name in ("undisturbed", "restarts"):
        each = found[name]
        title = "undisturbed" if name == "undisturbed" else f"server killed {each['kills']} times"
        rows.append(
            f"| {title} | {each['asked']:,} | {each['answered']:,} | {each['failed']} | {each['wrong']} "
            f"| {each['tried_again']} | {each['p50_ms']:.1f} | {each['p99_ms']:.1f} | {each['answers_per_s']:.0f} |\n"
        )
    return f"""
## {found["clients"]} clients for {found["seconds"]:g} s

On loopback with TLS and token, clients on the same cores as the server ({found["machine"]["processor"]}, load
{found["load"]:.1f} at the end). Batching: {found["batching"]["why"]}, so {found["batching"]["size"]} at once.

| | asked | answered | reported failed | wrong | asked again | p50 ms | p99 ms | answers/s |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
""" + "".join(rows)


def device_table(found: dict[str, Any]) -> str:
    """The device half without torch."""
    half_mb = found["device_mb"] - found["whole_mb"]
    names = ", ".join(f"{name} {found['packages'][name]}" for name in ("numpy", "pillow", "onnxruntime"))
    return f"""
## What a device needs

{found["python"]} with {names} and what they need: {found["packages_mb"]:.0f} MB, no torch.
The device half of a ResNet-18 for 32 px, cut at `layer2.1`: {half_mb:.1f} MB, {found["code_mb"]:.2f} MB of it code;
`--with-whole` adds {found["whole_mb"]:.1f} MB. Starting Python takes {found["python_s"]:.2f} s, starting it and
importing the half's command line {found["import_s"]:.2f} s (medians of {_IMPORTS}).
"""


if __name__ == "__main__":
    sys.exit(main())
