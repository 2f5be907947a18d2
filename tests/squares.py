"""A data set in ultralytics' layout that a detector learns in seconds: a red and a green square on grey."""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 128, 72
DATA = """path: .
train: images/train
val: images/val
names: {names}
"""
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40)}


def write(folder: Path, train: int = 12, val: int = 6, classes: int = 2) -> Path:
    """Write images and labels of the first so many colours; returns the YAML file."""
    names = list(COLOURS)[:classes]
    random = np.random.default_rng(0)
    for role, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / role).mkdir(parents=True)
        for number in range(count):
            pixels, lines = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), []
            for label, colour in enumerate(COLOURS[name] for name in names):
                side = int(random.integers(24, 44))
                left, top = int(random.integers(64 * label, 64 * label + 64 - side)), int(random.integers(72 - side))
                pixels[top : top + side, left : left + side] = colour
                middle = (left + side / 2) / WIDTH, (top + side / 2) / HEIGHT
                lines.append(f"{label} {middle[0]:.6f} {middle[1]:.6f} {side / WIDTH:.6f} {side / HEIGHT:.6f}")
            Image.fromarray(pixels).save(folder / "images" / role / f"{number}.png")
            (folder / "labels" / role / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (folder / "squares.yaml").write_text(DATA.format(names=dict(enumerate(names))))
    return folder / "squares.yaml"
