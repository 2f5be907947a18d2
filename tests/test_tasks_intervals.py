"""The interval of a paired drop: against a likelihood worked out numerically, and how often it holds the truth."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import multinomial, norm

from evaluators.tasks.intervals import paired_drop_pp, score_interval

Z = norm.ppf(0.975)


def score_statistic(difference, lost, gained, count):
    """The score test by its definition: the likeliest proportions with this difference, found by a minimizer."""

    def unlikely(share):
        cells = (lost, share + difference), (gained, share), (count - lost - gained, 1 - difference - 2 * share)
        return -sum(seen * math.log(max(chance, 1e-300)) for seen, chance in cells if seen)

    bounds = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = count * (2 * share + difference - difference**2)
    return (lost - gained - count * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("lost", "gained", "count"), [(12, 2, 50), (2, 12, 50), (6, 16, 161), (3, 1, 359), (150, 86, 1600), (5, 5, 20)]
)
def test_the_ends_are_those_of_the_score_test(lost, gained, count):
    middle = (lost - gained) / count
    low = brentq(lambda d: score_statistic(d, lost, gained, count) - Z, middle - 0.5, middle)
    high = brentq(lambda d: score_statistic(d, lost, gained, count) + Z, middle, middle + 0.5)
    assert score_interval(lost, gained, count) == pytest.approx((low, high), abs=1e-5)


def test_it_has_width_and_bounds_and_a_mirror_image():
    for count in (1, 2, 5, 30):
        for lost in range(count + 1):
            for gained in range(count + 1 - lost):
                low, high = score_interval(lost, gained, count)
                assert -1 <= low <= (lost - gained) / count <= high <= 1 and low < high
                assert score_interval(gained, lost, count) == (-high, -low)
    most = Z**2 / (359 + Z**2)  # of a thing that was not met once in 359
    assert score_interval(0, 0, 359) == pytest.approx((-most, most), rel=1e-9)


def test_the_drop_is_in_points_of_the_same_pictures():
    right = np.array([True, True, True, False, False])
    drop, (low, high) = paired_drop_pp(right, np.array([True, False, False, True, False]))
    assert drop == 20 and (low / 100, high / 100) == score_interval(2, 1, 5)


@pytest.mark.parametrize("count", [50, 87, 359, 1250])
@pytest.mark.parametrize(("lost", "gained"), [(0.006, 0.002), (0.02, 0.016), (0.03, 0.01), (0.05, 0.05), (0.1, 0.05)])
def test_it_holds_the_truth_as_often_as_it_says(count, lost, gained):
    """Exact, over the tables that occur at all; the normal approximation comes to 88 % at 359 and 0.6 against 0.2 %."""
    most_lost, most_gained = (int(count * share + 5 * math.sqrt(count * share) + 6) for share in (lost, gained))
    tables = np.array([(b, c, count - b - c) for b in range(most_lost) for c in range(most_gained) if b + c <= count])
    chances = multinomial.pmf(tables, count, (lost, gained, 1 - lost - gained))
    assert chances.sum() > 0.9999
    kept = chances > 1e-6
    ends = np.array([score_interval(b, c, count) for b, c, _ in tables[kept].tolist()])
    held = (ends[:, 0] <= lost - gained) & (lost - gained <= ends[:, 1])
    assert chances[kept][held].sum() > 0.94


@pytest.mark.parametrize("count", [50, 359, 1250])
@pytest.mark.parametrize("pictures", [1, 2, 3, 4, 5, 8])
def test_it_holds_a_drop_without_gains(count, pictures):
    """Hardest for all intervals: Agresti and Min's comes to 86 % where two pictures are lost on average."""
    chances = multinomial.pmf(
        tables := [(b, count - b) for b in range(31)], count, (pictures / count, 1 - pictures / count)
    )
    ends = [score_interval(b, 0, count) for b, _ in tables]
    held = [low <= pictures / count <= high for low, high in ends]
    assert chances[held].sum() > 0.93
