"""Measures on another machine over SSH, with the system's own ``ssh``.

A folder's files are sent once, by content; the remote agent (``remote_agent.py``, sent along with every request)
keeps them, makes itself an environment once, and runs the folder's own ``measure``. Each step is one ssh command with a
time limit.
A shared connection (ControlMaster) would save a measurement one handshake, and is left out: its background process
would outlive the command, keep its pipes open and hide that the connection was cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.edge.coders import CODERS
from evaluators.latency.runners import TIMEOUT_S, read_timings
from evaluators.machine_lock import WAIT_S
from evaluators.result import Timing
from spaces.errors import MeasurementError, SpecError

CONNECT_S = 15
ALIVE_S = 10  # between signs of life; a link is dead when three are missing
STEP_S = 60.0  # for what is quick
INSTALL_S = 1800.0
SLOWEST_BYTES_PER_S = 50e3
PACKAGES = ("numpy", "onnxruntime", "pillow")  # without versions: the device's Python decides

Files = dict[str, tuple[str, int]]  # SHA-256 and size by path in the folder

_PROGRAM = Path(__file__).with_name("remote_agent.py")
_CHUNK = 1 << 18
_TOO_OLD = "splitsearch-too-old"
_ANSWER = re.compile(rb"\nsplitsearch-answer (\d+)\n")
_NOT_FOUND = (126, 127)  # exit codes of a shell
_SSH_FAILED = 255

# What ssh says, and what to tell the user: the first that fits, since ssh ends with the less telling lines.
_SSH_SAYS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the known one: the device was set up anew, or another machine answers in its place; "
        "compare the fingerprint, then remove the old key with ssh-keygen -R {entry} and connect once by hand: {ssh}",
    ),
    (
        "Host key verification failed",
        "its host key is not known here; connect once by hand ({ssh}) and compare the fingerprint, or add the key to "
        "{known}",
    ),
    ("Could not resolve hostname", "there is no host of this name; check the spelling, or give its address"),
    ("UNPROTECTED PRIVATE KEY", "others may read the key file, so ssh does not use it; chmod 600 {key}"),
    (
        "Permission denied",
        "the login was refused; check the user, and that the device knows the key: {copy} "
        "(a key with a passphrase has to be in ssh-agent)",
    ),
    ("Too many authentication failures", "ssh offered too many keys; name the right one"),
    ("Connection refused", "nothing listens at this port; is sshd running there, and is the port right?"),
    ("No route to host", "there is no way to it; is the device on, and in the same network?"),
    ("Network is unreachable", "there is no way to it; is this machine's network up?"),
    ("timed out", "it does not answer; is the device on, and is its address right?"),
)
_SIGNAL_MEANS = {
    signal.SIGKILL: "out of memory? Close what else runs there, or take a smaller network",
    signal.SIGILL: "a package there was not made for its processor; give a Python that has fitting ones",
}


@dataclass(frozen=True, kw_only=True)
class SshTarget:
    """Where to measure, and how to get in. What is None is left to ssh and its configuration.

    Attributes:
        host: name, address, or an alias from ssh's configuration.
        user: to log in as.
        port: of its sshd.
        key: identity file; then no other is offered.
        known_hosts: file of host keys to check against; then no other is.
        python: an interpreter there that has numpy, onnxruntime and pillow; empty: an environment is made there, once.
    """

    host: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    python: str = ""

    @classmethod
    def from_url(cls, url: str, key: str = "target") -> SshTarget:
        """The target of ``ssh://host``, ``ssh://user@host`` or ``ssh://user@host:port``.

        Args:
            url: as above; an IPv6 address stands in brackets.
            key: what to call it in messages.

        Raises:
            SpecError: it is no such URL.
        """
        allowed = "ssh://host, ssh://user@host or ssh://user@host:port is needed"
        found = re.fullmatch(r"ssh://(?:([^@/]*)@)?(\[[^]/@]+\]|[^:/@?#\[\]]*)(?::([^/@]*))?/?", url)
        if found is None:
            raise SpecError(key, _without_password(url), allowed)
        user, host, port = found.groups()
        if user is not None and ":" in user:
            raise SpecError(key, _without_password(url), "a password cannot be given; use a key (ssh-copy-id)")
        if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise SpecError(key, url, "a port is a number from 1 to 65535, and an IPv6 address stands in brackets")
        user = None if user is None else urllib.parse.unquote(user)
        for part in (host, user):
            # One that begins with a hyphen would be an option of ssh.
            if part is not None and not re.fullmatch(r"[^\s\x00-\x1f-][^\s\x00-\x1f]*", part):
                raise SpecError(key, url, allowed)
        return cls(host=host.strip("[]"), user=user, port=int(port) if port else None)

    @property
    def label(self) -> str:
        """As a URL, with what is given."""
        user = "" if self.user is None else f"{urllib.parse.quote(self.user)}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}" + ("" if self.port is None else f":{self.port}")

    @property
    def known_as(self) -> str:
        """Its name in a file of known hosts, for a shell."""
        return shlex.quote(self.host if self.port in (None, 22) else f"[{self.host}]:{self.port}")

    def command(self, program: str = "") -> list[str]:
        """The ssh command that runs ``program`` there: it never asks anything and never waits for ever."""
        return ["ssh", *self._arguments(), "--", self.host, program]

    def address(self) -> str:
        """The name or address behind ``host``, which may be an alias of ssh's configuration that nobody else knows."""
        command = ["ssh", "-G", *self._arguments(), "--", self.host]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_S)
        except (OSError, subprocess.TimeoutExpired):
            return self.host
        said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        return said.get("hostname", self.host)

    def _arguments(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": CONNECT_S,
            "ServerAliveInterval": ALIVE_S,
            "ServerAliveCountMax": 3,
            "LogLevel": "INFO",  # says why a connection ended; below that a cut one ends without a word
            # The rest undoes what a user's configuration may ask for, and what would be in the way here.
            "ControlPath": "none",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "UpdateHostKeys": "no",
        }
        if self.key is not None:
            options |= {"IdentitiesOnly": "yes", "IdentityFile": _quoted(self.key)}
        if self.known_hosts is not None:
            options |= {"UserKnownHostsFile": _quoted(self.known_hosts), "GlobalKnownHostsFile": "/dev/null"}
        arguments = [f"-o{name}={value}" for name, value in options.items()]
        if self.port is not None:
            arguments += ["-p", str(self.port)]
        if self.user is not None:
            arguments += ["-l", self.user]
        return arguments

    def by_hand(self, program: str = "ssh") -> str:
        """How a user would log in, or call another of ssh's programs."""
        key = [] if self.key is None else ["-i", str(self.key)]
        port = [] if self.port is None else ["-p", str(self.port)]
        return shlex.join([program, *key, *port, self.host if self.user is None else f"{self.user}@{self.host}"])


