"""One training for all AE ratios and bit-widths of a cut: members share weights, each is a candidate."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from evaluators.compression.bottleneck import Bottleneck
from evaluators.compression.nested import NestedBottleneck
from evaluators.models.cut import SplitModel
from evaluators.settings import DataSettings, FinetuneSettings
from evaluators.store import Store
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import open_dataset
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.finetune import finetune
from evaluators.training.trainers import FinetuneTrainer, StoredTrainer
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

SHARED = ((0.03, 1), (0.125, 1), (0.125, 2), (0.5, 2))  # the first leaves no channel of 16
SETTINGS = FinetuneSettings(images=160, epochs=1, reconstruction_steps=30, head_steps=20, shared=SHARED)
SHAPES = [(12, 6, 6), (8, 3, 3)]


def nested_of(*members, shapes=SHAPES):
    made = {(ratio, bits): Bottleneck(shapes, [1] * len(shapes), ratio, bits) for ratio, bits in members}
    return NestedBottleneck(made)


def features_of(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    found = []
    for channels, *sides in shapes:
        mixing, factors = torch.randn(channels, 5, generator=generator), torch.randn(80, 5, *sides, generator=generator)
        found.append(torch.einsum("ck,nkhw->nchw", mixing, factors))
    return found


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


def stored(split, feature_cache, folder, settings=SETTINGS):
    inner = FinetuneTrainer(split, feature_cache, settings)
    return StoredTrainer(inner, Store(folder), {"test": 1}, split, settings, carries_image_size=False)


def test_a_member_has_the_first_channels_and_steps_of_its_own():
    nested = nested_of((0.25, 1), (0.5, 4), (1.0, 2))
    nested.start_from(features_of())
    with torch.no_grad():
        for number, stairs in enumerate(nested.stairs):
            for parameter in stairs:
                parameter.fill_(float(number))
    alone = nested.cut_out((0.5, 4))
    assert alone.bottleneck_channels == [6, 4]
    for part, wide in zip(alone.encoders, nested.encoders, strict=True):
        kept = len(part.layer.weight)
        assert torch.equal(part.layer.weight, wide.layer.weight[:kept])
        assert part.staircase.steps == 15 and set(part.staircase.sharpness.tolist()) == {1.0}
    found = nested.call((0.5, 4), lambda bottleneck: bottleneck(*features_of()))
    for one, other in zip(found, alone(*features_of()), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_a_member_learns_is_learned_by_all_that_share_it():
    nested = nested_of((0.25, 1), (0.5, 1), shapes=SHAPES[:1])
    nested.start_from(features_of(SHAPES[:1]))
    loss = nested.call((0.25, 1), lambda bottleneck: bottleneck(*features_of(SHAPES[:1]))[1][0]).square().mean()
    loss.backward()
    gradient = nested.widest.encoders[0].layer.weight.grad.flatten(1).abs().sum(1)
    assert (gradient[:3] > 0).all() and not gradient[3:].any()
    own, others = (list(stairs) for stairs in nested.stairs)
    assert own[0].grad.any() and others[0].grad is None


def test_the_start_gives_a_narrow_member_what_it_would_have_alone():
    features = features_of(SHAPES[:1])
    nested = nested_of((0.25, 8), (1.0, 8), shapes=SHAPES[:1])
    nested.start_from(features, seed=3)
    alone, plain = nested.cut_out((0.25, 8)), nested_of((1.0, 8), shapes=SHAPES[:1])
    own = Bottleneck(SHAPES[:1], [1], 0.25, 8)
    own.start_from(features, seed=3)
    plain.start_from(features, seed=3)
    alone.refit(alone.encoder(*features), features)

    def error(bottleneck):
        with torch.no_grad():
            return float((bottleneck(*features)[1][0] - features[0]).square().mean())

    # The same three components, however they are rotated; of a start for all twelve alike the first three tell less.
    assert error(alone) == pytest.approx(error(own), rel=0.05)
    some = Bottleneck(SHAPES[:1], [1], 0.25, 8)
    some.load_state_dict(
        {n: t[tuple(map(slice, some.state_dict()[n].shape))] for n, t in plain.widest.state_dict().items()}
    )
    some.refit(some.encoder(*features), features)
    assert error(some) > 1.5 * error(alone)


def test_one_group_of_all_channels_is_the_start_as_ever():
    one, other = (Bottleneck(SHAPES, [1, 1], 0.5, 2) for _ in range(2))
    one.start_from(features_of(), seed=1)
    other.start_from(features_of(), seed=1, prefixes=[[6], [4]])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_refitting_is_least_squares_behind_the_levels(stride):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, 6, 6, generator=generator)
    bottleneck = Bottleneck([(4, 6, 6)], [1], 0.5, 1, stride)
    bottleneck.start_from([features])
    received = bottleneck.encoder(features)[0].detach().sign()

    def error():
        with torch.no_grad():
            return float((bottleneck.decoder(received)[0] - features).square().mean())

    before = error()
    bottleneck.refit([received], [features])
    best = error()
    assert best < before
    for parameter in bottleneck.decoders[0].layer.parameters():
        with torch.no_grad():
            parameter.mul_(1.02)
    assert error() > best or stride > 1


@pytest.mark.parametrize("head", ["own", "distilled"])
@pytest.mark.parametrize("scope", ["bottleneck", "tail", "all"])
def test_members_are_kept_and_come_back_bit_for_bit(split, feature_cache, partition, tmp_path, head, scope):
    settings = dataclasses.replace(SETTINGS, scope=scope)
    config = SplitConfig(partition=partition, ae_ratio=0.125, bits=2, head=head)
    before = copy.deepcopy(split.tail(partition).state_dict())
    fresh = FinetuneTrainer(split, feature_cache, settings).train(config, settings.budget, 0)
    stored(split, feature_cache, tmp_path, settings).train(config, settings.budget, 0)
    again = stored(split, feature_cache, tmp_path, settings).train(config, settings.budget, 0)
    scores = [each.score(config, feature_cache) for each in (fresh, again)]
    assert torch.equal(scores[0].answers, scores[1].answers)
    assert scores[0].payload_bytes == scores[1].payload_bytes
    assert all(torch.equal(before[name], tensor) for name, tensor in split.tail(partition).state_dict().items())


def test_one_training_answers_for_all_ratios_and_bits(split, feature_cache, partition, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "evaluators.training.trainers.finetune", lambda *a, **k: trained.append(a[1]) or finetune(*a, **k)
    )
    trainer, found = stored(split, feature_cache, tmp_path), {}
    for ratio, bits in SHARED[1:]:
        config = SplitConfig(partition=partition, ae_ratio=ratio, bits=bits, lossless="context")
        candidate = trainer.train(config, SETTINGS.budget, 0)
        found[ratio, bits] = candidate.score(config, feature_cache)
        assert candidate.bottleneck.bottleneck_channels == [round(16 * ratio)]
    assert [each.members for each in trained] == [list(SHARED[1:])]
    assert found[0.125, 1].payload_bytes < found[0.125, 2].payload_bytes < found[0.5, 2].payload_bytes
    trainer.train(SplitConfig(partition=partition, ae_ratio=0.5, bits=2, tcl=10.0), SETTINGS.budget, 0)
    assert len(trained) == 2  # another strength is another training


def test_a_member_learns(split, feature_cache, partition, tmp_path):
    config = SplitConfig(partition=partition, ae_ratio=0.5, bits=2)
    rows = stored(split, feature_cache, tmp_path).train(config, SETTINGS.budget, 0).history
    longer = dataclasses.replace(SETTINGS, reconstruction_steps=200)
    more = stored(split, feature_cache, tmp_path, longer).train(config, longer.budget, 0).history
    assert more[0]["rebuilding_loss"] < rows[0]["rebuilding_loss"]


def test_by_itself_and_together_are_two_things_to_the_store(split, feature_cache, partition, tmp_path):
    trainer, config = stored(split, feature_cache, tmp_path), SplitConfig(partition=partition, ae_ratio=0.5, bits=2)
    alone = dataclasses.replace(SETTINGS.budget, shared=())
    assert trainer.key(config, alone, 0) != trainer.key(config, SETTINGS.budget, 0)
    plain = stored(split, feature_cache, tmp_path, dataclasses.replace(SETTINGS, shared=()))
    assert trainer.key(config, alone, 0) == plain.key(config, plain._settings.budget, 0)


def test_what_does_not_fit_its_point_says_so(split, feature_cache, partition, tmp_path):
    with pytest.raises(InfeasibleSplit, match="no channel"):
        stored(split, feature_cache, tmp_path).train(
            SplitConfig(partition=partition, ae_ratio=0.03, bits=1), SETTINGS.budget, 0
        )


def test_a_budget_that_is_shared_has_one_rung_and_survives_json():
    budget = SETTINGS.budget
    assert list(budget.rungs) == ["full"]
    assert type(budget)(**{**budget.to_dict(), "shared": [list(member) for member in SHARED]}) == budget
