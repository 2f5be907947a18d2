"""What distilled heads take, known before anything is trained."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from evaluators.edge.picture import PictureFormat
from evaluators.latency import stage_timer
from evaluators.latency.links import LinkProfile
from evaluators.latency.machine_for import machine_for
from evaluators.latency.machines import NotRecorded
from evaluators.latency.profiles import MachineProfile
from evaluators.latency.stage_timer import StageTimer
from evaluators.latency.table import StageTable
from evaluators.models.cut import SplitModel
from evaluators.pricing import Pricing
from evaluators.result import HeadCost, Timing
from evaluators.settings import FinetuneSettings
from evaluators.store import Store
from spaces.config import SplitConfig
from spaces.space import SearchSpace

PICTURE = PictureFormat(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Runner:
    """Answers at once, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def measure(self, folder, stages):
        self.asked += sorted(stages)
        return {stage: Timing(p50_ms=1.5, p90_ms=1.5, spread=0.0, repeats=10) for stage in stages}


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture
def make_pricing(tmp_path, runner, monkeypatch):
    monkeypatch.setattr(stage_timer, "_save", lambda *_: None)  # nobody runs these networks
    monkeypatch.setattr(StageTimer, "_save_part", lambda *_: None)
    strides, layers = {3: 2, 8: 2, 4: 1}, list[nn.Module]()
    for before, stride in strides.items():
        layers += [nn.Conv2d(before, 8 if before == 3 else 4, 3, stride, 1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(32, 2)).eval()
    split = SplitModel(network, 32)
    machine = machine_for(MachineProfile(name="local", threads=1), StageTable(Store(tmp_path / "store")), runner)
    timer = StageTimer(machine, machine, split, PICTURE, np.zeros((32, 32, 3), np.uint8))
    link = LinkProfile(rate_mb_per_s=1.0)
    return lambda finetune: Pricing(split, lambda: timer, lambda: link, carries_image_size=False, finetune=finetune)


@pytest.fixture
def pricing(make_pricing):
    return make_pricing(FinetuneSettings())


def space_of(*partitions, heads=("own", "distilled", "distilled-wide")):
    return SearchSpace(partitions=partitions, ae_ratios=(0.25, 1.0), bits=(1, 4), tcl=(0.0,), heads=heads)


def test_points_with_maps_of_one_size_share_a_head_that_is_timed_once(pricing, runner):
    found = pricing.distilled_heads(space_of("1", "3", "5", "6", heads=("own", "distilled")))
    # 3x3 convolutions of stride 2 to 24 and 48 channels, without bias; two values a channel in BatchNorm.
    first, second = 3 * 24 * 9, 24 * 48 * 9
    both = first * 16**2 + second * 8**2
    deep = HeadCost(head="distilled", points=("3", "5"), macs=both, params=first + second + 48 + 96, ms=1.5)
    shallow = HeadCost(head="distilled", points=("1",), macs=first * 16**2, params=first + 48, ms=1.5)
    assert found[:2] == [shallow, deep]
    assert found[2:] == [HeadCost(head="distilled", points=("6",), why=found[2].why)]
    assert found[2].why.startswith("a distilled head halves pictures of 32 pixels a side; this point has ")
    assert runner.asked.count("head") == 2
    assert pricing.distilled_heads(space_of("5", heads=("distilled",))) == [replace(deep, points=("5",))]
    assert runner.asked.count("head") == 2
    (wide,) = pricing.distilled_heads(space_of("5", heads=("distilled-wide",)))
    assert wide.macs > 2 * both and runner.asked.count("head") == 3


def test_points_too_narrow_for_every_ratio_do_not_keep_a_head_from_being_listed(pricing):
    narrow = replace(space_of("1", "3", heads=("distilled",)), ae_ratios=(0.1,))  # of 8 channels and of 4
    assert [(cost.points, cost.ms, cost.why) for cost in pricing.distilled_heads(narrow)] == [
        (("1",), 1.5, ""),
        (("3",), None, ""),
    ]


def test_a_space_of_own_heads_asks_for_nothing(pricing, runner):
    assert pricing.distilled_heads(space_of("1", heads=("own",))) == [] and not runner.asked


def test_a_device_that_does_not_know_a_head_leaves_its_latency_out(pricing, monkeypatch):
    def unknown(*_, **__):
        raise NotRecorded("device", "box", "it has no head of that kind")

    monkeypatch.setattr(StageTimer, "bottleneck", unknown)
    (found,) = pricing.distilled_heads(space_of("1", heads=("own", "distilled")))
    assert found.ms is None and found.macs and found.params and not found.why


def test_training_costs_what_its_steps_compute(make_pricing):
    def macs(config, **settings):
        return make_pricing(FinetuneSettings(images=7, batch_size=10, **settings)).of(config).training_macs

    own = SplitConfig(partition="3", ae_ratio=0.25, bits=1)
    stood_in = replace(own, head="distilled")
    convolution, linear = 4 * 4 * 9 * 8 * 8, 32 * 2
    distilled = (3 * 24 * 9 * 16**2) + (24 * 48 * 9 * 8**2)
    for config, network in ((own, convolution + linear), (stood_in, convolution + linear + distilled)):
        bottleneck = macs(config, reconstruction_steps=2, epochs=0) / (3 * 2 * 10)
        assert bottleneck > 2 * 4 * 8 * 8  # at least a channel of four and back, at each of 8x8 places
        assert macs(config, reconstruction_steps=0, epochs=5) == 3 * 7 * 5 * (bottleneck + network)
        assert macs(config, reconstruction_steps=2, epochs=5) == sum((
            macs(config, reconstruction_steps=2, epochs=0), macs(config, reconstruction_steps=0, epochs=5)
        ))  # fmt: skip
    assert macs(own, reconstruction_steps=0, epochs=0) == 0
    heads_too = macs(own, reconstruction_steps=0, epochs=1, scope="all")
    assert heads_too - macs(own, reconstruction_steps=0, epochs=1) == 3 * 7 * (3 * 8 * 9 * 16**2 + 8 * 4 * 9 * 8**2)


def test_the_latency_is_the_one_that_a_price_has(pricing):
    (found,) = pricing.distilled_heads(space_of("3", heads=("distilled",)))
    price = pricing.of(SplitConfig(partition="3", ae_ratio=0.25, bits=4, head="distilled"))
    assert price.latency.head_ms == found.ms
