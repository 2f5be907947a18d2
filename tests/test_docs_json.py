"""docs/json.md: its examples have the keys that the commands print, no more and no fewer."""

import json
import re
from pathlib import Path

import pytest
from conftest import STUDY, finish

from search.cli import run_command
from search.confirm import Confirmed
from spaces.budget import Budget
from spaces.config import SplitConfig

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
POINT, FRONT, REPLAY, CHECK, CONFIRM = (
    json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.S)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("json")
    finish({**STUDY, "space": {**STUDY["space"], "head": ["own", "distilled"]}}, place)
    return place


@pytest.fixture
def printed(folder, fake, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(folder / "cache"))

    def ask(command, *arguments):
        capsys.readouterr()
        assert run_command([command, "demo.yaml", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def same_keys(documented, real):
    """Whether what the example shows of dictionaries is there and nothing else; what it leaves empty may be full."""
    if isinstance(documented, dict) and documented:
        return set(documented) == set(real) and all(same_keys(value, real[key]) for key, value in documented.items())
    if isinstance(documented, list) and documented and isinstance(documented[0], dict):
        return bool(real) and all(same_keys(documented[0], each) for each in real)
    return True


def test_points(printed):
    front = printed("front")["front"]
    usual = {"partition", "ae_ratio", "bits", "tcl", "lzma"}
    assert usual < set(POINT["config"])
    bare = {**POINT, "config": {}}
    assert front and all(same_keys(bare, point) for point in front)
    assert all(usual <= set(point["config"]) <= usual | {"head", "stride", "rate", "coder"} for point in front)
    parts = sum(POINT["latency"].values())
    assert parts == pytest.approx(POINT["latency_ms"], abs=0.01)


def test_front_replay_and_check(printed):
    assert same_keys(FRONT, printed("front"))
    assert FRONT["objectives"] == printed("front")["objectives"]
    assert same_keys(REPLAY, printed("replay", "--rates", "1,2"))
    assert same_keys(CHECK, printed("check"))


def test_confirm():
    config = SplitConfig(partition="stem", ae_ratio=1.0, bits=1)
    found = Confirmed(trial=1, config=config, budget=Budget(images=1, reconstruction_steps=0, epochs=1), test=(0.5,))
    assert same_keys(CONFIRM["confirmed"][0], found.to_dict())
