"""Take the README's picture of a report, as a browser draws it.

    splitsearch run quickstart
    python benchmarks/report_picture.py runs/quickstart/report.html docs/report.png

Needs a Chromium (apt-get install chromium). The picture has 256 colours, which keeps it small.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import page as browser_page  # the tests' own browser

WIDTH, COLOURS, MARGIN = 1120, 256, 20


def main() -> None:
    """From the title to the end of the Pareto plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    with browser_page() as page:
        page.open(options.report.resolve().as_uri(), "document.body?.dataset.ready", WIDTH)
        page.run("document.querySelectorAll('.modebar').forEach((bar) => bar.remove())")
        bottom = page.run("document.getElementById('pareto').getBoundingClientRect().bottom + window.scrollY")
        page.picture(options.picture, x=0, y=MARGIN, width=WIDTH, height=bottom - MARGIN)
    picture = Image.open(options.picture).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(options.picture, optimize=True)
    print(f"{options.picture}  {picture.width}x{picture.height}  {options.picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
