"""Integrals over manifolds, independent of anything a density says about itself."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, PoincareBall, Sphere, Torus, has_uniform
from fluvial.testing.contract import STANDARD_ERRORS, points_on

Grid = tuple[Tensor, Tensor]


def integrate(manifold: Manifold, fn: Callable[[Tensor], Tensor], *, points: int = 20_000) -> tuple[float, float]:
    r"""∫ fn d(volume) over a manifold, and an error that the result does not exceed.

    By quadrature on ℝ¹, ℝ², spheres and tori up to S³ and T³, and on the hyperbolic line and plane up to 12 from the origin; on other manifolds
    of finite volume by Monte Carlo.

    Args:
        manifold: Over what.
        fn: Maps points (N, \*event) in float64 to values (N,).
        points: How many points, about.

    Raises:
        ValueError: If the manifold has no such rule.

    Example:
        >>> value, error = integrate(Sphere(2), lambda p: p[:, 2] ** 2)
        >>> abs(value - 4 * math.pi / 3) < 1e-9
        True
    """
    rule = grid(manifold, points)
    if rule is not None:
        nodes, weights = rule
        return float((weights * fn(nodes)).sum()), 1e-8
    if not has_uniform(manifold):
        raise ValueError(f"integrate: no quadrature is known on {manifold}, and it has no finite volume to sample from")
    values = fn(points_on(manifold, points)).detach()
    volume = manifold.total_volume
    return float(volume * values.mean()), float(STANDARD_ERRORS * volume * values.std() / math.sqrt(points))


def grid(manifold: Manifold, points: int = 20_000) -> Grid | None:
    """Nodes (N, *event) and weights (N,) on low-dimensional flat and hyperbolic space, spheres and tori; None elsewhere."""
    if isinstance(manifold, Sphere) and manifold.dim <= 3:
        return _sphere(manifold.dim, max(8, round((points / 2) ** (1 / manifold.dim))))
    if isinstance(manifold, Torus) and manifold.dim <= 3:
        return _torus(manifold.dim, round(points ** (1 / manifold.dim)))
    if isinstance(manifold, Euclidean) and manifold.dim <= 2:
        x, w = _line(round(points ** (1 / manifold.dim)))
        if manifold.dim == 1:
            return x.view(-1, *manifold.event_shape), w
        nodes = torch.cartesian_prod(x, x).view(-1, *manifold.event_shape)
        return nodes, torch.cartesian_prod(w, w).prod(-1)
    if isinstance(manifold, PoincareBall | Hyperboloid) and manifold.dim <= 2:
        nodes, weights = _hyperbolic(manifold.dim, points)
        return (Hyperboloid.to_ball(nodes) if isinstance(manifold, PoincareBall) else nodes), weights
    return None


def _hyperbolic(dim: int, points: int) -> Grid:
    # Polar coordinates, the radius by Gauss–Legendre; the ball ends at 12.2 from its centre, so no further.
    n = min(points, 500) if dim == 1 else max(8, round(math.sqrt(points / 2)))
    nodes, gauss = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(n))
    if dim == 1:
        return torch.stack([torch.cosh(12 * nodes), torch.sinh(12 * nodes)], -1), 12 * gauss
    radius, weights = 6 * (nodes + 1), 6 * gauss
    circle, arcs = _sphere(1, n)
    x = torch.cat([radius.cosh().view(-1, 1, 1).expand(-1, len(circle), 1), radius.sinh().view(-1, 1, 1) * circle], -1)
    return x.flatten(0, 1), ((weights * radius.sinh()).unsqueeze(-1) * arcs).flatten()


def _line(n: int) -> Grid:
    # Double exponential: spectral for smooth densities, and wide enough for the tails of a Cauchy distribution.
    t = torch.linspace(-4.0, 4.0, n, dtype=torch.float64)
    inner = math.pi / 2 * torch.sinh(t)
    return torch.sinh(inner), torch.cosh(inner) * math.pi / 2 * torch.cosh(t) * (8.0 / (n - 1))


def _sphere(dim: int, n: int) -> Grid:
    if dim == 1:
        angle = 2 * math.pi * torch.arange(2 * n, dtype=torch.float64) / (2 * n)
        return torch.stack([angle.cos(), angle.sin()], -1), torch.full((2 * n,), math.pi / n, dtype=torch.float64)
    equator, weights = _sphere(dim - 1, n)
    nodes, gauss = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(n))
    polar = (nodes + 1) * math.pi / 2
    x = torch.cat([polar.sin().view(-1, 1, 1) * equator, polar.cos().view(-1, 1, 1).expand(-1, len(equator), 1)], -1)
    w = (gauss * math.pi / 2 * polar.sin() ** (dim - 1)).unsqueeze(-1) * weights
    return x.flatten(0, 1), w.flatten()


def _torus(dim: int, n: int) -> Grid:
    # The trapezoid rule, spectral for periodic functions.
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    angles = torch.cartesian_prod(*(angle,) * dim).view(-1, dim)
    return torch.stack([angles.cos(), angles.sin()], -1), torch.full((n**dim,), (2 * math.pi / n) ** dim, dtype=torch.float64)


def check_expectations(manifold: Manifold, samples: Tensor, log_density: Callable[[Tensor], Tensor], who: str) -> None:
    """Samples against a density: ∫p = 1, and means of log p and of ten waves as the density says, to 5 standard errors."""
    rule = grid(manifold, 20_000)
    if rule is None:
        if not has_uniform(manifold):
            return
        nodes = points_on(manifold, 100_000)
        rule = nodes, nodes.new_full((len(nodes),), manifold.total_volume / len(nodes))
    with torch.no_grad():
        nodes, weights = rule
        log_p = log_density(nodes)
        mass = weights * log_p.exp()
        exact = grid(manifold, 100) is not None

        def error(values: Tensor) -> float:
            return 1e-6 if exact else STANDARD_ERRORS * math.sqrt(len(nodes)) * float((mass * values).std()) + 1e-9

        total = float(mass.sum())
        assert abs(total - 1) <= error(torch.ones_like(mass)), f"{who}: the density integrates to {total:.8g}, not 1"
        directions = torch.randn(10, math.prod(manifold.event_shape), dtype=torch.float64) * torch.tensor([[0.5], [1.5]]).repeat(5, 1)
        phases = 2 * math.pi * torch.rand(10, dtype=torch.float64)
        probes = [("log p", log_density(samples), torch.where(mass > 0, log_p, 0.0))]
        for w, b in zip(directions, phases):
            values = [torch.cos(p.flatten(1) @ w + b) for p in (samples, nodes)]
            probes.append((f"cos(w·x) of |w| = {float(w.norm()):.2g}", values[0], values[1]))
        for name, drawn, values in probes:
            expected = float((mass * values).sum())
            allowed = STANDARD_ERRORS * float(drawn.std()) / math.sqrt(len(samples)) + error(values)
            found = float(drawn.mean())
            assert abs(found - expected) <= allowed, (
                f"{who}: the samples' mean of {name} is {found:.5g}, the density's {expected:.5g} ± {allowed:.2g}"
            )
