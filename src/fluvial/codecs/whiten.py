"""Data brought to zero mean and unit covariance."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fluvial.codecs.codec import Bijection
from fluvial.codecs.matrices import product, solve, stored_orthonormal
from fluvial.codecs.moments import checked_rows, mean_and_covariance, principal_axes
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean

Method = Literal["pca", "zca", "cholesky"]


class Whiten(Bijection):
    r"""Shift and mix the coordinates until the data have mean 0 and covariance 1.

    .. math:: z = W\, \mathrm{diag}(\sigma)^{-1} (x - \mu), \qquad W R W^\top = 1, \qquad \log|\det| = -\sum_i \log\sigma_i - \tfrac12 \log\det R

    σ are the standard deviations and R = V Λ Vᵀ the correlations of the data it is fitted on, so that their units do not matter. What is
    stored are the factors below, not W, and the inverse is exact in any precision. It is the identity until ``fit_`` is called.

    ============  ==================  ======================================================================
    method        W                   z
    ============  ==================  ======================================================================
    "pca"         Λ^(−1/2) Vᵀ         principal components of the standardised data, the largest first
    "zca"         V Λ^(−1/2) Vᵀ       the white coordinates nearest to the standardised data
    "cholesky"    L⁻¹ with R = L Lᵀ   the i-th depends on the first i of x only
    ============  ==================  ======================================================================

    Args:
        event_shape: An int n, or the shape of one sample, whose n entries are mixed as one vector and put back into that shape.
        method: "pca", "zca" or "cholesky".
        ridge: Added to the diagonal of R, for data that are (nearly) of lower rank, such as pixels; a constant coordinate then keeps its scale.
            Variances of z are λ/(λ + ridge) instead of 1.

    Raises:
        ValueError: If the method is unknown or ridge is negative.

    References:
        Kessy, Lewin, Strimmer (2018), "Optimal whitening and decorrelation", arXiv:1512.00809 (there PCA-cor and ZCA-cor).

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 300.0], [4.0, 300.0], [6.0, 600.0]])
        >>> codec = Whiten(2)
        >>> codec.fit_(x)
        >>> torch.cov(codec.encode(x).T, correction=0).round(decimals=3).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    loc: Tensor
    scale: Tensor
    axes: Tensor
    spread: Tensor
    is_fitted: Tensor

    def __init__(self, event_shape: int | tuple[int, ...], *, method: Method = "pca", ridge: float = 0.0) -> None:
        super().__init__()
        if method not in get_args(Method):
            raise ValueError(f"Whiten: method must be one of {', '.join(get_args(Method))}, got {method!r}")
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"Whiten: ridge must be finite and not negative, got {ridge}")
        self.domain = self.codomain = Euclidean(event_shape)
        self.event_shape = self.domain.event_shape
        self.method = method
        self.ridge = ridge
        self.register_buffer("loc", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))
        # V and √Λ; for "cholesky" L with its columns divided by its diagonal, and that diagonal.
        self.register_buffer("axes", torch.eye(self.domain.dim))
        self.register_buffer("spread", torch.ones(self.domain.dim))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit_(self, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
        r"""Take mean and covariance from x of shape (n, \*event), each row counting with its weight (n,).

        Raises:
            ValueError: If x has the wrong event shape, no rows or numbers that are not finite, if a weight is negative, or if the data do
                not span all directions and there is no ridge.
        """
        rows, share = checked_rows("Whiten", x, self.event_shape, weight)
        mean, covariance = mean_and_covariance(rows, share)
        deviation = covariance.diagonal().sqrt()
        eps = torch.finfo(x.dtype).eps
        # Below this a spread is rounding of the mean, not spread.
        constant = deviation <= (eps * mean.abs()).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        scale = torch.where(constant, 1.0, deviation)
        correlation = torch.where(constant | constant.unsqueeze(1), 0.0, covariance / (scale * scale.unsqueeze(1)))
        correlation.diagonal().copy_((~constant).to(torch.float64)).add_(self.ridge)
        variances, axes = principal_axes(correlation)
        # Correlations below the rounding of the data, and below that of this decomposition, are none.
        blur = 4 * eps * (1 + (mean.abs() / scale)[~constant]).amax() if not bool(constant.all()) else eps
        floor = blur**2 + 16 * len(mean) * torch.finfo(torch.float64).eps
        rank = int((variances > floor).sum())
        if rank < len(mean):
            self._refuse(rank, len(rows), constant, axes[:, -1])
        if self.method == "cholesky":
            lower = torch.linalg.cholesky(correlation)
            spread, axes = lower.diagonal(), lower / lower.diagonal()
        else:
            spread = variances.sqrt()
        self.loc.copy_(mean.view(self.event_shape))
        self.scale.copy_(scale.view(self.event_shape))
        self.axes.copy_(axes)
        self.spread.copy_(spread)
        self.is_fitted.fill_(1)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """W (x − μ)/σ."""
        y = ((x - self.loc) / self.scale).flatten(-len(self.event_shape))
        if self.method == "cholesky":
            z = solve(self.axes, y, upper=False) / self.spread
        else:
            axes = stored_orthonormal(self.axes, y)
            z = product(y, axes) / self.spread
            z = product(z, axes.mT) if self.method == "zca" else z
        return z.unflatten(-1, self.event_shape)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """μ + σ W⁻¹ z."""
        y = z.flatten(-len(self.event_shape))
        if self.method == "cholesky":
            y = product(y * self.spread, self.axes.mT)
        else:
            axes = stored_orthonormal(self.axes, y)
            y = product(y, axes) if self.method == "zca" else y
            y = product(y * self.spread, axes.mT)
        return self.loc + self.scale * y.unflatten(-1, self.event_shape)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z and −Σ log σ − ½ log det R."""
        z = self.encode(x)
        return z, -self._log_volume(z)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The inverse and Σ log σ + ½ log det R."""
        x = self.decode(z)
        return x, self._log_volume(x)

    def _log_volume(self, x: Tensor) -> Tensor:
        total = self.scale.log().sum() + self.spread.log().sum()
        return total.expand(x.shape[: x.ndim - len(self.event_shape)])

    def _refuse(self, rank: int, n: int, constant: Tensor, axis: Tensor) -> None:
        d = len(axis)
        if bool(constant.any()):
            cause = f"coordinate {int(constant.nonzero()[0])} is constant; leave it out"
        elif n <= d:
            cause = "there are no more rows than coordinates; give more rows"
        else:
            involved = (axis.abs() > 0.1).nonzero().flatten().tolist()
            shown = ", ".join(map(str, involved[:10])) + (", …" if len(involved) > 10 else "")
            cause = f"coordinates {shown} depend on each other linearly; leave one of them out"
        raise ValueError(f"Whiten: the data span {rank} of {d} directions: {cause}, or allow for it with ridge=1e-6")

    def extra_repr(self) -> str:
        """Shape and method, for repr."""
        return f"{self.domain}, {self.method}"
