"""From a profile to the machine behind it."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from evaluators import folders
from evaluators.edge import circumstances
from evaluators.latency.machines import Factor, Fitted, Machine, Measuring, Recorded, Scaled
from evaluators.latency.profiles import LOCAL, Here, Interpreter, MachineProfile, Recording, Scaling
from evaluators.latency.runners import LocalRunner, Runner
from evaluators.latency.ssh import SshRunner, SshTarget
from evaluators.latency.table import StageTable
from evaluators.result import StageKey, Timing
from spaces.partition import INPUT, OUTPUT

INTERPRETED = "modelled by one factor for interpreted code, error unknown"
NO_NETWORK = "modelled by a network's factor although it is none, error unknown"


def machine_for(profile: MachineProfile, table: StageTable, runner: Runner | None = None) -> Machine:
    """The machine that answers for a profile.

    Args:
        profile: which, and which way.
        table: where its timings are remembered.
        runner: takes the timings in place of the usual one; for tests.
    """
    how = profile.how
    if isinstance(how, Here | SshTarget):
        return _measuring(profile, how, runner or runner_for(how), table)
    this = MachineProfile(name=LOCAL, threads=profile.threads)
    here = _measuring(this, Here(), runner or LocalRunner(), table)
    if isinstance(how, Recording):
        return Recorded(profile=profile, recording=how, rest=_beside_recording(profile, here, how))
    networks = _by_network(here, how.reference.model, how.reference.image_size, how.reference.latency_ms)
    scaled = _scaled(profile, here, networks, networks, how.interpreter)
    return scaled if isinstance(how, Scaling) else Fitted(profile=profile, fitting=how, rest=scaled)


def runner_for(how: Here | SshTarget) -> Runner:
    """What runs folders on a machine at hand."""
    if isinstance(how, SshTarget):
        return SshRunner(how)
    return LocalRunner(("-m", "evaluators.latency.torch_half")) if how.runtime == "torch" else LocalRunner()


def _measuring(profile: MachineProfile, how: Here | SshTarget, runner: Runner, table: StageTable) -> Measuring:
    words = f"{profile.threads} threads" if profile.threads else "a thread for each core"
    if isinstance(how, SshTarget):
        # What runs there is only known when it has answered; a table is also read without the device.
        place: dict[str, Any] = {"target": how.label, "python": how.python, "threads": profile.threads}
        return Measuring(profile=profile, runner=runner, table=table, place=place, words=f"{how.label}, {words}")
    place = {"host": platform.node(), "threads": profile.threads, "runtime": how.runtime, "provider": how.provider}
    place |= {"machine": circumstances.machine()}
    if how.runtime == "torch":
        place |= {"torch": metadata.version("torch")}
    if how.provider == "cuda":
        place |= {"gpu": _gpu()}
    said = " ".join([words, *(word for word in (how.runtime, how.provider) if word not in ("onnxruntime", "cpu"))])
    return Measuring(profile=profile, runner=runner, table=table, place=place, words=said)


def _gpu() -> str | None:
    import torch  # not above: of what is timed here, only this needs it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _beside_recording(profile: MachineProfile, here: Measuring, how: Recording) -> Scaled | None:
    """What answers for stages that a recording lacks; None where nothing is known that could."""
    networks = _by_network(here, how.model, how.image_size, how.whole_ms) if how.whole_ms else None
    other = how.reference and _by_network(here, how.reference.model, how.reference.image_size, how.reference.latency_ms)
    if not (how.interpreter or other or networks):
        return None
    return _scaled(profile, here, networks, other or networks, how.interpreter)


def _scaled(
    profile: MachineProfile, here: Measuring, networks: Factor | None, other: Factor | None, interpreter: Interpreter
) -> Scaled:
    """A scaled machine; ``other`` prices what is no network where nothing is known of the interpreter."""
    rest = _by_interpreter(here, interpreter) if interpreter else other
    assert rest is not None, "a network or an interpreter is needed"
    caveat = INTERPRETED if interpreter else NO_NETWORK
    return Scaled(profile=profile, here=here, networks=networks, rest=rest, caveat=caveat)


def _by_network(here: Measuring, model: str, image_size: int, there_ms: float) -> Factor:
    here = replace(here, table=here.table.unscoped())

    def time_here() -> list[Timing]:
        stage_key = StageKey(key=f"{model} whole at {image_size} px")
        with tempfile.TemporaryDirectory(prefix="splitsearch-reference-") as scratch:
            folder = Path(scratch)
            timings = here.timings(
                {"head": stage_key}, lambda: _folder(folder, model, image_size, here.profile.threads)
            )
        return [timings["head"]]

    return Factor(there_ms=[there_ms], time_here=time_here, words=f"the latency of {model} at {image_size} px")


def _by_interpreter(here: Measuring, interpreter: Interpreter) -> Factor:
    here, names = replace(here, table=here.table.unscoped()), [each.program for each in interpreter]

    return Factor(
        there_ms=[each.board_ms for each in interpreter],
        time_here=lambda: time_programs(here, names),
        words=f"{len(names)} Python program{'s' if len(names) > 1 else ''}",
    )


def time_programs(machine: Measuring, names: Sequence[str]) -> list[Timing]:
    """What small Python programs take on a machine at hand, see ``evaluators/edge/programs.py``.

    Raises:
        MeasurementError: the machine did not answer.
    """
    if isinstance(machine.profile.how, Here) and machine.profile.how.runtime == "torch":
        machine = replace(machine, runner=runner_for(Here()))  # torch runs networks there, not these
    with tempfile.TemporaryDirectory(prefix="splitsearch-programs-") as scratch:
        folder, stage_keys = Path(scratch), {name: StageKey(key="program") for name in names}
        timings = machine.timings(stage_keys, lambda: folders.write_tool(folder, "programs"))
    return [timings[name] for name in names]


def _folder(folder: Path, model: str, image_size: int, threads: int) -> Path:
    """A device folder whose head is the whole reference network, with random weights: only its speed matters."""
    # Here, not above: replaying a study whose factors are known needs no torch.
    from evaluators.models.cut import SplitModel
    from evaluators.models.load import build
    from evaluators.models.onnx_export import OnnxNetwork
    from evaluators.settings import ModelSettings

    picture = {"size": image_size, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    manifest = {"picture": picture, "threads": threads}
    folders.write_device(folder, manifest, np.zeros((image_size, image_size, 3), np.uint8))
    network = build(ModelSettings(name=model, num_classes=1000)).network
    OnnxNetwork(SplitModel(network, image_size)).save_part(INPUT, OUTPUT, folder / "head.onnx")
    return folder
