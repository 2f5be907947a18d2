"""The honest alternatives to a split: the uncut model on the device, and behind the picture, raw or as a codec's file.

They get what candidates get. The uncut model is also fine-tuned with a candidate's budget; behind a codec it is
fine-tuned on images of that codec, since a split's tail learns behind its bottleneck too: once for a codec, on random
qualities, and its BatchNorm statistics are then those of the one quality. Where the codec's files are no smaller than
the raw picture it is not: sending that one is faster, and nothing is lost in it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn

from evaluators.base import Split
from evaluators.edge.picture_codecs import CODECS, QUALITIES, PictureCoding
from evaluators.latency.stage_timer import Stages, StageTimer
from evaluators.models.cut import SplitModel
from evaluators.result import FINE_TUNED, Figures
from evaluators.tasks.data import LabelledImages
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.references import References, answers, as_coded
from spaces.partition import OUTPUT, model_mb

RECIPE = 2  # raise when what a rival's networks are asked changes
_SAY_EVERY_S = 30.0
_CLEAN, _ENDS = "clean", ("", FINE_TUNED)
_ON_DEVICE, _RAW = "all-on-device", "server-only, raw"
_log = logging.getLogger("splitsearch")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which baselines, on which images.

    Attributes:
        split: the images.
        only: names of the baselines; None for all.
    """

    split: Split = "validation"
    only: Collection[str] | None = None

    def ends(self, *ways: str) -> list[str]:
        """What the names of the wanted ones among the baselines of ways, by their names, end with."""
        return [end for end in _ENDS if any(self.wants(way + end) for way in ways)]

    def wants(self, name: str) -> bool:
        """Whether the baseline is wanted."""
        return self.only is None or name in self.only


