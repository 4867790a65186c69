"""What makes a data set unfit for a density, found before training and named with its mend."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.conditions import Condition, leaves
from fluvial.data.spec import DataSpec, flat_columns
from fluvial.manifolds import Manifold, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus

# A column with at most this many values, each taken by several rows, is discrete; 8-bit data has 256.
DISCRETE_VALUES = 512
DISCRETE_REPEATS = 4
# Integers of this size and more are all that float32 has.
LARGEST_INTEGER = 2.0**21
# One value of an otherwise continuous column: its share, its copies, and its copies against the typical ones.
ATOM_SHARE, ATOM_COPIES, ATOM_CONTRAST = 1e-3, 10, 20
# Rows that repeat an earlier one, and copies of a single row, as shares of all.
REPEATED_ROWS, REPEATED_ROW = 0.05, 5e-3
# Smallest eigenvalue of the correlation matrix, against the largest, of columns that depend on each other up to rounding.
DEPENDENT = 1e-10
# Rows that are projected at once.
PROJECTED = 2**16
# Points of the Poincaré ball have a norm below 1 by more than this.
HORIZON = 1e-7
# The column checks sort; beyond this many rows they look at every k-th.
COLUMN_ROWS = 200_000


def check_weight(weight: Tensor | None) -> None:
    """Refuse weights that are negative or sum to nothing.

    Raises:
        ValueError: Naming the row.
    """
    if weight is None:
        return
    if bool((weight < 0).any()):
        row = int((weight < 0).nonzero()[0])
        count = int((weight < 0).sum())
        raise ValueError(
            f"weight of row {row} is {weight[row]:g} ({count} negative of {len(weight)}): likelihood training needs weights ≥ 0; "
            "train on the rows with weight > 0, or reweight the sample first"
        )
    if float(weight.sum()) == 0:
        raise ValueError(f"all {len(weight)} weights are 0; leave weight out to count every row alike")


def check_finite(x: Tensor, c: Condition, spec: DataSpec) -> None:
    """Refuse NaN and infinities in x and in every part of the condition.

    Raises:
        ValueError: Naming the first bad row and column.
    """
    labels = spec.condition_names
    for name, values in {"": x, **leaves(c)}.items():
        finite = torch.isfinite(values).flatten(1)
        if bool(finite.all()):
            continue
        bad = ~finite.all(1)
        row = int(bad.nonzero()[0])
        entry = int((~finite[row]).nonzero()[0])
        column = spec.column(entry) if name == "" else repr(labels[entry]) if labels else str(entry)
        place = f"condition {name!r}, column {column}" if name else f"column {column}"
        raise ValueError(
            f"row {row}, {place} is {float(values.flatten(1)[row, entry])} ({int(bad.sum())} such rows of {len(values)}); "
            "remove these rows or fill them in"
        )


def check_on_manifold(x: Tensor, spec: DataSpec) -> None:
    """Refuse points away from the manifold by more than rounding.

    Of more than a million rows, 200 000 at equal distances are looked at: to project ten million matrices takes minutes.

    Raises:
        ValueError: Naming the first such row.
    """
    if spec.manifold is None:
        return
    stride = len(x) // COLUMN_ROWS if len(x) > 10**6 else 1
    x = x[::stride]
    nearest = spec.manifold.project(x)
    away = (nearest - x).flatten(1).norm(dim=1)
    away = torch.where(_torn(x, nearest, spec.manifold), away.clamp_min(1.0), away)
    off = (away > 1e-3) | _on_horizon(x, spec.manifold)
    if bool(off.any()):
        found = int(off.nonzero()[0])
        bad, looked = int(off.sum()), " looked at" if stride > 1 else ""
        raise ValueError(
            f"row {found * stride} lies {float(away[found]):.3g} away from {spec.manifold} ({bad} such rows of {len(x)}{looked}); "
            + _way_back(x[found : found + 1], spec.manifold)
        )


def nearest_points(x: Tensor, manifold: Manifold) -> Tensor:
    """Rows moved to the nearest point of the manifold; those stay where they are that have none, as reflections, or are not finite.

    Args:
        x: Shape (n, *event).
        manifold: Where the points shall be.

    Returns:
        A new tensor of the same shape.

    Example:
        >>> nearest_points(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Sphere(1))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    moved = x.clone()
    for rows in torch.isfinite(x).flatten(1).all(1).nonzero().flatten().split(PROJECTED):
        nearest = manifold.project(x[rows])
        lost = _torn(x[rows], nearest, manifold) | _on_horizon(x[rows], manifold) | _is_reflected(x[rows], manifold)
        moved[rows[~lost]] = nearest[~lost]
    return moved


