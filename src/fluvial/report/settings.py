"""Which conditions to show a conditional flow at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fluvial.conditions import Condition, leaves, transform
from fluvial.report.theme import as_rows

MOST_VALUES, MOST_QUANTILES = 10, (0.05, 0.25, 0.5, 0.75, 0.95)
_FEWEST_NEIGHBOURS, _MOST_NEIGHBOURS = 60, 2000


@dataclass(frozen=True)
class Setting:
    """One condition, taken from the data, and the rows of data to compare samples at it with.

    Attributes:
        label: What to call it.
        c: The condition, leaves of shape (*condition event); None for a flow without conditions.
        rows: Numbers of the rows of data that have it, or come nearest to it.
        exact: Whether the rows have just this condition.
    """

    label: str
    c: Condition
    rows: np.ndarray
    exact: bool = True

    def repeated(self, n: int) -> Condition:
        """The condition once for each of n rows."""
        return transform(self.c, lambda leaf: leaf.expand(n, *leaf.shape))


def settings(c: Condition, n: int, *, names: Sequence[str] | None = None) -> list[Setting]:
    """Up to ten values of a condition that takes few, else those at five quantiles along its direction of largest spread.

    Args:
        c: Conditions of the rows of data, or None.
        n: Number of rows.
        names: Of the columns of a condition that is one vector.

    Example:
        >>> import torch
        >>> [setting.label for setting in settings(torch.tensor([[1.0], [2.0], [1.0]]), 3, names=["T"])]
        ['T = 1', 'T = 2']
    """
    if c is None:
        return [Setting("", None, np.arange(n))]
    table = np.concatenate([as_rows(leaf) for _, leaf in sorted(leaves(c).items())], 1)
    values, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    if len(values) <= MOST_VALUES:
        found = [(int(first[k]), np.flatnonzero(inverse == k), True) for k in range(len(values))]
        if _one_hot(values):
            # In the order of the classes, not of the vectors.
            found.sort(key=lambda entry: int(table[entry[0]].argmax()))
    else:
        scaled = (table - table.mean(0)) / np.where(table.std(0) > 0, table.std(0), 1.0)
        direction = np.linalg.svd(scaled, full_matrices=False)[2][0]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        order = np.argsort(scaled @ direction, kind="stable")
        chosen = dict.fromkeys(int(order[round(q * (n - 1))]) for q in MOST_QUANTILES)
        near = min(max(n // 10, _FEWEST_NEIGHBOURS), _MOST_NEIGHBOURS, n)
        found = [(row, np.sort(np.argsort(((scaled - scaled[row]) ** 2).sum(1), kind="stable")[:near]), False) for row in chosen]
    return [Setting(_label(c, row, names), transform(c, lambda leaf: leaf[row]), rows, exact) for row, rows, exact in found]  # noqa: B023


def _one_hot(values: np.ndarray) -> bool:
    return values.shape[1] > 1 and bool(((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all())


def _label(c: Condition, row: int, names: Sequence[str] | None) -> str:
    parts = []
    for leaf_name, leaf in leaves(c).items():
        entry: Tensor = leaf[row].flatten()
        columns = (
            list(names)
            if names is not None and not isinstance(c, dict)
            else [leaf_name]
            if len(entry) == 1
            else [f"{leaf_name}[{k}]" for k in range(len(entry))]
        )
        vector = entry.double().cpu().numpy()
        if _one_hot(vector[None]):
            hot = int(vector.argmax())
            parts.append(columns[hot] if names is not None else f"class {hot}")
        elif len(vector) > 4:
            parts.append(f"{leaf_name} of row {row}")
        else:
            parts += [f"{name} = {value:.4g}" for name, value in zip(columns, vector)]
    return ", ".join(parts)
