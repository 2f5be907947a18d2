"""Bottleneck, TCL and quantization levels, each against a plain computation."""

import numpy as np
import pytest
import torch

from evaluators.compression.bottleneck import Bottleneck, SoftStaircase, kept_channels
from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid, clustering_loss, ramp, settled_share
from evaluators.edge import wire
from evaluators.settings import FinetuneSettings
from evaluators.tasks.classification import ClassCriterion
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.reconstruction import importance, reconstruct
from evaluators.training.squeezing import squeezing_of
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit


def correlated(channels=12, rank=4, count=40):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(count, rank, 6, 6, generator=generator)
    mixing = torch.randn(channels, rank, generator=generator)
    return torch.einsum("cr,nrhw->nchw", mixing, factors) + 0.7


def test_start_keeps_what_principal_components_keep():
    features = correlated()
    bottleneck = Bottleneck([(12, 6, 6)], [1], 4 / 12, 1)
    bottleneck.start_from([features])
    with torch.no_grad():
        (activations,), (rebuilt,) = bottleneck(features)
    assert activations.shape == (40, 4, 6, 6) and activations.abs().max() <= 1
    # Four components carry all of it; what is lost is tanh's bend.
    lost = ((rebuilt - features) ** 2).mean() / features.var()
    assert lost < 0.1
    poorer = Bottleneck([(12, 6, 6)], [1], 1 / 12, 1)
    poorer.start_from([features])
    with torch.no_grad():
        assert ((poorer(features)[1][0] - features) ** 2).mean() > ((rebuilt - features) ** 2).mean()


def test_start_works_for_vectors_and_dead_channels():
    features = torch.randn(100, 8)
    features[:, 3] = 0.0
    bottleneck = Bottleneck([(8,)], [1], 1.0, 1)
    bottleneck.start_from([features])
    (activations,), (rebuilt,) = bottleneck(features)
    assert torch.isfinite(activations).all() and torch.isfinite(rebuilt).all()


def test_tensors_of_any_layout_get_a_bottleneck_each():
    shapes, axes = [(12, 6, 6), (10, 8), (5, 5, 4), (16,)], [1, -1, -1, 1]
    features = [torch.randn(40, *shape) for shape in shapes]
    bottleneck = Bottleneck(shapes, axes, 0.5, 1)
    bottleneck.start_from(features)
    with torch.no_grad():
        activations, rebuilt = bottleneck(*features)
    # Channels come first in what is sent, wherever the network keeps them.
    assert [tuple(z.shape) for z in activations] == [(40, 6, 6, 6), (40, 4, 10), (40, 2, 5, 5), (40, 8)]
    for before, after in zip(features, rebuilt, strict=True):
        assert after.shape == before.shape and ((after - before) ** 2).mean() < before.var()
    assert bottleneck.bottleneck_channels == [6, 4, 2, 8]


