"""Bumps on the rotations of space."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.bases.base import Base, count, sample_shape
from fluvial.conditions import Condition
from fluvial.manifolds import SpecialOrthogonal


class MatrixFisher(Base):
    r"""The matrix Fisher distribution on SO(3), the maximum-entropy one of given mean matrix.

    .. math:: p(R) = \frac{e^{\mathrm{tr}(F^\top R)}}{8\pi^2\, c(F)}, \qquad c(F) = \mathbb{E}_{R \sim \text{Haar}}\, e^{\mathrm{tr}(F^\top R)}

    With the proper singular value decomposition F = U diag(s) Vᵀ, where U and V are rotations and s₁ ≥ s₂ ≥ \|s₃\|, the mode is UVᵀ, and near it
    the rotation about the i-th column of U has the variance 1/(s_j + s_k). As densities are per Riemannian volume, F = 0 is uniform, 1/8π².

    Args:
        concentration: F, a 3 × 3 matrix, or a number κ for κ times the unit matrix.
        learnable: Train F together with the flow.

    Raises:
        ValueError: If it is neither a number nor a 3 × 3 matrix of finite numbers.

    References:
        Lee (2018), "Bayesian attitude estimation with the matrix Fisher distribution on SO(3)", arXiv:1710.03746 (the normaliser);
        Kent, Ganeiban, Mardia (2013), "A new method to simulate the Bingham and related distributions", arXiv:1310.8110 (the sampler).

    Example:
        >>> base = MatrixFisher(10.0)
        >>> base.sample(5).shape, base.mode.diagonal().tolist()
        (torch.Size([5, 3, 3]), [1.0, 1.0, 1.0])
    """

    def __init__(self, concentration: Any, *, learnable: bool = False) -> None:
        super().__init__()
        given = torch.as_tensor(concentration).detach().cpu().double()
        if given.shape not in ((), (3, 3)) or not bool(torch.isfinite(given).all()):
            raise ValueError(f"MatrixFisher: concentration must be a finite number or a 3 × 3 matrix of such, got {concentration!r:.80}")
        self.manifold = SpecialOrthogonal(3)
        self.concentration = float(given) if given.ndim == 0 else tuple(map(tuple, given.tolist()))
        self.learnable = learnable
        # Drawing rejects: a fixed F needs no gradient, a learnable one gets none.
        self.has_rsample = not learnable
        matrix = given * torch.eye(3, dtype=torch.float64) if given.ndim == 0 else given
        self.matrix = nn.Parameter(matrix.to(torch.get_default_dtype()), requires_grad=learnable)

    @property
    def mode(self) -> Tensor:
        """The rotation of the highest density, shape (3, 3); where there are several, one of them."""
        return self.manifold.project(self.matrix)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of rotations z (\*batch, 3, 3), shape (\*batch,)."""
        s = _proper_svd(self.matrix)[1]
        return (self.matrix * z).sum((-2, -1)) - s.sum() - log_scaled_normaliser(s) - math.log(8 * math.pi**2)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), 3, 3), without gradient."""
        shape = sample_shape(n, c)
        u, s, v = _proper_svd(self.matrix)
        # tr(diag(s) R(q)) = Σ s − Σ aᵢ qᵢ² over the entries x, y, z of a unit quaternion.
        a = torch.stack([2 * (s[1] + s[2]).clamp_min(0), 2 * (s[0] + s[2]), 2 * (s[0] + s[1]), torch.zeros_like(s[0])])
        q = _sample_bingham(a, count(shape), generator)
        return (u @ self.manifold.from_quaternion(q) @ v.transpose(-1, -2)).view(*shape, 3, 3)

    def extra_repr(self) -> str:
        """The concentration, for repr."""
        return f"{self.concentration}{', learnable' if self.learnable else ''}"


def log_scaled_normaliser(s: Tensor) -> Tensor:
    r"""Log c(diag s) − (s₁ + s₂ + s₃) for s₁ ≥ s₂ ≥ \|s₃\|, shape (\*batch, 3) -> (\*batch,).

    .. math:: c\, e^{-s_1 - s_2 - s_3} = \int_0^1 \bar I_0((s_1 - s_2) t)\, \bar I_0((s_1 + s_2)(1 - t))\, e^{-2 (s_2 + s_3) t}\, dt,
              \qquad \bar I_0(x) = e^{-x} I_0(x)

    The integrand changes near both ends within 1/s: t = 1/(1 + e⁻ʸ) makes every such change about 1 wide, so that the trapezoid rule in y
    reaches rounding for any s.
    """
    y = torch.linspace(-36.0, 36.0, 289, dtype=s.dtype, device=s.device)
    t, rest = torch.sigmoid(y), torch.sigmoid(-y)
    s1, s2, s3 = s.unsqueeze(-1).unbind(-2)
    integrand = _scaled_bessel((s1 - s2) * t) * _scaled_bessel((s1 + s2) * rest) * torch.exp(-2 * (s2 + s3) * t)
    return torch.log((integrand * (t * rest * 0.25)).sum(-1))


def _scaled_bessel(x: Tensor) -> Tensor:
    """e^{−x} I₀(x): i0e, which scales by e^{−|x|}, has another derivative at 0, where two singular values are equal."""
    return torch.special.i0e(x) * torch.exp(x.abs() - x)


def _proper_svd(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations U, V and s with F = U diag(s) Vᵀ, s₁ ≥ s₂ ≥ |s₃|; only s has a derivative, which exists for all F."""
    u, s, vh = torch.linalg.svd(f)
    u, v = u.detach(), vh.detach().transpose(-1, -2)
    signs = [torch.linalg.det(a).sign() for a in (u, v)]
    last = s.new_tensor([0.0, 0.0, 1.0])
    u, v = (a * (1 - last + last * sign) for a, sign in zip((u, v), signs))
    return u, s * (1 - last + last * signs[0] * signs[1]), v


def _sample_bingham(a: Tensor, total: int, generator: torch.Generator | None) -> Tensor:
    r"""Unit vectors (total, q) with the density e^{−Σ aᵢxᵢ²}, all a ≥ 0 and one of them 0, by rejection from an angular central Gaussian."""
    q = len(a)
    # b solves Σ 1/(b + 2aᵢ) = 1, which lies in [1, q]; bisection.
    low, high = torch.ones_like(a[0]), torch.full_like(a[0], float(q))
    for _ in range(60):
        b = (low + high) / 2
        above = (1 / (b + 2 * a)).sum() > 1
        low, high = torch.where(above, b, low), torch.where(above, high, b)
    b = (low + high) / 2
    omega = 1 + 2 * a / b
    bound = -(q - b) / 2 + q / 2 * torch.log(q / b)
    x = a.new_zeros(total, q)
    left = torch.arange(total, device=a.device)
    while len(left):
        y = torch.randn(len(left), q, generator=generator, dtype=a.dtype, device=a.device) * torch.rsqrt(omega)
        y = torch.nn.functional.normalize(y, dim=-1)
        u = 1 - torch.rand(len(left), generator=generator, dtype=a.dtype, device=a.device)
        accept = -(a * y.square()).sum(-1) + q / 2 * torch.log((omega * y.square()).sum(-1)) - bound >= torch.log(u)
        x[left[accept]] = y[accept]
        left = left[~accept]
    return x
