"""Distilled heads: which points they fit, what they learn, and that candidates with one are like any other."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.compression.bottleneck import Bottleneck, new_bottleneck
from evaluators.latency.stage_timer import untrained
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import DistilledHead, distilled_head
from evaluators.settings import DataSettings, FinetuneSettings
from evaluators.store import Store
from evaluators.tasks.classification import Classification
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.datasets import open_dataset
from evaluators.training.distilled_heads import DistilledHeads, distil
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.trainers import FinetuneTrainer, StoredTrainer
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import PartitionPoint

IMAGES = 160
SETTINGS = FinetuneSettings(images=IMAGES, epochs=1, reconstruction_steps=20, head_steps=30)


def point_of(*shapes, axes=()):
    return PartitionPoint(name="here", shapes=shapes, head_macs=1, tail_macs=1, channel_axes=axes)


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return SplitModel(network.eval(), 32)


@pytest.fixture(scope="module")
def feature_cache(split):
    return FeatureCache(split, open_dataset(DataSettings(name="digits", image_size=32)), Classification())


@pytest.fixture(scope="module")
def partition(split):
    return next(point.name for point in split.points if point.shapes == ((16, 8, 8),))


def config_at(partition, **more):
    return SplitConfig(**{"partition": partition, "ae_ratio": 0.5, "bits": 1, "head": "distilled", **more})


@pytest.mark.parametrize("size", ["distilled", "distilled-wide", "distilled-narrow"])
def test_it_returns_a_map_as_large_as_each_tensor_at_the_point(size):
    head = distilled_head(size, point_of((7, 16, 16), (5, 4, 4), (300, 16, 16)), 64).eval()
    maps = head(torch.randn(2, 3, 64, 64))
    assert [tuple(each.shape[2:]) for each in maps] == [(16, 16), (4, 4), (16, 16)]
    assert [each.shape[1] for each in maps] == head.channels


def test_sides_are_rounded_up_as_convolutions_of_stride_two_do():
    assert distilled_head("distilled", point_of((7, 7, 7)), 56).halvings == (3,)
    assert distilled_head("distilled", point_of((7, 8, 8)), 57).halvings == (3,)
    head = distilled_head("distilled", point_of((7, 8, 8)), 57)
    assert head(torch.randn(2, 3, 57, 57))[0].shape[2:] == (8, 8)


@pytest.mark.parametrize(
    "point, found",
    [
        (point_of((10,)), "no map at all"),
        (point_of((197, 64), axes=(-1,)), "197"),
        (point_of((3, 15, 15)), "15x15"),
        (point_of((3, 8, 4)), "8x4"),
        (point_of((3, 64, 64)), "64x64"),
    ],
)
def test_where_there_is_no_such_map_it_is_infeasible_and_says_what_there_is(point, found):
    with pytest.raises(InfeasibleSplit, match=found):
        distilled_head("distilled", point, 64)


def test_channels_last_maps_are_maps_too():
    point = point_of((8, 8, 32), axes=(-1,))
    bottleneck = new_bottleneck(point, config_at("here"), 64)
    maps = distilled_head("distilled", point, 64).eval()(torch.randn(4, 3, 64, 64))
    features = torch.randn(4, 8, 8, 32)
    bottleneck.start_from([features], maps=[each.detach() for each in maps])
    activations, rebuilt = bottleneck(*maps)
    assert activations[0].shape == (4, 16, 8, 8)
    assert rebuilt[0].shape == features.shape


def test_a_start_sees_more_images_where_they_have_few_places(split, feature_cache, monkeypatch):
    seen, start = {}, Bottleneck.start_from

    def watched(bottleneck, features, importance, seed, maps):
        assert maps is None or len(maps[0]) == len(features[0])
        seen[tuple(features[0].shape[1:]), maps is not None] = len(features[0])
        start(bottleneck, features, importance, seed, maps)

    monkeypatch.setattr(Bottleneck, "start_from", watched)
    settings = dataclasses.replace(SETTINGS, images=600, epochs=0, reconstruction_steps=0, head_steps=2)
    trainer = FinetuneTrainer(split, feature_cache, settings)
    for point in split.points:
        if point.shapes in (((16, 8, 8),), ((16, 1, 1),)):
            for head in ("own", "distilled"):
                trainer.train(config_at(point.name, head=head), settings.budget, 0)
    assert seen == {
        ((16, 8, 8), False): 512,
        ((16, 8, 8), True): 512,
        ((16, 1, 1), False): 600,
        ((16, 1, 1), True): 600,
    }


def test_its_weights_follow_from_the_seed_and_leave_the_global_one_alone():
    point = point_of((7, 8, 8))
    torch.manual_seed(5)
    first = distilled_head("distilled", point, 32, seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    second, other = distilled_head("distilled", point, 32, seed=1), distilled_head("distilled", point, 32, seed=2)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.stages[0][0].weight, other.stages[0][0].weight)


def test_a_start_from_maps_that_are_the_features_is_the_start_from_features():
    features = torch.randn(40, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    own, behind = Bottleneck([(6, 5, 5)], (1,), 0.5, 2), Bottleneck([(6, 5, 5)], (1,), 0.5, 2, 1, (6,))
    own.start_from([features])
    # A hair beside the features, so that the general formula is used.
    behind.start_from([features], maps=[features * (1 + 1e-9)])
    for one, other in zip(own.state_dict().values(), behind.state_dict().values(), strict=True):
        assert torch.allclose(one.abs(), other.abs(), atol=5e-2)


def test_a_start_from_maps_finds_what_they_tell_of_the_features():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(200, 4, 3, 3, generator=generator)
    mixing = torch.randn(9, 4, generator=generator)
    features = torch.einsum("ck,nkhw->nchw", mixing, maps)
    bottleneck = Bottleneck([(9, 3, 3)], (1,), 1.0, 8, 1, (4,))  # nine channels of which four are told apart
    bottleneck.start_from([features], maps=[maps])
    rebuilt = bottleneck(maps)[1][0]
    assert ((rebuilt - features) ** 2).mean() < 0.1 * features.var()  # tanh bends


def test_mirror_images_are_exchanged_left_and_right_boxes_too_and_twice_is_nothing():
    pixels = [np.arange(24, dtype=np.uint8).reshape(2, 4, 3)]
    labels = torch.tensor([[0.0, 3.0, 1.0, 0.0, 2.5, 2.0, 0.0]])
    images = LabelledImages(pixels, labels, [(4, 2)])
    mirrored = images.mirrored()
    assert np.array_equal(mirrored.pixels[0], pixels[0][:, ::-1])
    assert mirrored.labels.tolist() == [[0.0, 3.0, 1.5, 0.0, 3.0, 2.0, 0.0]]
    assert torch.equal(mirrored.mirrored().labels, labels)
    assert np.array_equal(mirrored.mirrored().pixels[:1][0], pixels[0])


def test_it_learns_the_features_of_its_point(split, feature_cache, partition):
    point = split.tap(partition).point
    data = feature_cache.finetune_data(partition, TrainSample(IMAGES, 0))
    head = distilled_head("distilled", point, 32)
    assert distil(head, data, point.channel_axes, 150, seed=0) < 0.25  # 1 is the answer of the mean
    assert not head.training


def test_a_head_is_trained_once_for_all_candidates_of_its_point(tmp_path, split, feature_cache, partition, monkeypatch):
    heads = DistilledHeads(split, feature_cache, Store(tmp_path), {"of": "test"})
    budget = Budget(images=IMAGES, reconstruction_steps=0, epochs=0, head_steps=5)
    first = heads.get(config_at(partition), budget, 0)
    monkeypatch.setattr("evaluators.training.distilled_heads.distil", lambda *_: pytest.fail("trained again"))
    second = heads.get(config_at(partition, bits=3, ae_ratio=0.25), budget, 0)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert first is not second


def test_a_head_that_learned_of_the_network_as_given_is_not_taken_for_one_of_the_renewed(
    tmp_path, split, feature_cache, partition
):
    renewed = FeatureCache(split, feature_cache.dataset, feature_cache.task, lambda: copy.copy(split))
    budget, store = Budget(images=IMAGES, reconstruction_steps=0, epochs=0, head_steps=2), Store(tmp_path)
    for cache in (feature_cache, renewed):
        DistilledHeads(split, cache, store).get(config_at(partition), budget, 0)
    assert len(list((tmp_path / "distilled-head").iterdir())) == 2


def test_heads_that_learned_in_other_batches_are_others(tmp_path, split, feature_cache, partition):
    budget = Budget(images=IMAGES, reconstruction_steps=0, epochs=0, head_steps=3)
    many, few = (
        DistilledHeads(split, feature_cache, Store(tmp_path), batch_size=size).get(config_at(partition), budget, 0)
        for size in (64, 2)
    )
    assert not torch.equal(many.stages[0][0].weight, few.stages[0][0].weight)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, split, feature_cache):
    inner = FinetuneTrainer(split, feature_cache, SETTINGS)
    return StoredTrainer(inner, Store(tmp_path_factory.mktemp("store")), {}, split, SETTINGS, carries_image_size=False)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_candidate_is_found_again_as_it_was_trained(split, feature_cache, partition, trainer, stride):
    before = copy.deepcopy(split.tail("input").state_dict())
    config = config_at(partition, stride=stride)
    trained = FinetuneTrainer(split, feature_cache, SETTINGS).train(config, SETTINGS.budget, 0)
    kept = [trainer.train(config, SETTINGS.budget, 0) for _ in range(2)]
    scores = [each.score(config, feature_cache) for each in (trained, *kept)]
    assert all(torch.equal(scores[0].answers, other.answers) for other in scores[1:])
    assert scores[0].payload_bytes == scores[1].payload_bytes == 10 + 8 * (8 // stride) ** 2 / 8
    assert isinstance(kept[1].head, DistilledHead)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), split.tail("input").state_dict().values()))


@pytest.mark.parametrize("head", ["own", "distilled"])
@pytest.mark.parametrize("scope", ["tail", "bottleneck", "all"])
def test_stopping_on_the_way_changes_nothing(tmp_path, split, feature_cache, partition, head, scope, monkeypatch):
    settings = dataclasses.replace(SETTINGS, scope=scope, reconstruction_steps=20, epochs=1)
    config = config_at(partition, head=head, tcl=3.0)
    rungs = settings.budget.rungs

    def trainer_in(folder):
        inner = FinetuneTrainer(split, feature_cache, settings)
        return StoredTrainer(inner, Store(tmp_path / folder), {}, split, settings, carries_image_size=False)

    at_once = trainer_in("at once").train(config, settings.budget, 0)
    climbing = trainer_in("climbing")
    scores = [climbing.train(config, budget, 0).score(config, feature_cache) for budget in rungs.values()]
    found = [climbing.train(config, budget, 0).score(config, feature_cache) for budget in rungs.values()]
    assert all(torch.equal(one.answers, other.answers) for one, other in zip(scores, found, strict=True))
    assert torch.equal(scores[-1].answers, at_once.score(config, feature_cache).answers)
    assert climbing.train(config, settings.budget, 0).history == at_once.history
    assert not torch.equal(scores[0].answers, scores[1].answers)
    assert not torch.equal(scores[1].answers, scores[2].answers)
    # What was reconstructed is not reconstructed again.
    again = trainer_in("again")
    again.train(config, rungs["reconstruction"], 0)
    monkeypatch.setattr("evaluators.training.finetune.reconstruct", lambda *_, **__: pytest.fail("trained again"))
    again.train(config, settings.budget, 0)


def test_own_heads_do_not_depend_on_steps_that_only_distilled_ones_take(partition, trainer):
    longer = Budget(**{**SETTINGS.budget.to_dict(), "head_steps": 99})
    own, distilled = config_at(partition, head="own"), config_at(partition)
    assert trainer.key(own, SETTINGS.budget, 0).digest == trainer.key(own, longer, 0).digest
    assert trainer.key(distilled, SETTINGS.budget, 0).digest != trainer.key(distilled, longer, 0).digest


def test_it_is_priced_by_its_own_arithmetic_wherever_it_leads(split, partition):
    squeeze = untrained(split, config_at(partition))
    assert squeeze.head is not None
    assert squeeze.head.key == "distilled/2"
    assert [levels.shape for levels in squeeze.form.tensors] == [(8, 8, 8)]
    assert untrained(split, config_at(partition, head="own")).head is None
