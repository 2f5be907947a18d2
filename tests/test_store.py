"""The store: whole or absent whenever its writer is killed, made once for all who ask, damaged entries made anew."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluators import machine_lock, store
from evaluators.store import ENTRY, Store, StoreKey, digest_of, shared_store, whole_folder, write_whole
from spaces.errors import SpecError

ROOT = Path(__file__).parent.parent
KEY = StoreKey("things", {"of": ["what", 1], "seed": 0})


def two_files(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.bin").write_bytes(b"a" * 3000)
    (folder / "b.txt").write_text("b")


def never(folder: Path) -> None:
    pytest.fail("made again")


def is_right(place: Path) -> bool:
    return (place / "inner" / "a.bin").read_bytes() == b"a" * 3000 and (place / "b.txt").read_text() == "b"


def test_made_once_and_found_by_what_it_depends_on(tmp_path):
    place = Store(tmp_path).get(KEY, two_files, "a thing")
    assert is_right(place) and Store(tmp_path).find(KEY) == place
    assert Store(tmp_path).get(StoreKey("things", {"seed": 0, "of": ["what", 1]}), never) == place
    assert Store(tmp_path).find(StoreKey("things", {"of": ["what", 1], "seed": 1})) is None
    (entry,) = Store(tmp_path).entries()
    assert (entry.kind, entry.size_bytes, entry.about) == ("things", 3001, "a thing")
    assert json.loads((place / ENTRY).read_text())["depends_on"] == KEY.depends_on


def test_a_value(tmp_path):
    assert Store(tmp_path).value(KEY, lambda: {"ms": 1.5}) == {"ms": 1.5}
    assert Store(tmp_path).value(KEY, lambda: pytest.fail("made again")) == {"ms": 1.5}


def test_what_fails_leaves_nothing(tmp_path):
    def fails(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        Store(tmp_path).get(KEY, fails)
    assert Store(tmp_path).find(KEY) is None and not list((tmp_path / ".making").iterdir())
    assert is_right(Store(tmp_path).get(KEY, two_files))


def test_what_takes_days_to_make_is_no_left_over(tmp_path):
    other = StoreKey("things", {"seed": 1})

    def slow(folder):
        two_files(folder)
        for path in (folder, left_over):
            os.utime(path, (0, 0))
        assert is_right(Store(tmp_path, limit_bytes=10**9).get(other, two_files))  # which makes room

    left_over = tmp_path / ".making" / f".{'0' * 40}-killed"
    left_over.mkdir(parents=True)
    assert is_right(Store(tmp_path).get(KEY, slow)) and not left_over.exists()


def test_making_room_leaves_alone_what_is_about_to_appear(tmp_path, monkeypatch):
    def flushed(folder):  # the last step before the name
        assert Store(tmp_path).prune(0) == []

    monkeypatch.setattr(store, "_flush", flushed)
    assert is_right(Store(tmp_path).get(KEY, two_files))


def cut_short(place):
    (place / "b.txt").write_text("")


def changed(place):
    (place / "inner" / "a.bin").write_bytes(b"b" * 3000)


def lost(place):
    (place / "b.txt").unlink()


def without_record(place):
    (place / ENTRY).write_text('{"format": 1, "fi')


def empty_record(place):
    (place / ENTRY).write_text("")


def of_another_format(place):
    (place / ENTRY).write_text(json.dumps({**json.loads((place / ENTRY).read_text()), "format": 99}))


@pytest.mark.parametrize("harm", [cut_short, changed, lost, without_record, empty_record, of_another_format])
def test_a_damaged_entry_is_named_and_made_anew(tmp_path, caplog, harm):
    harm(Store(tmp_path).get(KEY, two_files))
    with caplog.at_level(logging.WARNING, "splitsearch"):
        place = Store(tmp_path).get(KEY, two_files)
    assert is_right(place) and "is damaged" in caplog.text and str(place) in caplog.text
    assert Store(tmp_path).get(KEY, never) == place


def test_the_least_recently_used_go_first_and_what_is_in_use_stays(tmp_path):
    keys = [StoreKey("things", {"number": number}) for number in range(4)]
    for age, key in enumerate(keys):
        place = Store(tmp_path).get(key, two_files)
        os.utime(place / ENTRY, (1000 + age, 1000 + age))
    removed = Store(tmp_path).prune(2 * 3001)
    assert [entry.used_s for entry in removed] == [1000, 1001]
    assert [Store(tmp_path).find(key) is None for key in keys] == [True, True, False, False]
    user = Store(tmp_path, limit_bytes=3001)
    user.get(keys[2], never)
    user.get(keys[0], two_files)
    assert user.find(keys[2]) and user.find(keys[0]) and Store(tmp_path).find(keys[3]) is None


KILLED = """
import os, signal, sys
from pathlib import Path
from evaluators.store import Store, StoreKey

