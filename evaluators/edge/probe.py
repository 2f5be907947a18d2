"""Measures the link between two machines by a short transfer, the way payloads go: from device to server.

One TCP connection without Nagle's delay, two kinds of requests, all numbers big-endian:

    ping       magic, 1, any float64                                  the server sends the same 13 bytes back
    transfer   magic, 2, float64 seconds to count, bytes without end  the server answers uint64 bytes, float64 seconds

The server keeps the time of a transfer, so what lies in the sender's buffers counts for nothing, and it starts late, so
slow start and whatever a shaper lets through at first count for nothing either. Pings come before the transfer: after
it they would stand in its queue. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import select
import socket
import statistics
import struct
import sys
import time
from typing import Optional

FORMAT = 1
SECONDS = 1.5
TIMEOUT_S = 15.0
PINGS = 30
WARMUP_PINGS = 5
WARMUP_S = 0.5  # of a transfer, not counted
MOST_SECONDS = 60.0

_MAGIC = b"SSP1"
_REQUEST = struct.Struct("!4sBd")
_COUNTED = struct.Struct("!Qd")
_PING, _TRANSFER = 1, 2
_CHUNK_BYTES = 1 << 16
_SETTLE_S = 1.0  # how long the server goes on reading what was still on its way


class ProbeError(ValueError):
    """A link that could not be measured; the message says why."""


def listen(host: str = "", port: int = 0) -> socket.socket:
    """Wait at an address, at every one of this machine where none is given, IPv6 too; port 0 is any free one."""
    if not host and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # it may be switched off
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, port))


def serve(listener: socket.socket, timeout_s: float = TIMEOUT_S) -> None:
    """Answer one probe: wait for it, answer its pings, count its transfer.

    Args:
        listener: bound and listening; stays open.
        timeout_s: how long to wait for the probe, and for any next byte of it.

    Raises:
        ProbeError: nobody came, or what came was no probe or went silent.
    """
    listener.settimeout(timeout_s)
    try:
        connection, _ = listener.accept()
    except OSError as error:  # socket.timeout among them
        raise ProbeError(f"no probe came within {timeout_s:g} s: {error}") from None
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout_s)
        try:
            _answer(connection)
        except OSError as error:
            raise ProbeError(f"the probe went silent: {error}") from None


def probe(host: str, port: int, seconds: float = SECONDS, timeout_s: float = TIMEOUT_S) -> dict:
    """Measure the link to a machine where :func:`serve` waits.

    Args:
        host: name or address.
        port: its port.
        seconds: how long the transfer is counted, at most a minute; half a second of it comes before that.
        timeout_s: how long to wait for the connection, for any one ping, and for the transfer beyond its seconds.

    Returns:
        JSON-ready: ``format``; ``rate_mb_per_s``: what arrived at the server, in 10^6 bytes a second; ``rtt_ms``:
        median of the pings; ``jitter_ms``: their standard deviation; ``bytes``: counted in the transfer.

    Raises:
        ProbeError: no connection, no answer in time, or an answer that is none.
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise ProbeError(f"{seconds:g} seconds given; above 0 and up to {MOST_SECONDS:g} are allowed")
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        raise ProbeError(f"no connection to {host}:{port}: {error}; does a server wait there?") from None
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # On closing, drop what was not sent: it would only fill the link for whoever uses it next.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            times_ms = [_ping(connection, timeout_s) for _ in range(WARMUP_PINGS + PINGS)][WARMUP_PINGS:]
            count, counted_s = _transfer(connection, seconds, timeout_s)
        except OSError as error:
            raise ProbeError(f"the link to {host}:{port} went silent: {error}") from None
    if count == 0 or not (math.isfinite(counted_s) and counted_s > 0):
        raise ProbeError(f"nothing arrived at {host}:{port} in {seconds:g} s; give a slow link more seconds")
    return {
        "format": FORMAT,
        "rate_mb_per_s": count / counted_s / 1e6,
        "rtt_ms": statistics.median(times_ms),
        "jitter_ms": statistics.stdev(times_ms),
        "bytes": count,
    }


