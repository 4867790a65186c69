"""Rotations."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.polar import polar_factor, polar_linearize
from fluvial.manifolds.rotations import (
    log_rotation,
    matrix_from_quaternion,
    matrix_from_rotation_vector,
    quaternion_from_matrix,
    rotation_vector_from_matrix,
)
from fluvial.manifolds.wrapping import log_periodic


class SpecialOrthogonal(Manifold):
    r"""The rotations SO(n) of ℝⁿ as n × n matrices, with the bi-invariant metric in which a rotation by an angle θ has the length θ.

    .. math:: SO(n) = \{R : R^\top R = 1,\ \det R = 1\}, \qquad \langle A, B\rangle = \tfrac12 \mathrm{tr}(A^\top B), \qquad
              \mathrm{vol}(SO(n)) = \prod_{k=1}^{n-1} \mathrm{vol}(S^k)

    So vol(SO(3)) = 8π², and distances there are rotation angles. The embedding (Frobenius norm) is longer by √2 in every direction:
    ``log_volume`` is the constant −(dim/2) log 2.

    Args:
        n: Size of the matrices, at least 2.

    Raises:
        TypeError: If n is no whole number.
        ValueError: If n is below 2.

    Example:
        >>> rotations = SpecialOrthogonal(3)
        >>> round(rotations.total_volume / math.pi**2, 12)
        8.0
        >>> quarter = rotations.from_rotation_vector([0.0, 0.0, math.pi / 2])
        >>> round(float(rotations.distance(torch.eye(3), quarter)), 4)
        1.5708
    """

    def __init__(self, n: int) -> None:
        n = operator.index(n)
        if n < 2:
            raise ValueError(f"SpecialOrthogonal: n must be at least 2, got {n}; SpecialOrthogonal(3) are the rotations of space")
        self.n = n
        self.dim = n * (n - 1) // 2
        self.event_shape = (n, n)

    @property
    def wraps(self) -> bool:
        """True: rotations return after 2π.

        Raises:
            AttributeError: For n > 3, where wrapped normal densities are not known.
        """
        if self.n > 3:
            # Of this type, so that asking whether there are any says no.
            raise AttributeError(f"{self}: wrapped normal densities are known for n = 2 and 3")
        return True

    @property
    def total_volume(self) -> float:
        """The product of the contents of the unit spheres S¹ … Sⁿ⁻¹."""
        log_spheres = (math.log(2) + k / 2 * math.log(math.pi) - math.lgamma(k / 2) for k in range(2, self.n + 1))
        return math.exp(sum(log_spheres))

    @staticmethod
    def from_quaternion(q: Any, *, scalar_first: bool = False) -> Tensor:
        r"""Quaternions (\*batch, 4) of any length but 0 -> rotations (\*batch, 3, 3).

        Args:
            q: A tensor, array or list, in the order x, y, z, w, as scipy has it.
            scalar_first: Whether the order is w, x, y, z.

        Raises:
            ValueError: If the last axis has not 4 entries.
        """
        return matrix_from_quaternion(q, scalar_first=scalar_first)

    @staticmethod
    def to_quaternion(x: Tensor, *, scalar_first: bool = False) -> Tensor:
        r"""Rotations (\*batch, 3, 3) -> unit quaternions (\*batch, 4), of the two the one with w ≥ 0."""
        return quaternion_from_matrix(x, scalar_first=scalar_first)

    @staticmethod
    def from_rotation_vector(v: Any) -> Tensor:
        r"""Axis times angle in radians (\*batch, 3), a tensor, array or list -> rotations (\*batch, 3, 3)."""
        return matrix_from_rotation_vector(v)

    @staticmethod
    def to_rotation_vector(x: Tensor) -> Tensor:
        r"""Rotations (\*batch, 3, 3) -> axis times angle, of length at most π, shape (\*batch, 3)."""
        return rotation_vector_from_matrix(x)

    def project(self, x: Tensor) -> Tensor:
        """The nearest rotation: U diag(1, …, det UVᵀ) Vᵀ of the singular value decomposition; any matrix has one, singular ones several."""
        return polar_factor(x)

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> the nearest rotation R and its derivatives RΩ, SΩ + ΩS = Rᵀt − tᵀR with S = Rᵀx."""
        y, push = polar_linearize(x)
        return y, push(t)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The nearest rotation and its derivative as a map, with one decomposition for both."""
        return polar_linearize(x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """X times the skew part of xᵀu."""
        return x @ _skew(x.transpose(-1, -2) @ u)

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""X times (E_ij − E_ji)/√2 for all i > j, shape (\*batch, n, n, dim)."""
        i, j = torch.tril_indices(self.n, self.n, -1, device=x.device)
        k = torch.arange(self.dim, device=x.device)
        skew = x.new_zeros(self.n, self.n, self.dim)
        skew = skew.index_put((i, j, k), x.new_tensor(math.sqrt(0.5))).index_put((j, i, k), x.new_tensor(-math.sqrt(0.5)))
        return torch.einsum("...ij,jkd->...ikd", x, skew)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """X times a uniformly distributed skew matrix, of length √dim in the embedding."""
        skew = _skew(normals(x.shape, x, generator))
        return x @ (skew * (math.sqrt(self.dim) * torch.rsqrt(skew.square().sum((-2, -1), keepdim=True))))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The rotation x times the matrix exponential of xᵀv."""
        return x @ _exp_skew(_skew(x.transpose(-1, -2) @ v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The rotation x times the logarithm of xᵀy; where the rotation between them is by π, one of the logarithms.

        For n > 3 it is found there after a turn by some 1e-6, up to which it is right.
        """
        return x @ log_rotation(x.transpose(-1, -2) @ y)

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""Frobenius norm over √2, shape (\*batch,)."""
        return length(v, 2) * math.sqrt(0.5)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Root of the summed squares of the angles of xᵀy in radians, for n = 3 the rotation angle, shape (\*batch,)."""
        return length(log_rotation(x.transpose(-1, -2) @ y), 2) * math.sqrt(0.5)

    def log_volume(self, x: Tensor) -> Tensor:
        r"""−(dim/2) log 2, shape (\*batch,)."""
        return x.new_full(x.shape[:-2], -self.dim / 2 * math.log(2))

    def random_uniform(
        self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Independent rotations of the Haar measure, shape (n, size, size)."""
        q, r = torch.linalg.qr(torch.randn(n, self.n, self.n, generator=generator, dtype=dtype, device=device))
        # Only with the signs of R's diagonal is Q uniform.
        q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        flip = torch.linalg.det(q).sign()
        return torch.cat([q[..., :-1], q[..., -1:] * flip[:, None, None]], -1)

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The unit matrix."""
        return torch.eye(self.n, dtype=dtype, device=device)

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """X times the skew matrix with the entries a, for n = 3 a rotation of length |a|."""
        return math.sqrt(2) * (self.tangent_basis(x) @ a[..., None, :, None]).squeeze(-1)

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density of exp(x, v) at y, v normal, summed over rotations by the same angle and more turns, shape (\*batch,).

        For n = 3 infinite at x itself, as all turns by 2π lead there, and kept finite by a floor; it shows for scales above 1 only.

        Raises:
            TypeError: For n > 3.
        """
        if self.n > 3:
            raise TypeError(f"{self}: wrapped normal densities are known for n = 2 and 3; use bases.UniformOn")
        return log_periodic(self.distance(x, y), scale, windings=windings, dim=self.dim, power=self.dim - 1, rate=0.5)

    def __repr__(self) -> str:
        return f"SpecialOrthogonal({self.n})"


def _skew(a: Tensor) -> Tensor:
    return (a - a.transpose(-1, -2)) / 2


def _exp_skew(a: Tensor) -> Tensor:
    if a.shape[-1] == 3:
        # Of the axial vector: a closed formula in place of a series.
        return matrix_from_rotation_vector(torch.stack([a[..., 2, 1], a[..., 0, 2], a[..., 1, 0]], -1))
    return torch.linalg.matrix_exp(a)
