"""README, docs/ and the kept results: short enough, no dead links, no option that the command line does not have."""

import re
from pathlib import Path

import pytest
import typer.main

from search.cli import app

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(RESULTS.glob("*.md")),
]
_LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)#]+)[^)]*\)")
_COMMAND = re.compile(r"splitsearch (\w+)((?: [^`\n]*)?)")


def test_the_readme_is_read_in_minutes():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def test_the_claims_are_one_page_that_leads_to_all_that_is_kept():
    claims = (RESULTS / "README.md").read_text()
    assert len(claims.encode()) <= 8_000
    assert {page.name for page in RESULTS.glob("*.md")} - {"README.md"} <= set(_LINK.findall(claims))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page):
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_found_from_the_readme():
    linked = set(_LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_commands_and_their_options_exist(page):
    known = typer.main.get_command(app).commands
    for name, rest in _COMMAND.findall(page.read_text()):
        if name not in known:
            assert not rest.startswith(" --"), f"splitsearch {name}: no such command"
            continue
        options = {each for parameter in known[name].params for each in parameter.opts}
        for option in re.findall(r"(?<=[\s\[])--[a-z][a-z-]*", rest.split("#")[0]):
            assert option in options, f"splitsearch {name} {option}: no such option"


def test_every_option_of_run_export_and_the_server_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    commands = typer.main.get_command(app).commands
    for name in ("check", "run", "front", "replay", "confirm", "report", "export"):
        row = next(line for line in readme.splitlines() if line.startswith(f"| `splitsearch {name} "))
        options = {each for parameter in commands[name].params for each in parameter.opts if each.startswith("--")}
        missing = {option for option in options - {"--storage", "--out"} if option not in row}
        assert not missing - {"--output"}, f"{name}: {missing}"
