"""``Candidate``: a trained split as a value, and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evaluators.compression.bottleneck import Bottleneck
from evaluators.compute import compute_device
from evaluators.edge import wire
from evaluators.models.weights import save_state
from evaluators.training.feature_cache import FeatureCache, Part
from evaluators.training.scoring import Score, score_split
from spaces.config import SplitConfig

_WEIGHTS, _RECORD = "weights.safetensors", "split.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained bottleneck with the tail behind it and its quantization levels; between uses on the CPU.

    Attributes:
        bottleneck: encoder and decoder.
        tail: everything after the cut.
        levels: quantization levels of each tensor that crosses.
        history: one row for each phase and epoch of training.
        head: there only where it is not the uncut model's: a distilled one, or one that learned too.
        tables: those of a context model, where the configuration asks for one.
        carries_image_size: whether payloads say how large their images were.
    """

    bottleneck: Bottleneck
    tail: nn.Module
    levels: tuple[wire.TensorLevels, ...]
    history: list[dict[str, Any]]
    head: nn.Module | None = None
    tables: tuple[np.ndarray, ...] = ()
    carries_image_size: bool = False

    def score(self, config: SplitConfig, feature_cache: FeatureCache, part: Part = "validation") -> Score:
        """Send every image's features through bytes and have the tail answer what arrives.

        Raises:
            PayloadError: the encoder produced something else than numbers.
        """
        device = compute_device()
        bottleneck, tail = self.bottleneck.to(device), self.tail.to(device)
        batches = feature_cache.batches(config.partition, part, self.head)
        try:
            return score_split(bottleneck.encoder, bottleneck.decoder, tail, batches, self.wire_format(config))
        finally:
            bottleneck.cpu()
            tail.cpu()

    def wire_format(self, config: SplitConfig) -> wire.WireFormat:
        """What both ends agree on."""
        return wire.WireFormat(
            bits=config.bits,
            tensors=self.levels,
            coder=config.lossless,
            tables=self.tables if config.lossless == "context" else (),
            carries_image_size=self.carries_image_size,
        )


def save_candidate(candidate: Candidate, folder: Path, *, tail_learned: bool) -> None:
    """Write weights, levels and history into an existing folder; a tail that did not learn is the uncut model's."""
    modules = {"bottleneck": candidate.bottleneck, "head": candidate.head}
    save_modules(modules | {"tail": candidate.tail if tail_learned else None}, folder)
    levels = [{"shape": list(t.shape), "low": t.low.tolist(), "high": t.high.tolist()} for t in candidate.levels]
    (folder / _RECORD).write_text(json.dumps({"levels": levels, "history": candidate.history}))


def load_candidate(folder: Path, bottleneck: Bottleneck, tail: nn.Module, head: nn.Module | None) -> Candidate:
    """Read what :func:`save_candidate` wrote into fresh modules of the same architecture. Runs none of them."""
    load_modules(folder, {"bottleneck": bottleneck, "tail": tail, "head": head})
    record = json.loads((folder / _RECORD).read_text())
    levels = tuple(
        wire.TensorLevels(tuple(t["shape"]), np.array(t["low"], np.float32), np.array(t["high"], np.float32))
        for t in record["levels"]
    )
    return Candidate(bottleneck=bottleneck, tail=tail, levels=levels, history=record["history"], head=head)


def save_modules(modules: Mapping[str, nn.Module | None], folder: Path) -> None:
    """Write the weights of those that are there into an existing folder."""
    tensors = {
        f"{prefix}.{name}": value
        for prefix, module in modules.items()
        if module is not None
        for name, value in module.state_dict().items()
    }
    save_state(tensors, folder / _WEIGHTS)


def load_modules(folder: Path, modules: Mapping[str, nn.Module | None]) -> None:
    """Read what :func:`save_modules` wrote, and set all to eval mode; of which nothing was written stays as it is."""
    tensors = load_file(folder / _WEIGHTS)
    for name, module in modules.items():
        if module is None:
            continue
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if own:
            module.load_state_dict(own)
        module.eval()


def tables_to_file(tables: tuple[np.ndarray, ...], path: Path) -> None:
    """Write context tables."""
    save_file({str(number): torch.from_numpy(table) for number, table in enumerate(tables)}, path)


def tables_from_file(path: Path) -> tuple[np.ndarray, ...]:
    """Read context tables."""
    stored = load_file(path)
    return tuple(stored[str(number)].numpy() for number in range(len(stored)))
