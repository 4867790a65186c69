"""Kernels of density estimates: one for each kind of space."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus
from fluvial.metrics.kernel import Kernel
from fluvial.metrics.mesh_kernel import ChordGaussian
from fluvial.metrics.quadrature import lorentz_boost

# Radii are drawn from tables of so many cells, which end where the density is e⁻⁴⁰ of its peak.
CELLS = 2**13
TAIL = 40.0


class Gaussian(Kernel):
    """Normal kernels of flat space, in units of each column's standard deviation."""

    is_relative = True

    def __init__(self, points: Tensor) -> None:
        # Centred, so that large numbers with small differences keep their digits.
        self.centre = points.flatten(1).mean(0)
        self.scale = points.flatten(1).std(0, correction=0)
        if not bool((self.scale > 0).all()):
            raise ValueError(f"KernelDensity: column {int((self.scale <= 0).nonzero()[0])} is constant and has no density; leave it out")

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        return (x.flatten(1) - self.centre) / self.scale

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        return len(self.scale) / 2 * math.log(tau / (2 * math.pi)) - self.scale.log().sum(0, keepdim=True)

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        return points + _normals(points.flatten(1), generator).mul(self.scale / math.sqrt(tau)).view_as(points)


class VonMisesFisher(Kernel):
    """exp(κ⟨x, y⟩) on a sphere."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        return x

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        return torch.tensor([_log_vmf_height(self.dim, tau)], dtype=torch.float64)

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        angle = _radii(len(points), lambda r: tau * (torch.cos(r) - 1) + (self.dim - 1) * torch.log(torch.sin(r)), math.pi, tau, generator)
        sphere = Sphere(self.dim)
        side = sphere.project(sphere.to_tangent(points, _normals(points, generator)))
        return sphere.project(torch.cos(angle).unsqueeze(1) * points + torch.sin(angle).unsqueeze(1) * side)


class VonMises(Kernel):
    """exp(κ Σ cos Δφ) on a torus."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        return x.flatten(1)

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        return torch.tensor([self.dim * _log_vmf_height(1, tau)], dtype=torch.float64)

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        turn = _radii(len(points) * self.dim, lambda r: tau * (torch.cos(r) - 1), math.pi, tau, generator).view(-1, self.dim)
        turn = turn * torch.where(torch.rand(turn.shape, generator=generator, dtype=turn.dtype) < 0.5, -1.0, 1.0)
        return Torus.from_angles(Torus.to_angles(points) + turn)


class MatrixFisher(Kernel):
    r"""exp(κ cos θ) on the rotations of the plane or of space, of the angle θ between them; ∫ = 8π² (I₀(κ) − I₁(κ)) in space."""

    def __init__(self, n: int) -> None:
        self.n = n

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        # ½|R − S|² of the features is 1 − cos θ.
        return x.flatten(1) * math.sqrt(0.5)

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        if self.n == 2:
            return torch.tensor([_log_vmf_height(1, tau)], dtype=torch.float64)
        kappa = torch.tensor([tau], dtype=torch.float64)
        return -math.log(8 * math.pi**2) - torch.log(torch.special.i0e(kappa) - torch.special.i1e(kappa))

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        if self.n == 2:
            flat = VonMises(1).draw(points[:, None, :, 0], tau, generator).squeeze(1)
            return torch.stack([flat, torch.stack([-flat[:, 1], flat[:, 0]], -1)], -1)
        angle = _radii(len(points), lambda r: tau * (torch.cos(r) - 1) + 2 * torch.log(torch.sin(r / 2)), math.pi, tau, generator)
        axis = Sphere(2).project(_normals(points[..., 0], generator))
        return points @ SpecialOrthogonal.from_rotation_vector(angle.unsqueeze(1) * axis)


class Hyperbolic(Kernel):
    r"""exp(−κ (cosh d − 1)) on hyperbolic space; ∫ = 2 (2π/κ)^{(n − 1)/2} K_{(n − 1)/2}(κ) e^κ, which is 2π/κ in two dimensions."""

    def __init__(self, manifold: Hyperboloid | PoincareBall) -> None:
        self.manifold = manifold
        self.times = torch.arange(manifold.dim + 1) == 0

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        return Hyperboloid.from_ball(x) if isinstance(self.manifold, PoincareBall) else x

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        from scipy.special import kve

        order = (self.manifold.dim - 1) / 2
        return torch.tensor([-math.log(2) - order * math.log(2 * math.pi / tau) - math.log(kve(order, tau))], dtype=torch.float64)

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        n = self.manifold.dim
        farthest = math.acosh(1 + (TAIL + 10 * n) / tau)
        radius = _radii(
            len(points), lambda r: -2 * tau * torch.sinh(r / 2).square() + (n - 1) * torch.log(torch.sinh(r)), farthest, tau, generator
        ).unsqueeze(1)
        at = self.features(points)
        side = _normals(at[:, 1:], generator)
        side = side / side.norm(dim=1, keepdim=True)
        moved = lorentz_boost(at, torch.cat([torch.cosh(radius), torch.sinh(radius) * side], 1))
        return Hyperboloid.to_ball(moved) if isinstance(self.manifold, PoincareBall) else moved


