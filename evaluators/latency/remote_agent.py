"""The far side of measuring over SSH: takes a folder's files, keeps an environment, runs the folder's measurement.

``ssh.py`` sends this program through ssh's standard input, so that a device needs nothing but Python 3.9. Behind it
come one line of JSON, the request, and the bytes that the request announces; then the input stays open for as long as
somebody waits for the answer. The answer is JSON, behind a line that says how long it is: what a login shell prints
before it does no harm.

    describe    the machine, as far as the standard library can tell
    look        which files of a folder are missing, and whether its environment is there
    receive     takes files
    install     makes the environment
    run         puts the folder together and runs it

Everything lies in ``~/.cache/splitsearch/device``, or in XDG_CACHE_HOME instead of ``~/.cache``:

    files/          contents, named by their SHA-256
    environments/   virtual environments; one without the file ``complete`` is broken
    folders/        the folder being measured, hard links to files
    busy.lock       locked while something is going on
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STALL_S = 60  # without a byte arriving
UNUSED_S = 30 * 24 * 3600.0
_CHUNK = 1 << 18
_OWN_CHECK_S = 120.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Packages whose module has another name.
_MODULES = {"pillow": "PIL"}


class Trouble(Exception):
    """Something the user can act on; the message is the answer."""


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """The machine; the keys are those of ``circumstances.machine``, without the packages."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def look(request: dict[str, Any]) -> dict[str, Any]:
    """``{"missing": [SHA-256...], "ready": bool}`` for a folder's ``files`` and ``requirements``."""
    missing = set()
    for sha256, size in request["files"].values():
        path = _file(sha256)
        # The size as well: after a power cut, some file systems leave a file that is empty.
        if path.is_file() and path.stat().st_size == size:
            os.utime(path)
        else:
            missing.add(sha256)
    environment = None if request["requirements"] is None else _environment(request["requirements"])
    ready = environment is None or _is_whole(environment)
    if environment and ready:
        os.utime(environment / "complete")
    return {"missing": sorted(missing), "ready": ready}


def receive(request: dict[str, Any]) -> dict[str, Any]:
    """Takes ``contents``, a list of SHA-256 and size, whose bytes follow the request."""
    with _busy(request["wait_s"]):
        _forget_unused()
        for left_over in _cache("files").glob(".*"):
            left_over.unlink()
        for sha256, size in request["contents"]:
            _receive_file(sha256, size)
    return {}


def install(request: dict[str, Any]) -> dict[str, Any]:
    """Makes the environment for ``requirements``, unless somebody else did while this one waited."""
    environment = _environment(request["requirements"])
    _stop_with_the_caller()
    with _busy(request["wait_s"]):
        if not _is_whole(environment):
            shutil.rmtree(environment, ignore_errors=True)
            _make_environment(environment, request["requirements"], time.monotonic() + request["limit_s"])
            (environment / "complete").touch()
    return {}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """``{"returncode": int, "stdout": str, "stderr": str}`` of a folder of ``files``, run with ``arguments``.

    With None for ``requirements`` it runs under the Python that runs this.
    """
    requirements = request["requirements"]
    python = sys.executable if requirements is None else _python(_environment(requirements))
    _stop_with_the_caller()
    with _busy(request["wait_s"]) as lock:
        folder = _put_together(request["files"])
        command = [str(python), str(folder), *request["arguments"]]
        # The lock goes along: the device stays busy until the measuring process has ended, even if this one is killed.
        done = _run(command, request["limit_s"], f"measuring took over {request['limit_s']:g} s", pass_fds=(lock,))
        shutil.rmtree(folder)
    return done


COMMANDS = {each.__name__: each for each in (describe, look, receive, install, run)}


def main() -> None:
    """Answers the request on standard input."""
    signal.signal(signal.SIGALRM, _stalled)
    try:
        answer: dict[str, Any] = {"ok": _answer()}
    except Trouble as trouble:
        answer = {"error": str(trouble)}
    except OSError as error:
        answer = {"error": _explained(error)}
    except Exception as error:  # a mistake in here; the caller shows it, since nobody sees this machine's screen
        answer = {"error": f"unexpectedly {type(error).__name__}: {error}"}
    signal.alarm(0)
    body = json.dumps(answer).encode()
    sys.stdout.buffer.write(b"\nsplitsearch-answer %d\n%s" % (len(body), body))
    sys.stdout.buffer.flush()


def _answer() -> dict[str, Any]:
    signal.alarm(STALL_S)
    request = json.loads(sys.stdin.buffer.readline())
    signal.alarm(0)
    return COMMANDS[request["command"]](request)


def _stalled(_signal: int, _frame: object) -> None:
    raise Trouble(f"nothing arrived for {STALL_S} s; is the link up?")


def _explained(error: OSError) -> str:
    if error.errno in _FULL:
        return f"the disk is full there ({_root()}); free some space, or let XDG_CACHE_HOME point elsewhere"
    return f"{error.strerror or error} there ({error.filename or _root()}); XDG_CACHE_HOME may point elsewhere"


def _root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "splitsearch", "device")


def _cache(*parts: str) -> Path:
    """A folder of the cache, made if absent."""
    folder = _root().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file(sha256: str) -> Path:
    return _cache("files") / sha256


