"""Does the density integrate to 1?"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fluvial.codecs import Chain, Wrap
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, PoincareBall, Sphere, Torus
from fluvial.metrics.estimate import Estimate
from fluvial.metrics.likelihood import evaluating, float_of
from fluvial.metrics.monte_carlo import integral_by_sampling
from fluvial.metrics.quadrature import Grid, box_grid, circle_grid, hyperbolic_grid, lorentz_boost, sphere_grid, torus_grid

POINTS_AT_A_TIME = 2**14
# Points of the Poincaré ball farther than this from its centre are pulled back to the rim.
RIM = 12.0


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
    r"""The integral of the density that ``flow.log_prob`` returns; 1 for a normalised one.

    .. math:: \int_M e^{\log p(x|c)}\, \mathrm{d}V(x)

    By quadrature on S¹, S², T¹, T², in one or two flat or hyperbolic dimensions: the resolution doubles until two successive results agree or the
    points are used up. Everywhere else, and on curved spaces where the grid does not see the density's peaks, by importance sampling with
    points around samples of the flow (`fluvial.metrics.monte_carlo`), whose statistical error comes with it.

    Args:
        flow: A `Flow`. A free-form one is integrated as it is: the decoder's density at encode(x).
        c: One condition, leaves of shape (\*condition event), or None.
        x: In flat space, points that the box must hold, shape (n, \*event): data, besides 4096 samples of the flow.
        box: In flat space, (low, high) to use instead of a box around samples and x widened by half its size on every side.
        tolerance: Agreement asked for of grids. Sampling goes on to a standard error of 5 · 10⁻³, or to 2¹⁵ points.
        max_points: Number of points of the finest grid at most, and of the sample.
        seed: Seed of all samples.

    Returns:
        The integral. By quadrature, its error is the difference between the last two resolutions; by sampling, it is a standard error and ``n`` is
        the number of points. The note says which. None where there is no rule: more than two flat dimensions, bottlenecks,
        whose density lives on a surface, and manifolds known by a projection only whose base is no help.

    Example:
        >>> from fluvial.bases import Normal
        >>> from fluvial.codecs import Standardize
        >>> from fluvial.flow import Flow
        >>> print(round(normalisation(Flow(Standardize(1), Normal(1))).value, 3))
        1.0
    """
    manifold: Manifold = flow.manifold
    if flow.is_bottleneck or (isinstance(manifold, Euclidean) and manifold.dim > 2):
        return None
    rule = _rule(flow, c, x, box, seed)
    if rule is None:
        return integral_by_sampling(flow, c, max_points=max_points, seed=seed)
    found = _refine(flow, c, *rule, tolerance=tolerance, max_points=max_points)
    if isinstance(manifold, Euclidean) or found.standard_error < 5 * tolerance:
        return found
    sampled = integral_by_sampling(flow, c, max_points=max_points, seed=seed)
    return sampled if sampled is not None and not found.standard_error < sampled.standard_error else found


def _rule(
    flow: nn.Module, c: Condition, x: Tensor | None, box: tuple[Tensor, Tensor] | None, seed: int
) -> tuple[Callable[[int], Grid], Manifold, int, str] | None:
    """Grids by resolution, the manifold, the first resolution, and what to call them."""
    manifold: Manifold = flow.manifold
    if manifold.dim > 2:
        return None
    line = manifold.dim == 1
    if isinstance(manifold, Sphere):
        return (circle_grid, manifold, 64, "S¹") if line else (sphere_grid, manifold, 32, "S²")
    if isinstance(manifold, Torus):
        return (lambda n: torus_grid(n, manifold.dim)), manifold, 64 if line else 32, "T¹" if line else "T²"
    if isinstance(manifold, Euclidean):
        low, high = (_period(flow) or _box(flow, c, x, seed)) if box is None else box
        where = "box " + " × ".join(f"[{a:.4g}, {b:.4g}]" for a, b in zip(low.flatten().tolist(), high.flatten().tolist()))
        return (lambda n: box_grid(low, high, n)), manifold, 32, where
    if isinstance(manifold, Hyperboloid | PoincareBall):
        centre, radius = _ball(flow, manifold, c, seed)
        return (lambda n: _disc(manifold, centre, radius, n)), manifold, 32, f"the {'interval' if line else 'disc'} of geodesic radius {radius:.3g}"
    return None


def _refine(
    flow: nn.Module,
    c: Condition,
    rule: Callable[[int], Grid],
    manifold: Manifold,
    first: int,
    where: str,
    *,
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


def _finite_samples(flow: nn.Module, c: Condition, seed: int) -> Tensor:
    generator = torch.Generator(float_of(flow).device).manual_seed(seed)
    with evaluating(flow):
        samples = flow.sample(4096, c, generator=generator).double().cpu()
    return samples[torch.isfinite(samples).flatten(1).all(1)]


def _box(flow: nn.Module, c: Condition, x: Tensor | None, seed: int) -> Grid:
    inside = _finite_samples(flow, c, seed).flatten(1)
    if x is not None:
        inside = torch.cat([inside, x.to(inside).flatten(1)])
    if len(inside) == 0:
        raise ValueError("normalisation: no sample of the flow is finite, so there is no box to integrate over; give box=(low, high)")
    low, high = inside.min(0).values, inside.max(0).values
    margin = ((high - low) / 2).clamp_min(1e-6)
    return low - margin, high + margin


def _ball(flow: nn.Module, manifold: Hyperboloid | PoincareBall, c: Condition, seed: int) -> tuple[Tensor, float]:
    """The mean of samples as a point of the hyperboloid, and a geodesic radius around it that holds them all and a quarter more."""
    samples = _finite_samples(flow, c, seed)
    if len(samples) == 0:
        raise ValueError("normalisation: no sample of the flow is finite, so there is no region to integrate over")
    space = Hyperboloid(manifold.dim)
    at = space.from_ball(samples) if isinstance(manifold, PoincareBall) else space.project(samples)
    mean = at.mean(0)
    centre = mean / (mean[0].square() - mean[1:].square().sum()).sqrt()
    return centre, min(1.25 * float(space.distance(centre, at).max()) + 0.1, 2 * RIM)


def _disc(manifold: Hyperboloid | PoincareBall, centre: Tensor, radius: float, n: int) -> Grid:
    points, weights = hyperbolic_grid(n, radius, manifold.dim)
    points = lorentz_boost(centre, points)
    if isinstance(manifold, Hyperboloid):
        return points, weights
    weights = torch.where(points[:, 0] < math.cosh(RIM), weights, 0.0)
    return Hyperboloid.to_ball(points), weights
