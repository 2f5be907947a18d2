"""What a command line has in common whoever runs it: names of any letters can be printed, numbers are checked."""

from __future__ import annotations

import argparse
import io
import math
import sys
from typing import Any, Callable


def print_any_name() -> None:
    """Have standard output take names that it has no letters for, as ``\\xfc``, where it would raise an error: classes
    on a terminal without UTF-8, files whose names are no text. For the program that a process was started for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def number_from(least: float, kind: type = int) -> Callable[[str], Any]:
    """A number of a command line that may not be smaller; for argparse's ``type``."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} given; {words} from {least:g} is needed")
        return value

    return read
