"""Any flow as a density estimator."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_array, check_is_fitted

from fluvial import flows
from fluvial.data import Dataset
from fluvial.data.problems import check_rank
from fluvial.flow import Flow
from fluvial.sklearn.tables import Constant, Table, generator, numbers, seed_of, split, steps, table, varying
from fluvial.training import fit
from fluvial.training.states import seeded

_TRANSFORMS = {"splines": "rqs", "cubic": "cubic", "smooth": "smooth", "affine": "affine"}
_NOISE = 1e-3  # of the spread of columns that depend on each other
_CHUNK = 2**14  # rows that pass the flow at once


class FlowEstimator(DensityMixin, BaseEstimator):
    r"""A flow, trained by gradient on the rows of a table, as a density estimator of scikit-learn.

    The density is that of the columns that vary, given the columns named as ``condition`` where there are some: p(x | c). Missing values,
    categories, constant columns, ties and weights are treated as by `GaussianizationDensity`. Single values that many rows share (such as the 0 of
    an empty measurement) want ``noise``. Training is in single precision, scores are computed in double.

    Args:
        flow: "splines", "cubic", "smooth" or "affine" (`fluvial.flows.coupling` with such maps), "free_form" (`fluvial.flows.free_form`), or a
            function ``flow(features, context)`` that returns a `Flow` for so many columns and so many of a condition.
        options: Further arguments of these functions, as a dict.
        condition: Columns of X that are conditions, by number or name.
        max_steps: Optimisation steps.
        max_time: Seconds of training, or None.
        batch_size: Rows per step.
        learning_rate: Peak learning rate.
        patience: Validations without improvement after which to stop, or None for 30 % of the steps.
        validation: Share of the rows to hold out, by which the best weights are chosen.
        noise: Standard deviation of normal noise added in training, in the units of X. "auto" adds none, but 1/1000 of the columns' own where some
            are linear combinations of others, and warns.
        dither: Width of uniform noise for columns with ties, one number or one for each column, None for none; "auto" finds them, and warns.
        constant: "drop" or "raise".
        device: Where to train.
        random_state: Of weights, rows held out and noise.
        verbose: Show progress.

    Attributes:
        flow_: The trained `Flow`, in double precision.
        history_: The course of training.
        columns_: Numbers of the columns that the density is of.
        condition_: Numbers of the columns that are conditions.
        constants_: Values of the columns left out, shape (D,), NaN for all others.
        dither_: Width of the noise of each column of the flow.
        n_features_in_: Columns D.
        feature_names_in_: Their names, where they have some.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> x[:, 1] += 3 * x[:, 0]
        >>> estimator = FlowEstimator("affine", options={"blocks": 2, "hidden": [8]}, condition=[0], max_steps=30).fit(x)
        >>> estimator.score_samples(x).shape, estimator.sample(2, condition=[[1.0]], random_state=0).shape
        ((500,), (2, 2))
    """

    def __init__(
        self,
        flow: str | Callable[[int, int], Flow] = "splines",
        *,
        options: Mapping[str, Any] | None = None,
        condition: Sequence[int] | Sequence[str] | None = None,
        max_steps: int = 2000,
        max_time: float | None = None,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        patience: float | None = None,
        validation: float = 0.1,
        noise: float | Literal["auto"] = "auto",
        dither: float | Sequence[float] | Literal["auto"] | None = "auto",
        constant: Constant = "drop",
        device: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.flow = flow
        self.options = options
        self.condition = condition
        self.max_steps = max_steps
        self.max_time = max_time
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.validation = validation
        self.noise = noise
        self.dither = dither
        self.constant = constant
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train the flow on rows (n, D); y is ignored.

        Raises:
            ValueError: If X has missing values, categories, fewer than 2 rows, no column that varies, or single rows or values of positive
                probability; if an argument makes no sense.
        """
        seed = seed_of(self.random_state)
        rows = table(self, X, sample_weight)
        train, held_out = split(rows, self.validation, seed, least=1)
        if len(train.x) < 2:
            raise ValueError(f"FlowEstimator: {len(rows.x)} samples leave {len(train.x)} to train on; at least 2 are needed")
        self.condition_ = self._condition_columns()
        mine = np.setdiff1d(np.arange(self.n_features_in_), self.condition_)
        varies, constants = varying(self, train.x[:, mine], self.constant)
        self.columns_, self.constants_ = mine[varies], np.full(self.n_features_in_, np.nan)
        self.constants_[mine] = constants
        self.dither_ = steps(self, train.x[:, self.columns_], self.columns_, self.dither, seed)
        noise = self._noise(self._dataset(train, 0.0)) if self.noise == "auto" else self.noise
        with seeded(seed, torch.device("cpu")):
            flow = self._make()
        self.history_ = fit(
            flow,
            self._dataset(train, noise),
            validation=self._dataset(held_out, noise),
            max_steps=self.max_steps,
            max_time=self.max_time,
            batch_size=min(self.batch_size, len(train.x)),
            learning_rate=self.learning_rate,
            patience=self.patience,
            device=self.device,
            seed=seed,
            progress=bool(self.verbose),
        )
        self.flow_ = flow.double()
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of every row, given its condition, (n,), in nats and the units of X; −∞ where a constant column holds another value."""
        check_is_fitted(self)
        x = numbers(self, X, reset=False)
        inner, c = self._tensors(x)
        with torch.no_grad():
            pieces = [slice(k, k + _CHUNK) for k in range(0, len(x), _CHUNK)]
            log_p = torch.cat([self.flow_.log_prob(inner[piece], None if c is None else c[piece]) for piece in pieces]).numpy()
        others = ~np.isnan(self.constants_)
        return np.where((x[:, others] == self.constants_[others]).all(1), log_p, -np.inf)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log-density of the rows; the larger the better."""
        return float(np.average(self.score_samples(X), weights=sample_weight))

    def sample(self, n_samples: int = 1, random_state: Any = None, *, condition: Any = None) -> np.ndarray:
        """Draw new rows.

        Args:
            n_samples: How many, or how many for each condition.
            random_state: An int, a RandomState, or None.
            condition: Conditions (m, k), in the order of the columns of X; where the flow has some.

        Returns:
            Whole rows, those of the first condition first, (n_samples · m, D).

        Raises:
            ValueError: If a condition is missing, or there should be none.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"sample: n_samples must be positive, got {n_samples}")
        wanted = len(self.condition_)
        if (condition is None) != (wanted == 0):
            raise ValueError(f"sample: the flow has {wanted} conditions, and condition is {'missing' if condition is None else 'given'}")
        at = np.empty((1, 0)) if condition is None else check_array(condition, dtype=np.float64)
        if at.shape[1] != wanted:
            raise ValueError(f"sample: expected conditions of {wanted} columns, got {at.shape[1]}")
        with torch.no_grad():
            drawn = self.flow_.sample(n_samples, torch.from_numpy(at) if wanted else None, generator=generator(random_state))
        drawn = drawn.reshape(n_samples, len(at), -1).transpose(0, 1).flatten(0, 1).numpy()
        x = np.repeat(self.constants_[np.newaxis], len(drawn), 0)
        x[:, self.columns_] = drawn - self.dither_ / 2
        x[:, self.condition_] = at.repeat(n_samples, axis=0)
        return x

    def _make(self) -> Flow:
        """A new flow."""
        features, context, options = len(self.columns_), len(self.condition_), dict(self.options or {})
        if not isinstance(self.flow, str):
            return self.flow(features, context, **options)
        if self.flow == "free_form":
            return flows.free_form(features, context=context, **options)
        if self.flow not in _TRANSFORMS:
            kinds = ", ".join(map(repr, [*_TRANSFORMS, "free_form"]))
            raise ValueError(f"FlowEstimator: flow is one of {kinds}, or a function of features and context, got {self.flow!r}")
        return flows.coupling(features, context, **{"transform": _TRANSFORMS[self.flow], **options})

    def _noise(self, data: Dataset) -> float | tuple[float, ...]:
        try:
            check_rank(data.x.float(), data.spec)
        except ValueError as error:
            warnings.warn(f"FlowEstimator: {str(error).partition(', so')[0]}; noise of {_NOISE:g} of their spread is added in training", stacklevel=3)
            return tuple((_NOISE * data.x.std(0)).tolist())
        return 0.0

    def _condition_columns(self) -> np.ndarray:
        if self.condition is None:
            return np.empty(0, np.int64)
        names = [str(name) for name in getattr(self, "feature_names_in_", ())]
        found = []
        for column in self.condition:
            if isinstance(column, str) and column not in names:
                raise ValueError(f"FlowEstimator: no column is called {column!r}; X has {names or 'columns without names, so give numbers'}")
            number = names.index(column) if isinstance(column, str) else int(column)
            if not 0 <= number < self.n_features_in_:
                raise ValueError(f"FlowEstimator: condition {column} is no column of X, which has {self.n_features_in_}")
            found.append(number)
        if len(set(found)) == self.n_features_in_:
            raise ValueError("FlowEstimator: all columns are conditions; one at least must be what the density is of")
        return np.unique(np.array(found, np.int64))

    def _dataset(self, rows: Table, noise: Any) -> Dataset:
        inner, c = self._tensors(rows.x, middle=False)
        names = getattr(self, "feature_names_in_", None)
        return Dataset(
            inner,
            c,
            rows.weight,
            names=None if names is None else [str(name) for name in names[self.columns_]],
            condition_names=None if names is None or c is None else [str(name) for name in names[self.condition_]],
            noise=noise,
            dequantize=tuple(self.dither_.tolist()) if self.dither_.any() else None,
        )

    def _tensors(self, x: np.ndarray, *, middle: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the flow sees: columns, those with noise at the middle of their steps, and conditions."""
        inner = x[:, self.columns_].astype(np.float64) + (self.dither_ / 2 if middle else 0.0)
        return torch.from_numpy(inner), torch.from_numpy(x[:, self.condition_].astype(np.float64)) if len(self.condition_) else None
