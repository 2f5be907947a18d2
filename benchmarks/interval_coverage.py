"""How often a 95 % interval of a drop holds the true drop.

    python benchmarks/interval_coverage.py            # five minutes on one core; no data needed

Classification: the exact coverage, summed over every table of pictures lost and gained that can occur. Detection:
simulated, 400 draws a row, of detectors that find each thing with some luck; the true drop is that of 20,000 images.
Results go to benchmarks/results/interval-coverage.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm
from scipy.stats import t as student_t

from evaluators.tasks.detection import IOU_THRESHOLDS, Detection, Matched, Precision
from evaluators.tasks.intervals import score_interval

RESULT = Path(__file__).parent / "results" / "interval-coverage.md"
COUNTS = (50, 87, 359, 1250)
# Shares of pictures lost and gained: rare and common, one-sided and balanced; the first is a drop of 0.4 points.
PATTERNS = ((0.006, 0.002), (0.02, 0.016), (0.01, 0.01), (0.03, 0.01), (0.05, 0.05), (0.1, 0.05), (0.3, 0.1))
ONE_SIDED = (2, 4)  # pictures lost on average, and none gained
DRAWS = 400
_Z = float(norm.ppf(0.975))
_RIGHT_BOTH = 0.6  # of the pictures that were neither lost nor gained, which only Newcombe's interval looks at
Interval = Callable[[int, int, int], tuple[float, float]]


def wald(lost: int, gained: int, count: int) -> tuple[float, float]:
    """The normal approximation with the sample's own variance."""
    mean = (lost - gained) / count
    half = _Z * math.sqrt(max((lost + gained) / count - mean**2, 0) / (count - 1))
    return mean - half, mean + half


def agresti_min(lost: int, gained: int, count: int) -> tuple[float, float]:
    """Wald's after half a picture was added to each cell (Agresti and Min, Statistics in Medicine 24, 2005)."""
    lost, gained, count = lost + 0.5, gained + 0.5, count + 2
    half = _Z * math.sqrt(lost + gained - (lost - gained) ** 2 / count) / count
    return (lost - gained) / count - half, (lost - gained) / count + half


def newcombe(lost: int, gained: int, count: int) -> tuple[float, float]:
    """Method 10 of Newcombe, Statistics in Medicine 17, 1998, pp. 2635-2650."""
    both = round(_RIGHT_BOTH * (count - lost - gained))
    neither = count - lost - gained - both
    one, two = (both + lost) / count, (both + gained) / count
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    excess = both * neither - lost * gained
    excess = max(excess - count / 2, 0) if excess > 0 else excess
    phi = excess / math.sqrt(margins) if margins else 0.0
    (low1, high1), (low2, high2) = _wilson(one, count), _wilson(two, count)

    def apart(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0))

    return one - two - apart(one - low1, high2 - two), one - two + apart(high1 - one, two - low2)


def _wilson(share: float, count: int) -> tuple[float, float]:
    middle, half = share + _Z**2 / 2 / count, _Z * math.sqrt(share * (1 - share) / count + (_Z / 2 / count) ** 2)
    return (middle - half) / (1 + _Z**2 / count), (middle + half) / (1 + _Z**2 / count)


def coverage(interval: Interval, count: int, lost: float, gained: float) -> float:
    """The probability that an interval holds the true difference, exact to 1e-6."""
    most = [min(int(count * share + 9 * math.sqrt(count * share) + 15), count) for share in (lost, gained)]
    held = 0.0
    for b in range(most[0] + 1):
        for c in range(min(most[1], count - b) + 1):
            chance = _chance(b, c, count, lost, gained)
            if chance > 1e-11:
                low, high = interval(b, c, count)
                held += chance * (low <= lost - gained <= high)
    return held


