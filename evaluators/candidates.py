"""``Candidates``: trained splits, each made once and kept on disk."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evaluators.compression.bottleneck import Bottleneck, kept_channels
from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import wire
from evaluators.models.cut import SplitModel
from evaluators.settings import FinetuneSettings
from evaluators.tasks.features import FeatureBank
from evaluators.tasks.scoring import Score, score_split
from evaluators.tasks.training import Lesson, compute_device, finetune
from spaces.config import SplitConfig

_START_PICTURES = 512
_CALIBRATION_PICTURES = 1000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained bottleneck with the tail behind it and its quantization levels; between uses on the CPU."""

    bottleneck: Bottleneck
    tail: nn.Module
    levels: wire.TensorLevels
    history: list[dict[str, Any]]

    def score(self, config: SplitConfig, features: torch.Tensor) -> Score:
        """Send every picture's features, (N, C, H, W) or (N, C), through bytes and classify what arrives."""
        device = compute_device()
        bottleneck, tail = self.bottleneck.to(device), self.tail.to(device)
        score = score_split(bottleneck.encoder, bottleneck.decoder, tail, features, self.wire_format(config))
        bottleneck.cpu()
        tail.cpu()
        return score

    def wire_format(self, config: SplitConfig) -> wire.WireFormat:
        """What both ends agree on."""
        return wire.WireFormat(bits=config.bits, tensors=(self.levels,), lzma=config.lzma)


class Candidates:
    """Trains a candidate the first time it is asked for and loads it from ``folder`` afterwards.

    Configurations that differ only in LZMA share one training.
    """

    def __init__(
        self, folder: Path, split: SplitModel, bank: FeatureBank, settings: FinetuneSettings, seed: int
    ) -> None:
        self._folder, self._split, self._bank = folder, split, bank
        self._settings, self._seed = settings, seed

    def get(self, config: SplitConfig) -> Candidate:
        """The trained candidate. Raises InfeasibleSplit when its AE ratio leaves no channel."""
        features = self._bank.features(config.partition, "train")
        channels = features.shape[1]
        bottleneck = Bottleneck(channels, kept_channels(channels, config.ae_ratio), features.ndim == 4)
        # A copy: the tail shares its modules with the uncut model, which must not change.
        tail = copy.deepcopy(self._split.tail(config.partition))
        place = self._folder / config.training_key
        if (place / "split.json").exists():
            return self._load(place, bottleneck, tail)
        candidate = self._train(config, bottleneck, tail, features)
        self._save(place, candidate)
        return candidate

    def _train(self, config: SplitConfig, bottleneck: Bottleneck, tail: nn.Module, features: torch.Tensor) -> Candidate:
        bottleneck.start_from(features[:_START_PICTURES])
        device = compute_device()
        lesson = Lesson(features=features, labels=self._bank.train.labels, teacher=self._bank.scores("train"))
        history = finetune(
            tail.to(device),
            bottleneck.to(device),
            lesson,
            self._settings,
            grid=LevelGrid(config.bits),
            tcl=config.tcl,
            seed=self._seed,
        )
        bottleneck.cpu()
        with torch.no_grad():
            levels = calibrate(bottleneck.encoder(features[:_CALIBRATION_PICTURES]), config.bits)
        return Candidate(bottleneck=bottleneck, tail=tail.cpu(), levels=levels, history=history)

    def _save(self, place: Path, candidate: Candidate) -> None:
        place.mkdir(parents=True, exist_ok=True)
        tensors = {f"bottleneck.{name}": value for name, value in candidate.bottleneck.state_dict().items()}
        if self._settings.scope == "tail":
            tensors |= {f"tail.{name}": value for name, value in candidate.tail.state_dict().items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, place / "weights.safetensors")
        levels = {"low": candidate.levels.low.tolist(), "high": candidate.levels.high.tolist()}
        record = {"format": 1, "shape": list(candidate.levels.shape), **levels, "history": candidate.history}
        # Last and in one step: its presence says that the folder is whole.
        partial = place / "split.json.part"
        partial.write_text(json.dumps(record))
        os.replace(partial, place / "split.json")

    def _load(self, place: Path, bottleneck: Bottleneck, tail: nn.Module) -> Candidate:
        tensors = load_file(place / "weights.safetensors")
        for prefix, module in (("bottleneck.", bottleneck), ("tail.", tail)):
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if own:
                module.load_state_dict(own)
        record = json.loads((place / "split.json").read_text())
        low, high = np.array(record["low"], np.float32), np.array(record["high"], np.float32)
        levels = wire.TensorLevels(tuple(record["shape"]), low, high)
        return Candidate(bottleneck=bottleneck, tail=tail, levels=levels, history=record["history"])
