"""What is installed: the wheel, and the command out of it in an environment that does not see the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["evaluators", "hardware_profiles", "search", "spaces", "studies"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since building leaves folders behind; without an index, by the setuptools that is here."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in [*PACKAGES, "tests", "benchmarks", "docs"]:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", target, source]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new one with the wheel in it, which sees the dependencies of the one that runs this, but not its checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    install = ["--python", folder, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *install], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    # A path in a .pth file is searched, but the .pth files in it, such as an editable install's, are not read.
    here = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "dependencies.pth").write_text("\n".join(here))
    return folder


@pytest.fixture
def typed(environment, tmp_path, monkeypatch):
    """Runs one program of the environment in an empty folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()

    def run(program, *arguments):
        command = [environment / "bin" / program, *arguments]
        return subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)

    return run


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    assert names == {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".pyc"}
    assert {"search/report.js", "studies/quickstart.yaml", "hardware_profiles/links/lte.yaml"} <= names


def test_the_console_script_runs_the_installed_packages(environment, typed):
    where = "import search, spaces, evaluators, studies, hardware_profiles as h\n"
    done = typed("python", "-c", where + "print(*(m.__file__ for m in (search, spaces, evaluators, studies, h)))")
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(environment) for file in done.stdout.split())
    assert typed("splitsearch", "--version").stdout == f"splitsearch {PROJECT['version']}\n"


def test_shipped_studies_and_profiles_are_found(typed, tmp_path):
    program = "from evaluators.latency import profiles as p; print(p.load_machine('raspberry_pi_4b', 'device').name)"
    assert typed("python", "-c", program).stdout == "raspberry_pi_4b\n"
    said = typed("splitsearch", "check", "resnet50_tinyimagenet50")
    assert said.returncode == 2 and "studies/resnet50_tinyimagenet50.yaml: data.root: " in said.stderr
    assert not os.listdir(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.architectures
def test_the_quickstart_is_checked_from_an_empty_folder(typed, tmp_path):
    done = typed("splitsearch", "check", "quickstart", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["format"] == 1 and found["model"] == "torchvision/resnet18"
    kept = [point["name"] for point in found["points"] if point["kept"]]
    assert kept == ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert not os.listdir(tmp_path / "here")
