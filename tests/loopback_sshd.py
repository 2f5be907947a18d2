"""A real sshd on 127.0.0.1 with keys, settings and a home of its own, for tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evaluators.latency.ssh import SshTarget

SSHD = Path("/usr/sbin/sshd")
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_PATIENCE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Loopback:
    """A running sshd.

    Attributes:
        port: it listens there, on 127.0.0.1.
        key: the identity it lets in.
        known_hosts: a file with its host key.
        home: HOME of its sessions.
        cache: their XDG_CACHE_HOME.
        programs: first in their PATH.
        process: sshd itself, which starts another process for each connection.
    """

    port: int
    key: Path
    known_hosts: Path
    home: Path
    cache: Path
    programs: Path
    process: subprocess.Popen

    def target(self, **changes: Any) -> SshTarget:
        """How to reach it, measuring with the Python that runs the tests."""
        settings = {
            "host": "127.0.0.1",
            "user": getpass.getuser(),
            "port": self.port,
            "key": self.key,
            "known_hosts": self.known_hosts,
            "python": sys.executable,
        }
        return SshTarget(**{**settings, **changes})

    def sessions(self) -> list[int]:
        """Processes of sshd for its connections: one for each, or two where sshd gives up rights after the login."""
        found, pids = {self.process.pid}, sorted(map(int, filter(str.isdigit, os.listdir("/proc"))))
        while new := {pid for pid in pids if parent(pid) in found and _is_sshd(pid)} - found:
            found |= new
        return sorted(found - {self.process.pid})

    def cut(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End every connection, or stop it so that nothing comes through any more."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):  # ended with the one before
                os.kill(pid, how)

    def script(self, name: str, text: str) -> None:
        """A program that its sessions find before any other of this name."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)


@contextlib.contextmanager
def loopback_sshd(folder: Path, path: str = SYSTEM_PATH) -> Iterator[Loopback]:
    """A running sshd with its files in ``folder``; ``path`` comes after its own folder of programs in PATH.

    Skips the test where sshd is not installed.
    """
    if not SSHD.exists():
        pytest.skip("needs openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it as root
    home, cache, programs, port = folder / "home", folder / "cache", folder / "bin", free_port()
    for each in (home, cache, programs):
        each.mkdir(exist_ok=True)
    host_key, key = make_key(folder / "host_key"), make_key(folder / "key")
    (folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    environment = {"HOME": home, "XDG_CACHE_HOME": cache, "PATH": f"{programs}:{path}", **_settings_of_pip()}
    settings = [
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        "PidFile none",
        "StrictModes no",  # folders of tests are not checked for who else may write there
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items()),
    ]
    if _version() >= (9, 8):
        settings.append("PerSourcePenalties no")  # else a test of refused keys locks the next tests out
    (folder / "sshd_config").write_text("\n".join(settings) + "\n")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    server = Loopback(
        port=port,
        key=key,
        known_hosts=folder / "known_hosts",
        home=home,
        cache=cache,
        programs=programs,
        process=process,
    )
    try:
        _wait_until_it_listens(server, folder / "sshd.log")
        yield server
    finally:
        server.cut()
        process.terminate()
        process.wait(_PATIENCE_S)


def make_key(path: Path) -> Path:
    """A new pair of keys; the public one lies beside it as ``.pub``."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parent(pid: int) -> int:
    """The parent of a process, 0 if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # ended meanwhile
        return 0
    return int(status.rpartition(")")[2].split()[1])


def _is_sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    except OSError:  # ended meanwhile
        return False


def _settings_of_pip() -> dict[str, str]:
    """What tells pip here how to reach its packages; a session starts without it."""
    return {name: value for name, value in os.environ.items() if re.match(r"PIP_|SSL_CERT_|https?_proxy$", name, re.I)}


def _version() -> tuple[int, int]:
    said = subprocess.run([SSHD, "-V"], capture_output=True, text=True)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stdout + said.stderr)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _wait_until_it_listens(server: Loopback, log: Path) -> None:
    end = time.monotonic() + _PATIENCE_S
    while server.process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE_S) as probe:
                if probe.recv(4) == b"SSH-":
                    return
        except ConnectionRefusedError:
            time.sleep(0.02)
    pytest.fail(f"sshd did not start: {log.read_text()}")
