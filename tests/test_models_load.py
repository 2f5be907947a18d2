"""Models by name, and weights from files."""

import copy
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file, save_model
from torch import nn

from evaluators.models.load import build
from evaluators.models.weights import load_weights, read_state, save_state
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


def test_weights_for_other_classes_leave_the_last_layer_fresh(resnet18, tmp_path):
    save_file(resnet18.state_dict(), tmp_path / "w.safetensors")
    named = ModelSettings(name="torchvision/resnet18", num_classes=9, weights=tmp_path / "w.safetensors")
    found = build(named)
    assert found.fresh == {"fc.weight", "fc.bias"}
    assert not found.trained
    before = build(ModelSettings(name="torchvision/resnet18", num_classes=9)).network  # fresh ones come from a seed
    assert torch.equal(found.network.fc.weight, before.fc.weight)
    assert torch.equal(found.network.layer4[1].conv2.weight, resnet18.layer4[1].conv2.weight)


def test_a_layer_too_narrow_is_not_taken_for_other_classes(resnet18, tmp_path):
    state = dict(resnet18.state_dict())
    state["conv1.weight"] = state["conv1.weight"][:32].clone()
    save_file(state, tmp_path / "w.safetensors")
    for classes in (7, 9):  # alone, and beside a last layer of other classes
        with pytest.raises(SpecError, match=r"conv1\.weight \(32, 3, 7, 7\) for \(64, 3, 7, 7\)"):
            build(ModelSettings(name="torchvision/resnet18", num_classes=classes, weights=tmp_path / "w.safetensors"))


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
    assert sys.path[0] != str(tmp_path)


def test_options_reach_the_model_or_are_refused():
    vit = build(ModelSettings(name="torchvision/vit_b_32", num_classes=3, options={"image_size": 64})).network
    assert vit(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(SpecError, match=r"model\.options.*does not take them.*'wings'"):
        build(ModelSettings(name="torchvision/resnet18", num_classes=3, options={"wings": 2}))


def test_what_a_library_itself_refuses_is_the_studys_mistake():
    """A library checks what it is given with exceptions of any kind."""
    with pytest.raises(SpecError, match=r"model\.options.*does not take them: .*indivisible by patch size"):
        build(ModelSettings(name="torchvision/vit_b_32", num_classes=3, options={"image_size": 60}))
    pytest.importorskip("timm")
    with pytest.raises(SpecError, match=r"model\.name: 'timm/resnet10t\.x' given; it cannot be made: .*pretrained tag"):
        build(ModelSettings(name="timm/resnet10t.x", num_classes=3))


def test_pretrained_weights_fill_all_but_the_last_layer(monkeypatch, tmp_path):
    """torchvision's own download code, its cache filled beforehand as a download would have."""
    donor = torchvision.models.squeezenet1_1(weights=None)
    address = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(donor.state_dict(), folder / address.rsplit("/", 1)[-1])
    seven = build(ModelSettings(name="torchvision/squeezenet1_1", num_classes=7, weights="pretrained"))
    assert seven.fresh == {"classifier.1.weight", "classifier.1.bias"}
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


# -- weights as they come ----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One convolution under two names, a tensor of another shared by a third, a mask that holds infinite values."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.first.weight
        self.last = nn.Linear(3, 5)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, x):
        return self.last(self.other(self.again(self.first(x))).mean((2, 3)))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_shared_tensors_are_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    network, found, kept = Tied(), Tied(), Tied()
    save_state(network, tmp_path / "w.safetensors")
    load_weights(found, tmp_path / "w.safetensors")
    assert equal(found, network) and found.other.weight is found.first.weight
    save_model(network, str(tmp_path / "tied.safetensors"))  # leaves all but one name of a tensor out
    assert len(read_state(tmp_path / "tied.safetensors")) < len(network.state_dict())
    load_weights(kept, tmp_path / "tied.safetensors")
    assert equal(kept, network)
    torn = {name: value.clone() for name, value in network.state_dict().items()}
    torn["other.weight"] += 1
    save_file(torn, tmp_path / "torn.safetensors")
    with pytest.raises(
        SpecError, match=r"1 that differ and are one tensor in the model: other\.weight and first\.weight"
    ):
        load_weights(kept, tmp_path / "torn.safetensors")
    views = dict(zip("abc", torch.arange(6.0).view(3, 2)))
    save_state(views, tmp_path / "views.safetensors")
    assert all(torch.equal(value, views[name]) for name, value in read_state(tmp_path / "views.safetensors").items())


