"""Rotation to the principal axes of the data."""

import torch
from torch import Tensor

from fluvial.codecs.isometry import Isometry
from fluvial.codecs.matrices import product, stored_orthonormal
from fluvial.codecs.moments import checked_rows, mean_and_covariance, principal_axes
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class PrincipalAxes(Isometry):
    r"""Remove the mean and turn the data to their principal axes, the one of largest variance first.

    .. math:: z = V^\top (x - \mu), \qquad V^\top C V = \mathrm{diag}(\lambda_1 \ge \lambda_2 \ge \dots), \qquad \log|\det| = 0

    C is the covariance of the data it is fitted on; until then it is the identity. Distances and variances are kept, so columns in
    different units want `Standardize` before it; `Whiten` rescales as well. Constant or dependent columns do no harm: they end up last.
    The signs are fixed: of each axis the first large entry is positive.

    Args:
        event_shape: An int n, or the shape of one sample, whose n entries are turned as one vector and put back into that shape.

    Example:
        >>> codec = PrincipalAxes(2)
        >>> codec.fit_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
        >>> (codec.encode(torch.tensor([[0.0, 0.0], [6.0, 8.0]])) + 0.0).round(decimals=3).abs().tolist()
        [[5.0, 0.0], [5.0, 0.0]]
    """

    loc: Tensor
    axes: Tensor
    is_fitted: Tensor

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.domain = self.codomain = Euclidean(event_shape)
        self.event_shape = self.domain.event_shape
        self.register_buffer("loc", torch.zeros(self.event_shape))
        self.register_buffer("axes", torch.eye(self.domain.dim))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit_(self, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
        r"""Take mean and axes from x of shape (n, \*event), each row counting with its weight (n,).

        Raises:
            ValueError: If x has the wrong event shape, no rows or numbers that are not finite, or a weight is negative.
        """
        rows, share = checked_rows("PrincipalAxes", x, self.event_shape, weight)
        mean, covariance = mean_and_covariance(rows, share)
        self.loc.copy_(mean.view(self.event_shape))
        self.axes.copy_(principal_axes(covariance)[1])
        self.is_fitted.fill_(1)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Vᵀ (x − μ)."""
        return self._turn(x - self.loc, stored_orthonormal(self.axes, x))

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """μ + V z."""
        return self.loc + self._turn(z, stored_orthonormal(self.axes, z).mT)

    def _turn(self, x: Tensor, matrix: Tensor) -> Tensor:
        return product(x.flatten(-len(self.event_shape)), matrix).unflatten(-1, self.event_shape)

    def extra_repr(self) -> str:
        """Shape, for repr."""
        return f"{self.domain}"
