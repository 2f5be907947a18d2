"""Sends payloads to a server by the Open Inference Protocol, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import ssl
import statistics
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from . import protocol

TOKEN_VARIABLE = "SPLITSEARCH_TOKEN"
OUTPUT = "answer"
URL_FORMS = "http://HOST:PORT or https://HOST:PORT"
_LATER = {408, 429, 500, 502, 503, 504}  # what may be better another time
_MOST_ANSWER_BYTES = 64_000_000
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.1, 5.0
_PINGS, _WARMUP_PINGS, _TRANSFERS = 15, 3, 5
_TRANSFER_BYTES = (1_000, 4_000, 16_000, 60_000)  # every server of ours takes the last
_LONG_ENOUGH_MS = 50.0  # beyond the round trip, to tell the rate by


class ServerError(OSError):
    """A server that gave no answer; the message says what happened last."""


class RefusedError(ServerError):
    """A server that will not give an answer, however often it is asked; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Access:
    """How to reach a server.

    Attributes:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        token: bearer token, None for none.
        authority: PEM file of the certificate authority, or of the server's own certificate; None trusts the system's.
        timeout_s: for the connection and for any next byte of an answer.
        retries: further tries where a server is away, busy or failing.
    """

    url: str
    token: Optional[str] = None
    authority: Optional[Path] = None
    timeout_s: float = 10.0
    retries: int = 4


@dataclass(frozen=True)
class Reply:
    """An answer: the output asked for, what the server says of it, and how often it had to be asked."""

    answer: np.ndarray
    said: dict
    tries: int


@dataclass(frozen=True)
class LinkNumbers:
    """What a link takes, HTTP's own bytes and work included: a short request and its answer, and more bytes."""

    rate_mb_per_s: float
    rtt_ms: float


class ServerClient:
    """One connection to one server, opened when needed and anew when it broke; closed at the end of a ``with``.

    Not for several threads at once.

    Args:
        access: how to reach it.
        fingerprint: of the bundle that the payloads are of; a server of another bundle refuses them.
        pause: waits so many seconds.
    """

    def __init__(self, access: Access, fingerprint: str = "", pause: Callable[[float], None] = time.sleep) -> None:
        self._access, self._fingerprint, self._pause = access, fingerprint, pause
        self._connect = _connector(access)
        self._prefix = urllib.parse.urlsplit(access.url).path.rstrip("/")
        self._connection: Optional[http.client.HTTPConnection] = None

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def infer(self, model: str, payload: bytes, version: str = "") -> Reply:
        """The server's answer to one payload, by a version of the model where one is named.

        Asking again is safe, as an answer depends on the payload alone: however often the server worked, one answer
        is returned, or none and an error.

        Raises:
            RefusedError: another bundle's server, a wrong token, a payload that it does not take.
            ServerError: no answer after all tries.
        """
        said = {"fingerprint": self._fingerprint} if self._fingerprint else {}
        body, json_length = protocol.write_request(payload, said, OUTPUT)
        headers = {protocol.LENGTH_HEADER: str(json_length), "Content-Type": "application/octet-stream"}
        named = f"/v2/models/{urllib.parse.quote(model, safe='')}"
        path = f"{named}/versions/{urllib.parse.quote(version, safe='')}/infer" if version else f"{named}/infer"
        data, answered, tries = self._ask("POST", path, body, headers)
        try:
            parameters, tensors = protocol.read_response(data, answered)
            return Reply(tensors[OUTPUT], parameters, tries)
        except (protocol.ProtocolError, KeyError) as error:
            raise ServerError(f"{self._access.url}: its answer is none of the protocol's ({error})") from None

    def measure_link(self) -> LinkNumbers:
        """Time short and longer requests that a server of ours takes and throws away. Raises as :meth:`infer` does."""
        short = [self._transfer_ms(1) for _ in range(_WARMUP_PINGS + _PINGS)][_WARMUP_PINGS:]
        rtt_ms, size = statistics.median(short), 0
        for size in _TRANSFER_BYTES:  # what takes a slow link long enough takes it long
            if self._transfer_ms(size) > rtt_ms + _LONG_ENOUGH_MS:
                break
        long = [self._transfer_ms(size) for _ in range(_TRANSFERS)]
        return LinkNumbers(size / max(statistics.median(long) - rtt_ms, 0.01) / 1000, rtt_ms)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _transfer_ms(self, size: int) -> float:
        start = time.perf_counter()
        self._ask("POST", "/link", bytes(size), {})
        return (time.perf_counter() - start) * 1000

    def _ask(self, method: str, path: str, body: bytes, headers: dict) -> tuple[bytes, Optional[str], int]:
        """Ask until there is an answer: its body, the length of its JSON, and the number of tries."""
        tries = 0
        while True:
            tries += 1
            kept, broke = self._connection is not None, False
            try:
                status, data, json_length = self._ask_once(method, path, body, headers)
            except ssl.SSLCertVerificationError as error:
                raise RefusedError(0, f"{self._access.url}: {error}; --ca FILE names whom to trust") from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                broke, told = not isinstance(error, socket.timeout), f"{self._access.url}: {_named(error)}"
            else:
                if status == 200:
                    return data, json_length, tries
                told = f"{self._access.url}: {status}: {_said(data)}"
                if status not in _LATER:
                    raise RefusedError(status, told)
            if kept and broke and tries == 1:
                continue  # a kept connection that broke says little of the server
            if tries > self._access.retries:
                raise ServerError(f"{told} (tried {tries} times)")
            self._pause(_pause_s(tries))

    def _ask_once(self, method: str, path: str, body: bytes, headers: dict) -> tuple[int, bytes, Optional[str]]:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        token = {"Authorization": f"Bearer {self._access.token}"} if self._access.token else {}
        connection.request(method, self._prefix + path, body or None, {**headers, **token})
        response = connection.getresponse()
        data = response.read(_MOST_ANSWER_BYTES)
        if response.length:  # http.client only notices where no size is given to read
            raise http.client.IncompleteRead(data, response.length)
        if response.will_close or not response.isclosed():
            self.close()
        return response.status, data, response.getheader(protocol.LENGTH_HEADER)


