"""From a profile to the machine behind it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from evaluators import folders
from evaluators.latency.machines import Fitted, Machine, Measuring, Recorded, Scaled
from evaluators.latency.profiles import LOCAL, Here, MachineProfile, Recording, Reference, Scaling
from evaluators.latency.runners import LocalRunner, Runner
from evaluators.latency.ssh import SshRunner, SshTarget
from evaluators.latency.table import StageTable
from evaluators.result import StageKey
from spaces.partition import INPUT, OUTPUT


def machine_for(profile: MachineProfile, table: StageTable, runner: Runner | None = None) -> Machine:
    """The machine that answers for a profile.

    Args:
        profile: which, and which way.
        table: where its timings are remembered.
        runner: takes the timings in place of the usual one; for tests.
    """
    how = profile.how
    if isinstance(how, Here | SshTarget):
        return Measuring(profile=profile, runner=runner or runner_for(how), table=table, place=_place(profile, how))
    here = Measuring(
        profile=MachineProfile(name=LOCAL, threads=profile.threads),
        runner=runner or LocalRunner(),
        table=table,
        place=_place(profile, Here()),
    )
    if isinstance(how, Recording):
        networks = _scaled(profile, here, how.model, how.image_size, how.whole_ms) if how.whole_ms else None
        rest = _by_reference(profile, here, how.reference) if how.reference else networks
        return Recorded(profile=profile, recording=how, networks=networks, rest=rest)
    scaled = _by_reference(profile, here, how.reference)
    return scaled if isinstance(how, Scaling) else Fitted(profile=profile, fitting=how, rest=scaled)


def runner_for(how: Here | SshTarget) -> Runner:
    """What runs folders on a machine at hand."""
    if isinstance(how, SshTarget):
        return SshRunner(how)
    return LocalRunner(("-m", "evaluators.latency.torch_half")) if how.runtime == "torch" else LocalRunner()


def _place(profile: MachineProfile, how: Here | SshTarget) -> str:
    threads = f"{profile.threads} threads" if profile.threads else "a thread for each core"
    if isinstance(how, SshTarget):
        return f"{how.label}, {threads}"
    return " ".join([threads, *(word for word in (how.runtime, how.provider) if word not in ("onnxruntime", "cpu"))])


def _by_reference(profile: MachineProfile, here: Measuring, reference: Reference) -> Scaled:
    return _scaled(profile, here, reference.model, reference.image_size, reference.latency_ms)


def _scaled(profile: MachineProfile, here: Measuring, model: str, image_size: int, reference_ms: float) -> Scaled:
    def time_reference() -> float:
        stage_key = StageKey(key=f"{model} whole at {image_size} px")
        with tempfile.TemporaryDirectory(prefix="splitsearch-reference-") as scratch:
            folder = Path(scratch)
            timings = here.timings({"head": stage_key}, lambda: _folder(folder, model, image_size, profile.threads))
        return timings["head"].p50_ms

    return Scaled(profile, here, reference_ms, time_reference)


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
