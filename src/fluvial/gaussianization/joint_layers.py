"""Layers of a map of condition and data at once that leaves the condition as it is."""

import math
from typing import NamedTuple

import numpy as np
import torch

from fluvial.codecs import ShearedSpline
from fluvial.gaussianization.marginals import automatic_bins, knot_heights
from fluvial.gaussianization.sources import Rows, RowSource
from fluvial.gaussianization.statistics import Binned

_STEEPEST = math.acos(0.1)  # angle of a line: beyond, single precision would lose a digit more
_DRAWN = 16  # lines that are tried for every coordinate, besides the upright one
_VARIED = 8  # variations of the best one at a time
_ROUNDS = 4  # of them, where conditions have several entries; else half as many
_COARSE = 512  # bins that the rows count in while lines are compared
_COARSE_KNOTS = 24
_NEWTON_STEPS = 40
_STEP = 0.7  # of a bin's height that a step of Newton's may take away
_AFFINE_REACH = 8.0
_FEWEST_BINS = 16
_NARROWEST = 1e-4  # width of a bin, in units of the mean one


class ConditionRows(RowSource):
    """The conditions of some rows as rows of their own.

    Args:
        source: Rows with conditions.
    """

    def __init__(self, source: RowSource) -> None:
        self.source = source
        self.rows, self.features, self.names = source.rows, source.condition_features, source.condition_names
        self.condition_features, self.condition_names, self.has_weight = 0, None, source.has_weight

    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop − 1."""
        rows = self.source.read(start, stop)
        if rows.c is None:
            raise ValueError("fit: the rows have no condition")
        return Rows(rows.c, None, rows.weight)

    def release(self) -> None:
        """Free what is held of the files."""
        self.source.release()


class Sheared(NamedTuple):
    """What is known of coordinates w along lines that lean towards the condition, B of them by themselves.

    Attributes:
        places: Where rows were counted, shape (B, m).
        share: Of the rows at every place, (B, m), of sum 1.
        shift: Sum of sin θ p · u over them, in the same units, (B, m).
        cosine: Cos θ, (B,).
    """

    places: np.ndarray
    share: np.ndarray
    shift: np.ndarray
    cosine: np.ndarray


def sheared_counts(coordinates: list[Binned], shift: np.ndarray, cosine: np.ndarray) -> Sheared:
    """From the counts of the rows on the fixed grid, and the sums of their shifts there, (D, bins)."""
    places = np.stack([(one.edges[1:] + one.edges[:-1]) / 2 for one in coordinates])
    total = np.array([[max(one.total, 1)] for one in coordinates], np.float64)
    return Sheared(places, np.stack([one.counts for one in coordinates]) / total, shift / total, cosine)


def fit_sheared(coordinates: list[Binned], shift: np.ndarray, lean: np.ndarray, *, rows: float, bins: int, alpha: float) -> ShearedSpline:
    r"""The splines of a layer along given lines.

    With m(w) the mean of s = sin θ p · u where the coordinate is w, f is the minimum of

    .. math:: \mathrm{E}\Bigl[\tfrac12 \Bigl(\frac{f(w) - s}{\cos\theta}\Bigr)^2 - \log f'(w)\Bigr]
              = \mathrm{E}\Bigl[\frac{f(w)^2 / 2 - f(w)\, m(w)}{\cos^2\theta} - \log f'(w)\Bigr] + \mathrm{const},

    which is the negative log-likelihood of the layer, so that none but noise makes it worse; it is convex in f, and for θ = 0 and any counts gives
    f = Φ⁻¹ ∘ F. It is solved for functions that are straight between the knots, by Newton's method, and shrunk by α towards the best affine one.

    Args:
        coordinates: Counts of every coordinate.
        shift: Sums of the shifts of the rows counted, (D, bins).
        lean: Slopes tan θ p of the lines, (D, f).
        rows: How many rows these counts are worth.
        bins: Number of bins of the splines; 1 for affine ones.
        alpha: Shrinkage, 0 to 1, at which the map is affine.
    """
    from scipy.special import ndtr

    cosine = 1 / np.sqrt(1 + (lean**2).sum(-1))
    sums = sheared_counts(coordinates, shift, cosine)
    slope, offset = best_affine(sums)
    if alpha == 1 or bins == 1:
        x = np.broadcast_to(np.linspace(-_AFFINE_REACH, _AFFINE_REACH, bins + 1), (len(lean), bins + 1))
    else:
        heights = ndtr(knot_heights(rows, bins))
        x = np.stack([_increasing(one.quantile(heights, unit=one.total / rows)) for one in coordinates])
    y = slope[:, None] * x + offset[:, None]
    inner = np.broadcast_to(slope[:, None], y.shape)
    if alpha < 1 and bins > 1:
        solved = solve(sums, x, prior=1 / rows)
        y = (1 - alpha) * solved + alpha * y
        inner = (1 - alpha) * _slopes(x, solved, slope) + alpha * inner
    codec = ShearedSpline(len(lean), lean.shape[1], bins)
    codec.set_lean_(torch.from_numpy(lean))
    codec.spline.set_(*(torch.from_numpy(np.array(part)) for part in (x, y, inner)))
    return codec


def joint_bins(rows: float) -> int:
    """Bins of the splines of a layer for so many rows: half of `automatic_bins`, as every layer looks along lines of its own."""
    return max(_FEWEST_BINS, automatic_bins(rows) // 2)


def choose_lean(x: np.ndarray, u: np.ndarray, seed: int) -> np.ndarray:
    """For every coordinate the line that gains most, of some drawn ones, the upright one, and variations of the best.

    Args:
        x: Some training rows, as they enter the layer, (D, m).
        u: Their conditions, Gaussianized, (f, m).
        seed: Of the lines.

    Returns:
        Slopes tan θ p, (D, f).
    """
    rng = np.random.default_rng(seed)
    lean = np.zeros((len(x), len(u)))
    for coordinate, row in enumerate(x):
        # Directions p sin θ, within the unit ball.
        drawn = rng.standard_normal((_DRAWN, len(u)))
        drawn *= np.sin(rng.uniform(0, _STEEPEST, (_DRAWN, 1))) / np.linalg.norm(drawn, axis=1, keepdims=True)
        best, least = drawn[0], math.inf
        tried, reach = np.concatenate([np.zeros((1, len(u))), drawn]), 0.3
        for _ in range(1 + (_ROUNDS if len(u) > 1 else _ROUNDS // 2)):
            values = _losses(row, u, tried)
            if values.min() < least:
                best, least = tried[values.argmin()], values.min()
            tried = best + reach * rng.standard_normal((_VARIED, len(u)))
            tried *= np.minimum(1, math.sin(_STEEPEST) / np.linalg.norm(tried, axis=1, keepdims=True))
            reach /= 1.5
        lean[coordinate] = best / math.sqrt(1 - best @ best)
    return lean


def best_affine(sums: Sheared) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of the affine map that gains most, (B,) each: with V the variance of w and C its covariance with s, V a² − C a = cos² θ."""
    mean = (sums.share * sums.places).sum(1)
    away = sums.places - mean[:, None]
    variance, covariance = (sums.share * away**2).sum(1), (sums.shift * away).sum(1)
    root = np.sqrt(covariance**2 + 4 * variance * sums.cosine**2)
    # In the form in which nothing cancels.
    slope = np.where(covariance >= 0, (covariance + root) / (2 * variance), 2 * sums.cosine**2 / (root - covariance))
    return slope, sums.shift.sum(1) - slope * mean


def solve(sums: Sheared, knots: np.ndarray, *, prior: float) -> np.ndarray:
    """Values at the knots of the functions, straight between them, that gain most, (B, K).

    Beyond the outer knots they go on with the slope of the best affine map, towards which every bin is drawn as if by ``prior`` rows, of all rows.
    """
    return _solved(_system(sums, knots), knots, prior)


class _System(NamedTuple):
    """The quadratic form ½ f·A f − b·f, with A tridiagonal, and the rows of every bin."""

    diagonal: np.ndarray
    beside: np.ndarray
    right: np.ndarray
    share: np.ndarray
    outside: np.ndarray
    constant: np.ndarray
    slope: np.ndarray
    offset: np.ndarray


def _system(sums: Sheared, knots: np.ndarray) -> _System:
    many, count = knots.shape
    slope, offset = best_affine(sums)
    place = np.stack([np.searchsorted(own[1:-1], t, side="right") for own, t in zip(knots, sums.places)])
    left, width = np.take_along_axis(knots, place, 1), np.take_along_axis(np.diff(knots), place, 1)
    xi = (sums.places - left) / width
    inside = xi.clip(0, 1)
    beyond = slope[:, None] * (xi - inside) * width
    out = xi != inside
    right = sums.shift - sums.share * beyond
    cell = place + count * np.arange(many)[:, None]

    def gathered(value: np.ndarray, step: int = 0) -> np.ndarray:
        return np.bincount((cell + step).ravel(), value.ravel(), many * count).reshape(many, count)

    rest, scale = 1 - inside, 1 / sums.cosine[:, None] ** 2
    return _System(
        scale * (gathered(sums.share * rest**2) + gathered(sums.share * inside**2, 1)),
        scale * gathered(sums.share * inside * rest)[:, :-1],
        scale * (gathered(right * rest) + gathered(right * inside, 1)),
        gathered(np.where(out, 0, sums.share))[:, :-1],
        (sums.share * out).sum(1),
        scale[:, 0] * ((0.5 * sums.share * beyond - sums.shift) * beyond).sum(1),
        slope,
        offset,
    )


def _solved(system: _System, knots: np.ndarray, prior: float) -> np.ndarray:
    f = system.slope[:, None] * knots + system.offset[:, None]
    pull, number = prior / (system.slope[:, None] * np.diff(knots)), system.share + prior
    at = np.arange(knots.shape[1])
    hessian = np.zeros((*knots.shape, knots.shape[1]))
    for _ in range(_NEWTON_STEPS):
        rise = np.diff(f)
        along = _product(system, f) - system.right
        along[:, 1:] += pull - number / rise
        along[:, :-1] -= pull - number / rise
        curvature = number / rise**2
        hessian[:, at, at] = system.diagonal
        hessian[:, at[1:], at[1:]] += curvature
        hessian[:, at[:-1], at[:-1]] += curvature
        hessian[:, at[1:], at[:-1]] = hessian[:, at[:-1], at[1:]] = system.beside - curvature
        step = -np.linalg.solve(hessian, along[..., None])[..., 0]
        change = np.diff(step) / rise
        f = f + step * np.minimum(1, _STEP / np.maximum(-change.min(1, keepdims=True), 1e-300))
        if np.abs(change).max() < 1e-6:
            break
    return f


def _product(system: _System, f: np.ndarray) -> np.ndarray:
    """A f."""
    product = system.diagonal * f
    product[:, :-1] += system.beside * f[:, 1:]
    product[:, 1:] += system.beside * f[:, :-1]
    return product


def _losses(x: np.ndarray, u: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """What one coordinate (m,) loses, solved along each of some lines p sin θ (C, f), less what it would with f the identity: (C,), negative."""
    from scipy.special import ndtr

    many = len(directions)
    cosine = np.sqrt(1 - (directions**2).sum(1))
    # In the precision of the rows, as most of the time goes here.
    shift = directions.astype(x.dtype) @ u
    w = cosine.astype(x.dtype)[:, None] * x + shift
    cell = ((w + 8) * (_COARSE / 16)).clip(0, _COARSE - 1).astype(np.int64) + _COARSE * np.arange(many)[:, None]
    counts = np.bincount(cell.ravel(), minlength=many * _COARSE).reshape(many, _COARSE) / len(x)
    shifts = np.bincount(cell.ravel(), shift.ravel(), many * _COARSE).reshape(many, _COARSE) / len(x)
    edges = np.linspace(-8, 8, _COARSE + 1)
    places = np.broadcast_to((edges[1:] + edges[:-1]) / 2, counts.shape)
    sums = Sheared(places, counts, shifts, cosine)
    heights = ndtr(knot_heights(len(x), _COARSE_KNOTS))
    knots = np.stack([_increasing(np.interp(heights, np.append(0, own.cumsum()), edges)) for own in counts])
    system = _system(sums, knots)
    f = _solved(system, knots, 1 / len(x))
    quadratic = (f * (0.5 * _product(system, f) - system.right)).sum(1) + system.constant
    bent = quadratic - (system.share * np.log(np.diff(f) / np.diff(knots))).sum(1) - system.outside * np.log(system.slope)
    return bent - ((0.5 * counts * places - shifts) * places).sum(1) / cosine**2


def _slopes(x: np.ndarray, y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """At inner knots those of the parabola through them and their neighbours; given ones at the outer knots."""
    steps = np.diff(x)
    mean = np.diff(y) / steps
    slope = np.repeat(ends[:, None], x.shape[1], 1)
    slope[:, 1:-1] = (mean[:, :-1] * steps[:, 1:] + mean[:, 1:] * steps[:, :-1]) / (steps[:, 1:] + steps[:, :-1])
    return slope


def _increasing(x: np.ndarray) -> np.ndarray:
    least = max(_NARROWEST * (x[-1] - x[0]) / (len(x) - 1), 1e-5)
    return x[0] + np.append(0, np.maximum(np.diff(x), least).cumsum())
