"""Columns by name: which become data, condition and weight."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fluvial.data.coordinates import Coordinates, assemble

# What to do about a column of text, and how many levels a label may have: an identifier has one per row.
LABELS = "leave it out with columns=, or make it a condition (categorical= of fluvial.data.load, pandas.get_dummies)"
LEVELS = 1000


class Chosen(NamedTuple):
    """Names of the columns that become x, c and weight.

    Attributes:
        groups: Columns of x, in order, and what they stand for.
        c: Columns of c, in order; empty without condition.
        weight: Column of the weights, or None.
        categorical: Those columns of c that hold labels and become one 0 or 1 per level.
    """

    groups: list[Coordinates]
    c: list[str]
    weight: str | None
    categorical: tuple[str, ...] = ()

    @property
    def x(self) -> list[str]:
        """Columns of x, in order."""
        return [name for group in self.groups for name in group.names]

    @property
    def needed(self) -> list[str]:
        """All columns that must be read."""
        return [*self.x, *self.c, *([] if self.weight is None else [self.weight])]

    @property
    def numeric(self) -> list[str]:
        """Those of the needed columns that must hold numbers."""
        return [name for name in self.needed if name not in self.categorical]

    def assemble(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Arguments of `Dataset` from the columns by name, each of shape (n,)."""
        found = assemble(self.groups, arrays)
        if self.c:
            parts = [one_hot(arrays[name], name) if name in self.categorical else (arrays[name][:, None], [name]) for name in self.c]
            found |= {"c": np.concatenate([values for values, _ in parts], 1), "condition_names": [name for _, names in parts for name in names]}
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
    categorical: str | Sequence[str] | None = None,
    where: str,
) -> Chosen:
    """Decide what each column is for.

    Args:
        present: All columns that there are.
        columns: Those of x; default all that are not condition or weight.
        condition: Those of c.
        weight: That of the weights.
        groups: Those of x and what they stand for, in place of columns.
        categorical: Those of c that hold labels; they come after the others unless condition names them too.
        where: What holds them, for messages.

    Raises:
        ValueError: If a name occurs twice, is unknown, has two uses, or nothing is left for x.
    """
    if len(set(present)) < len(present):
        twice = next(name for name in present if present.count(name) > 1)
        raise ValueError(f"{where}: column name {twice!r} occurs {present.count(twice)} times; give every column its own name")
    labels = _names(categorical)
    c = _names(condition)
    c += [name for name in labels if name not in c]
    x = _names(columns) if groups is None else [name for group in groups for name in group.names]
    for name in (*x, *c, *([] if weight is None else [weight])):
        if name not in present:
            raise ValueError(f"{where}: no column {name!r}; there are {', '.join(map(repr, present))}")
    if not x:
        x = [name for name in present if name not in c and name != weight]
    chosen = Chosen([Coordinates("columns", x)] if groups is None else groups, c, weight, tuple(labels))
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
            raise ValueError(f"column {name!r}, row {row}: {entry!r} is not a number; {LABELS}")
    return np.array(entries, np.float64)


def one_hot(column: Any, name: str) -> tuple[np.ndarray, list[str]]:
    """A column of labels as one column of 0 and 1 per level.

    Args:
        column: Shape (n,), texts or whole numbers.
        name: What it is called.

    Returns:
        Shape (n, levels), float64, the levels sorted (numbers by size), and the names "name=level".

    Raises:
        ValueError: If an entry is missing or neither text nor a whole number, naming the row, or there are more than 1000 levels.

    Example:
        >>> one_hot(["GLY", "ALA", "GLY"], "residue")
        (array([[0., 1.],
               [1., 0.],
               [0., 1.]]), ['residue=ALA', 'residue=GLY'])
    """
    entries = [_level(entry, name, row) for row, entry in enumerate(np.asarray(column).tolist())]
    levels = sorted(set(entries), key=_order)
    if len(levels) > LEVELS:
        raise ValueError(f"column {name!r}: {len(levels)} levels in {len(entries)} rows, more than {LEVELS}; is it a label?")
    place = {level: k for k, level in enumerate(levels)}
    values = np.zeros((len(entries), len(levels)))
    values[np.arange(len(entries)), [place[entry] for entry in entries]] = 1.0
    return values, [f"{name}={level}" for level in levels]


def _level(entry: Any, name: str, row: int) -> str:
    if isinstance(entry, bytes):
        entry = entry.decode(errors="replace")
    if isinstance(entry, float) and entry.is_integer():
        entry = int(entry)
    text = str(entry).strip() if isinstance(entry, str | int) else ""
    if not text:
        missing = entry is None or entry != entry or isinstance(entry, str)
        what = "is missing" if missing else f"is {entry!r}, neither text nor a whole number"
        raise ValueError(f"column {name!r}, row {row}: the label {what}; remove such rows or fill them in")
    return text


def _order(level: str) -> tuple[bool, int, str]:
    number = level.removeprefix("-").isdecimal()
    return not number, int(level) if number else 0, level


def _names(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else [str(name) for name in names]
