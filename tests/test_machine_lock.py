"""Measurements have the machine alone; training makes way, and nobody needs to own the lock files."""

import contextvars
import multiprocessing
import os
import stat
import time

import pytest

from evaluators import machine_lock
from spaces.errors import MeasurementError


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSEARCH_LOCKS", str(tmp_path))
    return tmp_path


def test_a_folder_for_locks_is_made_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSEARCH_LOCKS", str(tmp_path / "not" / "there"))
    with machine_lock.measuring(1.0):
        assert (tmp_path / "not" / "there").is_dir()


def train(ticks, stop):
    with machine_lock.training(), machine_lock.training():
        while not stop.is_set():
            ticks.value += 1
            machine_lock.make_way()


def test_training_stands_still_while_somebody_measures_and_goes_on_afterwards():
    context = multiprocessing.get_context("fork")
    ticks, stop = context.Value("Q", 0), context.Event()
    workers = [context.Process(target=train, args=(ticks, stop)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while ticks.value < 100:
        time.sleep(0.01)
    for _ in range(3):
        with machine_lock.measuring(30.0):
            before = ticks.value
            time.sleep(0.2)
            assert ticks.value == before
        while ticks.value < before + 100:
            time.sleep(0.01)
    stop.set()
    for worker in workers:
        worker.join()


def somebody_else_measures(wait_s):
    """In a context of its own, as another thread is: what this one holds is then no longer its own."""

    def measure():
        with machine_lock.measuring(wait_s):
            pass

    contextvars.Context().run(measure)


def measure_forever(started):
    with machine_lock.measuring():
        started.set()
        time.sleep(60)


def test_one_measurement_at_a_time_and_a_killed_one_lets_go():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=measure_forever, args=(started,))
    worker.start()
    assert started.wait(30)
    with pytest.raises(MeasurementError, match=r"kept this machine busy for 0\.1 s"), machine_lock.measuring(0.1):
        pass
    worker.kill()
    worker.join()
    with machine_lock.measuring(10.0), pytest.raises(MeasurementError):
        somebody_else_measures(0.05)


def test_lock_files_of_another_user_can_be_locked(locks):
    """No right to write is asked for, and an existing file is never opened with O_CREAT, which Linux refuses to all but
    its owner in folders such as /tmp."""
    asked = []
    real = os.open

    def watched(path, flags, mode=0o777):
        asked.append((str(path), flags, os.path.exists(path)))
        return real(path, flags, mode)

    with machine_lock.measuring(5.0):
        pass
    for path in locks.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "open", watched)
    try:
        with machine_lock.measuring(5.0), pytest.raises(MeasurementError):
            somebody_else_measures(0.01)
    finally:
        patch.undo()
    assert asked and all(not flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) for _, flags, there in asked if there)


def test_something_else_in_its_place_is_named(locks):
    (locks / "splitsearch-gate.lock").mkdir()
    with pytest.raises(MeasurementError, match="no plain file"), machine_lock.measuring(1.0):
        pass


def test_a_training_may_measure_in_between():
    with machine_lock.training():
        with machine_lock.measuring(1.0):
            pass
        machine_lock.make_way()
        with machine_lock.measuring(1.0):
            pass
    machine_lock.make_way()


def test_a_measurement_may_be_part_of_another():
    with machine_lock.measuring(1.0):
        with machine_lock.measuring(1.0):
            pass
        with pytest.raises(MeasurementError):
            somebody_else_measures(0.01)
    somebody_else_measures(1.0)
