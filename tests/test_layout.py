"""The rooms keep their order, and the device's code keeps to what a device has."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

ROOT = Path(__file__).parent.parent
FILES = sorted(path for room in ("spaces", "evaluators", "search") for path in (ROOT / room).rglob("*.py"))
FORBIDDEN = {
    "spaces": {"evaluators", "search", "torch", "optuna", "torchvision"},
    "evaluators": {"search", "optuna"},
    "search": {"torch", "torchvision", "onnx"},
}
EDGE_MAY_IMPORT = {"numpy", "PIL", "onnxruntime", *sys.stdlib_module_names}
SERVING_MAY_IMPORT = EDGE_MAY_IMPORT | {"starlette", "uvicorn"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    assert not imported(path) & FORBIDDEN[room]


@pytest.mark.parametrize("path", sorted((ROOT / "evaluators" / "latency").glob("*.py")), ids=lambda path: path.name)
def test_latency_knows_nothing_of_training(path):
    modules = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module and module.startswith("evaluators.training")]


@pytest.mark.parametrize("path", sorted((ROOT / "evaluators" / "edge").rglob("*.py")), ids=lambda path: path.name)
def test_edge_needs_only_what_a_device_has(path):
    assert imported(path) <= (SERVING_MAY_IMPORT if path.parent.name == "serving" else EDGE_MAY_IMPORT)
    ast.parse(path.read_text(), feature_version=(3, 9))


def test_the_device_half_imports_neither_torch_nor_the_server(tmp_path):
    bundle = tiny_bundle.write(tmp_path / "bundle", whole=True)
    code = "import sys, edge.main; print(sorted({'torch', 'starlette', 'uvicorn', 'onnx'} & set(sys.modules)))"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.check_output([sys.executable, "-c", code], cwd=bundle / "device", env=clean, text=True)
    assert found.strip() == "[]"


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [each for each in node.body if isinstance(each, ast.FunctionDef)]


def contracts() -> set[str]:
    """Names of methods that an abstract class or a protocol documents; whoever implements them need not repeat it."""
    classes = [
        node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    abstract = [node for node in classes if {ast.unparse(base) for base in node.bases} & {"ABC", "Protocol"}]
    known = {node.name for node in abstract}
    heirs = [node for node in classes if {ast.unparse(base) for base in node.bases} & known]
    return {each.name for node in [*abstract, *heirs] for each in methods(node) if ast.get_docstring(each)}


CONTRACTS = contracts()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path):
    tree = ast.parse(path.read_text())
    public = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
    members = [m for c in public if isinstance(c, ast.ClassDef) for m in methods(c) if m.name not in CONTRACTS]
    named = [n for n in [*public, *members] if not n.name.startswith("_") and not n.name.startswith("suggest_")]
    assert ast.get_docstring(tree)
    assert not [node.name for node in named if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_a_benchmark_finds_what_it_imports(path):
    """Every name that a benchmark takes from our rooms is there; running them takes minutes to hours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FORBIDDEN:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                    alias.name
                )
