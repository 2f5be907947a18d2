"""Tables on terminals of any width: no column is folded to nothing, no number is cut off."""

import io
import re

import pytest
import rich.console

from evaluators.fake import FakeEvaluator
from evaluators.result import HeadCost
from search.cli import run_command
from search.confirm import Confirmed, confirmed_table
from search.fitting_table import FittingTable
from search.front import Point, judged
from search.spec import Constraints
from search.tables import front_table, heads_table, points_table
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.partition import choose

CONFIG = SplitConfig(partition="stem", ae_ratio=0.03125, bits=4, tcl=100.0, lossless="lzma")


def printed(table, width):
    console = rich.console.Console(file=io.StringIO(), width=width)
    table.print_on(console)
    return console.file.getvalue()


def fronts():
    fake = FakeEvaluator()
    points = [Point(trial=12, evaluation=fake.evaluate(CONFIG))]
    baselines = [Point(trial=None, evaluation=found) for found in fake.baselines(trained=True)]
    return front_table(points, judged(baselines, Constraints(max_device_model_mb=0.5)), points[0], "demo")


def checks():
    choices = choose(list(FakeEvaluator().partition_points())[1:-1], "auto")
    return points_table(choices, [1.0] * len(choices), "points")


def confirmations():
    budget = Budget(images=1, reconstruction_steps=0, epochs=1)
    about = {"config": CONFIG, "budget": budget, "searched": 0.5}
    good = {"validation": (0.5,), "validation_drop_pp": (1.0,), "test": (0.5,), "test_drop_pp": (1.0,)}
    failed = Confirmed(trial=2, reason="the training took more memory than there is on this machine, twice", **about)
    return confirmed_table([Confirmed(trial=1, seeds=(0,), test_images=9, **good, **about), failed])


TABLES = {
    "front": (fronts, ["stem, AE", "85.9%", "WebP"]),
    "check": (checks, ["64x16x16", "yes", "head ms"]),
    "heads": (lambda: heads_table([HeadCost(head="distilled", points=("a", "b"), macs=1, params=2)]), ["distilled"]),
    "confirm": (confirmations, ["50.0%", "memory", "twice)"]),
}


@pytest.mark.parametrize("width", [160, 100, 80, 60, 30])
@pytest.mark.parametrize("name", TABLES)
def test_nothing_is_cut_off_at_any_width(name, width):
    make, words = TABLES[name]
    table, text = make(), printed(make(), width)
    assert "…" not in text and all(word in text for word in words)
    widest = max(map(len, text.splitlines()))
    if width >= 80:
        assert widest <= width
    kept = [column.header for column in table.columns if column.header not in table.spare]
    assert all(heading.split()[0] in text for heading in kept)


def test_what_there_is_no_room_for_is_said_and_the_rest_is_as_it_was():
    table = FittingTable("numbers", ["c", "b"])
    table.add_column("words", overflow="fold", min_width=5)
    for heading in "abc":
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_row("one two", "1", "2", "3", style="bold", end_section=True)
    table.caption = "a note"
    assert table.least_width == 5 + 3 * (3 + 1)
    assert "no room" not in printed(table, 17)
    narrow = printed(table, 13)
    assert "a note" in narrow and "no room here" in narrow and "3" not in narrow and "2" in narrow
    (row,) = table.without(["c"]).rows
    assert (row.style, row.end_section) == ("bold", True)


def test_a_terminal_of_eighty_columns_shows_what_its_points_are(write_study, study_dict, fake, capsys, monkeypatch):
    study = write_study(study_dict)
    run_command(["run", study])
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run_command(["front", study]) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    row = next(line for line in plain.splitlines() if "all-on-device" in line)
    assert re.search(r"90\.0%.*\+0\.0.* 10\.00", row) and "no room here for frames/s" in plain
