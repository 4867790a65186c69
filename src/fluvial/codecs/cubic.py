"""Monotone cubic splines."""

import torch
from torch import Tensor

from fluvial.codecs.binned_spline import BinnedSpline
from fluvial.codecs.bins import Bin, at, find_bin, neighbours
from fluvial.codecs.monotone_root import monotone_root
from fluvial.codecs.rational_quadratic import rational_root
from fluvial.codecs.transformer import Boundary, finish, held, wrap


class Cubic(BinnedSpline):
    r"""A monotone cubic spline: K bins, in each a cubic, once continuously differentiable.

    With ξ the position in the bin (0 … 1), h its height, s = h/w its mean slope and a, b the slopes at its ends divided by s:

    .. math:: z = y_k + h\,\bigl(a\xi + (3 - 2a - b)\xi^2 + (a + b - 2)\xi^3\bigr)

    Slopes at inner knots are Steffen's, min(2s, 2s', p) with p the slope of the parabola through the three knots; those at the two ends are
    learned, and "linear" tails go on with them. Mean slopes lie within 1/(1 + R) … 1 + R, R = ``slope_ratio``, and the slope within 6 times
    these bounds. The inverse is found by a safeguarded Newton method, to rounding, not by the closed formula, which loses its digits where the
    cubic is nearly a parabola.

    Args:
        bins: K.
        low: Lower end of the box.
        high: Upper end.
        boundary: "linear" (straight tails), "interval" or "circular".
        slope_ratio: R, the largest ratio of two bins' mean slopes.
        width_ratio: Largest ratio of the widths of two bins.

    Raises:
        ValueError: If the box is empty, or ratios or bins are too small.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), "Cubic-spline flows", arXiv:1906.02145.
        Steffen (1990), "A simple method for monotonic interpolation in one dimension", Astronomy and Astrophysics 239, 443.

    Example:
        >>> spline = Cubic(4)
        >>> theta = torch.randn(spline.n_parameters, 1, 3)
        >>> x = torch.tensor([[-7.0, 0.0, 2.0]])
        >>> z, log_slope = spline.encode(theta, x)
        >>> bool(torch.allclose(spline.decode(theta, z)[0], x, atol=1e-5))
        True
    """

    def __init__(
        self,
        bins: int = 16,
        *,
        low: float = -5.0,
        high: float = 5.0,
        boundary: Boundary = "linear",
        slope_ratio: float = 30.0,
        width_ratio: float = 1000.0,
    ) -> None:
        # Slopes at both ends; on a circle, where all knots are inner ones, the shift.
        further = 1 if boundary == "circular" else 2
        super().__init__(
            bins,
            low=low,
            high=high,
            boundary=boundary,
            slope_ratio=slope_ratio,
            width_ratio=width_ratio,
            knots=0,
            further=further,
        )

    def encode(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log dz/dx, both (F, B)."""
        theta = theta.to(x.dtype)
        size = self.high - self.low
        inner = wrap(x, self.low, self.high) if self.boundary == "circular" else x
        t = ((inner - self.low) / size).clamp(0, 1)
        bin, a, b = self._bin(theta, t)
        xi = held((t * bin.total_width - bin.left) / bin.width, 0, 1)
        share, relative = _cubic(a, b, xi)
        slope = bin.slope * bin.total_width / bin.total_height
        z = self.low + size * ((bin.bottom + bin.width * bin.slope * share) / bin.total_height)
        log_slope = torch.log(slope * relative)
        if self.boundary == "circular":
            z = wrap(z + theta[-1], self.low, self.high)
        if self.boundary == "linear":
            nearest = x.clamp(self.low, self.high)
            beyond, tail = x - nearest, self._tail(theta, bin, x)
            outside = beyond != 0
            return torch.where(outside, nearest.detach() + tail * beyond, z), torch.where(outside, torch.log(tail), log_slope)
        return finish(self.boundary, self.low, self.high, x, z, log_slope)

    def decode(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse x and log dx/dz, both (F, B)."""
        theta = theta.to(z.dtype)
        size = self.high - self.low
        inner = wrap(z - theta[-1], self.low, self.high) if self.boundary == "circular" else z
        t = ((inner - self.low) / size).clamp(0, 1)
        bin, a, b = self._bin(theta, t, by_height=True)
        tau = held((t * bin.total_height - bin.bottom) / (bin.width * bin.slope), 0, 1)
        xi = monotone_root(lambda u: _cubic(a, b, u), tau, rational_root(a, b, tau))
        slope = bin.slope * bin.total_width / bin.total_height
        x = self.low + size * ((bin.left + bin.width * xi) / bin.total_width)
        log_slope = -torch.log(slope * _cubic(a, b, xi)[1])
        if self.boundary == "linear":
            nearest = z.clamp(self.low, self.high)
            beyond, tail = z - nearest, self._tail(theta, bin, z)
            outside = beyond != 0
            return torch.where(outside, nearest.detach() + beyond / tail, x), torch.where(outside, -torch.log(tail), log_slope)
        return finish(self.boundary, self.low, self.high, z, x, log_slope)

    def _bin(self, theta: Tensor, t: Tensor, *, by_height: bool = False) -> tuple[Bin, Tensor, Tensor]:
        """The bin and the slopes at its ends in units of its mean slope."""
        circular = self.boundary == "circular"
        bin = find_bin(theta, t, self._layout, by_height=by_height)
        k = bin.index
        before, after = _widths_beside(bin.sizes[: self.bins], k, circular=circular)
        a, b = (_steffen(bin.slope, bin.width, slope, width) for slope, width in zip(bin.beside, (before, after)))
        if circular:
            return bin, a, b
        # 1 at the start, and within the bounds in which a cubic stays monotone.
        ends = _ends(theta)
        return bin, torch.where(k == 0, ends[0], a), torch.where(k == self.bins - 1, ends[1], b)

    def _tail(self, theta: Tensor, bin: Bin, x: Tensor) -> Tensor:
        """The slope of the straight line beyond the end of the box at which x lies."""
        ends = _ends(theta)
        slope = torch.where(x < self.low, bin.sizes[self.bins] * ends[0], bin.sizes[-1] * ends[1])
        return slope * bin.total_width / bin.total_height


def _ends(theta: Tensor) -> Tensor:
    """Slopes at the two ends of the box, in units of the mean slopes of their bins."""
    return 0.25 + 1.5 * torch.sigmoid(theta[-2:])


def _widths_beside(u: Tensor, index: Tensor, *, circular: bool) -> tuple[Tensor, Tensor]:
    """The widths of the bins before and after."""
    before, after = neighbours(index, len(u), circular=circular)
    return at(u, before), at(u, after)


def _steffen(slope: Tensor, width: Tensor, other_slope: Tensor, other_width: Tensor) -> Tensor:
    """Steffen's slope at the knot between two bins, in units of the first one's."""
    ratio = other_slope / slope
    parabola = (ratio * width + other_width) / (width + other_width)
    return torch.minimum(torch.minimum(2 * ratio, parabola), torch.full_like(ratio, 2.0))


def _cubic(a: Tensor, b: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic from 0 to 1 with slopes a and b at its ends, and its derivative."""
    second, third = 3 - 2 * a - b, a + b - 2
    return ((third * xi + second) * xi + a) * xi, (3 * third * xi + 2 * second) * xi + a
