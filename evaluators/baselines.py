"""The honest alternatives to a split: the uncut model on the device, and behind the picture, raw or as a codec's file.

They get what candidates get. The uncut model is also fine-tuned with a candidate's budget; behind a codec it is
fine-tuned on images of that codec, since a split's tail learns behind its bottleneck too: once for a codec, on random
qualities, and its BatchNorm statistics are then those of the one quality. Where the codec's files are no smaller than
the raw picture it is not: sending that one is faster, and nothing is lost in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluators.edge.picture_codecs import CODECS, QUALITIES, PictureCodec, PictureCoding
from evaluators.latency.stage_timer import Stages, StageTimer
from evaluators.models.cut import SplitModel
from evaluators.result import FINE_TUNED
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.references import References, answers, as_coded
from spaces.partition import OUTPUT, model_mb

_log = logging.getLogger("splitsearch")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a baseline says of the search-validation images, (N, ...), what it sends, and the stages of its way."""

    name: str
    answers: torch.Tensor
    payload_bytes: float
    stages: Stages
    details: Mapping[str, Any] = field(default_factory=dict)


def baselines(
    split: SplitModel,
    feature_cache: FeatureCache,
    stage_timer: StageTimer,
    references: References | None,
) -> Iterator[Baseline]:
    """All of them, one after the other: decoded, the images of a single quality may fill the memory.

    Args:
        split: the uncut model, with its weights.
        feature_cache: the images, and features of the uncut model's heads.
        stage_timer: times each way.
        references: the fine-tuned networks, one for clean images and one for each codec; None leaves them out.
    """
    whole = next(point for point in split.points if point.name == OUTPUT)
    networks: dict[str, nn.Module] = {"": split.head(OUTPUT)}
    if references is not None:
        networks[FINE_TUNED] = references.clean()
    images = feature_cache.images("validation")
    clean = {end: answers(network, feature_cache, images) for end, network in networks.items()}
    on_device, raw = stage_timer.all_on_device(), stage_timer.server_only()
    raw_bytes = float(np.mean([pixels.nbytes for pixels in images.pixels]))
    for name, size, stages, mb in (
        ("all-on-device", 0.0, on_device, model_mb(whole.head_params)),
        ("server-only, raw", raw_bytes, raw, 0.0),
    ):
        for end, found in clean.items():
            yield Baseline(
                name=name + end, answers=found, payload_bytes=size, stages=stages, details={"device_model_mb": mb}
            )
    for codec in CODECS.values():
        if not codec.available:
            continue
        yield from _behind(codec, networks[""], references, raw_bytes, feature_cache, stage_timer)


def _behind(
    codec: PictureCodec,
    given: nn.Module,
    references: References | None,
    raw_bytes: float,
    feature_cache: FeatureCache,
    stage_timer: StageTimer,
) -> Iterator[Baseline]:
    """The network as given at each quality of a codec, and as fine-tuned behind it where its files are the smaller."""
    codings = [PictureCoding(codec, quality) for quality in QUALITIES]
    for coding, stages in zip(codings, stage_timer.server_only_coded(codings), strict=True):
        untimed = set(stages.stage_keys) - set(stages.timings)
        if untimed:
            _log.warning("%s is left out: a machine did not time its %s", coding.label, " and ".join(sorted(untimed)))
            return
        images, size = as_coded(feature_cache.images("validation"), coding)
        networks = {"": given}
        if references is not None and size < raw_bytes:
            networks[FINE_TUNED] = references.behind(coding)
        for end, network in networks.items():
            yield Baseline(
                name=f"server-only, {coding.label}{end}",
                answers=answers(network, feature_cache, images),
                payload_bytes=size,
                stages=stages,
                details={"device_model_mb": 0.0},
            )


def codec_notes() -> list[str]:
    """A sentence for each codec that is left out because Pillow lacks it here."""
    return [
        f"No {codec.label} among the baselines: {codec.lacking}." for codec in CODECS.values() if not codec.available
    ]
