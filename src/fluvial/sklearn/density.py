"""A density of a table by Gaussianization."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from fluvial.gaussianization.marginals import Marginal, TailKind
from fluvial.gaussianization.rotations import RotationKind
from fluvial.sklearn.gaussianized import Gaussianized, Limit
from fluvial.sklearn.tables import Constant, generator, numbers

Method = Literal["rank", "radius"]


class GaussianizationDensity(OutlierMixin, Gaussianized):
    r"""The density of a table, by which its rows can be scored, drawn anew, and judged for being unusual.

    .. math:: \log p(x) = \log N(z; 0, 1) + \log\left|\det \partial z/\partial x\right|

    It is the exact density of the map that is applied, and integrates to 1. Missing values, categories, constant columns, ties, weights and few rows
    are treated as by `GaussianizationTransformer`: where a constant column holds another value, the density is 0; the density of a value with ties
    is that of the middle of its step, times whose width it is the probability of the value.

    Args:
        rotation: "auto", "haar", "hadamard", "pca", "ica", "max_kswd", "learned" or "none", as of `GaussianizationTransformer`, like the rest.
        marginal: "spline", "kde", "mixture" or "affine".
        bins: Of the splines, or "auto".
        alpha: Shrinkage of the layers, one number, or that of the first and of the others.
        tail: "pareto", "gaussian" or "bounded".
        bounds: Lower and upper bound of every column.
        max_layers: No more layers than these.
        patience: Stop after so many layers without gain on the rows held out.
        min_gain: What counts as one, in nats.
        validation: Share of the rows to hold out, 0 for none.
        dither: Width of the noise for columns with ties, "auto" or None.
        constant: "drop" or "raise".
        contamination: Share of the rows of ``fit`` that ``predict`` calls outliers, above 0 and at most 0.5.
        n_jobs: Threads in ``fit``.
        random_state: Of rows held out, rotations and noise.
        verbose: Show progress.

    Attributes:
        flow_: The `Flow` of the columns that vary, in double precision.
        n_layers_: Its layers.
        columns_: Numbers of the columns that vary.
        constants_: Values of the others, shape (D,), NaN for those that vary.
        dither_: Width of the noise of each column of the flow.
        offset_: Log-density below which a row counts as an outlier.
        reference_: Log-densities of the rows held out, in order, and their weights, shape (2, m).
        n_features_in_: Columns D.
        feature_names_in_: Their names, where they have some.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 2))
        >>> density = GaussianizationDensity(max_layers=5).fit(x)
        >>> density.score_samples([[0.0, 0.0]]) > density.score_samples([[3.0, 3.0]])
        array([ True])
        >>> density.sample(3, random_state=0).shape, density.predict([[9.0, 9.0]])
        ((3, 2), array([-1]))
    """

    def __init__(
        self,
        rotation: RotationKind = "auto",
        *,
        marginal: Marginal = "spline",
        bins: int | Literal["auto"] = "auto",
        alpha: float | tuple[float, float] = (0.3, 0.8),
        tail: TailKind | Literal["bounded"] = "pareto",
        bounds: Sequence[tuple[Limit, Limit]] | None = None,
        max_layers: int = 200,
        patience: int = 15,
        min_gain: float = 1e-4,
        validation: float = 0.1,
        dither: float | Sequence[float] | Literal["auto"] | None = "auto",
        constant: Constant = "drop",
        contamination: float = 0.1,
        n_jobs: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            rotation,
            marginal=marginal,
            bins=bins,
            alpha=alpha,
            tail=tail,
            bounds=bounds,
            max_layers=max_layers,
            patience=patience,
            min_gain=min_gain,
            validation=validation,
            dither=dither,
            constant=constant,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the density to rows (n, D); y is ignored.

        Raises:
            ValueError: If X has missing values, categories, fewer than 2 rows or no column that varies; if an argument makes no sense.
        """
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"GaussianizationDensity: contamination must be above 0 and at most 0.5, got {self.contamination!r}")
        train, held_out = self._fit_flow(X, sample_weight)
        known, fresh = self._log_prob(train.x), self._log_prob(held_out.x)
        weights = [np.ones(len(part.x)) if part.weight is None else part.weight for part in (train, held_out)]
        order = np.argsort(fresh, kind="stable")
        self.reference_ = np.stack([fresh[order], weights[1][order]])
        self.offset_ = _quantile(np.concatenate([known, fresh]), np.concatenate(weights), self.contamination)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of every row, (n,), in nats and the units of X."""
        check_is_fitted(self)
        return self._log_prob(numbers(self, X, reset=False))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log-density of the rows; the larger the better."""
        return float(np.average(self.score_samples(X), weights=sample_weight))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw new rows, (n_samples, D)."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"sample: n_samples must be positive, got {n_samples}")
        with torch.no_grad():
            return self._outer(self.flow_.sample(n_samples, generator=generator(random_state)).numpy())

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-density above the threshold ``offset_``, (n,): negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for rows that are usual, −1 for outliers, (n,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def pvalue(self, X: Any, *, method: Method = "rank", reference: Any = None) -> np.ndarray:
        r"""How probable it is that a row of this distribution is as unusual as this one, (n,), within 0 and 1.

        "rank" compares densities with those of rows that the layers were not fitted to,

        .. math:: p = \frac{w_x + \sum_j w_j [\log p(x_j) \le \log p(x)]}{w_x + \sum_j w_j}

        (all weights 1 without ``sample_weight``). Whatever the quality of the fit, at most a share α of fresh rows has p ≤ α. That holds strictly
        for ``reference`` rows that ``fit`` has not seen. By default they are the rows that it held out, by which it only chose the number of
        layers, so that it holds but for a trace (repeated rows may be on both sides). Their number m bounds p from below by 1/(m + 1).

        "radius" is the probability of a χ² variable of d degrees of freedom above \|z\|². It has no lower bound and needs no reference, but is
        calibrated only as far as the fit is right, tails included, and does not see gaps between clusters: their latents may lie anywhere.

        Args:
            X: Rows (n, D).
            method: "rank" or "radius".
            reference: Rows to compare with, (m, D); default those held out by ``fit``.

        Raises:
            ValueError: If there are no rows to compare with.
        """
        check_is_fitted(self)
        if method not in get_args(Method):
            raise ValueError(f"pvalue: method is 'rank' or 'radius', got {method!r}")
        x = numbers(self, X, reset=False)
        if method == "radius":
            from scipy.stats import chi2

            others = ~np.isnan(self.constants_)
            p = chi2.sf(np.square(self._encoded(x)).sum(1), len(self.columns_))
            return np.where((x[:, others] == self.constants_[others]).all(1), p, 0.0)
        scores, weights = self.reference_
        if reference is not None:
            scores = np.sort(self._log_prob(numbers(self, reference, reset=False)))
            weights = np.ones(len(scores))
        if len(scores) == 0:
            raise ValueError("pvalue: no rows were held out to compare with; give reference=, or fit with validation above 0")
        below = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(scores, self._log_prob(x), side="right")]
        own = weights.mean()
        return (own + below) / (own + weights.sum())


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value that at least this share of the weight lies below."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order]
    # Shares that should be equal may differ by rounding.
    place = np.searchsorted(below, share * weights.sum() * (1 - 1e-12))
    return float(values[order[min(place, len(order) - 1)]])
