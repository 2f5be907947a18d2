"""How far an accuracy lies below another on the same images, with a confidence interval."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped]

_Z = float(ndtri(0.975))
_HALVINGS = 50  # of the range that an end of an interval is searched in: far below a millionth of a point


def paired_drop_pp(reference: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float]]:
    """How much less accurate ``other`` is, in percentage points, with a 95 % score interval.

    The interval holds every drop that a score test of paired proportions does not reject (Tango, Statistics in
    Medicine 17, 1998, pp. 891-908). It is never of no width: two networks that were right about the same pictures may
    still differ on the next one. ``benchmarks/interval_coverage.py`` compares it with the Wald, Agresti-Min and
    Newcombe intervals, which miss rare drops more often.

    Args:
        reference: whether the uncut model was right, one bool a picture.
        other: the same for the candidate, on the same images in the same order.
    """
    lost, gained = int((reference & ~other).sum()), int((other & ~reference).sum())
    low, high = score_interval(lost, gained, len(reference))
    return 100 * (lost - gained) / len(reference), (100 * low, 100 * high)


def score_interval(lost: int, gained: int, count: int) -> tuple[float, float]:
    """Tango's 95 % interval of the share lost minus the share gained, within -1 to 1.

    Args:
        lost: pictures that only the reference was right about.
        gained: pictures that only the other was right about.
        count: all pictures.
    """
    return -_upper_end(gained, lost, count), _upper_end(lost, gained, count)


def _upper_end(lost: int, gained: int, count: int) -> float:
    """The largest difference that the score test does not reject, by bisection."""
    kept, rejected = (lost - gained) / count, 1.0
    for _ in range(_HALVINGS):
        middle = (kept + rejected) / 2
        if _rejected(middle, lost, gained, count):
            rejected = middle
        else:
            kept = middle
    return kept


def _rejected(difference: float, lost: int, gained: int, count: int) -> bool:
    """Whether a two-sided score test at 5 % rejects a true difference; its variance is that of the likeliest
    proportions with this difference, ``share`` being the gained one of them.
    """
    linear = (2 * count - lost + gained) * difference - lost - gained
    constant = -gained * difference * (1 - difference)
    share = (max(linear**2 - 8 * count * constant, 0.0) ** 0.5 - linear) / (4 * count)
    variance = count * (2 * share + difference * (1 - difference))
    return (lost - gained - count * difference) ** 2 > _Z**2 * variance
