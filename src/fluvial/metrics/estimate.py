"""A number and how well it is known."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error.

    Args:
        value: The figure. Rows without a finite value are not left out of it: they make it infinite or NaN, and ``note`` says what the others give.
        standard_error: One standard deviation of its statistical (or, where ``note`` says so, numerical) error; NaN where it is not known.
        n: Number of rows it is a mean of, or None.
        bad_rows: Number of rows whose value was not finite.
        note: What a reader should know, for example which rows were not finite.

    Example:
        >>> print(Estimate(0.51234, 0.0129))
        0.512 ± 0.013
        >>> print(Estimate(2800.0))
        2800
    """

    value: float
    standard_error: float = math.nan
    n: int | None = None
    bad_rows: int = 0
    note: str = ""

    def __str__(self) -> str:
        if not math.isfinite(self.value) or not math.isfinite(self.standard_error):
            return f"{self.value:.6g}"
        if self.standard_error <= 1e-6 * abs(self.value):
            return f"{self.value:.6g} ± {self.standard_error:.1g}"
        # Two digits of the error, and the value to the same place.
        places = 1 - math.floor(math.log10(float(f"{self.standard_error:.1e}")))
        largest = max(abs(self.value), self.standard_error)
        if largest < 1e-4 or largest >= 1e7:
            digits = max(0, math.floor(math.log10(largest)) + places)
            return f"{self.value:.{digits}e} ± {self.standard_error:.1e}"
        places = max(0, places)
        return f"{self.value:.{places}f} ± {self.standard_error:.{places}f}"

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: what is not finite becomes None, with the note saying why; empty entries are left out."""
        entries: dict[str, Any] = {"value": finite_or_none(self.value), "standard_error": finite_or_none(self.standard_error)}
        if self.n is not None:
            entries["n"] = self.n
        if self.bad_rows:
            entries["bad_rows"] = self.bad_rows
        if self.note:
            entries["note"] = self.note
        return entries


def finite_or_none(value: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return float(value) if math.isfinite(value) else None


def mean_estimate(values: Tensor, weight: Tensor | None = None) -> Estimate:
    r"""The (weighted) mean of one value per row, with its standard error.

    .. math:: \bar v = \frac{\sum_i w_i v_i}{\sum_i w_i}, \qquad
              \mathrm{SE}^2 = \frac{n}{n - 1}\,\frac{\sum_i w_i^2 (v_i - \bar v)^2}{(\sum_i w_i)^2}

    Args:
        values: Shape (n,).
        weight: Shape (n,), or None where all rows count alike. Negative weights are accepted as long as their sum is positive.

    Returns:
        The mean over all rows. If some are not finite, neither is the mean; then ``bad_rows`` counts them and ``note`` names them
        together with the mean of the others.

    Raises:
        ValueError: If there are no rows, the shapes differ, or the weights do not sum to a positive number.

    Example:
        >>> print(mean_estimate(torch.tensor([1.0, 2.0, 3.0, 4.0])))
        2.50 ± 0.65
        >>> mean_estimate(torch.tensor([1.0, 3.0, torch.inf])).note
        '1 of 3 rows is not finite (row 2); the others give 2.0 ± 1.0'
    """
    v = values.detach().to(torch.float64).cpu()
    if v.ndim != 1 or len(v) == 0:
        raise ValueError(f"expected one value per row and at least one row, got shape {tuple(v.shape)}")
    w = torch.ones_like(v) if weight is None else weight.detach().to(torch.float64).cpu()
    if w.shape != v.shape:
        raise ValueError(f"expected one weight per row, shape ({len(v)},), got {tuple(w.shape)}")
    bad = ~torch.isfinite(v)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        others = f"the others give {mean_estimate(v[~bad], w[~bad])}" if len(rows) < len(v) else "there are no others"
        verb, plural = ("is", "") if len(rows) == 1 else ("are", "s")
        note = f"{len(rows)} of {len(v)} rows {verb} not finite (row{plural} {named}); {others}"
        return Estimate(float(v[bad].sum()), math.nan, len(v), len(rows), note)
    total = float(w.sum())
    if not total > 0:
        raise ValueError(f"expected weights with a positive sum, got {total:g}")
    mean = float((w * v).sum()) / total
    variance = float((w.square() * (v - mean).square()).sum()) / total**2 * len(v) / max(len(v) - 1, 1)
    return Estimate(mean, math.sqrt(variance) if len(v) > 1 else math.nan, len(v))
