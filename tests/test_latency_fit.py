"""Counting work against counts by hand and against partition points; fitting against coefficients that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.latency.fit import LatencyFit, choose, fit, leave_one_out, nested_errors
from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.models.work import head_work, module_work, tail_work
from evaluators.settings import ModelSettings
from spaces.errors import SpecError
from spaces.partition import INPUT, OUTPUT
from spaces.work import WORK_FIELDS, Work


class Tiny(nn.Module):
    """One of everything that is counted differently."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.three = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(16, 4, 1, bias=False)
        self.dense = nn.Linear(4, 5)

    def forward(self, picture):
        x = self.stem(picture)
        y = torch.relu(self.three(x) + x)
        y = self.norm(torch.nn.functional.silu(self.grouped(self.depthwise(y))))
        y = self.pointwise(torch.cat([x, y], 1))
        return self.dense(y.mean((2, 3)))


def tiny_by_hand(side):
    """Of :class:`Tiny` on a picture of this side; an even one."""
    area = (side // 2) ** 2
    return Work(
        convolution_macs=8 * 3 * 9 * area,
        winograd_macs=8 * 8 * 9 * area,
        depthwise_macs=8 * 9 * area,
        grouped_macs=8 * 4 * area,
        pointwise_macs=16 * 4 * area,
        dense_macs=20,
        weights=8 * 3 * 9 + (8 * 8 * 9 + 8) + 8 * 9 + 8 * 4 + 16 * 4 + (20 + 5),
        layer_elements=(8 + 8 + 8 + 8 + 4) * area + 5,
        copied_elements=16 * area,
        # the sum, the ReLU after it, SiLU, the BatchNorm that follows no convolution, and the mean
        other_elements=4 * 8 * area + 4,
        # the stem's BatchNorm and ReLU
        fused_elements=2 * 8 * area,
        layers=6,
        copies=1,
        others=5,
        fused=2,
    )


@pytest.mark.parametrize("side", [8, 32])
def test_work_is_what_a_person_counts(side):
    assert module_work(Tiny(), [torch.zeros(1, 3, side, side)]) == tiny_by_hand(side)
    assert module_work(Tiny(), [torch.zeros(3, 3, side, side)]) == tiny_by_hand(side)
    split = SplitModel(Tiny().eval(), side)
    assert head_work(split, OUTPUT) == tail_work(split, INPUT) == tiny_by_hand(side)


def test_counting_leaves_a_module_as_it_was():
    module = Tiny().train()
    module.norm.eval()
    module_work(module, [torch.zeros(2, 3, 8, 8)])
    assert module.training and not module.norm.training and module.stem.training
    assert module.stem[1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_v2_s"])
def test_macs_agree_with_partition_points(name):
    split = SplitModel(build(ModelSettings(name=f"torchvision/{name}", num_classes=10)).network, 64)
    whole = head_work(split, OUTPUT)
    assert head_work(split, INPUT) == Work()
    for point in split.points:
        head, tail = head_work(split, point.name), tail_work(split, point.name)
        assert (head.macs, tail.macs) == (point.head_macs, point.tail_macs)
        assert head + tail == whole


class Hidden(nn.Module):
    """What tracing must leave opaque, since it decides on a value."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.layer(x) if x.sum() > 1e9 else self.layer(x) + 1


def test_work_inside_an_opaque_node_is_counted():
    network = nn.Sequential(Hidden(), nn.Conv2d(3, 40, 3))
    split = SplitModel(network.eval(), 16)
    assert any(type(module) is Hidden for module in split._graph.modules())
    assert head_work(split, OUTPUT).layers == 2


def test_a_point_that_does_not_exist():
    with pytest.raises(SpecError, match="nowhere"):
        head_work(SplitModel(Tiny().eval(), 8), "nowhere")


def test_work_adds_up_and_goes_through_a_dict():
    work = tiny_by_hand(8)
    assert work + work - work == work
    assert Work.from_dict(work.to_dict()) == work
    assert work.amount("layers+copies+others") == 12
    assert set(work.to_dict()) == set(WORK_FIELDS)
    with pytest.raises(ValueError, match="layer_macs"):
        work.amount("layer_macs")
    with pytest.raises(ValueError, match="negative"):
        Work() - work
    with pytest.raises(ValueError, match="flops"):
        Work.from_dict({"flops": 1})


FEATURES = ("winograd_macs", "pointwise_macs", "layer_elements", "layers+others")
TRUE = {"winograd_macs": 3e-8, "pointwise_macs": 9e-8, "layer_elements": 4e-6, "layers+others": 0.02}


def synthetic(count=12):
    """Works of made-up networks from small to large, with latencies by :data:`TRUE`."""
    random = np.random.default_rng(0)
    scales = 10 ** random.uniform(0, 2, (count, 5))
    works = [
        Work(
            winograd_macs=int(a * 1e7),
            pointwise_macs=int(b * 1e7),
            layer_elements=int(c * 1e5),
            layers=int(d),
            others=int(e),
        )
        for a, b, c, d, e in scales
    ]
    return works, [sum(value * work.amount(feature) for feature, value in TRUE.items()) for work in works]


def test_fit_finds_the_coefficients_that_made_the_latencies():
    works, latencies_ms = synthetic()
    assert fit(works, latencies_ms, FEATURES) == pytest.approx(TRUE, rel=1e-6)
    assert leave_one_out(works, latencies_ms, [str(i) for i in range(12)], FEATURES) == pytest.approx(
        [0] * 12, abs=1e-6
    )


def test_coefficients_are_never_negative():
    works, latencies_ms = synthetic()
    slower = [ms - 0.9 * TRUE["layer_elements"] * work.layer_elements for ms, work in zip(latencies_ms, works)]
    odd = [ms if index else ms / 100 for index, ms in enumerate(slower)]
    assert min(fit(works, odd, FEATURES).values()) >= 0


def test_a_network_left_out_is_really_left_out():
    works, latencies_ms = synthetic()
    groups = ["same" if index < 2 else str(index) for index in range(len(works))]
    wrong = [ms * 3 if index < 2 else ms for index, ms in enumerate(latencies_ms)]
    errors = leave_one_out(works, wrong, groups, FEATURES)
    # Fits that never saw the two wrong latencies predict the right ones, a third of those that are published.
    assert errors[:2] == pytest.approx([-2 / 3] * 2, abs=1e-6)
    assert nested_errors(works, wrong, groups, [FEATURES])[:2] == pytest.approx([-2 / 3] * 2, abs=1e-6)
    apart = leave_one_out(works, wrong, [str(index) for index in range(len(works))], FEATURES)
    assert apart[0] != pytest.approx(-2 / 3, abs=1e-3)


def test_the_set_that_explains_the_latencies_is_chosen():
    works, latencies_ms = synthetic()
    groups = [str(index) for index in range(len(works))]
    sets = [("winograd_macs",), FEATURES, ("layers",)]
    assert choose(works, latencies_ms, groups, sets) == FEATURES
    assert nested_errors(works, latencies_ms, groups, sets) == pytest.approx([0] * 12, abs=1e-6)


@pytest.mark.parametrize(("count", "latencies_ms"), [(0, []), (2, [1.0]), (2, [1.0, 0.0])])
def test_latencies_that_cannot_be_right(count, latencies_ms):
    with pytest.raises(ValueError, match="positive latency"):
        fit([Work(layers=1)] * count, latencies_ms, FEATURES)


def test_one_group_cannot_be_left_out():
    with pytest.raises(ValueError, match="two different"):
        leave_one_out([Work(layers=1)] * 2, [1.0, 2.0], ["a", "a"], FEATURES)


def a_fit(**changes):
    values = {
        "runtime": "ncnn",
        "threads": 4,
        "precision": "fp32",
        "coefficients": dict(TRUE),
        "networks": 12,
        "median_error": 0.1,
        "worst_error": 0.3,
        "family_error": 0.2,
        "source": "made up",
    }
    return values | changes


def test_prediction_is_the_sum_of_its_terms():
    found = LatencyFit(**a_fit())
    head, tail = synthetic()[0][:2]
    assert found.predict_ms(head + tail) == pytest.approx(found.predict_ms(head) + found.predict_ms(tail))
    assert found.terms_ms(Work(layers=3))["layers+others"] == pytest.approx(0.06)
    assert found.predict_ms(Work()) == 0
    assert LatencyFit.from_dict(found.to_dict(), "fits.ncnn") == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"runtime": "ncnn"}, "exactly these keys"),
        (a_fit(coefficients={"flops": 1.0}), "fits.ncnn.coefficients.flops"),
        (a_fit(coefficients={"layers": -1.0}), "fits.ncnn.coefficients.layers"),
        (a_fit(coefficients={"layers": "1e-3"}), "fits.ncnn.coefficients.layers"),
    ],
)
def test_a_fit_in_a_profile_that_cannot_be_right(data, message):
    with pytest.raises(SpecError, match=message):
        LatencyFit.from_dict(data, "fits.ncnn")
