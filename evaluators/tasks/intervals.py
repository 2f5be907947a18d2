"""How far an accuracy lies below another on the same images, with a confidence interval."""

from __future__ import annotations

import math

import numpy as np


def paired_drop_pp(reference: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float]]:
    """How much less accurate ``other`` is, in percentage points, with a 95 % interval (normal approximation).

    Args:
        reference: whether the uncut model was right, one bool a picture.
        other: the same for the candidate, on the same images in the same order.
    """
    difference = reference.astype(float) - other.astype(float)
    mean = float(difference.mean())
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return 100 * mean, (100 * (mean - half), 100 * (mean + half))
