"""Hardware profiles: what a study's ``device``, ``server`` and ``link`` name. Read and checked here, used elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hardware_profiles
from spaces.config import is_number
from spaces.errors import SpecError, nearest
from spaces.yaml_text import read_yaml

FORMAT = 1
_FOLDER = Path(hardware_profiles.__file__).parent


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


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A link: rate in 10^6 bytes a second, round trip in milliseconds."""

    rate_mb_per_s: float
    rtt_ms: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        if not (is_number(self.rate_mb_per_s) and self.rate_mb_per_s > 0):
            raise SpecError("rate_mb_per_s", self.rate_mb_per_s, "a number above 0 is needed (10^6 bytes a second)")
        if not (is_number(self.rtt_ms) and self.rtt_ms >= 0):
            raise SpecError("rtt_ms", self.rtt_ms, "a number from 0 is needed (milliseconds)")

    def latency_ms(self, payload_bytes: float) -> float:
        """One round trip plus the time the payload takes at the link's rate; the answer's few bytes count as none."""
        return self.rtt_ms + self.busy_ms(payload_bytes)

    def busy_ms(self, payload_bytes: float) -> float:
        """How long the payload occupies the link."""
        return payload_bytes / (self.rate_mb_per_s * 1000.0)

    @property
    def label(self) -> str:
        """For people: ``2 MB/s, 2 ms round trip``."""
        return f"{self.rate_mb_per_s:g} MB/s, {self.rtt_ms:g} ms round trip"


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
        raise SpecError(key, value, f"the name of a profile is needed, {nearest('', ['local', *_names('devices')])}")
    _no_unknown(settings, {"name", "threads"}, key)
    threads = settings.get("threads", _cores())
    if not (isinstance(threads, int) and not isinstance(threads, bool) and threads > 0):
        raise SpecError(f"{key}.threads", threads, "a whole number from 1 is needed")
    if settings["name"] == "local":
        return MachineProfile(name="local", threads=threads)
    return _modelled(_read(settings["name"], "devices", key), threads, key)


def load_link(value: Any) -> LinkProfile:
    """A link from a study file: the name of a profile, a path, or ``{rate_mb_per_s, rtt_ms}``.

    Raises:
        SpecError: no such profile, or one that cannot be right.
    """
    if isinstance(value, str):
        data = _read(value, "links", "link")
        value = {key: data[key] for key in ("rate_mb_per_s", "rtt_ms", "name") if key in data}
    if not isinstance(value, dict):
        raise SpecError("link", value, "the name of a profile or {rate_mb_per_s: ..., rtt_ms: ...} is needed")
    _no_unknown(value, {"rate_mb_per_s", "rtt_ms", "name"}, "link")
    if "rate_mb_per_s" not in value:
        raise SpecError("link.rate_mb_per_s", None, "a number above 0 is needed (10^6 bytes a second)")
    try:
        return LinkProfile(**value)
    except SpecError as error:
        raise error.inside("link") from None


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (_FOLDER / folder).glob("*.yaml"))


def _read(name: str, folder: str, key: str) -> dict[str, Any]:
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / folder / f"{name}.yaml"
    if not path.exists():
        known = [*_names(folder), *(["local"] if folder == "devices" else [])]
        raise SpecError(key, name, f"no such profile; {nearest(name, known)}. A path to a .yaml file works too")
    data = read_yaml(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SpecError(key, str(path), f"a profile with format: {FORMAT} is needed")
    return data


def _modelled(data: dict[str, Any], threads: int, key: str) -> MachineProfile:
    _no_unknown(data, {"format", "name", "kind", "reference", "note"}, key)
    if data.get("kind") != "modelled":
        raise SpecError(f"{key}.kind", data.get("kind"), "modelled is the kind known here")
    reference = data.get("reference")
    fields = set(Reference.__dataclass_fields__)
    if not isinstance(reference, dict) or set(reference) != fields:
        raise SpecError(f"{key}.reference", reference, f"exactly these keys are needed: {', '.join(sorted(fields))}")
    return MachineProfile(name=data["name"], threads=threads, reference=Reference(**reference))


def _no_unknown(data: dict[str, Any], known: set[str], key: str) -> None:
    for name in data:
        if name not in known:
            raise SpecError(f"{key}.{name}", data[name], f"no such key; {nearest(str(name), known)}")


def _cores() -> int:
    """Cores this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
