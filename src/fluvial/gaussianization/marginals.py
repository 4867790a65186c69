"""From the counts of a coordinate to the spline that makes it normal."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch

from fluvial.codecs.marginal_spline import Knots
from fluvial.gaussianization.statistics import Binned

Marginal = Literal["spline", "kde", "mixture", "affine"]
TailKind = Literal["pareto", "gaussian"]

_EDGE_ROWS = 5  # beyond either outer knot there are as many rows
_INNERMOST = 1.0  # the outer knots lie at least so many standard deviations out, however few rows there are
_AFFINE_REACH = 8.0  # of the knots of a straight line, in standard deviations
_POINTS = 1024  # that stand for a coordinate where its density is smoothed
_NARROWEST = 1e-4  # width of a bin, in units of the mean one
_TAIL_SHRINK = 0.3  # of a tail's scale towards that of the whole coordinate, as exponents
_TAIL = 0.05  # of the rows on either side tell the shape of a Pareto tail
_LEAST_SCALE = 0.2  # of a Pareto tail at the outer knot, in units of the mean excess there further in
_SHAPES = 1e-3, 0.95  # of Pareto tails, smallest and largest
_HEAVY = 0.2  # shape, in excess of the one expected, from which on nothing is shrunk
_PRIOR_SHAPE, _PRIOR_ROWS = 0.05, 20.0  # the shape of a Pareto tail that so many rows would have to outweigh


def automatic_bins(rows: float) -> int:
    """Bins of a spline for so many rows: √rows/2, within 16 and 64."""
    return int(min(max(0.5 * math.sqrt(rows), 16), 64))


def knot_heights(rows: float, bins: int) -> np.ndarray:
    """Where the knots of a coordinate lie in z: equally spaced, with five rows beyond either end, shape (bins + 1,)."""
    from scipy.special import ndtri

    end = max(_INNERMOST, float(-ndtri(min(0.5, _EDGE_ROWS / max(rows, 1)))))
    return np.linspace(-end, end, bins + 1)


def probabilities(rows: float, bins: int, marginal: Marginal) -> np.ndarray:
    """At which the quantiles of a coordinate must be known exactly."""
    from scipy.special import ndtr

    if marginal in ("kde", "mixture"):
        return _masses(rows)[0]
    return ndtr(knot_heights(rows, bins))


def fit_marginals(
    coordinates: list[Binned],
    *,
    rows: float,
    bins: int,
    marginal: Marginal = "spline",
    tail: TailKind | Literal["affine"] = "pareto",
    alpha: float = 0.0,
) -> Knots:
    r"""The splines of a layer, float64.

    Knots lie where the distribution function of a coordinate, or a smoothed one, takes the values Φ(y) of equally spaced y. The slopes there are
    those of a parabola through a knot and its neighbours. A straight tail's slope makes the mean excess beyond the outer knot that of a normal
    distribution; a Pareto tail takes its shape from probability-weighted moments of the outermost twentieth of the rows, and its scale too.
    Everything is then shrunk by α towards the map (x − mean)/s.d.: many small steps generalise better than one; but not where a Pareto tail is heavy.

    Args:
        coordinates: Counts of every coordinate.
        rows: How many rows these counts are worth.
        bins: Number of bins of the splines; 1 for "affine".
        marginal: "spline" (quantiles), "kde" (of a kernel density estimate), "mixture" (of a mixture of normals), "affine".
        tail: "pareto", "gaussian", or "affine": straight, with the slope of the coordinate as a whole.
        alpha: Shrinkage, 0 to 1, at which the map is affine.

    Returns:
        Knots of shape (D, bins + 1).

    References:
        Hosking, Wallis (1987), "Parameter and quantile estimation for the generalized Pareto distribution", Technometrics 29.
    """
    if marginal not in get_args(Marginal):
        raise ValueError(f"marginal is one of {', '.join(map(repr, get_args(Marginal)))}, got {marginal!r}")
    parts = [_fit_one(one, rows=rows, bins=bins, marginal=marginal, tail=tail, alpha=alpha) for one in coordinates]
    x, y, slope, shape = (torch.from_numpy(np.stack(part)) for part in zip(*parts))
    return Knots(x, y, slope, shape if tail == "pareto" else None)


def _fit_one(one: Binned, *, rows: float, bins: int, marginal: Marginal, tail: TailKind | Literal["affine"], alpha: float) -> tuple[np.ndarray, ...]:
    mean, sd = one.moments()
    if marginal == "affine" or alpha == 1:
        # The straight line; knots only say where its two ends are.
        y = np.linspace(-_AFFINE_REACH, _AFFINE_REACH, bins + 1)
        return mean + sd * y, y, np.full(bins + 1, 1 / sd), np.full(2, _PRIOR_SHAPE)
    y = knot_heights(rows, bins)
    x = _spread(_quantiles(one, y, rows, marginal))
    steps, slopes = np.diff(x), np.diff(y) / np.diff(x)
    slope = np.empty(bins + 1)
    # Of the parabola through three knots.
    slope[1:-1] = (slopes[:-1] * steps[1:] + slopes[1:] * steps[:-1]) / (steps[1:] + steps[:-1])
    slope[[0, -1]], shape = _tails(one, x, float(y[-1]), sd=sd, rows=rows, tail=tail)
    if tail == "pareto":
        # A line through a heavy tail would give it other probabilities, and layers after it a lighter one.
        alpha *= float(np.clip(1 - (shape.max() - _PRIOR_SHAPE) / _HEAVY, 0, 1))
    y = _spread((1 - alpha) * y + alpha * (x - mean) / sd)
    return x, y, (1 - alpha) * slope + alpha / sd, shape


def _tails(one: Binned, x: np.ndarray, end: float, *, sd: float, rows: float, tail: TailKind | Literal["affine"]) -> tuple[np.ndarray, np.ndarray]:
    """Slopes at the outer knots, which lie at ±end in z, and the shapes of Pareto tails, (2,) each."""
    if tail == "affine":
        return np.full(2, 1 / sd), np.full(2, _PRIOR_SHAPE)
    # Rows that are tied at a knot are no narrower a tail than a bin may be.
    least = _least_step(x)
    if tail == "gaussian":
        expected = _hazard(end) - end  # the mean of z − end beyond it
        near = one.excess(x[0], x[-1])
        found = np.where(near[:, 0] * rows >= one.total, np.maximum(near[:, 1], least), expected * sd)
        return (expected / found) ** (1 - _TAIL_SHRINK) * sd**-_TAIL_SHRINK, np.full(2, _PRIOR_SHAPE)
    # Five rows beyond a knot say little: more of them tell the shape, and the scale, which grows by ξ times the way from there to the knot.
    p = max(_EDGE_ROWS / rows, _TAIL)
    inner = one.quantile(np.array([p, 1 - p]), unit=one.total / rows)
    number, mean, ranked = one.excess(*inner).T
    shape = np.array([_shape(*side) for side in zip(number * rows / one.total, mean, ranked)])
    further = np.maximum((inner - x[[0, -1]]) * [1, -1], 0)
    scale = np.maximum(mean * (1 - shape) + shape * further, np.maximum(_LEAST_SCALE * mean, least))
    return 1 / (_hazard(end) * scale), np.clip(shape, *_SHAPES)


def _quantiles(one: Binned, y: np.ndarray, rows: float, marginal: Marginal) -> np.ndarray:
    from scipy.special import ndtr

    if marginal == "spline":
        return one.quantile(ndtr(y), unit=one.total / rows)
    p, mass = _masses(rows)
    points = one.quantile(p, unit=one.total / rows)
    if marginal == "kde":
        _, sd = one.moments()
        quarter = np.diff(one.quantile(np.array([0.25, 0.75]), unit=one.total / rows))[0] / 1.349
        width = 0.9 * (min(sd, quarter) if quarter > 0 else sd) * rows**-0.2  # Silverman's
        return _inverse(lambda t: ndtr((t[:, None] - points) / width) @ mass, ndtr(y), points, 5 * width)
    weight, mean, sd = _mixture(points, mass)
    return _inverse(lambda t: ndtr((t[:, None] - mean) / sd) @ weight, ndtr(y), points, 5 * float(sd.max()))


def _masses(rows: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities at which a coordinate is looked at, equally spaced in z so that its tails are seen, and the mass each stands for."""
    from scipy.special import ndtr, ndtri

    end = max(_INNERMOST, float(-ndtri(min(0.5, 0.5 / max(rows, 1)))))
    edges = ndtr(np.linspace(-end, end, _POINTS + 1))
    edges[0], edges[-1] = 0.0, 1.0
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def _mixture(points: np.ndarray, mass: np.ndarray, components: int = 8, steps: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mixture of normals through points of given mass, by expectation maximisation from their quantiles: weights, means, s.d."""
    spread = math.sqrt(mass @ (points - mass @ points) ** 2)
    floor = 1e-3 * spread
    mean = np.interp((np.arange(components) + 0.5) / components, np.cumsum(mass) - mass / 2, points)
    sd, weight = np.full(components, spread / components), np.full(components, 1 / components)
    for _ in range(steps):
        log_p = np.log(weight) - np.log(sd) - 0.5 * ((points[:, None] - mean) / sd) ** 2
        share = np.exp(log_p - log_p.max(1, keepdims=True))
        share *= (mass / share.sum(1))[:, None]
        total = share.sum(0) + 1e-9
        mean = share.T @ points / total
        sd = np.sqrt((share * (points[:, None] - mean) ** 2).sum(0) / total + floor**2)
        weight = total / total.sum()
    return weight, mean, sd


def _inverse(cdf: Callable[[np.ndarray], np.ndarray], p: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """Where an increasing function takes the values p, by bisection."""
    low, high = np.full(len(p), points[0] - margin), np.full(len(p), points[-1] + margin)
    for _ in range(50):
        middle = (low + high) / 2
        below = cdf(middle) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _spread(x: np.ndarray) -> np.ndarray:
    """Knots that increase: where rows are tied, as little as single precision still resolves."""
    least = _least_step(x)
    steps = np.maximum(np.diff(x), least)
    # What was added is taken from the wide bins, so that the outer knots stay where they are.
    spare = steps - least
    if spare.sum() > 0:
        extent = max(x[-1] - x[0], least * len(steps))
        steps -= spare * min(1.0, max(0.0, steps.sum() - extent) / spare.sum())
    return x[0] + np.concatenate([[0.0], np.cumsum(steps)])


def _least_step(x: np.ndarray) -> float:
    """How narrow a bin between such knots may be."""
    size = np.abs(x).max()
    extent = max(x[-1] - x[0], 1e-5 * size, 1e-30)
    return max(_NARROWEST * extent / (len(x) - 1), 4 * float(np.finfo(np.float32).eps) * size)


def _hazard(y: float) -> float:
    from scipy.special import log_ndtr

    return math.exp(-0.5 * y * y - 0.5 * math.log(2 * math.pi) - float(log_ndtr(-y)))


def _shape(number: float, mean: float, ranked: float) -> float:
    """The shape ξ of a Pareto distribution from its probability-weighted moments: mean/ranked = 4 + 2ξ/(1 − ξ). Few rows say little about it."""
    found = 2 - mean / max(mean - 2 * ranked, mean / 3) if mean > 0 else _PRIOR_SHAPE  # −1 at least, that of even spread
    return (number * found + _PRIOR_ROWS * _PRIOR_SHAPE) / (number + _PRIOR_ROWS)
