"""The machine behind a profile. One with a reference needs that network timed on this machine, once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from evaluators import folders
from evaluators.latency.machines import Machine
from evaluators.latency.profiles import MachineProfile, Reference
from evaluators.latency.runners import Runner
from evaluators.latency.table import StageTable
from spaces.partition import INPUT, OUTPUT


def machine_for(profile: MachineProfile, runner: Runner, table: StageTable) -> Machine:
    """This machine for a profile without a reference; else this machine times (reference latency / latency here)."""
    if profile.reference is None:
        return Machine(profile=profile, runner=runner, table=table)
    reference = profile.reference
    here = Machine(profile=MachineProfile(name="local", threads=profile.threads), runner=runner, table=table)
    key = f"{reference.model} whole at {reference.image_size} px"
    with tempfile.TemporaryDirectory(prefix="splitsearch-reference-") as scratch:
        timings = here.timings({"head": key}, lambda: _folder(Path(scratch), reference, profile.threads))
    factor = reference.latency_ms / timings["head"].p50_ms
    return Machine(profile=profile, runner=runner, table=table, factor=factor)


def _folder(folder: Path, reference: Reference, threads: int) -> Path:
    """A device folder whose head is the whole reference network, with random weights: only its speed matters."""
    # Here, not above: replaying a study whose factors are known needs no torch.
    from evaluators.models.cut import SplitModel
    from evaluators.models.load import build
    from evaluators.models.onnx_export import OnnxNetwork
    from evaluators.settings import ModelSettings

    size = reference.image_size
    picture = {"size": size, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    folders.write_device(folder, {"picture": picture, "threads": threads}, np.zeros((size, size, 3), np.uint8))
    network = build(ModelSettings(name=reference.model, num_classes=1000)).network
    OnnxNetwork(SplitModel(network, size)).save_part(INPUT, OUTPUT, folder / "head.onnx")
    return folder
