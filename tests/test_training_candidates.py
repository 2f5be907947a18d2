"""Trained splits: which levels they send."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evaluators.compression.calibrate import calibrate
from evaluators.edge import context, wire
from evaluators.models.cut import SplitModel
from evaluators.settings import DataSettings, FinetuneSettings
from evaluators.store import Store
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import open_dataset
from evaluators.training import feature_cache as caches
from evaluators.training.candidate import tables_from_file, tables_to_file
from evaluators.training.feature_cache import FEW, FeatureCache, TrainSample
from evaluators.training.trainers import FinetuneTrainer, StoredTrainer
from spaces.config import SplitConfig

IMAGES = 200
SAMPLE = TrainSample(IMAGES, 0)


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip
    return SplitModel(network.eval(), 32)


@pytest.fixture(scope="module")
def feature_cache(split):
    data = open_dataset(DataSettings(name="digits", image_size=32))
    return FeatureCache(split, data, Classification())


def trained(folder, split, feature_cache, tcl, quantization="post-training"):
    """A candidate of one bit, and the activations that its levels were chosen on."""
    settings = FinetuneSettings(images=IMAGES, epochs=1, reconstruction_steps=30, quantization=quantization)
    config = SplitConfig(partition=split.points[0].name, ae_ratio=0.5, bits=1, tcl=tcl)
    inner = FinetuneTrainer(split, feature_cache, settings)
    trainer = StoredTrainer(inner, Store(folder), {}, split, settings, carries_image_size=False)
    candidate = trainer.train(config, settings.budget, seed=0)
    with torch.no_grad():
        activations = candidate.bottleneck.encoder(*feature_cache.features(config.partition, SAMPLE))[0]
    return candidate, activations


class Breaks(nn.Module):
    """A head that finds no room, and knows where it is."""

    where = "cpu"

    def to(self, *place):
        self.where = "device"
        return self

    def cpu(self):
        self.where = "cpu"
        return self

    def forward(self, images):
        assert self.where == "device"
        raise torch.OutOfMemoryError("none left")


def test_a_head_that_breaks_comes_back_to_the_cpu(feature_cache):
    """Its modules are the uncut model's, which the next trial expects there."""
    head = Breaks()
    with pytest.raises(torch.OutOfMemoryError):
        feature_cache.through(head, feature_cache.images("validation"))
    assert head.where == "cpu"


def test_what_is_scored_on_few_images_is_what_the_whole_split_says_of_them(tmp_path, split, feature_cache, monkeypatch):
    candidate, _ = trained(tmp_path, split, feature_cache, 0.0)
    config = SplitConfig(partition=split.points[0].name, ae_ratio=0.5, bits=1)
    few = feature_cache._few
    assert len(few) == len(feature_cache.images(FEW)) == 200 < len(feature_cache.images("validation"))
    whole = candidate.score(config, feature_cache)
    assert torch.equal(candidate.score(config, feature_cache, FEW).answers, whole.answers[few])
    assert torch.equal(feature_cache.answers(FEW), feature_cache.answers("validation")[few])
    assert not any(part == FEW for _, part in feature_cache._kept)
    # A head of the candidate's own, or features that there is no room to keep, go through the few alone.
    ran = []
    monkeypatch.setattr(FeatureCache, "_inputs", lambda *a, run=FeatureCache._inputs: ran.append(len(a[1])) or run(*a))
    monkeypatch.setattr(caches, "_ROOM_BYTES", 0)
    streamed = candidate.score(config, feature_cache, FEW).answers
    assert torch.allclose(streamed, whole.answers[few], atol=1e-4) and set(ran) == {200}


def evenly_spaced(activations):
    ones = np.ones(activations.shape[1], np.float32)
    return wire.TensorLevels(tuple(activations.shape[1:]), -ones, ones)


def same(some, others):
    return np.array_equal(some.low, others.low) and np.array_equal(some.high, others.high)


def loss_with(candidate, activations, levels, feature_cache):
    """Distillation at temperature 2, computed in one go."""
    z = activations.numpy()
    received = torch.from_numpy(wire.dequantize(wire.quantize(z, levels, 1), levels, 1))
    with torch.no_grad():
        scores = candidate.tail(*candidate.bottleneck.decoder(received))
    shares, wanted = functional.log_softmax(scores / 2, 1), functional.softmax(feature_cache.answers(SAMPLE) / 2, 1)
    return float((wanted * (wanted.log() - shares)).sum(1).mean() * 4)


@pytest.mark.parametrize("tcl", [0.01, 3.0, 300.0])
def test_with_tcl_a_candidate_sends_the_levels_of_lower_loss(tmp_path, split, feature_cache, tcl):
    candidate, activations = trained(tmp_path, split, feature_cache, tcl)
    rivals = [calibrate(activations, 1), evenly_spaced(activations)]
    losses = [loss_with(candidate, activations, levels, feature_cache) for levels in rivals]
    assert abs(losses[0] - losses[1]) > 0.1 * max(losses)  # else nothing is chosen here
    assert same(candidate.levels[0], rivals[int(np.argmin(losses))])


def test_without_tcl_levels_are_fitted_and_straight_through_keeps_those_of_training(tmp_path, split, feature_cache):
    candidate, activations = trained(tmp_path / "plain", split, feature_cache, 0.0)
    assert same(candidate.levels[0], calibrate(activations, 1))
    candidate, activations = trained(tmp_path / "straight", split, feature_cache, 3.0, "straight-through")
    assert same(candidate.levels[0], evenly_spaced(activations))


def test_context_tables_survive_a_file(tmp_path):
    symbols = np.random.default_rng(0).integers(0, 4, (20, 6, 4, 4)).astype(np.uint8)
    tables = (context.learn(symbols, 2), context.learn(symbols[:, :3], 2))
    tables_to_file(tables, tmp_path / "tables")
    again = tables_from_file(tmp_path / "tables")
    assert [table.dtype for table in again] == [np.int16, np.int16]
    assert all(np.array_equal(one, other) for one, other in zip(tables, again, strict=True))
    assert context.encode([symbols[0]], list(again[:1])) == context.encode([symbols[0]], list(tables[:1]))
