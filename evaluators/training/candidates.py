"""``Candidates``: trained splits, each made once and kept on disk."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid
from evaluators.compute import compute_device
from evaluators.edge import context, wire
from evaluators.models.cut import SplitModel
from evaluators.settings import FinetuneSettings
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.finetune import FinetuneData, finetune, mean_loss
from evaluators.training.scoring import Score, score_split
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

_FORMAT = 5  # 1 held one tensor, 2 a decoder without a branch, 3 no grid's levels, 4 was trained on labels
_CALIBRATION_PICTURES = 1000
_CONTEXT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained bottleneck with the tail behind it and its quantization levels; between uses on the CPU.

    ``head`` is there only where it learned too; ``tables`` are those of a context model, where the configuration asks
    for one; ``carries_image_size`` where payloads say how large their images were.
    """

    bottleneck: Bottleneck
    tail: nn.Module
    levels: tuple[wire.TensorLevels, ...]
    history: list[dict[str, Any]]
    head: nn.Module | None = None
    tables: tuple[np.ndarray, ...] = ()
    carries_image_size: bool = False

    def train_features(self, feature_cache: FeatureCache, partition: str) -> Tensors:
        """What this candidate's head makes of the training images, (N, ...) for each tensor."""
        return (
            feature_cache.features(partition, "train")
            if self.head is None
            else feature_cache.through(self.head, feature_cache.train)
        )

    def score(self, config: SplitConfig, feature_cache: FeatureCache) -> Score:
        """Send every search-validation picture's features through bytes and have the tail answer what arrives."""
        device = compute_device()
        bottleneck, tail = self.bottleneck.to(device), self.tail.to(device)
        batches = feature_cache.batches(config.partition, self.head)
        score = score_split(bottleneck.encoder, bottleneck.decoder, tail, batches, self.wire_format(config))
        bottleneck.cpu()
        tail.cpu()
        return score

    def wire_format(self, config: SplitConfig) -> wire.WireFormat:
        """What both ends agree on."""
        tables = self.tables if config.lossless == "context" else ()
        return wire.WireFormat(
            bits=config.bits,
            tensors=self.levels,
            coder=config.lossless,
            tables=tables,
            carries_image_size=self.carries_image_size,
        )


