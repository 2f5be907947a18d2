"""Rivals: every codec at every quality, timed in one go, and a network that has learned from coded images."""

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evaluators import baselines, folders
from evaluators.edge import halves, measure, picture_codecs
from evaluators.edge.picture_codecs import CODECS, QUALITIES, PictureCoding
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import MachineProfile
from evaluators.latency.stage_timer import StageTimer
from evaluators.latency.table import StageTable
from evaluators.models.cut import SplitModel
from evaluators.models.onnx_export import save_module
from evaluators.result import FINE_TUNED, Figures, Source, StageKey, Timing
from evaluators.settings import DataSettings, FinetuneSettings
from evaluators.store import Store
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import Digits, open_dataset
from evaluators.training import references
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.references import (
    answers,
    as_coded,
    finetuned_behind,
    finetuned_uncut,
    with_random_qualities,
)

SIZE = 32
FEW = (10, 50)
LABELS = [f"{codec.label} {quality}" for codec in CODECS.values() if codec.available for quality in FEW]
MS = {"head": 9.0, "compress": 1.0, "decompress": 2.0, "unpack": 3.0, "tail": 4.0}


class CountingRunner:
    """Times nothing: every stage takes as many milliseconds as its kind says. Notes what it was asked."""

    def __init__(self, lacking=()):
        self.asked, self.lacking = [], lacking

    def measure(self, folder, stages):
        self.asked.append(list(stages))
        names = [stage for stage in stages if not any(word in stage for word in self.lacking)]
        return {stage: Timing.single(MS[stage.split()[0]], Source.MEASURED) for stage in names}

    def machine(self):
        return {}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Two qualities, which take less time than ten."""
    monkeypatch.setattr(baselines, "QUALITIES", FEW)


@pytest.fixture(scope="module")
def data():
    return open_dataset(DataSettings(name="digits", image_size=SIZE))


class FewDigits(Digits):
    """As little to score as is needed where no accuracy counts."""

    def validation(self):
        return self._pictures(self._roles[1][:30])


@pytest.fixture(scope="module")
def little():
    return FewDigits(DataSettings(name="digits", image_size=SIZE))


class LargeDigits(FewDigits):
    """Four times as wide and high, so that a codec's files are smaller than the pixels; mirror images count."""

    mirrored = True

    def _pictures(self, index):
        images = super()._pictures(index)
        return replace(images, pixels=[np.kron(pixels, np.ones((4, 4), np.uint8)) for pixels in images.pixels])


@pytest.fixture(scope="module")
def large():
    return LargeDigits(DataSettings(name="digits", image_size=SIZE))


@pytest.fixture(scope="module")
def learned(data):
    """A small network that knows digits well, taught in seconds on images as they are."""
    model, images = network(), data.train(None, 0)
    inputs, generator = images.inputs(data.picture), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(4):
        for index in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[index]), images.labels[index]).backward()
            optimizer.step()
    return SplitModel(model.eval(), SIZE)


def timer(tmp_path, split, data, runner):
    table = StageTable(Store(tmp_path / "store"))
    machine = machine_for(MachineProfile(name="local", threads=1), table, runner)
    return StageTimer(machine, machine, split, data.picture, data.validation().pixels[0])


def every_baseline(tmp_path, split, data, runner, trained=False):
    cache = FeatureCache(split, data, Classification())
    settings = FinetuneSettings(images=100, epochs=1)
    watch = timer(tmp_path, split, data, runner)
    kept = references.StoredReferences(split, cache, settings, 0, Store(tmp_path / "store"), {}) if trained else None
    return [each for rival in baselines.rivals(split, cache, watch, kept) for each in found_of(rival)]


def test_fine_tuned_networks_do_not_depend_on_how_bottlenecks_and_heads_are_trained(tmp_path, learned, little):
    def made_from(**changes):
        settings = replace(FinetuneSettings(), **changes)
        cache = FeatureCache(learned, little, Classification())
        kept = references.StoredReferences(learned, cache, settings, 0, Store(tmp_path / "store"), {})
        return kept.made_from("clean")

    same = {"head_steps": 1, "reconstruction_steps": 1, "quantization": "straight-through", "ramp": "linear"}
    assert all(made_from(**{name: value}) == made_from() for name, value in same.items())
    other = {"images": 7, "epochs": 2, "distillation": 0.5, "scope": "all", "batch_size": 2, "tail_learning_rate": 1.0}
    assert len({made_from(**{name: value}) for name, value in other.items()} | {made_from()}) == 1 + len(other)


def found_of(rival):
    """Its baselines, not judged."""
    none = {"accuracy": 0.0, "metrics": {}, "accuracy_drop_pp": 0.0, "drop_interval_pp": (0.0, 0.0), "details": {}}
    figures = {of: Figures(payload_bytes=said.payload_bytes, **none) for of, said in rival.ask()}
    for name, found, way in rival.baselines(figures):
        details = {"device_model_mb": way.device_model_mb}
        yield SimpleNamespace(name=name, payload_bytes=found.payload_bytes, stages=way.stages, details=details)


