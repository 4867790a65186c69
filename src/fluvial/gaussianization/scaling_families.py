"""Distributions of any dimension, of known density, on which layers are counted by samples."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from fluvial.gaussianization.scaling import FAMILIES

_LOG_2PI = math.log(2 * math.pi)
_NARROW = 0.3  # s, the standard deviation across an arc, of which it is one along it
_WIDE = math.sqrt(1 - _NARROW**2)
# Mean and standard deviation of √(1 + u²) for a standard normal u.
_HYPOT_MEAN, _HYPOT_SD = 1.354530, 0.406456


class Family(ABC):
    """A distribution in D dimensions that can be drawn from, and whose density is known."""

    @abstractmethod
    def sample(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (n, D), float64."""

    @abstractmethod
    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The log-density of rows (n, D), shape (n,)."""


class GaussianRows(Family):
    """Rows of a normal distribution of mean 0.

    Args:
        covariance: C, shape (D, D).
    """

    def __init__(self, covariance: np.ndarray) -> None:
        self._root = np.linalg.cholesky(covariance)

    def sample(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (n, D), float64."""
        return rng.standard_normal((rows, len(self._root))) @ self._root.T

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The log-density of rows (n, D), shape (n,)."""
        whitened = np.linalg.solve(self._root, x.T)
        return -0.5 * (whitened**2).sum(0) - np.log(np.diagonal(self._root)).sum() - 0.5 * len(whitened) * _LOG_2PI


class Mixture(Family):
    """Eight normal distributions of equal weight, with means 10 · N(0, 1) and standard deviations 1 + U(0, 1), for every coordinate anew.

    Args:
        features: D.
        rng: Of means and standard deviations.
    """

    components = 8

    def __init__(self, features: int, rng: np.random.Generator) -> None:
        self._mean = 10 * rng.standard_normal((self.components, features))
        self._sd = 1 + rng.random((self.components, features))

    def sample(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (n, D), float64."""
        chosen = rng.integers(self.components, size=rows)
        return self._mean[chosen] + self._sd[chosen] * rng.standard_normal((rows, self._mean.shape[1]))

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The log-density of rows (n, D), shape (n,)."""
        each = [-0.5 * (((x - mean) / sd) ** 2).sum(1) - np.log(sd).sum() for mean, sd in zip(self._mean, self._sd)]
        return np.logaddexp.reduce(each) - math.log(self.components) - 0.5 * x.shape[1] * _LOG_2PI


class Bananas(Family):
    r"""Coordinates that are bent along others: each is normal with the standard deviation s = 0.3 about an arc over its parent.

    .. math:: x_i = \sqrt{1 - s^2}\; g(x_{p(i)}) + s\,\varepsilon_i, \qquad x_i = \varepsilon_i \text{ without a parent}

    Args:
        parents: For every coordinate the number of an earlier one, or None.
        bend: g, of mean 0 and variance 1 for a standard normal argument.
    """

    def __init__(self, parents: list[int | None], bend: Callable[[np.ndarray], np.ndarray]) -> None:
        self.parents = parents
        self.bend = bend

    def sample(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (n, D), float64."""
        x = rng.standard_normal((rows, len(self.parents)))
        for k, parent in enumerate(self.parents):
            if parent is not None:
                x[:, k] = _WIDE * self.bend(x[:, parent]) + _NARROW * x[:, k]
        return x

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The log-density of rows (n, D), shape (n,)."""
        total = np.full(len(x), -0.5 * x.shape[1] * _LOG_2PI)
        for k, parent in enumerate(self.parents):
            if parent is None:
                total -= 0.5 * x[:, k] ** 2
            else:
                total -= 0.5 * ((x[:, k] - _WIDE * self.bend(x[:, parent])) / _NARROW) ** 2 + math.log(_NARROW)
        return total


def parabola(u: np.ndarray) -> np.ndarray:
    """(u² − 1)/√2."""
    return (u * u - 1) / math.sqrt(2)


def hyperbola(u: np.ndarray) -> np.ndarray:
    """√(1 + u²), centred and scaled: an arc whose arms are straight, so that arcs over arcs have tails no heavier than normal ones."""
    return (np.sqrt(1 + u * u) - _HYPOT_MEAN) / _HYPOT_SD


FROM_SAMPLES = ", from samples"

SAMPLED: Mapping[str, Callable[[int, np.random.Generator], Family]] = MappingProxyType(
    {
        **{
            f"{name}{FROM_SAMPLES}": lambda features, rng, family=family: GaussianRows(family(features, int(rng.integers(2**31))).numpy())
            for name, family in FAMILIES.items()
        },
        "mixture of 8": Mixture,
        "bananas in pairs": lambda features, rng: Bananas([k - 1 if k % 2 else None for k in range(features)], parabola),
        "banana, one arc": lambda features, rng: Bananas([None, *[0] * (features - 1)], parabola),
        "banana tree": lambda features, rng: Bananas([None, *((k - 1) // 2 for k in range(1, features))], hyperbola),
    }
)
"""Distributions by name: functions of the number of features and a source of randomness."""
