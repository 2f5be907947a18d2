"""Both evaluators keep the contract; the real one also against what can be computed another way."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import data_folders
import numpy as np
import pytest
import tiny_bundle
import torch
from evaluator_contract import EvaluatorContract
from triton_stand_in import Triton

from evaluators import baselines
from evaluators.edge import halves, seal
from evaluators.edge.picture_codecs import CODECS, PictureCoding
from evaluators.fake import FakeEvaluator
from evaluators.latency.links import LinkProfile
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.models.weights import save_state
from evaluators.settings import BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.split_evaluator import SplitEvaluator, SplitSettings, _made
from evaluators.training import references
from evaluators.training.uncut import uncut_record
from evaluators.triton.repository import write_repository
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit, NotFinished, SpecError, SplitsearchError
from spaces.space import SearchSpace

LOCAL = MachineProfile(name="local", threads=2)
CONFIG = SplitConfig(partition="layer3.1", ae_ratio=0.125, bits=3, tcl=5.0)
SPACE = SearchSpace(partitions=("layer3.1",), ae_ratios=(0.125,), bits=(1, 3), tcl=(5.0,))


def digits_settings(**changes):
    settings = {
        "model": ModelSettings(name="torchvision/resnet18", num_classes=10),
        "data": DataSettings(name="digits", image_size=32),
        "device": LOCAL,
        "server": LOCAL,
        "link": LinkProfile(rate_mb_per_s=1.0, rtt_ms=2.0),
        "finetune": FinetuneSettings(images=400, epochs=2, reconstruction_steps=40, scope="bottleneck"),
        "baseline": BaselineSettings(epochs=2),
    }
    return SplitSettings(**{**settings, **changes})


class TestFakeEvaluator(EvaluatorContract):
    @pytest.fixture
    def evaluator(self):
        return FakeEvaluator()

    @pytest.fixture
    def config(self):
        return SplitConfig(partition="middle", ae_ratio=0.25, bits=2)

    @pytest.fixture
    def infeasible(self):
        return SplitConfig(partition="deep", ae_ratio=0.03125, bits=2)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real evaluator on real digits: trained a little, measured on this machine."""
    folder = tmp_path_factory.mktemp("real")
    before = os.environ.get("SPLITSEARCH_CACHE")
    os.environ["SPLITSEARCH_CACHE"] = str(folder / "cache")
    evaluator = SplitEvaluator(digits_settings(), folder / "run")
    for too_early in (lambda: evaluator.baselines(trained=False), lambda: evaluator.evaluate(CONFIG)):
        with pytest.raises(NotFinished, match="splitsearch run"):
            too_early()
    # Times heads of a network without its weights; nothing of that may reach a bundle.
    evaluator.head_ms([point for point in evaluator.partition_points() if point.name == "layer3.1"])
    evaluator.prepare(SPACE, lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "QUALITIES", (10, 70))  # which takes less time than ten
        yield evaluator
    os.environ.pop("SPLITSEARCH_CACHE")
    if before is not None:
        os.environ["SPLITSEARCH_CACHE"] = before


