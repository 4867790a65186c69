"""Data sets: rows held in memory, with what a model must know about them."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fluvial.conditions import Condition, transform
from fluvial.data import problems, table
from fluvial.data.spec import DataSpec
from fluvial.manifolds import Manifold

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class HasLogProb(Protocol):
    """What knows the true density of a data set."""

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density at x of shape (\*batch, \*event), shape (\*batch,)."""
        ...


class Splits(NamedTuple):
    """A data set cut into three."""

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"


class Dataset:
    r"""Rows x, with a condition and a weight each where there are any, and their description.

    Tensors stay on the device where they are and keep float32 or float64; arrays of other kinds become torch's default dtype.
    Condition and weight take the dtype and device of x; bool parts of a condition (masks) stay bool.

    Args:
        x: Samples, shape (n, \*event); (n,) counts as (n, 1). Array or tensor.
        c: Condition, shape (n, \*condition event), a dict of such, or None; (n,) counts as (n, 1).
        weight: Weight of every row, shape (n,), or None where all count alike.
        manifold: Where the samples live; None is flat space.
        names: Column names of x, for vectors; on a torus, the names of the angles.
        condition_names: Column names of c, for a condition that is one vector.
        units: Units of the columns of x.
        noise: Standard deviation of Gaussian noise that training adds to x, one number or one per column.
        dequantize: Width of uniform noise that training adds to x (1.0 for integers), one number or one per column.
        drop_constant: Leave out columns that hold one value only; their names are kept in ``spec.dropped``. For vectors in flat space.
        spec: The whole description at once, in place of the seven arguments before it.
        truth: An object with ``log_prob(x)``, where the true density is known.
        official: Row numbers of training, validation and test split, where the data set comes with them.
        name: What to call it.
        citation: Whom to cite.
        licence: Under what terms it is distributed.
        synthetic: Whether it is simulated.

    Raises:
        ValueError: If shapes, row counts, names or noise do not fit, a weight is not finite, there are no rows, or float32 does not
            resolve a column.
        TypeError: If something is not made of numbers.

    Example:
        >>> data = Dataset([[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]], names=("pt", "eta"), name="tracks")
        >>> data
        Dataset tracks: 3 rows of 2 (pt, eta)
        >>> data[1:].x.shape, len(data)
        (torch.Size([2, 2]), 3)
    """

    x: Tensor
    c: Condition
    weight: Tensor | None
    spec: DataSpec

    def __init__(
        self,
        x: "Tensor | ArrayLike",
        c: "Tensor | ArrayLike | dict[str, Any] | None" = None,
        weight: "Tensor | ArrayLike | None" = None,
        *,
        manifold: Manifold | None = None,
        names: Sequence[str] | None = None,
        condition_names: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        noise: float | Sequence[float] = 0.0,
        dequantize: float | Sequence[float] | None = None,
        drop_constant: bool = False,
        spec: DataSpec | None = None,
        truth: HasLogProb | None = None,
        official: "Sequence[ArrayLike] | None" = None,
        name: str = "",
        citation: str = "",
        licence: str = "",
        synthetic: bool = False,
    ) -> None:
        self.x = _column(_tensor(x, "x"))
        self.c = _condition(c, self.x)
        self.weight = None if weight is None else _weight(weight, self.x)
        if len(self.x) == 0:
            raise ValueError(f"data{f' {name}' if name else ''}: there are no rows (x has shape {tuple(self.x.shape)})")
        if spec is None:
            spec = DataSpec(
                tuple(self.x.shape[1:]),
                manifold=manifold,
                condition=_condition_event(self.c),
                names=None if names is None else tuple(names),
                condition_names=None if condition_names is None else tuple(condition_names),
                units=None if units is None else tuple(units),
                noise=noise,
                dequantize=dequantize,
            )
        _check_fit(self.x, self.c, spec)
        self.spec = spec
        self.truth = truth
        self.official = None if official is None else tuple(np.asarray(rows) for rows in official)
        self.name, self.citation, self.licence, self.synthetic = name, citation, licence, synthetic
        if drop_constant:
            self._drop_constant()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: "int | slice | Sequence[int] | np.ndarray | Tensor") -> "Dataset":
        """The data set of some rows: a number, a slice, row numbers, or a mask."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of a data set of {len(self)} rows")
            index = [index]
        rows = index if isinstance(index, slice) else torch.as_tensor(index, device=self.x.device)
        part = copy.copy(self)
        part.x = self.x[rows]
        part.c = transform(self.c, lambda leaf: leaf[rows])
        part.weight = None if self.weight is None else self.weight[rows]
        part.official = None
        return part

    def __repr__(self) -> str:
        shape, names = self.spec.event_shape, self.spec.names
        title = f"Dataset{' ' + self.name if self.name else ''}{' (synthetic)' if self.synthetic else ''}"
        text = f"{title}: {len(self)} rows"
        if self.spec.manifold is not None:
            text += f" on {self.spec.manifold}"
        else:
            text += f" of {shape[0] if len(shape) == 1 else shape}"
            text += f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else ""
        if self.spec.condition is not None:
            text += f", condition {list(self.spec.condition_names or []) or self.spec.condition}"
        text += ", weighted" if self.weight is not None else ""
        for what in ("noise", "dequantize"):
            if width := getattr(self.spec, what):
                text += f", {what} {'per column' if isinstance(width, tuple) else format(width, 'g')}"
        text += f", {len(self.spec.dropped)} constant columns dropped" if self.spec.dropped else ""
        return text + ("" if self.x.device.type == "cpu" else f", on {self.x.device}")

    def to(self, target: torch.device | torch.dtype | str) -> "Dataset":
        """The same data set on another device or in another floating-point dtype; bool parts of the condition keep theirs."""
        moved = copy.copy(self)
        kept = target if not isinstance(target, torch.dtype) else None
        moved.x = self.x.to(target)
        moved.c = transform(self.c, lambda leaf: leaf.to(kept) if kept is not None else leaf if leaf.dtype == torch.bool else leaf.to(target))
        moved.weight = None if self.weight is None else self.weight.to(target)
        return moved

    def split(self, fractions: Sequence[float] | None = None, seed: int = 0) -> Splits:
        """Cut into training, validation and test rows.

        Args:
            fractions: Three shares that sum to 1. Default: the official split where the data set has one, else (0.8, 0.1, 0.1).
            seed: Of the permutation, ``torch.randperm(n)`` of a CPU generator; without effect on an official split.

        Returns:
            The three parts, each with its rows of x, c and weight. Rows are never shared.

        Raises:
            ValueError: If the fractions are not three non-negative numbers that sum to 1, or leave no training row.
        """
        if fractions is None and self.official is not None:
            return Splits(*(self[rows] for rows in self.official))
        shares = (0.8, 0.1, 0.1) if fractions is None else tuple(fractions)
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split: expected three fractions (training, validation, test) that sum to 1, got {shares}")
        # The small number undoes rounding: 0.8 + 0.1 of 10 rows is 9, not 8.
        first, second = int(shares[0] * len(self) + 1e-6), int((shares[0] + shares[1]) * len(self) + 1e-6)
        if first == 0:
            raise ValueError(f"split: {shares[0]} of {len(self)} rows leaves none to train on")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return Splits(self[order[:first]], self[order[first:second]], self[order[second:]])

    def check(self) -> None:
        """Look for what no density can be trained on, before training.

        In this order: negative or vanishing weights, NaN and infinite entries of x and c, points off the manifold, constant columns,
        discrete columns, single values of positive mass, repeated rows. Columns with declared noise or dequantisation may be any of the
        last four. A few repeats, as continuous data has by rounding or by accident, pass.

        Raises:
            ValueError: For the first of these, naming row or column and the mend.
        """
        try:
            problems.check_weight(self.weight)
            problems.check_finite(self.x, self.c, self.spec)
            problems.check_on_manifold(self.x, self.spec)
            problems.check_continuous(self.x, self.weight, self.spec)
        except ValueError as error:
            raise ValueError(f"data{' ' + self.name if self.name else ''}: {error}") from None

    def _drop_constant(self) -> None:
        """Leave the constant columns out, here and in the description."""
        spec = self.spec
        if len(spec.event_shape) != 1 or spec.manifold is not None:
            where = f"points on {spec.manifold}" if spec.manifold is not None else f"samples of shape {spec.event_shape}"
            raise ValueError(f"drop_constant: columns can be left out of vectors in flat space only, not of {where}; give noise= or dequantize=")
        # Negative weights, and weights that are all 0, are refused by the check, not here.
        counting = self.x if self.weight is None or not self.weight.any() else self.x[self.weight != 0]
        kept = (counting != counting[:1]).any(0)
        if bool(kept.all()):
            return
        if not bool(kept.any()):
            raise ValueError(f"drop_constant: all {len(kept)} columns are constant, nothing would be left")
        where = kept.nonzero().flatten().tolist()
        names = spec.names or tuple(f"x{k}" for k in range(len(kept)))
        self.x, self.truth = self.x[:, kept], None

        def remaining(entry: Any) -> Any:
            return tuple(entry[k] for k in where) if isinstance(entry, tuple) else entry

        self.spec = spec.replace(
            event_shape=(len(where),),
            names=remaining(names),
            units=remaining(spec.units),
            noise=remaining(spec.noise),
            dequantize=remaining(spec.dequantize),
            dropped=spec.dropped + tuple(name for name, keep in zip(names, kept.tolist()) if not keep),
        )


def as_dataset(
    data: Any,
    *,
    columns: str | Sequence[str] | None = None,
    condition: str | Sequence[str] | None = None,
    weight: str | None = None,
    manifold: Manifold | None = None,
    noise: float | Sequence[float] | None = None,
    dequantize: float | Sequence[float] | None = None,
    drop_constant: bool = False,
    name: str | None = None,
) -> Dataset:
    r"""Whatever holds samples, as a `Dataset`.

    Args:
        data: A Dataset, an array or tensor of shape (n, \*event), a tuple (x, c) or (x, c, weight), a DataFrame, or the path of a file.
        columns: Columns of a DataFrame or file that become x; default all that are not condition or weight.
        condition: Columns of a DataFrame or file that become c.
        weight: Column of a DataFrame or file that holds the weights.
        manifold: As for `Dataset`, as are the rest; those given take the place of what a Dataset says itself.
        noise: Standard deviation of Gaussian noise in training.
        dequantize: Width of uniform noise in training.
        drop_constant: Leave constant columns out.
        name: What to call it.

    Returns:
        A Dataset; a Dataset to which nothing is changed is returned as it is.

    Raises:
        ValueError: As for `Dataset`, and if a column is unknown or not made of numbers.
        TypeError: If the data is of none of these kinds, or columns are chosen where there are none.

    Example:
        >>> as_dataset((torch.rand(5, 2), torch.rand(5, 1)), noise=0.1)
        Dataset: 5 rows of 2, condition (1,), noise 0.1
    """
    changes: dict[str, Any] = {"manifold": manifold, "noise": noise, "dequantize": dequantize}
    changes = {key: value for key, value in changes.items() if value is not None}
    if isinstance(data, str | Path):
        from fluvial.data.load import load

        loaded = load(data, columns=columns, condition=condition, weight=weight, drop_constant=drop_constant, **changes)
        loaded.name = loaded.name if name is None else name
        return loaded
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        present = [str(key) for key in data.columns]
        chosen = table.choose(present, columns=columns, condition=condition, weight=weight, where="the data frame")
        arrays = {name: table.numbers(data[key], name) for key, name in zip(data.columns, present) if name in chosen.needed}
        return Dataset(**chosen.assemble(arrays), drop_constant=drop_constant, name=name or "", **changes)
    if columns is not None or condition is not None or weight is not None:
        kind = type(data).__name__
        raise TypeError(f"columns=, condition= and weight= name columns of a DataFrame or file, got {kind}; pass (x, c) or (x, c, weight)")
    if not isinstance(data, Dataset):
        parts = data if isinstance(data, tuple) else (data,)
        if not 1 <= len(parts) <= 3:
            raise TypeError(f"data: expected (x, c) or (x, c, weight), got a tuple of {len(parts)}")
        return Dataset(*parts, drop_constant=drop_constant, name=name or "", **changes)
    if not changes and not drop_constant and name in (None, data.name):
        return data
    changed = copy.copy(data)
    changed.name = data.name if name is None else name
    changed.spec = data.spec.replace(**changes)
    if drop_constant:
        changed._drop_constant()
    return changed


def _tensor(values: Any, what: str) -> Tensor:
    """Numbers as a floating-point tensor; tensors keep device and float32 or float64."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"{what}: expected real numbers, got {values.dtype}; stack real and imaginary parts as columns")
        values = values.detach()
        return values if values.dtype in (torch.float32, torch.float64) else values.to(torch.get_default_dtype())
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what}: expected rows of one length, got ragged ones ({error})") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what}: expected numbers, got an array of dtype {array.dtype} ({type(values).__name__})")
    dtype = torch.get_default_dtype()
    if array.dtype == np.float64 and dtype == torch.float32:
        check_resolved(array, what)
    return torch.from_numpy(np.array(array, dtype=str(dtype).removeprefix("torch.")))


