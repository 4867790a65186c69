"""Hyperbolic space as the inside of a ball."""

import math

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.wrapping import log_hyperbolic

# Points are kept so far inside the unit sphere, where single precision still resolves 1 − |x|²: no point is farther than 12.2 from the centre.
_MARGIN = 1e-5
# What lies beyond is spread over a rim of this width, since a decoder all of whose points beyond went to one radius would have an infinite density.
_RIM = 1e-4


class PoincareBall(Manifold):
    r"""Hyperbolic space Hⁿ of curvature −1 as the unit ball of ℝⁿ.

    .. math:: \{x \in \mathbb{R}^n : |x| < 1\}, \qquad G(x) = \lambda_x^2\, 1, \quad \lambda_x = \frac{2}{1 - |x|^2}, \qquad
              \cosh d(x, y) = 1 + \frac{2|x - y|^2}{(1 - |x|^2)(1 - |y|^2)}

    The metric is conformal: ``log_volume`` is n log λ. Points with \|x\| above 1 − 10⁻⁵, 12.2 from the centre, are pulled back into a rim of width
    10⁻⁴ below that radius, the farther the deeper, so that the projection has a derivative of full rank everywhere.

    Args:
        dim: Dimension n.

    Raises:
        ValueError: If dim is not positive.

    References:
        Nickel, Kiela (2017), "Poincaré embeddings for learning hierarchical representations", arXiv:1705.08039;
        Ganea, Bécigneul, Hofmann (2018), "Hyperbolic neural networks", arXiv:1805.09112 (exp and log).

    Example:
        >>> disc = PoincareBall(2)
        >>> round(float(disc.distance(torch.zeros(2), torch.tensor([0.5, 0.0]))), 4) == round(2 * math.atanh(0.5), 4)
        True
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"PoincareBall: dim must be at least 1, got {dim}; PoincareBall(2) is the hyperbolic plane")
        self.dim = dim
        self.event_shape = (dim,)

    @property
    def wraps(self) -> bool:
        """False: geodesics do not return."""
        return False

    def project(self, x: Tensor) -> Tensor:
        """X inside the ball, otherwise x scaled to the radius 1 − 10⁻⁵ − 10⁻⁴ u/(1 + u) of u = |x| − 1 + 10⁻⁵."""
        return x * self._shrink(x)[0]

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> the projection and its derivatives: t inside, nearly only the part across x outside."""
        scale, slope, square = self._shrink(x)
        along = (x * t).sum(-1, keepdim=True) / torch.where(square > 0, square, 1.0)
        return x * scale, scale * t + ((slope - scale) * along) * x

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The identity: every vector is tangent."""
        return u

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""The unit matrix, shape (\*batch, n, n)."""
        return torch.eye(self.dim, dtype=x.dtype, device=x.device).expand(*x.shape, self.dim)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed direction, of length √n in the embedding."""
        gauss = normals(x.shape, x, generator)
        return gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(-1, keepdim=True)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """X ⊕ tanh(λ|v|/2) v/|v|, with Möbius addition ⊕."""
        size = length(v, 1).unsqueeze(-1)
        half = size / self._gap(x)
        # tanh(h)/|v| → 1/(1 − |x|²) as v → 0.
        factor = torch.where(size < 1e-12, 1 / self._gap(x), torch.tanh(half) / torch.where(size < 1e-12, 1.0, size))
        return self.project(_moebius_sum(x, factor * v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """(2/λ) artanh|w| w/|w| of w = −x ⊕ y."""
        w = _moebius_sum(-x, y)
        size = length(w, 1).unsqueeze(-1)
        tiny = size < 1e-12
        # artanh|w| = d/2, which `distance` computes without the cancellation of 1 − |w|.
        factor = torch.where(tiny, 1.0, self.distance(x, y).unsqueeze(-1) / 2 / torch.where(tiny, 1.0, size))
        return self._gap(x) * factor * w

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""Λ|v|, shape (\*batch,)."""
        return 2 * length(v, 1) / self._gap(x).squeeze(-1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""2 arsinh(|x − y| / √((1 − |x|²)(1 − |y|²))), shape (\*batch,)."""
        return 2 * torch.asinh(length(x - y, 1) * torch.rsqrt(self._gap(x) * self._gap(y)).squeeze(-1))

    def log_volume(self, x: Tensor) -> Tensor:
        r"""N log λ, shape (\*batch,)."""
        return self.dim * (math.log(2) - torch.log(self._gap(x).squeeze(-1)))

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The centre 0."""
        return torch.zeros(self.dim, dtype=dtype, device=device)

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """The vectors divided by λ."""
        return a * (self._gap(x) / 2)

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density of exp(x, v) at y, v normal, which exp stretches by (sinh r/r)ⁿ⁻¹, shape (\*batch,)."""
        return log_hyperbolic(self.distance(x, y), scale, self.dim)

    def __repr__(self) -> str:
        return f"PoincareBall({self.dim})"

    @staticmethod
    def _gap(x: Tensor) -> Tensor:
        """1 − |x|², shape (*batch, 1), positive also for a point that was rounded out of the ball."""
        return (1 - x.square().sum(-1, keepdim=True)).clamp_min(_MARGIN)

    @staticmethod
    def _shrink(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The factor on x, the derivative of the new radius by the old one, and |x|², each of shape (*batch, 1)."""
        square = x.square().sum(-1, keepdim=True)
        outside = square > (1 - _MARGIN) ** 2
        radius = torch.sqrt(torch.where(outside, square, 1.0))
        above = 1 / (1 + (radius - (1 - _MARGIN)))
        scale = (1 - _MARGIN - _RIM * (1 - above)) / radius
        return torch.where(outside, scale, 1.0), torch.where(outside, -_RIM * above.square(), 1.0), square


def _moebius_sum(x: Tensor, y: Tensor) -> Tensor:
    xy, xx, yy = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
    return ((1 + 2 * xy + yy) * x + (1 - xx) * y) / (1 + 2 * xy + xx * yy).clamp_min(1e-15)
