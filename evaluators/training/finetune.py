"""The quick fine-tuning of one candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.nested import NestedBottleneck
from evaluators.compute import autocast, compute_device
from evaluators.models.distilled import DistilledHead
from evaluators.settings import FinetuneSettings
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.reconstruction import SHARPNESS_RATE, importance, most_places, reconstruct, warm_cosine
from evaluators.training.squeezing import Squeezing, mean_pull, squeezing_of
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

_GRADIENT_NORM = 5.0
# The closed-form start takes so many images, more of them where they have few places: fitted to fewer places than
# there are channels it would fit chance.
_START_IMAGES = 512
_START_PLACES = 8192
_IMPORTANCE_IMAGES = 256
_IMPORTANCE_BATCH = 64
_IMPORTANCE_DISTILLATION = 0.5
_EVALUATION_BATCH = 125


class Diverged(InfeasibleSplit):
    """Training left the numbers: no score can come of this configuration with these settings."""


def finetune(
    tail: nn.Module,
    bottleneck: Bottleneck | NestedBottleneck | None,
    finetune_data: FinetuneData,
    settings: FinetuneSettings,
    *,
    head: nn.Module | None = None,
    config: SplitConfig | None = None,
    seed: int = 0,
    until: str = "full",
    begun: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Start a bottleneck, then fine-tune it and, if the scope says so, the tail behind it, in place.

    It starts in closed form, then learns to rebuild the features (:func:`reconstruct`), then the task.

    The loss is distillation from the uncut model and the task's own, in the proportion that the settings give, plus
    what the configuration asks of the activations. BatchNorm statistics stay as they are, so the levels do not move
    with the batch. Deterministic for a seed on a CPU.

    Args:
        tail: everything after the cut; not trained in scope ``bottleneck``, unless there is no bottleneck.
        bottleneck: between features and tail; of a nested one, all members learn. None fine-tunes the uncut model's
            tail.
        finetune_data: what to learn from.
        settings: epochs, batch size, learning rates, scope.
        head: one that learns too, the network's own or a distilled one: needed in scope ``all``. Otherwise
            ``finetune_data.features`` stand for it.
        config: bit-width and strengths of a bottleneck's regularizers; needed with one.
        seed: of the batches' order.
        until: where to stop, see :class:`~spaces.budget.Budget`.
        begun: the rows of the phases before fine-tuning where bottleneck and head have them behind them.

    Returns:
        One row for each epoch: mean task loss, mean clustering loss, mean squared quantization error of the
        activations, share of them within a quarter of a step of a level. Before them, numbered 0, one for the warm
        start, see :func:`reconstruct`.

    Raises:
        ValueError: a bottleneck without a configuration, or the other way round; a head without images.
        Diverged: the loss is no longer a number.
    """
    if (bottleneck is None) != (config is None):
        raise ValueError("a bottleneck needs a configuration, and a configuration a bottleneck")
    if head is not None and finetune_data.inputs is None:
        raise ValueError("a head that learns needs the images")
    batches = math.ceil(len(finetune_data) / settings.batch_size)
    total = batches * settings.epochs
    history: list[dict[str, Any]] = []
    tail.eval()
    done, squeezing = 0, None
    if bottleneck is not None and config is not None:
        done = settings.reconstruction_steps
        squeezing = squeezing_of(bottleneck, config, settings, done + total, seed)
        if begun is None:
            begun = _start(tail, head, bottleneck, finetune_data, settings, squeezing, seed, until)
        history += begun
    if until != "full":
        return history
    groups = _parameter_groups(head, tail, bottleneck, settings)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, max(total, 1)))
    generator = torch.Generator().manual_seed(seed)
    device = compute_device()
    for epoch in range(settings.epochs):
        sums = torch.zeros(3)
        for index in finetune_data.batches(settings.batch_size, generator):
            pull = None
            with autocast(tail), finetune_data.criterion.learning(tail, settings.distillation):
                signals = [_features(head, finetune_data, index, device)]
                if squeezing is not None:
                    squeezed = squeezing.each(signals[0], done)
                    signals, pull = [rebuilt for rebuilt, _ in squeezed], mean_pull(squeezed)
                outputs = [tail(*signal) for signal in signals]
            losses = [finetune_data.criterion(output, index, settings.distillation) for output in outputs]
            loss = task = torch.stack(losses).mean()
            _check_finite(task, f"epoch {epoch + 1} of fine-tuning", settings, config)
            if pull is not None:
                loss = task + pull.loss
                sums[1:] += torch.tensor([pull.clustering.item(), pull.settled.item()]) / batches
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            done += 1
            machine_lock.make_way()
            sums[0] += task.item() / batches
        task_mean, *means = sums.tolist()
        row = {"epoch": epoch + 1, "task_loss": task_mean}
        history.append(row | squeezing.row(*means) if squeezing is not None else row)
    return history


