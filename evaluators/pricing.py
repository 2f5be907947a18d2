"""``Pricing``: what configurations take, known before anything is trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from evaluators.latency.compose import compose
from evaluators.latency.links import LinkProfile
from evaluators.latency.machines import NotRecorded
from evaluators.latency.stage_timer import Stages, StageTimer, untrained
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import DistilledHead, distilled_head
from evaluators.models.work import module_work
from evaluators.result import HeadCost, Price, Timing
from evaluators.settings import FinetuneSettings
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import PartitionPoint, model_mb
from spaces.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class _Untrained:
    """A bottleneck as far as it is known without training: what its stages take, how many values it sends."""

    timings: Mapping[str, Timing]
    values: int
    header_bytes: int
    device_model_mb: float
    training_macs: float


class Pricing:
    """Works each bottleneck out once, for all bit-widths, strengths and lossless coders.

    Args:
        split: the uncut network.
        stage_timer: knows, or measures, what stages take.
        link: gives the link; asked when a price is.
        carries_image_size: whether payloads say how large their images were.
        finetune: how candidates are trained.
    """

    def __init__(
        self,
        split: SplitModel,
        stage_timer: Callable[[], StageTimer],
        link: Callable[[], LinkProfile],
        *,
        carries_image_size: bool,
        finetune: FinetuneSettings,
    ) -> None:
        self._split, self._stage_timer, self._link, self._finetune = split, stage_timer, link, finetune
        self._carries_image_size = carries_image_size
        self._known: dict[SplitConfig, _Untrained] = {}
        self._bits: set[int] = set()

    def expect(self, bits: Iterable[int]) -> None:
        """Say which bit-widths will be asked for, so that each bottleneck is asked for all of them in one go."""
        self._bits |= set(bits)

    def of(self, config: SplitConfig) -> Price:
        """The price of a configuration. Raises what :meth:`evaluators.base.Evaluator.price` does."""
        bottleneck, link = self._untrained(config), self._link()
        stages = {"pack": f"pack b{config.bits}", "unpack": f"unpack b{config.bits}"}
        stages |= {stage: stage for stage in bottleneck.timings if " " not in stage}
        timings = {stage: bottleneck.timings[name] for stage, name in stages.items()}
        payload_bytes = bottleneck.header_bytes + math.ceil(bottleneck.values * config.bits / 8)
        return Price(
            latency=compose(timings, link, payload_bytes),
            payload_bytes=payload_bytes,
            busy_ms=link.busy_ms(payload_bytes),
            device_model_mb=bottleneck.device_model_mb,
            training_macs=bottleneck.training_macs,
        )

    def distilled_heads(self, space: SearchSpace) -> list[HeadCost]:
        """As :meth:`evaluators.base.Evaluator.distilled_heads` says; times each head where that is not known yet."""
        served: dict[tuple[str, str], list[str]] = {}
        made: dict[tuple[str, str], DistilledHead] = {}
        sizes = [size for size in space.heads if size != "own"]
        for size, name in itertools.product(sizes, space.partitions):
            try:
                head = distilled_head(size, self._split.tap(name).point, self._split.image_size)
                place = (size, head.key)
                made[place] = head
            except InfeasibleSplit as reason:
                place = (size, str(reason))
            served.setdefault(place, []).append(name)
        return [self._cost(place, made.get(place), tuple(names), space) for place, names in served.items()]

    def _cost(
        self, place: tuple[str, str], head: DistilledHead | None, points: tuple[str, ...], space: SearchSpace
    ) -> HeadCost:
        """Of the head at a place, its size and its key; or there is none, and the reason stands in the key's stead."""
        size, reason = place
        if head is None:
            return HeadCost(head=size, points=points, why=reason)
        work = module_work(head, [torch.zeros(1, 3, self._split.image_size, self._split.image_size)])
        ms = self._head_ms(size, points, space)
        return HeadCost(head=size, points=points, macs=work.macs, params=parameters_of(head), ms=ms)

    def _head_ms(self, size: str, points: tuple[str, ...], space: SearchSpace) -> float | None:
        """Timed at the first of its points where some ratio leaves a channel; None where none does."""
        for name in points:
            config = SplitConfig(partition=name, ae_ratio=max(space.ae_ratios), bits=min(space.bits), head=size)
            try:
                return self._stage_timer().bottleneck(config, [config.bits], sides=["device"]).timings["head"].p50_ms
            except NotRecorded:
                return None
            except InfeasibleSplit:
                continue
        return None

    def _untrained(self, config: SplitConfig) -> _Untrained:
        squeezed = replace(config, bits=1, tcl=0.0, rate=0.0, lossless="packed")
        known = self._known.get(squeezed)
        if known is None or f"pack b{config.bits}" not in known.timings:
            self._bits.add(config.bits)
            made = untrained(self._split, squeezed)
            form = replace(made.form, carries_image_size=self._carries_image_size)
            point = self._split.tap(config.partition).point
            stages = self._stage_timer().bottleneck(squeezed, sorted(self._bits))
            known = self._known[squeezed] = _Untrained(
                timings=stages.timings,
                values=form.elements,
                header_bytes=form.header_bytes,
                device_model_mb=device_model_mb(point, made.head, made.encoder),
                training_macs=training_macs(self._finetune, config, stages),
            )
        return known


def training_macs(finetune: FinetuneSettings, config: SplitConfig, stages: Stages) -> float:
    """Multiply-accumulate operations of training a candidate, a step counted as three times its forward pass.

    What all configurations of a cut share (features, a distilled head's own learning) is left out, and so is scoring.
    """
    bottleneck, network = stages.macs("encode") + stages.macs("decode"), stages.macs("tail")
    if config.head != "own" or finetune.scope == "all":
        network += stages.macs("head")
    rebuilt, answered = finetune.reconstruction_steps * finetune.batch_size, finetune.images * finetune.epochs
    return 3.0 * (rebuilt * bottleneck + answered * (bottleneck + network))


def device_model_mb(point: PartitionPoint, head: nn.Module | None, encoder: nn.Module) -> float:
    """Weights on the device in 10^6 bytes; a head of None is the network's own up to the point."""
    return model_mb((point.head_params if head is None else parameters_of(head)) + parameters_of(encoder))


def parameters_of(module: nn.Module) -> int:
    """The number of values that it learns."""
    return sum(parameter.numel() for parameter in module.parameters())
