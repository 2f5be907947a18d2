"""``profile``: a machine at hand, measured and written down as a hardware profile."""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluators.latency.profile_files import OWN_FOLDER
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.settings import ModelSettings
from evaluators.store import write_whole
from evaluators.user_code import without_folder
from search.spec import NAME, NAME_WORDS, StudySpec, load_spec
from spaces.errors import SpecError

_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says.

    Attributes:
        settings: the machine as a study file would name it, ``{"name": "ssh://pi@camera"}``.
        study: the name or path of a study, or None for ``model`` at ``image_size`` with 1,000 classes.
        role: ``device``, ``server`` or ``both``.
        name: of the profile; made of machine and network unless given.
    """

    settings: Mapping[str, Any]
    study: str | None = None
    model: str = "torchvision/resnet50"
    image_size: int = 224
    role: str = "device"
    name: str | None = None


def record_machine(asked: Asked, output: Path | None, progress: Callable[[str], None]) -> Path:
    """Time heads, tails and bottlenecks there and write the profile; returns its file.

    What was timed is kept in the folder ``.timings`` beside the file until the profile is whole, so that a second call
    goes on where a first one broke off.

    Raises:
        SpecError: a target, study or network that cannot be right.
        MeasurementError: the machine did not answer.
    """
    from evaluators.edge.programs import PROGRAMS
    from evaluators.identity import architecture
    from evaluators.latency import record
    from evaluators.latency.machine_for import machine_for, time_programs
    from evaluators.latency.machines import Measuring
    from evaluators.latency.table import StageTable
    from evaluators.models.cut import SplitModel
    from evaluators.models.load import build
    from evaluators.store import Store

    if output is not None and output.suffix not in (".yaml", ".yml"):
        raise SpecError("-o", str(output), "a path that ends in .yaml is needed, so that a study can name it")
    profile, spec = _profile(asked), load_spec(asked.study) if asked.study else None
    settings = spec.model if spec else ModelSettings(name=asked.model, num_classes=_CLASSES)
    size = spec.data.image_size if spec else asked.image_size
    model = without_folder(settings.name)
    name = asked.name or _slug("-".join([profile.name, *_unusual(profile, asked.role), model, str(size)]))
    target = output or OWN_FOLDER / "devices" / f"{name}.yaml"
    split = SplitModel(build(settings).network, size)
    scope = record.Scope(role=asked.role, **_squeezes(spec, split))
    unfinished = target.with_suffix(".timings")
    scope_of_timings = {"network": architecture(settings), "image_size": size}
    machine = machine_for(profile, StageTable(Store(unfinished), scope_of_timings))
    assert isinstance(machine, Measuring)
    timed = record.record(split, machine, scope, progress)
    progress("small Python programs")
    programs = dict(zip(PROGRAMS, time_programs(machine, list(PROGRAMS)), strict=True))
    _write(target, record.profile_of(name, model, size, machine, timed, programs, datetime.date.today()))
    shutil.rmtree(unfinished, ignore_errors=True)
    return target


def record_link(asked: Asked, progress: Callable[[str], None]) -> Path:
    """Measure the link from there to here and write its profile; returns its file.

    Raises:
        MeasurementError: nothing arrived.
    """
    from evaluators.latency.link_probe import measure_link

    profile = _profile(asked)
    progress(f"sending from {profile.name} to here")
    found = measure_link(profile)
    name = _slug(f"{asked.name or profile.name}_link")
    today = datetime.date.today().isoformat()
    numbers = {key: float(f"{getattr(found, key):.4g}") for key in ("rate_mb_per_s", "rtt_ms", "jitter_ms")}
    target = OWN_FOLDER / "links" / f"{name}.yaml"
    source = f"splitsearch profile {profile.name} --link, {today}: {found.source}"
    _write(target, {"format": 1, "name": name, "kind": "recorded", **numbers, "source": source})
    return target


def _profile(asked: Asked) -> MachineProfile:
    from evaluators.latency.profiles import Here
    from evaluators.latency.ssh import SshTarget

    if asked.name is not None and not re.fullmatch(NAME, asked.name):
        raise SpecError("--name", asked.name, f"{NAME_WORDS}; it names a file")
    profile = load_machine(dict(asked.settings), "TARGET")
    if not isinstance(profile.how, Here | SshTarget):
        given = asked.settings["name"]
        raise SpecError("TARGET", given, "local and ssh://user@host are machines that can be measured")
    return profile


def _unusual(profile: MachineProfile, role: str) -> list[str]:
    """Words that keep profiles of one machine apart: what runs the networks there, and tails alone."""
    from evaluators.latency.profiles import Here

    here = (profile.how.runtime, profile.how.provider) if isinstance(profile.how, Here) else ()
    words = [word for word in here if word not in (Here.runtime, Here.provider)]
    return [*words, *(["server"] if role == "server" else [])]


def _squeezes(spec: StudySpec | None, split: Any) -> dict[str, Any]:
    if spec is None:
        return {}
    space = spec.space(split.points)
    choices = {"ae_ratios": space.ae_ratios, "bits": space.bits, "strides": space.strides, "heads": space.heads}
    return {"squeezed": space.partitions, **choices}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace("ssh://", "")).strip("_")


def _write(target: Path, data: Mapping[str, Any]) -> None:
    write_whole(target, yaml.safe_dump(dict(data), sort_keys=False, width=120, default_flow_style=None))
