"""A PostgreSQL server of the tests' own: thrown away afterwards, on a free port, as a user that may run one."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

_USER = "postgres"  # initdb refuses root
_WAIT_S = 30


def binaries() -> Path | None:
    """The newest server's programs, as Debian lays them or on the path; None where there are none."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    program = found[-1] if found else shutil.which("initdb")
    return Path(program).parent if program else None


class PostgresServer:
    """Running from ``start`` to ``stop``; may be started again on the same data and port.

    Args:
        folder: of its data, which is made; a database's own user must be able to enter the folders above.
        durable: whether it waits for the disk, as servers do; tests need not.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder, self._bin, self._durable = folder, binaries(), durable
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", _USER, "--no-sync", "-E", "UTF8")

    def url(self, database: str) -> str:
        """Of a database that is made by :meth:`make`."""
        return f"postgresql://{_USER}@127.0.0.1:{self._port}/{database}"

    def make(self, database: str) -> str:
        """A new, empty database; its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", _USER, database)
        return self.url(database)

    def start(self) -> None:
        """Until it takes connections."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        options += "" if self._durable else " -c fsync=off"
        self._control("start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def stop(self, how: str = "fast") -> None:
        """``fast`` ends all connections, ``immediate`` as a crash does."""
        self._control("stop", "-m", how)

    def _control(self, *command: str) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-t", str(_WAIT_S), *command)

    def _run(self, program: str, *arguments: str) -> None:
        assert self._bin is not None
        # Its output to nowhere: the server would hold a pipe open for as long as it lives.
        subprocess.run(
            [*_as_somebody(), str(self._bin / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )


def _as_somebody() -> Sequence[str]:
    if os.geteuid() != 0:
        return ()
    user = pwd.getpwnam(_USER)
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")


def why_not() -> str:
    """Why no server can run here; empty if one can."""
    if binaries() is None:
        return "no PostgreSQL server is installed (apt install postgresql)"
    if os.geteuid() == 0 and _USER not in {user.pw_name for user in pwd.getpwall()}:
        return f"PostgreSQL does not run as root, and there is no user {_USER}"
    return ""
