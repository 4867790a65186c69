"""What is known of every coordinate by itself: counts in bins, exact and mergeable."""

from typing import NamedTuple

import numpy as np

GRID_BINS = 4096
GRID_END = 8.0  # after the first layer coordinates are nearly standard normal; what lies beyond is counted in the outermost bins


class Binned(NamedTuple):
    """One coordinate's rows, counted in bins of any width; within a bin they count as spread evenly.

    Attributes:
        edges: Increasing, float64, shape (B + 1,).
        counts: Rows (or the sum of their integer weights) in every bin, int64, shape (B,).
    """

    edges: np.ndarray
    counts: np.ndarray

    @property
    def total(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    def quantile(self, p: np.ndarray, *, unit: float = 1.0) -> np.ndarray:
        """Where the cumulative distribution takes the values p in [0, 1], shape of p.

        The i-th of n rows (i from 0) is at (i + ½)/n, with straight lines from row to row (Hazen's definition); so a few rows, and gaps, do not make
        a staircase.

        Args:
            p: Probabilities.
            unit: What a row counts, where counts are sums of weights.
        """
        used = np.flatnonzero(self.counts)
        count, left = self.counts[used].astype(np.float64), self.edges[used]
        width, before = self.edges[used + 1] - left, np.cumsum(count) - count
        # Of every bin its first and its last row; these are one where it holds no more.
        half = np.minimum(unit, count) / 2
        ranks = np.stack([before + half, before + count - half], 1).ravel()
        places = np.stack([left + width * half / count, left + width * (count - half) / count], 1).ravel()
        return np.interp(np.asarray(p) * count.sum(), ranks, places)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        middle, width = (self.edges[1:] + self.edges[:-1]) / 2, np.diff(self.edges)
        share = self.counts / self.counts.sum()
        mean = float(share @ middle)
        return mean, float(np.sqrt(share @ ((middle - mean) ** 2 + width**2 / 12)))

    def excess(self, low: float, high: float) -> np.ndarray:
        """Of the rows below ``low`` and of those above ``high``: number, mean distance to it, and mean of the distance times the share of these rows
        that lie farther out, shape (2, 3).
        """
        return np.stack([_beyond(-self.edges[::-1], self.counts[::-1], -low), _beyond(self.edges, self.counts, high)])


def _beyond(edges: np.ndarray, counts: np.ndarray, knot: float) -> np.ndarray:
    left, right = np.maximum(edges[:-1], knot), np.maximum(edges[1:], knot)
    width, left = right - left, left - knot
    # The part of a bin beyond the knot has its share of the bin's rows.
    number = counts * np.divide(width, np.diff(edges), out=np.zeros(len(counts)), where=np.diff(edges) > 0)
    total = number.sum()
    if total <= 0:
        return np.zeros(3)
    farther = total - np.cumsum(number)
    # Of rows spread evenly in a bin, those farther out are these, and some in the bin itself.
    ranked = farther * (left + width / 2) + number * (left / 2 + width / 6)
    return np.array([total, number @ (left + width / 2) / total, number @ ranked / total**2])


def binned_grid(counts: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Binned]:
    """Coordinates counted on the fixed grid.

    Args:
        counts: int64, shape (D, 4098): below −8, 4096 bins, above 8.
        low: Smallest value of every coordinate, shape (D,).
        high: Largest.
    """
    edges = np.linspace(-GRID_END, GRID_END, GRID_BINS + 1)
    found = []
    for row, least, most in zip(counts, low, high):
        # The outermost bins end where the data do.
        first, last = min(float(least), -GRID_END - 1e-3), max(float(most), GRID_END + 1e-3)
        found.append(Binned(np.concatenate([[first], edges, [last]]), row))
    return found


def binned_keys(coarse: np.ndarray, edges: np.ndarray, fine: dict[int, np.ndarray]) -> Binned:
    """One coordinate counted by the order of floating-point numbers.

    Args:
        coarse: Rows in every cell, int64, shape (C,).
        edges: Where the cells begin, and the last one ends, float64, shape (C + 1,).
        fine: Of the cells that were looked at again, the rows in pieces of equal width.
    """
    used = np.flatnonzero(coarse)
    left, counts = [], []
    for k, following in zip(used.tolist(), [*used[1:].tolist(), -1]):
        pieces = fine.get(k, coarse[k : k + 1])
        left.append(np.linspace(edges[k], edges[k + 1], len(pieces) + 1)[:-1])
        counts.append(pieces)
        if following != k + 1:
            # Up to the next cell in use there are no rows.
            left.append(edges[k + 1 : k + 2])
            counts.append(np.zeros(1, np.int64))
    # The last of all is such a gap, which needs an end.
    return _trimmed(np.append(np.concatenate(left), np.inf), np.concatenate(counts))


def _trimmed(edges: np.ndarray, counts: np.ndarray) -> Binned:
    """Without empty bins at both ends."""
    used = np.flatnonzero(counts)
    return Binned(edges[used[0] : used[-1] + 2], counts[used[0] : used[-1] + 1])
