"""Twice continuously differentiable splines."""

import torch
from torch import Tensor

from fluvial.codecs.affine import Affine
from fluvial.codecs.bins import at
from fluvial.codecs.monotone_root import monotone_root
from fluvial.codecs.rational_quadratic import rational_root
from fluvial.codecs.transformer import Boundary, Transformer, check_box, check_ratios, held, middle


class Smooth(Transformer):
    r"""A shift and scale, then a cubic B-spline of K equal bins with increasing coefficients: twice continuously differentiable everywhere.

    .. math:: y = x e^\sigma + t, \qquad \frac{dz}{dy} = \sum_j c_j B_j(y), \qquad c_j > 0, \quad \tfrac1{K-2}\sum_{j=1}^{K-2} c_j = 1

    B_j are the quadratic B-splines of a uniform grid on the box. The outer coefficients are 1, so that the spline joins the straight tails of slope 1
    with two continuous derivatives. The log-density of a flow of such maps has a continuous gradient in x and in the condition, without the kinks
    that `RationalQuadratic` has at every knot. The slope lies between the smallest and the largest c_j, within 1/(1 + R) … 1 + R
    with R = ``slope_ratio``. The price is that knots do not move.

    Args:
        bins: K.
        low: Lower end of the box.
        high: Upper end.
        slope_ratio: R, the largest ratio of two coefficients c_j.
        max_log_scale: Bound of the log-scale σ.

    Raises:
        ValueError: If the box is empty, or there are fewer than 4 bins.

    References:
        de Boor (1978), "A practical guide to splines", chapter 9.

    Example:
        >>> spline = Smooth(8)
        >>> theta = torch.randn(spline.n_parameters, 1, 3)
        >>> x = torch.tensor([[-7.0, 0.0, 2.0]])
        >>> z, log_slope = spline.encode(theta, x)
        >>> bool(torch.allclose(spline.decode(theta, z)[0], x, atol=1e-5))
        True
    """

    def __init__(self, bins: int = 16, *, low: float = -5.0, high: float = 5.0, slope_ratio: float = 30.0, max_log_scale: float = 2.0) -> None:
        super().__init__()
        check_box("Smooth", low, high, "linear", bins, 4)
        check_ratios("Smooth", slope_ratio=slope_ratio)
        self.bins = bins
        self.low = low
        self.high = high
        self.boundary: Boundary = "linear"
        self.slope_ratio = slope_ratio
        self.max_log_scale = max_log_scale
        self.n_parameters = bins
        self._floor = 1 / slope_ratio
        self._affine = Affine(max_log_scale=max_log_scale)

    def start(self) -> Tensor:
        """Slope 1 everywhere, in the middle of its bounds; no shift, no scale."""
        return torch.cat([torch.full((self.bins - 2,), middle(self._floor)), torch.zeros(2)])

    def encode(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log dz/dx, both (F, B)."""
        theta = theta.to(x.dtype)
        y, log_scale = self._affine.encode(theta[-2:], x)
        coefficients, knots = self._spline(theta)
        position = (y.clamp(self.low, self.high) - self.low) / self._width
        k = _bin(position, self.bins)
        xi = held(position - k, 0, 1)
        value, slope = _in_bin(*(at(coefficients, k + j) for j in range(3)), xi)
        z = self.low + self._width * (at(knots, k) + value)
        inside = (y >= self.low) & (y <= self.high)
        return torch.where(inside, z, y), log_scale + torch.where(inside, torch.log(slope), 0.0)

    def decode(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse x and log dx/dz, both (F, B)."""
        theta = theta.to(z.dtype)
        coefficients, knots = self._spline(theta)
        height = (z.clamp(self.low, self.high) - self.low) / self._width
        k = (knots[1:-1].detach() < height.detach()).sum(0)
        before, here, after = (at(coefficients, k + j) for j in range(3))
        whole = (before + 4 * here + after) / 6
        share = held((height - at(knots, k)) / whole, 0, 1)
        guess = rational_root((before + here) / (2 * whole), (here + after) / (2 * whole), share)
        xi = monotone_root(lambda u: _in_bin(before, here, after, u), share * whole, guess)
        y = self.low + self._width * (k + xi)
        slope = _in_bin(before, here, after, xi)[1]
        inside = (z >= self.low) & (z <= self.high)
        x, log_scale = self._affine.decode(theta[-2:], torch.where(inside, y, z))
        return x, log_scale - torch.where(inside, torch.log(slope), 0.0)

    @property
    def _width(self) -> float:
        return (self.high - self.low) / self.bins

    def _spline(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients c₋₁ … c_K, shape (K + 2, F, B), and the spline at the K + 1 knots, above the box's lower end in units of a bin."""
        raw = torch.sigmoid(theta[:-2]) + self._floor
        one = torch.ones_like(raw[:1])
        inner = raw * ((self.bins - 2) / raw.sum(0))
        coefficients = torch.cat([one, one, inner, one, one])
        # Over bin i the spline rises by (c_{i−1} + 4c_i + c_{i+1})/6.
        rises = (coefficients[:-2] + 4 * coefficients[1:-1] + coefficients[2:]) / 6
        return coefficients, torch.cat([torch.zeros_like(one), torch.cumsum(rises, 0)])

    def extra_repr(self) -> str:
        """Bins and box, for repr."""
        return f"{self.bins} bins on [{self.low:g}, {self.high:g}]"


def _bin(position: Tensor, bins: int) -> Tensor:
    return position.detach().nan_to_num(0).clamp(0, bins - 1).long()


def _in_bin(before: Tensor, here: Tensor, after: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """How far the spline has risen at ξ above its value at the knot, in units of a bin, and its slope."""
    rest = 1 - xi
    square, rest_square = xi * xi, rest * rest
    value = before * (1 - rest * rest_square) / 6 + here * (xi / 2 + square / 2 - square * xi / 3) + after * (square * xi / 6)
    return value, before * rest_square / 2 + here * (0.5 + xi * rest) + after * square / 2
