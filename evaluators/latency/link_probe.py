"""Measures the link from a device at hand to the server by a short transfer (``edge/probe.py``)."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evaluators import folders, machine_lock
from evaluators.edge import probe
from evaluators.latency.links import LinkProfile, measured_link
from evaluators.latency.profiles import Here, MachineProfile
from evaluators.latency.runners import LocalRunner, Runner
from evaluators.latency.ssh import SshRunner, SshTarget
from spaces.errors import MeasurementError, SpecError

_MANIFEST = {"picture": {"size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}, "threads": 1}
_PORTS = (20_000, 32_000)  # below those that systems give to outgoing connections
_LISTEN_S = 30.0  # for a server over SSH to listen, and to be found
_KNOWN = "a link is measured between local and ssh:// machines"


def measure_link(device: MachineProfile, server: MachineProfile | None = None) -> LinkProfile:
    """The link from a device to a server; to this machine where no server is given.

    Raises:
        SpecError: one of them is not at hand, so nothing can be sent between them.
        MeasurementError: nothing arrived.
    """
    for place in (device, server):
        if place is not None and not isinstance(place.how, Here | SshTarget):
            raise _refused(f"{_KNOWN}, and {place.name} is a profile")
    far = server.how if server else Here()
    if isinstance(far, SshTarget) and far == device.how:
        raise _refused(f"device and server are the same machine, {far.label}")
    with tempfile.TemporaryDirectory(prefix="splitsearch-") as scratch:
        folder = folders.write_device(Path(scratch), _MANIFEST, np.zeros((8, 8, 3), np.uint8))
        sender = _runner(device)
        if isinstance(far, SshTarget):
            text = _send_there(sender, folder, SshRunner(far), far.address())
        else:
            text = _send_here(sender, folder)
    try:
        return measured_link(json.loads(text), f"{device.name} to {server.name if server else 'here'}")
    except ValueError:
        raise MeasurementError(f"the measurement of the link is not readable: {text[:80]!r}") from None


def _refused(reason: str) -> SpecError:
    return SpecError("link", "measured", f"{reason}; give a rate and a round trip")


def _runner(device: MachineProfile) -> Runner:
    """What runs a probe there: whatever library runs the device's networks, a probe needs none."""
    return SshRunner(device.how) if isinstance(device.how, SshTarget) else LocalRunner()


def _send_here(sender: Runner, folder: Path) -> str:
    """What the sender says of a transfer to this machine."""
    # The far side knows under which address it sees this machine.
    address = "127.0.0.1" if isinstance(sender, LocalRunner) else ""
    if not address:
        sender.run(folder, ["--help"])  # sends what is missing and makes the environment, before somebody waits
    with machine_lock.measuring(), probe.listen(address) as listener:  # in this order: who listens waits for seconds
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        return sender.run(folder, ["probe", f"{address}:{listener.getsockname()[1]}"])


def _machine_of(sender: Runner) -> contextlib.AbstractContextManager[None]:
    """This machine alone, if it is what sends: it waits for trainings, which whoever listens does not."""
    return machine_lock.measuring() if isinstance(sender, LocalRunner) else contextlib.nullcontext()


def _serve(listener: socket.socket) -> None:
    with contextlib.suppress(OSError, probe.ProbeError):  # the other side says what went wrong
        probe.serve(listener)


def _send_there(sender: Runner, folder: Path, server: Runner, address: str) -> str:
    """What the sender says of a transfer to a server, which is asked to listen first."""
    port = random.randrange(*_PORTS)
    sender.run(folder, ["--help"])  # sends what is missing and makes the environment, before somebody waits
    with _machine_of(sender), _listening(server, port) as failures:
        end = time.monotonic() + _LISTEN_S
        while True:
            try:
                return sender.run(folder, ["probe", f"{address}:{port}"])
            except MeasurementError as error:
                if failures:
                    raise failures[0] from None
                if "no connection to" not in str(error) or time.monotonic() > end:
                    raise MeasurementError(f"{error} Is its port {port} open to the device, under this name?") from None
                time.sleep(0.2)


@contextmanager
def _listening(server: Runner, port: int) -> Iterator[list[MeasurementError]]:
    """A server that begins to wait for one probe; yields what went wrong there, as soon as something does."""
    failures: list[MeasurementError] = []

    def listen(folder: Path) -> None:
        try:
            server.run(folder, ["serve", "--port", str(port), "--timeout", str(_LISTEN_S)])
        except MeasurementError as error:
            failures.append(error)

    with tempfile.TemporaryDirectory(prefix="splitsearch-") as scratch:
        folder = folders.write_tool(Path(scratch), "probe")
        server.run(folder, ["--help"])
        thread = threading.Thread(target=listen, args=(folder,), daemon=True)
        thread.start()
        try:
            yield failures
        finally:
            thread.join()