def _start(
    tail: nn.Module,
    head: nn.Module | None,
    bottleneck: Bottleneck | NestedBottleneck,
    data: FinetuneData,
    settings: FinetuneSettings,
    squeezing: Squeezing,
    seed: int,
    until: str,
) -> list[dict[str, Any]]:
    """The closed-form start and, if there are steps for it, reconstruction."""
    weights = _importance(tail, bottleneck, data)
    count = max(_START_IMAGES, math.ceil(_START_PLACES / most_places(bottleneck, data.features)))
    first = [tensor[:count].float() for tensor in data.features]
    maps = None
    if isinstance(head, DistilledHead):
        head.eval()
        device, indices = compute_device(), torch.arange(len(first[0])).split(_START_IMAGES)
        with torch.no_grad():
            made = [[tensor.cpu() for tensor in _features(head, data, index, device)] for index in indices]
        maps = [torch.cat(parts) for parts in zip(*made, strict=True)]
    bottleneck.start_from(first, weights, seed, maps)
    if until == "start" or not settings.reconstruction_steps:
        return []
    learns = head if isinstance(head, DistilledHead) else None
    row = reconstruct(bottleneck, data, weights, settings, squeezing, head=learns, seed=seed)
    _check_finite(torch.tensor(row["rebuilding_loss"]), "reconstruction", settings, squeezing.config)
    return [row]


def _check_finite(loss: torch.Tensor, where: str, settings: FinetuneSettings, config: SplitConfig | None) -> None:
    if not torch.isfinite(loss):
        tcl = config.tcl if config is not None else 0.0
        raise Diverged(
            f"training diverged in {where}: its loss is {loss.item()}; lower finetune.learning_rate "
            f"({settings.learning_rate:g}), finetune.tail_learning_rate ({settings.tail_learning_rate:g})"
            + (f" or TCL's strength ({tcl:g})" if tcl else "")
        )


@torch.no_grad()
def mean_loss(
    tail: nn.Module, decoder: nn.Module, received: Tensors, finetune_data: FinetuneData, distillation: float
) -> float:
    """The task loss when the decoder gets ``received``, one tensor (N, K, ...) for each that crosses the cut, of the
    first N images of the finetune_data.
    """
    device, losses = next(decoder.parameters()).device, []
    for index in torch.arange(len(received[0])).split(_EVALUATION_BATCH):
        with autocast(tail), finetune_data.criterion.learning(tail, distillation):
            output = tail(*decoder(*(tensor[index].to(device) for tensor in received)))
        losses.append(finetune_data.criterion(output, index, distillation).item() * len(index))
    return sum(losses) / len(received[0])


def _features(
    head: nn.Module | None, finetune_data: FinetuneData, index: torch.Tensor, device: torch.device
) -> Tensors:
    if head is None:
        return tuple(tensor[index].to(device).float() for tensor in finetune_data.features)
    computed: Tensors = head(finetune_data.pictures(index, device))
    return computed


def _parameter_groups(
    head: nn.Module | None,
    tail: nn.Module,
    bottleneck: Bottleneck | NestedBottleneck | None,
    settings: FinetuneSettings,
) -> list[dict[str, Any]]:
    groups = []
    if head is not None:
        head.eval()
        for parameter in head.parameters():
            parameter.requires_grad_(True)
        rate = settings.learning_rate if isinstance(head, DistilledHead) else settings.tail_learning_rate
        groups.append({"params": list(head.parameters()), "lr": rate})
    train_tail = settings.scope != "bottleneck" or bottleneck is None
    for parameter in tail.parameters():
        parameter.requires_grad_(train_tail)
    if train_tail:
        groups.append({"params": list(tail.parameters()), "lr": settings.tail_learning_rate})
    if bottleneck is not None:
        groups.append({"params": bottleneck.weights(), "lr": settings.learning_rate})
        groups.append({"params": bottleneck.sharpness(), "lr": SHARPNESS_RATE, "weight_decay": 0.0})
    return groups


def _importance(
    tail: nn.Module, bottleneck: Bottleneck | NestedBottleneck, finetune_data: FinetuneData
) -> list[torch.Tensor]:
    """Of each tensor's channels, from the uncut model's own loss."""
    device = compute_device()
    gradients: list[Tensors] = []
    for index in torch.arange(min(_IMPORTANCE_IMAGES, len(finetune_data))).split(_IMPORTANCE_BATCH):
        # Copies: a tail may work in place, and others need these.
        signal = tuple(
            tensor[index].to(device, torch.float32, copy=True).requires_grad_() for tensor in finetune_data.features
        )
        with finetune_data.criterion.learning(tail, _IMPORTANCE_DISTILLATION):
            output = tail(*(tensor * 1.0 for tensor in signal))
        loss = finetune_data.criterion(output, index, _IMPORTANCE_DISTILLATION)
        gradients.append(torch.autograd.grad(loss, signal))
    axes = [-1 if encoder.channels_last else 1 for encoder in bottleneck.encoders]
    return importance([torch.cat(parts).cpu() for parts in zip(*gradients)], axes)