def _torn(x: Tensor, nearest: Tensor, manifold: Manifold) -> Tensor:
    """Rows where a small step changes the projection much, as at the centre of a sphere: there is no nearest point."""
    return (manifold.project(x + 1e-3) - nearest).flatten(1).norm(dim=1) > 0.1


def _is_reflected(x: Tensor, manifold: Manifold) -> Tensor:
    """Rows of negative determinant where there should be rotations."""
    if isinstance(manifold, SpecialOrthogonal):
        return torch.linalg.det(x) < 0
    reflected = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if isinstance(manifold, Product):
        for part, factor in zip(manifold.split(x), manifold.factors):
            reflected |= _is_reflected(part, factor)
    return reflected


def _on_horizon(x: Tensor, manifold: Manifold) -> Tensor:
    """Rows that are on or beyond the boundary of a ball, infinitely far from any point of it; the projection moves these by little."""
    if isinstance(manifold, PoincareBall):
        return x.double().norm(dim=1) >= 1 - HORIZON
    off = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if isinstance(manifold, Product):
        for part, factor in zip(manifold.split(x), manifold.factors):
            off |= _on_horizon(part, factor)
    return off


def _way_back(x: Tensor, manifold: Manifold, *, within: Manifold | None = None) -> str:
    """What to do about a point, shape (1, *event), that lies off the manifold, a factor of `within` or that itself."""
    if isinstance(manifold, Product):
        parts = list(zip(manifold.split(x), manifold.factors))
        nearest = [factor.project(part) for part, factor in parts]
        lost = [bool(_on_horizon(part, factor) | _torn(part, near, factor)) for (part, factor), near in zip(parts, nearest)]
        distance = [math.inf if gone else float((near - part).norm()) for (part, _), near, gone in zip(parts, nearest, lost)]
        part, factor = parts[distance.index(max(distance))]
        return _way_back(part, factor, within=within or manifold)
    part = "it" if within is None else f"its part on {manifold}"
    if bool(_is_reflected(x, manifold)):
        return (
            f"{part} is a reflection, its determinant is −1, and no rotation is near: make the frame right-handed, "
            "by swapping two axes or changing the sign of one, alike in all rows"
        )
    if isinstance(manifold, PoincareBall) and bool((x.norm(dim=1) >= 1 - 1e-3).all()):
        return f"{part} has norm {float(x.norm()):.8g}, and points of norm ≥ 1 are no points of the ball: scale the points, or leave such rows out"
    if bool(_torn(x, manifold.project(x), manifold)):
        return f"no one point of {manifold} is nearest to {'it' if within is None else 'its part there'}: leave such rows out"
    text = f"call {within or manifold}.project(x) first (project=True of fluvial.data.load)"
    if isinstance(manifold, SpecialOrthogonal):
        return text + "; for quaternions or rotation vectors see fluvial.data.load"
    if isinstance(manifold, Sphere | Torus):
        return text + "; for degrees see fluvial.data.load"
    return text


def check_continuous(x: Tensor, weight: Tensor | None, spec: DataSpec) -> None:
    """Refuse constant columns, discrete columns, single values or rows of positive mass, unless noise is declared for them.

    Columns to which the data's own noise or dequantisation is added are not looked at.

    Raises:
        ValueError: Naming column or row, what was found, and the mend.
    """
    if weight is not None:
        # Rows of no weight are no part of the distribution.
        x, weight = x[weight > 0], weight[weight > 0]
    columns = (~spec.is_perturbed()).nonzero().flatten()
    free = torch.zeros(math.prod(x.shape[1:]), dtype=torch.bool)
    free[columns] = True
    x, columns = _coordinates(x, spec.manifold)
    chosen = free[columns]
    # Adding 0.0 makes −0.0 equal to 0.0 bit for bit.
    x, columns = x[:, chosen.to(x.device)] + 0.0, columns[chosen]
    if len(x) < 2:
        raise ValueError(f"a density needs at least 2 rows (of positive weight), got {len(x)}")
    if len(columns) == 0:
        return
    _check_constant(x, columns, spec)
    counted = [_count_some(column, weight) for column in x.unbind(1)]
    _check_discrete(counted, columns, spec)
    _check_values(counted, columns, spec)
    _check_rows(x, weight)


