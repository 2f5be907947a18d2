"""How the uncut network is trained: what it starts from, at which rates, in which batches, and how it ends."""

import pytest
import torch
import torchvision
from torch import nn

from evaluators.models.residual import zero_init_residual
from evaluators.settings import BaselineSettings, DataSettings
from evaluators.tasks.datasets import open_dataset
from evaluators.training import uncut
from evaluators.training.uncut import batches, optimizer_for, train_classifier
from spaces.errors import SplitsearchError


@pytest.fixture(scope="module")
def digits():
    return open_dataset(DataSettings(name="digits", image_size=32))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 10))  # fmt: skip


def train(network, digits, tmp_path, *, name="checkpoint", fresh=None, said=None, **recipe):
    settings = BaselineSettings(**{"epochs": 1, "batch_size": 500, **recipe})
    progress = (lambda _: None) if said is None else said.append
    return train_classifier(network.eval(), digits, settings, 0, tmp_path / name, progress, fresh)


@pytest.mark.parametrize(("fresh", "silent"), [(None, 5), ({"fc.weight", "fc.bias"}, 0)])
def test_given_weights_keep_their_residual_branches(digits, tmp_path, monkeypatch, fresh, silent):
    network = torchvision.models.resnet18(num_classes=10)
    found = []
    monkeypatch.setattr(uncut._Training, "run", lambda self, _: found.append(self))
    train(network, digits, tmp_path, fresh=fresh)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(not norm.weight.any() for norm in norms) == silent


def test_networks_that_come_trained_from_a_users_factory_keep_them_too(digits, tmp_path, monkeypatch):
    network = torchvision.models.resnet18(num_classes=10).train()
    network(torch.randn(2, 3, 32, 32))
    monkeypatch.setattr(uncut._Training, "run", lambda self, _: [])
    train(network, digits, tmp_path)
    assert all(module.weight.all() for module in network.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(("optimizer", "peak"), [("sgd", 0.1), ("adamw", 1e-3)])
def test_given_weights_learn_at_a_tenth_of_the_rate(optimizer, peak):
    network = small()
    names = dict(network.named_parameters())
    found = optimizer_for(network, BaselineSettings(optimizer=optimizer), [name for name in names if name[0] != "5"])
    rates = {id(parameter): group["lr"] for group in found.param_groups for parameter in group["params"]}
    assert len(rates) == len(names)
    for name, parameter in names.items():
        assert rates[id(parameter)] == pytest.approx(peak if name.startswith("5") else peak / 10)
    decays = {id(p): group["weight_decay"] > 0 for group in found.param_groups for p in group["params"]}
    assert all(decays[id(parameter)] == (parameter.ndim > 1) for parameter in names.values())
    scratch = optimizer_for(network, BaselineSettings(optimizer=optimizer)).param_groups
    assert [group["lr"] for group in scratch] == [peak, peak]


def test_fine_tuning_keeps_what_was_learned(digits, tmp_path):
    """A trained network with a new last layer: at from-scratch rates its body would move ten times as far."""
    network = small()
    body = network[0].weight.detach().clone()
    train(network, digits, tmp_path, fresh={"5.weight", "5.bias"}, epochs=2)
    moved = (network[0].weight - body).abs().mean()
    other = small()
    train(other, digits, tmp_path, name="other", epochs=2)
    assert 0 < moved < 0.3 * (other[0].weight - body).abs().mean()


@pytest.mark.parametrize(
    ("count", "norm", "sizes"),
    [(9, True, [4, 5]), (8, True, [4, 4]), (10, True, [4, 4, 2]), (9, False, [4, 4, 1]), (1, True, [1])],
)
def test_a_last_batch_of_one_goes_with_the_one_before_under_batchnorm(count, norm, sizes):
    network = nn.BatchNorm1d(3) if norm else nn.GroupNorm(1, 3)
    parts = batches(torch.arange(count), network, BaselineSettings(batch_size=4))
    assert [len(part) for part in parts] == sizes and torch.cat(parts).tolist() == list(range(count))


def test_a_left_over_image_does_not_stop_a_training(digits, tmp_path):
    images = len(digits.train(None, 0).labels)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(),
                            nn.Linear(8, 10))  # fmt: skip
    (row,) = train(network, digits, tmp_path, batch_size=images - 1)
    assert row["epoch"] == 1 and row["loss"] > 0


def test_a_frozen_network_is_trained_all_the_same(digits, tmp_path):
    network, said = small().requires_grad_(False), []
    before = network[0].weight.clone()
    train(network, digits, tmp_path, said=said)
    assert not torch.equal(network[0].weight, before)
    assert "all parameters of the network are frozen" in said[0]
    half = small()
    half[0].requires_grad_(False)
    train(half, digits, tmp_path, name="half")
    assert torch.equal(half[0].weight, before) and not half[0].weight.requires_grad


def test_a_training_that_diverges_says_so(digits, tmp_path):
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            return self.net(x) * (float("nan") if self.training else 1.0)

    told = r"diverged in epoch 1 of 1: its loss is no longer a number; give baseline\.learning_rate a value below 0\.1,"
    with pytest.raises(SplitsearchError, match=told):
        train(Exploding(), digits, tmp_path, optimizer="sgd")
    assert not (tmp_path / "checkpoint").exists()


def test_googlenet_learns_by_its_main_answer(digits, tmp_path, monkeypatch):
    network = torchvision.models.googlenet(num_classes=10, init_weights=False)
    aux = network.aux1.fc1.weight.clone()
    body = network.fc.weight.clone()
    few = digits.train(16, 0)
    monkeypatch.setattr(type(digits), "train", lambda *_: few)
    train(network, digits, tmp_path, batch_size=8)
    assert torch.equal(network.aux1.fc1.weight, aux) and not torch.equal(network.fc.weight, body)


def test_residual_branches_are_still_silenced_in_fresh_networks():
    assert zero_init_residual(torchvision.models.resnet18(num_classes=7), 32) == 5