def main(arguments: Optional[list[str]] = None) -> int:
    """``serve [--host H] [--port P]`` on the server, then ``measure HOST:PORT`` on the device, which prints JSON."""
    parser = argparse.ArgumentParser(prog="probe", description="Measure the link from this machine to another.")
    commands = parser.add_subparsers(dest="command", required=True)
    waiting = commands.add_parser("serve", help="wait for one measurement")
    waiting.add_argument("--host", default="", help="address to listen on; every one when not given")
    waiting.add_argument("--port", type=int, default=0, help="any free one when not given")
    measuring = commands.add_parser("measure", help="measure, print JSON")
    measuring.add_argument("server", metavar="HOST:PORT")
    measuring.add_argument("--seconds", type=float, default=SECONDS, help="how long the transfer is counted")
    for command in (waiting, measuring):
        command.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds to wait for the other side")
    options = parser.parse_args(arguments)
    try:
        if options.command == "serve":
            with listen(options.host, options.port) as listener:
                print("listening on port {}".format(listener.getsockname()[1]), flush=True)
                serve(listener, options.timeout)
        else:
            host, _, port = options.server.rpartition(":")
            if not host or not port.isdigit():
                raise ProbeError(f"{options.server!r} given; HOST:PORT is needed")
            print(json.dumps(probe(host, int(port), options.seconds, options.timeout)))
    except (OSError, ProbeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _answer(connection: socket.socket) -> None:
    while True:
        request = _receive(connection, _REQUEST.size)
        magic, kind, value = _REQUEST.unpack(request)
        if magic != _MAGIC or kind not in (_PING, _TRANSFER):
            raise ProbeError("something else than a probe came")
        if kind == _TRANSFER:
            break
        connection.sendall(request)
    if not 0 < value <= MOST_SECONDS:
        raise ProbeError(f"a transfer of {value:g} s was asked for; up to {MOST_SECONDS:g} are allowed")
    connection.sendall(_COUNTED.pack(*_count(connection, value)))
    # Closing with bytes unread would reset the connection, and the answer with it.
    end = time.monotonic() + _SETTLE_S
    try:
        connection.shutdown(socket.SHUT_WR)
        while time.monotonic() < end and connection.recv(_CHUNK_BYTES):
            pass
    except OSError:
        pass  # the other side has its answer and dropped the rest


def _count(connection: socket.socket, seconds: float) -> tuple[int, float]:
    """Bytes and seconds between the first arrival after the warm-up and the last one."""
    buffer = bytearray(_CHUNK_BYTES)
    connection.recv_into(buffer)
    warm = time.perf_counter() + WARMUP_S
    while time.perf_counter() < warm:
        _some(connection, buffer)
    start = now = time.perf_counter()
    count = 0
    while now < start + seconds:
        count += _some(connection, buffer)
        now = time.perf_counter()
    return count, now - start


def _some(connection: socket.socket, buffer: bytearray) -> int:
    count = connection.recv_into(buffer)
    if count == 0:
        raise ProbeError("the transfer ended too early")
    return count


def _ping(connection: socket.socket, timeout_s: float) -> float:
    """Milliseconds of one round trip."""
    connection.settimeout(timeout_s)
    start = time.perf_counter()
    request = _REQUEST.pack(_MAGIC, _PING, start)
    connection.sendall(request)
    if _receive(connection, _REQUEST.size) != request:
        raise ProbeError("the server's answer is not the ping's; does something else listen there?")
    return (time.perf_counter() - start) * 1000


def _transfer(connection: socket.socket, seconds: float, timeout_s: float) -> tuple[int, float]:
    """Send until the server says that it has counted enough: its bytes and seconds."""
    connection.sendall(_REQUEST.pack(_MAGIC, _TRANSFER, seconds))
    connection.setblocking(False)
    chunk, answer = bytes(_CHUNK_BYTES), b""
    end = time.monotonic() + WARMUP_S + seconds + timeout_s
    while len(answer) < _COUNTED.size:
        left_s = end - time.monotonic()
        readable, writable, _ = select.select([connection], [connection], [], max(left_s, 0.0))
        if readable:
            part = connection.recv(_COUNTED.size - len(answer))
            if not part:
                raise ProbeError(f"the server's answer ends after {len(answer)} of {_COUNTED.size} bytes")
            answer += part
        elif left_s <= 0:
            raise ProbeError(f"the server did not answer within {timeout_s:g} s after the transfer")
        elif writable:
            connection.send(chunk)
    count, counted_s = _COUNTED.unpack(answer)
    return count, counted_s


def _receive(connection: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ProbeError(f"the other side closed the connection after {len(data)} of {count} bytes")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main())
