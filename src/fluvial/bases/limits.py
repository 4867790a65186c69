"""Bounds of coordinates, kept exactly, whatever the precision of the model that they are part of."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fluvial.manifolds import Euclidean

Limit = float | None

# Bounds must leave room for differences in single precision.
_LARGEST = torch.finfo(torch.float32).max / 4
_STEP = torch.finfo(torch.float32).eps


def intervals(who: str, low: Iterable[Limit], high: Iterable[Limit], *, finite: bool = False) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
    """Lower and upper bounds as plain numbers, None where there is no bound (given as None or ±inf).

    Raises:
        TypeError: If they are not sequences of numbers or None.
        ValueError: If there are not as many lower as upper bounds, or a pair encloses no interval that single precision resolves; with
            ``finite`` also if a bound is missing.
    """
    try:
        below, above = tuple(_limit(bound) for bound in low), tuple(_limit(bound) for bound in high)
    except TypeError:
        raise TypeError(f"{who}: low and high must be sequences of numbers or None, got {low!r} and {high!r}") from None
    if len(below) != len(above) or not below:
        raise ValueError(f"{who}: expected one lower and one upper bound for each coordinate, got {len(below)} and {len(above)}")
    for k, (a, b) in enumerate(zip(below, above)):
        given = f"{who}: coordinate {k} has the bounds {a} and {b}"
        least, most = -math.inf if a is None else a, math.inf if b is None else b
        if math.isnan(least) or math.isnan(most) or not least < most:
            raise ValueError(f"{given}; give low < high, and None where there is no bound")
        if finite and (math.isinf(least) or math.isinf(most)):
            raise ValueError(f"{given}; both must be finite numbers")
        largest = max((abs(bound) for bound in (least, most) if math.isfinite(bound)), default=0.0)
        if largest > _LARGEST:
            raise ValueError(f"{given}, beyond what single precision holds ({_LARGEST:.1e}); give None where there is no bound")
        if most - least < 8 * _STEP * largest:
            raise ValueError(f"{given}, between which single precision has hardly a number; shift and scale the data first")
    return tuple(None if a == -math.inf else a for a in below), tuple(None if b == math.inf else b for b in above)


def _limit(bound: Limit) -> Limit:
    return None if bound is None else float(bound)


def pack(low: Sequence[Limit], high: Sequence[Limit]) -> Tensor:
    """Bounds as a buffer of shape (2, n): the bits of double-precision numbers, as integers, which ``.float()`` and ``.half()`` leave alone.

    A bound that was rounded once to single precision would otherwise stay so after ``.double()``, and cut off data that lie on it.
    """
    rows = [[-math.inf if a is None else a for a in low], [math.inf if b is None else b for b in high]]
    return torch.tensor(rows, dtype=torch.float64).view(torch.int64)


def nearest(packed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds rounded to the nearest numbers of a type, the largest finite ones where there is no bound.

    Data within the bounds are within these, since rounding keeps order.
    """
    largest = torch.finfo(dtype).max
    low, high = packed.view(torch.float64).to(dtype).clamp(-largest, largest).unbind(0)
    return low, high


def inward(packed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The outermost numbers of a type that are within the bounds exactly, also when they are compared with them in double precision."""
    low, high = nearest(packed, dtype)
    if dtype == torch.float64:
        return low, high
    exact_low, exact_high = packed.view(torch.float64).unbind(0)
    return (
        torch.where(low.double() < exact_low, torch.nextafter(low, high), low),
        torch.where(high.double() > exact_high, torch.nextafter(high, low), high),
    )


def box_arguments(
    who: str, low: Limit | Sequence[Limit], high: Limit | Sequence[Limit], event_shape: int | tuple[int, ...] | None, *, finite: bool = False
) -> tuple[tuple[Limit, ...], tuple[Limit, ...], tuple[int, ...]]:
    """Bounds given as numbers or as sequences, as two tuples of 1 or n entries, and the event shape that they and `event_shape` agree on.

    Raises:
        ValueError: As `intervals`, or if the number of bounds does not fit the event shape.
    """
    sides = [tuple(side) if isinstance(side, Iterable) else (side,) for side in (low, high)]
    n = max(len(side) for side in sides)
    below, above = intervals(who, *(side * n if len(side) == 1 else side for side in sides), finite=finite)
    shape = Euclidean(n if event_shape is None else event_shape).event_shape
    if n > 1 and shape != (n,):
        raise ValueError(f"{who}: {n} bounds do not fit samples of shape {shape}; give one number, or one for each coordinate of a vector")
    return below, above, shape


def per_coordinate(who: str, name: str, value: float | Sequence[float], shape: tuple[int, ...]) -> float | tuple[float, ...]:
    """One finite number, or one for each coordinate of a vector, in canonical form.

    Raises:
        ValueError: If there are as many numbers as neither, or one is not finite.
    """
    numbers = tuple(float(v) for v in value) if isinstance(value, Iterable) else (float(value),)
    if len(numbers) != 1 and shape != (len(numbers),):
        raise ValueError(f"{who}: expected one {name}, or one for each coordinate of samples of shape {shape}, got {len(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{who}: {name} must be finite, got {value}")
    return numbers if isinstance(value, Iterable) else numbers[0]
