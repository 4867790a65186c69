"""Columns by name: which become data, condition and weight."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fluvial.data.latlon import unit_vectors
from fluvial.manifolds import Sphere


class Chosen(NamedTuple):
    """Names of the columns that become x, c and weight.

    Attributes:
        x: Columns of x, in order; (latitude, longitude) where `is_latlon`.
        c: Columns of c, in order; empty without condition.
        weight: Column of the weights, or None.
        is_latlon: Whether x is to become unit vectors.
    """

    x: list[str]
    c: list[str]
    weight: str | None
    is_latlon: bool

    @property
    def needed(self) -> list[str]:
        """All columns that must be read."""
        return [*self.x, *self.c, *([] if self.weight is None else [self.weight])]

    def assemble(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Arguments of `Dataset` from the columns by name, each of shape (n,)."""
        found: dict[str, Any] = {"x": np.stack([arrays[name] for name in self.x], 1), "names": self.x}
        if self.is_latlon:
            found = {"x": unit_vectors(*(arrays[name] for name in self.x)), "names": ["x", "y", "z"], "manifold": Sphere(2)}
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
    latlon: Sequence[str] | None = None,
    where: str,
) -> Chosen:
    """Decide what each column is for.

    Raises:
        ValueError: If a name occurs twice, is unknown, has two uses, or nothing is left for x.
    """
    if len(set(present)) < len(present):
        twice = next(name for name in present if present.count(name) > 1)
        raise ValueError(f"{where}: column name {twice!r} occurs {present.count(twice)} times; give every column its own name")
    if latlon is not None and (columns is not None or len(latlon) != 2 or isinstance(latlon, str)):
        raise ValueError(f"latlon: expected the names of two columns (latitude, longitude) and no columns=, got {latlon!r} and {columns!r}")
    c = _names(condition)
    x = _names(columns if latlon is None else latlon)
    for name in (*x, *c, *([] if weight is None else [weight])):
        if name not in present:
            raise ValueError(f"{where}: no column {name!r}; there are {', '.join(map(repr, present))}")
    if not x:
        x = [name for name in present if name not in c and name != weight]
    chosen = Chosen(x, c, weight, latlon is not None)
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
