"""Largest difference of one-dimensional distribution functions."""

import math

import torch
from torch import Tensor


def kolmogorov_smirnov(x: Tensor, reference: Tensor, *, weight: Tensor | None = None, chance: float = 0.01) -> tuple[float, float]:
    r"""The two-sample Kolmogorov–Smirnov distance, largest over the coordinates.

    .. math:: D = \max_j \sup_t |F_j(t) - G_j(t)|, \qquad
              D_\alpha = \sqrt{-\tfrac12 \log\frac{\alpha}{2d}\,\Bigl(\frac1n + \frac1m\Bigr)}

    Args:
        x: Shape (n, \*event), d entries each.
        reference: Shape (m, \*event).
        weight: Weights of the rows of x, shape (n,), or None; then n is (Σw)²/Σw².
        chance: α, the probability with which D exceeds the level although all coordinates are distributed alike (a bound).

    Returns:
        D, NaN where a value is not finite, and the level D_α.

    Example:
        >>> x = torch.arange(100.0).unsqueeze(1)
        >>> distance, level = kolmogorov_smirnov(x, x + 50)
        >>> distance, round(level, 3)
        (0.5, 0.23)
    """
    flat, other = x.detach().flatten(1).double().cpu(), reference.detach().flatten(1).double().cpu()
    w = torch.ones(len(flat), dtype=torch.float64) if weight is None else weight.detach().double().cpu()
    rows = float(w.sum() ** 2 / w.square().sum())
    level = math.sqrt(-math.log(chance / (2 * flat.shape[1])) / 2 * (1 / rows + 1 / len(other)))
    if not bool(torch.isfinite(flat).all() and torch.isfinite(other).all()):
        return math.nan, level
    largest = 0.0
    for ours, theirs in zip(flat.T, other.T):
        ladder, order = ours.sort()
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), w[order].cumsum(0)]) / w.sum()
        at = torch.cat([ours, theirs])
        below = torch.searchsorted(theirs.sort().values, at, right=True).double() / len(theirs)
        largest = max(largest, float((mass[torch.searchsorted(ladder, at, right=True)] - below).abs().max()))
    return largest, level
