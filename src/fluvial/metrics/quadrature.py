"""Points and weights of quadrature, in low dimension."""

import math

import numpy as np
import torch
from torch import Tensor

from fluvial.manifolds import Torus

Grid = tuple[Tensor, Tensor]


def circle_grid(n: int) -> Grid:
    r"""N equidistant points on the unit circle S¹ and their weights (the trapezoid rule), shapes (n, 2) and (n,), float64.

    Example:
        >>> points, weights = circle_grid(16)
        >>> round(float((weights * points[:, 0] ** 2).sum()), 12) == round(math.pi, 12)
        True
    """
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angle.cos(), angle.sin()], -1), torch.full((n,), 2 * math.pi / n, dtype=torch.float64)


def sphere_grid(n: int) -> Grid:
    r"""2n² points on the unit sphere S² and their weights, shapes (2n², 3) and (2n²,), float64.

    Gauss–Legendre in cos θ (n nodes, none at the poles) times the trapezoid rule in φ (2n nodes); exact for polynomials of degree < 2n.
    The points run over φ fastest, so that ``points.view(n, 2 * n, 3)`` is a map.

    Example:
        >>> points, weights = sphere_grid(8)
        >>> round(float((weights * points[:, 2] ** 2).sum()), 12) == round(4 * math.pi / 3, 12)
        True
    """
    nodes, node_weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(n))
    angle = math.pi * torch.arange(2 * n, dtype=torch.float64) / n
    z = nodes.unsqueeze(1).expand(n, 2 * n)
    radius = (1 - z.square()).sqrt()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1)
    return points.view(-1, 3), (node_weights * math.pi / n).repeat_interleave(2 * n)


def torus_grid(n: int, dim: int = 2) -> Grid:
    r"""n^k points of the torus Tᵏ, equidistant in every angle, and their weights (the trapezoid rule), shapes (n^k, k, 2) and (n^k,), float64.

    The first angle runs slowest and both start at −π, so that ``points.view(n, n, 2, 2)`` is a map of T².

    Args:
        n: Points along each angle.
        dim: Number of angles k.

    Example:
        >>> points, weights = torus_grid(16)
        >>> round(float((weights * points[:, 1, 0] ** 2).sum()), 12) == round(2 * math.pi**2, 12)
        True
    """
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n - math.pi
    angles = torch.cartesian_prod(*(angle,) * dim).view(-1, dim)
    return Torus.from_angles(angles), torch.full((n**dim,), (2 * math.pi / n) ** dim, dtype=torch.float64)


def box_grid(low: Tensor, high: Tensor, n: int) -> Grid:
    r"""n^d midpoints of equal cells of the box [low, high] and their weights, shapes (n^d, d) and (n^d,), float64.

    The first coordinate runs slowest, so that ``points.view(n, n, 2)`` is a map of a plane.

    Args:
        low: Lower bounds, shape (d,).
        high: Upper bounds, shape (d,).
        n: Points along each side.

    Raises:
        ValueError: If the bounds do not enclose a box.

    Example:
        >>> points, weights = box_grid(torch.zeros(2), torch.tensor([1.0, 2.0]), 10)
        >>> points.shape, round(float(weights.sum()), 12)
        (torch.Size([100, 2]), 2.0)
    """
    low, high = low.double().flatten(), high.double().flatten()
    if low.shape != high.shape or not bool((low < high).all()):
        raise ValueError(f"box_grid: expected low < high in every coordinate, got {low.tolist()} and {high.tolist()}")
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    points = torch.cartesian_prod(*(torch.lerp(a, b, steps) for a, b in zip(low, high))).view(n ** len(low), len(low))
    return points, torch.full((len(points),), float((high - low).prod()) / len(points), dtype=torch.float64)


def hyperbolic_grid(n: int, radius: float, dim: int = 2) -> Grid:
    r"""Points of the hyperboloid within a distance of its lowest point, and their weights in Riemannian volume, float64.

    Gauss–Legendre in the geodesic radius r (n nodes), in the plane times the trapezoid rule in the angle (2n nodes) with the weight sinh r.
    The points run over the angle fastest.

    Args:
        n: Nodes along the radius; on the line, 2n nodes from −radius to radius.
        radius: The largest distance.
        dim: 1 or 2.

    Returns:
        Points of shape (2n, 2) or (2n², 3), weights of shape (2n,) or (2n²,).

    Example:
        >>> points, weights = hyperbolic_grid(16, 2.0)
        >>> round(float(weights.sum()), 9) == round(2 * math.pi * (math.cosh(2.0) - 1), 9)
        True
    """
    nodes, node_weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(n))
    r, w = (nodes + 1) * radius / 2, node_weights * radius / 2
    if dim == 1:
        r, w = torch.cat([-r.flip(0), r]), torch.cat([w.flip(0), w])
        return torch.stack([torch.cosh(r), torch.sinh(r)], -1), w
    angle = math.pi * torch.arange(2 * n, dtype=torch.float64) / n
    r = r.unsqueeze(1).expand(n, 2 * n)
    points = torch.stack([torch.cosh(r), torch.sinh(r) * angle.cos(), torch.sinh(r) * angle.sin()], -1)
    return points.view(-1, 3), (w.unsqueeze(1) * torch.sinh(r) * math.pi / n).flatten()


def lorentz_boost(x: Tensor, y: Tensor) -> Tensor:
    r"""Points y of the hyperboloid moved by the isometry that takes its lowest point to x, both of shape (\*batch, n + 1)."""
    time, space = x[..., :1], x[..., 1:]
    along = (space * y[..., 1:]).sum(-1, keepdim=True)
    return torch.cat([time * y[..., :1] + along, y[..., 1:] + (y[..., :1] + along / (1 + time)) * space], -1)