def check_resolved(array: np.ndarray, what: str) -> None:
    """Refuse columns whose spread float32 cannot tell apart, such as a time in seconds since 1970."""
    if array.ndim < 1 or len(array) < 2:
        return
    flat = array.reshape(len(array), -1)
    low, high = flat.min(0), flat.max(0)
    largest = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(invalid="ignore"):
        blurred = (high > low) & (high - low < problems.DISCRETE_VALUES * np.finfo(np.float32).eps * largest)
    if blurred.any():
        k = int(np.flatnonzero(blurred)[0])
        raise ValueError(
            f"{what}: column {k} spreads over {high[k] - low[k]:.3g} at {largest[k]:.6g}, which float32 does not resolve; "
            "subtract an offset first, or pass a float64 tensor and train with precision='64'"
        )


def _column(x: Tensor) -> Tensor:
    if x.ndim == 0:
        raise ValueError("x: expected an array of rows, got a single number")
    if math.prod(x.shape[1:]) == 0:
        raise ValueError(f"x: samples of shape {tuple(x.shape[1:])} have no entries")
    return x.unsqueeze(1) if x.ndim == 1 else x


def _condition(c: Any, x: Tensor) -> Condition:
    if c is None:
        return None
    if isinstance(c, dict):
        return {name: _rows(part, f"condition {name!r}", x) for name, part in c.items()}
    return _rows(c, "condition", x)


