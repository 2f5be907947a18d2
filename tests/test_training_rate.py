"""The rate penalty: it is what the context coder spends, and it leads to smaller payloads."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.compression.bottleneck import Bottleneck
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import context
from evaluators.settings import FinetuneSettings
from evaluators.tasks.classification import ClassCriterion
from evaluators.training.finetune import finetune
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.rate import RatePenalty
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit


def smooth(count=64, channels=4, side=6):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, side, side, generator=generator)
    return nn.functional.avg_pool2d(noise, 3, 1, 1)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_on_levels_it_is_the_length_of_the_streams(bits):
    grid, penalty = LevelGrid(bits), RatePenalty(LevelGrid(bits))
    on_levels = grid.snap(torch.tanh(2 * smooth()))
    found = penalty((on_levels,))
    symbols = grid.symbols(on_levels)
    table = context.learn(symbols, bits)
    coded = sum(8 * len(context.encode([each], [table])) for each in symbols)
    assert found.item() * symbols.size == pytest.approx(coded, abs=8 * len(symbols))  # streams end on whole bytes


def test_its_gradient_leads_to_the_cheaper_level():
    grid, penalty = LevelGrid(1), RatePenalty(LevelGrid(1))
    mostly_ones = torch.ones(64, 2, 4, 4)
    mostly_ones[::9, :, 1, 1] = -1
    penalty((mostly_ones,))
    between = torch.zeros(64, 2, 4, 4, requires_grad=True)
    symbols = grid.symbols(between)
    penalty((between,)).backward()
    assert symbols.dtype == np.uint8
    assert (between.grad < 0).float().mean() > 0.95  # higher is cheaper


def test_more_bits_than_a_context_model_knows_are_infeasible():
    with pytest.raises(InfeasibleSplit, match="1 to 4 bits, not for 8"):
        RatePenalty(LevelGrid(8))


def test_training_with_it_makes_smaller_payloads():
    """Half of the channels are smooth, which is cheap to code; the other half is noise, which is not."""
    noise = torch.randn(128, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    features = torch.cat([4 * nn.functional.avg_pool2d(smooth(128, 4, 6), 3, 1, 1), noise], 1)
    labels = (features.mean((1, 2, 3)) > 0).long()
    data = FinetuneData(
        features=(features,), criterion=ClassCriterion(labels, nn.functional.one_hot(labels).float() * 3)
    )
    sizes = {}
    for rate in (0.0, 3.0):
        torch.manual_seed(0)
        tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        bottleneck = Bottleneck([(8, 6, 6)], [1], 0.5, 1)
        settings = FinetuneSettings(batch_size=32, epochs=1, reconstruction_steps=250, quantization="straight-through")
        config = SplitConfig(partition="here", ae_ratio=0.5, bits=1, rate=rate)
        finetune(tail, bottleneck, data, settings, config=config)
        with torch.no_grad():
            symbols = LevelGrid(1).symbols(bottleneck.encoder(features)[0])
        table = context.learn(symbols, 1)
        sizes[rate] = np.mean([len(context.encode([each], [table])) for each in symbols])
    assert sizes[3.0] < 0.8 * sizes[0.0], sizes
