"""A closed-form evaluator: instant, deterministic, with a front that can be computed by hand. For tests and demos."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluators.base import Evaluator, Progress, Split
from evaluators.latency.links import LinkProfile
from evaluators.result import FINE_TUNED, Evaluation, HeadCost, LatencyParts, Price, Source, Sources, StageKey, Timing
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import INPUT, OUTPUT, PartitionPoint, model_mb
from spaces.space import SearchSpace

UNCUT_ACCURACY = 0.9
_MODELLED = Sources(device=Source.MODELLED, server=Source.MODELLED, link=Source.MODELLED)
# name: shape at the cut, GMACs before it
_POINTS = {"stem": ((64, 16, 16), 10), "middle": ((128, 8, 8), 40), "deep": ((8, 4, 4), 80)}
_TOTAL = 100
_DISTILLED = 15  # GMACs of a distilled head, wherever it leads
_PARAMETERS = 10_000  # for each MAC before the cut
_HEADER_BYTES = 10
# what is left of the packed symbols
_CODED = {"packed": 1.0, "lzma": 0.75, "zstd": 0.8, "brotli": 0.75, "context": 0.6}


class FakeEvaluator(Evaluator):
    """Accuracy falls with every bit and channel taken away; latency is one ms for ten MACs on the device, a hundred on
    the server, and a megabyte a second on the link. At ``deep`` the smallest AE ratios leave no channel."""

    def partition_points(self) -> Sequence[PartitionPoint]:
        rows = {INPUT: ((3, 64, 64), 0), **_POINTS, OUTPUT: ((10,), _TOTAL)}
        return [
            PartitionPoint(
                name=name, shapes=(shape,), head_macs=macs, tail_macs=_TOTAL - macs, head_params=_PARAMETERS * macs
            )
            for name, (shape, macs) in rows.items()
        ]

    def head_ms(self, points: Sequence[PartitionPoint]) -> list[float | None]:
        return [point.head_macs / 10 for point in points]

    def distilled_heads(self, space: SearchSpace) -> list[HeadCost]:
        params, ms = _PARAMETERS * _DISTILLED, _DISTILLED / 10
        return [
            HeadCost(head=head, points=space.partitions, macs=_DISTILLED, params=params, ms=ms)
            for head in space.heads
            if head != "own"
        ]

    def prepare(self, space: SearchSpace | None, progress: Progress) -> None:
        progress("nothing to prepare")

    def identity(self) -> dict[str, str]:
        return {"fake": "1"}

    def evaluate(
        self, config: SplitConfig, *, budget: Budget | None = None, seed: int | None = None, split: Split = "validation"
    ) -> Evaluation:
        """The closed form; neither budget nor seed nor split changes anything."""
        priced, ratio = self.price(replace(config, lossless="packed")), _CODED[config.lossless]
        lost = (
            0.02 * (config.stride - 1)
            + (0.01 if config.head != "own" else 0.0)
            + 0.2 / 2**config.bits
            + 0.05 * (1 - config.ae_ratio)
            - 0.02 * min(config.tcl, 100) / 100
        )
        payload = _HEADER_BYTES + (priced.payload_bytes - _HEADER_BYTES) * ratio
        coded = config.lossless != "packed"
        parts = replace(
            priced.latency,
            compress_ms=0.5 if coded else 0.0,
            link_ms=payload / 1000,
            decompress_ms=0.1 if coded else 0.0,
        )
        accuracy = UNCUT_ACCURACY - max(lost, 0.0)
        return _evaluation(config.label, accuracy, payload, parts, config, priced.device_model_mb)

    def price(self, config: SplitConfig) -> Price:
        shape, macs = _POINTS[config.partition]
        on_device = macs if config.head == "own" else _DISTILLED
        channels = round(shape[0] * config.ae_ratio)
        if channels < 1:
            raise InfeasibleSplit(f"an AE ratio of {config.ae_ratio:g} leaves no channel of {shape[0]}")
        values = channels * shape[1] * shape[2] / config.stride**2
        payload = _HEADER_BYTES + values * config.bits / 8
        parts = LatencyParts(
            head_ms=on_device / 10,
            encode_ms=config.ae_ratio,
            pack_ms=0.1,
            link_ms=payload / 1000,
            unpack_ms=0.1,
            decode_ms=config.ae_ratio / 10,
            tail_ms=(_TOTAL - macs) / 100,
        )
        mb = model_mb(_PARAMETERS * on_device + shape[0] * channels)
        return Price(latency=parts, payload_bytes=payload, busy_ms=payload / 1000, device_model_mb=mb)

    def baselines(
        self, *, trained: bool, split: Split = "validation", only: Collection[str] | None = None
    ) -> list[Evaluation]:
        raw, alone = 3 * 64 * 64, LatencyParts(head_ms=_TOTAL / 10)
        rows = [
            ("all-on-device", UNCUT_ACCURACY, 0.0, alone, model_mb(_PARAMETERS * _TOTAL)),
            ("server-only, raw", UNCUT_ACCURACY, raw, _behind(raw, 0.0), 0.0),
            ("server-only, JPEG 50", 0.85, 1500, _behind(1500, 0.2), 0.0),
            ("server-only, JPEG 90", 0.85, 2500, _behind(2500, 0.2), 0.0),  # no better than at 50, so beaten
            ("server-only, WebP 50", 0.83, 1000, _behind(1000, 0.3), 0.0),
        ]
        found = []
        for name, accuracy, payload, parts, mb in rows:
            found.append(_evaluation(name, accuracy, payload, parts, None, mb))
            if trained:
                found.append(_evaluation(name + FINE_TUNED, accuracy + 0.01, payload, parts, None, mb))
        return [each for each in found if only is None or each.name in only]

    def export(
        self, config: SplitConfig, directory: Path, *, budget: Budget | None = None, seed: int | None = None
    ) -> dict[str, Any]:
        """Two folders with the configuration in them: nothing here can run."""
        self.evaluate(config)
        for side in ("device", "server"):
            (directory / side).mkdir()
            (directory / side / f"{side}.json").write_text(json.dumps(config.to_dict()))
        return {"images": 0, "agreement_with_trial": 1.0}

    def describe(self) -> dict[str, Any]:
        place = {"name": "fake", "source": "modelled", "how": "modelled in closed form"}
        link = LinkProfile(rate_mb_per_s=1.0)
        return {"device": place, "server": place, "link": link.describe()}


def _behind(payload_bytes: float, compress_ms: float) -> LatencyParts:
    return LatencyParts(compress_ms=compress_ms, link_ms=payload_bytes / 1000, tail_ms=_TOTAL / 100)


def _evaluation(
    name: str,
    accuracy: float,
    payload_bytes: float,
    latency: LatencyParts,
    config: SplitConfig | None,
    device_model_mb: float,
) -> Evaluation:
    stages = {part.removesuffix("_ms"): ms for part, ms in latency.to_dict().items() if ms and part != "link_ms"}
    key = config.partition if config else OUTPUT if latency.head_ms else INPUT
    return Evaluation(
        name=name,
        config=config,
        accuracy=accuracy,
        payload_bytes=payload_bytes,
        latency=latency,
        sources=_MODELLED,
        link_busy_ms=latency.link_ms,
        timings={stage: Timing.single(ms, Source.MODELLED) for stage, ms in stages.items()},
        stage_keys={stage: StageKey(key=key) for stage in stages},
        accuracy_drop_pp=100 * (UNCUT_ACCURACY - accuracy),
        drop_interval_pp=(100 * (UNCUT_ACCURACY - accuracy),) * 2,
        details={"device_model_mb": device_model_mb},
    )