class SshRunner:
    """A :class:`evaluators.latency.runners.Runner` on a machine that is reached over SSH.

    Whoever measures there, from whichever machine, waits for the others.

    Args:
        target: the machine.
        wait_s: for other measurements, at most.
        measure_s: for the measurement itself, at most.
    """

    def __init__(self, target: SshTarget, *, wait_s: float = WAIT_S, measure_s: float = TIMEOUT_S) -> None:
        self.target, self.wait_s, self.measure_s = target, wait_s, measure_s
        self._answer: dict[str, Any] = {}  # the last measurement's

    def measure(self, folder: Path, stages: Sequence[str]) -> dict[str, Timing]:
        text = self.run(folder, ["measure", "--json", "--stages", ",".join(stages)])
        try:
            timings = read_timings(text, stages)
        except MeasurementError as error:
            raise self._error(str(error)) from None
        self._answer = json.loads(text)
        return timings

    def run(self, folder: Path, arguments: Sequence[str]) -> str:
        files, requirements = _files(folder), self._requirements(folder)
        self._prepare(folder, files, requirements)
        request = {
            "files": files,
            "requirements": requirements,
            "arguments": list(arguments),
            "wait_s": self.wait_s,
            "limit_s": self.measure_s,
        }
        done = self.run_far("run", request, timeout_s=self.wait_s + self.measure_s + STEP_S)
        if done["returncode"] != 0:
            raise self._error(_why_it_failed(done, self.target.python))
        text: str = done["stdout"]
        return text

    def machine(self) -> dict[str, Any]:
        """The machine, as the last measurement found it (see ``edge/circumstances.py``).

        Before the first one: what it can tell without its packages, so their versions are missing; MeasurementError
        if it cannot be reached.
        """
        return self._answer.get("machine") or self.run_far("describe")

    def states(self) -> dict[str, Any]:
        """``before`` and ``after``: states of the machine around the last measurement; empty if there was none."""
        return {key: self._answer[key] for key in ("before", "after") if key in self._answer}

    def run_far(
        self,
        command: str,
        request: Mapping[str, Any] | None = None,
        data: Iterable[bytes] = (),
        timeout_s: float = STEP_S,
    ) -> dict[str, Any]:
        """One step on the far side, over one connection.

        Args:
            command: one of ``remote_agent.COMMANDS``.
            request: its arguments.
            data: bytes that follow the request.
            timeout_s: for all of it.

        Returns:
            The far side's answer.

        Raises:
            MeasurementError: no connection, no answer in time, or the far side says what went wrong.
        """
        if self.target.key is not None and not self.target.key.expanduser().is_file():
            raise self._error(f"there is no key file {self.target.key} here; name the right one")
        program = _PROGRAM.read_bytes()
        line = json.dumps({**(request or {}), "command": command}).encode() + b"\n"
        far = f"{_shell_word(self.target.python or 'python3')} -I -c {shlex.quote(_loader(len(program)))}"
        try:
            code, out, err = _converse(self.target.command(far), _chain([program, line], data), timeout_s)
        except FileNotFoundError:
            raise self._error("there is no ssh program here; install OpenSSH's client") from None
        except subprocess.TimeoutExpired:
            raise self._error(f"no answer within {timeout_s:g} s; is it overloaded, or the link slow?") from None
        return self._read(code, out, err.decode(errors="replace"))

    def _prepare(self, folder: Path, files: Files, requirements: list[str] | None) -> None:
        """Send what the far side lacks of a folder, and have it make the environment if there is none yet."""
        state = self.run_far("look", {"files": files, "requirements": requirements})
        if state["missing"]:
            self._send(folder, files, state["missing"])
        if not state["ready"]:
            request = {"requirements": requirements, "wait_s": self.wait_s, "limit_s": INSTALL_S}
            self.run_far("install", request, timeout_s=self.wait_s + INSTALL_S + STEP_S)

    def _send(self, folder: Path, files: Files, missing: Sequence[str]) -> None:
        paths = {sha256: folder / name for name, (sha256, _) in files.items()}
        sizes = {sha256: size for sha256, size in files.values()}
        request = {"contents": [[sha256, sizes[sha256]] for sha256 in missing], "wait_s": self.wait_s}
        data = (chunk for sha256 in missing for chunk in contents(paths[sha256]))
        transfer_s = sum(sizes[sha256] for sha256 in missing) / SLOWEST_BYTES_PER_S
        self.run_far("receive", request, data, timeout_s=self.wait_s + transfer_s + STEP_S)

    def _requirements(self, folder: Path) -> list[str] | None:
        """What the folder's environment has to hold; None where the user gave a Python."""
        if self.target.python:
            return None
        manifests = [folder / name for name in ("device.json", "server.json") if (folder / name).exists()]
        wires = [json.loads(path.read_text()).get("wire") or {} for path in manifests]
        coders = {CODERS[wire["coder"]].library for wire in wires if wire.get("coder") in CODERS}
        return sorted({*PACKAGES, *coders} - {""})

    def _read(self, code: int, out: bytes, err: str) -> dict[str, Any]:
        found = _ANSWER.search(b"\n" + out)
        if found is None:
            raise self._error(self._why_no_answer(code, out.decode(errors="replace"), err))
        body = (b"\n" + out)[found.end() :][: int(found[1])]
        if len(body) < int(found[1]):
            raise self._error(self._why_no_answer(_SSH_FAILED, "", err))
        answer = json.loads(body)
        if "error" in answer:
            raise self._error(answer["error"])
        return answer["ok"]

    def _why_no_answer(self, code: int, out: str, err: str) -> str:
        python = self.target.python or "python3"
        if code == _SSH_FAILED:
            return self._why_no_connection(err)
        if code in _NOT_FOUND:
            advice = "give the path of one that is there" if self.target.python else "sudo apt install python3"
            return f"there is no {python} to run on the device; {advice}"
        too_old = re.search(rf"{_TOO_OLD} (\S+)", err)
        if too_old:
            return (
                f"Python 3.9 or newer is needed on the device, {python} is {too_old[1]}; give the path of a newer one"
            )
        said = _last_line(err) or _last_line(out)
        hand = self.target.by_hand()
        return f"what came back is no answer (exit code {code}, {said!r}); does {python} run there? Try {hand}"

    def _why_no_connection(self, err: str) -> str:
        for words, advice in _SSH_SAYS:
            if words in err:
                return advice.format(
                    ssh=self.target.by_hand(),
                    copy=self.target.by_hand("ssh-copy-id"),
                    key=self.target.key or "it",
                    known=self.target.known_hosts or "the known-hosts file",
                    entry=self.target.known_as,
                )
        said = _last_line(err)
        return f"the connection ended before the answer came{f' ({said})' if said else ''}; try again"

    def _error(self, message: str) -> MeasurementError:
        return MeasurementError(f"{self.target.label}: {' '.join(message.split())}")


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, piece by piece."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _files(folder: Path) -> Files:
    """What a folder holds, without what Python compiled."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def _loader(program_bytes: int) -> str:
    """What ``python -c`` gets: it reads the far side's program from standard input. Runs in any Python 3."""
    return (
        "import sys; "
        f"sys.exit('{_TOO_OLD} '+'.'.join(map(str,sys.version_info[:3]))) if sys.version_info<(3,9) else "
        f"exec(compile(sys.stdin.buffer.read({program_bytes}),'{_PROGRAM.name}','exec'))"
    )


