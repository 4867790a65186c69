"""What an estimator makes of a table before a flow sees it: numbers without gaps, columns that vary, rows in a certain order, steps."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import validate_data

from fluvial.gaussianization.columns import ties_of

Constant = Literal["drop", "raise"]
_NOT_NUMBERS = ("category", "categorical", "enum", "str", "date", "time", "duration", "period", "interval")  # how dtypes of frames are called
_SURVEYED = 20_000  # rows that are looked at for ties
_REPEATED = 10  # whole weights repeat rows as long as there are so many times as many rows after it, or
_FEW = 100_000  # no more than these


@dataclass(frozen=True)
class Table:
    """Rows to fit to.

    Args:
        x: Shape (n, D), float32 or float64.
        weight: Shape (n,), or None where all count alike.
    """

    x: np.ndarray
    weight: np.ndarray | None

    def take(self, rows: np.ndarray) -> "Table":
        """The rows with these numbers."""
        return Table(self.x[rows], None if self.weight is None else self.weight[rows])


def numbers(estimator: BaseEstimator, X: Any, *, reset: bool) -> np.ndarray:
    """A table as finite floating-point numbers, shape (n, D); ``reset`` in ``fit``.

    Raises:
        ValueError: If there are categories or missing or infinite values, naming the column and the mend; if shape or names are not those of ``fit``.
    """
    who = type(estimator).__name__
    _refuse_categories(who, X)
    try:
        x = validate_data(estimator, X, dtype=[np.float64, np.float32], reset=reset, ensure_all_finite=False, ensure_min_samples=2 if reset else 1)
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(f"{who}: {error}; {_ENCODE}") from error
    if not np.isfinite(x).all():
        row, column = (int(index[0]) for index in np.nonzero(~np.isfinite(x)))
        value = "NaN" if np.isnan(x[row, column]) else "inf"
        raise ValueError(
            f"{who}: column {name_of(estimator, column)} holds {value} (first in row {row}, {int((~np.isfinite(x)).any(1).sum())} such rows of "
            f"{len(x)}); missing values have no density: leave such rows out, or fill them in by a sklearn.impute.SimpleImputer before this step"
        )
    return x  # pyright: ignore[reportReturnType]


_ENCODE = (
    "categories have no density: leave the column out; or encode it by sklearn.preprocessing.OneHotEncoder and give the encoded columns as "
    "FlowEstimator(condition=[…])"
)


def _refuse_categories(who: str, X: Any) -> None:
    """Refuse columns of a frame that hold no numbers, before they are silently made into some."""
    if not (hasattr(X, "columns") and hasattr(X, "dtypes")):
        return
    for name, dtype in zip(X.columns, X.dtypes):
        kind = str(dtype).lower()
        if kind.startswith(_NOT_NUMBERS):
            mend = "turn times into numbers first" if kind.startswith(("date", "time", "duration", "period")) else _ENCODE
            raise ValueError(f"{who}: column {name!r} holds {dtype}, not numbers; {mend}")


def name_of(estimator: BaseEstimator, column: int) -> str:
    """What to call a column in messages."""
    names = getattr(estimator, "feature_names_in_", None)
    return str(column) if names is None else repr(str(names[column]))


def table(estimator: BaseEstimator, X: Any, sample_weight: Any) -> Table:
    """The rows that count, in an order that only depends on what they are.

    Rows of weight 0 are left out, and whole weights repeat rows, so that both are the same as leaving out and repeating them by hand.

    Raises:
        ValueError: As `numbers`, or if weights are negative or all 0.
    """
    x = numbers(estimator, X, reset=True)
    weight = None
    if sample_weight is not None:
        weight = np.asarray(check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"))
        if weight.shape != (len(x),):
            raise ValueError(f"{type(estimator).__name__}: sample_weight must have one entry for each of {len(x)} rows, got shape {weight.shape}")
        if (weight < 0).any():
            row = int(np.argmax(weight < 0))
            raise ValueError(f"{type(estimator).__name__}: sample_weight of row {row} is {weight[row]:g}; a density wants weights ≥ 0")
        if not (weight > 0).any():
            raise ValueError(f"{type(estimator).__name__}: all sample weights are zero; leave sample_weight out to count every row alike")
        x, weight = x[weight > 0], weight[weight > 0]
        if len(x) < 2:
            raise ValueError(f"{type(estimator).__name__}: only 1 sample has a weight above zero; at least 2 are needed")
        if not (weight % 1).any() and weight.sum() <= max(_REPEATED * len(x), _FEW):
            x, weight = x.repeat(weight.astype(np.int64), axis=0), None
    order = np.lexsort(x.T if weight is None else [weight, *x.T])
    return Table(x, weight).take(order)


def seed_of(random_state: Any) -> int:
    """A seed from what scikit-learn calls a random state."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def generator(random_state: Any) -> torch.Generator:
    """Source of random numbers from what scikit-learn calls a random state."""
    return torch.Generator().manual_seed(seed_of(random_state))