def test_every_codec_at_every_quality_is_a_baseline(few, tmp_path, learned, large, caplog):
    runner = CountingRunner()
    caplog.set_level("INFO", "splitsearch")
    found = {each.name: each for each in every_baseline(tmp_path, learned, large, runner, trained=True)}
    names = ["all-on-device", "server-only, raw", *(f"server-only, {label}" for label in LABELS)]
    assert list(found) == [name + end for name in names for end in ("", FINE_TUNED)]
    jpeg = found["server-only, JPEG 50"]
    files = [CODECS["jpeg"].encode(pixels, 50) for pixels in large.validation().pixels]
    assert jpeg.payload_bytes == np.mean([len(file) for file in files])
    assert {stage: timing.p50_ms for stage, timing in jpeg.stages.timings.items()} == {
        stage: ms for stage, ms in MS.items() if stage != "head"
    }
    assert jpeg.stages.stage_keys["compress"] == StageKey(key="jpeg 50 picture")
    whole = sum(parameter.numel() for parameter in learned.head("output").parameters())
    assert found["all-on-device"].details["device_model_mb"] == pytest.approx(4e-6 * whole)
    assert jpeg.details["device_model_mb"] == 0
    said = [message for message in caplog.messages if "fine-tuning the uncut network" in message]
    assert len(said) == 1 + sum(codec.available for codec in CODECS.values())  # each once, when it begins


def test_a_codec_that_takes_minutes_says_how_far_it_is(tmp_path, learned, little, caplog, monkeypatch):
    monkeypatch.setattr(baselines, "QUALITIES", QUALITIES[:4])
    seconds = itertools.cycle([0.0, 20.0, 40.0, 40.0, 60.0])  # at the first, and before every later one
    monkeypatch.setattr(baselines, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    caplog.set_level("INFO", "splitsearch")
    every_baseline(tmp_path, learned, little, CountingRunner())
    said = [message for message in caplog.messages if message.endswith("on JPEG images done")]
    assert said == ["baseline: 2 of 4 qualities on JPEG images done"]


def test_nothing_is_trained_behind_a_codec_whose_files_are_no_smaller_than_the_picture(
    few, tmp_path, learned, little, caplog
):
    caplog.set_level("INFO", "splitsearch")
    found = {each.name: each for each in every_baseline(tmp_path, learned, little, CountingRunner(), trained=True)}
    assert found["server-only, raw"].payload_bytes == 64 < found["server-only, JPEG 10"].payload_bytes
    assert "server-only, JPEG 10, fine-tuned" not in found and "server-only, raw, fine-tuned" in found
    assert not any("fine-tuning the uncut network on JPEG" in message for message in caplog.messages)


def test_references_learn_from_mirror_images_where_the_data_allow(few, tmp_path, learned, little, large, monkeypatch):
    versions = []

    def learn(tail, bottleneck, data, settings, **_):
        versions.append((data.versions, len(data)))
        return []

    monkeypatch.setattr(references, "finetune", learn)
    every_baseline(tmp_path / "small", learned, little, CountingRunner(), trained=True)
    assert set(versions) == {(1, 100)}
    versions.clear()
    every_baseline(tmp_path / "large", learned, large, CountingRunner(), trained=True)
    assert versions == [(2, 100)] * (1 + sum(codec.available for codec in CODECS.values()))


def test_all_qualities_of_a_codec_are_timed_in_one_go_and_once(few, tmp_path, learned, little):
    runner = CountingRunner()
    every_baseline(tmp_path, learned, little, runner)
    available = sum(codec.available for codec in CODECS.values())
    assert len(runner.asked) == 2 + 2 * available  # all on the device, raw, and each codec at both ends
    assert set(runner.asked[2]) == {"compress jpeg 10", "compress jpeg 50"}
    every_baseline(tmp_path, learned, little, runner)
    assert len(runner.asked) == 2 + 2 * available
    # A replay asks for a stage by its kind alone, and finds it.
    machine = timer(tmp_path, learned, little, runner).device
    found = machine.timings({"compress": StageKey(key="jpeg 50 picture")}, lambda: pytest.fail("timed again"))
    assert found["compress"].p50_ms == MS["compress"]


def test_a_codec_that_a_machine_does_not_have_is_left_out(few, tmp_path, learned, little, caplog):
    found = every_baseline(tmp_path, learned, little, CountingRunner(lacking=["compress webp"]))
    assert not any("WebP" in each.name for each in found) and any("JPEG" in each.name for each in found)
    assert "WebP 10 is left out: a machine did not time its compress" in caplog.text


def test_a_codec_that_pillow_lacks_here_is_said(monkeypatch):
    monkeypatch.setattr(picture_codecs, "_works", lambda name: name != "avif")
    (note,) = baselines.codec_notes()
    assert note.startswith("No AVIF among the baselines: this Pillow") and "from 11.3 on" in note


def test_a_folder_times_several_codings_as_one_picture_after_the_other(tmp_path, data):
    pixels = np.zeros((8, 8, 3), np.uint8)
    codings = [PictureCoding(CODECS["jpeg"], 10), PictureCoding(CODECS["webp"], 90)]
    manifest = {"picture": data.picture.to_dict(), "threads": 1}
    several = {**manifest, "timed_picture_codecs": [coding.to_dict() for coding in codings]}
    folders.write_device(tmp_path / "device", several, pixels)
    assert list(measure.device_stages(halves.DeviceHalf(tmp_path / "device"))) == [
        "compress jpeg 10",
        "compress webp 90",
    ]
    for name, given, endings in (("several", several, [" jpeg 10", " webp 90"]), ("raw", manifest, [""])):
        folders.write_server(tmp_path / name, given, pixels)
        save_module(nn.Flatten(), [torch.zeros(1, 3, SIZE, SIZE)], tmp_path / name / "tail.onnx")
        stages = measure.server_stages(halves.ServerHalf(tmp_path / name))
        kinds = ["decompress", "unpack", "tail"] if name == "several" else ["unpack", "tail"]
        assert list(stages) == [kind + ending for ending in endings for kind in kinds]
        for stage in stages.values():
            stage()
    folders.write_device(tmp_path / "one", {**manifest, "picture_codec": codings[0].to_dict()}, pixels)
    half = halves.DeviceHalf(tmp_path / "one")
    assert half.coding == codings[0] and list(measure.device_stages(half)) == ["compress"]


def test_a_folder_without_any_stage_left_has_no_timings(tmp_path, data, monkeypatch):
    monkeypatch.setattr(picture_codecs, "_works", lambda name: False)
    coding = PictureCoding(CODECS["avif"], 10)
    manifest = {"picture": data.picture.to_dict(), "threads": 1, "timed_picture_codecs": [coding.to_dict()]}
    folders.write_device(tmp_path, manifest, np.zeros((8, 8, 3), np.uint8))
    assert measure.measure(tmp_path)["stages"] == {}


def test_coded_images_are_those_of_the_codec_one_by_one(data):
    images, coding = data.validation(), PictureCoding(CODECS["webp"], 30)
    coded, size = as_coded(images, coding)
    assert size == np.mean([len(coding.encode(pixels)) for pixels in images.pixels])
    assert np.array_equal(coded.pixels[5], coding.decode(coding.encode(images.pixels[5])))
    assert torch.equal(coded.inputs(data.picture)[3:6], coded.inputs(data.picture, 3, 6))
    drawn, again = (with_random_qualities(images, CODECS["jpeg"], seed=3).pixels for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again))
    assert len({coding.quality for coding in drawn._codings}) == len(QUALITIES)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["bottleneck", "all"])
