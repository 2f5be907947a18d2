"""Several points in one bundle, and which of them is fastest over a link, within the accuracy asked for.

The folders ``device`` and ``server`` are the first point; the others lie in ``points/2``, ``points/3`` and so on
in both, without code. To a server they are versions of one model. ``points.json`` in the device half says what each
takes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

from .client import LinkNumbers, ServerClient
from .halves import DeviceHalf

FILE = "points.json"
FORMAT = 1
FIRST = "1"
_AGAIN_S = 60.0  # between two looks at the link
_BETTER = 0.95  # of the latency now, for another point to be worth changing to


@dataclass(frozen=True)
class PointInBundle:
    """One point, by what a choice needs.

    Attributes:
        version: its number in the bundle; ``1`` is the one that the bundle was made for.
        trial: of the study.
        name: for people.
        drop_pp: accuracy drop against the uncut model, in percentage points.
        payload_bytes: in the mean.
        fixed_ms: latency without the link.
    """

    version: str
    trial: int
    name: str
    drop_pp: float
    payload_bytes: float
    fixed_ms: float

    def latency_ms(self, link: LinkNumbers) -> float:
        """What it takes over a link."""
        return self.fixed_ms + link.rtt_ms + self.payload_bytes / link.rate_mb_per_s / 1000


def fastest(points: Sequence[PointInBundle], link: LinkNumbers) -> PointInBundle:
    """The fastest over a link; of equals the first."""
    return min(points, key=lambda point: point.latency_ms(link))


def by_rate(points: Sequence[PointInBundle]) -> list[dict]:
    """Which point is fastest from which rate on: rows of ``from_mb_per_s`` and ``version``, slowest link first."""
    crossings = {0.0}
    for one in points:
        for other in points:
            bytes_more, ms_less = one.payload_bytes - other.payload_bytes, other.fixed_ms - one.fixed_ms
            if bytes_more > 0 and ms_less > 0:
                crossings.add(bytes_more / ms_less / 1000)
    rows: list[dict] = []
    starts = sorted(crossings)
    for start, end in zip(starts, [*starts[1:], 2 * starts[-1] or 1.0]):
        winner = fastest(points, LinkNumbers(rate_mb_per_s=(start + end) / 2, rtt_ms=0.0))
        if not rows or rows[-1]["version"] != winner.version:
            rows.append({"from_mb_per_s": start, "version": winner.version})
    return rows


def folder_of(half: Path, version: str) -> Path:
    """Where a point lies in a half."""
    return half if version == FIRST else half / "points" / version


def further(half: Path) -> list[str]:
    """The versions in a half besides the first; other things may lie beside them, as desktops leave some."""
    return sorted((path.name for path in (half / "points").glob("*") if path.name.isdecimal()), key=int)


def write(folder: Path, points: Sequence[PointInBundle], max_drop_pp: Optional[float]) -> None:
    """Write ``points.json`` into a device half; ``max_drop_pp`` is the accuracy asked for at export."""
    about = {"format": FORMAT, "max_drop_pp": max_drop_pp, "points": [asdict(point) for point in points]}
    (folder / FILE).write_text(json.dumps(about, indent=1) + "\n")


def read(folder: Path, max_drop_pp: Optional[float] = None) -> list[PointInBundle]:
    """The points of a device half within an accuracy drop; none where it has only one point.

    Args:
        folder: the device half.
        max_drop_pp: highest drop in percentage points; None is what was asked for at export.

    Raises:
        ValueError: another format, or no point within that drop.
    """
    path = folder / FILE
    if not path.exists():
        return []
    about = json.loads(path.read_text())
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: format {about.get('format')!r} given, {FORMAT} known here; export the bundle again")
    points = [PointInBundle(**row) for row in about["points"]]
    limit = about["max_drop_pp"] if max_drop_pp is None else max_drop_pp
    kept = [point for point in points if limit is None or point.drop_pp <= limit]
    if not kept:
        least = min(point.drop_pp for point in points)
        raise ValueError(f"no point of this bundle drops at most {limit:g} points; the most accurate drops {least:.2f}")
    return kept


def open_point(half: DeviceHalf, version: str) -> DeviceHalf:
    """A point of a device half. Raises ValueError where it has no such one."""
    if version == FIRST:
        return half
    known = further(half.folder)
    if version not in known:
        raise ValueError(f"point '{version}' given; this bundle has {', '.join([FIRST, *known])}")
    return DeviceHalf(folder_of(half.folder, version))


class Chooser:
    """The point for the link as it is now; looks at the link once a minute, and changes where it gains enough.

    Args:
        half: the device half, sealed.
        client: of its server.
        points: to choose from.
        say: told of every change.
        clock: seconds.
    """

    def __init__(
        self,
        half: DeviceHalf,
        client: ServerClient,
        points: Sequence[PointInBundle],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._half, self._client, self._points, self._say, self._clock = half, client, points, say, clock
        self._halves: dict[str, DeviceHalf] = {FIRST: half}
        self._now: Optional[PointInBundle] = None
        self._look_at = 0.0

    def choose(self) -> tuple[DeviceHalf, str]:
        """The half to use now, and its version. Raises as :meth:`ServerClient.measure_link` does."""
        if self._now is None or self._clock() >= self._look_at:
            self._look()
            self._look_at = self._clock() + _AGAIN_S
        assert self._now is not None
        version = self._now.version
        if version not in self._halves:
            self._halves[version] = open_point(self._half, version)
        return self._halves[version], version

    def _look(self) -> None:
        link = self._client.measure_link()
        best = fastest(self._points, link)
        if self._now is not None and best.latency_ms(link) > _BETTER * self._now.latency_ms(link):
            return
        if best != self._now:
            self._say(
                f"the link has {link.rate_mb_per_s:.4g} MB/s and {link.rtt_ms:.3g} ms round trip: "
                f"trial {best.trial} ({best.name}) is the fastest, {best.latency_ms(link):.1f} ms"
            )
        self._now = best
