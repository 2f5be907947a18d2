"""Numbers in the README, in tables of docs/ and on the page of claims are those of the kept files they link to."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLAIMS = RESULTS / "README.md"

_NO_MEASUREMENT = (
    "Python 3.11",
    "Python 3.9",
    "1 to 8 bits",
    "Raspberry Pi 4 B",
    "20 kbit/s",  # what the study asks for
    "50 classes",
    "64 pixels",
    "about 90 MB",  # 22 million values of four bytes
    "0 done, 1 the work failed, 2 wrong usage",
    "130 Ctrl-C",
    "mAP50-95",
)
_SET_ASIDE = re.compile(r"^    .*$|`[^`]*`|\d{4}-\d\d-\d\d|" + "|".join(map(re.escape, _NO_MEASUREMENT)), re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_NUMBER = re.compile(r"(?<![\w.])(?<!\d,)(?<![A-Za-z]-)(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?=x?(?:\W|$))(?!\.\d)")


def numbers(text: str) -> list[str]:
    """Numbers of prose and tables, without thousands separators; those in code, dates and names are left out."""
    return [each.replace(",", "") for each in _NUMBER.findall(_LINK.sub("]", _SET_ASIDE.sub("", text)))]


def evidence(page: Path, text: str) -> list[Path]:
    """The kept files that a text links to, each with its rows beside it (squeeze.md: squeeze.jsonl)."""
    linked = [(page.parent / link).resolve() for link in _LINK.findall(text)]
    kept = [path for path in linked if path.parent == RESULTS and path != CLAIMS]
    return [file for path in kept for file in RESULTS.glob(f"{path.stem}.*") if file.suffix in _READERS]


def printed(text: str) -> list[set[str]]:
    """One set with every number of a page, as it stands there."""
    return [{each.replace(",", "") for each in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}]


def rounded(text: str) -> list[set[str]]:
    """One set with every number of a file of rows, rounded to zero to three decimals, as it is and in percent."""
    values = {float(each) for each in re.findall(r"\d+(?:\.\d+)?", text)}
    return [{f"{value * scale:.{decimals}f}" for value in values for scale in (1, 100) for decimals in range(4)}]


def points(text: str) -> list[set[str]]:
    """For a kept front one such set for each of its points, for other files one set."""
    objects: list[dict] = []
    json.loads(text, object_hook=lambda each: objects.append(each) or each)
    return [rounded(json.dumps(each))[0] for each in objects if "trial" in each] or rounded(text)


_READERS = {".md": printed, ".txt": printed, ".jsonl": rounded, ".json": points}


def without_evidence(page: Path, text: str, linked: str) -> set[str]:
    """Numbers of a text that are in none of the kept files that ``linked``, the text around it, links to.

    What stands in no page must stand in one and the same point of a kept front: a table's row describes one point.
    """
    fronts: list[set[str]] = [set()]
    missing = set(numbers(text))
    for path in evidence(page, linked):
        found = _READERS[path.suffix](path.read_text())
        if len(found) == 1:
            missing -= found[0]
        else:
            fronts += found
    return min((missing - point for point in fronts), key=len)


def sections(page: Path) -> list[str]:
    """Each section with its heading; first what stands before them."""
    return re.split(r"^(?=###? )", page.read_text(), flags=re.MULTILINE)


def rows(text: str) -> list[str]:
    """The lines of its tables."""
    return [line for line in text.splitlines() if line.startswith("|")]


def title(section: str) -> str:
    """The first line, which names a section or row in the output of pytest."""
    return section.partition("\n")[0]


@pytest.mark.parametrize("section", sections(ROOT / "README.md"), ids=title)
def test_numbers_of_the_readme_were_measured(section):
    assert not without_evidence(ROOT / "README.md", section, section)


@pytest.mark.parametrize("page", ["results.md", "method.md", "hardware.md"])
def test_tables_of_the_docs_were_measured(page):
    page = ROOT / "docs" / page
    missing = {(row, each) for section in sections(page) for row in rows(section)
               for each in without_evidence(page, row, section)}  # fmt: skip
    assert not missing


@pytest.mark.parametrize("row", rows(CLAIMS.read_text()), ids=title)
def test_claims_were_measured(row):
    number = row.split("|")[2]
    assert not without_evidence(CLAIMS, number, row)


def test_a_changed_number_is_noticed():
    section = f"A split sends 266 bytes, WebP 1,483 (2026-11-25, ResNet-50, `0.1`): [rows]({RESULTS}/squeeze.md)."
    assert numbers(section) == ["266", "1483"]
    assert not without_evidence(CLAIMS, section, section)
    assert without_evidence(CLAIMS, section.replace("266", "267"), section) == {"267"}
    assert without_evidence(CLAIMS, section.replace("1,483", "1,484"), section) == {"1484"}


@pytest.mark.parametrize("page", ["README.md", "docs/first-study.md"])
def test_tables_of_the_quickstart_are_as_printed(page):
    """Columns on the right may be left out, nothing else."""
    kept = "\n".join(path.read_text() for path in RESULTS.glob("quickstart*.txt"))
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / page).read_text(), re.MULTILINE)
    shown = [line[4:] for block in blocks if block.startswith("    trial  ") for line in block.splitlines()]
    assert shown
    assert not [line for line in shown if not re.search(rf"^{re.escape(line)}(?![\w.])", kept, re.MULTILINE)]


@pytest.mark.parametrize(
    "name, script, table",
    [
        ("squeeze.md", "squeeze", lambda script: "\n".join(each(script.kept()) for each in script.TABLES.values())),
        ("coders.md", "coders", lambda script: script.tables(json.loads(script.RESULTS.read_text()))),
    ],
)
def test_tables_of_kept_rows_are_as_their_script_prints_them(monkeypatch, name, script, table):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    lines = {line.strip() for line in (RESULTS / name).read_text().splitlines()}
    assert not set(table(importlib.import_module(script)).splitlines()) - lines
