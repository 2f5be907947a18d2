"""Small Python programs whose running time on some board somebody has published, to compare interpreters with.

A board that is not at hand is known by what such a program took there; the same program, timed here, says how many
times as long interpreted code takes on the board. The programs are run as the published figures were taken: as a
module's top level, where every name is a global.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from types import CodeType
from typing import Callable

from . import measure

# One of the 10,000 rounds of alexdedyura/cpu-benchmark, which its figures count.
_FLOAT_LOOPS = """
for x in range(1, 1000):
    3.141592 * 2**x
for x in range(1, 10000):
    float(x) / 3.141592
for x in range(1, 10000):
    float(3.141592) / x
"""

# wisdom1972/Banana-Pi-Benchmark with a million numbers.
_SUM_LOOP = """
s = 0
for i in range(1000000):
    s = s + i
"""

PROGRAMS = {"float_loops": _FLOAT_LOOPS, "sum_loop": _SUM_LOOP}


def stages() -> dict[str, Callable[[], object]]:
    """The programs by name, each ready to be run once."""
    return {name: functools.partial(_run, compile(text, name, "exec")) for name, text in PROGRAMS.items()}


def _run(code: CodeType) -> None:
    exec(code, {})


def main(arguments: list[str]) -> int:
    """``measure --json``, as a device's folder answers it: the programs are the stages."""
    parser = argparse.ArgumentParser(prog="programs", description="Time small Python programs on this machine.")
    parser.add_argument("command", choices=["measure"])
    parser.add_argument("--json", action="store_true", required=True)
    parser.add_argument("--stages", help="the programs wanted, with commas between")
    options = parser.parse_args(arguments)
    wanted = options.stages.split(",") if options.stages else list(PROGRAMS)
    print(json.dumps(measure.timed({name: run for name, run in stages().items() if name in wanted})))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
