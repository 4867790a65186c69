"""Columns made normal and independent."""

from typing import Any, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from fluvial.sklearn.gaussianized import Gaussianized
from fluvial.sklearn.tables import as_given, numbers


class GaussianizationTransformer(OneToOneFeatureMixin, TransformerMixin, Gaussianized):
    r"""Make the columns of a table normal and independent, invertibly.

    .. math:: z = Q^\top f_L(Q_L \cdots f_2(Q_2\, f_1(x))) \sim N(0, 1), \qquad Q = Q_L \cdots Q_2

    where `QuantileTransformer` and `PowerTransformer` make them normal one by one and leave their dependence. The rotations Q between the layers
    are undone at the end, so that z_i belongs to column i. See `fluvial.gaussianization.fit.fit` for what the arguments mean in detail.

    Missing values and categories are refused. Columns that hold one value only are left out of z (``constant="drop"``) and put back by
    ``inverse_transform``, or refused (``"raise"``). Columns with ties, as of whole numbers, get noise as wide as their steps in ``fit`` (the same
    for the same ``random_state``); a value is transformed as the middle of its step, without noise. Fewer than 20 rows get a normal distribution.
    The result does not depend on the order of the rows; whole ``sample_weight`` count as repeated rows.

    Args:
        rotation: "auto" (principal axes and random ones by turns), "haar", "hadamard", "pca", "ica", "max_kswd", "learned", or "none" for
            columns one by one.
        marginal: "spline", "kde", "mixture" or "affine".
        bins: Of the splines; "auto" takes √n/2, within 16 and 64.
        alpha: Shrinkage of the layers towards affine ones, 0 to 1, or that of the first layer and that of the others.
        tail: "pareto", "gaussian" or "bounded". Values beyond the bounds are transformed as if they lay on them.
        bounds: Lower and upper bound of every column, None where there is none.
        max_layers: No more layers than these.
        patience: Stop after so many layers without gain on the rows held out.
        min_gain: What counts as one, in nats.
        validation: Share of the rows to hold out, 0 for none.
        dither: Width of the noise, one number or one for each column, None for none; "auto" finds columns with ties, and warns.
        constant: "drop" or "raise".
        n_jobs: Threads in ``fit``; None is 1, −1 all.
        random_state: Of rows held out, rotations and noise: an int, a RandomState, or None.
        verbose: Show progress.

    Attributes:
        flow_: The `Flow` of the columns that vary, in double precision; `fluvial.save`, `fluvial.check` and `export_numpy` take it.
        n_layers_: Its layers.
        columns_: Numbers of the columns that vary.
        constants_: Values of the others, shape (D,), NaN for those that vary.
        dither_: Width of the noise of each column of the flow.
        rotation_: Q, shape (d, d).
        n_features_in_: Columns D.
        feature_names_in_: Their names, where they have some.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(2000, 2))
        >>> x[:, 1] += x[:, 0] ** 2
        >>> transformer = GaussianizationTransformer(max_layers=40).fit(x)
        >>> z = transformer.transform(x)
        >>> bool(abs(np.corrcoef(z[:, 0] ** 2, z[:, 1])[0, 1]) < 0.2), bool(np.allclose(transformer.inverse_transform(z), x))
        (True, True)
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the layers to rows (n, D); y is ignored.

        Raises:
            ValueError: If X has missing values, categories, fewer than 2 rows or no column that varies; if an argument makes no sense.
        """
        self._fit_flow(X, sample_weight)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Rows (n, D) -> z (n, d), in the precision of X."""
        check_is_fitted(self)
        x = numbers(self, X, reset=False)
        return as_given(self._encoded(x), x)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows z (n, d) -> rows (n, D), with the constant columns.

        Raises:
            ValueError: If X has another number of columns than `transform` gives.
        """
        check_is_fitted(self)
        z = check_array(X, dtype=[np.float64, np.float32])
        if z.shape[1] != len(self.columns_):
            raise ValueError(f"X has {z.shape[1]} features, but {type(self).__name__} gives {len(self.columns_)} and takes back as many")
        return as_given(self._decoded(z), z)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns that vary."""
        check_is_fitted(self)
        return np.asarray(super().get_feature_names_out(input_features))[self.columns_]

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: float32 stays float32."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
