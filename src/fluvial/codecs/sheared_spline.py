"""Monotone maps of the coordinates, sheared by the condition."""

import torch
from torch import Tensor, nn

from fluvial.codecs.codec import Bijection
from fluvial.codecs.marginal_spline import MarginalSpline
from fluvial.conditions import Condition, as_features
from fluvial.manifolds import Euclidean


class ShearedSpline(Bijection):
    r"""Every coordinate through a spline of its own, along a line that leans towards the condition.

    .. math:: w_i = \cos\theta_i\, x_i + s_i, \qquad s_i = \sin\theta_i\; p_i \cdot u, \qquad z_i = \frac{f_i(w_i) - s_i}{\cos\theta_i}, \qquad
              \log|\det| = \sum_i \log f_i'(w_i)

    with u the condition. Leaned forth and back by the same, x moves where f differs from the identity, and by how much depends on where u is: with
    θ = 0 not at all on u, towards 90° on u alone, which shifts x by a function of p · u; in between on both, and scale and shape follow. The
    condition itself stays as it is, so that (x, u) ↦ (z, u) is block triangular, and for given u a bijection of x. Lines are kept as their slopes
    :math:`t_i = \tan\theta_i\; p_i`. At the start θ = 0 and f is the identity.

    Args:
        features: Number D of coordinates.
        condition_features: Length of the condition u, best of about normal numbers.
        bins: Of the splines.

    Raises:
        ValueError: If sizes are not positive.

    References:
        Laparra, Camps-Valls, Malo (2011), "Iterative Gaussianization: from ICA to random rotations", arXiv:1602.00229, which this restricts to
        maps of the pair (u, x) that leave u alone; Baptista, Marzouk, Zahm (2020), "On the representation and learning of monotone triangular
        transport maps", arXiv:2009.10303 (conditional densities by block-triangular maps).

    Example:
        >>> codec = ShearedSpline(1, 1, 4)
        >>> codec.set_lean_(torch.tensor([[1.0]]))
        >>> x, u = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.0], [2.0]])
        >>> codec.encode(x, u).round(decimals=4).tolist()
        [[0.5], [0.5]]
        >>> with torch.no_grad():
        ...     codec.spline.log_slopes[:, -1] = 0.5
        >>> bool(codec.encode(x, u)[1] == x[1]), bool(codec.encode(x, 2 * u)[1] == x[1])
        (False, False)
    """

    def __init__(self, features: int, condition_features: int, bins: int = 32) -> None:
        super().__init__()
        if condition_features < 1:
            raise ValueError(f"ShearedSpline: condition_features must be positive, got {condition_features}")
        self.spline = MarginalSpline(features, bins)
        self.domain = self.codomain = Euclidean(features)
        self.features = features
        self.condition_features = condition_features
        self.bins = bins
        self.lean = nn.Parameter(torch.zeros(features, condition_features))

    @torch.no_grad()
    def set_lean_(self, lean: Tensor) -> None:
        """Give every coordinate its line, by the slopes tan θ · p towards the condition, shape (D, condition_features).

        Raises:
            ValueError: If they are not finite, or of another shape.
        """
        if lean.shape != self.lean.shape or not bool(torch.isfinite(lean).all()):
            raise ValueError(f"ShearedSpline: expected finite slopes of shape {tuple(self.lean.shape)}, got shape {tuple(lean.shape)}")
        self.lean.copy_(lean)

    def shear(self) -> tuple[Tensor, Tensor]:
        """Cos θ, shape (D,), and the matrix sin θ · p that the condition is multiplied with, (D, condition_features)."""
        cosine = torch.rsqrt(1 + self.lean.square().sum(-1))
        return cosine, cosine.unsqueeze(-1) * self.lean

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data (batch, D) -> z of the same shape."""
        cosine, shift = self._at(c)
        return (self.spline.encode(cosine * x + shift) - shift) / cosine

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse."""
        cosine, shift = self._at(c)
        return (self.spline.decode(cosine * z + shift) - shift) / cosine

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z (batch, D) and Σ log dz/dx, (batch,)."""
        cosine, shift = self._at(c)
        bent, ladj = self.spline.encode_ladj(cosine * x + shift)
        return (bent - shift) / cosine, ladj

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """X (batch, D) and Σ log dx/dz, (batch,)."""
        cosine, shift = self._at(c)
        straight, ladj = self.spline.decode_ladj(cosine * z + shift)
        return (straight - shift) / cosine, ladj

    def extra_repr(self) -> str:
        """Sizes, for repr."""
        return f"{self.features}, condition_features={self.condition_features}, bins={self.bins}"

    def _at(self, c: Condition) -> tuple[Tensor, Tensor]:
        """Cos θ, and how far the condition of every row shears it, (batch, D)."""
        u = as_features(c)
        if u is None:
            raise ValueError("ShearedSpline: it leans towards a condition, and none was given")
        cosine, matrix = self.shear()
        return cosine, u @ matrix.mT
