"""The order in which a map's symbols are coded: from coarse to fine.

A sparse grid comes first, without context; then, halving the spacing again and again, the places in the middle of four
known ones, diagonally first, then those between them. All symbols of one step are coded together, for many channels, so
a map of 16x16 takes seven steps and not 256: both ends stay fast in Python.

    x . x        x . x        x o x          x: known    o: coded in this step
    . . .   ->   . o .   ->   o x o
    x . x        x . x        x o x

Neighbours are mirrored at the border.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

KINDS = 6  # no neighbours; four places away or more; two, diagonally and straight; one, diagonally and straight


@dataclass(frozen=True)
class Step:
    """Places that are coded together, (n,), and the four known ones around each, (4, n), as flat indices."""

    kind: int
    places: np.ndarray
    neighbours: np.ndarray


def size_of(axes: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of whatever lies behind the channels."""
    return (int(np.prod(axes[:-1])), axes[-1]) if axes else (1, 1)


@functools.lru_cache(maxsize=64)
def steps(height: int, width: int) -> tuple[Step, ...]:
    """The steps of a map, in their order."""
    spacing = 1
    while 2 * spacing < max(height, width):
        spacing *= 2
    rows, columns = np.mgrid[0:height:spacing, 0:width:spacing]
    first = (rows * width + columns).ravel()
    steps = [Step(0, first, np.zeros((4, len(first)), np.intp))]
    while spacing > 1:
        half = spacing // 2
        rows, columns = np.mgrid[half:height:spacing, half:width:spacing]
        diagonal = [(rows + up, columns + left) for up in (-half, half) for left in (-half, half)]
        steps.append(_step(height, width, half, True, rows, columns, diagonal))
        grids = [np.mgrid[half:height:spacing, 0:width:spacing], np.mgrid[0:height:spacing, half:width:spacing]]
        rows, columns = (np.concatenate([grid[axis].ravel() for grid in grids]) for axis in (0, 1))
        straight = [(rows - half, columns), (rows + half, columns), (rows, columns - half), (rows, columns + half)]
        steps.append(_step(height, width, half, False, rows, columns, straight))
        spacing = half
    return tuple(step for step in steps if len(step.places))


def _step(
    height: int,
    width: int,
    half: int,
    diagonal: bool,
    rows: np.ndarray,
    columns: np.ndarray,
    around: list[tuple[np.ndarray, np.ndarray]],
) -> Step:
    kind = 1 if half >= 4 else {(2, True): 2, (2, False): 3, (1, True): 4, (1, False): 5}[half, diagonal]
    places = (rows * width + columns).ravel()
    neighbours = []
    for y, x in around:
        # Mirrored at the border; where even that lies outside, the map is one place wide: take the other axis.
        y = np.where((y < 0) | (y >= height), 2 * rows - y, y)
        x = np.where((x < 0) | (x >= width), 2 * columns - x, x)
        neighbours.append((y.ravel(), x.ravel()))
    inside = [(y >= 0) & (y < height) & (x >= 0) & (x < width) for y, x in neighbours]
    flat = [np.where(good, y * width + x, -1) for (y, x), good in zip(neighbours, inside)]
    known = np.max(flat, axis=0)
    return Step(kind, places, np.stack([np.where(each < 0, known, each) for each in flat]))
