"""The uncut network where it is not given trained: trained once, kept, and found again by what made it.

The recipe: SGD or AdamW with a one-cycle schedule, label smoothing, random crops, mirror images where a class survives
them, residual branches that start silent, and images that grow over the epochs (half the epochs at half the size, a
quarter at three quarters, the rest at full size), about half the arithmetic of full size throughout. Networks that
accept one size only get that one throughout.

Pretrained weights whose last layer is fresh are fine-tuned by the same recipe, with a tenth of the learning rate for
what was given and the full one for what is fresh, and their residual branches stay as they are.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from evaluators import machine_lock
from evaluators.compute import autocast, compute_device
from evaluators.edge.picture import to_rgb
from evaluators.identity import arithmetic
from evaluators.models.answer import first_tensor, without_auxiliary_heads
from evaluators.models.residual import zero_init_residual
from evaluators.models.weights import save_state
from evaluators.settings import BaselineSettings
from evaluators.store import Store, StoreKey, discard, write_whole
from evaluators.tasks.data import Dataset, LabelledImages
from spaces.errors import SplitsearchError

_RECIPE = 4  # raise when the training itself changes: kept weights of an older recipe are then not taken for its own
_WEIGHTS, _RECORD = "weights.safetensors", "record.json"
_SMALLEST = 48  # pixels; below that the last maps of most networks are a single value
_CROP_AREA = (0.4, 1.0)
_CROP_RATIO = 4 / 3
_LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.1}
_GIVEN_SHARE = 0.1  # of the learning rate, for weights that were given
_WEIGHT_DECAY = {"adamw": 0.05, "sgd": 5e-4}
_MOMENTUM = 0.9
_LONG_S = 600  # of training on a CPU, from when on a GPU is worth naming


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
    fresh: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Train in place; what is needed to go on after a stop is kept in ``checkpoint``. Returns one row an epoch.

    ``fresh`` are the names of the weights that were not given; all of them by default.

    Raises:
        SplitsearchError: the training diverged.
    """
    if unfreeze(network):
        progress("all parameters of the network are frozen (requires_grad is False); they are trained all the same")
    progress("reading the training images")
    return _Training(network, data, recipe, seed, checkpoint, fresh).run(progress)


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
        save_state(network, folder / _WEIGHTS)

    folder = store.get(key, make, f"uncut {key.depends_on['network']['name']}")
    network.load_state_dict(load_file(folder / _WEIGHTS))
    network.eval()
    discard(store.unfinished(key))


def uncut_record(store: Store, key: StoreKey) -> dict[str, Any] | None:
    """How kept weights were made, as :func:`train_or_load` wrote it down; None where there are none."""
    folder = store.find(key)
    found: dict[str, Any] | None = json.loads((folder / _RECORD).read_text()) if folder else None
    return found


@dataclass(frozen=True)
class Epoch:
    """Its number, from 1, and the side of its images in pixels."""

    number: int
    size: int


