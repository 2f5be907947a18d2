"""Machine profiles: what a study's ``device`` and ``server`` name. Read and checked here, used elsewhere.

A profile says in ``how`` which way its latencies come about:

    Here        timed on this machine
    SshTarget   timed on a machine that is reached over SSH
    Recording   looked up: somebody timed this network there once
    Scaling     timed here, times one factor from a published latency
    Fitting     computed from what a network does, by a fit to many published latencies

What is no network, packing and compressing, is nobody's published figure: it is timed here, times what is known of the
board's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from evaluators.edge.programs import PROGRAMS
from evaluators.latency.fit import LatencyFit
from evaluators.latency.profile_files import profile_names, read_profile
from evaluators.latency.ssh import SshTarget
from evaluators.result import Source, Timing
from evaluators.user_code import without_folder
from spaces.config import is_number
from spaces.errors import SpecError, nearest
from spaces.section import Section

Runtime = Literal["onnxruntime", "torch"]
Provider = Literal["cpu", "cuda"]
LOCAL = "local"
_SSH = "ssh://"
_NETWORK_STAGES = ("head", "tail")


@dataclass(frozen=True, kw_only=True)
class Here:
    """This machine: which library runs the networks, and on which processor."""

    runtime: Runtime = "onnxruntime"
    provider: Provider = "cpu"


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
class ProgramTime:
    """What a small Python program takes on a machine that we do not have; see ``evaluators/edge/programs.py``."""

    program: str
    board_ms: float
    source: str


Interpreter = tuple[ProgramTime, ...]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Measured on this machine, times (the reference's latency / the latency of the same network here).

    ``interpreter`` prices what is no network; without it, the reference does.
    """

    reference: Reference
    interpreter: Interpreter = ()


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What somebody measured of one network, kept.

    Attributes:
        model: as a study names it.
        image_size: side of its input in pixels.
        timings: by stage and by what it depends on: ``{"head": {"stem": ...}}``.
        runtime, threads, precision, date, source: the circumstances, in words.
        interpreter: prices what is no network and was not timed there; without it the reference does, and without that
            the recorded network.
        reference: of another network, with a runtime that says more of the machine.
    """

    model: str
    image_size: int
    timings: Mapping[str, Mapping[str, Timing]]
    runtime: str
    threads: str
    precision: str
    date: str
    source: str
    interpreter: Interpreter = ()
    reference: Reference | None = None

    @property
    def whole_ms(self) -> float | None:
        """Latency of the whole network; None where only parts of it are known."""
        for stage, end in (("head", "output"), ("tail", "input")):
            if end in self.timings.get(stage, {}):
                return self.timings[stage][end].p50_ms
        return None


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Networks by a fit; what is no network (packing, compressing) as in :class:`Scaling`."""

    fit: LatencyFit
    reference: Reference
    interpreter: Interpreter = ()


How = Here | SshTarget | Recording | Scaling | Fitting


@dataclass(frozen=True, kw_only=True)
class MachineProfile:
    """A device or a server.

    Attributes:
        name: for people.
        how: which way its latencies come about.
        threads: of the network's runtime where something is timed; 0 is one for each core.
    """

    name: str
    how: How = Here()
    threads: int

    @property
    def source(self) -> Source:
        """What its latencies are at best."""
        if isinstance(self.how, Here | SshTarget):
            return Source.MEASURED
        return Source.RECORDED if isinstance(self.how, Recording) else Source.MODELLED

    @property
    def threads_there(self) -> int:
        """Of the runtime on the machine itself, where an exported half will run; 0 is one for each core there."""
        how = self.how
        if isinstance(how, Recording):  # words may stand there: "all", "one for each of 4 cores"
            return int(how.threads) if how.threads.isdecimal() else 0
        if isinstance(how, Fitting):
            return how.fit.threads
        return how.reference.threads if isinstance(how, Scaling) else self.threads

    def check_fits(self, model: str, image_size: int, key: str) -> None:
        """Raise SpecError where this profile knows another network, or the same one at another size."""
        how = self.how
        if not isinstance(how, Recording):
            return
        if (without_folder(how.model), how.image_size) != (without_folder(model), image_size):
            raise SpecError(
                key,
                self.name,
                f"it is a recording of {how.model} at {how.image_size} pixels, the study has {model} at {image_size}; "
                f"take a modelled profile (raspberry_pi_4b), or record this one: splitsearch profile ssh://USER@HOST",
            )


def load_machine(value: Any, key: str) -> MachineProfile:
    """A device or server from a study file.

    Args:
        value: what the study says: ``local``, ``ssh://user@host:port``, the name of a profile, a path, or a mapping
            with one of these as ``name`` and with ``threads`` and what else the kind knows.
        key: ``device`` or ``server``, for messages.

    Raises:
        SpecError: no such profile, or one that cannot be right.
    """
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        known = nearest("", [LOCAL, *profile_names("devices")])
        raise SpecError(key, value, f"the name of a profile or ssh://user@host is needed, {known}")
    section, name = Section(key, settings), settings["name"]
    section.take("name")
    if name == LOCAL:
        profile = _here(section)
    elif name.startswith(_SSH):
        profile = _remote(section, name)
    else:
        # Threads are of the study, what else there is of the profile.
        runtime, threads = section.take("runtime", None), section.whole("threads", cores())
        profile = _from_file(read_profile(name, "devices", key), runtime, threads)
    section.finish()
    return profile


