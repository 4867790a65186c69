"""Conditions: a tensor, or a dict of tensors, that a density depends on."""

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Condition = Tensor | dict[str, Tensor] | None
ConditionShape = tuple[int, ...] | dict[str, tuple[int, ...]] | None


def condition_shape(declared: int | Sequence[int] | dict[str, int | Sequence[int]] | None) -> ConditionShape:
    """Bring a declaration (3, (1, 8, 8), or {"T": 1, "field": (8, 8)}) into its canonical form of tuples."""
    if declared is None:
        return None
    if isinstance(declared, dict):
        return {name: _shape(shape) for name, shape in declared.items()}
    return _shape(declared)


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(int(k) for k in shape)


def leaves(c: Condition) -> dict[str, Tensor]:
    """The tensors of a condition by name; a lone tensor is called "c"."""
    if c is None:
        return {}
    return dict(c) if isinstance(c, dict) else {"c": c}


def draw_shape(n: int | tuple[int, ...]) -> tuple[int, ...]:
    """The n of ``sample(n)`` as a shape: an int is one axis, () one draw.

    Raises:
        TypeError: If it is neither an int nor a tuple of ints.
        ValueError: If it is negative.
    """
    try:
        shape = tuple(operator.index(k) for k in n) if isinstance(n, tuple | list) else (operator.index(n),)
    except TypeError:
        raise TypeError(f"sample: n must be an int or a tuple of ints, got {n!r}") from None
    if any(k < 0 for k in shape):
        raise ValueError(f"sample: n must not be negative, got {n!r}")
    return shape


def transform(c: Condition, fn: Callable[[Tensor], Tensor]) -> Condition:
    """The same structure with `fn` applied to every leaf."""
    if c is None:
        return None
    return {name: fn(leaf) for name, leaf in c.items()} if isinstance(c, dict) else fn(c)


def batch_shape(c: Condition, declared: ConditionShape = None) -> tuple[int, ...]:
    """The common batch shape of all leaves, each leaf having its declared event shape (default: one trailing axis).

    Raises:
        ValueError: If a leaf is missing, unknown, or has another event shape than declared; or if batches do not broadcast.
    """
    shapes = []
    found = leaves(c)
    for name, leaf in found.items():
        if not isinstance(leaf, Tensor):
            raise TypeError(f"condition {name!r}: expected a torch.Tensor, got {type(leaf).__name__}; use torch.as_tensor")
    if isinstance(declared, dict) and c is not None and set(found) != set(declared):
        raise ValueError(f"condition: expected the entries {sorted(declared)}, got {sorted(found) if isinstance(c, dict) else 'one tensor'}")
    if isinstance(declared, tuple) and isinstance(c, dict):
        raise ValueError(f"condition: expected one tensor of shape (*batch, {', '.join(map(str, declared))}), got the entries {sorted(found)}")
    for name, leaf in found.items():
        event = _event(name, leaf, declared)
        shapes.append(leaf.shape[: leaf.ndim - len(event)])
    try:
        return tuple(torch.broadcast_shapes(*shapes)) if shapes else ()
    except RuntimeError:
        raise ValueError(f"condition: the batch shapes {[tuple(s) for s in shapes]} of {sorted(found)} do not broadcast") from None


def expand_flat(c: Condition, batch: tuple[int, ...], declared: ConditionShape = None) -> Condition:
    """Broadcast every leaf to `batch` and flatten the batch: leaves of shape (prod(batch), *event)."""
    if c is None:
        return None
    flat = {}
    for name, leaf in leaves(c).items():
        event = _event(name, leaf, declared)
        flat[name] = leaf.expand((*batch, *event)).reshape(math.prod(batch), *event)
    return flat if isinstance(c, dict) else flat["c"]


def as_rows(c: Condition) -> Condition:
    """Leaves (rows, *event) of any event shape as (rows, features): the form that a base takes."""
    return transform(c, lambda leaf: leaf.unsqueeze(1) if leaf.ndim == 1 else leaf.flatten(1))


def as_features(c: Condition) -> Tensor | None:
    """One tensor (*batch, features) for a network: a lone tensor as it is, a dict concatenated in the order of its sorted names."""
    if isinstance(c, dict):
        return torch.cat([c[name] for name in sorted(c)], -1) if c else None
    return c


def _event(name: str, leaf: Tensor, declared: ConditionShape) -> tuple[int, ...]:
    if declared is None:
        if leaf.ndim < 1:
            raise ValueError(f"condition {name!r}: expected at least one trailing axis of features, got a scalar; use c.reshape(1) for one number")
        return tuple(leaf.shape[-1:])
    event = declared[name] if isinstance(declared, dict) else declared
    if len(event) > leaf.ndim or (event and tuple(leaf.shape[leaf.ndim - len(event) :]) != event):
        raise ValueError(f"condition {name!r}: expected shape (*batch, {', '.join(map(str, event))}), got {tuple(leaf.shape)}")
    return event
