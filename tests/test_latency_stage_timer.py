"""The stages of a way: what is asked of which machine, and what is known before anything is trained."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evaluators import folders
from evaluators.edge import halves, measure, wire
from evaluators.edge.picture import PictureFormat
from evaluators.latency import stage_timer
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.latency.stage_timer import StageTimer, shapes_in_words, untrained
from evaluators.latency.table import StageTable
from evaluators.models.cut import SplitModel
from evaluators.result import Timing
from evaluators.store import Store
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import PartitionPoint

PICTURE = PictureFormat(size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


class Runner:
    """Answers at once, and remembers what it was asked. ``script`` has a stage's next answers, 1 ms after them."""

    def __init__(self):
        self.asked, self.script = [], {}

    def measure(self, folder, stages):
        self.asked.append(sorted(stages))
        took = {stage: self.script[stage].pop(0) if self.script.get(stage) else 1.0 for stage in stages}
        return {stage: Timing(p50_ms=ms, p90_ms=ms, spread=0.0, repeats=10) for stage, ms in took.items()}


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1), nn.ReLU()]
    return SplitModel(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(), 16)


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture(autouse=True)
def no_exports(monkeypatch):
    """Nobody runs the networks of these folders, and exporting them takes seconds."""
    monkeypatch.setattr(StageTimer, "_save_part", lambda *_: None)
    monkeypatch.setattr(stage_timer, "_save", lambda *_: None)


@pytest.fixture
def timer(split, runner, tmp_path):
    machine = machine_for(MachineProfile(name="local", threads=1), StageTable(Store(tmp_path / "store")), runner)
    return StageTimer(machine, machine, split, PICTURE, PIXELS)


def squeezed(split, config):
    """A bottleneck with the configuration's lossless coder, and a payload that it could make."""
    plain = untrained(split, config)
    form = wire.WireFormat(bits=config.bits, tensors=plain.form.tensors, coder=config.lossless)
    payload = wire.encode([np.zeros(levels.shape, np.float32) for levels in form.tensors], form)
    return replace(plain, form=form), payload


def test_what_was_timed_ahead_is_looked_up_afterwards(split, timer, runner):
    told = []
    timer.time_ahead(["1", "3"], [0.5, 1.0], [1, 4], [1], ["own"], told.append)
    assert told[0] == "timing head of 1 (1 of 8)" and len(told) == 8
    # Each stage once for what it depends on: 2 points; 2 points at 2 ratios; these at 2 bit-widths, in one run.
    counts = Counter(stage for stages in runner.asked for stage in stages)
    networks, packing = (
        {"head": 2, "tail": 2, "encode": 4, "decode": 4},
        ("pack b1", "pack b4", "unpack b1", "unpack b4"),
    )
    assert counts == networks | dict.fromkeys(packing, 4) and len(runner.asked) == 12
    runner.asked.clear()
    timer.time_ahead(["1", "3"], [0.5, 1.0], [1, 4], [1], ["own"], told.append)
    config = SplitConfig(partition="3", ae_ratio=0.5, bits=4, tcl=10.0)
    stages = timer.split(config, *squeezed(split, config))
    assert set(stages.timings) == {"head", "encode", "pack", "unpack", "decode", "tail"} and not runner.asked


AHEAD = (["1", "3", "4"], [0.5], [1], [1], ["own"])


def test_a_timing_that_contradicts_its_neighbours_is_taken_again(timer, runner):
    runner.script = {"head": [5.0, 1.0, 2.0, 0.8]}  # of 1, 3 and 4, then of 1 again
    told = []
    timer.time_ahead(*AHEAD, told.append)
    assert [line for line in told if "again" in line] == ["timing head of 1 again, which contradicts its neighbours"]
    assert [timer.head(name).timings["head"].p50_ms for name in AHEAD[0]] == [0.8, 1.0, 2.0]
    assert not any(timer.head(name).timings["head"].warning for name in AHEAD[0])
    runner.asked.clear()
    timer.time_ahead(*AHEAD, told.append)
    assert not runner.asked


def test_a_second_time_that_contradicts_the_neighbours_too_is_said(split, timer, runner, tmp_path):
    runner.script = {"head": [5.0, 1.0, 2.0, 4.0]}
    timer.time_ahead(*AHEAD, lambda _: None)
    said = "slower than the head of 3, which does more"
    assert (timer.head("1").timings["head"].p50_ms, timer.head("1").timings["head"].warning) == (4.0, said)
    assert not timer.head("4").timings["head"].warning
    # Another process with the same store measures nothing, and says the same.
    runner.asked.clear()
    machine = machine_for(MachineProfile(name="local", threads=1), StageTable(Store(tmp_path / "store")), runner)
    another = StageTimer(machine, machine, split, PICTURE, PIXELS)
    another.time_ahead(*AHEAD, lambda _: None)
    assert not runner.asked
    assert (another.head("1").timings["head"].p50_ms, another.head("1").timings["head"].warning) == (4.0, said)


