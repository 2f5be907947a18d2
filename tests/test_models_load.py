"""Models by name, and weights from files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from evaluators.models.load import build
from evaluators.models.weights import load_weights, read_state
from evaluators.settings import ModelSettings
from spaces.errors import SpecError, SplitsearchError


@pytest.fixture(scope="module")
def resnet18():
    return build(ModelSettings(name="torchvision/resnet18", num_classes=7)).network


def test_weights_round_trip_in_half_precision(resnet18, tmp_path):
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in resnet18.state_dict().items()
    }
    save_file(state, tmp_path / "w.safetensors")
    torch.save(resnet18.state_dict(), tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        other = build(ModelSettings(name="torchvision/resnet18", num_classes=7, weights=tmp_path / file))
        assert other.trained
        other = other.network
        assert other.fc.weight.dtype == torch.float32
        assert torch.allclose(other.fc.weight, resnet18.fc.weight, atol=1e-3)


def test_weights_that_do_not_fit_are_listed(resnet18, tmp_path):
    state = dict(resnet18.state_dict())
    state["extra"] = state.pop("fc.bias")
    state["fc.weight"] = state["fc.weight"][:3].clone()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SpecError) as caught:
        load_weights(resnet18, tmp_path / "w.safetensors")
    for part in ("1 missing: fc.bias", "1 unexpected: extra", "fc.weight (3, 512) for (7, 512)", "model.weights"):
        assert part in str(caught.value)


def test_unreadable_weights(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "w.pt").write_bytes(b"nothing of the kind")
    torch.save(nn.Linear(1, 1), tmp_path / "pickled.pt")
    for file in ("w.safetensors", "w.pt", "pickled.pt", "absent.safetensors"):
        with pytest.raises(SpecError, match=r"model\.weights"):
            read_state(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("torchvision/resnet5o", "did you mean 'torchvision/resnet50'"),
        ("ultralytics/yolo10n", "did you mean 'ultralytics/yolov10n'"),
        ("timm/resnet5", "did you mean 'timm/resnet50'"),
        ("resnet50", "torchvision, timm, ultralytics"),
        ("python:nothing", "python:package.module:function"),
        ("python:absent.py:make", "no file absent.py"),
        ("python:no_such_package:make", "No module named 'no_such_package'"),
        ("python:torchvision.models:resnet0", "no function resnet0"),
    ],
)
def test_unknown_names_are_told_what_is_near(name, told):
    pytest.importorskip("timm")
    pytest.importorskip("ultralytics")
    with pytest.raises(SpecError) as caught:
        build(ModelSettings(name=name, num_classes=2))
    assert "model.name" in str(caught.value) and told in str(caught.value)


def test_a_network_of_ones_own(tmp_path):
    (tmp_path / "parts.py").write_text("WIDTH = 4\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "from parts import WIDTH\n"
        "def net(num_classes, depth=1):\n"
        "    layers = [nn.Conv2d(3, WIDTH, 3)] + [nn.Conv2d(WIDTH, WIDTH, 3) for _ in range(depth)]\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))\n"
        "def broken():\n"
        "    raise ValueError('not today')\n"
        "def text():\n"
        "    return 'no network'\n"
    )
    loaded = build(ModelSettings(name=f"python:{file}:net", num_classes=5, options={"depth": 2}))
    assert loaded.network(torch.zeros(1, 3, 16, 16)).shape == (1, 5) and not loaded.trained
    again = build(ModelSettings(name=f"python:{file}:net", num_classes=5, options={"depth": 2}))
    for one, other in zip(loaded.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)  # fresh weights come from a seed
    for function, told in {"broken": "ValueError: not today", "text": "it made a str", "net2": "it has: "}.items():
        with pytest.raises(SpecError, match=told):
            build(ModelSettings(name=f"python:{file}:{function}", num_classes=5))
    with pytest.raises(SpecError, match="calling it fails"):
        build(ModelSettings(name=f"python:{file}:net", num_classes=5, options={"wings": 2}))
    assert str(tmp_path) not in sys.path


def test_options_reach_the_model_or_are_refused():
    vit = build(ModelSettings(name="torchvision/vit_b_32", num_classes=3, options={"image_size": 64})).network
    assert vit(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(SpecError, match=r"model\.options.*does not take them.*'wings'"):
        build(ModelSettings(name="torchvision/resnet18", num_classes=3, options={"wings": 2}))


def test_pretrained_weights_fill_all_but_the_last_layer(monkeypatch, tmp_path):
    """torchvision's own download code, its cache filled beforehand as a download would have."""
    import torchvision

    donor = torchvision.models.squeezenet1_1(weights=None)
    address = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(donor.state_dict(), folder / address.rsplit("/", 1)[-1])
    seven = build(ModelSettings(name="torchvision/squeezenet1_1", num_classes=7, weights="pretrained"))
    assert not seven.trained  # its last layer is fresh: splitsearch trains it first
    assert torch.equal(seven.network.features[0].weight, donor.features[0].weight)
    whole = build(ModelSettings(name="torchvision/squeezenet1_1", num_classes=1000, weights="pretrained"))
    assert whole.trained


def test_pretrained_weights_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(SplitsearchError, match=r"cannot be had .*Name or service not known.*model\.weights a file"):
        build(ModelSettings(name="torchvision/squeezenet1_1", num_classes=7, weights="pretrained"))
    with pytest.raises(SpecError, match="a model of your own has none"):
        build(ModelSettings(name="python:torchvision.models:squeezenet1_1", num_classes=7, weights="pretrained"))


def test_ultralytics_reports_nothing_to_anybody(tmp_path):
    """In a process of its own: it is asked at import."""
    pytest.importorskip("ultralytics")
    code = (
        "from evaluators.models.load import import_ultralytics\n"
        "from evaluators.settings import ModelSettings\n"
        "library = import_ultralytics(ModelSettings(name='ultralytics/yolov10n', num_classes=2))\n"
        "from ultralytics.utils import ONLINE, events\n"
        "from ultralytics.utils.checks import check_font\n"
        "print(ONLINE, events.events.enabled, library.settings['sync'], library.settings['mlflow'], check_font())\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("YOLO_")}
    environment = {**clean, "SPLITSEARCH_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *flags, font = told.stdout.split()
    assert flags == ["False"] * 4 and font == str(tmp_path / "ultralytics" / "Ultralytics" / "Arial.ttf")
