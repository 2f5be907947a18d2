"""What an evaluation returns: accuracy, payload, and latency as named parts with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from spaces.config import SplitConfig


class Source(StrEnum):
    """Where a number comes from. A sum is only as good as its worst part, so the three are never merged."""

    MEASURED = "measured"
    RECORDED = "recorded"
    MODELLED = "modelled"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the latency of each of the three places comes from."""

    device: Source
    server: Source
    link: Source

    def to_dict(self) -> dict[str, str]:
        """As in ``front --json``."""
        return {key: str(value) for key, value in asdict(self).items()}


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
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, float]:
        """As in ``front --json``."""
        return asdict(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The parts in order."""
        return tuple(part.name for part in fields(cls))


DEVICE_PARTS = ("head_ms", "encode_ms", "pack_ms", "compress_ms")
SERVER_PARTS = ("decompress_ms", "unpack_ms", "decode_ms", "tail_ms")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One candidate or baseline, scored.

    Attributes:
        name: for people.
        config: None for a baseline.
        accuracy: in 0..1, through the real byte path, on the search-validation split.
        payload_bytes: mean length of the real payloads, header included.
        latency: the parts; their sum is the latency objective.
        sources: where the latency parts come from.
        accuracy_drop_pp: accuracy of the uncut model, as given, minus this one, on the same pictures.
        drop_interval_pp: 95 % confidence interval of that paired difference.
        details: whatever else helps to understand the result, JSON-ready.
    """

    name: str
    config: SplitConfig | None
    accuracy: float
    payload_bytes: float
    latency: LatencyParts
    sources: Sources
    accuracy_drop_pp: float = 0.0
    drop_interval_pp: tuple[float, float] = (0.0, 0.0)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float:
        """Sum of the parts."""
        return self.latency.total_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "config": self.config.to_dict() if self.config else None,
            "accuracy": self.accuracy,
            "payload_bytes": self.payload_bytes,
            "latency": self.latency.to_dict(),
            "sources": self.sources.to_dict(),
            "accuracy_drop_pp": self.accuracy_drop_pp,
            "drop_interval_pp": list(self.drop_interval_pp),
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of :meth:`to_dict`."""
        low, high = data["drop_interval_pp"]
        return cls(
            name=data["name"],
            config=SplitConfig.from_dict(data["config"]) if data["config"] else None,
            accuracy=data["accuracy"],
            payload_bytes=data["payload_bytes"],
            latency=LatencyParts(**data["latency"]),
            sources=Sources(**{key: Source(value) for key, value in data["sources"].items()}),
            accuracy_drop_pp=data["accuracy_drop_pp"],
            drop_interval_pp=(low, high),
            details=data["details"],
        )
