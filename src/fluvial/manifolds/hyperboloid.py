"""Hyperbolic space as a hyperboloid."""

import math

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.wrapping import log_hyperbolic


class Hyperboloid(Manifold):
    r"""Hyperbolic space Hⁿ of curvature −1 as the upper sheet of a hyperboloid in Minkowski space, the time coordinate first.

    .. math:: \{x \in \mathbb{R}^{n+1} : \langle x, x\rangle = -1,\ x_0 > 0\}, \qquad \langle x, y\rangle = -x_0 y_0 + \sum_{i \ge 1} x_i y_i, \qquad
              \cosh d(x, y) = -\langle x, y\rangle

    The metric is that of Minkowski space on tangent vectors, which the embedding in Euclidean ℝⁿ⁺¹ stretches:
    ``log_volume`` is −½ log(2x₀² − 1).

    Args:
        dim: Dimension n.

    Raises:
        ValueError: If dim is not positive.

    References:
        Nickel, Kiela (2018), "Learning continuous hierarchies in the Lorentz model of hyperbolic geometry", arXiv:1806.03417.

    Example:
        >>> space = Hyperboloid(2)
        >>> x = space.from_ball(torch.tensor([0.5, 0.0]))
        >>> round(float(space.distance(space.from_ball(torch.zeros(2)), x)), 4) == round(2 * math.atanh(0.5), 4)
        True
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"Hyperboloid: dim must be at least 1, got {dim}; Hyperboloid(2) is the hyperbolic plane")
        self.dim = dim
        self.event_shape = (dim + 1,)

    @property
    def wraps(self) -> bool:
        """False: geodesics do not return."""
        return False

    @staticmethod
    def from_ball(x: Tensor) -> Tensor:
        r"""Points of the Poincaré ball (\*batch, n) -> the same points of the hyperboloid, (1 + |x|², 2x)/(1 − |x|²)."""
        square = x.square().sum(-1, keepdim=True)
        return torch.cat([1 + square, 2 * x], -1) / (1 - square)

    @staticmethod
    def to_ball(x: Tensor) -> Tensor:
        r"""Points (\*batch, n + 1) -> the same points of the Poincaré ball, shape (\*batch, n)."""
        return x[..., 1:] / (1 + x[..., :1])

    def project(self, x: Tensor) -> Tensor:
        """The point above the same place: the time coordinate becomes √(1 + Σ xᵢ²). Not the nearest point, but smooth everywhere."""
        space = x[..., 1:]
        return torch.cat([(1 + space.square().sum(-1, keepdim=True)).sqrt(), space], -1)

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> the projection and its derivatives."""
        y = self.project(x)
        return y, torch.cat([(y[..., 1:] * t[..., 1:]).sum(-1, keepdim=True) / y[..., :1], t[..., 1:].expand_as(t[..., 1:])], -1)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The part of u orthogonal, in the embedding, to the normal (−x₀, x₁, …)."""
        normal = _flip(x)
        return u - normal * ((normal * u).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True))

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""Columns of the Householder reflection that sends the time axis to the unit normal, shape (\*batch, n + 1, n)."""
        normal = _flip(x)
        normal = normal * torch.rsqrt(normal.square().sum(-1, keepdim=True))
        # The normal points down the time axis, so that its difference to the axis that points up is at least √2 long.
        u = torch.cat([normal[..., :1] - 1, normal[..., 1:]], -1)
        eye = torch.eye(self.dim + 1, dtype=x.dtype, device=x.device)
        return (eye - u.unsqueeze(-1) * u.unsqueeze(-2) * (2 / u.square().sum(-1))[..., None, None])[..., 1:]

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed tangent direction, of length √n in the embedding."""
        gauss = self.to_tangent(x, normals(x.shape, x, generator))
        return gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(-1, keepdim=True)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Cosh|v| x + sinh|v| v/|v|."""
        size = self.norm(x, v).unsqueeze(-1)
        tiny = size < 1e-12
        return self.project(torch.cosh(size) * x + torch.where(tiny, 1.0, torch.sinh(size) / torch.where(tiny, 1.0, size)) * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """D (y + ⟨x, y⟩ x) / sinh d, of the distance d."""
        d = self.distance(x, y).unsqueeze(-1)
        # y + ⟨x, y⟩x = (y − x) − ½⟨y − x, y − x⟩ x: near x without cancellation, far from it (with cosh d in place of the product) without overflow.
        far = d > 1
        step = torch.where(far, 0.0, y - x)
        near = step - 0.5 * _minkowski(step, step).unsqueeze(-1) * x
        tiny = d < 1e-12
        safe = torch.where(tiny, 1.0, d)
        beyond = torch.where(far, d, 1.0)
        return torch.where(far, beyond * (y / torch.sinh(beyond) - x / torch.tanh(beyond)), torch.where(tiny, 1.0, safe / torch.sinh(safe)) * near)

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""√⟨v, v⟩ of Minkowski space, shape (\*batch,)."""
        # ⟨v, v⟩ = |w|² + (|w|²|s|² − (s·w)²)/… would cancel for long v; of tangent v, v₀ = s·w/x₀ with the spatial parts s of x and w of v.
        s, w = x[..., 1:], v[..., 1:]
        along = (s * w).sum(-1, keepdim=True)
        far = s.square().sum(-1, keepdim=True)
        along_unit = along * torch.rsqrt(torch.where(far > 0, far, 1.0))
        across = w - s * (along / torch.where(far > 0, far, 1.0))
        # Along s the metric is 1/x₀², across it 1.
        return length(torch.cat([across, along_unit / (1 + far).sqrt()], -1), 1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""2 arsinh(½√⟨x − y, x − y⟩), shape (\*batch,)."""
        square = _minkowski(x - y, x - y).clamp_min(0)
        near = square < 1e-30 if x.dtype == torch.float64 else square < 1e-14
        return torch.where(near, 0.0, 2 * torch.asinh(torch.sqrt(torch.where(near, 1.0, square)) / 2))

    def log_volume(self, x: Tensor) -> Tensor:
        r"""−½ log(x₀² + Σ xᵢ²), shape (\*batch,)."""
        return -0.5 * torch.log(x.square().sum(-1))

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The lowest point (1, 0, …, 0)."""
        return torch.eye(self.dim + 1, dtype=dtype, device=device)[0]

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """The vectors (0, a) at the origin, carried along the geodesic to x."""
        space = x[..., 1:]
        along = (space * a).sum(-1, keepdim=True)
        return torch.cat([along, a + space * (along / (1 + x[..., :1]))], -1)

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density of exp(x, v) at y, v normal, which exp stretches by (sinh r/r)ⁿ⁻¹, shape (\*batch,)."""
        return log_hyperbolic(self.distance(x, y), scale, self.dim)

    def __repr__(self) -> str:
        return f"Hyperboloid({self.dim})"


def _flip(x: Tensor) -> Tensor:
    return torch.cat([-x[..., :1], x[..., 1:]], -1)


def _minkowski(x: Tensor, y: Tensor) -> Tensor:
    return (_flip(x) * y).sum(-1)
