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

from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.calibrate import calibrate
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import wire
from evaluators.models.cut import SplitModel
from evaluators.settings import FinetuneSettings
from evaluators.tasks.features import FeatureBank
from evaluators.tasks.scoring import Score, score_split
from evaluators.tasks.training import Lesson, compute_device, finetune
from spaces.config import SplitConfig

_FORMAT = 2  # 1 held one tensor
_START_PICTURES = 512
_CALIBRATION_PICTURES = 1000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained bottleneck with the tail behind it and its quantization levels; between uses on the CPU."""

    bottleneck: Bottleneck
    tail: nn.Module
    levels: tuple[wire.TensorLevels, ...]
    history: list[dict[str, Any]]

    def score(self, config: SplitConfig, features: Tensors) -> Score:
        """Send every picture's features, each tensor (N, ...), through bytes and classify what arrives."""
        device = compute_device()
        bottleneck, tail = self.bottleneck.to(device), self.tail.to(device)
        score = score_split(bottleneck.encoder, bottleneck.decoder, tail, features, self.wire_format(config))
        bottleneck.cpu()
        tail.cpu()
        return score

    def wire_format(self, config: SplitConfig) -> wire.WireFormat:
        """What both ends agree on."""
        return wire.WireFormat(bits=config.bits, tensors=self.levels, lzma=config.lzma)


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
        shapes = [tuple(tensor.shape[1:]) for tensor in features]
        bottleneck = Bottleneck(shapes, self._split.channel_axes(config.partition), config.ae_ratio)
        # A copy: the tail shares its modules with the uncut model, which must not change.
        tail = copy.deepcopy(self._split.tail(config.partition))
        place = self._folder / config.training_key
        if (place / "split.json").exists():
            record = json.loads((place / "split.json").read_text())
            if record["format"] == _FORMAT:
                return self._load(place, record, bottleneck, tail)
        candidate = self._train(config, bottleneck, tail, features)
        self._save(place, candidate)
        return candidate

    def _train(self, config: SplitConfig, bottleneck: Bottleneck, tail: nn.Module, features: Tensors) -> Candidate:
        bottleneck.start_from([tensor[:_START_PICTURES] for tensor in features])
        device = compute_device()
        lesson = Lesson(features=features, labels=self._bank.train.labels, teacher=self._bank.scores("train"))
        grid = LevelGrid(config.bits)
        history = finetune(
            tail.to(device),
            bottleneck.to(device),
            lesson,
            self._settings,
            grid=grid,
            tcl=config.tcl,
            seed=self._seed,
        )
        bottleneck.cpu()
        with torch.no_grad():
            activations = bottleneck.encoder(*(tensor[:_CALIBRATION_PICTURES] for tensor in features))
        if self._settings.quantization == "straight-through":  # the tail knows these levels and no others
            levels = tuple(grid.levels(tuple(tensor.shape[1:])) for tensor in activations)
        else:
            levels = tuple(calibrate(tensor, config.bits) for tensor in activations)
        return Candidate(bottleneck=bottleneck, tail=tail.cpu(), levels=levels, history=history)

    def _save(self, place: Path, candidate: Candidate) -> None:
        place.mkdir(parents=True, exist_ok=True)
        tensors = {f"bottleneck.{name}": value for name, value in candidate.bottleneck.state_dict().items()}
        if self._settings.scope == "tail":
            tensors |= {f"tail.{name}": value for name, value in candidate.tail.state_dict().items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, place / "weights.safetensors")
        levels = [{"shape": list(t.shape), "low": t.low.tolist(), "high": t.high.tolist()} for t in candidate.levels]
        record = {"format": _FORMAT, "levels": levels, "history": candidate.history}
        # Last and in one step: its presence says that the folder is whole.
        partial = place / "split.json.part"
        partial.write_text(json.dumps(record))
        os.replace(partial, place / "split.json")

    @staticmethod
    def _load(place: Path, record: dict[str, Any], bottleneck: Bottleneck, tail: nn.Module) -> Candidate:
        tensors = load_file(place / "weights.safetensors")
        for prefix, module in (("bottleneck.", bottleneck), ("tail.", tail)):
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if own:
                module.load_state_dict(own)
        levels = tuple(
            wire.TensorLevels(tuple(t["shape"]), np.array(t["low"], np.float32), np.array(t["high"], np.float32))
            for t in record["levels"]
        )
        return Candidate(bottleneck=bottleneck, tail=tail, levels=levels, history=record["history"])