@pytest.mark.slow
class TestSplitEvaluator(EvaluatorContract):
    @pytest.fixture
    def evaluator(self, real):
        return real

    @pytest.fixture
    def config(self):
        return CONFIG

    @pytest.fixture
    def infeasible(self):
        return SplitConfig(partition="stem", ae_ratio=0.001, bits=2)

    def test_latency_composes_from_measured_parts_and_the_link(self, real, config):
        found = real.evaluate(config)
        assert found.latency.link_ms == pytest.approx(2.0 + found.payload_bytes / 1000)
        assert found.sources.to_dict() == {"device": "measured", "server": "measured", "link": "modelled"}
        parts = {f"{stage}_ms": timing.p50_ms for stage, timing in found.timings.items()}
        assert parts.items() <= found.latency.to_dict().items() and set(parts) == {f"{s}_ms" for s in found.stage_keys}
        assert {stage for stage, stage_key in found.stage_keys.items() if stage_key.work} == {
            "head",
            "encode",
            "decode",
            "tail",
        }

    def test_another_process_finds_the_training_again(self, real, config):
        first = real.evaluate(config)
        other = SplitEvaluator(digits_settings(), real._folder)
        other.prepare(None, lambda text: pytest.fail(f"trained again: {text}"))
        assert other.evaluate(config).to_dict() == first.to_dict()

    def test_a_kept_candidate_is_loaded_without_running_any_network(self, real, config, monkeypatch):
        first = real._candidate(config)
        other = SplitEvaluator(digits_settings(), real._folder)
        other.prepare(None, lambda _: None)
        monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *_: pytest.fail("a network ran"))
        again = other._candidate(config)
        for one, two in ((first.bottleneck, again.bottleneck), (first.tail, again.tail)):
            assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())

    def test_budget_seed_and_split_make_results_of_their_own(self, real, config):
        own = real.evaluate(config)
        assert real.evaluate(config, budget=real._settings.finetune.budget, seed=0) == own
        little = real.evaluate(config, budget=Budget(images=100, reconstruction_steps=0, epochs=0))
        assert little.details["training"] == [] and own.details["training"]
        other_seed = real.evaluate(config, seed=1)
        assert other_seed.details["training"] != own.details["training"]
        test = real.evaluate(config, split="test")
        assert test.details["training"] == own.details["training"]
        right = test.accuracy * 359  # of 359 images, where search-validation has 360
        assert 0 < right < 359 and right == pytest.approx(round(right))
        assert real.evaluate(config) == own

    def test_cheap_rungs_are_scored_on_few_images_and_say_so(self, real, config):
        rungs, full = real._settings.finetune.budget.rungs, real.evaluate(config)
        for name, budget in rungs.items():
            found = real.evaluate(config, budget=budget)
            images = 360 if name == "full" else 200
            assert found.details["scored_images"] == images == len(found.right)
            error = (found.accuracy * (1 - found.accuracy) / images) ** 0.5
            assert found.accuracy_error == pytest.approx(error) and found.accuracy == found.right.mean()
        assert (
            found == full and real.evaluate(config, budget=rungs["start"], split="test").details["scored_images"] == 359
        )
        # Who stops trials early wants to know; what is trained and kept is the same.
        assert "rungs" in real.identity() and "rungs" not in real._basis

    @pytest.mark.parametrize("change", [{"learning_rate": 1e9}, {"tail_learning_rate": 1e12, "scope": "tail"}])
    def test_diverged_training_is_infeasible_with_its_reason(self, real, config, change):
        settings = digits_settings(finetune=replace(digits_settings().finetune, reconstruction_steps=0, **change))
        evaluator = SplitEvaluator(settings, real._folder)
        evaluator.prepare(None, lambda _: None)
        for _ in range(2):
            with pytest.raises(InfeasibleSplit, match="training diverged"):
                evaluator.evaluate(config)

    def test_what_does_not_fit_into_memory_is_infeasible(self, real, config, monkeypatch):
        monkeypatch.setattr("evaluators.training.trainers.finetune", out_of_memory)
        with pytest.raises(InfeasibleSplit, match=r"out of memory.*batch_size"):
            real.evaluate(config, seed=77)

    def test_the_notes_say_what_the_data_are(self, real):
        assert "The data: 10 classes (0, 1, 2, 3, 4, ...), 360 search-validation images." in real.notes()

    def test_weights_of_other_classes_start_a_training(self, real, tmp_path):
        weights = tmp_path / "ten.safetensors"
        save_state(real._network, weights)
        data_folders.tiny_imagenet(tmp_path / "two")
        data = DataSettings(name="tinyimagenet", image_size=64, root=tmp_path / "two")
        model = ModelSettings(name="torchvision/resnet18", num_classes=2, weights=weights)
        settings = digits_settings(model=model, data=data, baseline=BaselineSettings(epochs=1))
        evaluator = SplitEvaluator(settings, tmp_path / "run")
        assert not evaluator.is_trained
        evaluator.prepare(None, lambda _: None)
        assert evaluator.notes()[:2] == [
            f"{weights} is of other classes: fc.bias, fc.weight started anew.",
            _made(uncut_record(evaluator._store, evaluator._uncut_key)),
        ]
        given, trained = (each._network.layer1[0].conv1.weight for each in (real, evaluator))
        assert 0 < (given - trained).abs().max() < 0.1 * given.abs().max()  # it went on from them

    def test_identity_follows_content(self, real):
        one = real.identity()
        assert set(one) == {"network", "weights", "images", "recipe", "rungs", "heads", "references"}
        assert SplitEvaluator(digits_settings(), real._folder).identity() == one
        size = digits_settings(data=DataSettings(name="digits", image_size=48))
        assert SplitEvaluator(size, real._folder).identity()["images"] != one["images"]
        longer = digits_settings(baseline=BaselineSettings(epochs=3))
        assert SplitEvaluator(longer, real._folder).identity()["weights"] != one["weights"]

    def test_scoring_leaves_the_uncut_model_alone(self, real, config):
        before = real._network.fc.weight.clone()
        real.evaluate(config)
        real.baselines(trained=True)
        assert torch.equal(real._network.fc.weight, before)

    def test_baselines_on_test_images_are_judged_by_them(self, real):
        coding = PictureCoding(CODECS["jpeg"], 70)
        (found,) = real.baselines(trained=True, split="test", only=["server-only, JPEG 70"])
        images = real._feature_cache.images("test")
        coded, size = references.as_coded(images, coding)
        said = references.answers(real._split.head("output"), real._feature_cache, coded)
        assert (found.accuracy, found.payload_bytes) == (real._task.judge(said, coded).accuracy, size)
        assert found.details["scored_images"] == len(images)
        before = next(each for each in real.baselines(trained=True) if each.name == found.name)
        assert before.details["scored_images"] == 360 and before.latency.tail_ms == found.latency.tail_ms

    def test_a_second_study_of_the_same_network_has_its_baselines_judged_already(self, real, tmp_path, monkeypatch):
        first, asked = real.baselines(trained=True), []
        images, network = real._feature_cache.images("validation"), real._split.head("output")
        coded, size = references.as_coded(images, PictureCoding(CODECS["jpeg"], 70))
        said = references.answers(network, real._feature_cache, coded)
        jpeg = next(each for each in first if each.name == "server-only, JPEG 70")
        assert (jpeg.accuracy, jpeg.payload_bytes) == (real._task.judge(said, coded).accuracy, size)

        answers = references.answers
        monkeypatch.setattr(baselines, "answers", lambda *given: asked.append(given) or answers(*given))
        other = SplitEvaluator(digits_settings(link=LinkProfile(rate_mb_per_s=0.1, rtt_ms=2.0)), tmp_path / "other")
        found = other.baselines(trained=True)
        assert not asked and [score(each) for each in found] == [score(each) for each in first]
        assert found[-1].latency_ms > first[-1].latency_ms
        longer = replace(real._settings, finetune=replace(real._settings.finetune, epochs=1))
        SplitEvaluator(longer, tmp_path / "longer").baselines(trained=True)
        assert asked

    def test_halves_that_answer_otherwise_are_no_bundle(self, real, config, tmp_path, monkeypatch):
        def wrong(self, payload):
            return -decode(self, payload)

        decode = halves.ServerHalf.decode
        monkeypatch.setattr(halves.ServerHalf, "decode", wrong)
        with pytest.raises(SplitsearchError, match=r"answer \d+ of 360 images otherwise than the trial"):
            real.export(config, tmp_path)

    def test_the_exported_folders_run_as_programs(self, real, config, tmp_path):
        real.export(config, tmp_path)
        picture = tmp_path / "picture.png"
        from PIL import Image

        Image.fromarray(real._feature_cache.images("validation").pixels[0]).save(picture)
        run_half(tmp_path, "device", "encode", picture, "--out", tmp_path / "out")
        payload = tmp_path / "out" / "picture.payload"
        (answer,) = json.loads(run_half(tmp_path, "server", "decode", payload, "--json"))
        assert answer["class"] == int(np.argmax(answer["scores"]))
        expected = halves.ServerHalf(tmp_path / "server").decode(payload.read_bytes())
        assert np.allclose(answer["scores"], expected, atol=1e-4)
        measured = json.loads(run_half(tmp_path, "device", "measure", "--json", "--budget", "0.01"))
        assert set(measured["stages"]) == {"head", "encode", "pack"} and measured["machine"]["onnxruntime"]
        payload.write_bytes(b"junk")
        assert "too few for a payload" in run_half(tmp_path, "server", "decode", payload, fails=True)

    def test_another_client_gets_the_trials_answers_from_the_served_half(self, real, config, tmp_path):
        triton = pytest.importorskip("tritonclient.http")
        real.export(config, tmp_path)
        evidence = real.export_whole(tmp_path)
        assert evidence["images"] == 360 and evidence["accuracy"] == pytest.approx(whole_accuracy(real), abs=0.003)
        seal.write(tmp_path, "digits")
        trial = real._candidate(config, None, None).score(config, real._feature_cache).answers[:40].numpy()
        device, found = halves.DeviceHalf(tmp_path / "device"), []
        with tiny_bundle.served(tmp_path) as server:
            client = triton.InferenceServerClient(server.url.removeprefix("http://"))
            for number, pixels in enumerate(real._feature_cache.images("validation").pixels[:40]):
                payload = np.frombuffer(device.encode(pixels), np.uint8)
                sent = triton.InferInput("payload", [len(payload)], "UINT8")
                sent.set_data_from_numpy(payload, binary_data=number % 2 == 0)
                found.append(client.infer("digits", [sent]).as_numpy("answer"))
            client.close()
        assert np.allclose(found, trial, atol=1e-2) and (np.argmax(found, 1) == np.argmax(trial, 1)).all()


