"""The airports of the world: real points on a sphere that come with the library."""

import numpy as np

from fluvial.data.dataset import Dataset
from fluvial.data.latlon import unit_vectors
from fluvial.manifolds import Sphere


def airports(*, noise: float = 0.0) -> Dataset:
    """All airports of the package airportsdata as unit vectors on ``Sphere(2)``, in the order of their codes.

    The list grows with every release; release 20260905 has 28 298 airports at 28 293 places. Densities are with respect to area on the unit
    sphere, where the uniform density has a mean negative log-likelihood of log 4π = 2.531 nats.

    Args:
        noise: Standard deviation of Gaussian noise in training, in radians: 0.001 is 6 km.

    Returns:
        A `Dataset` of shape (n, 3).

    References:
        M. Borsetti, airportsdata, https://github.com/mborsetti/airportsdata (MIT licence).

    Example:
        >>> airports().x.shape[1], airports().spec.manifold
        (3, Sphere(2))
    """
    import airportsdata

    table = airportsdata.load()
    # Sorted by code, so that a split of the same release is the same everywhere.
    places = np.array([(table[code]["lat"], table[code]["lon"]) for code in sorted(table)], np.float64)
    return Dataset(
        unit_vectors(places[:, 0], places[:, 1]),
        manifold=Sphere(2),
        names=("x", "y", "z"),
        noise=noise,
        name="airports",
        citation=f"M. Borsetti, airportsdata {airportsdata.__version__}, https://github.com/mborsetti/airportsdata",
        licence="MIT",
    )