def _rows(values: Any, what: str, x: Tensor) -> Tensor:
    is_mask = getattr(values, "dtype", None) in (torch.bool, np.dtype(bool))
    part = _tensor(values, what)
    if part.ndim == 0 or len(part) != len(x):
        raise ValueError(f"{what}: expected one entry per row of x ({len(x)}), got shape {tuple(part.shape)}")
    part = part.to(x.device, torch.bool if is_mask else x.dtype)
    return part.unsqueeze(1) if part.ndim == 1 else part


def _condition_event(c: Condition) -> Any:
    return {name: tuple(part.shape[1:]) for name, part in c.items()} if isinstance(c, dict) else None if c is None else tuple(c.shape[1:])


def _weight(weight: Any, x: Tensor) -> Tensor:
    values = _tensor(weight, "weight").to(x.device, x.dtype)
    if values.shape != x.shape[:1]:
        raise ValueError(f"weight: expected one number per row, shape ({len(x)},), got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(f"weight of row {row} is {float(values[row])}; leave such rows out")
    return values


def _check_fit(x: Tensor, c: Condition, spec: DataSpec) -> None:
    if tuple(x.shape[1:]) != spec.event_shape:
        raise ValueError(f"data: the description says samples of shape {spec.event_shape}, got {tuple(x.shape[1:])}")
    if _condition_event(c) != spec.condition:
        raise ValueError(f"data: the description says a condition of shape {spec.condition}, got {_condition_event(c)}")
    names = spec.condition_names
    if names is not None and spec.condition != (len(names),):
        raise ValueError(f"data: {len(names)} condition_names {names} for a condition of shape {spec.condition}")
