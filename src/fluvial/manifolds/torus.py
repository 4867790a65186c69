"""The flat torus."""

import math
from typing import Any

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.wrapping import log_periodic

# Pairs shorter than this have no direction.
_NOTHING = 1e-12


class Torus(Manifold):
    r"""K circles: every point is k unit vectors of the plane, one for each angle.

    .. math:: T^k = (S^1)^k, \qquad x_i = (\cos\varphi_i, \sin\varphi_i), \qquad \mathrm{vol}(T^k) = (2\pi)^k

    The embedding is isometric: densities are per radian in every angle, and the uniform one is :math:`(2\pi)^{-k}`.

    Args:
        dim: Number of angles k.

    Raises:
        ValueError: If dim is not positive.

    Example:
        >>> torus = Torus(2)
        >>> x = torus.from_degrees(torch.tensor([180.0, -60.0]))
        >>> torus.to_degrees(x).round().tolist()
        [-180.0, -60.0]
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"Torus: dim must be at least 1, got {dim}; it is the number of angles")
        self.dim = dim
        self.event_shape = (dim, 2)

    @property
    def wraps(self) -> bool:
        """True: every circle closes."""
        return True

    @property
    def total_volume(self) -> float:
        """(2π)ᵏ."""
        return (2 * math.pi) ** self.dim

    @staticmethod
    def from_angles(angles: Tensor) -> Tensor:
        r"""Angles in radians (\*batch, k) -> points (\*batch, k, 2)."""
        return torch.stack([angles.cos(), angles.sin()], -1)

    @staticmethod
    def to_angles(x: Tensor) -> Tensor:
        r"""Points (\*batch, k, 2) -> angles in radians, in [−π, π), shape (\*batch, k)."""
        angles = torch.atan2(x[..., 1], x[..., 0])
        # atan2 reaches π; subtracting leaves the gradient as it is.
        return torch.where(angles >= math.pi, angles - 2 * math.pi, angles)

    @staticmethod
    def from_degrees(degrees: Any) -> Tensor:
        r"""Angles in degrees (\*batch, k), a tensor, array or list -> points (\*batch, k, 2)."""
        return Torus.from_angles(torch.deg2rad(torch.as_tensor(degrees)))

    @staticmethod
    def to_degrees(x: Tensor) -> Tensor:
        r"""Points (\*batch, k, 2) -> angles in degrees, in [−180, 180), shape (\*batch, k)."""
        return torch.rad2deg(Torus.to_angles(x))

    def project(self, x: Tensor) -> Tensor:
        """Every pair divided by its length; a pair without direction becomes (1, 0)."""
        return self._unit(x)[0]

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> y = x/|x| and (t − y⟨y, t⟩)/|x|, pair by pair."""
        y, scale = self._unit(x)
        across = _turned(y)
        return y, across * ((across * t).sum(-1, keepdim=True) * scale)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The part of every pair of u orthogonal to that of x."""
        across = _turned(x)
        return across * (across * u).sum(-1, keepdim=True)

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""The directions of growing angle, one circle after the other, shape (\*batch, k, 2, k)."""
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        return _turned(x).unsqueeze(-1) * eye.unsqueeze(1)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed direction of the k angular velocities, of length √k."""
        gauss = normals(x.shape[:-1], x, generator)
        speed = gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(-1, keepdim=True)))
        return speed.unsqueeze(-1) * _turned(x)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Turn every circle by its own angle."""
        across = _turned(x)
        angle = (across * v).sum(-1, keepdim=True)
        return self.project(torch.cos(angle) * x + torch.sin(angle) * across)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at x that turns every circle the shorter way to y."""
        return self._turn(x, y).unsqueeze(-1) * _turned(x)

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""The length of v in the embedding, shape (\*batch,)."""
        return length(v, 2)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Root of the summed squares of the k angles between x and y, in radians, shape (\*batch,)."""
        square = self._turn(x, y).square().sum(-1)
        near = square < 1e-30
        return torch.where(near, 0.0, torch.sqrt(torch.where(near, 1.0, square)))

    def log_volume(self, x: Tensor) -> Tensor:
        r"""0: the embedding is isometric. Shape (\*batch,)."""
        return x.new_zeros(x.shape[:-2])

    def random_uniform(
        self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Independent uniform points, shape (n, k, 2)."""
        return self.from_angles(2 * math.pi * torch.rand(n, self.dim, generator=generator, dtype=dtype, device=device))

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """All angles 0."""
        return torch.tensor([1.0, 0.0], dtype=dtype, device=device).expand(self.dim, 2).contiguous()

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """Turns every circle with the angular velocity a."""
        return a.unsqueeze(-1) * _turned(x)

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density of exp(x, v) at y, v normal: a sum over the angles, each summed over its turns, shape (\*batch,)."""
        turn = self._turn(x, y)
        scale = torch.as_tensor(scale, dtype=turn.dtype, device=turn.device).unsqueeze(-1)
        return log_periodic(turn, scale, windings=windings, dim=1).sum(-1)

    def __repr__(self) -> str:
        return f"Torus({self.dim})"

    @staticmethod
    def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
        """x/|x| and 1/|x| pair by pair; of a pair without direction, (1, 0) and 0."""
        square = x.square().sum(-1, keepdim=True)
        nothing = square < _NOTHING**2
        scale = torch.rsqrt(torch.where(nothing, 1.0, square))
        first, second = (x * scale).split(1, -1)
        y = torch.cat([torch.where(nothing, 1.0, first), torch.where(nothing, 0.0, second)], -1)
        return y, torch.where(nothing, 0.0, scale)

    @staticmethod
    def _turn(x: Tensor, y: Tensor) -> Tensor:
        """Signed angles from x to y, in (−π, π]."""
        return torch.atan2((_turned(x) * y).sum(-1), (x * y).sum(-1))


def _turned(x: Tensor) -> Tensor:
    """Every pair turned by 90 degrees: the unit tangent in the direction of growing angle."""
    return torch.stack([-x[..., 1], x[..., 0]], -1)
