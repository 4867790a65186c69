"""What is known of the rows before the first map, from one pass over them."""

from typing import NamedTuple

import numpy as np

from fluvial.gaussianization import keyed
from fluvial.gaussianization.columns import check_extent
from fluvial.gaussianization.joint_layers import ConditionRows
from fluvial.gaussianization.shard import WEIGHT_STEPS, Plan
from fluvial.gaussianization.sources import RowSource
from fluvial.gaussianization.workers import Workers

_SURVEYED = 20_000  # rows that are looked at for ties, and for dependence
_LIGHTEST = 1e-290  # largest weight that leaves room for what is computed with weights


class FirstLook(NamedTuple):
    """Extremes and some rows.

    Attributes:
        low: Smallest number of every column, (D,).
        high: Largest.
        sample: Some rows, (m, D).
        numbers: Theirs, (m,).
        weight: Their weights, (m,).
        heaviest: What weights are divided by, so that their squares are numbers: the largest one, or 1 where all are whole and not too large.
        whole: Whether weights are whole and not too large, or there are none: rows then count as often.
        digest: Of all numbers, by which data are known again.
    """

    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray
    numbers: np.ndarray
    weight: np.ndarray
    heaviest: float
    whole: bool
    digest: int

    @property
    def extent(self) -> list[float]:
        """Smallest numbers, then largest, by which data are known again."""
        return [*self.low.tolist(), *self.high.tolist()]


def first_look(workers: Workers, plan: Plan) -> FirstLook:
    """Read all rows once.

    Raises:
        ValueError: If numbers are too large, too small or too close together for single precision, a condition is the same in all rows, or
            weights are too small.
    """
    source = plan.source
    parts = workers.call("survey", None, keyed.sample_rows(plan.seed, source.rows, _SURVEYED, "survey"))
    low, high = np.minimum.reduce([part.low for part in parts]), np.maximum.reduce([part.high for part in parts])
    check_extent(low, high, names_of(source), what=column_of(source))
    if source.condition_features:
        low_c, high_c = np.minimum.reduce([part.condition[0] for part in parts]), np.maximum.reduce([part.condition[1] for part in parts])
        names = names_in(source.condition_names, source.condition_features)
        check_extent(low_c, high_c, names, what="condition column")
        if (low_c == high_c).all():
            held = ", ".join(f"{value:g}" for value in low_c[:5]) + ", …" * (len(low_c) > 5)
            raise ValueError(f"fit: the condition is the same in all rows ({held}), so that nothing depends on it; leave it out")
    largest, whole = max(part.weight[0] for part in parts), all(part.weight[1] for part in parts)
    whole = not source.has_weight or (whole and largest <= WEIGHT_STEPS)
    if 0 < largest < _LIGHTEST and not whole:
        raise ValueError(f"fit: the largest weight is {largest:.3g}, which leaves no digits to the others; multiply all weights by the same number")
    numbers, sample, weight = (np.concatenate([part.sample[k] for part in parts]) for k in range(3))
    digest = sum(part.digest for part in parts)
    return FirstLook(low, high, sample, numbers, weight, 1.0 if whole or largest == 0 else largest, whole, digest)


def names_of(source: RowSource) -> list[str]:
    """What to call the columns in messages."""
    return names_in(source.names, source.features)


def names_in(names: tuple[str, ...] | None, columns: int) -> list[str]:
    """Names in quotation marks, or numbers."""
    return [str(k) for k in range(columns)] if names is None else [repr(name) for name in names]


def column_of(source: RowSource) -> str:
    """What its columns are."""
    return "condition column" if isinstance(source, ConditionRows) else "column"
