"""Bottleneck, TCL and quantization levels, each against a plain computation."""

import numpy as np
import pytest
import torch

from evaluators.compression.bottleneck import Bottleneck, kept_channels
from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid, clustering_loss, ramp, settled_share
from evaluators.edge import wire
from spaces.errors import InfeasibleSplit


def correlated(channels=12, rank=4, count=40):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(count, rank, 6, 6, generator=generator)
    mixing = torch.randn(channels, rank, generator=generator)
    return torch.einsum("cr,nrhw->nchw", mixing, factors) + 0.7


def test_start_keeps_what_principal_components_keep():
    features = correlated()
    bottleneck = Bottleneck([(12, 6, 6)], [1], 4 / 12)
    bottleneck.start_from([features])
    with torch.no_grad():
        (activations,), (rebuilt,) = bottleneck(features)
    assert activations.shape == (40, 4, 6, 6) and activations.abs().max() <= 1
    # Four components carry all of it; what is lost is tanh's bend.
    lost = ((rebuilt - features) ** 2).mean() / features.var()
    assert lost < 0.1
    poorer = Bottleneck([(12, 6, 6)], [1], 1 / 12)
    poorer.start_from([features])
    with torch.no_grad():
        assert ((poorer(features)[1][0] - features) ** 2).mean() > ((rebuilt - features) ** 2).mean()


def test_start_works_for_vectors_and_dead_channels():
    features = torch.randn(100, 8)
    features[:, 3] = 0.0
    bottleneck = Bottleneck([(8,)], [1], 1.0)
    bottleneck.start_from([features])
    (activations,), (rebuilt,) = bottleneck(features)
    assert torch.isfinite(activations).all() and torch.isfinite(rebuilt).all()


def test_tensors_of_any_layout_get_a_bottleneck_each():
    shapes, axes = [(12, 6, 6), (10, 8), (5, 5, 4), (16,)], [1, -1, -1, 1]
    features = [torch.randn(40, *shape) for shape in shapes]
    bottleneck = Bottleneck(shapes, axes, 0.5)
    bottleneck.start_from(features)
    with torch.no_grad():
        activations, rebuilt = bottleneck(*features)
    # Channels come first in what is sent, wherever the network keeps them.
    assert [tuple(z.shape) for z in activations] == [(40, 6, 6, 6), (40, 4, 10), (40, 2, 5, 5), (40, 8)]
    for before, after in zip(features, rebuilt, strict=True):
        assert after.shape == before.shape and ((after - before) ** 2).mean() < before.var()
    assert bottleneck.kept == [6, 4, 2, 8]


def test_a_tensor_that_never_changes_is_no_obstacle():
    features = torch.full((20, 6, 4, 4), 3.0)
    bottleneck = Bottleneck([(6, 4, 4)], [1], 0.5)
    bottleneck.start_from([features])
    with torch.no_grad():
        assert torch.allclose(bottleneck(features)[1][0], features, atol=1e-4)


def test_kept_channels():
    assert kept_channels(64, 0.25) == 16
    with pytest.raises(InfeasibleSplit, match="leaves no channel of 3"):
        kept_channels(3, 0.0625)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_clustering_loss_is_its_formula(bits):
    z = torch.rand(50, dtype=torch.float64).float() * 2 - 1
    levels = np.linspace(-1, 1, 2**bits)
    step = levels[1] - levels[0]
    nearest = levels[np.abs(z.numpy()[:, None] - levels).argmin(1)]
    expected = np.mean(((z.numpy() - nearest) / step) ** 2)
    assert float(clustering_loss(z, LevelGrid(bits))) == pytest.approx(expected, rel=1e-3)
    on_levels = torch.from_numpy(levels).float()
    assert float(clustering_loss(on_levels, LevelGrid(bits))) == pytest.approx(0, abs=1e-9)
    assert float(settled_share(on_levels, LevelGrid(bits))) == 1.0


def test_clustering_pulls_towards_the_nearest_level():
    z = torch.tensor([-0.6, 0.3], requires_grad=True)
    clustering_loss(z, LevelGrid(1)).backward()
    assert z.grad[0] > 0 and z.grad[1] < 0  # downhill is towards -1 and towards +1


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_ramp_rises_from_zero_to_one(shape):
    values = [ramp(t / 10, shape) for t in range(11)]
    assert values[0] == 0 and values[-1] == pytest.approx(1) and values == sorted(values)
    assert values[5] == pytest.approx(0.5) and ramp(0.2) < ramp(0.2, "linear") < ramp(0.2, "constant") == 1


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_training_rounds_as_the_device_does(bits):
    generator = torch.Generator().manual_seed(0)
    activations = torch.tanh(3 * torch.randn(20, 3, 8, 8, generator=generator))
    grid = LevelGrid(bits)
    half_way = torch.arange(2**bits - 1) * grid.step - 1 + grid.step / 2
    activations.view(-1)[: len(half_way)] = half_way
    levels = grid.levels((3, 8, 8))
    sent = wire.dequantize(wire.quantize(activations.numpy(), levels, bits), levels, bits)
    # Half a step is far more than the last digits in which the two may differ.
    assert np.abs(grid.snap(activations).numpy() - sent).max() < 1e-3 * grid.step


def test_straight_through_passes_gradients_as_they_are():
    activations = torch.tensor([-0.9, 0.1, 1.0], requires_grad=True)
    snapped = LevelGrid(1).snap(activations)
    assert snapped.tolist() == [-1, 1, 1]
    (snapped * torch.tensor([2.0, 3.0, 4.0])).sum().backward()
    assert activations.grad.tolist() == [2, 3, 4]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_calibrated_levels_beat_the_plain_range(bits):
    generator = torch.Generator().manual_seed(0)
    activations = torch.tanh(
        torch.randn(200, 3, 4, 4, generator=generator) * torch.tensor([0.2, 1, 3.0])[:, None, None]
    )

    def error(levels):
        symbols = wire.quantize(activations.numpy(), levels, bits)
        return float(((wire.dequantize(symbols, levels, bits) - activations.numpy()) ** 2).mean())

    levels = calibrate(activations, bits)
    plain = wire.TensorLevels((3, 4, 4), activations.amin((0, 2, 3)).numpy(), activations.amax((0, 2, 3)).numpy())
    assert levels.shape == (3, 4, 4)
    assert error(levels) < error(plain)


def test_one_bit_levels_are_the_means_of_two_clusters():
    clusters = torch.cat([torch.full((300, 1), -0.8), torch.full((100, 1), 0.6)]) + 0.01 * torch.randn(400, 1)
    levels = calibrate(clusters, 1)
    assert levels.low[0] == pytest.approx(-0.8, abs=0.01) and levels.high[0] == pytest.approx(0.6, abs=0.01)


def test_a_constant_channel_keeps_distinct_levels():
    levels = calibrate(torch.zeros(10, 2, 3, 3), 3)
    assert (levels.high > levels.low).all()