def score(found):
    """What an evaluation says besides latency."""
    return found.name, found.accuracy, found.payload_bytes, found.drop_interval_pp, found.details


def whole_accuracy(evaluator):
    return next(each for each in evaluator.baselines(trained=False) if each.name == "all-on-device").accuracy


def out_of_memory(*_arguments, **_options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def run_half(bundle, side, *arguments, fails=False):
    command = [sys.executable, side, *map(str, arguments)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True)
    assert (done.returncode == 1) if fails else (done.returncode == 0), done.stderr
    return done.stderr if fails else done.stdout


PYRAMID = """
import torch
from torch import nn
from torch.nn import functional


class Pyramid(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.large = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.small = nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.mix = nn.Conv2d(56, 32, 1)
        self.last = nn.Linear(32, num_classes)

    def forward(self, x):
        large = self.large(self.first(x))
        small = functional.interpolate(self.small(large), scale_factor=2)
        return self.last(self.mix(torch.cat([large, small], 1)).relu().mean((2, 3)))
"""


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """A folder with the network's file, and room for what is made of it once."""
    folder = tmp_path_factory.mktemp("pyramid")
    (folder / "net.py").write_text(PYRAMID)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "stride", "head"),
    [
        ("tail", 1, "own"),
        pytest.param("all", 2, "own", marks=pytest.mark.architectures),
        ("tail", 1, "distilled"),
    ],
)
def test_two_tensors_go_the_whole_way(pyramid, tmp_path, monkeypatch, scope, stride, head):
    """A network of the user's own, cut where two scales cross: trained, sent in one payload, timed and exported."""
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(pyramid / "cache"))
    model = ModelSettings(name=f"python:{pyramid / 'net.py'}:Pyramid", num_classes=10)
    settings = digits_settings(
        model=model,
        baseline=BaselineSettings(epochs=8),
        finetune=FinetuneSettings(images=800, reconstruction_steps=100, head_steps=200, scope=scope),
    )
    evaluator = SplitEvaluator(settings, tmp_path / "run")
    point = next(point for point in evaluator.partition_points() if point.name == "small")
    assert point.shapes == ((24, 8, 8), (32, 4, 4))
    evaluator.prepare(None, lambda _: None)
    config = SplitConfig(partition="small", ae_ratio=0.5, bits=4, stride=stride, head=head)
    found = evaluator.evaluate(config)
    assert found.payload_bytes == 10 + (12 * 64 + 16 * 16) / stride**2 / 2  # header, and both tensors at four bits
    assert found.accuracy > 0.3 and found.accuracy_drop_pp < 15  # a tiny network, hardly trained
    assert found.latency.head_ms > 0 and found.latency.encode_ms > 0 and found.latency.tail_ms > 0
    (tmp_path / "bundle").mkdir()
    evidence = evaluator.export(config, tmp_path / "bundle")
    assert evidence["agreement_with_trial"] == 1.0 and evidence["payload_bytes"] == found.payload_bytes
    again = SplitEvaluator(settings, tmp_path / "run")
    again.prepare(None, lambda text: pytest.fail(text))
    assert again.evaluate(config).accuracy == found.accuracy