@contextlib.contextmanager
def _busy(wait_s: float) -> Iterator[int]:
    """One process at a time uses the device; the others wait here."""
    end = time.monotonic() + wait_s
    with open(_cache() / "busy.lock", "a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Trouble(
                        f"others have kept this device busy for {wait_s:g} s; try again when they are done"
                    ) from None
                time.sleep(0.1)
        yield lock.fileno()


def _stop_with_the_caller() -> None:
    """From here on, end with everything started from here as soon as nobody waits for the answer any more.

    Otherwise a measurement whose connection was cut would go on, and keep the device from the next one.
    """
    with contextlib.suppress(PermissionError):  # leads a group already
        os.setpgid(0, 0)

    def watch() -> None:
        os.read(0, 1)  # returns when the other end is closed: nothing is sent after the request
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _receive_file(sha256: str, size: int) -> None:
    path, partial = _file(sha256), _cache("files") / f".{sha256}"
    try:
        with open(partial, "wb") as sink:
            found = hashlib.sha256()
            for chunk in _arriving(size):
                found.update(chunk)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())  # else a power cut may leave the name without the content
        if found.hexdigest() != sha256:
            raise Trouble("a file arrived changed; was it being written meanwhile? Try again")
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _arriving(size: int) -> Iterator[bytes]:
    while size:
        signal.alarm(STALL_S)
        chunk = sys.stdin.buffer.read(min(size, _CHUNK))
        signal.alarm(0)
        if not chunk:
            raise Trouble("the files ended early; try again")
        size -= len(chunk)
        yield chunk


def _put_together(files: dict[str, Any]) -> Path:
    """The folder made of ``files``; folders that an earlier, killed process left behind go."""
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    shutil.rmtree(_cache("folders"))
    folder = _cache("folders", key)
    for name, (sha256, _) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(_file(sha256), path)
        except FileNotFoundError:
            raise Trouble(f"{name} is gone from the cache there; try again") from None
        except OSError:  # a file system without hard links
            shutil.copyfile(_file(sha256), path)
    return folder


def _forget_unused() -> None:
    """Remove what was not used for 30 days; the time of the last use is that of the last change."""
    oldest = time.time() - UNUSED_S
    for path in _cache("files").iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink()
    for path in _cache("environments").glob("*/complete"):
        if path.stat().st_mtime < oldest:
            shutil.rmtree(path.parent)


def _environment(requirements: list[str]) -> Path:
    """Where the environment for these requirements is, or would be."""
    wanted = " ".join([*sorted(requirements), platform.machine()])
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return _cache("environments") / f"{version}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"


def _is_whole(environment: Path) -> bool:
    """Python is looked at too: it is a link, and dangles when the system's Python was replaced."""
    return (environment / "complete").exists() and _python(environment).exists()


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _make_environment(environment: Path, requirements: list[str], end: float) -> None:
    done = _step([sys.executable, "-m", "venv", str(environment)], end)
    if done["returncode"] != 0:
        said = done["stderr"] + done["stdout"]  # Debian's advice goes to standard output
        if "ensurepip" in said or "No module named venv" in said:
            raise Trouble("Python lacks its venv module there; sudo apt install python3-venv")
        raise Trouble(f"no environment can be made there: {_last_lines(said)}")
    # Only ready-made packages: compiling numpy takes an hour on a small device, and fails on most.
    pip = [str(_python(environment)), "-m", "pip", "install", "--quiet", "--no-input", "--no-cache-dir"]
    done = _step([*pip, "--disable-pip-version-check", "--only-binary=:all:", *requirements], end)
    if done["returncode"] != 0:
        raise Trouble(
            f"pip cannot install {', '.join(requirements)} for Python {platform.python_version()} on "
            f"{platform.machine()}: {_last_lines(done['stderr'])}; has the device network access?"
        )
    modules = ", ".join(_MODULES.get(each, each) for each in requirements)
    done = _step([str(_python(environment)), "-c", f"import {modules}"], min(end, time.monotonic() + _OWN_CHECK_S))
    if done["returncode"] != 0:  # below 0: a signal, such as that of a processor for which they were not made
        said = _last_lines(done["stderr"], 1) if done["returncode"] > 0 else f"signal {-done['returncode']}"
        raise Trouble(f"what pip installed there does not load ({said}); give a Python that has these packages")


def _step(command: list[str], end: float) -> dict[str, Any]:
    done = _run(command, max(end - time.monotonic(), 1.0), "making the environment took too long; try again")
    said = done["stderr"] + done["stdout"]
    if done["returncode"] != 0 and any(os.strerror(number) in said for number in _FULL):
        raise OSError(errno.ENOSPC, "")
    return done


def _run(command: list[str], limit_s: float, too_long: str, pass_fds: tuple[int, ...] = ()) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            pass_fds=pass_fds,
        )
    except subprocess.TimeoutExpired:
        raise Trouble(too_long) from None
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return {"returncode": done.returncode, "stdout": out, "stderr": err}


def _last_lines(text: str, count: int = 3) -> str:
    return "; ".join([line.strip() for line in text.splitlines() if line.strip()][-count:]) or "no message"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or "unknown"


if __name__ == "__main__":
    main()
