"""Rows of one table made to look like those of another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from fluvial.sklearn.transformer import GaussianizationTransformer


@dataclass(frozen=True)
class Transport:
    r"""A map that carries one distribution to another, through the normal distribution that both were transformed to.

    .. math:: x_B = T_B^{-1}(T_A(x_A))

    Args:
        source: T_A, fitted.
        target: T_B, fitted.
    """

    source: GaussianizationTransformer
    target: GaussianizationTransformer

    def transform(self, X: Any) -> np.ndarray:
        """Rows of the source (n, D) as rows of the target."""
        return self.target.inverse_transform(np.asarray(self.source.transform(X)))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The inverse: rows of the target as rows of the source."""
        return self.source.inverse_transform(np.asarray(self.target.transform(X)))


def transport(X_source: Any, X_target: Any, transformer: GaussianizationTransformer | None = None) -> Transport:
    r"""Learn to carry the rows of one table over to the distribution of another, from samples of both that are not paired.

    .. math:: x_B = T_B^{-1}(T_A(x_A)), \qquad x_A \sim p_A \;\Rightarrow\; x_B \sim p_B

    For data of two instruments, batches or domains. Among the maps that do so it is not the one of least cost, but near the identity where the
    distributions are alike, as the rotations of both sides are undone in the latents. That nothing but the instrument differs between the tables
    is the user's assumption: a difference in what was measured is carried away as well.

    Args:
        X_source: Rows (n, D) of A.
        X_target: Rows (m, D) of B, with the same columns.
        transformer: Whose settings to take for both; default ``GaussianizationTransformer(tail="gaussian")``, whose straight
            tails carry outliers along without stretching their distances.

    Raises:
        ValueError: If the columns are not the same, or constant in one of the tables only.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(1000, 2)), 3 + 2 * rng.normal(size=(1000, 2))
        >>> moved = transport(a, b).transform(a)
        >>> bool(np.allclose(moved.mean(0), 3, atol=0.3)), bool(np.allclose(moved.std(0), 2, atol=0.3))
        (True, True)
    """
    settings = GaussianizationTransformer(tail="gaussian") if transformer is None else transformer
    source, target = clone(settings).fit(X_source), clone(settings).fit(X_target)
    if source.n_features_in_ != target.n_features_in_:
        raise ValueError(f"transport: the source has {source.n_features_in_} columns, the target {target.n_features_in_}")
    names = [getattr(side, "feature_names_in_", None) for side in (source, target)]
    if all(name is not None for name in names) and list(names[0]) != list(names[1]):
        raise ValueError(f"transport: the columns of the source are {list(names[0])}, those of the target {list(names[1])}")
    if not np.array_equal(source.columns_, target.columns_):
        apart = sorted(set(source.columns_.tolist()) ^ set(target.columns_.tolist()))
        raise ValueError(f"transport: columns {apart} hold one value only on one side, and more on the other; leave them out")
    return Transport(source, target)
