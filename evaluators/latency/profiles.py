"""Machine profiles: what a study's ``device`` and ``server`` name. Read and checked here, used elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from evaluators.latency.profile_files import profile_names, read_profile, refuse_unknown
from spaces.errors import SpecError, nearest


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published latency of one network, which ties a machine we do not have to the one we measure on."""

    model: str
    image_size: int
    latency_ms: float
    runtime: str
    threads: int
    precision: str
    source: str


@dataclass(frozen=True, kw_only=True)
class MachineProfile:
    """A device or a server.

    Without a reference it is this machine, and its latencies are measured. With one they are modelled: measured on
    this machine, times (the reference's latency / the latency of the same network here).
    """

    name: str
    threads: int
    reference: Reference | None = None


def load_machine(value: Any, key: str) -> MachineProfile:
    """A device or server from a study file: ``local``, the name of a profile, a path, or a mapping.

    Args:
        value: what the study says.
        key: ``device`` or ``server``, for messages.

    Raises:
        SpecError: no such profile, or one that cannot be right.
    """
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise SpecError(
            key, value, f"the name of a profile is needed, {nearest('', ['local', *profile_names('devices')])}"
        )
    refuse_unknown(settings, {"name", "threads"}, key)
    threads = settings.get("threads", _cores())
    if not (isinstance(threads, int) and not isinstance(threads, bool) and threads > 0):
        raise SpecError(f"{key}.threads", threads, "a whole number from 1 is needed")
    if settings["name"] == "local":
        return MachineProfile(name="local", threads=threads)
    return _modelled(read_profile(settings["name"], "devices", key), threads, key)


def _modelled(data: dict[str, Any], threads: int, key: str) -> MachineProfile:
    refuse_unknown(data, {"format", "name", "kind", "reference", "note"}, key)
    if data.get("kind") != "modelled":
        raise SpecError(f"{key}.kind", data.get("kind"), "modelled is the kind known here")
    reference = data.get("reference")
    fields = set(Reference.__dataclass_fields__)
    if not isinstance(reference, dict) or set(reference) != fields:
        raise SpecError(f"{key}.reference", reference, f"exactly these keys are needed: {', '.join(sorted(fields))}")
    return MachineProfile(name=data["name"], threads=threads, reference=Reference(**reference))


def _cores() -> int:
    """Cores this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