def _chance(b: int, c: int, count: int, lost: float, gained: float) -> float:
    if (b and not lost) or (c and not gained):
        return 0.0
    rest = count - b - c
    log = gammaln(count + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(rest + 1)
    log += (b * math.log(lost) if b else 0) + (c * math.log(gained) if c else 0) + rest * math.log(1 - lost - gained)
    return math.exp(log)


# -- detection ---------------------------------------------------------------------------------------------------------

Skill = tuple[float, float]  # how well boxes fit (0 to 1), how sharply scores tell right from wrong


def answers(images: int, skills: tuple[Skill, Skill], random: np.random.Generator) -> list[list[Matched]]:
    """What two detectors make of the same images; they share most of their luck, as a network and its split do."""
    found: list[list[Matched]] = [[], []]
    for _ in range(images):
        targets = random.choice(3, 1 + random.poisson(3), p=(0.6, 0.3, 0.1)).astype(float)
        luck, wrong = random.normal(size=len(targets)), random.poisson(2)
        labels = np.concatenate([targets, random.choice(3, wrong).astype(float)])
        noise = random.normal(size=len(labels))
        for mine, (fit, sharp) in zip(found, skills, strict=True):
            own = random.normal(size=len(targets))
            overlap = 1 / (1 + np.exp(-(luck + 0.5 * own + 4 * fit - 1)))
            shown = np.concatenate([overlap, np.zeros(wrong)])
            scores = 1 / (1 + np.exp(-(sharp * (shown - 0.5) + noise)))
            order = np.argsort(-scores)
            hits = (shown[:, None] >= IOU_THRESHOLDS.numpy())[order]
            mine.append(Matched(hits=hits, ignored=np.zeros_like(hits), scores=scores[order],
                                labels=labels[order], targets=targets))  # fmt: skip
    return found


def jackknife_coverage(images: int, skills: tuple[Skill, Skill]) -> tuple[float, float, float]:
    """The true drop in points, and how often intervals by Student's t and by the normal distribution hold it."""
    task = Detection(None, None)  # type: ignore[arg-type]
    random = np.random.default_rng(images)
    one, other = (Precision(each).accuracy for each in answers(20_000, skills, random))
    true, held = 100 * (one - other), [0, 0]
    for _ in range(DRAWS):
        drop, (_, high) = task.drop_pp(*map(Precision, answers(images, skills, random)))
        groups = min(20, images)
        for number, quantile in enumerate((student_t.ppf(0.975, groups - 1), _Z)):
            held[number] += abs(drop - true) <= (high - drop) * quantile / student_t.ppf(0.975, groups - 1)
    return true, held[0] / DRAWS, held[1] / DRAWS


# -- the tables --------------------------------------------------------------------------------------------------------


def paired_table() -> list[str]:
    """One row for each number of pictures and pattern, one column for each interval."""
    kinds: dict[str, Interval] = {
        "Wald": wald, "Agresti-Min": agresti_min, "Newcombe": newcombe, "score (used)": score_interval,
    }  # fmt: skip
    lines = [f"| pictures | lost | gained | {' | '.join(kinds)} |", "| ---: | ---: | ---: |" + " ---: |" * len(kinds)]
    for count in COUNTS:
        for lost, gained in (*PATTERNS, *((pictures / count, 0) for pictures in ONE_SIDED)):
            found = [f"{coverage(kind, count, lost, gained):.1%}" for kind in kinds.values()]
            lines.append(f"| {count} | {lost:.2%} | {gained:.1%} | {' | '.join(found)} |")
    return lines


def detection_table() -> list[str]:
    """One row for each number of images and size of drop."""
    lines = ["| images | true drop, points | normal | Student's t (used) |", "| ---: | ---: | ---: | ---: |"]
    for images in (10, 50, 87, 359):
        for skills in (((0.5, 6.0), (0.48, 6.0)), ((0.5, 6.0), (0.4, 4.0))):
            true, by_t, by_z = jackknife_coverage(images, skills)
            lines.append(f"| {images} | {true:.1f} | {by_z:.1%} | {by_t:.1%} |")
    return lines


def main() -> None:
    """Compute both tables, print and keep them."""
    lines = ["# How often a 95 % interval of a drop holds the true drop", ""]
    lines += ["`python benchmarks/interval_coverage.py`, seeds fixed.", "", "## Top-1, exact", "", *paired_table()]
    lines += ["", f"## mAP50-95 by the jackknife, {DRAWS:,} simulated draws a row (+-2 points)", ""]
    lines += detection_table()
    text = "\n".join(lines) + "\n"
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