def test_two_that_contradict_each_other_are_both_taken_again_and_the_faster_timings_count(timer, runner):
    runner.script = {"pack b1": [3.0, 1.0, 2.0, 0.9]}  # at 1 with half the channels, with all; both again
    timer.time_ahead(["1"], [0.5, 1.0], [1], [1], ["own"], lambda _: None)
    packed = [timer.bottleneck(SplitConfig(partition="1", ae_ratio=ratio, bits=1), [1]) for ratio in (0.5, 1.0)]
    assert [stages.timings["pack b1"].p50_ms for stages in packed] == [2.0, 0.9]
    assert [stages.timings["pack b1"].warning for stages in packed] == [
        "slower than the pack of 8x8x8/r1/b1, which does more",
        "faster than the pack of 8x8x8/r0.5/b1, which does less",
    ]


def test_bottlenecks_of_equal_features_are_timed_once(runner, tmp_path):
    """Points 1 and 3 have features of one shape, 5 of another."""
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, 2, 1),
        nn.ReLU(),
    ]
    split = SplitModel(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(), 16)
    machine = machine_for(MachineProfile(name="local", threads=1), StageTable(Store(tmp_path / "store")), runner)
    timer = StageTimer(machine, machine, split, PICTURE, PIXELS)
    timer.time_ahead(["1", "3"], [0.5], [1], [1], ["own"], lambda _: None)
    asked = sorted(stage for stages in runner.asked for stage in stages)
    assert asked == ["decode", "encode", "head", "head", "pack b1", "tail", "tail", "unpack b1"]
    decoders = [timer.bottleneck(SplitConfig(partition=point, ae_ratio=0.5, bits=1), [1]) for point in ("1", "3", "5")]
    assert [stages.stage_keys["decode"].key for stages in decoders] == ["8x8x8/r0.5", "8x8x8/r0.5", "4x4x4/r0.5"]


def test_where_channels_are_belongs_to_the_shape():
    point = PartitionPoint(name="a", shapes=((197, 384), (4, 2, 2)), head_macs=0, tail_macs=0, channel_axes=(-1, 1))
    assert shapes_in_words(point) == "197x384*+4x2x2"
    assert shapes_in_words(replace(point, channel_axes=())) == "197x384+4x2x2"


def test_bit_widths_are_no_neighbours(timer, runner):
    """Three bits a value take longer to pack than four."""
    runner.script = {"pack b3": [3.0], "pack b4": [1.0]}
    told = []
    timer.time_ahead(["1"], [0.5], [3, 4], [1], ["own"], told.append)
    assert not any("again" in line for line in told)


def test_only_the_lossless_coder_waits_for_the_very_bytes(split, timer, runner):
    timer.time_ahead(["3"], [0.5], [4], [1], ["own"], lambda _: None)
    runner.asked.clear()
    config = SplitConfig(partition="3", ae_ratio=0.5, bits=4, lossless="lzma")
    squeeze, payload = squeezed(split, config)
    stages = timer.split(config, squeeze, payload)
    assert runner.asked == [["compress"], ["decompress"]] and len(stages.timings) == 8
    timer.split(config, squeeze, payload)
    assert len(runner.asked) == 2
    other = wire.encode([np.ones(levels.shape, np.float32) for levels in squeeze.form.tensors], squeeze.form)
    timer.split(config, squeeze, other)  # another training's bytes
    assert runner.asked[2:] == [["compress"], ["decompress"]]


def test_a_distilled_head_is_timed_once_for_all_points_of_its_size(split, timer, runner):
    told = []
    timer.time_ahead(["1", "3"], [0.5, 1.0], [1], [1], ["distilled"], told.append)
    assert any("distilled head, AE 0.5" in line for line in told)
    assert sum("decode" in stages for stages in runner.asked) == 4  # two points, two ratios
    runner.asked.clear()
    timer.time_ahead(["1", "3"], [0.5, 1.0], [1], [1], ["own"], told.append)
    # Decoders and packing are the same behind either head.
    assert {stage for stages in runner.asked for stage in stages} == {"encode"}
    runner.asked.clear()
    config = SplitConfig(partition="3", ae_ratio=0.5, bits=1, head="distilled")
    stages = timer.split(config, *squeezed(split, config))
    assert set(stages.timings) == {"head", "encode", "pack", "unpack", "decode", "tail"} and not runner.asked
    assert stages.stage_keys["head"].key.startswith("distilled/")
    assert stages.macs("head") != timer.split(*own_at("3", split)).macs("head")


