"""A rehearsal: each thing that a run does to its network, done once and small before anything takes long.

What a network accepts in eval mode at one size says little of what it does in a training step at another, and a graph
that torch runs may hold operations that ONNX has no word for. Without a rehearsal, such faults would show hours later.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from evaluators.compression.bottleneck import Bottleneck, new_bottleneck
from evaluators.compute import autocast, compute_device
from evaluators.edge import wire
from evaluators.models.answer import without_auxiliary_heads
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import distilled_head
from evaluators.models.onnx_export import OnnxNetwork, save_module
from evaluators.models.trace import line_of
from evaluators.settings import BaselineSettings, FinetuneSettings
from evaluators.tasks.data import Dataset
from evaluators.tasks.task import Task
from evaluators.training.candidate import Candidate
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.trainers import FinetuneTrainer
from evaluators.training.uncut import batches, optimizer_for, plan, training_step, unfreeze
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit, SpecError, SplitsearchError
from spaces.partition import INPUT, OUTPUT
from spaces.space import SearchSpace
from spaces.wording import counted

_IMAGES = 2  # on a CPU; a GPU gets whole batches, since its memory is what may not be enough
_LARGEST_ERROR = 1e-2  # of ONNX against torch, as a share of the largest value


def rehearse(
    network: nn.Module,
    split: SplitModel,
    dataset: Dataset,
    task: Task,
    finetune: FinetuneSettings,
    baseline: BaselineSettings,
    *,
    trained: bool,
    fresh: Collection[str] | None = None,
    exported: OnnxNetwork | None = None,
    space: SearchSpace | None = None,
) -> None:
    """Try what a study will do; nothing of what is given changes.

    Tried are the form of the network's answer, a training step of the uncut network at each size of image that it will
    see and for a left-over batch of one, a fine-tuning step of a candidate at a partition point in the middle, and the
    export to ONNX of the network and of a bottleneck, both run once, cut there. Where the space has distilled heads,
    one of them goes the whole way: trained for a step, exported, a picture encoded by it and decoded. The training of
    detectors, which is ultralytics' own, is not tried.

    Args:
        network: the uncut one, on the CPU, in eval mode.
        split: the same, traced.
        dataset: two of its training images are read.
        task: what a candidate's loss comes from.
        finetune: how candidates will learn.
        baseline: how the uncut network will be trained.
        trained: whether it will not be trained, since it has its weights.
        fresh: names of its weights that were not given, see :func:`train_classifier`.
        exported: the network as ONNX, where the caller has it already.
        space: what will be searched.

    Raises:
        SpecError: the answer's form or a setting does not fit.
        SplitsearchError: anything else that will fail; says what, where, and what to do.
    """
    _check_answer(network, split, dataset)
    points = [point.name for point in split.points if not point.is_end]
    devices = [torch.cuda.current_device()] if compute_device().type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if dataset.task == "classification" and not trained:
            _train_uncut(network, dataset, baseline, fresh)
        if points:
            middle = points[len(points) // 2]
            _train_candidate(split, dataset, task, finetune, middle)
            _export(network, split, middle, exported)
        if space is not None and (config := _with_distilled_head(split, space)) is not None:
            _try_distilled_head(split, dataset, task, finetune, config)


def _check_answer(network: nn.Module, split: SplitModel, dataset: Dataset) -> None:
    """Class scores, one for each class; boxes as rows of six."""
    (found,) = split.tap(OUTPUT).point.shapes
    name, classes = type(network).__name__, len(dataset.classes)
    if dataset.task == "classification" and found != (classes,):
        needs = (
            f"{name} answers with {_batched(found)} where {_batched((classes,))} are needed, one score for each class; "
            "make it with that number of classes, and have it return the scores first or as 'logits'"
        )
        raise SpecError("model.num_classes", classes, needs)
    if dataset.task == "detection" and (len(found) != 2 or found[-1] != 6):
        raise SplitsearchError(
            f"{name} answers with {_batched(found)}; rows of box, score and class, (B, N, 6), are needed"
        )


def _batched(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['B', *map(str, shape)])})"


# -- training ----------------------------------------------------------------------------------------------------------


def _train_uncut(network: nn.Module, dataset: Dataset, recipe: BaselineSettings, fresh: Collection[str] | None) -> None:
    name, full = type(network).__name__, dataset.picture.size
    sizes = sorted({epoch.size for epoch in plan(network, recipe.epochs, full)})
    learner = copy.deepcopy(network).to(compute_device()).train()
    unfreeze(learner)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise SplitsearchError(f"{name} has no parameters, so nothing can be trained; give a network with layers")
    given = [] if fresh is None else [each for each, _ in learner.named_parameters() if each not in fresh]
    optimizer = optimizer_for(learner, recipe, given)
    whole = min(recipe.batch_size, _IMAGES) if compute_device().type == "cpu" else recipe.batch_size
    left_over = len(batches(torch.arange(recipe.batch_size + 1), network, recipe)[-1]) == 1
    with without_auxiliary_heads(learner):
        for size in sizes:
            for count in dict.fromkeys((whole, 1) if left_over else (whole,)):
                _step(learner, optimizer, len(dataset.classes), count, size, name)


def _step(learner: nn.Module, optimizer: torch.optim.Optimizer, classes: int, count: int, size: int, name: str) -> None:
    device = compute_device()
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    what = f"a training step of {name} on {counted(count, 'images')} of {size} px"
    advice = "mend its forward in training mode, or give trained weights as model.weights"
    try:
        with _trying(what, advice):
            loss = training_step(learner, optimizer, images, (torch.arange(count) % classes).to(device))
    except SplitsearchError as error:
        if count == 1 and "more than 1 value per channel" in str(error):
            needs = f"batches of one image do not do for the BatchNorm layers of {name} at {size} px; give 2 or more"
            raise SpecError("baseline.batch_size", 1, needs) from error
        raise
    if not math.isfinite(loss):
        raise SplitsearchError(f"{what} gives a loss of {loss}; its weights or its forward make values overflow")


def _train_candidate(
    split: SplitModel, dataset: Dataset, task: Task, settings: FinetuneSettings, partition: str
) -> None:
    """A step for a bottleneck and the tail behind it, and for the head where it learns too."""
    device = compute_device()
    images = dataset.train(_IMAGES, 0)
    head, tail = (copy.deepcopy(half).to(device) for half in (split.head(partition), split.tail(partition)))
    bottleneck = _bottleneck(split, partition).to(device)
    for parameter in [*head.parameters(), *tail.parameters()]:
        parameter.requires_grad_(True)
    criterion = task.criterion(images)
    with _trying(
        f"fine-tuning behind {partition}", "leave operations that cannot be learned through out of its forward"
    ):
        with torch.set_grad_enabled(settings.scope == "all"):
            features = head(images.inputs(dataset.picture).to(device))
        with autocast(tail), criterion.learning(tail, 0.0):
            output = tail(*bottleneck(*features)[1])
        criterion(output, torch.arange(len(images)), 0.0).backward()


def _bottleneck(split: SplitModel, partition: str) -> Bottleneck:
    config = SplitConfig(partition=partition, ae_ratio=1.0, bits=8)
    made = new_bottleneck(split.tap(partition).point, config, split.image_size)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)  # they hold nothing yet: training starts them from features
    return made


# -- exporting ---------------------------------------------------------------------------------------------------------


def _export(network: nn.Module, split: SplitModel, partition: str, exported: OnnxNetwork | None) -> None:
    name, size = type(network).__name__, split.image_size
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = split.head(partition)(picture)
    bottleneck = _bottleneck(split, partition).eval()
    with tempfile.TemporaryDirectory(prefix="splitsearch-") as folder:
        head, squeezed, tail = (Path(folder) / f"{part}.onnx" for part in ("head", "bottleneck", "tail"))
        with _exporting(name, network):
            exported = exported or OnnxNetwork(split)
            exported.save_part(INPUT, partition, head)
            exported.save_part(partition, OUTPUT, tail)
        with _trying(f"exporting a bottleneck at {partition} to ONNX", "search other points (space.partition)"):
            save_module(bottleneck, features, squeezed, 2 * len(features))
        with _trying(f"running {name} as ONNX, cut at {partition},", "replace what onnxruntime cannot run"):
            found = _run(head, [picture.numpy()])
            _run(tail, _run(squeezed, found)[len(found) :])
    if not all(_agree(one, other.numpy()) for one, other in zip(found, features, strict=True)):
        raise SplitsearchError(
            f"{name} as ONNX does not compute what torch does, up to {partition}; replace what is unusual before that "
            "point by common layers"
        )


def _run(file: Path, tensors: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {each.name: t for each, t in zip(session.get_inputs(), tensors)})
    return found


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= _LARGEST_ERROR * np.abs(other).max())


# -- distilled heads ---------------------------------------------------------------------------------------------------


def _with_distilled_head(split: SplitModel, space: SearchSpace) -> SplitConfig | None:
    """A configuration with a distilled head, in the middle of the points that can have one; None where none can."""
    for head in space.heads:
        if fitting := [name for name in space.partitions if head != "own" and _fits(head, split, name)]:
            middle = fitting[len(fitting) // 2]
            return SplitConfig(partition=middle, ae_ratio=max(space.ae_ratios), bits=min(space.bits), head=head)
    return None


def _fits(head: str, split: SplitModel, partition: str) -> bool:
    try:
        distilled_head(head, split.tap(partition).point, split.image_size)
    except InfeasibleSplit:
        return False
    return True


def _try_distilled_head(
    split: SplitModel, dataset: Dataset, task: Task, settings: FinetuneSettings, config: SplitConfig
) -> None:
    """All that a trial with such a head does, with two images and a step of each training."""
    budget = Budget(images=_IMAGES, reconstruction_steps=1, epochs=1, head_steps=1)
    trainer = FinetuneTrainer(split, FeatureCache(split, dataset, task), settings)
    what, advice = f"distilled head for {config.partition}", "search without distilled heads (space.head: own)"
    with _trying(f"training a {what}", advice), contextlib.suppress(InfeasibleSplit):  # as a trial, this is no fault
        candidate = trainer.train(config, budget, 0)
        picture = dataset.train(1, 0).inputs(dataset.picture)
        with _trying(f"sending a picture through a {what}", advice):
            _send(picture, candidate, config, what)


def _send(picture: torch.Tensor, candidate: Candidate, config: SplitConfig, what: str) -> None:
    """Encode a picture as the device does, with ONNX models, and decode the payload as the server does."""
    head, bottleneck, form = candidate.head, candidate.bottleneck, candidate.wire_format(config)
    assert head is not None
    on_device = _InTurn(head, bottleneck.encoder).eval()
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="splitsearch-") as folder:
        expected, file = on_device(picture), Path(folder) / "device.onnx"
        save_module(on_device, [picture], file, len(expected))
        found = _run(file, [picture.numpy()])
        received = wire.decode(wire.encode([tensor[0] for tensor in found], form), form)
        candidate.tail(*bottleneck.decoder(*(torch.from_numpy(tensor)[None] for tensor in received)))
    if not all(_agree(one, other.numpy()) for one, other in zip(found, expected, strict=True)):
        raise SplitsearchError(f"a {what} as ONNX does not compute what torch does; please report this")


class _InTurn(nn.Module):
    """A head and an encoder as one network: one export takes half as long as two."""

    def __init__(self, head: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.head, self.encoder = head, encoder

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: tuple[torch.Tensor, ...] = self.encoder(*self.head(images))
        return found


# -- saying what fails -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _trying(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a user's own code, torch or a runtime raise into one line."""
    try:
        yield
    except SplitsearchError:
        raise
    except torch.OutOfMemoryError:
        raise SplitsearchError(f"{what} needs more memory than the GPU has; give a smaller batch_size") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SplitsearchError(f"{what} fails{line_of(error)}: {reason}; {advice}") from error


@contextlib.contextmanager
def _exporting(name: str, network: nn.Module) -> Iterator[None]:
    """Name the operation that ONNX does not have, and the layers that may be it."""
    try:
        yield
    except Exception as error:  # torch's exporter, whose messages are long; the first cause says most
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        operation = re.search(r"aten\.(\w+)", reason)
        layers = _layers(network, operation[1]) if operation else []
        which = f" ({', '.join(layers)})" if layers else ""
        raise SplitsearchError(
            f"{name} cannot be exported to ONNX, which is what runs on the device{which}: {reason}; replace that "
            "operation by one that ONNX has"
        ) from error


def _layers(network: nn.Module, operation: str) -> list[str]:
    """Names of the layers that are called as the operation is."""
    wanted = operation.replace("_", "")
    return [name for name, module in network.named_modules() if type(module).__name__.lower() == wanted]
