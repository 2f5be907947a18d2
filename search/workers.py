"""Several workers on this machine: processes that meet in the study's storage, and one place that shows them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from search.running import Job
from spaces.errors import SplitsearchError

_POLL_S = 0.5
_END_S = 60.0  # for a worker to note what it was doing
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A worker that is no more. ``code`` is its exit code, below 0 the number of the signal that killed it."""

    number: int
    code: int
    said: str

    def __str__(self) -> str:
        if self.code < 0:
            return f"worker {self.number} was killed (signal {-self.code})"
        return f"worker {self.number} ended with exit code {self.code}: {self.said.removeprefix('error: ')}"


class Worker:
    """A process that works on a study until there is nothing left to do, or until it is ended.

    Args:
        number: for people.
        job: what to do.
        log: gets what it says.
    """

    def __init__(self, number: int, job: Job, log: Path) -> None:
        self.number, self._log = number, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as said:
            # In a session of its own: Ctrl-C in a terminal reaches whoever started it, who then ends it once.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "search.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job.to_dict()).encode() + b"\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def ended(self) -> Ended | None:
        """How it ended; None while it works."""
        code = self._process.poll()
        return None if code is None else Ended(number=self.number, code=code, said=_last_line(self._log))

    def interrupt(self) -> None:
        """As Ctrl-C does: it notes that its trial was stopped, and ends."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self, limit_s: float = _END_S) -> None:
        """Until it has ended; killed if that takes too long."""
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class Workers:
    """Some workers, from ``with`` to its end: none of them outlives the block."""

    def __init__(self, count: int, job: Job, folder: Path) -> None:
        self._count, self._job, self._folder = count, job, folder
        self.all: list[Worker] = []

    def __enter__(self) -> Workers:
        for number in range(1, self._count + 1):
            self.all.append(Worker(number, self._job, self._folder / "workers" / f"{number}.log"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self.all:
            worker.interrupt()
        for worker in self.all:
            worker.wait()

    def watch(self, shown: Callable[[], None], say: Say) -> list[Ended]:
        """Wait until all have ended.

        Args:
            shown: called every moment.
            say: is told of each that does not end well.

        Returns:
            How they ended.
        """
        ended: dict[int, Ended] = {}
        while len(ended) < len(self.all):
            time.sleep(_POLL_S)
            for worker in self.all:
                how = worker.ended()
                if how is not None and worker.number not in ended:
                    ended[worker.number] = how
                    if how.code:
                        say(f"{how}. Its trial is tried again by those that are left")
            shown()
        return list(ended.values())


def check_ends(ends: Sequence[Ended], done: int, wanted: int, folder: Path) -> None:
    """Raise SplitsearchError when trials are missing and no worker came to the search's end, which may be before that:
    its time was over, or its front had stopped growing.
    """
    failed = [end for end in ends if end.code]
    if failed and len(failed) == len(ends) and done < wanted:
        raise SplitsearchError(
            f"{failed[-1]}. {done} of {wanted} trials are finished and kept; what each worker said is in "
            f"{folder / 'workers'}. Run again to go on"
        )


def unwise(count: int, cores: int, *, on_cpu: bool) -> str:
    """Why so many workers will not be faster here, or nothing.

    Args:
        count: of workers on this machine.
        cores: of its processor.
        on_cpu: whether networks are trained on that.
    """
    if count > cores:
        return f"{count} workers are more than this machine's {cores} cores: expect them to be slower than {cores}"
    if on_cpu and count > 1:
        return (
            f"{count} workers train on one processor, with {cores // count} of its {cores} cores each. A training "
            "alone uses all of them, so this helps only where trials mostly wait, for a device perhaps"
        )
    return ""


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