@pytest.mark.slow
def test_a_real_server_half_answers_the_same_as_a_triton_repository(real, tmp_path, monkeypatch):
    pytest.importorskip("tritonclient")
    real.evaluate(CONFIG)
    real.export(CONFIG, tmp_path)
    write_repository(tmp_path / "server", tmp_path / "triton", "digits")
    device, server = halves.DeviceHalf(tmp_path / "device"), halves.ServerHalf(tmp_path / "server")
    triton = Triton(tmp_path / "triton", monkeypatch)
    for pixels in real._feature_cache.images("validation").pixels[:20]:
        payload = device.encode(pixels)
        found = triton.infer("digits", payload=np.frombuffer(payload, np.uint8))["answer"]
        np.testing.assert_allclose(found, server.decode(payload), rtol=1e-4, atol=1e-5)  # threads differ


def test_weights_from_elsewhere_need_pictures_they_have_not_seen(tmp_path):
    from safetensors.torch import save_file

    from evaluators.models.load import build

    name = "torchvision/squeezenet1_1"
    save_file(build(ModelSettings(name=name, num_classes=10)).network.state_dict(), tmp_path / "w.safetensors")
    settings = digits_settings(model=ModelSettings(name=name, num_classes=10, weights=tmp_path / "w.safetensors"))
    with pytest.raises(SpecError, match=r"model\.weights.*may have seen any picture"):
        SplitEvaluator(settings, tmp_path / "run")


