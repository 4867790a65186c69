"""Columns of numbers as points of manifolds: places, angles, rotations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from fluvial.data.latlon import unit_vectors
from fluvial.manifolds import Euclidean, Manifold, Product, SpecialOrthogonal, Sphere, Torus

# How far nine numbers may be from a rotation matrix, as entries of RᵀR − 1.
ORTHOGONAL = 1e-3
# So many rotation vectors beyond a whole turn are no sign of degrees.
FEW = 3


class Coordinates(NamedTuple):
    """Columns that together give points of one factor.

    Attributes:
        kind: One of `KINDS`, or "columns" for numbers as they are.
        names: The columns, in order.
    """

    kind: str
    names: list[str]


class Points(NamedTuple):
    """Points of one manifold.

    Attributes:
        x: Shape (n, *event), float64.
        manifold: Where they live; None for flat space.
        names: Names of the flattened entries.
    """

    x: np.ndarray
    manifold: Manifold | None
    names: list[str]


def coordinates(
    *, columns: str | Sequence[str] | None = None, scalar_first: bool = False, **given: str | Sequence[str] | None
) -> list[Coordinates] | None:
    """What columns stand for, by kind, as the factors of a product in the order of `KINDS`; flat columns come last.

    Args:
        columns: Columns that stay numbers.
        scalar_first: Whether the four columns of a quaternion are w, x, y, z.
        given: The columns of each of `KINDS`.

    Returns:
        None where no kind is given.

    Raises:
        ValueError: If a kind has not its number of columns, latitude and longitude stand beside flat columns, or the names of a quaternion's
            columns show another order than the one said.

    Example:
        >>> coordinates(quaternion=["qx", "qy", "qz", "qw"], columns=["x", "y", "z"])[1]
        Coordinates(kind='columns', names=['x', 'y', 'z'])
    """
    found = []
    for kind, (count, meaning) in KINDS.items():
        if (names := given.get(kind)) is None:
            continue
        listed = [names] if isinstance(names, str) and count is None else list(names)
        wrong = isinstance(names, str) if count is not None else not listed
        if wrong or count not in (None, len(listed)) or (kind == "latlon" and columns is not None):
            many = {2: "two", 3: "three", 4: "four", 9: "nine", None: "one or more"}[count]
            beside = " and no columns=" if kind == "latlon" else ""
            shown = f"{names!r} and {columns!r}" if kind == "latlon" else f"{names!r}"
            raise ValueError(f"{kind}: expected the names of {many} columns ({meaning}){beside}, got {shown}")
        if kind == "quaternion":
            _check_order(listed, scalar_first=scalar_first)
            listed = [*listed[1:], listed[0]] if scalar_first else listed
        found.append(Coordinates(kind, listed))
    if scalar_first and given.get("quaternion") is None:
        raise ValueError("scalar_first says in which order the columns of a quaternion are; give quaternion= too, or leave it out")
    if not found:
        return None
    flat = [columns] if isinstance(columns, str) else list(columns or ())
    return [*found, Coordinates("columns", flat)] if flat else found


def assemble(groups: Sequence[Coordinates], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arguments x, names and manifold of `Dataset` from columns by name, each of shape (n,).

    Args:
        groups: What the columns stand for; several make points of a `Product`, in their order.
        arrays: The columns.

    Raises:
        ValueError: If numbers are no such coordinates, naming the row.
    """
    parts = [_points(group, np.stack([arrays[name] for name in group.names], 1)) for group in groups]
    if len(parts) == 1:
        x, manifold, _ = parts[0]
        if isinstance(manifold, SpecialOrthogonal):
            return {"x": x, "manifold": manifold}
        named = ["x", "y", "z"] if isinstance(manifold, Sphere) else groups[0].names
        return {"x": x, "manifold": manifold, "names": named}
    names: list[str] = []
    for part in parts:
        # A second rotation is called R2.
        again = sum(name.endswith("_0_0") for name in names) + 1
        names += [name.replace("R_", f"R{again}_", 1) if isinstance(part.manifold, SpecialOrthogonal) and again > 1 else name for name in part.names]
    flat = [part.x.reshape(len(part.x), -1) for part in parts]
    return {"x": np.concatenate(flat, 1), "names": names, "manifold": Product(*(part.manifold or Euclidean(part.x.shape[1]) for part in parts))}


