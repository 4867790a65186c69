"""Arguments of a fit that make no sense are refused before anything is read."""

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

_MOST_BINS = 4096  # rows are counted in so many
_MOST_SEED = 2**63


def whole(value: Any, name: str, *, least: int, most: int | None = None, also: str = "") -> int:
    """The value as an int.

    Args:
        value: What was given.
        name: Of the argument.
        least: Smallest that is allowed.
        most: Largest.
        also: What else may be given, for the message.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is too small or too large.
    """
    limits = f"at least {least}" if most is None else f"from {least} to {most}"
    wanted = f"fit: {name} must be {also}a whole number, {limits}, got {value!r}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(wanted)
    if int(value) < least or (most is not None and int(value) > most):
        raise ValueError(wanted)
    return int(value)


def bins_of(value: Any) -> Any:
    """Number of bins, or "auto"."""
    return value if isinstance(value, str) and value == "auto" else whole(value, "bins", least=2, most=_MOST_BINS, also="'auto' or ")


def seed_of(value: Any) -> int:
    """The seed as an int."""
    return whole(value, "seed", least=0, most=_MOST_SEED - 1)


def alpha_of(value: Any) -> tuple[float, float]:
    """Shrinkage of the first layer, and of the others.

    Raises:
        TypeError: If these are no numbers.
        ValueError: If they are not two, or not within 0 and 1.
    """
    wanted = f"fit: alpha must be a number within 0 and 1, or two, for the first layer and for the others, got {value!r}"
    pair = (value, value) if is_number(value) else value
    if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray | Tensor):
        raise TypeError(wanted)
    if len(pair) != 2:
        raise ValueError(wanted)
    if not all(map(is_number, pair)):
        raise TypeError(wanted)
    if not all(0 <= float(part) <= 1 for part in pair):
        raise ValueError(f"fit: alpha must lie within 0 and 1, got {value!r}")
    return float(pair[0]), float(pair[1])


def gain_of(value: Any) -> float:
    """Nats that count as a gain.

    Raises:
        ValueError: If it is no number, or infinite: minus infinity counts every layer.
    """
    if not is_number(value) or not float(value) < math.inf:
        raise ValueError(f"fit: min_gain must be a number of nats, -inf to count every layer, got {value!r}")
    return float(value)


def share_of(validation: Any) -> float | None:
    """The share of the rows that is held out; None where it is rows that are given.

    Raises:
        TypeError: If it is nothing of both.
        ValueError: If the share is not in [0, 1).
    """
    wanted = "validation must be a share of the rows within 0 and 1 (0 for none), or rows"
    if is_number(validation):
        if not 0 <= float(validation) < 1:
            raise ValueError(f"fit: {wanted}, got {validation}")
        return float(validation)
    if validation is None or isinstance(validation, bool | np.bool_):
        raise TypeError(f"fit: {wanted}, got {validation!r}")
    if isinstance(validation, str) and _is_numeral(validation) and not os.path.exists(validation):
        raise TypeError(f"fit: {wanted}, got the text {validation!r}; leave out the quotation marks")
    return None


def widths_of(dither: Any, features: int) -> np.ndarray:
    """Widths of noise, (D,).

    Raises:
        ValueError: If they are none.
    """
    wanted = f"fit: dither must be 'auto', None, or widths that are not negative, one or one for each of {features} columns, got {dither!r}"
    try:
        widths = np.asarray(dither, np.float64)
    except (TypeError, ValueError):
        raise ValueError(wanted) from None
    if isinstance(dither, bool) or widths.shape not in ((), (features,)) or not bool((np.isfinite(widths) & (widths >= 0)).all()):
        raise ValueError(wanted)
    return np.broadcast_to(widths, (features,)).copy()


def bounds_of(bounds: Any, features: int) -> list[tuple[float | None, float | None]]:
    """Lower and upper bounds, with None where there is none.

    Raises:
        ValueError: If there are more or fewer than columns, or one is no pair of numbers or None with the lower one first.
    """
    wanted = f"fit: expected bounds of {features} columns, a pair (lower, upper) for each, with None where there is none; got"
    if isinstance(bounds, str) or not isinstance(bounds, Sequence | np.ndarray | Tensor):
        raise ValueError(f"{wanted} {bounds!r}")
    if len(bounds) != features:
        raise ValueError(
            f"fit: expected bounds of {features} columns, got {len(bounds)}; a pair (lower, upper) for each, with None where there is none"
        )
    found = []
    for k, pair in enumerate(bounds):
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray | Tensor) or len(pair) != 2:
            raise ValueError(f"{wanted} {pair!r} for column {k}")
        if not all(one is None or (is_number(one) and not math.isnan(float(one))) for one in pair):
            raise ValueError(f"{wanted} {pair!r} for column {k}")
        low, high = (None if one is None or math.isinf(float(one)) else float(one) for one in pair)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"fit: the bounds of column {k} must increase, got {low:g} and {high:g}")
        found.append((low, high))
    return found


def is_number(value: Any) -> bool:
    """Whether it is one real number: of Python, of NumPy, or a tensor of one."""
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, numbers.Real) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0)


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
