"""The quick fine-tuning of one candidate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.tcl import LevelGrid, clustering_loss, ramp, settled_share
from evaluators.compression.warm_start import SHARPNESS_RATE, importance, warm_cosine, warm_start
from evaluators.settings import FinetuneSettings
from evaluators.tasks.task import Criterion

_GRADIENT_NORM = 5.0
_START_PICTURES = 512
_IMPORTANCE_PICTURES = 256
_IMPORTANCE_BATCH = 64
_IMPORTANCE_DISTILLATION = 0.5
_EVALUATION_BATCH = 125


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one fine-tuning learns from.

    ``features`` are the frozen head's outputs, (N, ...) for each tensor that crosses the cut; ``criterion`` knows the
    labels of the same pictures and what the uncut model says of them; ``inputs`` (N, 3, S, S) are the pictures
    themselves, for a head that learns too.
    """

    features: Tensors
    criterion: Criterion
    inputs: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.criterion)


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
    head: nn.Module | None = None,
    grid: LevelGrid | None = None,
    tcl: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Start a bottleneck, then fine-tune it and, if the scope says so, the tail behind it, in place.

    It starts in closed form, then learns to rebuild the features (:func:`warm_start`), then the task.

    The loss is distillation from the uncut model and the task's own, in the proportion that the settings give, plus
    TCL. BatchNorm statistics stay as they are, so the levels do not move with the batch. Deterministic for a seed on a
    CPU.

    Args:
        tail: everything after the cut; not trained in scope ``bottleneck``, unless there is no bottleneck.
        bottleneck: between features and tail; None fine-tunes the uncut model's tail.
        lesson: what to learn from.
        settings: epochs, batch size, learning rates, scope.
        head: trained in scope ``all``, and needed there; otherwise ``lesson.features`` stand for it.
        grid: levels that TCL pulls the bottleneck's activations to, and that straight-through training rounds to;
            needed with a bottleneck.
        tcl: strength of TCL; 0 leaves it out altogether.
        seed: of the batches' order.

    Returns:
        One row for each epoch: mean task loss, mean clustering loss, mean squared quantization error of the
        activations, share of them within a quarter of a step of a level. Before them, numbered 0, one for the warm
        start, see :func:`warm_start`.

    Raises:
        ValueError: a bottleneck without a grid, or the other way round; scope ``all`` without head or pictures.
    """
    if (bottleneck is None) != (grid is None):
        raise ValueError("a bottleneck needs a grid of levels, and a grid a bottleneck")
    if settings.scope != "all":
        head = None
    elif head is None or lesson.inputs is None:
        raise ValueError("scope 'all' needs the head and the pictures")
    batches = math.ceil(len(lesson) / settings.batch_size)
    total = batches * settings.epochs
    history: list[dict[str, Any]] = []
    tail.eval()
    done, all_steps = 0, total
    if bottleneck is not None and grid is not None:
        weights = _importance(tail, bottleneck, lesson)
        bottleneck.start_from([tensor[:_START_PICTURES] for tensor in lesson.features], weights, seed)
        if settings.warm_start:
            done, all_steps = settings.warm_start, settings.warm_start + total
            history.append(
                warm_start(
                    bottleneck,
                    lesson.features,
                    weights,
                    settings,
                    grid=grid,
                    tcl=tcl,
                    total_steps=all_steps,
                    seed=seed,
                )
            )
    groups = _parameter_groups(head, tail, bottleneck, settings)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, max(total, 1)))
    generator = torch.Generator().manual_seed(seed)
    device = compute_device()
    for epoch in range(settings.epochs):
        sums = torch.zeros(3)
        for index in _batches(len(lesson), settings.batch_size, generator):
            cluster = settled = torch.zeros(())
            with autocast(tail), lesson.criterion.learning(tail, settings.distillation):
                signal = _features(head, lesson, index, device)
                if bottleneck is not None and grid is not None:
                    activations, settling = bottleneck.activations(*signal)
                    rounded = settings.quantization == "straight-through"
                    signal = bottleneck.decoder(*(grid.snap(z) if rounded else z for z in activations))
                output = tail(*signal)
            loss = task = lesson.criterion(output, index, settings.distillation)
            if bottleneck is not None and grid is not None:
                joined = torch.cat([tensor.flatten(1) for tensor in settling], 1)
                cluster, settled = clustering_loss(joined, grid), settled_share(joined, grid)
                if tcl > 0:
                    loss = task + tcl * ramp(done / max(all_steps - 1, 1), settings.ramp) * cluster
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


@torch.no_grad()
def mean_loss(tail: nn.Module, decoder: nn.Module, received: Tensors, lesson: Lesson, distillation: float) -> float:
    """The task loss when the decoder gets ``received``, one tensor (N, K, ...) for each that crosses the cut, of the
    first N pictures of the lesson.
    """
    device, losses = next(decoder.parameters()).device, []
    for index in torch.arange(len(received[0])).split(_EVALUATION_BATCH):
        with autocast(tail), lesson.criterion.learning(tail, distillation):
            output = tail(*decoder(*(tensor[index].to(device) for tensor in received)))
        losses.append(lesson.criterion(output, index, distillation).item() * len(index))
    return sum(losses) / len(received[0])


def _features(head: nn.Module | None, lesson: Lesson, index: torch.Tensor, device: torch.device) -> Tensors:
    if head is None or lesson.inputs is None:
        return tuple(tensor[index].to(device) for tensor in lesson.features)
    computed: Tensors = head(lesson.inputs[index].to(device).contiguous(memory_format=torch.channels_last))
    return computed


def _parameter_groups(
    head: nn.Module | None, tail: nn.Module, bottleneck: Bottleneck | None, settings: FinetuneSettings
) -> list[dict[str, Any]]:
    groups = []
    if head is not None:
        head.eval()
        for parameter in head.parameters():
            parameter.requires_grad_(True)
        groups.append({"params": list(head.parameters()), "lr": settings.tail_learning_rate})
    train_tail = settings.scope != "bottleneck" or bottleneck is None
    for parameter in tail.parameters():
        parameter.requires_grad_(train_tail)
    if train_tail:
        groups.append({"params": list(tail.parameters()), "lr": settings.tail_learning_rate})
    if bottleneck is not None:
        groups.append({"params": bottleneck.weights(), "lr": settings.learning_rate})
        groups.append({"params": bottleneck.sharpness(), "lr": SHARPNESS_RATE, "weight_decay": 0.0})
    return groups


def _importance(tail: nn.Module, bottleneck: Bottleneck, lesson: Lesson) -> list[torch.Tensor]:
    """Of each tensor's channels, from the uncut model's own loss."""
    device = compute_device()
    gradients: list[Tensors] = []
    for index in torch.arange(min(_IMPORTANCE_PICTURES, len(lesson))).split(_IMPORTANCE_BATCH):
        # Copies: a tail may work in place, and others need these.
        signal = tuple(tensor[index].to(device, copy=True).requires_grad_() for tensor in lesson.features)
        with lesson.criterion.learning(tail, _IMPORTANCE_DISTILLATION):
            output = tail(*(tensor * 1.0 for tensor in signal))
        loss = lesson.criterion(output, index, _IMPORTANCE_DISTILLATION)
        gradients.append(torch.autograd.grad(loss, signal))
    axes = [-1 if encoder.moved else 1 for encoder in bottleneck.encoders]
    return importance([torch.cat(parts).cpu() for parts in zip(*gradients)], axes)


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    yield from torch.randperm(count, generator=generator).split(size)
