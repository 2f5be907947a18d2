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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn

from evaluators.edge.picture_codecs import CODECS, QUALITIES, PictureCodec, PictureCoding
from evaluators.latency.stage_timer import Stages, StageTimer
from evaluators.models.cut import SplitModel
from evaluators.result import FINE_TUNED, Figures
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.references import References, answers, as_coded
from spaces.partition import OUTPUT, model_mb

RECIPE = 1  # raise when what a rival's networks are asked changes
_CLEAN = "clean"
_log = logging.getLogger("splitsearch")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a network says of the search-validation images.

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
        made_from: what the answers depend on besides the uncut network and the images, JSON-ready.
        ask: what is said, by pictures and the end of a baseline's name that says which network it is. Takes minutes.
            One after the other: decoded, the images of a single quality may fill the memory.
    """

    name: str
    ways: Sequence[Way]
    made_from: Mapping[str, Any]
    ask: Callable[[], Iterator[tuple[str, Said]]]

    def baselines(self, figures: Mapping[str, Figures]) -> Iterator[tuple[str, Figures, Way]]:
        """Name, figures and way of each.

        Args:
            figures: of what was said, by the same words.
        """
        for way, end in itertools.product(self.ways, ("", FINE_TUNED)):
            if (found := figures.get(way.pictures + end)) is not None:
                yield way.name + end, found if way.sends else replace(found, payload_bytes=0.0), way


def rivals(
    split: SplitModel, feature_cache: FeatureCache, stage_timer: StageTimer, references: References | None
) -> Iterator[Rival]:
    """The clean images, then every codec that there is.

    Args:
        split: the uncut model, with its weights.
        feature_cache: the images, and features of the uncut model's heads.
        stage_timer: times each way.
        references: the fine-tuned networks, one for clean images and one for each codec; None leaves them out.
    """
    whole = next(point for point in split.points if point.name == OUTPUT)
    all_on_device, raw = stage_timer.all_on_device(), stage_timer.server_only()
    yield Rival(
        name=_CLEAN,
        ways=[
            Way(
                name="all-on-device",
                pictures=_CLEAN,
                stages=all_on_device,
                sends=False,
                device_model_mb=model_mb(whole.head_params),
            ),
            Way(name="server-only, raw", pictures=_CLEAN, stages=raw),
        ],
        made_from=_made_from(_CLEAN, references),
        ask=lambda: _on_clean(split.head(OUTPUT), references, feature_cache),
    )
    for codec in CODECS.values():
        if not codec.available:
            continue
        codings = [PictureCoding(codec, quality) for quality in QUALITIES]
        ways = [
            Way(name=f"server-only, {coding.label}", pictures=coding.label, stages=stages)
            for coding, stages in zip(codings, stage_timer.server_only_coded(codings), strict=True)
        ]
        if lacking := next((way for way in ways if _untimed(way)), None):
            _log.warning("%s is left out: a machine did not time its %s", lacking.pictures, _untimed(lacking))
            continue
        yield Rival(
            name=codec.label,
            ways=ways,
            made_from={**_made_from(codec.label, references), "qualities": QUALITIES, "pillow": PIL.__version__},
            ask=functools.partial(_behind, codec, split.head(OUTPUT), references, feature_cache),
        )


def _untimed(way: Way) -> str:
    return " and ".join(sorted(set(way.stages.stage_keys) - set(way.stages.timings)))


def _made_from(images: str, references: References | None) -> dict[str, Any]:
    reference = None if references is None else references.made_from(images)
    return {"images": images, "version": RECIPE, "fine-tuned": reference}


def _on_clean(
    given: nn.Module, references: References | None, feature_cache: FeatureCache
) -> Iterator[tuple[str, Said]]:
    images, size = feature_cache.images("validation"), _raw_bytes(feature_cache)
    networks = {"": given} if references is None else {"": given, FINE_TUNED: references.clean()}
    for end, network in networks.items():
        yield _CLEAN + end, Said(answers=answers(network, feature_cache, images), payload_bytes=size)


def _behind(
    codec: PictureCodec, given: nn.Module, references: References | None, feature_cache: FeatureCache
) -> Iterator[tuple[str, Said]]:
    """The network as given at each quality of a codec, and as fine-tuned behind it where its files are the smaller."""
    _log.info("baseline: scoring the uncut network on %s images, %d qualities", codec.label, len(QUALITIES))
    for quality in QUALITIES:
        coding = PictureCoding(codec, quality)
        images, size = as_coded(feature_cache.images("validation"), coding)
        networks = {"": given}
        if references is not None and size < _raw_bytes(feature_cache):
            networks[FINE_TUNED] = references.behind(coding)
        for end, network in networks.items():
            yield coding.label + end, Said(answers=answers(network, feature_cache, images), payload_bytes=size)


def _raw_bytes(feature_cache: FeatureCache) -> float:
    return float(np.mean([pixels.nbytes for pixels in feature_cache.images("validation").pixels]))


def codec_notes() -> list[str]:
    """A sentence for each codec that is left out because Pillow lacks it here."""
    return [
        f"No {codec.label} among the baselines: {codec.lacking}." for codec in CODECS.values() if not codec.available
    ]