class Joined(Kernel):
    """The product of the factors' kernels, whose widths are one number times the spread of the points in each factor."""

    is_relative = True

    def __init__(self, manifold: Product, points: Tensor) -> None:
        self.manifold = manifold
        parts = manifold.split(points)
        self.kernels = [kernel_on(factor, part) for factor, part in zip(manifold.factors, parts)]
        features = [kernel.features(part) for kernel, part in zip(self.kernels, parts)]
        times = [torch.zeros(f.shape[1], dtype=torch.bool) if kernel.times is None else kernel.times for kernel, f in zip(self.kernels, features)]
        self.times = torch.cat(times) if any(bool(t.any()) for t in times) else None
        # Half the mean square distance of two points, per dimension: the variance where space is flat.
        variance = [
            float(kernel.square(f).mean() - kernel.square(f.mean(0, keepdim=True))) / factor.dim
            for kernel, f, factor in zip(self.kernels, features, manifold.factors)
        ]
        if constant := [factor for factor, v in zip(manifold.factors, variance) if not v > 0]:
            raise ValueError(f"KernelDensity: all points have the same part on {constant[0]}, which has no density; leave it out")
        self.spread = [math.sqrt(v) for v in variance]

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        parts = zip(self.kernels, self.manifold.split(x), self.spread)
        return torch.cat([kernel.features(part) / spread for kernel, part, spread in parts], 1)

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        parts = zip(self.kernels, self.manifold.split(points), self.spread)
        heights = [kernel.log_height(tau / spread**2, part) for kernel, part, spread in parts]
        return heights[0] if len(heights) == 1 else sum(heights[1:], heights[0])

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        parts = zip(self.kernels, self.manifold.split(points), self.spread)
        return self.manifold.join(*(kernel.draw(part, tau / spread**2, generator) for kernel, part, spread in parts))


def has_kernel(manifold: Manifold) -> bool:
    """Whether there is a kernel for a manifold."""
    if isinstance(manifold, Product):
        return all(map(has_kernel, manifold.factors))
    return isinstance(manifold, Euclidean | Sphere | Torus | Hyperboloid | PoincareBall | Mesh) or (
        isinstance(manifold, SpecialOrthogonal) and manifold.n <= 3
    )


def kernel_on(manifold: Manifold, points: Tensor) -> Kernel:
    r"""The kernel of a manifold, in units that suit the points (m, \*event) in float64.

    Raises:
        ValueError: If the points do not spread in some direction.
        TypeError: If the manifold has no kernel here.
    """
    if isinstance(manifold, Euclidean):
        return Gaussian(points)
    if isinstance(manifold, Sphere):
        return VonMisesFisher(manifold.dim)
    if isinstance(manifold, Torus):
        return VonMises(manifold.dim)
    if isinstance(manifold, Hyperboloid | PoincareBall):
        return Hyperbolic(manifold)
    if isinstance(manifold, SpecialOrthogonal) and manifold.n <= 3:
        return MatrixFisher(manifold.n)
    if isinstance(manifold, Mesh):
        return ChordGaussian(manifold)
    if isinstance(manifold, Product):
        return Joined(manifold, points)
    where = "on flat and hyperbolic space, spheres, tori, rotations up to SO(3), meshes, and products of these"
    raise TypeError(f"KernelDensity: kernels exist {where}, got {manifold}")


def _normals(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _radii(n: int, log_density: Callable[[Tensor], Tensor], farthest: float, tau: float, generator: torch.Generator | None) -> Tensor:
    """N distances from the centre of a kernel of width about 1/√tau, by the inverse of a tabulated distribution function."""
    # Coarse first: where the density matters.
    coarse = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64)[1:-1] ** 3 * farthest
    level = log_density(coarse)
    inside = (level > level.max() - TAIL).nonzero()
    low, high = coarse[max(0, int(inside[0]) - 1)], coarse[min(len(coarse) - 1, int(inside[-1]) + 1)]
    low = low if int(inside[0]) > 0 else torch.zeros_like(low)
    high = high if int(inside[-1]) < len(coarse) - 1 else torch.full_like(high, farthest)
    edges = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64) * (high - low) + low
    middle = (edges[1:] + edges[:-1]) / 2
    mass = log_density(middle)
    cumulated = torch.cat([torch.zeros(1, dtype=torch.float64), (mass - mass.max()).exp().cumsum(0)])
    u = torch.rand(n, generator=generator, dtype=torch.float64) * cumulated[-1]
    cell = torch.searchsorted(cumulated, u, right=True).clamp(1, CELLS) - 1
    share = (u - cumulated[cell]) / (cumulated[cell + 1] - cumulated[cell]).clamp_min(1e-300)
    return edges[cell] + share * (edges[1] - edges[0])


def _log_vmf_height(n: int, kappa: float) -> float:
    """Log-density of a von Mises–Fisher distribution on Sⁿ at its mode."""
    if n == 2:
        return math.log(kappa / (2 * math.pi)) - math.log(-math.expm1(-2 * kappa))
    from scipy.special import ive

    order = (n - 1) / 2
    return order * math.log(kappa) - (n + 1) / 2 * math.log(2 * math.pi) - math.log(ive(order, kappa))