def test_what_is_saved_without_sharing_has_the_same_bytes_as_ever(resnet18, tmp_path):
    network = copy.deepcopy(resnet18).to(memory_format=torch.channels_last)
    save_state(network, tmp_path / "one")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "dressed",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {name.replace("layer1.", "layer1._orig_mod."): value for name, value in state.items()},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
    ],
    ids=["DataParallel", "compiled", "both", "a part compiled", "Lightning", "reference", "tutorial"],
)
def test_weights_are_found_inside_what_trainers_save(resnet18, tmp_path, dressed):
    torch.save(dressed(resnet18.state_dict()), tmp_path / "w.pt")
    torch.manual_seed(9)
    other = torchvision.models.resnet18(num_classes=7)
    load_weights(other, tmp_path / "w.pt")
    assert equal(other, resnet18)


def test_a_network_with_a_part_called_module_keeps_its_names(tmp_path):
    network = nn.Sequential(OrderedDict(module=nn.Linear(2, 2), rest=nn.Linear(2, 2)))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    other = nn.Sequential(OrderedDict(module=nn.Linear(2, 2), rest=nn.Linear(2, 2)))
    load_weights(other, tmp_path / "w.pt")
    assert equal(other, network)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_files_that_are_no_state_dict_say_what_to_do(tmp_path):
    net = nn.Linear(2, 2)
    torch.save(net, tmp_path / "pickled.pt")
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 2)), str(tmp_path / "script.pt"))
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.safetensors").touch()
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "numbers.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for file, told in {
        "pickled.pt": "refused: it holds more than tensors.*torch.save\\(model.state_dict\\(\\), FILE\\)",
        "script.pt": "a TorchScript archive.*save torch.jit.load\\(FILE\\).state_dict\\(\\)",
        "empty.pt": "the file is empty \\(0 bytes\\)",
        "empty.safetensors": "the file is empty \\(0 bytes\\)",
        "numbers.pt": "a file with a plain state dict is needed",
        "list.pt": "a file with a plain state dict is needed",
    }.items():
        with pytest.raises(SpecError, match=told):
            read_state(tmp_path / file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_no_numbers_are_refused_by_name(resnet18, tmp_path, value):
    state = {name: each.double() for name, each in resnet18.state_dict().items()}
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    save_state(state, tmp_path / "w.safetensors")
    with pytest.raises(SpecError, match=r"nan or infinite values in layer2\.0\.conv1\.weight;"):
        load_weights(resnet18, tmp_path / "w.safetensors")


# -- what factories return ---------------------------------------------------------------------------------------------

FACTORIES = """
import torch
from torch import nn

def plain(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def parallel(num_classes):
    return nn.DataParallel(plain(num_classes))

def compiled(num_classes):
    return torch.compile(nn.DataParallel(plain(num_classes)))

def parallel_inside(num_classes):
    made = plain(num_classes)
    made[0] = nn.DataParallel(made[0])
    return made

def scripted(num_classes):
    return torch.jit.script(plain(num_classes))

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))
"""


@pytest.fixture
def factory(tmp_path):
    file = tmp_path / "factories.py"
    file.write_text(FACTORIES)
    return lambda name: ModelSettings(name=f"python:{file}:{name}", num_classes=5)


@pytest.mark.parametrize("name", ["parallel", "compiled", "parallel_inside"])
def test_wrappers_come_off(factory, name):
    plain, found = build(factory("plain")).network, build(factory(name)).network
    assert list(found.state_dict()) == list(plain.state_dict()) and equal(found, plain)
    assert not any(isinstance(module, nn.DataParallel) for module in found.modules())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused(factory):
    with pytest.raises(SpecError, match=r"TorchScript program, which cannot be cut; return the torch.nn.Module"):
        build(factory("scripted"))


def test_lazy_layers_take_their_size_from_the_image_size(factory):
    one, other = (build(factory("lazy"), image_size=8).network for _ in range(2))
    assert equal(one, other) and one(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    with pytest.raises(SpecError, match="0, 1, 3 of it take their size from the first picture; give the sizes"):
        build(factory("lazy"))
    with pytest.raises(SpecError, match="its lazy layers cannot be sized at 2 px"):
        build(factory("lazy"), image_size=2)
