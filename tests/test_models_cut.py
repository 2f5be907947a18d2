"""Finding partition points, cutting and exporting, against the whole model as the oracle."""

import pytest
import torch
import torchvision
from exactness import assert_exact_everywhere, assert_onnx_agrees
from torch import nn

from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import ModelSettings
from spaces.errors import SpecError, SplitsearchError
from spaces.partition import INPUT, OUTPUT, choose


@pytest.fixture(scope="module")
def resnet18():
    return build(ModelSettings(name="torchvision/resnet18", num_classes=7)).network


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
    """A skip from the first layer to the last, an activation in place, a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        first = self.a(x)
        inner = torch.relu(self.b(first)).mul_(self.scale)
        return self.c(inner) + first


def test_under_a_skip_two_tensors_cross():
    points = assert_exact_everywhere(Skips().eval(), 8)
    assert [(point.name, len(point.shapes)) for point in points] == [(INPUT, 1), ("a", 1), ("b", 2), (OUTPUT, 1)]
    kept = [choice.point.name for choice in choose(points, "auto") if choice.kept]
    assert kept == ["a"]  # which costs the device less and sends half as much


class UNet(nn.Module):
    """Three levels, skips across, and a shared activation in place."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.bottom = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.Dropout(0.5))
        self.up2, self.up1 = nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(12, 2, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        one = self.act(self.down1(x))
        two = self.act(self.down2(one))
        deep = nn.functional.interpolate(self.bottom(two), scale_factor=2)
        deep = nn.functional.interpolate(self.act(self.up2(torch.cat([deep, two], 1))), scale_factor=2)
        return self.up1(torch.cat([deep, one], 1))


class Wrapped(nn.Module):
    """The same, inside another module."""

    def __init__(self):
        super().__init__()
        self.net, self.last = UNet(), nn.Conv2d(2, 5, 1)

    def forward(self, x):
        return self.last(self.net(x))


@pytest.mark.parametrize(("model", "prefix"), [(UNet, ""), (Wrapped, "net.")])
def test_a_u_shaped_network_is_cut_across_its_skips(model, prefix):
    points = {point.name: point for point in assert_exact_everywhere(model().eval(), 16)}
    bottom = points[f"{prefix}bottom"]
    assert bottom.shapes == ((4, 16, 16), (8, 8, 8), (16, 4, 4))
    assert bottom.elements == sum(bottom.tensor_elements) and bottom.head_macs < bottom.tail_macs
    assert points[f"{prefix}up2"].shapes == ((4, 16, 16), (8, 8, 8))


class Shared(nn.Module):
    """One module called twice, sizes read from the picture, attention over tokens, a parameter as a token."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, padding=1)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        count = x.shape[0]
        x = self.again(torch.tanh(self.again(self.first(x))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(count, -1, -1), tokens], 1)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens[:, 0]).reshape(count, -1)


def test_shared_modules_sizes_and_tokens():
    model = Shared().eval()
    points = assert_exact_everywhere(model, 16)
    tokens = next(point for point in points if point.shapes == ((17, 8),))
    split = SplitModel(model, 16)
    assert split.channel_axes(tokens.name) == (-1,) and split.channel_axes("first") == (1,)
    again = sum(parameter.numel() for parameter in model.again.parameters())
    middle = next(point for point in points if point.name == "tanh")
    assert middle.head_params >= again and middle.tail_params >= again  # used on both sides


class Averaged(nn.Module):
    """A map that only a mean leads out of, behind a normalisation of the channels in the last place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        last = self.norm(torch.relu(self.conv(x)).permute(0, 2, 3, 1))
        return self.head(last.permute(0, 3, 1, 2).mean((2, 3)))


def test_the_channels_of_a_map_are_those_that_stay_in_a_mean_over_it():
    axes = {point.shapes[0]: point.channel_axes for point in SplitModel(Averaged().eval(), 8).points}
    assert axes == {(3, 8, 8): (1,), (8, 6, 6): (1,), (8,): (1,), (4,): (1,)}


class ByValue(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class BySize(nn.Module):
    def forward(self, x):
        return nn.functional.relu(x) if x.shape[2] > 4 else x


class Around(nn.Module):
    """Something of its own between two convolutions."""

    def __init__(self, inner):
        super().__init__()
        self.one, self.inner, self.two = nn.Conv2d(3, 8, 3), inner, nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.two(self.inner(self.one(x)))


def test_what_cannot_be_traced_stays_in_one_piece():
    points = assert_exact_everywhere(Around(ByValue()).eval(), 12)
    assert [point.name for point in points] == [INPUT, "inner", OUTPUT]


class BySizeItself(Around):
    def forward(self, x):
        return self.two(self.one(x) if x.shape[2] > 4 else x)


def test_a_forward_that_asks_for_sizes_is_exported():
    points = assert_exact_everywhere(BySizeItself(nn.Identity()).eval(), 12)
    assert [point.name for point in points] == [INPUT, "one", OUTPUT]


def test_untraceable_and_ill_fitting_models_say_why(resnet18, capfd):
    with pytest.raises(SplitsearchError) as caught:
        SplitModel(ByValue(), 8)
    assert "ByValue cannot be cut" in str(caught.value) and "x.sum() > 0" in str(caught.value)
    assert "test_models_cut.py" in str(caught.value) and "submodule" in str(caught.value)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(SpecError, match=r"does not accept images of 3x16x16"):
        SplitModel(torchvision.models.alexnet(weights=None).eval(), 16)
    with pytest.raises(SpecError, match=r"known: .*stem"):
        SplitModel(resnet18, 32).head("layer9")


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand(1)


def test_a_random_model_is_refused():
    with pytest.raises(SplitsearchError, match="another answer"):
        SplitModel(Random().eval(), 8)


class Pyramid(nn.Module):
    """Two scales that both reach the end, as in a detector."""

    def __init__(self):
        super().__init__()
        self.p1, self.p2, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        large = self.p1(x).relu_()
        small = self.p2(large)
        return self.out(torch.cat([large, nn.functional.interpolate(small, scale_factor=2)], 1))


@pytest.mark.parametrize("make", [pytest.param("resnet18", marks=pytest.mark.architectures), Pyramid, Shared])
def test_onnx_halves_agree_with_torch(resnet18, tmp_path, make):
    assert_onnx_agrees(resnet18 if make == "resnet18" else make().eval(), 32, tmp_path)


class MadeInside(nn.Module):
    """Makes a layer each time it is called."""

    def __init__(self, make):
        super().__init__()
        self.one, self.two, self.make = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), make

    def forward(self, x):
        return self.two(self.make()(self.one(x)))


@pytest.mark.parametrize(
    ("make", "named"),
    [(nn.ReLU, "one"), (lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), "max_pool2d"), (nn.Identity, "one")],
)
def test_layers_without_weights_may_be_made_inside_a_forward(make, named):
    points = assert_exact_everywhere(MadeInside(make).eval(), 12)
    assert named in {point.name for point in points}


def test_layers_with_weights_made_inside_a_forward_are_refused():
    with pytest.raises(SplitsearchError, match=r"MadeInside cannot be cut: .*self\.make\(\).*test_models_cut\.py"):
        SplitModel(MadeInside(lambda: nn.Conv2d(4, 4, 3)).eval(), 12)


class How:
    factor = 2.0


class TakesAnObject(nn.Module):
    def forward(self, x, how):
        return x * how.factor if x.sum() > 0 else x


class GivesAnObject(nn.Module):
    """Calls a layer with something that cannot stand in a graph."""

    def __init__(self):
        super().__init__()
        self.taker, self.after = TakesAnObject(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.after(self.taker(x, How()))


@pytest.mark.timeout(60)
def test_tracing_ends_where_a_layer_is_called_with_an_object():
    network = nn.Sequential(nn.Conv2d(3, 3, 3), GivesAnObject(), nn.Conv2d(3, 3, 3)).eval()
    assert [point.name for point in assert_exact_everywhere(network, 12)] == [INPUT, "0", "1", OUTPUT]
    with pytest.raises(SplitsearchError, match="GivesAnObject cannot be cut"):
        SplitModel(GivesAnObject().eval(), 12)
