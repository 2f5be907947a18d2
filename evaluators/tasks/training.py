"""The quick fine-tuning of one candidate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.tcl import LevelGrid, clustering_loss, ramp, settled_share
from evaluators.settings import FinetuneSettings

_GRADIENT_NORM = 5.0
_TEMPERATURE = 2.0  # of the distillation


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one fine-tuning learns from.

    ``features`` are the frozen head's outputs, (N, ...) for each tensor that crosses the cut, ``labels`` (N,) the
    classes, ``teacher`` (N, classes) the uncut model's scores on the same pictures.
    """

    features: Tensors
    labels: torch.Tensor
    teacher: torch.Tensor


def compute_device() -> torch.device:
    """Where training and scoring run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(network: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where it is faster: a ResNet-50 step takes half the time.

    On a CPU grouped convolutions stay in float32, where they are faster: a step of EfficientNetV2-S, 64 pictures of
    64 px, took 0.63 s so, 0.84 s in float32 throughout and 0.82 s in bfloat16 throughout (two EPYC cores, once).
    """
    stack = contextlib.ExitStack()
    if compute_device().type == "cuda":
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
    elif torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules()):
            stack.enter_context(_GroupedInFloat())
    return stack


class _GroupedInFloat(TorchFunctionMode):
    """Takes grouped convolutions out of an autocast on a CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # conv2d(input, weight, bias, stride, padding, dilation, groups)
        if func is torch.conv2d and (args[6] if len(args) > 6 else kwargs.get("groups", 1)) > 1:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def finetune(
    tail: nn.Module,
    bottleneck: Bottleneck | None,
    lesson: Lesson,
    settings: FinetuneSettings,
    *,
    grid: LevelGrid | None = None,
    tcl: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Fine-tune a bottleneck and, if the scope says so, the tail behind it, in place.

    The loss is half cross-entropy and half distillation from the uncut model, plus TCL. BatchNorm statistics stay as
    they are, so the levels do not move with the batch. Deterministic for a seed on a CPU.

    Args:
        tail: everything after the cut; only trained in scope ``tail``, or when there is no bottleneck.
        bottleneck: between features and tail; None fine-tunes the uncut model's tail.
        lesson: what to learn from.
        settings: epochs, batch size, learning rates, scope.
        grid: levels that TCL pulls the bottleneck's activations to, and that straight-through training rounds to;
            needed with a bottleneck.
        tcl: strength of TCL; 0 leaves it out altogether.
        seed: of the batches' order.

    Returns:
        One row for each epoch: mean task loss, mean clustering loss, mean squared quantization error of the
        activations, share of them within a quarter of a step of a level.

    Raises:
        ValueError: a bottleneck without a grid, or the other way round.
    """
    if (bottleneck is None) != (grid is None):
        raise ValueError("a bottleneck needs a grid of levels, and a grid a bottleneck")
    groups = _parameter_groups(tail, bottleneck, settings)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    batches = math.ceil(len(lesson.labels) / settings.batch_size)
    total = batches * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, total))
    generator = torch.Generator().manual_seed(seed)
    device = compute_device()
    history: list[dict[str, Any]] = []
    done = 0
    tail.eval()
    for epoch in range(settings.epochs):
        sums = torch.zeros(3)
        for index in _batches(len(lesson.labels), settings.batch_size, generator):
            cluster = settled = torch.zeros(())
            with autocast(tail):
                signal: Tensors = tuple(tensor[index].to(device) for tensor in lesson.features)
                if bottleneck is not None and grid is not None:
                    activations = bottleneck.encoder(*signal)
                    rounded = settings.quantization == "straight-through"
                    signal = bottleneck.decoder(*(grid.snap(z) if rounded else z for z in activations))
                scores = tail(*signal)
            loss = task = _task_loss(scores.float(), lesson.labels[index].to(device), lesson.teacher[index].to(device))
            if bottleneck is not None and grid is not None:
                joined = torch.cat([tensor.flatten(1) for tensor in activations], 1)
                cluster, settled = clustering_loss(joined, grid), settled_share(joined, grid)
                if tcl > 0:
                    loss = task + tcl * ramp(done / max(total - 1, 1), settings.ramp) * cluster
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            done += 1
            sums += torch.tensor([task.item(), cluster.item(), settled.item()]) / batches
        task_mean, cluster_mean, settled_mean = sums.tolist()
        row = {"epoch": epoch + 1, "task_loss": task_mean, "clustering_loss": cluster_mean, "settled": settled_mean}
        if grid is not None:
            row["quantization_error"] = cluster_mean * grid.step**2
        history.append(row)
    return history


def _parameter_groups(
    tail: nn.Module, bottleneck: Bottleneck | None, settings: FinetuneSettings
) -> list[dict[str, Any]]:
    groups = []
    train_tail = settings.scope == "tail" or bottleneck is None
    for parameter in tail.parameters():
        parameter.requires_grad_(train_tail)
    if train_tail:
        groups.append({"params": list(tail.parameters()), "lr": settings.tail_learning_rate})
    if bottleneck is not None:
        groups.append({"params": list(bottleneck.parameters()), "lr": settings.learning_rate})
    return groups


def _task_loss(scores: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    hard = functional.cross_entropy(scores, labels)
    soft = functional.kl_div(
        functional.log_softmax(scores / _TEMPERATURE, 1),
        functional.softmax(teacher / _TEMPERATURE, 1),
        reduction="batchmean",
    )
    return 0.5 * hard + 0.5 * _TEMPERATURE**2 * soft


def _warm_cosine(step: int, total: int) -> float:
    warm = max(1, total // 20)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total))


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    yield from torch.randperm(count, generator=generator).split(size)