def read_token(file: Optional[Path]) -> Optional[str]:
    """The bearer token from a file, else from the variable SPLITSEARCH_TOKEN; None where there is none.

    Raises:
        ValueError: it is empty, or no header could carry it.
    """
    # Some editors put a mark before the first letter; what is no UTF-8 at all is refused below.
    said = file.read_bytes().decode("utf-8-sig", "replace") if file is not None else os.environ.get(TOKEN_VARIABLE)
    if said is None:
        return None
    token, place = said.strip(), str(file or TOKEN_VARIABLE)
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{place}: one word of printable ASCII is needed as the token")
    return token


def read_url(url: str) -> tuple[str, str, Optional[int]]:
    """Scheme, host and port of a server. Raises ValueError for what is none."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname, parts.port  # urllib raises ValueError for a port that is none
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r} given; {URL_FORMS} is needed")
    return parts.scheme, host, port


def _connector(access: Access) -> Callable[[], http.client.HTTPConnection]:
    scheme, host, port = read_url(access.url)
    if scheme == "http":
        return lambda: http.client.HTTPConnection(host, port, timeout=access.timeout_s)
    try:
        context = ssl.create_default_context(cafile=str(access.authority) if access.authority else None)
    except OSError as error:  # which does not name the file
        raise ValueError(f"{access.authority}: no certificate to trust ({error})") from None
    return lambda: http.client.HTTPSConnection(host, port, timeout=access.timeout_s, context=context)


def _pause_s(tries: int) -> float:
    """Twice as long after each try, and not all clients at once."""
    return float(min(_FIRST_PAUSE_S * 2 ** (tries - 1), _MOST_PAUSE_S) * random.uniform(0.5, 1.0))


def _named(error: Exception) -> str:
    """What went wrong, and what a user may look at."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is the server running, and at this port?"
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror})"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS; http:// in place of https://?"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return data[:200].decode("utf-8", "replace").strip() or "no reason given"