def _here(section: Section) -> MachineProfile:
    here = Here(
        runtime=section.choice("runtime", "onnxruntime", get_args(Runtime)),  # type: ignore[arg-type]
        provider=section.choice("provider", "cpu", get_args(Provider)),  # type: ignore[arg-type]
    )
    return MachineProfile(name=LOCAL, how=here, threads=section.whole("threads", cores()))


def _remote(section: Section, url: str) -> MachineProfile:
    def path(name: str) -> Path | None:
        value = section.take(name, None)
        if not isinstance(value, str | Path | None):
            raise SpecError(section.path(name), value, "a path is needed")
        return None if value is None else Path(value).expanduser()

    target = SshTarget.from_url(url, section.path("name").removesuffix(".name"))
    python = section.take("python", "")
    if not isinstance(python, str | Path):
        raise SpecError(section.path("python"), python, "a path is needed")
    target = replace(target, key=path("key"), known_hosts=path("known_hosts"), python=str(python))
    threads = section.whole("threads") if section.has("threads") else 0
    return MachineProfile(name=target.label, how=target, threads=threads)


def _from_file(section: Section, runtime: str | None, threads: int) -> MachineProfile:
    name = section.text("name")
    if section.choice("kind", None, ("recorded", "modelled")) == "recorded":
        how: How = _recording(section)
    elif section.has("fits"):
        how, runtime = _fitting(section, name, runtime), None
    else:
        how = Scaling(reference=_reference(section), interpreter=_interpreter(section))
    section.finish()
    if runtime is not None:
        raise SpecError(section.path("runtime"), runtime, f"{name} knows one runtime only; leave the key out")
    return MachineProfile(name=name, how=how, threads=threads)


def _reference(section: Section) -> Reference:
    value, fields = section.take("reference"), Reference.__dataclass_fields__
    if not isinstance(value, dict) or set(value) != set(fields):
        allowed = f"exactly these keys are needed: {', '.join(sorted(fields))}"
        raise SpecError(section.path("reference"), value, allowed)
    inside = Section(section.path("reference"), value)
    inside.text("model")
    inside.whole("image_size")
    inside.number("latency_ms", above=0)
    return Reference(**value)


def _interpreter(section: Section) -> Interpreter:
    rows, key = section.take("interpreter", []), section.path("interpreter")
    if not isinstance(rows, list):
        raise SpecError(key, rows, "a list of {program, board_ms, source} is needed")
    return tuple(_program(row, key) for row in rows)


def _program(row: Any, key: str) -> ProgramTime:
    fields = set(ProgramTime.__dataclass_fields__)
    if not isinstance(row, dict) or set(row) != fields:
        raise SpecError(key, row, f"exactly these keys are needed: {', '.join(sorted(fields))}")
    if row["program"] not in PROGRAMS:
        raise SpecError(f"{key}.program", row["program"], f"no such program; {nearest(str(row['program']), PROGRAMS)}")
    if not (is_number(row["board_ms"]) and row["board_ms"] > 0):
        raise SpecError(f"{key}.board_ms", row["board_ms"], "a number above 0 is needed (milliseconds)")
    if not (isinstance(row["source"], str) and row["source"].strip()):
        raise SpecError(f"{key}.source", row["source"], "words are needed: where does the figure come from?")
    return ProgramTime(**row)


def _fitting(section: Section, name: str, runtime: str | None) -> Fitting:
    usual = section.take("runtime", None)
    wanted, fits, key = usual if runtime is None else runtime, section.take("fits"), section.path("fits")
    if not isinstance(fits, dict) or wanted not in fits:
        known = ", ".join(sorted(map(str, fits))) if isinstance(fits, dict) else "none"
        raise SpecError(section.path("runtime"), wanted, f"{name} has fits for these: {known}")
    fit = LatencyFit.from_dict(fits[wanted], f"{key}.{wanted}")
    return Fitting(fit=fit, reference=_reference(section), interpreter=_interpreter(section))


_WORDS = ("model", "runtime", "threads", "precision", "date", "source")


def _recording(section: Section) -> Recording:
    words = {name: str(section.take(name)) for name in _WORDS}
    size, timings = section.whole("image_size"), section.take("timings")
    if not isinstance(timings, dict) or not set(timings) & set(_NETWORK_STAGES):
        raise SpecError(section.path("timings"), timings, "a mapping with 'head' or 'tail' in it is needed")
    return Recording(
        timings={stage: _rows(rows, f"{section.path('timings')}.{stage}") for stage, rows in timings.items()},
        image_size=size,
        interpreter=_interpreter(section),
        reference=_reference(section) if section.has("reference") else None,
        **words,
    )


def _rows(rows: Any, key: str) -> dict[str, Timing]:
    if not isinstance(rows, dict):
        raise SpecError(key, rows, "a mapping from partition points to milliseconds is needed")
    return {str(name): _row(row, f"{key}.{name}") for name, row in rows.items()}


def _row(row: Any, key: str) -> Timing:
    """A number of milliseconds, or a mapping with the median and what else is known."""
    try:
        timing = (
            Timing.from_dict({"throttling": [], **row, "source": Source.RECORDED})
            if isinstance(row, dict)
            else Timing.single(float(row), Source.RECORDED)
        )
        if is_number(timing.p50_ms) and timing.p50_ms >= 0:
            return timing
    except (TypeError, ValueError):
        pass
    raise SpecError(key, row, "milliseconds are needed, or {p50_ms, p90_ms, spread, repeats}")


def cores() -> int:
    """Cores this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
