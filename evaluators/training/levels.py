"""The quantization levels that a trained candidate sends, and the tables of its context model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from evaluators.compression.bottleneck import Tensors
from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid
from evaluators.compute import compute_device
from evaluators.edge import context, wire
from evaluators.settings import FinetuneSettings
from evaluators.training.candidate import Candidate
from evaluators.training.finetune import mean_loss
from evaluators.training.finetune_data import FinetuneData
from spaces.config import SplitConfig

LEVEL_IMAGES = 1000  # training images that levels and tables are made for


def choose_levels(
    trained: Candidate, config: SplitConfig, features: Tensors, data: FinetuneData, settings: FinetuneSettings
) -> tuple[wire.TensorLevels, ...]:
    """The levels that are sent, frozen from here on.

    After straight-through training they are the grid's, since the tail knows no others. Otherwise they are fitted to
    the activations, or, where TCL pulled to the grid's, those of the two with the lower loss on training images.

    Args:
        features: what the candidate's head makes of the training images, (N, ...) for each tensor.
    """
    activations, grid = _activations(trained, features), LevelGrid(config.bits)
    grid_levels = tuple(grid.levels(tuple(tensor.shape[1:])) for tensor in activations)
    if settings.quantization == "straight-through":
        return grid_levels
    fitted = tuple(calibrate(tensor, config.bits) for tensor in activations)
    if not config.tcl:
        return fitted
    share = settings.distillation

    def loss(levels: Sequence[wire.TensorLevels]) -> float:
        return _loss_with(trained, _received(activations, levels, config.bits), data, share)

    return min(fitted, grid_levels, key=loss)


def refit_decoders(
    trained: Candidate, config: SplitConfig, features: Tensors, data: FinetuneData, settings: FinetuneSettings
) -> Candidate:
    """A candidate whose decoders' linear maps know the levels that are sent, or the same one where that helps nothing.

    A member of a nested bottleneck shares its decoders with others; they are chosen by the loss on training images.

    Args:
        features: what the candidate's head makes of the training images, (N, ...) for each tensor.
    """
    activations = _activations(trained, features)
    received = _received(activations, trained.levels, config.bits)
    refitted = replace(trained, bottleneck=copy.deepcopy(trained.bottleneck))
    refitted.bottleneck.refit(received, [tensor[: len(received[0])] for tensor in data.features])
    share = settings.distillation
    return min(trained, refitted, key=lambda each: _loss_with(each, received, data, share))


def count_tables(candidate: Candidate, config: SplitConfig, features: Tensors) -> tuple[np.ndarray, ...]:
    """Context tables, learned from the training images that the levels were chosen on.

    Raises:
        InfeasibleSplit: context models are not made for so many bits.
    """
    activations = _activations(candidate, features)
    return tuple(
        context.learn(wire.quantize(tensor.numpy(), levels, config.bits), config.bits)
        for tensor, levels in zip(activations, candidate.levels, strict=True)
    )


def _activations(candidate: Candidate, features: Tensors) -> Tensors:
    with torch.no_grad():
        found: Tensors = candidate.bottleneck.encoder(*(tensor[:LEVEL_IMAGES] for tensor in features))
    return found


def _received(activations: Tensors, levels: Sequence[wire.TensorLevels], bits: int) -> Tensors:
    """Activations after their levels."""
    sent = zip((tensor.numpy() for tensor in activations), levels, strict=True)
    return tuple(torch.from_numpy(wire.dequantize(wire.quantize(z, own, bits), own, bits)) for z, own in sent)


def _loss_with(candidate: Candidate, received: Tensors, data: FinetuneData, distillation: float) -> float:
    """Task loss of a candidate whose server receives this."""
    device = compute_device()
    loss = mean_loss(candidate.tail.to(device), candidate.bottleneck.to(device).decoder, received, data, distillation)
    candidate.tail.cpu()
    candidate.bottleneck.cpu()
    return loss
