"""The uncut network where it is not given trained: trained once, kept, and found again by what made it.

The recipe: SGD or AdamW with a one-cycle schedule, label smoothing, random crops, mirror images where a class survives
them, residual branches that start silent, and images that grow over the epochs (half the epochs at half the size, a
quarter at three quarters, the rest at full size), about half the arithmetic of full size throughout.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from evaluators import machine_lock
from evaluators.compute import autocast, compute_device
from evaluators.edge.picture import to_rgb
from evaluators.identity import arithmetic
from evaluators.models.residual import zero_init_residual
from evaluators.settings import BaselineSettings
from evaluators.store import Store, StoreKey, write_whole
from evaluators.tasks.data import Dataset, LabelledImages

_RECIPE = 3  # raise when the training itself changes: kept weights of an older recipe are then not taken for its own
_WEIGHTS, _RECORD = "weights.safetensors", "record.json"
_SMALLEST = 48  # pixels; below that the last maps of most networks are a single value
_CROP_AREA = (0.4, 1.0)
_CROP_RATIO = 4 / 3
_LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.1}
_WEIGHT_DECAY = {"adamw": 0.05, "sgd": 5e-4}
_MOMENTUM = 0.9


def uncut_key(network: Mapping[str, Any], start: str, data: Dataset, recipe: BaselineSettings, seed: int) -> StoreKey:
    """What trained weights of an uncut network depend on.

    Args:
        network: see :func:`evaluators.identity.architecture`.
        start: digest of the weights that training starts from; empty for fresh ones.
        data: what is learned.
        recipe, seed: how.
    """
    learned = [data.fingerprint, asdict(data.picture)]
    own = {"version": _RECIPE, **asdict(recipe)}
    return StoreKey(
        "uncut", {"network": network, "start": start, "data": learned, "recipe": own, "seed": seed, **arithmetic()}
    )


Train = Callable[[nn.Module, Dataset, BaselineSettings, int, Path, Callable[[str], None]], list[dict[str, Any]]]


def train_classifier(
    network: nn.Module,
    data: Dataset,
    recipe: BaselineSettings,
    seed: int,
    checkpoint: Path,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train in place; what is needed to go on after a stop is kept in ``checkpoint``. Returns one row an epoch."""
    progress("reading the training images")
    return _Training(network, data, recipe, seed, checkpoint).run(progress)


def train_or_load(
    network: nn.Module,
    store: Store,
    key: StoreKey,
    data: Dataset,
    recipe: BaselineSettings,
    seed: int,
    progress: Callable[[str], None],
    train: Train = train_classifier,
) -> None:
    """Give the network its trained weights, training it on the whole of train if nobody has yet.

    A training that was stopped goes on after its last finished epoch. Beside the weights is kept how they were made:
    recipe, seed, epochs with sizes, losses and seconds, torch's version.
    """

    def make(folder: Path) -> None:
        checkpoint = store.unfinished(key)
        history = train(network, data, recipe, seed, checkpoint, progress)
        record = {"recipe": asdict(recipe), "seed": seed, "epochs": history, **_circumstances()}
        (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        save_file({name: value.clone().contiguous() for name, value in network.state_dict().items()}, folder / _WEIGHTS)

    folder = store.get(key, make, f"uncut {key.depends_on['network']['name']}")
    network.load_state_dict(load_file(folder / _WEIGHTS))
    network.eval()
    checkpoint = store.unfinished(key)
    shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink(missing_ok=True)


def uncut_record(store: Store, key: StoreKey) -> dict[str, Any] | None:
    """How kept weights were made, as :func:`train_or_load` wrote it down; None where there are none."""
    folder = store.find(key)
    found: dict[str, Any] | None = json.loads((folder / _RECORD).read_text()) if folder else None
    return found


@dataclass(frozen=True)
class _Epoch:
    number: int
    size: int


class _Training:
    """One training of an uncut network, which stops and resumes at the ends of epochs."""

    def __init__(
        self, network: nn.Module, data: Dataset, recipe: BaselineSettings, seed: int, checkpoint: Path
    ) -> None:
        self._checkpoint = checkpoint
        self._network, self._recipe, self._seed, self._data = network, recipe, seed, data
        images = data.train(None, seed)
        self._pixels, self._labels = _stack(images, data.picture.size), images.labels
        self._device = compute_device()
        zero_init_residual(network, data.picture.size)
        # Before the optimizer, which keeps references to where the parameters are.
        network.to(self._device)
        self._optimizer = _optimizer(network, recipe)
        self._batches = math.ceil(len(self._labels) / recipe.batch_size)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, self._optimizer.defaults["lr"], total_steps=self._batches * recipe.epochs
        )
        self._history: list[dict[str, Any]] = []

    def run(self, progress: Callable[[str], None]) -> list[dict[str, Any]]:
        """Train to the end. Returns one row an epoch: size, mean loss, seconds."""
        self._resume()
        devices = [self._device] if self._device.type == "cuda" else []
        with machine_lock.training(), torch.random.fork_rng(devices=devices):
            for epoch in _plan(self._recipe.epochs, self._data.picture.size)[len(self._history) :]:
                self._history.append(self._epoch(epoch, progress))
                self._keep()
        self._network.cpu().eval()
        return self._history

    def _epoch(self, epoch: _Epoch, progress: Callable[[str], None]) -> dict[str, Any]:
        # From seed and number alone, so that a resumed training does what an undisturbed one would have done.
        generator = torch.Generator().manual_seed(1000 * self._seed + epoch.number)
        torch.manual_seed(1000 * self._seed + epoch.number)  # dropout
        self._network.train()
        total, start, said = 0.0, time.perf_counter(), 0.0
        for done, index in enumerate(
            torch.randperm(len(self._labels), generator=generator).split(self._recipe.batch_size)
        ):
            elapsed = time.perf_counter() - start
            if done in (0, 10) or elapsed > said + 60:
                said = elapsed
                progress(self._message(epoch, done, elapsed, total))
            images, labels = self._pixels[index].to(self._device), self._labels[index].to(self._device)
            images = _augment(images, self._data, epoch.size, generator)
            with autocast(self._network):
                scores = self._network(images.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(scores.float(), labels, label_smoothing=0.1)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self._network.parameters(), 5.0)
            self._optimizer.step()
            self._schedule.step()
            machine_lock.make_way()
            total += loss.item()
        seconds = time.perf_counter() - start
        return {"epoch": epoch.number, "size": epoch.size, "loss": total / self._batches, "seconds": round(seconds, 1)}

    def _message(self, epoch: _Epoch, done: int, elapsed: float, total: float) -> str:
        text = f"training the uncut model: epoch {epoch.number} of {self._recipe.epochs} at {epoch.size} px"
        if self._history or done:
            loss = total / done if done else self._history[-1]["loss"]
            text += f", loss {loss:.2f}, {_duration(self._left_s(epoch, done, elapsed))} left"
            text += "" if self._device.type == "cuda" else " on this CPU (a GPU takes minutes)"
        return text

    def _left_s(self, epoch: _Epoch, done: int, elapsed: float) -> float:
        """Seconds to the end: pixels still to come at the pace of this epoch, or of the last one."""
        if done:
            pace = elapsed / (done * epoch.size**2)
        else:
            pace = self._history[-1]["seconds"] / (self._batches * self._history[-1]["size"] ** 2)
        later = _plan(self._recipe.epochs, self._data.picture.size)[epoch.number :]
        steps = (self._batches - done) * epoch.size**2 + sum(self._batches * each.size**2 for each in later)
        return pace * steps

    def _keep(self) -> None:
        state = {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": self._history,
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self._checkpoint, content.getvalue())

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._history = state["history"]


