"""A study file whose evaluator is the fake one: instant, with a front that is known."""

import copy
import shutil
import sqlite3
import tempfile
import uuid
from pathlib import Path

import pytest
import yaml
from postgres_server import PostgresServer, why_not
from sqlalchemy import Engine, event

from evaluators.fake import FakeEvaluator
from search import wiring
from search.cli import run_command

STUDY = {
    "format": 1,
    "name": "demo",
    "model": {"name": "torchvision/resnet18", "num_classes": 10},
    "data": {"name": "digits", "image_size": 32},
    "link": {"rate_mb_per_s": 1.0},
    "space": {
        "partition": "all",
        "ae_ratio": [0.03125, 0.25, 1.0],
        "head": "own",
        "bits": [1, 2, 4],
        "tcl": [0, 100],
        "lzma": [False, True],
    },
    "constraints": {"max_accuracy_drop_pp": 9.0},
    "search": {"sampler": "tpe", "pruning": "none", "trials": 20, "seed": 0},
}


@event.listens_for(Engine, "connect")
def _no_waiting_for_the_disk(connection, _record):
    """Tests need no durability against power cuts; without this, most of their time is fsync."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory):
    """No test reads or fills the store of whoever runs it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SPLITSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def study_dict():
    return copy.deepcopy(STUDY)


@pytest.fixture
def write_study(tmp_path, monkeypatch):
    """Writes a study file into a new current folder and returns its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))

    def write(data, name="demo.yaml"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return str(path)

    return write


@pytest.fixture
def fake(monkeypatch):
    """Every study is scored by the fake evaluator."""
    evaluator = FakeEvaluator()
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: evaluator)
    return evaluator


def finish(study, folder, *more):
    """Run a study with the fake evaluator in a folder; the folder of its results, which may be copied elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SPLITSEARCH_CACHE", str(folder / "cache"))
        patch.setattr(wiring, "build_evaluator", lambda spec, place: FakeEvaluator())
        (folder / "demo.yaml").write_text(yaml.safe_dump(study))
        assert run_command(["run", "demo.yaml", *more], debug=True) == 0
    return folder / "runs"


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server, for all tests of a process."""
    if why_not():
        pytest.skip(why_not())
    pytest.importorskip("psycopg")
    # Not in pytest's own folder, which nobody but its owner may enter.
    scratch = Path(tempfile.mkdtemp(prefix="splitsearch-postgres-"))
    scratch.chmod(0o755)
    server = PostgresServer(scratch / "server")
    server.start()
    yield server
    server.stop("immediate")
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server):
    """URL of an empty database."""
    return postgres_server.make(f"study_{uuid.uuid4().hex[:12]}")
