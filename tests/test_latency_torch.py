"""A machine of torch: the same folders, the same answers, timed in a process of its own."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from evaluators import folders
from evaluators.edge import halves
from evaluators.edge.picture import PictureFormat
from evaluators.latency import runners
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import Here, MachineProfile
from evaluators.latency.stage_timer import StageTimer
from evaluators.latency.table import StageTable
from evaluators.latency.torch_half import TorchDeviceHalf
from evaluators.models.cut import SplitModel
from evaluators.store import Store

PICTURE = PictureFormat(size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1), nn.ReLU()]
    return SplitModel(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(), 16)


def manifest(**more):
    return {"picture": PICTURE.to_dict(), "threads": 1, **more}


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_both_libraries_give_the_same_features(split, tmp_path, provider):
    if provider == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    (name,) = [point.name for point in split.points if point.shapes == ((4, 4, 4),)]
    from evaluators.models.onnx_export import save_module

    folder = folders.write_device(tmp_path, manifest(), PIXELS)
    own = folders.write_device(tmp_path / "torch", manifest(provider=provider), PIXELS)
    head, example = split.head(name), torch.zeros(1, 3, 16, 16)
    save_module(head, [example], folder / "head.onnx")
    torch.export.save(torch.export.export(head, (example,)), own / "head.pt2")
    (one,), (other,) = halves.DeviceHalf(folder).head(PIXELS), TorchDeviceHalf(own).head(PIXELS)
    # A GPU multiplies in TF32 where cuDNN may, which has ten bits of mantissa.
    assert one.shape == (1, 4, 4, 4) and np.allclose(one, other, atol=1e-5 if provider == "cpu" else 1e-2)


def test_a_machine_of_torch_is_measured(split, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "MOST_ATTEMPTS", 1)  # whatever else runs here
    profile = MachineProfile(name="local", how=Here(runtime="torch"), threads=1)
    machine = machine_for(profile, StageTable(Store(tmp_path / "table")))
    watch = StageTimer(machine, machine, split, PICTURE, PIXELS)
    head, tail = watch.all_on_device(), watch.tail(split.points[2].name)
    for stages in (head, tail):
        (timing,) = stages.timings.values()
        assert timing.p50_ms > 0 and timing.repeats >= 10
    for entry in (tmp_path / "table" / "timing").glob("*/entry.json"):
        place = json.loads(entry.read_text())["depends_on"]["place"]
        assert place["runtime"] == "torch" and torch.__version__.startswith(place["torch"])


def test_a_gpu_that_does_not_start_is_not_timed_as_a_processor(tmp_path, monkeypatch):
    """Without cuDNN, say, onnxruntime runs the network on the processor and goes on."""
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    half = halves.DeviceHalf(folders.write_device(tmp_path, manifest(provider="cuda"), PIXELS))
    with pytest.raises(ValueError, match="could not start CUDAExecutionProvider"):
        half.open("head")


def test_a_processor_that_is_not_there_is_said(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = folders.write_device(tmp_path, manifest(provider="cuda"), PIXELS)
    (folder / "head.onnx").touch()
    done = subprocess.run([sys.executable, folder, "measure", "--json"], capture_output=True, text=True)
    assert done.returncode == 1 and "has no CUDAExecutionProvider" in done.stderr