def _converse(command: list[str], data: Iterable[bytes], timeout_s: float) -> tuple[int, bytes, bytes]:
    """Exit code, output and error output of a command that gets ``data``, its input left open until it ends.

    The far side takes the end of its input for the end of this process.
    """
    read_end, write_end = os.pipe()
    ended = threading.Event()
    feeder = threading.Thread(target=_feed, args=(write_end, data, ended), daemon=True)
    feeder.start()
    try:
        with subprocess.Popen(
            command,
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, and no terminal to ask at
            env={**os.environ, "LC_ALL": "C"},
        ) as process:
            os.close(read_end)
            read_end = -1
            try:
                out, err = process.communicate(timeout=timeout_s)
            except BaseException:
                # The whole group: a jump host's ssh would keep the pipes open.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, out, err
    finally:
        if read_end >= 0:
            os.close(read_end)
        ended.set()
        feeder.join()


def _feed(pipe: int, data: Iterable[bytes], ended: threading.Event) -> None:
    # An error here is either that the command has ended or that a file cannot be read; the far side reports both.
    with suppress(OSError), open(pipe, "wb") as sink:
        for chunk in data:
            sink.write(chunk)
            sink.flush()
        ended.wait()


def _chain(first: Iterable[bytes], then: Iterable[bytes]) -> Iterator[bytes]:
    yield from first
    yield from then


def _why_it_failed(done: Mapping[str, Any], python: str) -> str:
    code, said = done["returncode"], _last_line(done["stderr"]) or "no message"
    if code < 0:
        advice = _SIGNAL_MEANS.get(-code, "try again")
        return f"the measuring process was ended by {_signal_name(-code)} there; {advice}"
    if python and "No module named" in said:
        return f"{python} lacks a package there ({said}); install it, or leave the Python out and one is set up"
    return f"measuring failed there: {said}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]


def _quoted(path: Path) -> str:
    """A path as a value of one of ssh's options, where percent signs and blanks mean something."""
    return '"' + str(path.expanduser()).replace("%", "%%") + '"'


def _shell_word(path: str) -> str:
    """Quoted for a shell, but for a leading tilde."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def _without_password(url: str) -> str:
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)