def _coordinates(x: Tensor, manifold: Manifold | None) -> tuple[Tensor, Tensor]:
    """Numbers that a density spreads out, (n, k), and the column of the flattened points that each stands for: the entries, but angles on tori.

    Near 0 and 180 degrees many angles have one cosine in single precision.
    """
    if isinstance(manifold, Torus):
        return Torus.to_angles(x), torch.arange(0, 2 * manifold.dim, 2)
    if isinstance(manifold, Product):
        parts = [_coordinates(part, factor) for part, factor in zip(manifold.split(x), manifold.factors)]
        sizes = [0, *(math.prod(factor.event_shape) for factor in manifold.factors[:-1])]
        starts = torch.tensor(sizes).cumsum(0)
        return torch.cat([values for values, _ in parts], 1), torch.cat([columns + start for (_, columns), start in zip(parts, starts)])
    return x.flatten(1), torch.arange(math.prod(x.shape[1:]))


class _Counts(NamedTuple):
    """The distinct values of a column in order, how many rows take each, and their share of the weight."""

    values: Tensor
    copies: Tensor
    share: Tensor


def check_rank(x: Tensor, spec: DataSpec) -> None:
    """Refuse columns that are linear combinations of each other, on which no density of full dimension exists.

    Raises:
        ValueError: Naming the columns of one such combination.
    """
    n, columns = len(x), x.shape[1] if x.ndim == 2 else 0
    if columns < 2 or n <= columns or bool(spec.is_perturbed().any()):
        return
    centred = x.double() - x.double().mean(0)
    scale = centred.square().mean(0).sqrt()
    if not bool((scale > 0).all()):
        return
    values, vectors = torch.linalg.eigh((centred / scale).T @ (centred / scale) / n)
    if float(values[0]) > DEPENDENT * float(values[-1]):
        return
    involved = [spec.column(int(k)) for k in (vectors[:, 0].abs() > 0.05).nonzero().flatten()[:6]]
    raise ValueError(
        f"the columns {', '.join(involved)} are linear combinations of each other, so the data have no density in {columns} dimensions; "
        "drop one of them, use a bottleneck (latent=…), or add noise="
    )


def _count(values: Tensor, weight: Tensor | None) -> _Counts:
    distinct, group, copies = torch.unique(values, return_inverse=True, return_counts=True)
    if weight is None:
        return _Counts(distinct, copies, copies.double() / len(values))
    mass = torch.zeros(len(distinct), dtype=torch.float64, device=values.device).index_add_(0, group, weight.double())
    return _Counts(distinct, copies, mass / mass.sum().clamp_min(torch.finfo(torch.float64).tiny))