def test_learning_from_coded_images_helps_behind_the_codec(learned, data, monkeypatch, scope):
    """At a low quality, where it counts: better than the network as given, and than what learned from clean images."""
    monkeypatch.setattr(references, "QUALITIES", (1, 2, 3, 4))  # digits stand anything above
    task = Classification()
    cache = FeatureCache(learned, data, task)
    settings = FinetuneSettings(images=1000, epochs=8, scope=scope, tail_learning_rate=2e-3)
    first = learned.points[1].name
    before = {name: value.clone() for name, value in learned.head("output").state_dict().items()}
    coded = [as_coded(cache.images("validation"), PictureCoding(CODECS["jpeg"], quality))[0] for quality in (1, 2)]
    networks = {
        "given": learned.head("output"),
        "clean": finetuned_uncut(cache, first, settings, 0),
        "coded": finetuned_behind(CODECS["jpeg"], cache, first, settings, 0),
    }

    def accuracy(each, images):
        return task.judge(answers(each, cache, images), images).accuracy

    found = {name: np.mean([accuracy(each, images) for images in coded]) for name, each in networks.items()}
    assert found["coded"] > found["given"] + 0.015 and found["coded"] > found["clean"] + 0.015, found
    assert accuracy(networks["coded"], cache.images("validation")) > 0.93  # nothing was forgotten
    after = learned.head("output").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = finetuned_behind(CODECS["jpeg"], cache, first, settings, 0)
    assert torch.equal(answers(again, cache, coded[0]), answers(networks["coded"], cache, coded[0]))


def test_a_network_gets_the_statistics_of_one_quality_where_that_helps(learned, data):
    task, cache = Classification(), FeatureCache(learned, data, Classification())
    coding, sample = PictureCoding(CODECS["jpeg"], 50), references.TrainSample(300, 0)
    first = learned.points[1].name
    spoiled = copy.deepcopy(references.Whole(learned.head(first), learned.tail(first)))
    norms = [each for each in spoiled.modules() if isinstance(each, nn.BatchNorm2d)]
    for each in norms:
        each.running_mean += 2.0
    kept = [each.running_mean.clone() for each in norms]
    found = references.at_quality(spoiled, coding, cache, sample)
    images, _ = as_coded(cache.images("validation"), coding)
    before, after = (task.judge(answers(each, cache, images), images).accuracy for each in (spoiled, found))
    assert after > 0.9 > before
    assert all(torch.equal(each.running_mean, mean) for each, mean in zip(norms, kept))  # a copy was changed
