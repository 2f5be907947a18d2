"""``TiedMatern``: a Matern kernel whose last features share one length scale."""

from __future__ import annotations

import numpy as np
from sklearn.gaussian_process.kernels import Matern

_BOUNDS = (0.1, 30.0)


class TiedMatern(Matern):  # type: ignore[misc]
    """Matern 5/2 with a length scale for each feature, but one for all of the last ``tied`` ones together.

    Args:
        length_scale: of each feature, then of those that are tied.
        length_scale_bounds: of the fit.
        tied: how many features share the last length scale; with 0 or 1 it is a plain Matern.
    """

    def __init__(
        self, length_scale: np.ndarray, length_scale_bounds: tuple[float, float] = _BOUNDS, tied: int = 0
    ) -> None:
        super().__init__(length_scale, length_scale_bounds, nu=2.5)
        self.tied = tied

    def __call__(self, X, Y=None, eval_gradient=False):  # type: ignore[no-untyped-def]
        """The covariances (N, M), and their gradient by the logarithms of the length scales, (N, N, scales)."""
        scales = np.atleast_1d(self.length_scale)
        spread = np.append(scales[:-1], np.repeat(scales[-1], self.tied)) if self.tied else scales
        untied = Matern(spread, self.length_scale_bounds, nu=self.nu)
        if not eval_gradient:
            return untied(X, Y)
        covariances, gradient = untied(X, Y, eval_gradient=True)
        if not self.tied:
            return covariances, gradient
        own, shared = np.split(gradient, [len(scales) - 1], axis=-1)
        return covariances, np.concatenate([own, shared.sum(axis=-1, keepdims=True)], axis=-1)
