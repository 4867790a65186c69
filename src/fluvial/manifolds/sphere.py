"""The unit sphere."""

import math

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.wrapping import log_periodic


class Sphere(Manifold):
    r"""The unit sphere Sⁿ of ℝⁿ⁺¹ with the arc length of the embedding.

    .. math:: S^n = \{x \in \mathbb{R}^{n+1} : |x| = 1\}, \qquad \mathrm{vol}(S^n) = \frac{2\pi^{(n+1)/2}}{\Gamma((n+1)/2)}

    Args:
        dim: Intrinsic dimension n: 1 for the circle, 2 for the surface of a ball.

    Raises:
        ValueError: If dim is not positive.

    Example:
        >>> round(Sphere(2).total_volume / math.pi, 12)
        4.0
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"Sphere: dim must be at least 1, got {dim}; Sphere(1) is the circle, Sphere(2) the surface of a ball")
        self.dim = dim
        self.event_shape = (dim + 1,)

    @property
    def wraps(self) -> bool:
        """True: great circles return."""
        return True

    @property
    def total_volume(self) -> float:
        """Surface content of the whole sphere."""
        return 2 * math.exp((self.dim + 1) / 2 * math.log(math.pi) - math.lgamma((self.dim + 1) / 2))

    def project(self, x: Tensor) -> Tensor:
        """X / |x|."""
        return torch.nn.functional.normalize(x, dim=-1)

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> y = x/|x| and (t − y⟨y, t⟩)/|x|."""
        scale = torch.rsqrt(x.square().sum(-1, keepdim=True).clamp_min(1e-24))
        y = x * scale
        return y, (t - y * (y * t).sum(-1, keepdim=True)) * scale

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The part of u orthogonal to x."""
        return u - x * (x * u).sum(-1, keepdim=True)

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""Columns of the Householder reflection that sends the last axis to ±x, shape (\*batch, n + 1, n)."""
        sign = torch.where(x[..., -1:] < 0, -1.0, 1.0).to(x.dtype)
        last = torch.zeros_like(x)
        last[..., -1] = 1
        # Of ±x the one on the side of the last axis keeps the sum well away from 0.
        u = x + sign * last
        # |u|² = 2 (1 + |x_n|) on the unit sphere.
        reflected = (
            torch.eye(self.dim + 1, dtype=x.dtype, device=x.device) - u.unsqueeze(-1) * u.unsqueeze(-2) * (2 / u.square().sum(-1))[..., None, None]
        )
        return reflected[..., : self.dim]

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed tangent direction of length √n."""
        gauss = self.to_tangent(x, normals(x.shape, x, generator))
        return gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(-1, keepdim=True)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The great circle through x along v, |v| radians away."""
        angle = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        return self.project(torch.cos(angle) * x + torch.sinc(angle / math.pi) * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at x that points to y and is as long as their distance; to the antipode, one of the many."""
        flat = self.to_tangent(x, y - x)
        sine = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
        tiny = sine < 1e-12
        scale = self.distance(x, y).unsqueeze(-1) / torch.where(tiny, 1.0, sine)
        opposite = tiny & ((x * y).sum(-1, keepdim=True) < 0)
        return torch.where(opposite, math.pi * self.tangent_basis(x)[..., 0], torch.where(tiny, flat, scale * flat))

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""The length of v in the embedding, shape (\*batch,)."""
        return length(v, 1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Angle between x and y in radians, shape (\*batch,)."""
        # 2 atan2(|x − y|, |x + y|) keeps its digits, and finite gradients, where arccos⟨x, y⟩ loses both.
        apart = (x - y).square().sum(-1)
        near = apart < 1e-30
        chord = torch.sqrt(torch.where(near, 1.0, apart))
        angle = 2 * torch.atan2(chord, torch.linalg.vector_norm(x + y, dim=-1))
        return torch.where(near, 0.0, angle)

    def log_volume(self, x: Tensor) -> Tensor:
        r"""0: the embedding is isometric. Shape (\*batch,)."""
        return x.new_zeros(x.shape[:-1])

    def random_uniform(
        self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Independent uniform points, shape (n, dim + 1)."""
        return self.project(torch.randn(n, self.dim + 1, generator=generator, dtype=dtype, device=device))

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The pole (0, …, 0, 1)."""
        return torch.eye(self.dim + 1, dtype=dtype, device=device)[-1]

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """The combinations of the tangent basis with the entries of a."""
        return (self.tangent_basis(x) @ a.unsqueeze(-1)).squeeze(-1)

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density of exp(x, v) at y, v normal, summed over great circles run several times, shape (\*batch,).

        Infinite at the antipode of x for n ≥ 2, and kept finite there by a floor.
        """
        return log_periodic(self.distance(x, y), scale, windings=windings, dim=self.dim, power=self.dim - 1)

    def __repr__(self) -> str:
        return f"Sphere({self.dim})"