def own_at(partition, split):
    config = SplitConfig(partition=partition, ae_ratio=0.5, bits=1)
    return config, *squeezed(split, config)


def test_a_ratio_that_leaves_no_channel_is_left_out(split, timer, runner):
    with pytest.raises(InfeasibleSplit):
        untrained(split, SplitConfig(partition="3", ae_ratio=0.01, bits=1))
    timer.time_ahead(["3"], [0.01, 1.0], [1], [1], ["own"], lambda _: None)
    assert sum("encode" in stages for stages in runner.asked) == 1


def test_what_is_timed_is_the_same_each_time_and_neither_silent_nor_endless(split):
    config, maps = SplitConfig(partition="3", ae_ratio=0.5, bits=2), [torch.randn(4, *split.tap("3").point.shapes[0])]

    def activations():
        with torch.no_grad():
            (found,) = untrained(split, config).encoder(*maps)
        return found

    assert torch.equal(activations(), activations()) and 0.1 < activations().std() < 1.0


def test_one_run_answers_for_all_stages_of_a_side(split, timer, runner):
    config = SplitConfig(partition="3", ae_ratio=0.5, bits=4)
    timer.split(config, *squeezed(split, config))
    assert runner.asked == [["encode", "head", "pack"], ["decode", "tail", "unpack"]]


def test_one_side_alone(split, timer, runner):
    config = SplitConfig(partition="3", ae_ratio=0.5, bits=4)
    timer.bottleneck(config, [2], ["server"])
    assert runner.asked == [["decode", "tail", "unpack b2"]]


def test_what_is_no_network_is_never_unmarked_on_a_modelled_board(split, runner, tmp_path):
    table = StageTable(Store(tmp_path / "store"))
    board = machine_for(load_machine("raspberry_pi_4b", "device"), table, runner)
    here = machine_for(MachineProfile(name="local", threads=1), table, runner)
    config = SplitConfig(partition="3", ae_ratio=0.5, bits=4, lossless="lzma")
    found = StageTimer(board, here, split, PICTURE, PIXELS).split(config, *squeezed(split, config)).timings
    marked = {stage for stage, timing in found.items() if timing.warning}
    assert marked == {"pack", "compress"}


def test_several_bit_widths_are_timed_in_one_run(split, tmp_path):
    """The stages of the real folders: each packs and unpacks as the single format does."""
    forms = [untrained(split, SplitConfig(partition="3", ae_ratio=0.5, bits=bits)).form for bits in (1, 4)]
    manifest = {"picture": PICTURE.to_dict(), "threads": 1, "wire": forms[0].to_dict()}
    values = [np.linspace(-1, 1, 4 * 4 * 2, dtype=np.float32).reshape(2, 4, 4)]
    several = {"timed_wires": [form.to_dict() for form in forms]}

    class Device(halves.DeviceHalf):
        def has(self, model):
            return True

        def run(self, model, tensors):
            return [values[0][None]]

    class Server(halves.ServerHalf):
        def run(self, model, tensors):
            return tensors

    device = measure.device_stages(Device(folders.write_device(tmp_path / "device", manifest | several, PIXELS)))
    payload = wire.encode(values, forms[0])
    folder = folders.write_server(tmp_path / "server", manifest | several, payload=payload)
    server = measure.server_stages(Server(folder))
    # Between two of a kind comes what comes there for each picture.
    assert list(device) == ["head", "encode", "pack b1", "_head b4", "_encode b4", "pack b4"]
    assert list(server) == ["unpack b1", "_tail b4", "unpack b4", "decode", "tail"]
    assert device["_encode b4"] is device["encode"]
    for form in forms:
        assert device[f"pack b{form.bits}"]() == wire.encode(values, form)
        (found,) = server[f"unpack b{form.bits}"]()
        assert found.shape == (2, 4, 4)
    assert np.array_equal(server["unpack b1"]()[0], wire.decode(payload, forms[0])[0])


def test_what_comes_between_is_run_and_not_reported():
    now, ran = [0.0], []

    def stage(name, seconds):
        def run():
            ran.append(name)
            now[0] += seconds

        return run

    stages = {"pack b1": stage("b1", 0.002), "_encode b4": stage("between", 0.1), "pack b4": stage("b4", 0.003)}
    found = measure.time_stages(stages, budget_s=0.5, clock=lambda: now[0])
    assert {name: row["p50_ms"] for name, row in found.items()} == pytest.approx({"pack b1": 2.0, "pack b4": 3.0})
    assert ran[:6] == ["b1", "between", "b4"] * 2