class _Training:
    """One training of an uncut network, which stops and resumes at the ends of epochs."""

    def __init__(
        self,
        network: nn.Module,
        data: Dataset,
        recipe: BaselineSettings,
        seed: int,
        checkpoint: Path,
        fresh: Collection[str] | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._network, self._recipe, self._seed, self._data = network, recipe, seed, data
        images = data.train(None, seed)
        self._pixels, self._labels = _stack(images, data.picture.size), images.labels
        self._device = compute_device()
        network.eval()
        given = [] if fresh is None else [name for name, _ in network.named_parameters() if name not in fresh]
        if not given and not _has_statistics(network):
            zero_init_residual(network, data.picture.size)
        self._plan = plan(network, recipe.epochs, data.picture.size)
        # Before the optimizer, which keeps references to where the parameters are.
        network.to(self._device)
        self._optimizer = optimizer_for(network, recipe, given)
        self._batches = len(batches(torch.arange(len(self._labels)), network, recipe))
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            [group["lr"] for group in self._optimizer.param_groups],
            total_steps=self._batches * recipe.epochs,
        )
        self._history: list[dict[str, Any]] = []

    def run(self, progress: Callable[[str], None]) -> list[dict[str, Any]]:
        """Train to the end. Returns one row an epoch: size, mean loss, seconds."""
        self._resume()
        devices = [self._device] if self._device.type == "cuda" else []
        forked = torch.random.fork_rng(devices=devices)
        with machine_lock.training(), forked, without_auxiliary_heads(self._network):
            for epoch in self._plan[len(self._history) :]:
                self._history.append(self._epoch(epoch, progress))
                self._keep()
        self._network.cpu().eval()
        return self._history

    def _epoch(self, epoch: Epoch, progress: Callable[[str], None]) -> dict[str, Any]:
        # From seed and number alone, so that a resumed training does what an undisturbed one would have done.
        generator = torch.Generator().manual_seed(1000 * self._seed + epoch.number)
        torch.manual_seed(1000 * self._seed + epoch.number)  # dropout
        self._network.train()
        total, start, said = 0.0, time.perf_counter(), 0.0
        order = torch.randperm(len(self._labels), generator=generator)
        for done, index in enumerate(batches(order, self._network, self._recipe)):
            elapsed = time.perf_counter() - start
            if done in (0, 10) or elapsed > said + 60:
                said = elapsed
                progress(self._message(epoch, done, elapsed, total))
            images, labels = self._pixels[index].to(self._device), self._labels[index].to(self._device)
            images = _augment(images, self._data, epoch.size, generator)
            loss = training_step(self._network, self._optimizer, images, labels)
            if not math.isfinite(loss):
                raise SplitsearchError(self._diverged(epoch))
            self._schedule.step()
            machine_lock.make_way()
            total += loss
        seconds = time.perf_counter() - start
        return {"epoch": epoch.number, "size": epoch.size, "loss": total / self._batches, "seconds": round(seconds, 1)}

    def _diverged(self, epoch: Epoch) -> str:
        rate, epochs = self._optimizer.defaults["lr"], self._recipe.epochs
        return (
            f"training the uncut model diverged in epoch {epoch.number} of {epochs}: its loss is no longer a number; "
            f"give baseline.learning_rate a value below {rate:g}, or trained weights as model.weights"
        )

    def _message(self, epoch: Epoch, done: int, elapsed: float, total: float) -> str:
        text = f"training the uncut model: epoch {epoch.number} of {self._recipe.epochs} at {epoch.size} px"
        if self._history or done:
            loss, left_s = total / done if done else self._history[-1]["loss"], self._left_s(epoch, done, elapsed)
            text += f", loss {loss:.2f}, {duration(left_s)} left"
            slow = self._device.type != "cuda" and left_s > _LONG_S
            text += " on this CPU (a GPU takes minutes)" if slow else ""
        return text

    def _left_s(self, epoch: Epoch, done: int, elapsed: float) -> float:
        """Seconds to the end: pixels still to come at the pace of this epoch, or of the last one."""
        if done:
            pace = elapsed / (done * epoch.size**2)
        else:
            pace = self._history[-1]["seconds"] / (self._batches * self._history[-1]["size"] ** 2)
        later = self._plan[epoch.number :]
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


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> float:
    """Learn from one batch, images (B, 3, S, S) and class indices (B,). Returns the loss."""
    with autocast(network):
        scores = first_tensor(network(images.to(memory_format=torch.channels_last)))
    loss = functional.cross_entropy(scores.float(), labels, label_smoothing=0.1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return loss.item()


def unfreeze(network: nn.Module) -> bool:
    """Let all parameters learn where none does. Returns whether that was so."""
    parameters = list(network.parameters())
    if not parameters or any(parameter.requires_grad for parameter in parameters):
        return False
    for parameter in parameters:
        parameter.requires_grad_(True)
    return True


def _has_statistics(network: nn.Module) -> bool:
    """Whether BatchNorm has seen images: a network of the user's own, made without a weights file, may be trained."""
    means = (each.running_mean for each in network.modules() if isinstance(each, _BatchNorm))
    return any(mean is not None and bool(mean.any()) for mean in means)


def batches(order: torch.Tensor, network: nn.Module, recipe: BaselineSettings) -> list[torch.Tensor]:
    """Indices in batches. One that is left over goes with the batch before where BatchNorm needs at least two."""
    parts = list(order.split(recipe.batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 and any(isinstance(each, _BatchNorm) for each in network.modules()):
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def plan(network: nn.Module, epochs: int, full: int) -> list[Epoch]:
    """The size of the images in each epoch, in multiples of 16 pixels; the full one for networks that accept no other.

    The network is in eval mode.
    """
    sizes = [_size(number, epochs, full) for number in range(1, epochs + 1)]
    if not all(_accepts(network, size, full) for size in set(sizes) - {full}):
        sizes = [full] * epochs
    return [Epoch(number, size) for number, size in enumerate(sizes, 1)]


def _size(number: int, epochs: int, full: int) -> int:
    share = 0.5 if number <= epochs / 2 else 0.75 if number <= 0.75 * epochs else 1.0
    return min(full, max(_SMALLEST, round(share * full / 16) * 16)) if share < 1 else full


@torch.no_grad()
def _accepts(network: nn.Module, size: int, full: int) -> bool:
    """Whether a network gives answers of the same shape to images of another size."""
    try:
        found, expected = (first_tensor(network(torch.zeros(2, 3, side, side))).shape for side in (size, full))
    except Exception:  # the network's own code, which may raise anything
        return False
    return found == expected


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


def optimizer_for(network: nn.Module, recipe: BaselineSettings, given: Collection[str] = ()) -> torch.optim.Optimizer:
    """Matrices and kernels decay, the rest does not; parameters that were given, by name, learn slowly."""
    rate = recipe.learning_rate or _LEARNING_RATE[recipe.optimizer]
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    groups = []
    for share, names in ((1.0, learning.keys() - set(given)), (_GIVEN_SHARE, learning.keys() & set(given))):
        parameters = [parameter for name, parameter in learning.items() if name in names]
        decays, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        if parameters:
            groups.append({"params": decays, "lr": share * rate, "weight_decay": _WEIGHT_DECAY[recipe.optimizer]})
            groups.append({"params": others, "lr": share * rate, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``about 28 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def _circumstances() -> dict[str, Any]:
    return {"compute": str(compute_device()), "torch": torch.__version__}
