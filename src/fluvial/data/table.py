"""Columns by name: which become data, condition and weight."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fluvial.data.coordinates import Coordinates, assemble


class Chosen(NamedTuple):
    """Names of the columns that become x, c and weight.

    Attributes:
        groups: Columns of x, in order, and what they stand for.
        c: Columns of c, in order; empty without condition.
        weight: Column of the weights, or None.
    """

    groups: list[Coordinates]
    c: list[str]
    weight: str | None

    @property
    def x(self) -> list[str]:
        """Columns of x, in order."""
        return [name for group in self.groups for name in group.names]

    @property
    def needed(self) -> list[str]:
        """All columns that must be read."""
        return [*self.x, *self.c, *([] if self.weight is None else [self.weight])]

    def assemble(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Arguments of `Dataset` from the columns by name, each of shape (n,)."""
        found = assemble(self.groups, arrays)
        if self.c:
            found |= {"c": np.stack([arrays[name] for name in self.c], 1), "condition_names": self.c}
        if self.weight is not None:
            found["weight"] = arrays[self.weight]
        return found


def choose(
    present: Sequence[str],
    *,
    columns: str | Sequence[str] | None = None,
    condition: str | Sequence[str] | None = None,
    weight: str | None = None,
    groups: list[Coordinates] | None = None,
    where: str,
) -> Chosen:
    """Decide what each column is for.

    Args:
        present: All columns that there are.
        columns: Those of x; default all that are not condition or weight.
        condition: Those of c.
        weight: That of the weights.
        groups: Those of x and what they stand for, in place of columns.
        where: What holds them, for messages.

    Raises:
        ValueError: If a name occurs twice, is unknown, has two uses, or nothing is left for x.
    """
    if len(set(present)) < len(present):
        twice = next(name for name in present if present.count(name) > 1)
        raise ValueError(f"{where}: column name {twice!r} occurs {present.count(twice)} times; give every column its own name")
    c = _names(condition)
    x = _names(columns) if groups is None else [name for group in groups for name in group.names]
    for name in (*x, *c, *([] if weight is None else [weight])):
        if name not in present:
            raise ValueError(f"{where}: no column {name!r}; there are {', '.join(map(repr, present))}")
    if not x:
        x = [name for name in present if name not in c and name != weight]
    chosen = Chosen([Coordinates("columns", x)] if groups is None else groups, c, weight)
    for name in chosen.needed:
        if chosen.needed.count(name) > 1:
            raise ValueError(f"{where}: column {name!r} is given two uses; it can be data, condition or weight once")
    if not x:
        raise ValueError(f"{where}: no column is left to be data, all {len(present)} are condition or weight")
    return chosen


def numbers(column: Any, name: str) -> np.ndarray:
    """A column of anything array-like as float64; missing entries become NaN.

    Raises:
        ValueError: Naming column and row where an entry is not a number.
    """
    array = np.asarray(column)
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    entries = [math.nan if entry is None or type(entry).__name__ in ("NAType", "NaTType") else entry for entry in array.tolist()]
    for row, entry in enumerate(entries):
        if not isinstance(entry, int | float | np.number):
            raise ValueError(f"column {name!r}, row {row}: {entry!r} is not a number; leave it out with columns=, or encode it as numbers")
    return np.array(entries, np.float64)


def _names(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else [str(name) for name in names]