def from_quaternion(q: ArrayLike) -> np.ndarray:
    """Quaternions of any length but 0 as rotation matrices, computed in float64.

    Args:
        q: Shape (n, 4), in the order x, y, z, w.

    Returns:
        Shape (n, 3, 3).

    Raises:
        ValueError: If an entry is not finite or a quaternion is 0, naming the row.

    Example:
        >>> from_quaternion([[0.0, 0.0, 2.0, 0.0]]).tolist()  # half a turn about z
        [[[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]]]
    """
    rows = _finite(q, 4, "quaternion")
    size = np.abs(rows).max(1)
    if (size == 0).any():
        raise ValueError(f"quaternion of row {_first(size == 0)} is 0, which stands for no rotation")
    # Divided by the largest entry, so that squares neither overflow nor vanish.
    return SpecialOrthogonal.from_quaternion(torch.from_numpy(rows / size[:, None])).numpy()


def from_rotation_vector(v: ArrayLike) -> np.ndarray:
    """Rotation vectors, axis times angle in radians, as rotation matrices, computed in float64.

    Args:
        v: Shape (n, 3).

    Returns:
        Shape (n, 3, 3).

    Raises:
        ValueError: If an entry is not finite, naming the row, or most vectors are longer than a whole turn, as in degrees.
    """
    rows = _finite(v, 3, "rotation vector")
    length = np.linalg.norm(rows, axis=1)
    beyond = length > 2 * np.pi
    # A trajectory may pass a whole turn now and then; a few rows prove nothing.
    if beyond.sum() > FEW and np.median(length) > 2 * np.pi:
        raise ValueError(
            f"rotation vector of row {_first(beyond)} is {length[beyond][0]:.4g} long ({int(beyond.sum())} of {len(rows)} rows beyond 2π, "
            "a whole turn); are these degrees? Divide by 57.3 (np.deg2rad) first"
        )
    return SpecialOrthogonal.from_rotation_vector(torch.from_numpy(rows)).numpy()


def from_rotation_matrix(entries: ArrayLike) -> np.ndarray:
    """Nine entries of rotation matrices, row by row, as the nearest exact rotations.

    Args:
        entries: Shape (n, 9).

    Returns:
        Shape (n, 3, 3), float64.

    Raises:
        ValueError: If an entry is not finite, or a matrix is no rotation up to 1e-3 in each entry of RᵀR, naming the row.
    """
    r = _finite(entries, 9, "rotation matrix").reshape(-1, 3, 3)
    away = np.abs(r.transpose(0, 2, 1) @ r - np.eye(3)).max((1, 2))
    if (away > ORTHOGONAL).any():
        row = _first(away > ORTHOGONAL)
        raise ValueError(
            f"rotation matrix of row {row} is not orthogonal: an entry of RᵀR is {away[row]:.3g} away from that of the unit matrix "
            f"({int((away > ORTHOGONAL).sum())} such rows); are the nine columns the entries row by row?"
        )
    if (mirrored := np.linalg.det(r) < 0).any():
        raise ValueError(f"rotation matrix of row {_first(mirrored)} is a reflection, its determinant is −1 ({int(mirrored.sum())} such rows)")
    return SpecialOrthogonal(3).project(torch.from_numpy(r)).numpy()


