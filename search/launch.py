"""``--on dask://host:port``: the same workers, started on the machines of a Dask cluster, and nothing else.

They meet in the study's storage as workers of one machine do, so that has to be one that all machines reach, and the
study's files lie under the same paths there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.places import Journal, SqliteFile, read_place
from search.running import Job
from search.workers import Ended, Say, Worker
from spaces.errors import SpecError

_SCHEME = "dask://"
_POLL_S = 0.5
_END_S = 90.0  # for workers to note what they were doing


def check_cluster(address: str, storage: str | None) -> str:
    """The scheduler's address as Dask has it.

    Raises:
        SpecError: no address of a cluster; Dask is not installed; the storage is a file of this machine.
    """
    if not address.startswith(_SCHEME) or len(address) == len(_SCHEME):
        raise SpecError("--on", address, "the scheduler of a Dask cluster is needed: dask://host:8786")
    if importlib.util.find_spec("distributed") is None:
        raise SpecError("--on", address, "Dask is not installed: pip install 'splitsearch[dask]'")
    place = read_place(Path(), storage)
    if isinstance(place, SqliteFile):
        allowed = (
            "SQLite is for one machine; give --storage postgresql://..., a journal on a shared disk, or grpc://..."
        )
        raise SpecError("--storage", str(place), allowed)
    return "tcp://" + address.removeprefix(_SCHEME)


class DaskWorkers:
    """Workers on a cluster, from ``with`` to its end; as :class:`search.workers.Workers`.

    Args:
        count: of workers; one for each of the cluster's if None.
        job: what to do, with paths that are good there.
        scheduler: address of the cluster.
    """

    def __init__(self, count: int | None, job: Job, scheduler: str) -> None:
        place = read_place(Path(), job.storage)
        if isinstance(place, Journal):  # there the current folder is another
            job = replace(job, storage=str(place.path.resolve()))
        self._count, self._job, self._scheduler = count, job, scheduler
        self._stop = f"splitsearch-stop-{uuid.uuid4().hex}"
        self._futures: list[tuple[Any, str]] = []  # and on which of the cluster's workers

    def __enter__(self) -> DaskWorkers:
        from distributed import Client, Event

        try:
            self._client = Client(self._scheduler, timeout=20)
        except OSError as error:
            raise SpecError("--on", self._scheduler, f"no Dask scheduler answers there: {error}") from None
        self._event = Event(self._stop, client=self._client)
        hosts = {address: row["host"] for address, row in self._client.scheduler_info(n_workers=-1)["workers"].items()}
        if not hosts:
            self._client.close()
            needs = f"the cluster has no workers yet; start some: dask worker {self._scheduler}"
            raise SpecError("--on", self._scheduler, needs)
        places = (sorted(hosts) * (self._count or 1))[: self._count or len(hosts)]
        sharing = Counter(hosts[place] for place in places)
        for number, place in enumerate(places, 1):
            told = replace(self._job, sharing=sharing[hosts[place]]).to_dict()
            how = {"workers": [place], "pure": False, "retries": 0, "allow_other_workers": False}
            self._futures.append((self._client.submit(work_there, number, told, self._stop, **how), place))
        return self

    def __exit__(self, *_: object) -> None:
        from distributed import wait

        self._event.set()
        with contextlib.suppress(TimeoutError):
            wait([future for future, _ in self._futures], timeout=_END_S)
        self._client.close()

    def watch(self, shown: Callable[[], None], say: Say) -> list[Ended]:
        """Wait until all have ended; see :meth:`search.workers.Workers.watch`."""
        ended: dict[int, Ended] = {}
        while len(ended) < len(self._futures):
            time.sleep(_POLL_S)
            there = self._client.scheduler_info(n_workers=-1)["workers"]
            for number, (future, place) in enumerate(self._futures, 1):
                if number in ended or (not future.done() and place in there):
                    continue
                ended[number] = _how(number, future)
                if ended[number].code:
                    say(f"{ended[number]}. Its trial is tried again by those that are left")
            shown()
        return list(ended.values())


def work_there(number: int, told: dict[str, Any], stop: str) -> tuple[int, str]:
    """Run on a machine of the cluster: one worker as a process of its own, until it ends or everybody is to stop."""
    from distributed import Event, get_client

    job = Job(**told)
    asked = Event(stop, client=get_client())
    log = Path(job.out or ".") / "workers" / f"{number}.log"
    worker = Worker(number, job, log)
    try:
        while (ended := worker.ended()) is None:
            if asked.is_set():
                worker.interrupt()
                break
            time.sleep(_POLL_S)
    finally:
        worker.wait()
        ended = worker.ended()
    assert ended is not None
    return ended.code, ended.said


def _how(number: int, future: Any) -> Ended:
    if not future.done():
        return Ended(number=number, code=1, said="its machine has left the cluster")
    if future.status != "finished":
        return Ended(number=number, code=1, said=str(future.exception()))
    code, said = future.result()
    return Ended(number=number, code=code, said=said)
