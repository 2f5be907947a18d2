"""Training, of candidates and of the uncut network, and scoring."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.compression.bottleneck import Bottleneck
from evaluators.edge import wire
from evaluators.edge.picture import PictureFormat
from evaluators.identity import architecture
from evaluators.settings import BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.store import Store
from evaluators.tasks.classification import ClassCriterion, Classification
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.intervals import paired_drop_pp
from evaluators.training import uncut
from evaluators.training.finetune import finetune
from evaluators.training.finetune_data import FinetuneData, KeptInputs
from evaluators.training.scoring import score_split
from evaluators.training.uncut import train_or_load, uncut_key, uncut_record
from spaces.config import SplitConfig


def finetune_data(count=64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 8, 4, 4, generator=generator)
    labels = (features.mean((1, 2, 3)) > 0).long()
    return FinetuneData(
        features=(features,), criterion=ClassCriterion(labels, nn.functional.one_hot(labels).float() * 3)
    )


def config(**choices):
    return SplitConfig(**{"partition": "here", "ae_ratio": 0.5, "bits": 1, **choices})


def train(tcl, seed=0, **settings):
    torch.manual_seed(0)
    tail = nn.Sequential(nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    bottleneck = Bottleneck([(8, 4, 4)], [1], 0.5, 1)
    chosen = FinetuneSettings(batch_size=8, epochs=4, **{"reconstruction_steps": 20} | settings)
    before = {name: value.clone() for name, value in tail.state_dict().items()}
    history = finetune(tail, bottleneck, finetune_data(), chosen, config=config(tcl=tcl), seed=seed)
    return history, bottleneck, before, tail.state_dict()


def test_training_is_deterministic_for_a_seed():
    one, two, other = train(10.0), train(10.0), train(10.0, seed=1)
    assert one[0] == two[0] != other[0]
    assert torch.equal(one[1].encoder.parts[0].layer.weight, two[1].encoder.parts[0].layer.weight)


def test_training_lowers_the_loss_and_tcl_settles_activations():
    plain, clustered = (train(tcl, learning_rate=0.02, reconstruction_steps=150)[0] for tcl in (0.0, 100.0))
    assert plain[-1]["task_loss"] < plain[1]["task_loss"]
    assert clustered[-1]["clustering_loss"] < 0.8 * plain[-1]["clustering_loss"]
    assert clustered[-1]["settled"] > plain[-1]["settled"]


@pytest.mark.parametrize("quantization", ["post-training", "straight-through"])
def test_only_straight_through_training_shows_levels_to_the_decoder(quantization):
    seen = []
    bottleneck = Bottleneck([(8, 4, 4)], [1], 0.5, 1)
    bottleneck.decoder.register_forward_pre_hook(lambda module, tensors: seen.append(tensors[0].detach()))
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    settings = FinetuneSettings(batch_size=8, quantization=quantization, reconstruction_steps=5)
    warm, row = finetune(tail, bottleneck, finetune_data(), settings, config=config())
    assert len(seen) == 5 + 8 and all((values.abs() == 1).all() for values in seen) == (
        quantization == "straight-through"
    )
    assert [each["epoch"] for each in (warm, row)] == [0, 1]
    for each in (warm, row):
        assert each["quantization_error"] == pytest.approx(4 * each["clustering_loss"])


def test_scope_and_batch_statistics():
    _, _, before, after = train(0.0, scope="bottleneck")
    assert all(torch.equal(before[name], after[name]) for name in before)
    _, _, before, after = train(0.0, scope="tail", tail_learning_rate=0.01)
    assert not torch.equal(before["3.weight"], after["3.weight"])
    assert torch.equal(before["0.running_mean"], after["0.running_mean"])


def test_scope_all_trains_the_head_on_pictures():
    images = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = nn.Conv2d(3, 8, 1)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, picture):
            return (self.net(picture),)

    head, tail = Head(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    settings = FinetuneSettings(batch_size=8, reconstruction_steps=5, scope="all", tail_learning_rate=0.01)
    bottleneck, before = Bottleneck([(8, 4, 4)], [1], 0.5, 2), net.weight.clone()
    two_bits = config(bits=2)
    with pytest.raises(ValueError, match="a head that learns needs the images"):
        finetune(tail, bottleneck, finetune_data(), settings, head=head, config=two_bits)
    learn = replace(finetune_data(), features=(net(images).detach(),), inputs=lambda index: images[index])
    finetune(tail, bottleneck, learn, settings, head=head, config=two_bits)
    assert not torch.equal(net.weight, before)
    before = net.weight.clone()
    finetune(tail, bottleneck, learn, replace(settings, scope="tail"), config=two_bits)
    assert torch.equal(net.weight, before)


def test_inputs_are_read_once_as_far_as_there_is_room():
    class Pixels(list):
        read = 0

        def __getitem__(self, number):
            Pixels.read += 1
            return super().__getitem__(number)

    pixels = Pixels(np.full((4, 4, 3), number, np.uint8) for number in range(3))
    images = LabelledImages(pixels, torch.zeros(3))
    picture = PictureFormat(4, (0.0,) * 3, (1.0,) * 3)
    inputs = KeptInputs(images, picture, room_bytes=2 * 4 * 48)
    for _ in range(2):
        assert torch.equal(inputs(torch.tensor([2, 0, 1])), images.chosen(picture, [2, 0, 1]))
    assert Pixels.read == 2 * 3 + 3 + 1  # the plain way twice; once each; and what there was no room for


def test_divergence_is_that_of_class_probabilities():
    task = Classification()
    one = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert task.divergence(one, one + 3.0) == pytest.approx(0.0, abs=1e-6)
    other = torch.tensor([[np.log(3.0), 0.0], [2.0, 0.0]])
    assert task.divergence(one, other) == pytest.approx(0.5 * (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)))


def test_an_epoch_shows_every_image_once_in_one_of_its_versions():
    data = replace(finetune_data(64), versions=2)
    assert len(data) == 32
    index = torch.cat(list(data.batches(5, torch.Generator().manual_seed(0))))
    assert sorted((index % 32).tolist()) == list(range(32))
    assert 8 < (index >= 32).sum() < 24


def test_scoring_goes_through_bytes():
    shapes = [(4, 3, 3), (2, 5)]
    features = tuple(torch.randn(10, *shape) for shape in shapes)
    ends = [(np.full(shape[0], -1, np.float32), np.full(shape[0], 1, np.float32)) for shape in shapes]
    levels = tuple(wire.TensorLevels(shape, low, high) for shape, (low, high) in zip(shapes, ends))
    form = wire.WireFormat(bits=1, tensors=levels)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(()))

        def forward(self, *tensors):
            return tensors

    class Tail(nn.Module):
        def forward(self, one, two):
            return torch.cat([one.mean((2, 3)), two.mean(2)], 1)

    score = score_split(Alone(), Alone(), Tail(), zip(*(tensor.split(4) for tensor in features)), form)
    signs = [torch.where(tensor >= 0, 1.0, -1.0) for tensor in features]
    assert torch.equal(score.answers, Tail()(*signs))
    assert score.payload_bytes == len(score.sample) == wire.HEADER_BYTES + 6  # 46 bits


def test_paired_drop():
    reference = np.array([True] * 60 + [False] * 40)
    drop, (low, high) = paired_drop_pp(reference, reference)
    assert drop == 0 and low == -high and 0 < high < 5  # the next picture may tell them apart
    worse = reference.copy()
    worse[:10] = False
    drop, (low, high) = paired_drop_pp(reference, worse)
    assert drop == pytest.approx(10) and 0 < low < 10 < high < 20


# -- the uncut network -------------------------------------------------------------------------------------------------


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path, optimizer, monkeypatch):
    data = open_dataset(DataSettings(name="digits", image_size=32))
    recipe = BaselineSettings(epochs=4, batch_size=200, optimizer=optimizer)
    key = uncut_key({"name": "small"}, "", data, recipe, 0)
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    quick = []
    train_or_load(small_network(), whole, key, data, recipe, 0, quick.append)
    assert " left" in quick[-1] and not any("GPU" in text for text in quick)  # of a training of seconds

    class Stop(Exception):
        pass

    def stop_in_epoch_three(text):
        if "epoch 3 of 4" in text:
            raise Stop

    with pytest.raises(Stop):
        train_or_load(small_network(), cut, key, data, recipe, 0, stop_in_epoch_three)
    assert cut.find(key) is None and cut.unfinished(key).exists()
    said = []
    monkeypatch.setattr(uncut, "_LONG_S", -1.0)
    train_or_load(small_network(), cut, key, data, recipe, 0, said.append)
    assert any("epoch 3 of 4" in text for text in said) and not any("epoch 2 of 4" in text for text in said)
    assert "a GPU takes minutes" in said[-1] or torch.cuda.is_available()
    weights = [store.find(key) / "weights.safetensors" for store in (whole, cut)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not cut.unfinished(key).exists()
    epochs = uncut_record(cut, key)["epochs"]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4] and epochs[-1]["loss"] < epochs[0]["loss"]


def test_uncut_weights_are_found_by_what_made_them():
    data = open_dataset(DataSettings(name="digits", image_size=32))
    other_size = open_dataset(DataSettings(name="digits", image_size=48))
    network = architecture(ModelSettings(name="torchvision/resnet18", num_classes=10))
    wider = architecture(ModelSettings(name="torchvision/resnet18", num_classes=10, options={"width": 2}))
    recipe = BaselineSettings()
    keys = [
        uncut_key(network, "", data, recipe, 0),
        uncut_key(network, "", data, recipe, 1),
        uncut_key(network, "", data, BaselineSettings(epochs=1), 0),
        uncut_key(network, "", data, BaselineSettings(optimizer="sgd"), 0),
        uncut_key(network, "", other_size, recipe, 0),
        uncut_key(network, "digest of pretrained weights", data, recipe, 0),
        uncut_key(wider, "", data, recipe, 0),
    ]
    assert len({key.digest for key in keys}) == 7
    assert uncut_key(network, "", data, recipe, 0).digest == keys[0].digest


@pytest.mark.parametrize(
    ("epochs", "full", "sizes"),
    [(4, 64, [48, 48, 48, 64]), (3, 32, [32, 32, 32]), (8, 224, [112] * 4 + [160] * 2 + [224] * 2), (1, 64, [64])],
)
def test_pictures_grow_over_the_epochs(epochs, full, sizes):
    assert [epoch.size for epoch in uncut.plan(small_network().eval(), epochs, full)] == sizes


def test_crops_keep_the_picture_where_nothing_is_cropped(monkeypatch):
    data = open_dataset(DataSettings(name="digits", image_size=32))
    monkeypatch.setattr(uncut, "_CROP_AREA", (1.0, 1.0))
    monkeypatch.setattr(uncut, "_CROP_RATIO", 1.0)
    images = data.validation()
    pixels = uncut._stack(images, 32)
    crops = uncut._augment(pixels, data, 8, torch.Generator().manual_seed(0))
    mean, std = data.picture.mean[0], data.picture.std[0]
    assert torch.allclose(crops, (pixels / 255 - mean) / std, atol=1e-5)  # digits are 8 pixels wide, never mirrored
    monkeypatch.setattr(type(data), "mirrored", True)
    crops = uncut._augment(pixels, data, 8, torch.Generator().manual_seed(0))
    whole = (pixels / 255 - mean) / std
    as_is, turned = (torch.isclose(crops, each, atol=1e-5).all(3).all(2).all(1) for each in (whole, whole.flip(3)))
    assert (as_is | turned).all() and 0.3 < turned.float().mean() < 0.7
