"""A user's own functions: what they import from beside them, and what identifies them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluators.user_code import call, load_factory, source_digest
from spaces.errors import SpecError


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        place = folder / f"{name.replace('_in_', '/')}.py"  # one_in_two is one/two.py
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def load(file, function="make"):
    return load_factory(f"python:{file}:{function}", "model.name")


def test_what_lies_beside_is_found_while_loading_while_running_and_later(tmp_path):
    write(
        tmp_path,
        mine="from parts_a import A\n"
        "class Late:\n"
        "    def run(self):\n"
        "        from parts_c import C\n"
        "        return C\n"
        "def make():\n"
        "    from parts_b import B\n"
        "    return A, B, Late()\n",
        parts_a="A = 1\n",
        parts_b="from parts_d import D\nB = D\n",
        parts_c="C = 3\n",
        parts_d="D = 2\n",
    )
    a, b, late = call(load(tmp_path / "mine.py"))
    assert (a, b, late.run()) == (1, 2, 3)
    assert sys.path[0] != str(tmp_path) and not list(tmp_path.rglob("__pycache__"))


def test_two_folders_may_hold_files_of_the_same_names(tmp_path):
    text = "from shared_name import WHO\ndef make():\n    from late_name import WHEN\n    return WHO, WHEN\n"
    one, two = (
        write(tmp_path / who, mine=text, shared_name=f"WHO = '{who}'\n", late_name=f"WHEN = '{who} late'\n")
        for who in ("one", "two")
    )
    first, second = load(one / "mine.py"), load(two / "mine.py")
    assert first() == ("one", "one late") and second() == ("two", "two late") and first() == ("one", "one late")
    modules = {sys.modules[factory.__wrapped__.__module__] for factory in (first, second)}
    assert {Path(module.__file__).parent.name for module in modules} == {"one", "two"}


def test_a_module_of_somebody_elses_comes_back(tmp_path):
    """As pytest's own import of a file called like one beside the user's."""
    write(tmp_path / "elsewhere", taken_name="WHO = 'elsewhere'\n")
    sys.path.insert(0, str(tmp_path / "elsewhere"))
    try:
        import taken_name
    finally:
        sys.path.remove(str(tmp_path / "elsewhere"))
    write(
        tmp_path / "own", mine="from taken_name import WHO\ndef make():\n    return WHO\n", taken_name="WHO = 'own'\n"
    )
    assert load(tmp_path / "own" / "mine.py")() == "own"
    assert sys.modules["taken_name"] is taken_name


def test_folders_without_an_init_file_are_packages_too(tmp_path):
    for who in ("one", "two"):
        write(
            tmp_path / who,
            mine="from bare_folder.part import Kind\ndef make():\n    import bare_folder.part as later\n"
            "    return Kind.who, later.Kind is Kind\n",
            bare_folder_in_part=f"class Kind:\n    who = '{who}'\n",
        )
    one, two = (load(tmp_path / who / "mine.py") for who in ("one", "two"))
    assert one() == ("one", True) and two() == ("two", True) and one() == ("one", True)


def test_a_change_is_seen_at_the_next_load(tmp_path):
    write(tmp_path, mine="from changing import N\ndef make():\n    return N\n", changing="N = 1\n")
    assert load(tmp_path / "mine.py")() == 1
    write(tmp_path, changing="N = 2\n")
    assert load(tmp_path / "mine.py")() == 2
    write(tmp_path, mine="from changing import N\ndef make():\n    return -N\n")
    assert load(tmp_path / "mine.py")() == -2


def test_a_package_in_the_current_folder(tmp_path, monkeypatch):
    write(
        tmp_path,
        own_package_in___init__="",
        own_package_in_nets="from .parts import N\ndef make():\n    from . import late\n    return N + late.N\n",
        own_package_in_parts="N = 1\n",
        own_package_in_late="N = 10\n",
        own_package_in_unused="N = 100\n",
    )
    monkeypatch.chdir(tmp_path)
    name = "python:own_package.nets:make"
    assert load_factory(name, "model.name")() == 11
    before = source_digest(name)
    write(tmp_path, own_package_in_unused="N = 101\n")
    assert source_digest(name) == before
    write(tmp_path, own_package_in_late="N = 20\n")
    assert source_digest(name) != before and load_factory(name, "model.name")() == 21


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("mine", True),
        ("direct", True),
        ("late", True),
        ("behind_in_one", True),
        ("behind_in___init__", True),
        ("dynamic", True),
        ("stranger", False),
        ("tests_in_direct", False),
    ],
)
def test_the_digest_follows_what_is_imported_from_beside(tmp_path, changed, counts):
    write(
        tmp_path,
        mine="import os, numpy\nimport direct\nimport importlib\ndef make():\n    import late\n"
        "    return importlib.import_module('dynamic')\n",
        direct="from behind import one\n",
        late="",
        behind_in___init__="",
        behind_in_one="from behind.one import *\n",
        dynamic="import mine\n",
        stranger="",
        tests_in_direct="",
    )
    name = f"python:{tmp_path / 'mine.py'}:make"
    before = source_digest(name)
    file = tmp_path / f"{changed.replace('_in_', '/')}.py"
    file.write_text(file.read_text() + "# changed\n")
    assert (source_digest(name) != before) == counts


def test_the_digest_is_the_same_wherever_the_code_lies(tmp_path):
    places = [write(tmp_path / place, mine="import parts_e\n", parts_e="") / "mine.py" for place in ("a", "b")]
    one, other = (source_digest(f"python:{place}:make") for place in places)
    assert one == other
    places[0].rename(tmp_path / "a" / "other.py")
    assert source_digest(f"python:{tmp_path / 'a' / 'other.py'}:make") != other


def test_the_digest_of_what_is_installed_or_broken_or_absent(tmp_path):
    (tmp_path / "broken.py").write_text("def make(:\n")
    found = {
        source_digest(name)
        for name in ("python:timeit:main", "python:safetensors.torch:save", f"python:{tmp_path / 'broken.py'}:make")
    }
    assert len(found) == 3 and source_digest("python:no_such_package:make") == source_digest("python:no_such_package:x")


def test_scripts_see_no_arguments_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["splitsearch", "run", "study.yaml", "--trials", "3"])
    write(
        tmp_path,
        reads="import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', default=7)\n"
        "given = parser.parse_args()\ndef make():\n    return given.width, parser.parse_args().width\n",
        needs="import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('data')\nparser.parse_args()\n",
        ends="import sys\ndef make():\n    sys.exit('enough')\n",
    )
    assert load(tmp_path / "reads.py")() == (7, 7)
    with pytest.raises(SpecError, match=r"ends the program \(exit code 2\), as argparse does.*__name__ == '__main__'"):
        load(tmp_path / "needs.py")
    with pytest.raises(RuntimeError, match=r"ends the program \(exit code enough\)"):
        load(tmp_path / "ends.py")()
    assert sys.argv[1] == "run"


def test_classes_and_partial_functions_take_what_they_name(tmp_path):
    write(
        tmp_path,
        mine="import functools\nclass Net:\n    def __init__(self, num_classes, width=2):\n"
        "        self.size = num_classes, width\nwide = functools.partial(Net, width=9)\n",
    )
    assert call(load(tmp_path / "mine.py", "Net"), num_classes=3, root=None).size == (3, 2)
    assert call(load(tmp_path / "mine.py", "wide"), num_classes=3, root=None).size == (3, 9)


def test_code_beside_our_own_rooms_is_left_alone(tmp_path):
    """A user's file in a checkout: our modules lie beside it, and must not be loaded twice."""
    root = Path(__file__).parent.parent
    code = (
        "from evaluators.user_code import load_factory\n"
        "import spaces.errors, sys\n"
        "before = spaces.errors\n"
        f"factory = load_factory('python:{tmp_path / 'search.py'}:make', 'k')\n"
        "assert factory() == 'mine'\n"
        f"load_factory('python:{root / 'evaluators' / 'fake.py'}:FakeEvaluator', 'k')\n"
        "assert sys.modules['spaces.errors'] is before\n"
        "import search\n"
        "assert search.__file__.endswith('__init__.py'), search.__file__\n"
    )
    write(tmp_path, search="from spaces.errors import SpecError\ndef make():\n    return 'mine'\n")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path.parent)
