"""Many workers on one study: nothing lost, nothing twice, how they scale, what a front loses, and very large studies.

    python benchmarks/workers.py four       # four workers, 200 trials, PostgreSQL; a minute
    python benchmarks/workers.py kills      # kill -9 at 20 seeded moments; five minutes
    python benchmarks/workers.py scaling    # 1, 2, 4, 8 workers, trials that sleep; eight minutes
    python benchmarks/workers.py front      # the default sampler with 8 workers, simulated on a recorded table
    python benchmarks/workers.py many       # 10,000 trials on SQLite and PostgreSQL
    python benchmarks/workers.py            # all of them; writes benchmarks/results/workers.md

Workers are the processes that ``splitsearch run --workers`` starts. They score with the fake evaluator, which takes as
long as it is told to (tests/paced_fake.py). PostgreSQL is a server of this machine, thrown away afterwards
(tests/postgres_server.py).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import heapq
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import yaml
from filelock import FileLock, Timeout
from optuna.storages._rdb import models
from optuna.trial import TrialState
from search_efficiency import Table, every_result
from search_table import study_of

from evaluators.edge.circumstances import machine
from evaluators.fake import FakeEvaluator
from evaluators.store import Store
from search.backends import OWNER
from search.drawing import Asking, Begun, next_trial
from search.front import pareto_front
from search.hypervolume import Staircase
from search.objective import _attributes, _Loop, _score, _write, prepare
from search.points import finished_trials, trial_points
from search.presence import Presence
from search.spec import StudySpec, load_spec
from search.storage import OwnStudy, open_study, start_or_resume
from spaces.errors import InfeasibleSplit
from spaces.space import SearchSpace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from postgres_server import PostgresServer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "workers.md"
KEPT = RESULTS.with_suffix(".json")
STUDY: dict[str, Any] = {
    "format": 1,
    "name": "many-workers",
    "model": {"name": "torchvision/resnet18", "num_classes": 10},
    "data": {"name": "digits", "image_size": 32},
    "link": {"rate_mb_per_s": 1.0},
    "space": {
        "partition": "all",
        "ae_ratio": [0.0625, 0.125, 0.25, 0.5, 1.0],
        "head": "own",
        "bits": [1, 2, 3, 4, 8],
        "tcl": [0, 100],
        "lzma": [False, True],
    },
    "search": {"sampler": "front", "pruning": "none", "trials": 200, "seed": 0},
}
RUN = "import sys; from search import cli, running; running.EVALUATOR = 'paced_fake:build'; cli.main()"
MANY = 10_000


# -- studies and their processes --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """A study file, the folder of its results, and where it is kept."""

    folder: Path
    storage: str | None

    @property
    def file(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def spec(self) -> StudySpec:
        return load_spec(str(self.file))

    def write(self, **search: Any) -> None:
        """The study file."""
        self.file.write_text(yaml.safe_dump(STUDY | {"search": STUDY["search"] | search}))

    def study(self) -> optuna.Study:
        """To look at."""
        return open_study(self.spec, self.folder, self.storage)

    def command(self, *more: str) -> list[str]:
        """``splitsearch run`` with the fake evaluator."""
        command = [sys.executable, "-c", RUN, "run", str(self.file), "--out", str(self.folder), *more]
        return [*command, *(["--storage", self.storage] if self.storage else [])]

    def start(self, workers: int, **pace: Any) -> subprocess.Popen[str]:
        """The run as a process."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PACED_FAKE": json.dumps(pace)}
        environment |= {"SPLITSEARCH_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command("--workers", str(workers)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def configs(self, trials: list[Any]) -> list[Any]:
        """Of trials."""
        space = space_of(self.spec)
        return [space.suggest(optuna.trial.FixedTrial(trial.params)) for trial in trials]


def space_of(spec: StudySpec) -> SearchSpace:
    """What a study searches."""
    return spec.space(list(FakeEvaluator().partition_points()))


def finish(process: subprocess.Popen[str]) -> None:
    """Wait until a run has ended well."""
    said = process.communicate()[1]
    assert process.returncode == 0, said


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is thrown away, and that a database's own user may enter."""
    with tempfile.TemporaryDirectory(prefix="splitsearch-workers-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[PostgresServer]:
    """A server until the block ends, with PostgreSQL's usual durability."""
    server = PostgresServer(folder / "postgres", durable=True)
    server.start()
    try:
        yield server
    finally:
        server.stop("immediate")


def new_place(folder: Path, name: str, storage: str | None, **search: Any) -> Place:
    """A study that has not begun."""
    place = Place(folder=folder / name, storage=storage)
    place.folder.mkdir()
    place.write(**search)
    return place


# -- four workers -----------------------------------------------------------------------------------------------------


def four() -> list[str]:
    """Four workers, 200 trials: numbers, losses, repeats, front."""
    with scratch() as folder, postgres(folder) as server:
        place = new_place(folder, "four", server.make("four"))
        start = time.perf_counter()
        finish(place.start(4))
        took = time.perf_counter() - start
        study, space = place.study(), space_of(place.spec)
        trials, done = study.trials, finished_trials(study)
        numbers = [trial.number for trial in trials]
        workers = {trial.user_attrs[OWNER]["pid"] for trial in trials}
        same = of_points(pareto_front(trial_points(study))) == exhaustive(space)
        pauses = [(trial.datetime_complete - trial.datetime_start).total_seconds() for trial in done]
        return [
            f"{len(done)} of 200 trials finished by {len(workers)} workers in {took:.0f} s, the start of the processes "
            f"included; {sum(pauses) / len(pauses) * 1000:.0f} ms from a trial's beginning to its end; numbers 0 to "
            f"{len(trials) - 1} {'each once' if numbers == list(range(len(trials))) else 'NOT unique'}; "
            f"{len(set(place.configs(done)))} different configurations of {space.size}; front "
            f"{'equal to' if same else 'NOT equal to'} that of all {space.size} ({len(exhaustive(space))} points)."
        ]


def exhaustive(space: SearchSpace) -> list[tuple[float, float]]:
    """The front of a whole space."""
    found, evaluator = [], FakeEvaluator()
    for config in space.grid():
        with contextlib.suppress(InfeasibleSplit):
            result = evaluator.evaluate(config)
            found.append((result.latency_ms, result.accuracy))
    best = [p for p in found if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in found)]
    return sorted(set(best))


def of_points(front: list[Any]) -> list[tuple[float, float]]:
    """Latencies and accuracies."""
    return [(point.latency_ms, point.accuracy) for point in front]


# -- kills ------------------------------------------------------------------------------------------------------------


@dataclass
class Toll:
    """What was seen at the moments of killing."""

    workers_killed: int = 0
    runs_killed: int = 0
    writing: int = 0
    interrupted: int = 0
    lost: int = 0
    locks: int = 0


def kills(moments: int = 20) -> list[str]:
    """Kill a worker, or everything, at seeded moments; then let the study end and look for what is missing."""
    chance, toll = random.Random(0), Toll()
    with scratch() as folder, postgres(folder) as server:
        place = new_place(folder, "kills", server.make("kills"), trials=250)
        process = place.start(3, seconds=0.5, stored=True)
        study, known = wait_for(place, 3), dict[int, Any]()
        for moment in range(moments):
            time.sleep(chance.uniform(0.5, 3.0))
            assert process.poll() is None, process.communicate()[1]
            victims = children(process.pid)
            if moment % 2 and len(victims) > 1:
                toll.workers_killed += 1
                victims = [chance.choice(victims)]
                count_writing(place, toll)
                os.kill(victims[0], signal.SIGKILL)
                wait_gone(victims)
            else:
                toll.runs_killed += 1
                count_writing(place, toll)
                for pid in (process.pid, *victims):
                    os.kill(pid, signal.SIGKILL)
                process.communicate()
                wait_gone(victims)
                toll.locks += locks_left(place, study)
            ended = {trial.number: trial.values for trial in finished_trials(study)}
            toll.lost += sum(ended.get(number) != values for number, values in known.items())
            known = ended
            if process.poll() is not None:
                process = place.start(3, seconds=0.5, stored=True)
                wait_for(place, len(known) + 2)
        process.communicate()
        finish(place.start(3, seconds=0.05, stored=True))
        return [kill_lines(place, known, toll)]


def kill_lines(place: Place, known: dict[int, Any], toll: Toll) -> str:
    """What is left at the end, in a sentence."""
    study = place.study()
    trials, done = study.trials, finished_trials(study)
    ended = {trial.number: trial.values for trial in done}
    lost = toll.lost + sum(ended.get(number) != values for number, values in known.items())
    killed = [trial for trial in trials if trial.user_attrs.get("killed") == trial.number]
    blank = [trial for trial in killed if not trial.params]
    repeated = {number: trial for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    again = [trial for trial in killed if trial.number in repeated]
    same = sum(repeated[trial.number].params == trial.params for trial in again)
    entries = {entry.about for entry in Store(place.folder / "cache" / "store").entries()}
    whole = sum(config.label in entries for config in place.configs(done))
    states = [trial.state for trial in trials]
    under_way = states.count(TrialState.RUNNING) + states.count(TrialState.WAITING)
    return (
        f"kill -9 {toll.workers_killed} times on a worker and {toll.runs_killed} times on the whole run (3 workers), "
        f"at seeded moments, {toll.writing} of them while the store was being written. Finished trials lost: {lost} of "
        f"{len(done)}. Trials interrupted: {len(killed)}, of which {len(blank)} had no configuration yet; run again: "
        f"{len(again)}, with the same parameters: {same}. Left under way: {under_way}. Locks left behind: "
        f"{toll.locks + locks_left(place, study)}. Configurations tried twice: "
        f"{len(done) - len(set(place.configs(done)))}. "
        f"Trainings of finished trials whole in the store: {whole} of {len(done)}."
    )


def count_writing(place: Place, toll: Toll) -> None:
    """Take note of an entry of the store that is being made."""
    toll.writing += any((place.folder / "cache" / "store" / ".making").glob("*"))


def locks_left(place: Place, study: optuna.Study, limit_s: float = 5.0) -> int:
    """Lock files that are still locked, and locks in the database.

    A server gets to know within a moment that a client is no more, on a busy machine a longer one.
    """
    end = time.monotonic() + limit_s
    while True:
        files = [path.name for path in locked_files(place)]
        with study._storage._backend.engine.connect() as connection:
            query = sqlalchemy.text("SELECT pid, granted FROM pg_locks WHERE locktype = 'advisory'")
            rows = connection.execute(query).all()
        if (not files and not rows) or time.monotonic() > end:
            return len(files) + len(rows)
        time.sleep(0.2)


def locked_files(place: Place) -> Iterator[Path]:
    """Lock files that somebody holds."""
    for path in [*place.folder.glob(".locks/*"), *place.folder.glob("cache/store/.locks/*")]:
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            yield path


def wait_for(place: Place, count: int) -> optuna.Study:
    """The study, once so many trials have ended."""
    while True:
        with contextlib.suppress(Exception):
            study = place.study()
            break
        time.sleep(0.2)
    while len(finished_trials(study)) < count:
        time.sleep(0.1)
    return study


def children(pid: int) -> list[int]:
    """Process ids of a process's own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return [each for each in found if not is_gone(each)]


def is_gone(pid: int) -> bool:
    """Whether a process is no more, or waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_gone(pids: list[int]) -> None:
    """Until none of them is there."""
    while not all(map(is_gone, pids)):
        time.sleep(0.02)


# -- scaling ----------------------------------------------------------------------------------------------------------


def scaling(seconds: float = 5.0, each: int = 20) -> list[str]:
    """Trials a second by number of workers; as many trials for each worker, so that all take equally long."""
    lines = ["| workers | trials | s, first to last trial | trials/min | times as many | efficiency | s, all in all |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    first = 0.0
    with scratch() as folder, postgres(folder) as server:
        for count in (1, 2, 4, 8):
            place = new_place(folder, f"w{count}", server.make(f"w{count}"), trials=each * count)
            start = time.perf_counter()
            finish(place.start(count, seconds=seconds) if count > 1 else place.start(1, seconds=seconds))
            whole = time.perf_counter() - start
            done = finished_trials(place.study())
            began = min(trial.datetime_start for trial in done)
            took = (max(trial.datetime_complete for trial in done) - began).total_seconds()
            rate = len(done) / took
            first = first or rate
            lines.append(
                f"| {count} | {len(done)} | {took:.1f} | {60 * rate:.1f} | {rate / first:.2f} | "
                f"{rate / first / count:.0%} | {whole:.0f} |"
            )
            print(lines[-1], flush=True)
    about = (
        f"Trials that sleep {seconds:g} s, {each} for each worker: what is shown is what drawing, storing and waiting "
    )
    about += "for each other cost, not what two cores can train. All in all is with the start of the processes."
    return [about, "", *lines]


# -- the front with many workers ---------------------------------------------------------------------------------------


class _Simulated:
    """A worker in simulated time: its own sampler on a study that all share."""

    def __init__(self, spec: StudySpec, space: SearchSpace, table: Table, folder: Path, stack: Any) -> None:
        self.study: OwnStudy = start_or_resume(spec, space, folder, None, table.identity(), ask_price=table.price)
        prepare(self.study, space, table, lambda _: None)
        self.loop = _Loop(self.study, spec, space, table)
        owner = stack.enter_context(Presence(folder)).owner
        self.asking = Asking(space=space, owner=owner, wanted=spec.search.trials, look=self.loop.look)

    def draw(self) -> Begun | None:
        return next_trial(self.study, self.asking, again=True)

    def end(self, begun: Begun) -> None:
        _write(self.study, begun.trial, _score(begun.config, self.loop))


def simulate(spec: StudySpec, space: SearchSpace, table: Table, count: int) -> list[Any]:
    """The trials of a study in the order in which they ended, with ``count`` workers in simulated time."""
    ended = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        workers = [_Simulated(spec, space, table, Path(name), stack) for _ in range(count)]
        clock: list[tuple[float, int, Begun]] = []

        def begin(number: int, now: float) -> None:
            begun = workers[number].draw()
            if begun is not None:
                before = table.seconds
                with contextlib.suppress(InfeasibleSplit):
                    table.evaluate(begun.config)
                heapq.heappush(clock, (now + max(table.seconds - before, 0.1), number, begun))

        for number in range(count):
            begin(number, 0.001 * number)
        while clock:
            now, number, begun = heapq.heappop(clock)
            workers[number].end(begun)
            ended.append(workers[number].study._storage.get_trial(begun.trial._trial_id))
            begin(number, now)
    return ended


def front(seeds: int = 20, budgets: tuple[int, ...] = (20, 30, 40, 60, 100)) -> list[str]:
    """Hypervolume after equal numbers of trials, 8 workers against 1."""
    spec = study_of("quickstart")
    table = Table(ROOT / "benchmarks" / "results" / "search_table_quickstart.jsonl", spec)
    partitions = list(dict.fromkeys(config.partition for config in table.configs))
    space = SearchSpace.from_dict(spec.raw["space"], partitions)
    feasible, corner = every_result(table, spec)
    whole = Staircase(feasible, corner).hypervolume
    found: dict[int, list[list[float]]] = {}
    for count in (1, 8):
        for seed in range(seeds):
            table.restart()
            search = replace(spec.search, sampler="front", pruning="none", seed=seed, trials=max(budgets))
            ended = simulate(replace(spec, search=search), space, table, count)
            kept = [
                tuple(trial.values) if all(value <= 0 for value in trial.constraints.values()) else None
                for trial in ended
            ]
            areas = [Staircase([each for each in kept[:n] if each], corner).hypervolume / whole for n in budgets]
            found.setdefault(count, []).append(areas)
        print(count, [f"{statistics.fmean(column):.4f}" for column in zip(*found[count], strict=True)], flush=True)
    lines = ["| trials | 1 worker | 8 workers | difference |", "| ---: | ---: | ---: | ---: |"]
    for budget, one, eight in zip(budgets, zip(*found[1], strict=True), zip(*found[8], strict=True), strict=True):
        first, other = statistics.fmean(one), statistics.fmean(eight)
        spread = statistics.stdev(b - a for a, b in zip(one, eight, strict=True)) / len(one) ** 0.5
        lines.append(f"| {budget} | {first:.2%} | {other:.2%} | {100 * (other - first):+.2f} ± {100 * spread:.2f} pp |")
    return [f"{seeds} seeds, {space.size} configurations, shares of the whole table's hypervolume, means.", "", *lines]


# -- ten thousand trials ----------------------------------------------------------------------------------------------


def many() -> list[str]:
    """Seconds of resuming, of the front and of the report."""
    lines = [
        "| storage | resume: open, read, draw one | `splitsearch run --trials 10001` | `splitsearch front` | "
        "`splitsearch report` |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    with scratch() as folder, postgres(folder) as server:
        for kind, storage in (("SQLite", None), ("PostgreSQL", server.make("many"))):
            place = new_place(folder, f"many-{kind}", storage)
            STUDY_MANY = STUDY | {
                "space": STUDY["space"] | {"tcl": {"low": 1.0, "high": 1000.0, "log": True, "off": True}}
            }
            place.file.write_text(yaml.safe_dump(STUDY_MANY))
            fill(place)
            seconds = [resume_s(place)]
            for command in (["run", "--trials", str(MANY + 1)], ["front"], ["report"]):
                seconds.append(command_s(place, command))
            lines.append(f"| {kind} | {' | '.join(f'{wall:.1f} s ({busy:.1f})' for wall, busy in seconds)} |")
            print(lines[-1], flush=True)
    load = os.getloadavg()[2]
    said = (
        f"On the clock, and in brackets of the processor; others kept the two cores busy meanwhile (load {load:.1f})."
    )
    return [said, "", *lines]


def resume_s(place: Place) -> tuple[float, float]:
    """Of opening a study, reading all trials, and drawing the next one: on the clock, and of the processor."""
    spec, evaluator = replace(place.spec, search=replace(place.spec.search, trials=MANY + 1)), FakeEvaluator()
    space = space_of(spec)
    start, before = time.perf_counter(), time.process_time()
    study = start_or_resume(spec, space, place.folder, place.storage, evaluator.identity(), ask_price=evaluator.price)
    loop = _Loop(study, spec, space, evaluator)
    with Presence(place.folder) as presence:
        asking = Asking(space=space, owner=presence.owner, wanted=MANY + 1, look=loop.look)
        begun = next_trial(study, asking, again=True)
    took = time.perf_counter() - start, time.process_time() - before
    assert begun is not None
    _write(study, begun.trial, _score(begun.config, loop))
    return took


def command_s(place: Place, command: list[str]) -> tuple[float, float]:
    """Of a command, the start of Python included: on the clock, and of the processor."""
    name, *more = command
    line = [sys.executable, "-c", RUN, name, str(place.file), "--out", str(place.folder), *more]
    line += ["--storage", place.storage] if place.storage else []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "COLUMNS": "200"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, busy


def fill(place: Place) -> None:
    """A study with 10,000 finished trials, with all that a real one keeps."""
    spec, evaluator, chance = place.spec, FakeEvaluator(), random.Random(0)
    space = space_of(spec)
    study = start_or_resume(spec, space, place.folder, place.storage, evaluator.identity(), ask_price=evaluator.price)
    prepare(study, space, evaluator, lambda _: None)
    distributions, backend = study.sampler.distributions, study.backend
    now = datetime.datetime.now()
    with Presence(place.folder) as presence:
        owner = presence.owner
    with backend._one_transaction() as session:
        rows = [
            models.TrialModel(study_id=study._study_id, number=number, state=TrialState.COMPLETE)
            for number in range(MANY)
        ]
        for row in rows:
            row.datetime_start, row.datetime_complete = now, now
        session.add_all(rows)
        session.flush()
        tables: dict[Any, list[dict[str, Any]]] = {}
        for row in rows:
            params = {name: drawn(each, chance) for name, each in distributions.items()}
            one_trial(tables, row.trial_id, params, distributions, space, evaluator, owner)
        for table, content in tables.items():
            session.execute(sqlalchemy.insert(table), content)


def drawn(distribution: Any, chance: random.Random) -> Any:
    """A value at random."""
    choices = getattr(distribution, "choices", None)
    return chance.choice(choices) if choices else chance.uniform(distribution.low, distribution.high)


def one_trial(
    tables: dict[Any, list[dict[str, Any]]],
    trial_id: int,
    params: dict[str, Any],
    distributions: dict[str, Any],
    space: SearchSpace,
    evaluator: FakeEvaluator,
    owner: dict[str, Any],
) -> None:
    """The rows of a trial that was scored."""
    config = space.suggest(optuna.trial.FixedTrial(params))
    user: dict[str, Any] = {OWNER: owner}
    values = (0.0, 30.0)
    with contextlib.suppress(InfeasibleSplit):
        found = evaluator.evaluate(config)
        user, values = user | _attributes(found), (found.accuracy, found.latency_ms)
    system = {"constraints": [0.0, 0.0], "constraints:runs": 0.0, "constraints:trained": 0.0}
    for name, each in distributions.items():
        number = each.to_internal_repr(params[name])
        text = optuna.distributions.distribution_to_json(each)
        row = {"trial_id": trial_id, "param_name": name, "param_value": number, "distribution_json": text}
        tables.setdefault(models.TrialParamModel, []).append(row)
    for table, attributes in ((models.TrialUserAttributeModel, user), (models.TrialSystemAttributeModel, system)):
        for key, value in attributes.items():
            row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            tables.setdefault(table, []).append(row)
    for objective, value in enumerate(values):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        row = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
        tables.setdefault(models.TrialValueModel, []).append(row)


# -- all of it --------------------------------------------------------------------------------------------------------

PARTS = {
    "four": ("Four workers on PostgreSQL", four),
    "kills": ("kill -9", kills),
    "scaling": ("Scaling", scaling),
    "front": ("What the front loses", front),
    "many": ("A study of 10,000 trials", many),
}


def main() -> None:
    """Run the parts that were asked for, print and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all unless given")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for part in parser.parse_args().parts or PARTS:
        title, measure = PARTS[part]
        start = time.perf_counter()
        lines = measure()
        took = f"{time.perf_counter() - start:.0f} s on {machine()['processor']}, {os.cpu_count()} cores"
        date = datetime.date.today().isoformat()
        kept[part] = [f"## {title}", "", f"`python benchmarks/workers.py {part}`, {date}, {took}.", "", *lines, ""]
        print("\n".join(kept[part]), flush=True)
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    write_page(kept)


def write_page(kept: dict[str, list[str]]) -> None:
    """All that was run so far."""
    lines = ["# Many workers", "", "`python benchmarks/workers.py`; its first lines say what is measured.", ""]
    for part in PARTS:
        lines += kept.get(part, [])
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
