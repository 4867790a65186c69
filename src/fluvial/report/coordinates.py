"""The numbers in which people read points: degrees of angles, rotation vectors, places in the Poincaré ball."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

import numpy as np
from torch import Tensor

from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus
from fluvial.report.globe import angles
from fluvial.report.ramachandran import EDGES, angle_labels, degrees
from fluvial.report.rotations import rotation_vectors
from fluvial.report.theme import as_rows

Bins = np.ndarray | None


@dataclass(frozen=True)
class Coordinates:
    """Points as a table.

    Attributes:
        values: Shape (n, columns).
        labels: Name and unit of every column.
        edges: Bins that suit a column, or None where its values decide.
        derived: Which columns are functions of the others: they belong into histograms, not into plots of pairs.
    """

    values: np.ndarray
    labels: list[str]
    edges: list[Bins] = field(default_factory=list)
    derived: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", self.edges or [None] * len(self.labels))
        object.__setattr__(self, "derived", self.derived or [False] * len(self.labels))

    @property
    def independent(self) -> list[int]:
        """Numbers of the columns that are not derived."""
        return [k for k, derived in enumerate(self.derived) if not derived]


def coordinates(manifold: Manifold, x: Tensor, *, names: Sequence[str] | None = None, units: Sequence[str] | None = None) -> Coordinates:
    r"""Points in the coordinates of their space.

    Args:
        manifold: Where they lie.
        x: The points, shape (n, \*event).
        names: What the columns of flattened points are called; on a torus, its angles.
        units: Of the same.

    Example:
        >>> import torch
        >>> coordinates(Torus(1), torch.tensor([[[0.0, 1.0]]])).values.tolist()
        [[90.0]]
        >>> coordinates(SpecialOrthogonal(3), torch.eye(3)[None]).labels
        ['rotation angle [°]', 'rotation x [°]', 'rotation y [°]', 'rotation z [°]']
    """
    if isinstance(manifold, Product):
        return _of_product(manifold, x, names, units)
    if isinstance(manifold, Torus):
        labels = [f"{name}, degrees" for name in angle_labels(names, manifold.dim)]
        return Coordinates(degrees(x), labels, [EDGES] * manifold.dim)
    if isinstance(manifold, Sphere) and manifold.dim == 2:
        longitude, latitude = angles(as_rows(x))
        return Coordinates(np.degrees(np.stack([longitude, latitude], 1)), ["longitude, degrees", "latitude, degrees"])
    if isinstance(manifold, Sphere) and manifold.dim == 1:
        return _angle(as_rows(x))
    if isinstance(manifold, SpecialOrthogonal) and manifold.n == 2:
        return _angle(as_rows(x[..., 0]))
    if isinstance(manifold, SpecialOrthogonal) and manifold.n == 3:
        vector = np.degrees(rotation_vectors(x))
        values = np.concatenate([np.linalg.norm(vector, axis=1, keepdims=True), vector], 1)
        labels = ["rotation angle [°]", *(f"rotation {axis} [°]" for axis in "xyz")]
        return Coordinates(values, labels, [np.linspace(0, 180, 46), None, None, None], [True, False, False, False])
    if isinstance(manifold, PoincareBall | Hyperboloid):
        return _hyperbolic(manifold, x, names)
    rows = as_rows(x)
    return Coordinates(rows, column_labels(names, units, rows.shape[1]))


def column_labels(names: Sequence[str] | None, units: Sequence[str] | None, columns: int) -> list[str]:
    """Name and unit of every column of the flattened sample."""
    known = list(names) if names is not None and len(names) == columns else [f"x[{k}]" for k in range(columns)]
    if units is None or len(units) != columns:
        return known
    return [f"{name} [{unit}]" if unit else name for name, unit in zip(known, units)]


def factor_names(manifold: Product) -> list[str]:
    """What to call the factors: as they are written, numbered where two are the same."""
    names = [repr(factor) for factor in manifold.factors]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}, number {names[: k + 1].count(name)}" for k, name in enumerate(names)]


def factor_columns(manifold: Product, names: Sequence[str] | None) -> list[Sequence[str] | None]:
    """The names of the columns of a product, or their units, cut into those of the factors that have vectors as points."""
    sizes = [prod(factor.event_shape) for factor in manifold.factors]
    ends = list(accumulate(sizes))
    if names is None or len(names) != ends[-1]:
        return [None] * len(sizes)
    return [names[end - size : end] if isinstance(factor, Euclidean) else None for factor, size, end in zip(manifold.factors, sizes, ends)]


def _angle(rows: np.ndarray) -> Coordinates:
    return Coordinates(np.degrees(np.arctan2(rows[:, 1], rows[:, 0]))[:, None], ["angle, degrees"], [EDGES])


def _hyperbolic(manifold: PoincareBall | Hyperboloid, x: Tensor, names: Sequence[str] | None) -> Coordinates:
    rows = as_rows(Hyperboloid.to_ball(x) if isinstance(manifold, Hyperboloid) else x)
    far = 2 * np.arctanh(np.minimum(np.linalg.norm(rows, axis=1, keepdims=True), 1 - 1e-7))
    if manifold.dim == 1:
        return Coordinates(np.sign(rows) * far, ["signed distance from the centre"])
    labels = column_labels(names, None, manifold.dim) if isinstance(manifold, PoincareBall) else [f"ball x[{k}]" for k in range(manifold.dim)]
    return Coordinates(np.concatenate([far, rows], 1), ["distance from the centre", *labels], derived=[True] + [False] * manifold.dim)


def _of_product(manifold: Product, x: Tensor, names: Sequence[str] | None, units: Sequence[str] | None) -> Coordinates:
    named, measured = factor_columns(manifold, names), factor_columns(manifold, units)
    parts = [
        coordinates(factor, part, names=name, units=unit) for factor, part, name, unit in zip(manifold.factors, manifold.split(x), named, measured)
    ]
    count = Counter(label for part in parts for label in part.labels)
    return Coordinates(
        np.concatenate([part.values for part in parts], 1),
        [label if count[label] == 1 else f"{k + 1}: {label}" for k, part in enumerate(parts) for label in part.labels],
        [bins for part in parts for bins in part.edges],
        [derived for part in parts for derived in part.derived],
    )
