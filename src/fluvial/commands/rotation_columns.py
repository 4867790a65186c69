"""Rotations as quaternions or rotation vectors, alone and as factors of a product."""

import math

import numpy as np

from fluvial.commands.sample import QUATERNION
from fluvial.manifolds import Manifold, Product, SpecialOrthogonal


def rotations(x: np.ndarray, manifold: Manifold, *, form: tuple[str, ...]) -> np.ndarray:
    """Points (n, *event) with each rotation of space in one of the two forms, flat, shape (n, columns), float64.

    Args:
        x: Points, arrays (n, 3, 3) of SO(3) or flattened ones (n, size) of a product.
        manifold: Where they live.
        form: `QUATERNION` or `ROTATION_VECTOR`.

    Example:
        >>> rotations(np.eye(3)[None], SpecialOrthogonal(3), form=QUATERNION).tolist()
        [[0.0, 0.0, 0.0, 1.0]]
    """
    import torch

    convert = SpecialOrthogonal.to_quaternion if form == QUATERNION else SpecialOrthogonal.to_rotation_vector
    flat = torch.from_numpy(x.reshape(len(x), -1).astype(np.float64))
    parts, start = [], 0
    for factor in _factors(manifold):
        stop = start + math.prod(factor.event_shape)
        part = flat[:, start:stop]
        parts.append(convert(part.unflatten(1, (3, 3))) if factor == SpecialOrthogonal(3) else part)
        start = stop
    return torch.cat(parts, 1).numpy()


def rotation_names(names: tuple[str, ...], manifold: Manifold, *, form: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the columns of `rotations`, where `names` are those of the points as they are; several rotations are numbered from 0.

    Raises:
        ValueError: If the points are no rotations of space, and none is among their factors.

    Example:
        >>> from fluvial.commands.sample import ROTATION_VECTOR
        >>> from fluvial.manifolds import Euclidean
        >>> rotation_names(tuple("abcdefghixyz"), Product(SpecialOrthogonal(3), Euclidean(3)), form=ROTATION_VECTOR)
        ('rx', 'ry', 'rz', 'x', 'y', 'z')
    """
    factors = _factors(manifold)
    count = sum(factor == SpecialOrthogonal(3) for factor in factors)
    if count == 0:
        option = "--quaternion" if form == QUATERNION else "--rotation-vector"
        raise ValueError(f"sample: {option} is for SpecialOrthogonal(3), alone or in a Product; this flow lives on {manifold}")
    found, start, number = [], 0, 0
    for factor in factors:
        stop = start + math.prod(factor.event_shape)
        if factor == SpecialOrthogonal(3):
            found += form if count == 1 else [f"{name}_{number}" for name in form]
            number += 1
        else:
            found += names[start:stop]
        start = stop
    return tuple(found)


def _factors(manifold: Manifold) -> list[Manifold]:
    """Those of a product, of products in it too; of another manifold itself."""
    return [part for factor in manifold.factors for part in _factors(factor)] if isinstance(manifold, Product) else [manifold]
