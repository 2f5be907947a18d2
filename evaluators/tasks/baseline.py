"""The uncut network where no weights are given: trained once, kept, and found again by what made it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from evaluators.cache import cache_folder
from evaluators.settings import BaselineSettings, DataSettings, ModelSettings
from evaluators.tasks.data import Dataset
from evaluators.tasks.training import train_baseline

_RECIPE = 1  # raise when the training itself changes


def baseline_path(model: ModelSettings, data: DataSettings, recipe: BaselineSettings, seed: int) -> Path:
    """Where the weights of this baseline are, or will be."""
    made_of = {
        "model": [model.name, model.num_classes],
        "data": [data.name, str(data.root.resolve()) if data.root else None, data.image_size],
        "recipe": [_RECIPE, asdict(recipe), seed],
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder("baselines") / f"{model.name.replace('/', '-')}-{data.name}-{digest}.safetensors"


def train_or_load(
    network: nn.Module, path: Path, data: Dataset, recipe: BaselineSettings, seed: int, progress: Callable[[str], None]
) -> None:
    """Give the network the baseline's weights, training it on the whole of train if nobody has yet."""
    if not path.exists():
        pictures = data.train(None, seed)
        train_baseline(network, pictures.inputs(data.picture), pictures.labels, recipe, seed, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, partial)
        os.replace(partial, path)
    network.load_state_dict(load_file(path))
    network.eval()
