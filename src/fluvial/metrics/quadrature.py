"""Does the density integrate to 1?"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.codecs import Chain, Wrap
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean, Manifold, Sphere, Torus
from fluvial.metrics.estimate import Estimate
from fluvial.metrics.likelihood import evaluating, float_of

Grid = tuple[Tensor, Tensor]
POINTS_AT_A_TIME = 2**14


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


def normalisation(
    flow: nn.Module,
    c: Condition = None,
    *,
    x: Tensor | None = None,
    box: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 2e-3,
    max_points: int = 150_000,
    seed: int = 0,
) -> Estimate | None:
    r"""The integral of the density that ``flow.log_prob`` returns, by quadrature; 1 for a normalised one.

    .. math:: \int_M e^{\log p(x|c)}\, \mathrm{d}V(x)

    On S¹, S², T¹, T² and in one or two flat dimensions. The resolution doubles until two successive results agree or the points are used up.

    Args:
        flow: A `Flow`. A free-form one is integrated as it is: the decoder's density at encode(x).
        c: One condition, leaves of shape (\*condition event), or None.
        x: In flat space, points that the box must hold, shape (n, \*event): data, besides 4096 samples of the flow.
        box: In flat space, (low, high) to use instead of a box around samples and x widened by half its size on every side.
        tolerance: Agreement asked for.
        max_points: Number of points of the finest grid at most.
        seed: Seed of the samples that make the box.

    Returns:
        The integral, with the difference between the last two resolutions as its error and grid or box in its note;
        None where there is no such rule: more than two dimensions, other manifolds, and bottlenecks, whose density lives on a surface.

    Example:
        >>> from fluvial.bases import Normal
        >>> from fluvial.codecs import Standardize
        >>> from fluvial.flow import Flow
        >>> print(round(normalisation(Flow(Standardize(1), Normal(1))).value, 3))
        1.0
    """
    manifold: Manifold = flow.manifold
    if flow.is_bottleneck:
        return None
    if isinstance(manifold, Sphere) and manifold.dim in (1, 2):
        rule, first, where = (circle_grid, 64, "S¹") if manifold.dim == 1 else (sphere_grid, 32, "S²")
    elif isinstance(manifold, Torus) and manifold.dim in (1, 2):
        rule, first, where = (lambda n: torus_grid(n, manifold.dim)), (64 if manifold.dim == 1 else 32), f"T{'¹²'[manifold.dim - 1]}"
    elif isinstance(manifold, Euclidean) and manifold.dim in (1, 2):
        low, high = (_period(flow) or _box(flow, c, x, seed)) if box is None else box
        rule, first = (lambda n: box_grid(low, high, n)), 32
        where = "box " + " × ".join(f"[{a:.4g}, {b:.4g}]" for a, b in zip(low.flatten().tolist(), high.flatten().tolist()))
    else:
        return None
    return _refine(flow, c, rule, manifold, first=first, where=where, tolerance=tolerance, max_points=max_points)


def _refine(
    flow: nn.Module,
    c: Condition,
    rule: Callable[[int], Grid],
    manifold: Manifold,
    *,
    first: int,
    where: str,
    tolerance: float,
    max_points: int,
) -> Estimate:
    like = float_of(flow)
    growth = 2 if manifold.dim == 1 else 4
    n, previous, agreements = first, math.nan, 0
    while True:
        points, weights = rule(n)
        points = points.view(-1, *manifold.event_shape)
        total = 0.0
        for start in range(0, len(points), POINTS_AT_A_TIME):
            chunk = manifold.project(points[start : start + POINTS_AT_A_TIME].to(like))
            with evaluating(flow):
                density = flow.log_prob(chunk, c).double().exp().cpu()
            total += float((weights[start : start + POINTS_AT_A_TIME] * density).sum())
        difference = abs(total - previous)
        # A grid too coarse to see a peak agrees with one that is too: only two agreements in a row count.
        agreements = agreements + 1 if difference < tolerance else 0
        if agreements == 2 or len(points) * growth > max_points or not math.isfinite(total):
            return Estimate(total, difference, note=f"{len(points)} points on {where}; the error is the change from the grid half as fine")
        n, previous = 2 * n, total


def _period(flow: nn.Module) -> Grid | None:
    """The box of one period where the flow takes its coordinates modulo one."""
    first = flow.codec.parts[0] if isinstance(flow.codec, Chain) else flow.codec
    if not isinstance(first, Wrap):
        return None
    n = first.features
    return torch.full((n,), first.low, dtype=torch.float64), torch.full((n,), first.high, dtype=torch.float64)


def _box(flow: nn.Module, c: Condition, x: Tensor | None, seed: int) -> Grid:
    like = float_of(flow)
    generator = torch.Generator(like.device).manual_seed(seed)
    with evaluating(flow):
        inside = flow.sample(4096, c, generator=generator).flatten(1).double()
    inside = inside[torch.isfinite(inside).all(1)]
    if x is not None:
        inside = torch.cat([inside, x.to(inside).flatten(1)])
    if len(inside) == 0:
        raise ValueError("normalisation: no sample of the flow is finite, so there is no box to integrate over; give box=(low, high)")
    low, high = inside.min(0).values.cpu(), inside.max(0).values.cpu()
    margin = ((high - low) / 2).clamp_min(1e-6)
    return low - margin, high + margin