at, seen = int(sys.argv[2]), 0
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.chmod", "os.utime", "os.remove", "os.rmdir", "os.scandir",
               "os.listdir", "fcntl.flock", "shutil.rmtree", "tempfile.mkdtemp")

def hook(event, arguments):
    global seen
    if event in FILE_EVENTS:
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

def make(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "a.bin").write_bytes(b"a" * 3000)
    (folder / "b.txt").write_text("b")

sys.addaudithook(hook)
Store(Path(sys.argv[1]), limit_bytes=10_000).get(StoreKey("things", {"of": ["what", 1], "seed": 0}), make)
"""


def test_a_checkpoint_goes_when_nobody_has_gone_on_for_a_month(tmp_path):
    store, day = Store(tmp_path), 24 * 3600.0
    for kind, days in (("file", 31), ("file", 29), ("folder", 31), ("folder", 29)):
        place = store.unfinished(StoreKey(kind, {"days": days}))
        file = place / "epoch" / "weights" if kind == "folder" else place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("weights")
        for each in (file, file.parent, place):
            if each != store.root / ".unfinished":
                os.utime(each, (time.time() - days * day,) * 2)
    store.prune(10**9)
    left = {key.name for key in (tmp_path / ".unfinished").iterdir()}
    assert left == {store.unfinished(StoreKey(kind, {"days": 29})).name for kind in ("file", "folder")}


def test_killed_at_every_step_an_entry_is_whole_or_absent(tmp_path):
    """The writer is killed before each of its file operations in turn; the next one never waits, and finds or makes."""
    absent = 0
    for step in range(1, 400):
        root = tmp_path / str(step)
        command = [sys.executable, "-c", KILLED, str(root), str(step)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = Store(root).find(KEY)
        absent += found is None
        assert found is None or is_right(found)
        assert is_right(Store(root).get(KEY, two_files))
    else:
        pytest.fail("the writer never came to its end")
    assert step > 15 and absent > 10


def slow_maker(root, started, counter):
    def make(folder):
        started.set()
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.5)
        two_files(folder)

    Store(root).get(KEY, make)


def test_two_who_want_the_same_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter, started = context.Value("i", 0), context.Event()
    workers = [context.Process(target=slow_maker, args=(tmp_path, started, counter)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.value == 1 and [worker.exitcode for worker in workers] == [0, 0, 0]
    assert is_right(Store(tmp_path).get(KEY, never))


def test_a_maker_that_is_killed_lets_the_next_one_in(tmp_path):
    context = multiprocessing.get_context("fork")
    counter, started = context.Value("i", 0), context.Event()
    worker = context.Process(target=slow_maker, args=(tmp_path, started, counter))
    worker.start()
    assert started.wait(30)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert is_right(Store(tmp_path).get(KEY, two_files))


def make_slowly(root, started, go_on):
    def make(folder):
        started.set()
        go_on.wait(60)
        two_files(folder)

    Store(root).get(KEY, make)


def wait_in_a_training(root):
    with machine_lock.training():
        Store(root).get(KEY, never)


def test_a_training_that_waits_for_an_entry_keeps_no_measurement_from_the_machine(tmp_path, monkeypatch):
    """Whoever makes the entry makes way for a measurement and waits for it: all three would wait for each other."""
    monkeypatch.setenv("SPLITSEARCH_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(store, "_SAY_AFTER_S", 0.05)
    context = multiprocessing.get_context("fork")
    started, go_on = context.Event(), context.Event()
    maker = context.Process(target=make_slowly, args=(tmp_path, started, go_on))
    maker.start()
    assert started.wait(30)
    waiter = context.Process(target=wait_in_a_training, args=(tmp_path,))
    waiter.start()
    try:
        while not is_busy("work"):
            time.sleep(0.01)
        with machine_lock.measuring(20.0):
            go_on.set()
    finally:
        go_on.set()
        maker.join()
        waiter.join()
    assert waiter.exitcode == 0


def is_busy(name: str) -> bool:
    """Whether somebody has a share of the machine."""
    with machine_lock._opened(name) as handle:
        return not machine_lock._try(handle, machine_lock.fcntl.LOCK_EX)


def test_digests_follow_content_not_order():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})
    with pytest.raises(TypeError):
        digest_of({"a": Path("x")})


def test_a_file_or_folder_is_replaced_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "deep" / "file", "one")
    write_whole(tmp_path / "deep" / "file", b"two")
    assert (tmp_path / "deep" / "file").read_bytes() == b"two" and len(list((tmp_path / "deep").iterdir())) == 1
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize("given", ["much", "nan", "inf"])
def test_an_impossible_limit_is_refused(monkeypatch, given):
    monkeypatch.setenv("SPLITSEARCH_CACHE_GB", given)
    with pytest.raises(SpecError, match="a number of gigabytes is needed"):
        shared_store()
    monkeypatch.setenv("SPLITSEARCH_CACHE_GB", "0.5")
    assert shared_store().limit_bytes == 500_000_000
