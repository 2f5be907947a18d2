"""Detection with ultralytics' networks: their own loss in training, mean average precision in the end.

Networks have two heads: the one-to-many head is there for training, the one-to-one head answers, without a suppression
of boxes that were found twice. An answer is (M, 6): left, top, right, bottom in pixels of the network's square input,
score, class; what is compared are boxes there, as in ultralytics' own validation.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]
from torch import nn
from torch.nn import functional
from torchvision.ops import box_iou

from evaluators.compression.bottleneck import Tensors
from evaluators.compute import compute_device
from evaluators.edge.boxes import LEAST_SCORE
from evaluators.edge.letterbox import Letterbox
from evaluators.edge.picture import PictureFormat
from evaluators.models.detector import both_heads
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.intervals import score_interval
from evaluators.tasks.task import Criterion, Task

IOU_THRESHOLDS = torch.linspace(0.5, 0.95, 10)
_LEAST_SCORE = 0.001  # of a box that counts, as in ultralytics' validation
_SAME_BOX = 0.9  # intersection over union
_GROUPS = 20  # of images, for the jackknife
_NO_WIDTH = 1e-9  # rounding of a jackknife whose groups all give the same


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The boxes found in one picture against those annotated.

    ``hits`` (n, 10) says at which thresholds a box matches one that was not matched before, ``ignored`` (n, 10) where
    it matches none but a difficult one, which then counts neither way (the VOC protocol). ``targets`` are the classes
    of the boxes that had to be found.
    """

    hits: np.ndarray
    ignored: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    targets: np.ndarray


class Precision:
    """Mean average precision over classes, and over thresholds from 0.5 to 0.95."""

    def __init__(self, images: Sequence[Matched]) -> None:
        self.images = images

    @property
    def right(self) -> None:
        """Nothing: boxes are more than right or wrong."""
        return None

    @property
    def accuracy(self) -> float:
        """mAP50-95, in 0..1."""
        return self._means[1]

    @property
    def metrics(self) -> dict[str, float]:
        """The other mean that people quote."""
        return {"mAP50": self._means[0]}

    @functools.cached_property
    def _means(self) -> tuple[float, float]:
        return _mean_precision(self.images)

    @functools.cached_property
    def without_group(self) -> np.ndarray:
        """mAP50-95 when each of 20 groups of images is left out (fewer groups with fewer images)."""
        groups = min(_GROUPS, len(self.images))
        kept = ([each for i, each in enumerate(self.images) if i % groups != out] for out in range(groups))
        return np.array([_mean_precision(images)[1] for images in kept])


class Detection(Task):
    """Boxes of things. Labels as in :class:`evaluators.tasks.detection_data.DetectionFiles`.

    Args:
        network: ultralytics' ``DetectionModel``, whose loss this is.
        picture: how images become its input.
    """

    metric = "mAP50-95"

    def __init__(self, network: Any, picture: PictureFormat) -> None:
        self._network, self._picture = network, picture

    def judge(self, answers: torch.Tensor, images: LabelledImages) -> Precision:
        wanted = _in_square(images, self._picture.size)
        return Precision([_match(answer, rows) for answer, rows in zip(answers.float(), wanted, strict=True)])

    def drop_pp(self, reference: Precision, other: Precision) -> tuple[float, tuple[float, float]]:
        """The drop of mAP50-95 with the interval of a delete-a-group jackknife over images, Student's t with one degree
        of freedom less than groups (Kott, Journal of Official Statistics 17, 2001).

        It has no width only where both found the same boxes with the same scores, which is one network run twice.
        Where answers differ and no group of images shows it, it is as wide as for a share of images that was never met
        in a sample of this size.
        """
        drop = reference.accuracy - other.accuracy
        if _same_answers(reference, other):
            return 0.0, (0.0, 0.0)
        if len(reference.images) < 2:
            return 100 * drop, (-100.0, 100.0)
        half = _jackknife_half(reference.without_group - other.without_group)
        if half < _NO_WIDTH:
            half = score_interval(0, 0, len(reference.images))[1]
        return 100 * drop, (max(100 * (drop - half), -100.0), min(100 * (drop + half), 100.0))

    def agreement(self, answers: torch.Tensor, others: torch.Tensor) -> float:
        """Share of images where every box of one answer has its like (class, nine tenths of the area) in the other."""
        pairs = list(zip(answers.float(), others.float(), strict=True))
        return sum(_covers(one, other) and _covers(other, one) for one, other in pairs) / len(pairs)

    def teaching(self, output: Any) -> Tensors:
        """The one-to-one head's raw boxes (B, 4 * bins, A) and scores (B, classes, A), in half precision for room."""
        raw = output[1]["one2one"]
        return raw["boxes"].half(), raw["scores"].half()

    def criterion(self, images: LabelledImages, teacher: Tensors | None = None) -> Criterion:
        return BoxCriterion(self._network, _in_square(images, self._picture.size), self._picture.size, teacher)