def _plan(epochs: int, full: int) -> list[_Epoch]:
    """The size of the images in each epoch, in multiples of 16 pixels."""

    def size(number: int) -> int:
        share = 0.5 if number <= epochs / 2 else 0.75 if number <= 0.75 * epochs else 1.0
        return min(full, max(_SMALLEST, round(share * full / 16) * 16)) if share < 1 else full

    return [_Epoch(number, size(number)) for number in range(1, epochs + 1)]


def _augment(pixels: torch.Tensor, data: Dataset, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, resized and normalised.

    Args:
        pixels: uint8, (B, 3, H, W).
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size), float32.
    """
    count = len(pixels)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    side = uniform(*_CROP_AREA).sqrt()
    ratio = torch.exp(uniform(-math.log(_CROP_RATIO), math.log(_CROP_RATIO)) / 2)
    width, height = (side * ratio).clamp_max(1), (side / ratio).clamp_max(1)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if data.mirrored else torch.ones(count)
    crops = torch.zeros(count, 2, 3)  # from the result's coordinates in [-1, 1] to the picture's
    crops[:, 0, 0], crops[:, 0, 2] = flip * width, (1 - width) * uniform(-1, 1)
    crops[:, 1, 1], crops[:, 1, 2] = height, (1 - height) * uniform(-1, 1)
    grid = functional.affine_grid(crops.to(pixels.device), [count, 3, size, size], align_corners=False)
    cropped = functional.grid_sample(pixels.float() / 255, grid, padding_mode="reflection", align_corners=False)
    mean, std = (
        torch.tensor(each, device=pixels.device)[:, None, None] for each in (data.picture.mean, data.picture.std)
    )
    return (cropped - mean) / std


def _stack(images: LabelledImages, size: int) -> torch.Tensor:
    """All images as one uint8 tensor (N, 3, S, S), at their own size if they share one, which takes least room."""
    sides = {pixels.shape[:2] for pixels in images.pixels}
    side = sides.pop()[0] if len(sides) == 1 else size
    return torch.from_numpy(np.stack([to_rgb(pixels, side) for pixels in images.pixels])).permute(0, 3, 1, 2)


def _optimizer(network: nn.Module, recipe: BaselineSettings) -> torch.optim.Optimizer:
    """Matrices and kernels decay, the rest does not."""
    rate = recipe.learning_rate or _LEARNING_RATE[recipe.optimizer]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": _WEIGHT_DECAY[recipe.optimizer]},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def _circumstances() -> dict[str, Any]:
    return {"compute": str(compute_device()), "torch": torch.__version__}
