"""Counts of coordinates whose range is not known."""

from collections.abc import Callable

import numpy as np

from fluvial.gaussianization.kernel_histogram import from_keys
from fluvial.gaussianization.statistics import Binned, binned_keys
from fluvial.gaussianization.workers import Workers

_COLUMNS = 32  # counted at a time: 16 MB of counts
_FINE = 8  # bits by which a cell is cut


def raw_coordinates(workers: Workers, features: int, p: np.ndarray | Callable[[int], np.ndarray]) -> list[Binned]:
    """Count the rows as they are, by the order of floating-point numbers: first by the upper half of their bits, then by the next eight bits where
    the quantiles of the probabilities p lie. All counts are whole numbers, so that the result is the same for any number of workers.

    Args:
        workers: Hold the rows.
        features: D.
        p: Probabilities, increasing, or what gives them for the sum of the counts.
    """
    with np.errstate(invalid="ignore"):  # some keys are those of NaN; no rows have them
        begins = from_keys(np.arange(2**16, dtype=np.uint32) << np.uint32(16)).astype(np.float64)
    edges = np.append(begins, np.inf)
    found: list[Binned] = []
    for start in range(0, features, _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, features))
        coarse = workers.total("count_keys", columns)
        cells = [_cells(row, p(int(row.sum())) if callable(p) else p) for row in coarse]
        slots = max(map(len, cells))
        selected = np.full(coarse.shape, -1, np.int32)
        for row, chosen in zip(selected, cells):
            row[chosen] = np.arange(len(chosen))
        fine = workers.total("count_fine", columns, selected, slots)
        for row, chosen, inner in zip(coarse, cells, fine):
            found.append(binned_keys(row, edges, dict(zip(chosen.tolist(), inner))))
    return found


def _cells(counts: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Numbers of the cells in which the quantiles lie, and of those at both ends."""
    cumulative = np.cumsum(counts)
    used = np.flatnonzero(counts)
    # A quantile lies between two rows, which may be in different cells.
    ranks = np.concatenate([p * cumulative[-1] + side for side in (-0.5, 0.5)])
    inner = np.searchsorted(cumulative, ranks, side="left").clip(used[0], used[-1])
    return np.unique(np.concatenate([inner[counts[inner] > 0], used[[0, -1]]]))
