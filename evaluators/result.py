"""What an evaluation returns: accuracy, payload, and latency as named parts with their sources."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np

from spaces.config import SplitConfig
from spaces.errors import SplitsearchError
from spaces.work import Work

FORMAT = 2  # of an evaluation as text: 1 had no number, and no timings at first
FINE_TUNED = ", fine-tuned"  # the end of a baseline's name
MOST_SPREAD = 0.10  # of a timing that is not marked as doubtful
NEGLIGIBLE_MS = 0.1  # between the quartiles: marks nothing, however large a part of the median
WIDE_SPREAD = 0.25  # of one that is marked more strongly
MOST_OTHERS = 0.10  # of the processor's time, taken by other work, of a timing that is not marked


class Source(StrEnum):
    """Where a number comes from: timed for this study, kept in a profile since somebody timed it, or computed."""

    MEASURED = "measured"
    RECORDED = "recorded"
    MODELLED = "modelled"

    @classmethod
    def weakest(cls, sources: Iterable[Source]) -> Source:
        """What a sum of such numbers is: only as good as its worst part. At least one source is needed."""
        return max(sources, key=list(cls).index)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the latency of each of the three places comes from: the weakest of its parts' sources."""

    device: Source
    server: Source
    link: Source

    def to_dict(self) -> dict[str, str]:
        """As in ``front --json``."""
        return {key: str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one stage takes on one machine, from many runs.

    Attributes:
        p50_ms: the median; what latencies are made of.
        p90_ms: the 90th percentile.
        spread: interquartile range over median.
        repeats: number of runs; 0 where nobody noted it, or where nothing ran.
        throttling: what slowed the machine down meanwhile, by name.
        others: share of the processor's time that other work took meanwhile, 0 to 1; 0 where nobody noted it.
        caveat: why a modelled number may be far off, in words; empty where its error is known.
        source: how the numbers came about.
        runs_ms: every run that counts, in order; empty where nobody kept them. Left out of :meth:`to_dict`.
    """

    p50_ms: float
    p90_ms: float
    spread: float
    repeats: int
    throttling: tuple[str, ...] = ()
    others: float = 0.0
    caveat: str = ""
    source: Source = Source.MEASURED
    runs_ms: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def single(cls, ms: float, source: Source) -> Timing:
        """A latency of which nothing but the number is known."""
        return cls(p50_ms=ms, p90_ms=ms, spread=0.0, repeats=0, source=source)

    @property
    def is_calm(self) -> bool:
        """Whether neither slowing down nor other work nor its own spread speaks against it."""
        return not self.throttling and self.others <= MOST_OTHERS and not self._is_spread

    @property
    def _is_spread(self) -> bool:
        """Whether its runs differ by much, both as a part of the median and in milliseconds."""
        return self.spread > MOST_SPREAD and self.spread * self.p50_ms > NEGLIGIBLE_MS

    @property
    def warning(self) -> str:
        """Why not to trust it, empty if nothing speaks against it."""
        said = []
        if self.throttling:
            said.append(f"timed while slowed down ({', '.join(self.throttling)})")
        if self.others > MOST_OTHERS:
            said.append(f"timed while other work took {self.others:.0%} of the processor")
        if self._is_spread:
            said.append(f"spread {self.spread:.0%}{', not to be relied on' if self.spread > WIDE_SPREAD else ''}")
        return "; ".join([*said, *filter(None, [self.caveat])])

    def scaled(self, factor: float, caveat: str = "") -> Timing:
        """On a machine that takes ``factor`` times as long, which makes it a modelled number."""
        return replace(
            self,
            p50_ms=self.p50_ms * factor,
            p90_ms=self.p90_ms * factor,
            runs_ms=(),
            caveat=caveat,
            source=Source.MODELLED,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the single runs left out."""
        data = {**asdict(self), "throttling": list(self.throttling), "source": str(self.source)}
        del data["runs_ms"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Timing:
        """The inverse of :meth:`to_dict`."""
        source = Source(data.get("source", Source.MEASURED))  # tables of earlier versions held nothing else
        runs_ms = tuple(data.get("runs_ms", ()))
        return cls(**{**data, "throttling": tuple(data["throttling"]), "source": source, "runs_ms": runs_ms})


def stage_kind(stage: str) -> str:
    """``compress`` of ``compress webp 50``, as stages are called where several of a kind are timed in one go."""
    return stage.partition(" ")[0]


@dataclass(frozen=True, kw_only=True)
class StageKey:
    """A stage to be timed on some machine.

    Attributes:
        key: what its latency depends on, ``64x8x8/r0.25``; equal keys take equally long.
        work: what a network does in it; None for what is no network, such as packing.
    """

    key: str
    work: Work | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"key": self.key, "work": self.work and self.work.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageKey:
        """The inverse of :meth:`to_dict`."""
        return cls(key=data["key"], work=Work.from_dict(data["work"]) if data["work"] else None)


@dataclass(frozen=True, kw_only=True)
class LatencyParts:
    """One picture's way from camera to answer, in milliseconds, in order. A part that does not happen is 0."""

    head_ms: float = 0.0
    encode_ms: float = 0.0
    pack_ms: float = 0.0
    compress_ms: float = 0.0
    link_ms: float = 0.0
    decompress_ms: float = 0.0
    unpack_ms: float = 0.0
    decode_ms: float = 0.0
    tail_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Their sum: the latency."""
        return sum(vars(self).values())

    @property
    def device_ms(self) -> float:
        """What the device does."""
        return self.head_ms + self.encode_ms + self.pack_ms + self.compress_ms

    @property
    def server_ms(self) -> float:
        """What the server does."""
        return self.decompress_ms + self.unpack_ms + self.decode_ms + self.tail_ms

    def to_dict(self) -> dict[str, float]:
        """As in ``front --json``."""
        return dict(vars(self))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The parts in order."""
        return tuple(part.name for part in fields(cls))


RIGHT = "right_images"  # of an evaluation's details: one bit an image, as base64
DEVICE_PARTS = ("head_ms", "encode_ms", "pack_ms", "compress_ms")
SERVER_PARTS = ("decompress_ms", "unpack_ms", "decode_ms", "tail_ms")


def right_text(right: np.ndarray) -> str:
    """Which images were answered right, (N,) bools, as :attr:`Evaluation.right` reads it."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a configuration takes, known before anything is trained: all but what depends on the very bytes.

    Attributes:
        latency: the parts for a packed payload, the way over the link included; a lossless coder's own parts are 0.
        payload_bytes: of a packed payload, header included. A lossless coder's are smaller by what it can.
        busy_ms: how long a packed payload occupies the link; the part of ``latency`` that shrinks with it.
        device_model_mb: weights on the device.
        training_macs: multiply-accumulate operations of training it, about; 0 where nobody knows. Numbers of one study
            may be compared with each other.
    """

    latency: LatencyParts
    payload_bytes: float
    busy_ms: float
    device_model_mb: float
    training_macs: float = 0.0

    def latency_ms(self, payload_bytes: float | None = None, coding_ms: float = 0.0) -> float:
        """For a payload of another size that took so long to code and decode."""
        share = 1.0 if payload_bytes is None else payload_bytes / self.payload_bytes
        return self.latency.total_ms + coding_ms - self.busy_ms * (1.0 - share)

    @property
    def least_ms(self) -> float:
        """What no lossless coder gets below."""
        return self.latency_ms(0.0)


@dataclass(frozen=True, kw_only=True)
class HeadCost:
    """What a distilled head takes, or why there is none. Points whose maps are equally large share one.

    Attributes:
        head: its size, ``distilled`` say.
        points: names of the partition points that it leads to.
        macs: multiply-accumulate operations for one picture.
        params: values that it learns.
        ms: latency on the device; None where it is not known.
        why: there is none at these points; empty where there is one.
    """

    head: str
    points: tuple[str, ...]
    macs: int | None = None
    params: int | None = None
    ms: float | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """By attribute. JSON-ready."""
        return {**vars(self), "points": list(self.points)}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What answers are worth: an :class:`Evaluation`'s fields that say nothing of latency, under the same names."""

    accuracy: float
    metrics: Mapping[str, float]
    payload_bytes: float
    accuracy_drop_pp: float
    drop_interval_pp: Sequence[float]
    details: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One candidate or baseline, scored.

    Attributes:
        name: for people.
        config: None for a baseline.
        accuracy: in 0..1, through the real byte path, on the search-validation split; what it is depends on the task.
        metrics: what else people of the task's field ask for, in 0..1, by name.
        payload_bytes: mean length of the real payloads, header included.
        latency: the parts; their sum is the latency objective.
        sources: where the latency parts of device, server and link come from; of each the weakest.
        link_busy_ms: how long the payload occupies the link; the rest of ``latency.link_ms`` is the way.
        link_p90_ms: the link's part in the slowest tenth of cases, for a link with jitter.
        timings: of the stages behind the parts, ``head`` for ``head_ms``; none where they are not known.
        stage_keys: the stages as any other machine can be asked for them.
        accuracy_drop_pp: accuracy of the uncut model, as given, minus this one, on the same images.
        drop_interval_pp: 95 % confidence interval of that paired difference.
        details: whatever else helps to understand the result, JSON-ready.
    """

    name: str
    config: SplitConfig | None
    accuracy: float
    payload_bytes: float
    latency: LatencyParts
    sources: Sources
    link_busy_ms: float = 0.0
    link_p90_ms: float = 0.0
    timings: Mapping[str, Timing] = field(default_factory=dict)
    stage_keys: Mapping[str, StageKey] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    accuracy_drop_pp: float = 0.0
    drop_interval_pp: tuple[float, float] = (0.0, 0.0)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float:
        """Sum of the parts."""
        return self.latency.total_ms

    @property
    def accuracy_error(self) -> float:
        """Standard deviation of the accuracy, as that of a share of images; 0 where their number is not known.

        For a detector's metric, which is no share, it is of the right order.
        """
        images = self.details.get("scored_images", 0)
        return math.sqrt(self.accuracy * (1.0 - self.accuracy) / images) if images else 0.0

    @property
    def right(self) -> np.ndarray | None:
        """Whether each image was answered right, (N,) bools in the images' order; None where it is not known."""
        text, images = self.details.get(RIGHT), self.details.get("scored_images", 0)
        if not text:
            return None
        return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=images).astype(bool)

    @property
    def latency_p90_ms(self) -> float:
        """The parts' 90th percentiles added up: nine images of ten are faster, unless all parts are slow together."""
        timed = sum(timing.p90_ms for timing in self.timings.values())
        rest = sum(ms for name, ms in self.latency.to_dict().items() if name.removesuffix("_ms") not in self.timings)
        return timed + rest - self.latency.link_ms + max(self.link_p90_ms, self.latency.link_ms)

    def source_of(self, part: str) -> Source:
        """Where one part of the latency comes from, ``head_ms`` say."""
        timing = self.timings.get(part.removesuffix("_ms"))
        if timing is not None:
            return timing.source
        found: Source = getattr(self.sources, self.place_of(part))
        return found

    @staticmethod
    def place_of(part: str) -> str:
        """``device``, ``server`` or ``link``: where a part of the latency happens."""
        return "link" if part == "link_ms" else "device" if part in DEVICE_PARTS else "server"

    @property
    def frames_per_s(self) -> float:
        """Throughput when device, link and server work on consecutive images at the same time: the slowest rules."""
        slowest_ms = max(self.latency.device_ms, self.link_busy_ms, self.latency.server_ms)
        return 1000.0 / slowest_ms if slowest_ms > 0 else 0.0

    @property
    def warnings(self) -> list[str]:
        """Timings not to be trusted, one sentence each."""
        return [f"{stage}: {timing.warning}" for stage, timing in self.timings.items() if timing.warning]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": FORMAT,
            "name": self.name,
            "config": self.config.to_dict() if self.config else None,
            "accuracy": self.accuracy,
            "payload_bytes": self.payload_bytes,
            "latency": self.latency.to_dict(),
            "sources": self.sources.to_dict(),
            "link_busy_ms": self.link_busy_ms,
            "link_p90_ms": self.link_p90_ms,
            "stage_keys": {stage: stage_key.to_dict() for stage, stage_key in self.stage_keys.items()},
            "timings": {stage: timing.to_dict() for stage, timing in self.timings.items()},
            "metrics": dict(self.metrics),
            "accuracy_drop_pp": self.accuracy_drop_pp,
            "drop_interval_pp": list(self.drop_interval_pp),
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of :meth:`to_dict`.

        Raises:
            SplitsearchError: another format, or something that is no evaluation.
        """
        if data.get("format") != FORMAT:
            found = data.get("format", "no")
            raise SplitsearchError(
                f"this evaluation has {found} format number where {FORMAT} is known; it was made by another version "
                "of splitsearch, so run the study again under another name or with another --out"
            )
        try:
            return cls._read(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SplitsearchError(f"this evaluation is damaged ({type(error).__name__}: {error})") from None

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> Evaluation:
        low, high = data["drop_interval_pp"]
        return cls(
            name=data["name"],
            config=SplitConfig.from_dict(data["config"]) if data["config"] else None,
            accuracy=data["accuracy"],
            payload_bytes=data["payload_bytes"],
            latency=LatencyParts(**data["latency"]),
            sources=Sources(**{key: Source(value) for key, value in data["sources"].items()}),
            link_busy_ms=data["link_busy_ms"],
            link_p90_ms=data["link_p90_ms"],
            stage_keys={stage: StageKey.from_dict(stage_key) for stage, stage_key in data["stage_keys"].items()},
            timings={stage: Timing.from_dict(timing) for stage, timing in data["timings"].items()},
            metrics=data["metrics"],
            accuracy_drop_pp=data["accuracy_drop_pp"],
            drop_interval_pp=(low, high),
            details=data["details"],
        )
