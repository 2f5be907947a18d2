"""Loading, cutting and exporting models, against the whole model as the oracle."""

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from evaluators.models.cut import SplitModel
from evaluators.models.load import build, load_weights, read_state
from evaluators.models.onnx_export import OnnxNetwork
from evaluators.settings import ModelSettings
from spaces.errors import SpecError, SplitsearchError
from spaces.partition import INPUT, OUTPUT


@pytest.fixture(scope="module")
def resnet18():
    return build(ModelSettings(name="torchvision/resnet18", num_classes=7))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_head_then_tail_is_the_whole_model_bit_for_bit(name):
    model = build(ModelSettings(name=f"torchvision/{name}", num_classes=7))
    split = SplitModel(model, 64)
    picture = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(picture)
        for point in split.points:
            features = split.head(point.name)(picture)
            assert tuple(features.shape[1:]) == point.shapes[0]
            assert torch.equal(split.tail(point.name)(features), whole), point.name


def test_resnet50_points_are_those_a_person_knows():
    points = SplitModel(torchvision.models.resnet50(weights=None).eval(), 224).points
    names = [point.name for point in points]
    assert names[0] == INPUT and names[-1] == OUTPUT and len(set(names)) == len(names)
    blocks = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
    assert names == [INPUT, "relu", "stem", *blocks, "avgpool", OUTPUT]
    stem = points[2]
    assert stem.shapes == ((64, 56, 56),) and stem.float_bytes == 4 * 64 * 56 * 56
    # 4.09 GMACs is the figure torchvision publishes for ResNet-50 at 224 pixels.
    assert points[0].tail_macs == points[-1].head_macs == pytest.approx(4.09e9, rel=0.005)
    macs = [point.head_macs for point in points]
    assert macs == sorted(macs)
    assert all(point.head_macs + point.tail_macs == macs[-1] for point in points)


class Skips(nn.Module):
    """A skip from the first layer to the last: nothing between them is carried by one tensor alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        first = self.a(x)
        inner = torch.relu(self.b(first)).mul_(self.scale)
        return self.c(inner) + first


def test_a_skip_leaves_no_point_inside_it():
    model = Skips().eval()
    split = SplitModel(model, 8)
    assert [point.name for point in split.points] == [INPUT, "a", OUTPUT]
    picture = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(split.tail("a")(split.head("a")(picture)), model(picture))


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def test_untraceable_and_ill_fitting_models_say_why(resnet18):
    with pytest.raises(SplitsearchError, match="Branches cannot be traced"):
        SplitModel(Branches(), 8)
    with pytest.raises(SpecError, match="does not accept such pictures"):
        SplitModel(torchvision.models.alexnet(weights=None).eval(), 16)
    with pytest.raises(SpecError, match="known: input, relu, stem"):
        SplitModel(resnet18, 32).head("layer9")


def test_onnx_parts_agree_with_torch(resnet18, tmp_path):
    split = SplitModel(resnet18, 32)
    network = OnnxNetwork(split)
    picture = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for name in ("stem", "layer2.1", "avgpool"):
            network.save_part(INPUT, name, tmp_path / "head.onnx")
            network.save_part(name, OUTPUT, tmp_path / "tail.onnx")
            head, tail = (onnxruntime.InferenceSession(str(tmp_path / f"{half}.onnx")) for half in ("head", "tail"))
            (features,) = head.run(None, {INPUT: picture.numpy()})
            expected = split.head(name)(picture).numpy()
            assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()
            (scores,) = tail.run(None, {name: features})
            whole = resnet18(picture).numpy()
            assert np.abs(scores - whole).max() <= 1e-4 * np.abs(whole).max()


def test_weights_round_trip_in_half_precision(resnet18, tmp_path):
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in resnet18.state_dict().items()
    }
    save_file(state, tmp_path / "w.safetensors")
    torch.save(resnet18.state_dict(), tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        other = build(ModelSettings(name="torchvision/resnet18", num_classes=7, weights=tmp_path / file))
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


def test_unreadable_weights_and_unknown_names(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "w.pt").write_bytes(b"nothing of the kind")
    torch.save(nn.Linear(1, 1), tmp_path / "pickled.pt")
    for file in ("w.safetensors", "w.pt", "pickled.pt", "absent.safetensors"):
        with pytest.raises(SpecError, match=r"model\.weights"):
            read_state(tmp_path / file)
    with pytest.raises(SpecError, match="did you mean 'torchvision/resnet50'"):
        build(ModelSettings(name="torchvision/resnet5o", num_classes=2))
    with pytest.raises(SpecError, match=r"model\.name"):
        build(ModelSettings(name="resnet50", num_classes=2))