def from_angles(angles: ArrayLike, *, unit: str, names: Sequence[str] | None = None) -> np.ndarray:
    """Angles as pairs of cosine and sine, points of a torus, computed in float64.

    Args:
        angles: Shape (n, k), within two turns of each other: −360 … 360 degrees, −2π … 2π radians. NaN stays NaN.
        unit: "degrees" or "radians".
        names: Names of the columns, for messages.

    Returns:
        Shape (n, k, 2).

    Raises:
        ValueError: If an angle is out of range, naming row and column.

    Example:
        >>> from_angles([[90.0, -180.0]], unit="degrees").round(12).tolist()
        [[[0.0, 1.0], [-1.0, -0.0]]]
    """
    values = np.asarray(angles, np.float64)
    limit, mend = (360.0, "does it mark a missing angle?") if unit == "degrees" else (2 * np.pi, "are these degrees?")
    outside = np.abs(values) > limit * (1 + 1e-6)
    if outside.any():
        row, column = (int(k) for k in np.argwhere(outside)[0])
        label = repr(names[column]) if names is not None else str(column)
        raise ValueError(
            f"angle {label} of row {row} is {values[row, column]:g}, outside ±{limit:.4g} {unit} ({int(outside.any(1).sum())} such rows); {mend} "
            "Leave such rows out, and take angles that count whole turns modulo one"
        )
    radians = np.deg2rad(values) if unit == "degrees" else values
    return np.stack([np.cos(radians), np.sin(radians)], -1)


def _points(group: Coordinates, values: np.ndarray) -> Points:
    if group.kind == "columns":
        return Points(values, None, group.names)
    if group.kind == "latlon":
        return Points(unit_vectors(*values.T), Sphere(2), ["n_x", "n_y", "n_z"])
    if group.kind in ("degrees", "radians"):
        if (missing := np.isnan(values)).any():
            row, column = (int(k) for k in np.argwhere(missing)[0])
            count = int(missing.any(1).sum())
            raise ValueError(
                f"angle {group.names[column]!r} of row {row} is nan: {count} such rows of {len(values)}; remove these rows or fill them in"
            )
        points = from_angles(values, unit=group.kind, names=group.names)
        return Points(points, Torus(len(group.names)), [f"{part} {name}" for name in group.names for part in ("cos", "sin")])
    return Points(_ROTATIONS[group.kind](values), SpecialOrthogonal(3), [f"R_{i}_{j}" for i in range(3) for j in range(3)])


def _check_order(names: list[str], *, scalar_first: bool) -> None:
    first, last = (name.lower().endswith("w") for name in (names[0], names[-1]))
    if first and not last and not scalar_first:
        raise ValueError(f"quaternion: columns {', '.join(names)} look scalar first; say scalar_first=True")
    if last and not first and scalar_first:
        raise ValueError(f"quaternion: columns {', '.join(names)} look scalar last; leave scalar_first=True out")


def _finite(values: ArrayLike, count: int, what: str) -> np.ndarray:
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2 or rows.shape[1] != count:
        raise ValueError(f"{what}: expected shape (n, {count}), got {rows.shape}")
    bad = ~np.isfinite(rows).all(1)
    if bad.any():
        row = _first(bad)
        shown = ", ".join(f"{number:g}" for number in rows[row])
        raise ValueError(f"{what} of row {row} is ({shown}): {int(bad.sum())} such rows of {len(rows)}; remove these rows or fill them in")
    return rows


def _first(rows: np.ndarray) -> int:
    return int(np.flatnonzero(rows)[0])


_ROTATIONS: dict[str, Callable[[ArrayLike], np.ndarray]] = {
    "quaternion": from_quaternion,
    "rotation_vector": from_rotation_vector,
    "rotation_matrix": from_rotation_matrix,
}

# What columns may stand for, in the order of the factors of a product, with the number of columns (None: any) and what they are called.
KINDS: dict[str, tuple[int | None, str]] = {
    "latlon": (2, "latitude, longitude"),
    "degrees": (None, "angles"),
    "radians": (None, "angles"),
    "quaternion": (4, "x, y, z, w"),
    "rotation_vector": (3, "x, y, z"),
    "rotation_matrix": (9, "entries row by row"),
}