_ALL = Asked()


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a network says of the images.

    Attributes:
        answers: (N, ...).
        payload_bytes: mean size of the images as they reach it.
    """

    answers: torch.Tensor
    payload_bytes: float


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to an answer.

    Attributes:
        name: of its baselines, without the end that says which network answers.
        pictures: as what they reach the network.
        sends: whether they are sent.
        device_model_mb: what the device has to hold.
    """

    name: str
    pictures: str
    stages: Stages
    sends: bool = True
    device_model_mb: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Baselines that are scored together: all of a codec, or all on clean images.

    Attributes:
        name: of the codec.
        ways: in order.
        asked: which of their baselines.
        made_from: what the answers depend on besides the uncut network and the images, JSON-ready.
        ask: what is said, by pictures and the end of a baseline's name that says which network it is. Takes minutes.
            One after the other: decoded, the images of a single quality may fill the memory.
    """

    name: str
    ways: Sequence[Way]
    asked: Asked
    made_from: Mapping[str, Any]
    ask: Callable[[], Iterator[tuple[str, Said]]]

    def baselines(self, figures: Mapping[str, Figures]) -> Iterator[tuple[str, Figures, Way]]:
        """Name, figures and way of each.

        Args:
            figures: of what was said, by the same words.
        """
        for way, end in itertools.product(self.ways, _ENDS):
            found = figures.get(way.pictures + end)
            if found is not None and self.asked.wants(way.name + end):
                yield way.name + end, found if way.sends else replace(found, payload_bytes=0.0), way


def rivals(
    split: SplitModel,
    feature_cache: FeatureCache,
    stage_timer: StageTimer,
    references: References | None,
    asked: Asked = _ALL,
) -> Iterator[Rival]:
    """The clean images, then every codec that there is.

    Args:
        split: the uncut model, with its weights.
        feature_cache: the images, and features of the uncut model's heads.
        stage_timer: times each way.
        references: the fine-tuned networks, one for clean images and one for each codec; None leaves them out.
        asked: which baselines; a rival of which none is wanted is left out.
    """
    whole, uncut = next(point for point in split.points if point.name == OUTPUT), split.head(OUTPUT)
    if ends := asked.ends(_ON_DEVICE, _RAW):
        yield Rival(
            name=_CLEAN,
            ways=[
                Way(
                    name=_ON_DEVICE,
                    pictures=_CLEAN,
                    stages=stage_timer.all_on_device(),
                    sends=False,
                    device_model_mb=model_mb(whole.head_params),
                ),
                Way(name=_RAW, pictures=_CLEAN, stages=stage_timer.server_only()),
            ],
            asked=asked,
            made_from=_made_from(_CLEAN, references, asked, ends),
            ask=functools.partial(_on_clean, ends, uncut, references, feature_cache, asked.split),
        )
    for codec in CODECS.values():
        codings = [PictureCoding(codec, quality) for quality in QUALITIES]
        plan = [(coding, asked.ends(_coded(coding))) for coding in codings]
        if not codec.available or not any(ends for _, ends in plan):
            continue
        ways = [
            Way(name=_coded(coding), pictures=coding.label, stages=stages)
            for coding, stages in zip(codings, stage_timer.server_only_coded(codings), strict=True)
        ]
        if lacking := next((way for way in ways if _untimed(way)), None):
            _log.warning("%s is left out: a machine did not time its %s", lacking.pictures, _untimed(lacking))
            continue
        made_from = _made_from(
            codec.label, references, asked, [coding.label + end for coding, ends in plan for end in ends]
        )
        yield Rival(
            name=codec.label,
            ways=ways,
            asked=asked,
            made_from={**made_from, "qualities": QUALITIES, "pillow": PIL.__version__},
            ask=functools.partial(_behind, plan, uncut, references, feature_cache, asked.split),
        )


def _coded(coding: PictureCoding) -> str:
    return f"server-only, {coding.label}"


def _untimed(way: Way) -> str:
    return " and ".join(sorted(set(way.stages.stage_keys) - set(way.stages.timings)))


def _made_from(images: str, references: References | None, asked: Asked, what: Sequence[str]) -> dict[str, Any]:
    reference = None if references is None else references.made_from(images)
    part = {} if asked == _ALL else {"split": asked.split, "asked": list(what)}
    return {"images": images, "version": RECIPE, "fine-tuned": reference, **part}


def _on_clean(
    ends: Sequence[str], given: nn.Module, references: References | None, feature_cache: FeatureCache, split: Split
) -> Iterator[tuple[str, Said]]:
    images = feature_cache.images(split)
    size = _raw_bytes(images)
    for end, network in _networks(ends, given, references.clean if references is not None else None):
        yield _CLEAN + end, Said(answers=answers(network, feature_cache, images), payload_bytes=size)


def _behind(
    plan: Sequence[tuple[PictureCoding, Sequence[str]]],
    given: nn.Module,
    references: References | None,
    feature_cache: FeatureCache,
    split: Split,
) -> Iterator[tuple[str, Said]]:
    """The network as given at qualities of a codec, and as fine-tuned behind it where its files are the smaller."""
    wanted, images = [(coding, ends) for coding, ends in plan if ends], feature_cache.images(split)
    qualities = f"{len(wanted)} qualities" if len(wanted) > 1 else f"quality {wanted[0][0].quality}"
    _log.info("baseline: scoring the uncut network on %s images, %s", wanted[0][0].codec.label, qualities)
    said = time.monotonic()
    for done, (coding, ends) in enumerate(wanted):
        if done and time.monotonic() - said > _SAY_EVERY_S:
            _log.info("baseline: %d of %s on %s images done", done, qualities, wanted[0][0].codec.label)
            said = time.monotonic()
        coded, size = as_coded(images, coding)
        pays = size < _raw_bytes(images)
        behind = functools.partial(references.behind, coding) if references is not None and pays else None
        for end, network in _networks(ends, given, behind):
            yield coding.label + end, Said(answers=answers(network, feature_cache, coded), payload_bytes=size)


def _networks(
    ends: Sequence[str], given: nn.Module, fine_tuned: Callable[[], nn.Module] | None
) -> Iterator[tuple[str, nn.Module]]:
    """Those that are asked, by the end of a baseline's name."""
    if "" in ends:
        yield "", given
    if FINE_TUNED in ends and fine_tuned is not None:
        yield FINE_TUNED, fine_tuned()


def _raw_bytes(images: LabelledImages) -> float:
    return float(np.mean([pixels.nbytes for pixels in images.pixels]))


def codec_notes() -> list[str]:
    """A sentence for each codec that is left out because Pillow lacks it here."""
    return [
        f"No {codec.label} among the baselines: {codec.lacking}." for codec in CODECS.values() if not codec.available
    ]