def test_a_tensor_that_never_changes_is_no_obstacle():
    features = torch.full((20, 6, 4, 4), 3.0)
    bottleneck = Bottleneck([(6, 4, 4)], [1], 0.5, 1)
    bottleneck.start_from([features])
    with torch.no_grad():
        assert torch.allclose(bottleneck(features)[1][0], features, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_staircase_flattens_at_levels_and_moves_none_of_them(bits):
    z = torch.linspace(-1, 1, 4001)[None, None]
    grid = LevelGrid(bits)
    before = None
    for sharpness in (0.0, 2.0, 4.0):
        staircase = SoftStaircase(1, bits)
        with torch.no_grad():
            staircase.sharpness.fill_(sharpness)
            found = staircase(z)
        assert found.min() == pytest.approx(-1) and found.max() == pytest.approx(1)
        assert (found.diff() >= -1e-6).all()
        away = (z - grid.snap(z)).abs() < 0.499 * grid.step  # half-way points are a matter of the last digit
        assert torch.allclose(grid.snap(found)[away], grid.snap(z)[away], atol=1e-5)
        settled = float(settled_share(found, grid))
        assert before is None or settled > before
        before = settled
    assert before > 0.95


def test_staircase_is_its_formula():
    y = torch.tensor([0.1, 0.5, 0.9, 1.3, 2.99])  # in steps, of 3 there are at two bits
    staircase = SoftStaircase(1, 2)
    with torch.no_grad():
        staircase.sharpness.fill_(np.log(5.0))
        found = (staircase((y * 2 / 3 - 1)[None, None]) + 1) * 3 / 2
    expected = [np.floor(v) + 0.5 + np.tanh(5 * (v - np.floor(v) - 0.5)) / (2 * np.tanh(2.5)) for v in y.numpy()]
    assert np.allclose(found.numpy().ravel(), expected, atol=1e-5)


def test_clustering_sharpens_and_leaves_weights_alone():
    features = correlated()
    bottleneck = Bottleneck([(12, 6, 6)], [1], 4 / 12, 2)
    bottleneck.start_from([features])
    (activations,), (settling,) = bottleneck.activations(features)
    assert torch.equal(activations, settling)
    clustering_loss(settling, LevelGrid(2)).backward()
    encoder = bottleneck.encoders[0]
    assert encoder.layer.weight.grad is None and (encoder.staircase.sharpness.grad < 0).all()  # downhill is sharper


def test_start_minds_what_matters():
    features = correlated(channels=6, rank=6)
    ignored = torch.diag(torch.tensor([1, 1, 1, 1e-4, 1e-4, 1e-4]))
    errors = []
    for weights in (None, [ignored]):
        bottleneck = Bottleneck([(6, 6, 6)], [1], 0.5, 8)
        bottleneck.start_from([features], weights)
        with torch.no_grad():
            errors.append(((bottleneck(features)[1][0] - features) ** 2).mean((0, 2, 3)))
    assert errors[1][:3].sum() < 0.5 * errors[0][:3].sum() and errors[1][3:].sum() > errors[0][3:].sum()


def test_importance_is_the_second_moment_of_gradients():
    gradient = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    rows = gradient.movedim(1, -1).reshape(-1, 3).double()
    expected = rows.T @ rows / (rows**2).sum() * 3 + 0.1 * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(importance([gradient], [1])[0], expected)
    assert torch.allclose(importance([gradient.movedim(1, -1)], [-1])[0], expected)


@pytest.mark.parametrize("quantization", ["post-training", "straight-through"])
def test_reconstruction_learns_to_rebuild(quantization):
    features = correlated()
    rebuilt = []
    for steps in (1, 150):
        bottleneck = Bottleneck([(12, 6, 6)], [1], 6 / 12, 1)
        bottleneck.start_from([features])
        settings = FinetuneSettings(reconstruction_steps=steps, quantization=quantization)
        grid = LevelGrid(1)
        config = SplitConfig(partition="here", ae_ratio=0.5, bits=1)
        squeezing = squeezing_of(bottleneck, config, settings, steps, seed=0)
        data = FinetuneData(
            features=(features,), criterion=ClassCriterion(torch.zeros(len(features), dtype=torch.long))
        )
        row = reconstruct(bottleneck, data, [torch.eye(12)], settings, squeezing)
        with torch.no_grad():
            sent = bottleneck.encoder(features)[0]
            sent = grid.snap(sent) if quantization == "straight-through" else sent
            rebuilt.append(float(((bottleneck.decoder(sent)[0] - features) ** 2).mean()))
        assert row["epoch"] == 0 and row["rebuilding_loss"] > 0
    assert rebuilt[1] < 0.7 * rebuilt[0]


def test_reconstruction_of_vectors_does_not_undo_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1500, 40, generator=generator) @ torch.randn(40, 256, generator=generator)
    features += 0.1 * torch.randn(features.shape, generator=generator)
    config, losses = SplitConfig(partition="here", ae_ratio=0.25, bits=8), []
    for steps in (1, 100):
        bottleneck = Bottleneck([(256,)], [1], 0.25, 8)
        bottleneck.start_from([features])
        settings = FinetuneSettings(reconstruction_steps=steps)
        squeezing = squeezing_of(bottleneck, config, settings, steps, seed=0)
        criterion = ClassCriterion(torch.zeros(len(features), dtype=torch.long))
        data = FinetuneData(features=(features,), criterion=criterion)
        losses.append(reconstruct(bottleneck, data, [torch.eye(256)], settings, squeezing)["rebuilding_loss"])
    assert losses[1] < losses[0] < 0.1


@pytest.mark.parametrize(("shape", "sent"), [((12, 6, 6), (6, 3, 3)), ((12, 6), (6, 3)), ((6, 4, 2, 2), (3, 2, 1, 1))])
def test_a_stride_works_on_patches(shape, sent):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(200, 2, *(side // 2 for side in shape[1:]), generator=generator)
    for axis in range(2, factors.dim()):
        factors = factors.repeat_interleave(2, axis)
    features = torch.einsum("cr,nr...->nc...", torch.randn(shape[0], 2, generator=generator), factors) + 0.3
    bottleneck = Bottleneck([shape], [1], 0.5, 8, stride=2)
    bottleneck.start_from([features])
    with torch.no_grad():
        (activations,), (rebuilt,) = bottleneck(features)
    assert activations.shape[1:] == sent and rebuilt.shape == features.shape
    # Two numbers a patch make these features, so half the channels at a quarter of the places hold them.
    assert ((rebuilt - features) ** 2).mean() < 0.1 * features.var()


@pytest.mark.parametrize(("shape", "axis"), [((4, 7, 8), 1), ((9,), 1), ((10, 8), -1)])
def test_a_stride_that_does_not_fit_is_infeasible(shape, axis):
    with pytest.raises(InfeasibleSplit, match="a stride of 2 needs spatial axes that it divides"):
        Bottleneck([shape], [axis], 0.5, 1, stride=2)


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
