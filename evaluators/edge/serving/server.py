"""Runs a server half as a service: who may reach it, what it bears, how it stops."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .. import wire as wires
from ..client import TOKEN_VARIABLE, read_token
from ..halves import ServerHalf
from ..points import FIRST, folder_of, further
from .app import Limits, Service
from .batching import Decision, as_told, decide

_KEEP_ALIVE_S = 75  # a camera that sends a picture a minute keeps its connection
_GRACE_S = 20  # for requests in work when the server is told to stop
_JSON_BYTES = 6  # of one payload byte in a JSON list, at most: "255, "
_ROOM_BYTES = 65_536  # for everything in a body that is not the payload


@dataclass(frozen=True)
class Settings:
    """Where and to whom a server half is offered.

    Attributes:
        host, port: to listen on; port 0 is any free one.
        token_file: holds the bearer token that clients must show; else the variable SPLITSEARCH_TOKEN, else none.
        certificate, key: PEM files for TLS, both or neither.
        insecure: listen beyond loopback even without token or TLS.
        deadline_s: for headers, for a body, for an answer.
        body_bytes: of one request; None is enough for any payload of this bundle as JSON.
        batch: pictures through the tail at once; None measures what pays.
    """

    host: str = "127.0.0.1"
    port: int = 8500
    token_file: Optional[Path] = None
    certificate: Optional[Path] = None
    key: Optional[Path] = None
    insecure: bool = False
    deadline_s: float = 10.0
    body_bytes: Optional[int] = None
    batch: Optional[int] = None


def serve(folder: Path, settings: Settings) -> None:
    """Serve until told to stop by SIGTERM or SIGINT; requests in work are answered first.

    Raises:
        ValueError: settings that cannot be, or a folder that is no sealed half of a bundle.
        OSError: the address cannot be had, or a file cannot be read.
    """
    token = read_token(settings.token_file)
    check_safe(settings, token)
    _check_certificate(settings)
    halves = open_halves(folder)
    seal = halves[FIRST].sealed
    with _listener(settings) as listener:
        batching = {
            version: as_told(half, settings.batch) if settings.batch else decide(half)
            for version, half in halves.items()
        }
        _log_as_json()
        for version, decision in batching.items():
            log("batching", version=version, **asdict(decision))
        service = Service(halves, limits_for(halves, settings, batching), batching, token, log)
        scheme, port = "https" if settings.certificate else "http", listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        server = uvicorn.Server(_config(service, settings))
        log("listening", url=f"{scheme}://{host}:{port}", model=seal.name, fingerprint=seal.fingerprint,
            token=token is not None)  # fmt: skip
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn stops in good order, then raises them again
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
    log("stopped")


def check_safe(settings: Settings, token: Optional[str]) -> None:
    """Raise ValueError for a server that strangers could reach or listen to, unless ``insecure`` was said."""
    if (settings.certificate is None) != (settings.key is None):
        raise ValueError("TLS needs both a certificate and its key: --cert FILE --key FILE")
    if settings.insecure or is_loopback(settings.host):
        return
    lacking = [] if token else [f"a token (--token-file FILE, or {TOKEN_VARIABLE})"]
    lacking += [] if settings.certificate else ["TLS (--cert FILE --key FILE)"]
    if lacking:
        raise ValueError(
            f"{settings.host} is reachable from elsewhere; give {' and '.join(lacking)}, or say --insecure"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_halves(folder: Path) -> dict[str, ServerHalf]:
    """A server half and the further points in it, by version. Raises ValueError for what is no sealed half."""
    first = ServerHalf(folder)
    _ = first.sealed  # before anything of it runs
    halves = {FIRST: first, **{version: ServerHalf(folder_of(folder, version)) for version in further(folder)}}
    for half in halves.values():  # now, and not with the first request
        half.open("decoder")
        half.open("tail")
    return halves


def limits_for(halves: dict[str, ServerHalf], settings: Settings, batching: dict[str, Decision]) -> Limits:
    """What a server of these halves bears: threads for the machine's cores, bodies for their payloads."""
    half, most = halves[FIRST], max(each.wire.packed_bytes for each in halves.values() if each.wire is not None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lanes = max(1, cores // half.manifest["threads"]) if half.manifest["threads"] else 1
    body_bytes = settings.body_bytes or _ROOM_BYTES + _JSON_BYTES * (wires.HEADER_BYTES + most)
    workers = max(2, lanes + 1, 2 * max(each.size for each in batching.values()) * lanes)
    return Limits(body_bytes=body_bytes, deadline_s=settings.deadline_s, workers=workers, lanes=lanes)


class _DeadlineProtocol(H11Protocol):
    """uvicorn's own, but headers that do not arrive in time end the connection, and nothing waits to be sent."""

    headers_s = 10.0
    _waiting: Optional[asyncio.TimerHandle] = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio leaves it out for sockets that were made elsewhere, and small answers then wait 40 ms for the ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._wait()
        super().data_received(data)
        if self._in_request:
            self._stop_waiting()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._waiting is None and not self._in_request:
            self._waiting = self.loop.call_later(self.headers_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_late(self) -> None:
        self._waiting = None
        if not self._in_request and not self.transport.is_closing():
            log("slow_headers", client=self.client[0] if self.client else "")
            self.transport.close()


def _config(service: Service, settings: Settings) -> uvicorn.Config:
    protocol = type("Protocol", (_DeadlineProtocol,), {"headers_s": settings.deadline_s})
    return uvicorn.Config(
        service.app(),
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=service.limits.connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )


def _check_certificate(settings: Settings) -> None:
    if settings.certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.key)
    except OSError as error:  # which names no file
        raise ValueError(f"{settings.certificate}, {settings.key}: no certificate with its key ({error})") from None


def _listener(settings: Settings) -> socket.socket:
    if not 0 <= settings.port <= 65535:
        raise ValueError(f"port: {settings.port} given, 0 to 65535 are allowed")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        told = f"{settings.host}:{settings.port} is in use already; give another --port, 0 for any free one"
        raise ValueError(told) from None


# -- logs: one JSON object a line, on standard error -------------------------------------------------------------------


def log(event: str, **about: Any) -> None:
    """One event with what belongs to it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    sys.stderr.write(json.dumps({"time": now + "Z", "event": event, **about}) + "\n")
    sys.stderr.flush()


class _AsEvents(logging.Handler):
    """What uvicorn and others log, in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        log(
            record.levelname.lower(),
            message=record.getMessage(),
            logger=record.name,
            **({"trace": trace} if trace else {}),
        )


def _log_as_json() -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [_AsEvents()], False
    logger.setLevel(logging.WARNING)
