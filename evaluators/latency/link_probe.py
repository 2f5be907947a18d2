"""Measures the link from a device at hand to this machine by a short transfer (``edge/probe.py``)."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np

from evaluators import folders
from evaluators.edge import probe
from evaluators.latency.links import LinkProfile, measured_link
from evaluators.latency.machine_for import runner_for
from evaluators.latency.profiles import Here, MachineProfile
from evaluators.latency.ssh import SshTarget
from spaces.errors import MeasurementError, SpecError

_MANIFEST = {"picture": {"size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}, "threads": 1}


def measure_link(device: MachineProfile) -> LinkProfile:
    """The link from a device to this machine, which takes part as the server.

    Raises:
        SpecError: the device is not at hand, so nothing can be sent from it.
        MeasurementError: nothing arrived.
    """
    how = device.how
    if not isinstance(how, Here | SshTarget):
        known = "a link is measured from local and ssh:// devices"
        raise SpecError("link", "measured", f"{known}, and {device.name} is a profile; give a rate and a round trip")
    # The far side knows under which address it sees this machine.
    listen, reach = ("127.0.0.1", "127.0.0.1") if isinstance(how, Here) else ("", "")
    with socket.create_server((listen, 0)) as listener, tempfile.TemporaryDirectory(prefix="splitsearch-") as scratch:
        folder = folders.write_device(Path(scratch), _MANIFEST, np.zeros((8, 8, 3), np.uint8))
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        text = runner_for(how).run(folder, ["probe", f"{reach}:{port}"])
    try:
        return measured_link(json.loads(text), f"{device.name} to here")
    except ValueError:
        raise MeasurementError(f"the measurement of the link is not readable: {text[:80]!r}") from None


def _serve(listener: socket.socket) -> None:
    with contextlib.suppress(OSError, probe.ProbeError):  # the other side says what went wrong
        probe.serve(listener)
