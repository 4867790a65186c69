"""Places on a globe as points of the sphere."""

import numpy as np
from numpy.typing import ArrayLike


def unit_vectors(latitude: ArrayLike, longitude: ArrayLike) -> np.ndarray:
    r"""Latitude and longitude to unit vectors, computed in float64.

    .. math:: x = (\cos\varphi\cos\lambda,\ \cos\varphi\sin\lambda,\ \sin\varphi)

    Args:
        latitude: φ in degrees, −90 … 90, shape (n,).
        longitude: λ in degrees, −360 … 360, east positive, shape (n,).

    Returns:
        Shape (n, 3), float64. NaN stays NaN.

    Raises:
        ValueError: If an angle is out of range, naming the row.

    Example:
        >>> unit_vectors([0.0, 90.0], [90.0, 0.0]).round(12).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    degrees = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    for angle, name, limit in zip(degrees, ("latitude", "longitude"), (90.0, 360.0)):
        if (outside := np.abs(angle) > limit).any():
            row = int(np.flatnonzero(outside)[0])
            raise ValueError(f"{name} of row {row} is {angle[row]:g}, outside ±{limit:g} degrees; are latitude and longitude swapped?")
    phi, lam = np.deg2rad(degrees[0]), np.deg2rad(degrees[1])
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)