class BoxCriterion(Criterion):
    """ultralytics' own loss of both heads, and distillation of the one-to-one head.

    The loss's two parts have the weights that ultralytics' trainer ends with; where only the one-to-one head ran, its
    part is all. Gradients of the one-to-one part reach whatever stands before the heads, as they do not in ultralytics'
    own training from scratch: what is fine-tuned has to serve the head that answers.

    Distillation compares what the heads say before anything is assigned: cross-entropy with the teacher's class
    probabilities, and Kullback-Leibler divergence of the distributions of box edges where the teacher sees something
    (localization distillation, Zheng et al., CVPR 2022), with the gains that ultralytics has for classes and edges.

    Args:
        network: whose heads and gains these are.
        wanted: for each picture rows (class, left, top, right, bottom, difficult) in pixels of the input; difficult
            ones are not learned.
        size: of the input.
        teacher: as :meth:`Detection.teaching` returns it.
    """

    def __init__(self, network: Any, wanted: Sequence[torch.Tensor], size: int, teacher: Tensors | None) -> None:
        self._wanted, self._size, self._teacher = wanted, size, teacher
        network.to(compute_device())  # where the loss looks for its device
        self._loss = network.init_criterion()
        network.cpu()
        self._loss.o2m, self._loss.o2o = self._loss.final_o2m, self._loss.total - self._loss.final_o2m
        self._gains = network.args

    def __len__(self) -> int:
        return len(self._wanted)

    def __call__(self, output: Any, index: torch.Tensor, distillation: float) -> torch.Tensor:
        raw = in_float(output[1])
        if self._teacher is None:
            distillation = 0.0
        loss = torch.zeros((), device=raw["one2one"]["scores"].device)
        if distillation < 1:
            parts = self._of_labels(raw, self._batch(index, loss.device))
            loss = loss + (1 - distillation) * parts.sum() / len(index)
        if distillation > 0:
            loss = loss + distillation * self._distance(raw["one2one"], index)
        return loss

    def learning(self, network: nn.Module, distillation: float) -> contextlib.AbstractContextManager[None]:
        """While entered, the one-to-many head runs as well, unless nothing is learned from labels."""
        return both_heads(network) if distillation < 1 else contextlib.nullcontext()

    def _of_labels(self, raw: dict[str, Any], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if raw["one2many"]:
            return self._loss(raw, batch)[0]  # type: ignore[no-any-return]
        return self._loss.one2one.loss(raw["one2one"], batch)[0]  # type: ignore[no-any-return]

    def _batch(self, index: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        """Labels as ultralytics' loss wants them: boxes as middle and size, in shares of the input."""
        rows = [self._wanted[i][self._wanted[i][:, 5] == 0] for i in index.tolist()]
        number = torch.cat([torch.full((len(row),), float(i)) for i, row in enumerate(rows)])
        joined = torch.cat(rows)
        corners = joined[:, 1:5] / self._size
        middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        return {
            "batch_idx": number.to(device),
            "cls": joined[:, :1].to(device),
            "bboxes": torch.cat([middle, sides], 1).to(device),
        }

    def _distance(self, raw: dict[str, torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        assert self._teacher is not None
        edges, scores = (tensor[index].to(raw["scores"].device).float() for tensor in self._teacher)
        seen = scores.sigmoid()  # (B, classes, A)
        surest = seen.amax(1)  # (B, A)
        total = surest.sum().clamp_min(1.0)
        least = functional.binary_cross_entropy_with_logits(scores, seen, reduction="sum")
        classes = functional.binary_cross_entropy_with_logits(raw["scores"], seen, reduction="sum") - least
        shape = (len(index), 4, -1, edges.shape[-1])  # (B, 4, bins, A)
        taught = edges.reshape(shape).log_softmax(2)
        own = raw["boxes"].reshape(shape).log_softmax(2)
        apart = functional.kl_div(own, taught, reduction="none", log_target=True).sum(2).mean(1)  # (B, A)
        if edges.shape[1] == 4:  # YOLO26 has one number for each edge, in place of a distribution
            apart = (raw["boxes"] - edges).abs().mean(1)
        return (self._gains.cls * classes + self._gains.dfl * (apart * surest).sum()) / total


def _same_answers(one: Precision, other: Precision) -> bool:
    """Whether both found boxes of the same classes and scores, to the last bit, and matched the same."""
    names = ("hits", "ignored", "scores", "labels")
    pairs = zip(one.images, other.images, strict=True)
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)


def _jackknife_half(differences: np.ndarray) -> float:
    """Half the 95 % interval of a difference, from its values (groups,) when each group is left out."""
    groups = len(differences)
    variance = (groups - 1) / groups * float(((differences - differences.mean()) ** 2).sum())
    return float(stdtrit(groups - 1, 0.975)) * math.sqrt(variance)


def _in_square(images: LabelledImages, size: int) -> list[torch.Tensor]:
    """For each picture its labels as rows (class, left, top, right, bottom, difficult) in pixels of the input."""
    found = []
    for number, (width, height) in enumerate(images.sizes):
        rows = images.labels[images.labels[:, 0] == number][:, 1:]
        corners = Letterbox(width, height, size).to_square(rows[:, 1:5].numpy())
        found.append(torch.cat([rows[:, :1], torch.from_numpy(corners), rows[:, 5:]], 1))
    return found


def _match(answer: torch.Tensor, wanted: torch.Tensor) -> Matched:
    """Compare one picture's answer (M, 6) with its labels."""
    answer = answer[answer[:, 4] > _LEAST_SCORE]
    answer = answer[answer[:, 4].argsort(descending=True, stable=True)]
    easy, difficult = wanted[wanted[:, 5] == 0], wanted[wanted[:, 5] != 0]
    hits = _matches(answer, easy)
    ignored = np.zeros_like(hits)
    if len(difficult) and len(answer):
        overlap = box_iou(answer[:, :4], difficult[:, 1:5]) * (answer[:, 5, None] == difficult[None, :, 0])
        ignored = (overlap.amax(1)[:, None] >= IOU_THRESHOLDS).numpy() & ~hits
    return Matched(
        hits=hits,
        ignored=ignored,
        scores=answer[:, 4].numpy(),
        labels=answer[:, 5].numpy(),
        targets=easy[:, 0].numpy(),
    )


def _matches(answer: torch.Tensor, wanted: torch.Tensor) -> np.ndarray:
    """At which thresholds each found box matches an annotated one, (n, 10), as ultralytics' validator has it."""
    from ultralytics.engine.validator import BaseValidator

    if not len(answer) or not len(wanted):
        return np.zeros((len(answer), len(IOU_THRESHOLDS)), bool)
    thresholds = SimpleNamespace(iouv=IOU_THRESHOLDS)
    overlap = box_iou(wanted[:, 1:5], answer[:, :4])
    match: Any = BaseValidator.match_predictions  # of its validator it needs the thresholds alone
    found: torch.Tensor = match(thresholds, answer[:, 5], wanted[:, 0], overlap)
    return found.numpy()


def _mean_precision(images: Sequence[Matched]) -> tuple[float, float]:
    """mAP50 and mAP50-95, by ultralytics' own integration of the curves."""
    from ultralytics.utils.metrics import ap_per_class

    targets = np.concatenate([each.targets for each in images])
    joined = {
        name: np.concatenate([getattr(each, name) for each in images])
        for name in ("hits", "ignored", "scores", "labels")
    }
    if not len(targets) or not len(joined["scores"]):
        return 0.0, 0.0

    def precision(columns: slice, kept: np.ndarray) -> np.ndarray:
        hits, scores, labels = joined["hits"][kept, columns], joined["scores"][kept], joined["labels"][kept]
        found: np.ndarray = ap_per_class(hits, scores, labels, targets)[5]  # (classes, thresholds)
        return found.mean(0)

    if not joined["ignored"].any():
        means = precision(slice(None), np.ones(len(joined["scores"]), bool))
    else:  # a box may count at one threshold and not at another
        columns = range(len(IOU_THRESHOLDS))
        means = np.concatenate([precision(slice(i, i + 1), ~joined["ignored"][:, i]) for i in columns])
    return float(means[0]), float(means.mean())


def _covers(answer: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether every box shown of one answer has its like in another."""
    shown, near = answer[answer[:, 4] >= LEAST_SCORE], other[other[:, 4] >= 0.9 * LEAST_SCORE]
    if not len(shown):
        return True
    alike = (box_iou(shown[:, :4], near[:, :4]) >= _SAME_BOX) & (shown[:, 5, None] == near[None, :, 5])
    return bool(alike.any(1).all()) if len(near) else False


def in_float(raw: Any) -> Any:
    """A network's raw output, which autocast may have left in another precision."""
    if isinstance(raw, dict):
        return {key: in_float(value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [in_float(value) for value in raw]
    return raw.float()
