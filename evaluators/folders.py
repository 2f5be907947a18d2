"""Writes device and server folders: what is measured, and what a bundle ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from evaluators import edge
from evaluators.edge import halves

_LAUNCHER = '''"""The {side} half. Run ``python {side} --help`` beside this folder."""

import sys
from pathlib import Path

from edge.main import {side}

sys.exit({side}(Path(__file__).resolve().parent))
'''

_TOOL = """import sys

from edge.{module} import main

sys.exit(main(sys.argv[1:]))
"""


def write_device(folder: Path, manifest: dict[str, Any], sample: np.ndarray) -> Path:
    """Make a device folder that lacks only its models, ``head.onnx`` and ``encoder.onnx``.

    Args:
        folder: made if absent.
        manifest: keys ``picture``, ``threads`` and, as they apply, ``wire``, ``picture_codec`` (``{name, quality}``)
            and ``timed_picture_codecs`` (a list of such, to be timed in one go).
        sample: a picture's pixels, to measure with.
    """
    return _write(folder, "device", manifest, sample)


def write_server(
    folder: Path, manifest: dict[str, Any], sample: np.ndarray | None = None, payload: bytes | None = None
) -> Path:
    """Make a server folder that lacks only its models, ``tail.onnx`` and ``decoder.onnx``.

    Args:
        folder: made if absent.
        manifest: as for a device, and ``classes``.
        sample: a picture's pixels, for a server that takes images.
        payload: a payload, for one that takes payloads.
    """
    _write(folder, "server", manifest, sample)
    if payload is not None:
        (folder / "sample.payload").write_bytes(payload)
    return folder


def write_tool(folder: Path, module: str) -> Path:
    """Make a folder that runs one of the room's own command lines: ``programs`` or ``probe``; made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__main__.py").write_text(_TOOL.format(module=module))
    return _with_edge(folder)


def _write(folder: Path, side: str, manifest: dict[str, Any], sample: np.ndarray | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{side}.json").write_text(json.dumps({"format": halves.FORMAT, **manifest}) + "\n")
    (folder / "__main__.py").write_text(_LAUNCHER.format(side=side))
    if sample is not None:
        np.save(folder / "sample.npy", sample)
    return _with_edge(folder)


def _with_edge(folder: Path) -> Path:
    source = Path(edge.__file__).parent
    shutil.copytree(source, folder / "edge", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