def split(rows: Table, share: float, seed: int, *, least: int = 0) -> tuple[Table, Table]:
    """Rows to learn from, and at least so many held out.

    Raises:
        ValueError: If the share is none.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"validation must be a share of the rows within 0 and 1, got {share!r}")
    order = np.random.default_rng(seed).permutation(len(rows.x))
    held_out = max(least, round(share * len(order)))
    # In the old order, which is that of the values.
    return rows.take(np.sort(order[held_out:])), rows.take(np.sort(order[:held_out]))


def varying(estimator: BaseEstimator, x: np.ndarray, constant: Constant) -> tuple[np.ndarray, np.ndarray]:
    """Which columns hold more than one value, shape (D,), and the value of each where it holds no other, else NaN.

    Raises:
        ValueError: If constant columns are to be refused, or there are no others.
    """
    who = type(estimator).__name__
    if constant not in get_args(Constant):
        raise ValueError(f"{who}: constant is 'drop' or 'raise', got {constant!r}")
    varies = (x != x[:1]).any(0)
    named = ", ".join(name_of(estimator, k) for k in np.flatnonzero(~varies)[:5])
    if not varies.any():
        raise ValueError(f"{who}: no column has more than one value in the rows to fit to ({named}); there is nothing to learn a density of")
    if constant == "raise" and not varies.all():
        raise ValueError(f"{who}: constant columns have no density: {named}; leave them out, or say constant='drop'")
    return varies, np.where(varies, np.nan, x[0])


def steps(estimator: BaseEstimator, x: np.ndarray, columns: np.ndarray, dither: float | Sequence[float] | str | None, seed: int) -> np.ndarray:
    """Width of the uniform noise for the columns with these numbers, of which x consists.

    Raises:
        ValueError: If the widths given are none.
    """
    if dither is None:
        return np.zeros(len(columns))
    if not isinstance(dither, str):
        widths = np.asarray(dither, np.float64)
        whole = getattr(estimator, "n_features_in_", 0)
        if widths.shape not in ((), (whole,)) or not bool((np.isfinite(widths) & (widths >= 0)).all()):
            raise ValueError(f"{type(estimator).__name__}: dither must be 'auto', None, a width, or one for each of {whole} columns, got {dither!r}")
        return np.broadcast_to(widths, (whole,))[columns].copy()
    if dither != "auto":
        raise ValueError(f"{type(estimator).__name__}: dither must be 'auto', None, or widths, got {dither!r}")
    if len(x) > _SURVEYED:
        x = x[np.random.default_rng(seed).choice(len(x), _SURVEYED, replace=False)]
    widths = np.array([_width(column) for column in x.T.astype(np.float64)])
    if widths.any():
        some = np.flatnonzero(widths)
        named = ", ".join(f"{name_of(estimator, int(columns[k]))} (steps of {widths[k]:g})" for k in some[:5])
        warnings.warn(
            f"{type(estimator).__name__}: columns with ties get uniform noise as wide as their steps in fit: {named}{', …' * (len(some) > 5)}; "
            "dither=None leaves them as they are",
            stacklevel=4,
        )
    return widths


def _width(column: np.ndarray) -> float:
    """Width of the noise that makes a column continuous: of repeated rows too, to which a flow cannot be trained otherwise."""
    ties = ties_of(column)
    return float(np.diff(np.unique(column)).min()) if ties.kind == "repeated" else ties.width


def as_given(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Numbers in the precision of those they were made from."""
    return values.astype(np.float32 if given.dtype == np.float32 else np.float64, copy=False)
