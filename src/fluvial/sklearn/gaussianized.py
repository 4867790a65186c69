"""What the estimators by Gaussianization share."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from fluvial.codecs import Bijection, Bounds, Chain, Isometry, MarginalSpline
from fluvial.flow import Flow
from fluvial.gaussianization.fit import fit
from fluvial.gaussianization.marginals import Marginal, TailKind
from fluvial.gaussianization.rotations import RotationKind
from fluvial.gaussianization.sources import ArrayRows
from fluvial.sklearn.tables import Constant, Table, seed_of, split, steps, table, varying

Limit = float | None
_FEWEST = 20  # rows that marginal distributions are fitted to
_CHUNK = 2**16  # rows that pass the flow at once


class Gaussianized(BaseEstimator):
    """A flow fitted layer by layer to the columns of a table that vary, in double precision.

    Args:
        rotation: Before every layer but the first.
        marginal: Kind of the layers.
        bins: Of the splines.
        alpha: Shrinkage of the layers, for the first and for the others.
        tail: Kind of tails.
        bounds: Lower and upper bound of every column.
        max_layers: No more layers than these.
        patience: Stop after so many layers without gain.
        min_gain: What counts as one, in nats.
        validation: Share of the rows to hold out.
        dither: Width of the noise for columns of steps.
        constant: What to do with constant columns.
        n_jobs: Threads.
        random_state: Of rows held out, rotations and noise.
        verbose: Show progress.
    """

    flow_: Flow
    n_features_in_: int

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
        n_jobs: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.rotation = rotation
        self.marginal = marginal
        self.bins = bins
        self.alpha = alpha
        self.tail = tail
        self.bounds = bounds
        self.max_layers = max_layers
        self.patience = patience
        self.min_gain = min_gain
        self.validation = validation
        self.dither = dither
        self.constant = constant
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _fit_flow(self, X: Any, sample_weight: Any) -> tuple[Table, Table]:
        """Fit, and give the rows that were learned from and those held out."""
        seed = seed_of(self.random_state)
        rows = table(self, X, sample_weight)
        train, held_out = split(rows, self.validation, seed)
        varies, self.constants_ = varying(self, train.x, self.constant)
        self.columns_ = np.flatnonzero(varies)
        self.dither_ = steps(self, train.x[:, varies], self.columns_, self.dither, seed)
        settings = {"marginal": self.marginal, "max_layers": self.max_layers}
        if len(train.x) < _FEWEST:
            warnings.warn(
                f"{type(self).__name__}: {len(train.x)} rows to fit to, fewer than {_FEWEST}: a normal distribution is fitted instead of layers",
                stacklevel=3,
            )
            # Rows that are repeated have the same mean and covariance.
            train = train.take(np.tile(np.arange(len(train.x)), -(-_FEWEST // len(train.x))))
            settings = {"marginal": "affine", "max_layers": min(self.max_layers, 2)}
        names = getattr(self, "feature_names_in_", None)
        names = None if names is None else [str(name) for name in names[varies]]
        sources = [ArrayRows(part.x[:, varies], None, part.weight, names=names) for part in (train, held_out) if len(part.x)]
        self.flow_ = fit(
            sources[0],
            rotation=self.rotation,
            bins=self.bins,
            alpha=self.alpha,
            tail=self.tail,
            bounds=self._bounds(),
            patience=self.patience,
            min_gain=self.min_gain,
            validation=sources[1] if len(sources) > 1 else 0.0,
            dither=self.dither_.tolist() if self.dither_.any() else None,
            seed=seed,
            threads=effective_n_jobs(self.n_jobs),
            progress=bool(self.verbose),
            **settings,
        ).double()
        with torch.no_grad():
            turn = torch.eye(len(self.columns_), dtype=torch.float64)
            for part in self._parts:
                turn = part.encode(turn) if isinstance(part, Isometry) else turn
        self.rotation_ = turn.numpy()
        return train, held_out

    def _bounds(self) -> list[tuple[Limit, Limit]] | None:
        if self.bounds is None:
            return None
        if len(self.bounds) != self.n_features_in_:
            raise ValueError(f"{type(self).__name__}: expected bounds of {self.n_features_in_} columns, got {len(self.bounds)}")
        return [tuple(self.bounds[k]) for k in self.columns_]

    def _encoded(self, x: np.ndarray) -> np.ndarray:
        """Latents (n, d) of rows (n, D), turned back by all rotations, so that each belongs to a column."""
        inner = self._inner(x)
        first = self._parts[0]
        if isinstance(first, Bounds):
            low, high = (np.array([fill if side is None else side for side in sides]) for fill, sides in ((-np.inf, first.low), (np.inf, first.high)))
            inner = inner.clip(low, high)
        return _by_rows(self.flow_.encode, inner) @ self.rotation_.T

    def _decoded(self, z: np.ndarray) -> np.ndarray:
        """The inverse, with the constant columns."""
        return self._outer(_by_rows(self.flow_.decode, z.astype(np.float64) @ self.rotation_))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-densities (n,) of the columns that vary; −∞ where another holds another value."""
        log_p = _by_rows(self.flow_.log_prob, self._inner(x))
        others = ~np.isnan(self.constants_)
        return np.where((x[:, others] == self.constants_[others]).all(1), log_p, -np.inf)

    def _inner(self, x: np.ndarray) -> np.ndarray:
        # The flow knows values with noise upon them, from 0 to the width: they stand in its middle.
        return x[:, self.columns_].astype(np.float64) + self.dither_ / 2

    def _outer(self, inner: np.ndarray) -> np.ndarray:
        x = np.repeat(self.constants_[np.newaxis], len(inner), 0)
        x[:, self.columns_] = inner - self.dither_ / 2
        return x

    @property
    def _parts(self) -> list[Bijection]:
        return list(_flat(self.flow_.codec))

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there is a flow."""
        return hasattr(self, "rotation_")

    @property
    def n_layers_(self) -> int:
        """How many layers the flow has."""
        check_is_fitted(self)
        return sum(isinstance(part, MarginalSpline) for part in self._parts)


def _flat(codec: Any) -> Iterator[Bijection]:
    for part in codec.parts:
        yield from _flat(part) if isinstance(part, Chain) else [part]


def _by_rows(call: Any, x: np.ndarray) -> np.ndarray:
    """A method of a flow on rows, some at a time."""
    with torch.no_grad():
        return np.concatenate([call(torch.from_numpy(x[k : k + _CHUNK])).numpy() for k in range(0, max(len(x), 1), _CHUNK)])
