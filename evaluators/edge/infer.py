"""Pictures to answers through a server, or on the device alone where the bundle has the whole network."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import statistics
import sys
import time
from array import array
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, TextIO

import numpy as np
from PIL import Image

from . import boxes
from . import picture as images
from .camera import Camera
from .client import Access, RefusedError, ServerClient, ServerError
from .errors import PayloadError
from .halves import DeviceHalf
from .letterbox import Letterbox
from .points import Chooser
from .points import read as read_points

_Picture = tuple[str, Callable[[], Image.Image], Optional[Path]]  # its name, how to get it, where to draw it
_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_ALONE_S = 10.0  # after a server was away, how long the device answers alone before it asks again
_AFTER_ERROR_S = 1.0  # before a camera without end takes its next picture


@dataclass(frozen=True)
class Wishes:
    """What to do with the answers.

    Attributes:
        as_json: print one JSON list instead of lines.
        draw: folder for the pictures with a detector's boxes; made if absent.
        least_score: of a detector's boxes.
        max_drop_pp: of the points to choose from, where a bundle has several; None is what was asked for at export.
    """

    as_json: bool = False
    draw: Optional[Path] = None
    least_score: float = boxes.LEAST_SCORE
    max_drop_pp: Optional[float] = None


@dataclass
class Answerer:
    """Answers one picture after the other, by the server where it can.

    Attributes:
        half: of a sealed bundle.
        client: None answers on the device alone.
        say: told when the server is away.
        chooser: of the point, where the bundle has several.
    """

    half: DeviceHalf
    client: Optional[ServerClient]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    chooser: Optional[Chooser] = None
    _alone_until: float = field(default=0.0, init=False)

    def answer(self, pixels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, dict]:
        """The network's answer, and by whom (``server`` or ``device``) with the milliseconds and bytes it took.

        Raises:
            ServerError: the server gave no answer, and the bundle has no whole network for the device.
            PayloadError: a picture that cannot be encoded.
        """
        start = time.perf_counter()
        found, about = self._from_server(pixels, size)
        if found is None:
            found, about = self.half.answer(pixels), {"by": "device"}
        return found, {**about, "ms": round((time.perf_counter() - start) * 1000, 3)}

    def _from_server(self, pixels: np.ndarray, size: tuple[int, int]) -> tuple[Optional[np.ndarray], dict]:
        if self.client is None or self.clock() < self._alone_until:
            return None, {}
        try:
            half, version = self.chooser.choose() if self.chooser else (self.half, "")
            payload = half.encode(pixels, size)
            reply = self.client.infer(self.half.sealed.name, payload, version)
        except RefusedError:
            raise
        except ServerError as error:
            if not self.half.has("whole"):
                raise
            self._alone_until = self.clock() + _ALONE_S
            self.say(f"{error}; answering on the device alone, with the whole network, for {_ALONE_S:g} s")
            return None, {}
        about = {"by": "server", "tries": reply.tries, "payload_bytes": len(payload)}
        return reply.answer, {**about, "point": version} if self.chooser else about


def infer(
    folder: Path,
    sources: Sequence[Path],
    access: Optional[Access],
    wishes: Wishes,
    camera: Optional[Camera] = None,
) -> int:
    """Answer pictures and folders of pictures; print the answers, and progress on standard error.

    Args:
        folder: the device half.
        sources: pictures, and folders whose pictures are taken in the order of their names.
        access: the server; None answers on the device alone.
        wishes: what to do with the answers.
        camera: takes further pictures, after those of the sources.

    Returns:
        The exit code: 1 where a picture got no answer.

    Raises:
        ValueError: nothing to do, a damaged bundle, or a server of another bundle.
    """
    half, paths = DeviceHalf(folder), pictures_of(sources)
    if not paths and camera is None:
        raise ValueError("no pictures given: name some, or --camera COMMAND")
    if camera is not None:
        camera.check()
    if access is None and not half.has("whole"):
        raise ValueError(f"{folder} has no whole.onnx, so --server URL is needed; or export again with --with-whole")
    targets = _drawings(half, paths, wishes)
    pictures = itertools.chain(_files(paths, targets), _frames(camera, wishes) if camera else ())
    frames = 0 if camera is None else camera.frames
    endless = frames is None
    progress = _Progress(None if frames is None else len(paths) + frames, sys.stderr)
    tally = _Tally(keeps=wishes.as_json)  # else not: a camera may go on for months
    with ServerClient(access, half.sealed.fingerprint) if access else nullcontext() as client:
        points = read_points(folder, wishes.max_drop_pp) if client else []
        chooser = Chooser(half, client, points, progress.say) if client and points else None
        answerer = Answerer(half, client, progress.say, chooser=chooser)
        with contextlib.suppress(KeyboardInterrupt) if endless else nullcontext():  # that is how such a camera ends
            for row in _rows(answerer, pictures, wishes):
                tally.add(row)
                if not wishes.as_json:
                    progress.clear()
                    print(_line(row), flush=True)
                progress.show(tally.count)
                if endless and "error" in row:
                    time.sleep(_AFTER_ERROR_S)
    progress.clear()
    if wishes.as_json:
        print(json.dumps(tally.rows))
    progress.say(str(tally))
    return int(tally.errors > 0)


def pictures_of(sources: Sequence[Path]) -> list[Path]:
    """Pictures as they are given, and of a folder those in it, by name. Raises ValueError for a folder without any."""
    found: list[Path] = []
    for source in sources:
        if not source.is_dir():
            found.append(source)
            continue
        files = (path for path in source.iterdir() if not path.name.startswith("."))  # as macOS leaves ._photo.jpg
        inside = sorted(path for path in files if path.suffix.lower() in _SUFFIXES)
        if not inside:
            raise ValueError(f"{source}: no pictures in this folder; known endings: {', '.join(sorted(_SUFFIXES))}")
        found += inside
    return found


def unique_targets(sources: Sequence[Path], folder: Path, ending: str, kept: Sequence[Path] = ()) -> list[Path]:
    """The file to write for each source, called like it.

    Raises:
        ValueError: one would overwrite another, a source, or one of ``kept``.
    """
    targets = [folder / f"{source.stem}{ending}" for source in sources]
    given = {path.resolve() for path in (*sources, *kept)}
    taken: dict[Path, Path] = {}
    for source, target in zip(sources, targets):
        other = taken.setdefault(target, source)
        if other.resolve() != source.resolve():
            raise ValueError(
                f"{other} and {source} would both become {target}; nothing was written. "
                f"Rename one of them, or give each its own output folder"
            )
        if target.resolve() in given:
            raise ValueError(f"{target} would be overwritten; nothing was written. Give another output folder")
    return targets


def _drawings(half: DeviceHalf, paths: list[Path], wishes: Wishes) -> list[Optional[Path]]:
    if wishes.draw is None:
        return [None] * len(paths)
    if not half.finds_boxes:
        raise ValueError("--draw is for detectors; this network finds no boxes")
    targets = unique_targets(paths, wishes.draw, ".png")
    wishes.draw.mkdir(parents=True, exist_ok=True)
    return list(targets)


def _files(paths: list[Path], targets: list[Optional[Path]]) -> Iterator[_Picture]:
    for path, target in zip(paths, targets):
        yield str(path), functools.partial(images.open_upright, path), target


def _frames(camera: Camera, wishes: Wishes) -> Iterator[_Picture]:
    for number in itertools.count(1) if camera.frames is None else range(1, camera.frames + 1):
        yield f"frame {number}", camera.shot, wishes.draw and wishes.draw / f"frame-{number}.png"


def _rows(answerer: Answerer, pictures: Iterator[_Picture], wishes: Wishes) -> Iterator[dict]:
    """What is printed of each picture, in order; one that cannot be answered has an ``error``."""
    for name, take, target in pictures:
        try:
            image = take()
            answer, about = answerer.answer(images.fit_picture(image, answerer.half.picture), image.size)
        except RefusedError:
            raise  # it would refuse the next one too
        except (images.PictureError, PayloadError, ServerError) as error:
            yield {"picture": name, "error": str(error)}
            continue
        yield {"picture": name, **_found(answerer.half, answer, image, target, wishes), **about}


def _found(half: DeviceHalf, answer: np.ndarray, image: Image.Image, target: Optional[Path], wishes: Wishes) -> dict:
    """The class and all scores, or the boxes, drawn where that is wished."""
    names = half.classes
    if not half.finds_boxes:
        best = int(np.argmax(answer))
        name = names[best] if best < len(names) else str(best)
        return {"class": best, "name": name, "score": float(answer[best]), "scores": answer.tolist()}
    found = boxes.boxes_of(answer, Letterbox(image.width, image.height, half.picture.size), wishes.least_score)
    if target is not None:
        boxes.drawn(image, found, names).save(target)
    return {"boxes": [box.to_dict(names) for box in found]}


def _line(row: dict) -> str:
    if "error" in row:
        return f"{row['picture']}  no answer: {row['error']}"
    took = f"{row['ms']:.1f} ms by the {row['by']}"
    took += f"  {row['payload_bytes']} bytes" if "payload_bytes" in row else ""
    if "boxes" not in row:
        return f"{row['picture']}  {row['name']}  score {row['score']:.3f}  {took}"
    lines = [f"{row['picture']}  {len(row['boxes'])} found  {took}"]
    for box in row["boxes"]:
        corners = "  ".join(f"{box[key]:7.1f}" for key in ("left", "top", "right", "bottom"))
        lines.append(f"  {box['name']:<16}{box['score']:6.3f}  {corners}")
    return "\n".join(lines)


class _Tally:
    """What is said at the end of all pictures; ``rows``, what is known of each, only where it ``keeps`` them."""

    def __init__(self, keeps: bool) -> None:
        self.rows: list[dict] = []
        self.by, self.errors, self._ms, self._keeps = {"server": 0, "device": 0}, 0, array("d"), keeps

    @property
    def count(self) -> int:
        """Pictures so far."""
        return len(self._ms) + self.errors

    def add(self, row: dict) -> None:
        """Count one picture."""
        if self._keeps:
            self.rows.append(row)
        if "error" in row:
            self.errors += 1
        else:
            self.by[row["by"]] += 1
            self._ms.append(row["ms"])

    def __str__(self) -> str:
        by = ", ".join(f"{number} by the {side}" for side, number in self.by.items())
        took = f"; {statistics.median(self._ms):.1f} ms in the median" if self._ms else ""
        count = "1 picture" if self.count == 1 else f"{self.count} pictures"
        return f"{count}: {by}, {self.errors} without an answer{took}"


class _Progress:
    """A line on a terminal that says how far it is; only sentences where there is no terminal."""

    def __init__(self, total: Optional[int], stream: TextIO) -> None:
        self._total, self._stream, self._terminal = total, stream, stream.isatty()

    def show(self, done: int) -> None:
        if self._terminal and (self._total is None or done < self._total):
            self._stream.write(f"\r{done}" + (f" of {self._total}" if self._total else ""))
            self._stream.flush()

    def clear(self) -> None:
        if self._terminal:
            self._stream.write("\r\033[K")

    def say(self, text: str) -> None:
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()