class Candidates:
    """Trains a candidate the first time it is asked for and loads it from ``folder`` afterwards.

    Configurations that differ only in their lossless coder share one training.
    """

    def __init__(
        self, folder: Path, split: SplitModel, feature_cache: FeatureCache, settings: FinetuneSettings, seed: int
    ) -> None:
        self._folder, self._split, self._feature_cache = folder, split, feature_cache
        self._settings, self._seed = settings, seed

    def get(self, config: SplitConfig) -> Candidate:
        """The trained candidate.

        Raises:
            InfeasibleSplit: its AE ratio leaves no channel, or its coder is not made for its bit-width.
        """
        if config.lossless == "context" and config.bits > context.MOST_BITS:
            raise InfeasibleSplit(f"context models are made for 1 to {context.MOST_BITS} bits, not for {config.bits}")
        candidate = replace(self._trained(config), carries_image_size=self._feature_cache.dataset.picture.letterbox)
        if config.lossless != "context":
            return candidate
        return replace(candidate, tables=self._tables(config, candidate))

    def _trained(self, config: SplitConfig) -> Candidate:
        features = self._feature_cache.features(config.partition, "train")
        shapes = [tuple(tensor.shape[1:]) for tensor in features]
        bottleneck = Bottleneck(
            shapes, self._split.channel_axes(config.partition), config.ae_ratio, config.bits, config.stride
        )
        tail = self._feature_cache.tail(config.partition, self._settings.scope)
        head = copy.deepcopy(self._split.head(config.partition)) if self._settings.scope == "all" else None
        place = self._folder / config.training_key
        if (place / "split.json").exists():
            record = json.loads((place / "split.json").read_text())
            if record["format"] == _FORMAT:
                return self._load(place, record, bottleneck, tail, head)
        candidate = self._train(config, bottleneck, tail, head)
        self._save(place, candidate)
        return candidate

    def _train(self, config: SplitConfig, bottleneck: Bottleneck, tail: nn.Module, head: nn.Module | None) -> Candidate:
        device = compute_device()
        grid = LevelGrid(config.bits)
        history = finetune(
            tail.to(device),
            bottleneck.to(device),
            self._feature_cache.finetune_data(config.partition, self._settings.scope),
            self._settings,
            head=head and head.to(device),
            grid=grid,
            tcl=config.tcl,
            seed=self._seed,
        )
        trained = Candidate(
            bottleneck=bottleneck.cpu(), tail=tail.cpu(), levels=(), history=history, head=head and head.cpu()
        )
        return replace(trained, levels=self._levels(config, trained, grid))

    def _levels(self, config: SplitConfig, trained: Candidate, grid: LevelGrid) -> tuple[wire.TensorLevels, ...]:
        """Those that are sent, frozen from here on.

        After straight-through training the grid's, since the tail knows no others. Otherwise those fitted to the
        activations, or, where TCL pulled to the grid's, of the two the ones with the lower loss on training images.
        """
        activations = self._activations(config, trained)
        grid_levels = tuple(grid.levels(tuple(tensor.shape[1:])) for tensor in activations)
        if self._settings.quantization == "straight-through":
            return grid_levels
        fitted = tuple(calibrate(tensor, config.bits) for tensor in activations)
        if not config.tcl:
            return fitted
        finetune_data, share = (
            self._feature_cache.finetune_data(config.partition, self._settings.scope),
            self._settings.distillation,
        )
        return min(
            fitted,
            grid_levels,
            key=lambda levels: _loss_with(trained, activations, levels, config.bits, finetune_data, share),
        )

    def _activations(self, config: SplitConfig, candidate: Candidate) -> Tensors:
        """Of the training images that levels and context tables are made for."""
        features = candidate.train_features(self._feature_cache, config.partition)
        with torch.no_grad():
            found: Tensors = candidate.bottleneck.encoder(*(tensor[:_CALIBRATION_PICTURES] for tensor in features))
        return found

    def _tables(self, config: SplitConfig, candidate: Candidate) -> tuple[np.ndarray, ...]:
        """Context tables, counted once on images that the levels were calibrated on."""
        path = self._folder / config.training_key / f"context-{_CONTEXT_FORMAT}.safetensors"
        if not path.exists():
            activations = self._activations(config, candidate)
            counted = {
                str(number): torch.from_numpy(
                    context.learn(wire.quantize(tensor.numpy(), levels, config.bits), config.bits)
                )
                for number, (tensor, levels) in enumerate(zip(activations, candidate.levels, strict=True))
            }
            partial = path.with_suffix(".part")
            save_file(counted, partial)
            os.replace(partial, path)
        stored = load_file(path)
        return tuple(stored[str(number)].numpy() for number in range(len(candidate.levels)))

    def _save(self, place: Path, candidate: Candidate) -> None:
        place.mkdir(parents=True, exist_ok=True)
        tensors = {f"bottleneck.{name}": value for name, value in candidate.bottleneck.state_dict().items()}
        if self._settings.scope != "bottleneck":
            tensors |= {f"tail.{name}": value for name, value in candidate.tail.state_dict().items()}
        if candidate.head is not None:
            tensors |= {f"head.{name}": value for name, value in candidate.head.state_dict().items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, place / "weights.safetensors")
        levels = [{"shape": list(t.shape), "low": t.low.tolist(), "high": t.high.tolist()} for t in candidate.levels]
        record = {"format": _FORMAT, "levels": levels, "history": candidate.history}
        # Last and in one step: its presence says that the folder is whole.
        partial = place / "split.json.part"
        partial.write_text(json.dumps(record))
        os.replace(partial, place / "split.json")

    @staticmethod
    def _load(
        place: Path, record: dict[str, Any], bottleneck: Bottleneck, tail: nn.Module, head: nn.Module | None
    ) -> Candidate:
        tensors = load_file(place / "weights.safetensors")
        for prefix, module in (("bottleneck.", bottleneck), ("tail.", tail), ("head.", head)):
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if own and module is not None:
                module.load_state_dict(own)
        levels = tuple(
            wire.TensorLevels(tuple(t["shape"]), np.array(t["low"], np.float32), np.array(t["high"], np.float32))
            for t in record["levels"]
        )
        return Candidate(bottleneck=bottleneck, tail=tail, levels=levels, history=record["history"], head=head)


def _loss_with(
    candidate: Candidate,
    activations: Tensors,
    levels: Sequence[wire.TensorLevels],
    bits: int,
    finetune_data: FinetuneData,
    distillation: float,
) -> float:
    """Task loss of a candidate that sends these levels."""
    sent = zip((tensor.numpy() for tensor in activations), levels, strict=True)
    received = tuple(torch.from_numpy(wire.dequantize(wire.quantize(z, own, bits), own, bits)) for z, own in sent)
    device = compute_device()
    loss = mean_loss(
        candidate.tail.to(device), candidate.bottleneck.to(device).decoder, received, finetune_data, distillation
    )
    candidate.tail.cpu()
    candidate.bottleneck.cpu()
    return loss