def test_detectors_and_classifiers_need_their_own_data(tmp_path):
    pytest.importorskip("ultralytics")
    settings = digits_settings(model=ModelSettings(name="ultralytics/yolov10n", num_classes=10))
    with pytest.raises(SpecError, match=r"data\.name.*needs data for detection, this is for classification"):
        SplitEvaluator(settings, tmp_path / "run")


def test_classes_must_match_the_data(tmp_path):
    settings = digits_settings(model=ModelSettings(name="torchvision/resnet18", num_classes=12))
    with pytest.raises(
        SpecError, match=r"model\.num_classes: 12 given; digits has 10 classes \(0, 1, 2, 3, 4, \.\.\.\);"
    ):
        SplitEvaluator(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def python39():
    """The oldest Python that the device's code promises to run on; None where the machine has none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which("python3.9"), *sorted(map(str, pyenv.glob("versions/3.9*/bin/python3.9")))]
    runs = (path for path in found if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0)
    return next(runs, None)  # pyenv puts a python3.9 on the path that may lead nowhere


@pytest.mark.slow
@pytest.mark.architectures
@pytest.mark.parametrize("version", ["this", "3.9"])
def test_the_device_half_runs_without_torch(real, tmp_path, version):
    """In an environment that has numpy, pillow and onnxruntime and nothing else of ours."""
    base, pinned = sys.executable, ["-c", Path(__file__).parent.parent / "constraints.txt"]
    if version == "3.9":
        base, pinned = python39(), []  # the tested versions are of newer Pythons
        if base is None:
            pytest.skip("there is no Python 3.9 on this machine")
    real.evaluate(CONFIG)
    real.export(CONFIG, tmp_path)
    subprocess.run([base, "-m", "venv", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", *pinned, "numpy", "pillow", "onnxruntime"]
    if subprocess.run(install).returncode != 0:
        pytest.skip("the package index cannot be reached")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    from PIL import Image

    images = real._feature_cache.images("validation").pixels[:20]
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    names = [f"{number:02}.png" for number in range(20)]
    encode = [python, "device", "encode", *names, "--out", "out"]
    subprocess.run(encode, cwd=tmp_path, check=True, capture_output=True)
    half = halves.DeviceHalf(tmp_path / "device")
    found = [(tmp_path / "out" / f"{number:02}.payload").read_bytes() for number in range(20)]
    same = sum(payload == half.encode(pixels) for payload, pixels in zip(found, images))
    assert same == 20 if version == "this" else same >= 18  # another onnxruntime may round a value to the next level
    seal.write(tmp_path, "digits")
    with tiny_bundle.served(tmp_path) as server:
        infer = [python, "device", "infer", *names, "--server", server.url, "--json"]
        rows = json.loads(subprocess.check_output(infer, cwd=tmp_path))
    there = halves.ServerHalf(tmp_path / "server")
    for row, payload in zip(rows, found, strict=True):
        assert row["by"] == "server" and np.allclose(row["scores"], there.decode(payload), atol=1e-4)
    measured = subprocess.run(
        [python, "device", "measure", "--json", "--budget", "0.01"], cwd=tmp_path, capture_output=True
    )
    assert set(json.loads(measured.stdout)["stages"]) == {"head", "encode", "pack"}


def test_a_link_is_measured_once_for_all_trials(tmp_path, monkeypatch):
    evaluator = SplitEvaluator(digits_settings(link=None), tmp_path / "run")
    link = evaluator._link
    assert link.rate_mb_per_s > 0 and link.rtt_ms > 0 and link.origin == "measured"
    again = SplitEvaluator(digits_settings(link=None), tmp_path / "run")
    monkeypatch.setattr("evaluators.split_evaluator.measure_link", lambda device: pytest.fail("measured again"))
    assert again._link == link


def test_a_link_to_a_profile_cannot_be_measured(tmp_path):
    settings = digits_settings(link=None, device=load_machine("raspberry_pi_4b", "device"))
    with pytest.raises(SpecError, match=r"link: 'measured' given.*raspberry_pi_4b is a profile; give a rate"):
        _ = SplitEvaluator(settings, tmp_path / "run")._link
