"""Packages that some lossless coders need; None where they are not installed."""

from __future__ import annotations

import importlib
from typing import Any


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


brotli = _load("brotli")
zstandard = _load("zstandard")