def _count_some(values: Tensor, weight: Tensor | None) -> _Counts:
    """The counts of every k-th row, or of all where those show one value only."""
    step = -(-len(values) // COLUMN_ROWS)
    counts = _count(values[::step], None if weight is None else weight[::step])
    return counts if len(counts.values) > 1 else _count(values, weight)


def _check_constant(x: Tensor, columns: Tensor, spec: DataSpec) -> None:
    constant = (x.amax(0) == x.amin(0)).nonzero().flatten().tolist()
    if not constant:
        return
    flat = spec.manifold is None and len(spec.event_shape) == 1
    mend = "drop_constant=True leaves them out, " if flat else ""
    raise ValueError(
        f"{_listed(constant, columns, spec)} constant ({float(x[0, constant[0]]):g} in every row): no density has that; "
        f"{mend}noise= or dequantize= adds spread in training"
    )


def _check_discrete(counted: list[_Counts], columns: Tensor, spec: DataSpec) -> None:
    discrete = []
    for j, counts in enumerate(counted):
        rows = int(counts.copies.sum())
        few = len(counts.values) <= min(DISCRETE_VALUES, rows / DISCRETE_REPEATS)
        whole = rows >= 20 and bool((counts.values == counts.values.round()).all()) and float(counts.values.abs().max()) < LARGEST_INTEGER
        if few or whole:
            discrete.append(j)
    if discrete:
        counts = counted[discrete[0]]
        width = float(counts.values.diff().min())
        flat = not isinstance(spec.manifold, Product) or flat_columns(spec.manifold)[int(columns[discrete[0]])]
        mend = f"dequantize={width:.3g} adds uniform noise of that width in training, noise= Gaussian noise" if flat else "noise= adds Gaussian noise"
        raise ValueError(
            f"{_listed(discrete, columns, spec)} discrete ({len(counts.values)} values in {int(counts.copies.sum())} rows, "
            f"{width:.3g} apart): a density on them has no bound; {mend}; or make it a condition"
        )


def _check_values(counted: list[_Counts], columns: Tensor, spec: DataSpec) -> None:
    for j, counts in enumerate(counted):
        limit = max(ATOM_COPIES, ATOM_CONTRAST * int(counts.copies.median()))
        atoms = (counts.copies >= limit) & (counts.share >= ATOM_SHARE)
        if bool(atoms.any()):
            top = int(torch.where(atoms, counts.share, -1.0).argmax())
            raise ValueError(
                f"column {spec.column(int(columns[j]))} has an atom: {int(counts.copies[top])} of {int(counts.copies.sum())} rows "
                f"({100 * float(counts.share[top]):.3g} % of the weight) are exactly {float(counts.values[top]):g}, "
                f"{int(atoms.sum())} such value(s) in all; "
                "a density there has no bound: give noise= or dequantize=, or model those rows apart"
            )


def _check_rows(x: Tensor, weight: Tensor | None) -> None:
    keys = _row_keys(x)
    counts = _count(keys, weight)
    again = 1 - float((counts.share / counts.copies).sum())
    top = int(torch.where(counts.copies >= ATOM_COPIES, counts.share, 0.0).argmax())
    # A single column is judged by _check_values, which knows how often rounding alone makes values meet.
    heavy = x.shape[1] > 1 and int(counts.copies[top]) >= ATOM_COPIES and float(counts.share[top]) >= REPEATED_ROW
    if not heavy and (again < REPEATED_ROWS or again < REPEATED_ROWS + 2 * _meetings_by_rounding(x)):
        return
    most = int(counts.copies.argmax())
    row = int((keys == counts.values[most]).nonzero()[0])
    spread = float(x.double().std(0).mean())
    raise ValueError(
        f"atoms: {len(x) - len(counts.values)} of {len(x)} rows repeat an earlier one ({len(counts.values)} distinct; "
        f"row {row} occurs {int(counts.copies[most])} times); a density there has no bound: "
        f"give noise= (such as noise={0.01 * spread:.1g}, 1 % of the spread), or dequantize= for rounded data"
    )


def _meetings_by_rounding(x: Tensor) -> float:
    """The share of rows expected to repeat another one in a continuous sample, because floating-point numbers are a grid.

    Two rows meet only if they meet in every column, so the column with the fewest meetings bounds it. In one column the expected number of
    other rows on the same number is its spacing times the rows per unit length nearby, taken over 64 neighbouring values.
    """
    fewest = 1.0
    for column in x.unbind(1):
        values, copies = torch.unique(column, return_counts=True)
        near = min(64, len(values) - 1)
        rows = copies.cumsum(0).double()
        per_length = (rows[near:] - rows[:-near]) / (values[near:] - values[:-near]).double()
        middle = slice(near // 2, near // 2 + len(per_length))
        at = values[middle].abs()
        spacing = (torch.nextafter(at, torch.full_like(at, torch.inf)) - at).double()
        meetings = (spacing * per_length).clamp(max=1.0)
        fewest = min(fewest, float((meetings * copies[middle]).sum() / copies[middle].sum()))
    return fewest


def _row_keys(x: Tensor) -> Tensor:
    """A 64-bit key per row: equal rows have equal keys, and different rows almost surely different ones."""
    generator = torch.Generator().manual_seed(0)
    odd = (torch.randint(-(2**62), 2**62, (x.shape[1] + 2,), generator=generator) * 2 + 1).to(x.device)
    whole = torch.int64 if x.dtype == torch.float64 else torch.int32
    keys = []
    for block in x.split(2**18):
        # Round numbers end in zero bits, which a product alone would keep: the shifts bring the high bits down.
        mixed = block.contiguous().view(whole).to(torch.int64) * odd[0]
        mixed = (mixed ^ (mixed >> 29)) * odd[1]
        keys.append(((mixed ^ (mixed >> 32)) * odd[2:]).sum(1))
    return torch.cat(keys)


def _listed(found: list[int], columns: Tensor, spec: DataSpec) -> str:
    names = [spec.column(int(columns[j])) for j in found]
    if len(names) == 1:
        return f"column {names[0]} is"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"columns {', '.join(names[:3])}{more} are"
