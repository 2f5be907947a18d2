"""A bundle in use: its server half as a service, its device half as a client, and both against what was predicted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluators.edge import infer as inferring
from evaluators.edge import verify as verifying
from evaluators.edge.camera import Camera, camera_of
from evaluators.edge.client import URL_FORMS, Access, ServerClient, read_token, read_url
from evaluators.edge.halves import DeviceHalf
from search.export import FORMAT
from spaces.errors import SpecError, SplitsearchError

table = verifying.table
_INSTALL = "pip install 'splitsearch[serve]'"


def serve(bundle: Path, **settings: Any) -> None:
    """Serve a bundle's server half until told to stop.

    Args:
        bundle: its folder.
        settings: as :class:`evaluators.edge.serving.server.Settings` has them.

    Raises:
        SplitsearchError: no bundle, a damaged one, or settings that cannot be.
    """
    folder = half_of(bundle, "server")
    try:
        from evaluators.edge.serving import server
    except ImportError as error:
        raise SplitsearchError(f"serving needs {error.name}: {_INSTALL}") from None
    with _as_ours():
        server.serve(folder, server.Settings(**settings))


def infer(
    bundle: Path, images: Sequence[Path], access: Access | None, camera: Camera | None = None, **wishes: Any
) -> int:
    """Answer pictures with a bundle's device half; the exit code.

    Args:
        bundle: its folder.
        images: pictures, and folders of pictures.
        access: the server; None answers on the device alone.
        camera: takes further pictures.
        wishes: as :class:`evaluators.edge.infer.Wishes` has them.

    Raises:
        SplitsearchError: no bundle, a damaged one, nothing to do, or a server of another bundle.
    """
    with _as_ours():
        return inferring.infer(half_of(bundle, "device"), images, access, inferring.Wishes(**wishes), camera)


def camera(command: str | None, frames: int | None) -> Camera | None:
    """The camera behind a command, if there is one. Raises SplitsearchError for frames of none."""
    with _as_ours():
        return camera_of(command, frames)


def verify(bundle: Path, access: Access | None, measured_link: bool, repeats: int, point: str = "1") -> dict[str, Any]:
    """Predicted against measured latency, see :func:`evaluators.edge.verify.verify`.

    Args:
        bundle: its folder.
        access: the server; None starts the bundle's own on loopback, whose link is not the study's and is measured.
        measured_link: whether the link is predicted as it is now.
        repeats: pictures that count.
        point: of a bundle with several, by its number there.

    Raises:
        SplitsearchError: no bundle, a damaged one, no such point, or no server.
    """
    with _as_ours():
        if access is None:
            with started(half_of(bundle, "server")) as url:
                return _verified(bundle, Access(url), True, repeats, point)
        return _verified(bundle, access, measured_link, repeats, point)


def access(
    url: str | None, token_file: Path | None, authority: Path | None, timeout_s: float = 10.0, retries: int = 4
) -> Access | None:
    """How to reach a server; None without a URL.

    Raises:
        SpecError: the URL is none.
        SplitsearchError: the token is none.
    """
    if url is None:
        return None
    try:
        read_url(url)
    except ValueError:
        raise SpecError("--server", url, f"{URL_FORMS} is needed") from None
    with _as_ours():
        return Access(url, read_token(token_file), authority, timeout_s, retries)


def half_of(bundle: Path, side: str) -> Path:
    """A bundle's ``device`` or ``server`` folder. Raises SplitsearchError where there is no bundle of this version."""
    about = bundle / "bundle.json"
    if not about.is_file() or not (bundle / side).is_dir():
        raise SplitsearchError(f"{bundle} is no bundle (no bundle.json or no {side}/); 'splitsearch export' makes one")
    try:
        form = json.loads(about.read_text()).get("format")
    except (ValueError, AttributeError):
        raise SplitsearchError(f"{about} is damaged; export the bundle again") from None
    if form != FORMAT:
        raise SplitsearchError(f"{about}: format {form!r} given, {FORMAT} known here; export the bundle again")
    return bundle / side


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """A server half running on a free port of this machine, as ``python server serve`` runs it; yields its URL.

    Raises:
        SplitsearchError: it does not start.
    """
    command = [sys.executable, str(folder), "serve", "--port", "0"]
    clean = {name: value for name, value in os.environ.items() if name != "SPLITSEARCH_TOKEN"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean) as process:
        reader = threading.Thread(target=_read_on, args=(process,), daemon=True)
        try:
            url = _url(process)
            reader.start()
            yield url
        finally:
            process.terminate()
            process.wait()
            if reader.is_alive():
                reader.join()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        if line.startswith("{"):
            event = json.loads(line)
            if event["event"] == "listening":
                return str(event["url"])
        else:
            said = line
    raise SplitsearchError(f"the bundle's server half did not start: {said.removeprefix('error: ').strip()}")


def _read_on(process: subprocess.Popen[str]) -> None:
    """Take what a server says of each request: a pipe that nobody reads holds some hundred lines, and then it stops."""
    assert process.stderr is not None
    for _ in process.stderr:
        pass


def _verified(bundle: Path, access: Access, measured_link: bool, repeats: int, point: str) -> dict[str, Any]:
    half = DeviceHalf(half_of(bundle, "device"))
    with ServerClient(access, half.sealed.fingerprint) as client:
        link = client.measure_link() if measured_link else None
        return verifying.verify(half, client, link, repeats, point)


@contextmanager
def _as_ours() -> Iterator[None]:
    """What the edge room says of wrong input, as an error of ours."""
    try:
        yield
    except ValueError as error:
        raise SplitsearchError(str(error)) from error
