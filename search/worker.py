"""One worker: ``python -m search.worker``, told on its standard input what to do.

The first line is a :class:`~search.running.Job` as JSON. The input then stays open for as long as whoever started the
worker lives; when it closes, the worker stops as if interrupted, again and again until it does: an interrupt that
arrives in a destructor is lost. One that is still there after a minute ends on the spot, as if killed. So no worker
outlives its run, however that ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time

from spaces.errors import SplitsearchError

INTERRUPTED = 130
AGAIN_S, MOST = 10.0, 6  # between two interrupts, time to note that a trial was stopped; and how many
_log = logging.getLogger("splitsearch")


def main() -> int:
    """Work; returns the exit code. The last line on stderr says what went wrong."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    _log.setLevel(logging.INFO)
    try:
        told = json.loads(_first_line())
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        _work(told)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SplitsearchError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code if isinstance(error, SplitsearchError) else 1


def _work(told: dict[str, object]) -> None:
    from search.running import Job, open_run

    job = Job(**told)  # type: ignore[arg-type]
    run = open_run(job)
    if job.sharing:
        run.evaluator.share_cores(job.sharing)
    run.prepare(lambda said: _log.info("%s", said))
    run.run_trials(stay=True)


def _first_line() -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = os.read(0, 1)
        if not more:
            raise SplitsearchError("a worker is started by 'splitsearch run --workers N', and told what to do")
        found += more
    return found


def _stop_with_parent() -> None:
    while os.read(0, 1024):
        pass
    for _ in range(MOST):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(AGAIN_S)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
