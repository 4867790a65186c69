"""Rational-quadratic splines."""

import math

import torch
from torch import Tensor

from fluvial.codecs.binned_spline import BinnedSpline
from fluvial.codecs.bins import Bin, find_bin
from fluvial.codecs.transformer import Boundary, finish, held, wrap


class RationalQuadratic(BinnedSpline):
    r"""A monotone rational-quadratic spline: K bins, in each a quotient of quadratics, once continuously differentiable.

    With ξ the position in the bin (0 … 1), η = ξ(1 − ξ), s = h/w the bin's mean slope and a, b the slopes at its ends divided by s:

    .. math:: z = y_k + h\,\frac{\xi^2 + a\eta}{1 + (a + b - 2)\eta}, \qquad
              \frac{dz}{dx} = s\,\frac{b\xi^2 + 2\eta + a(1-\xi)^2}{(1 + (a + b - 2)\eta)^2}

    Whatever the network puts out, mean slopes stay within 1/(1 + R) … 1 + R, R = ``slope_ratio``, slopes at knots within a factor 5 of the
    harmonic mean of their neighbours, and so the slope everywhere within a factor max(25 R, R²) of 1: values, gradients and the inverse stay
    finite and accurate, in single precision too (see `fluvial.codecs.bins`).

    Args:
        bins: K.
        low: Lower end of the box.
        high: Upper end.
        boundary: "linear" (identity outside), "interval" (the box is all there is), or "circular" (the ends are one point; a shift is learned too).
        slope_ratio: R, the largest ratio of two bins' mean slopes.
        width_ratio: Largest ratio of the widths of two bins.

    Raises:
        ValueError: If the box is empty, or ratios or bins are too small.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), "Neural spline flows", arXiv:1906.04032.
        Rezende, Papamakarios, Racanière, Albergo, Kanwar, Shanahan, Cranmer (2020), "Normalizing flows on tori and spheres", arXiv:2002.02428.

    Example:
        >>> spline = RationalQuadratic(4)
        >>> theta = spline.start().view(-1, 1, 1).expand(-1, 1, 3)
        >>> z, log_slope = spline.encode(theta, torch.tensor([[-7.0, 0.0, 2.0]]))
        >>> bool(torch.allclose(z, torch.tensor([[-7.0, 0.0, 2.0]]), atol=1e-6))
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
        # Slopes at the inner knots; on an interval at both ends too; on a circle the two ends are one, and there is a shift.
        knots = bins + {"linear": -1, "interval": 1}.get(boundary, 0)
        super().__init__(
            bins,
            low=low,
            high=high,
            boundary=boundary,
            slope_ratio=slope_ratio,
            width_ratio=width_ratio,
            knots=knots,
            further=1 if boundary == "circular" else 0,
        )

    def encode(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log dz/dx, both (F, B)."""
        theta = theta.to(x.dtype)
        inner = wrap(x, self.low, self.high) if self.boundary == "circular" else x.clamp(self.low, self.high)
        t = (inner - self.low) / (self.high - self.low)
        bin, unit, a, b = self._find(theta, t)
        xi = held((t * bin.total_width - bin.left) / bin.width, 0, 1)
        share, slope = _quotient(a, b, xi)
        height = torch.addcmul(bin.bottom, bin.width * bin.slope, share)
        z = (height / bin.total_height) * (self.high - self.low) + self.low
        if self.boundary == "circular":
            z = wrap(z + theta[-1], self.low, self.high)
        return self._outside(x, inner, z, torch.log(slope / unit))

    def decode(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse x and log dx/dz, both (F, B)."""
        theta = theta.to(z.dtype)
        inner = wrap(z - theta[-1], self.low, self.high) if self.boundary == "circular" else z.clamp(self.low, self.high)
        t = (inner - self.low) / (self.high - self.low)
        bin, unit, a, b = self._find(theta, t, by_height=True)
        tau = held((t * bin.total_height - bin.bottom) / (bin.width * bin.slope), 0, 1)
        xi = rational_root(a, b, tau)
        x = (torch.addcmul(bin.left, bin.width, xi) / bin.total_width) * (self.high - self.low) + self.low
        return self._outside(z, inner, x, torch.log(unit / _quotient(a, b, xi)[1]))

    def _find(self, theta: Tensor, t: Tensor, *, by_height: bool = False) -> tuple[Bin, Tensor, Tensor, Tensor]:
        """The bin; and, in units of its mean slope, the slope 1 and the slopes a and b at its ends."""
        bin = find_bin(theta, t, self._layout, by_height=by_height)
        unit = bin.total_height / (bin.slope * bin.total_width)
        # 2ρ'/(ρ + ρ') is the harmonic mean of the two slopes that meet at the knot, divided by this bin's own.
        slopes = 2 * bin.beside / (bin.beside + bin.slope) * _factor(bin.knots)
        if self.boundary == "linear":
            # Slope 1 where the straight tails begin. Interpolation with weights 0 and 1 chooses, faster than a mask does.
            at_end = torch.stack([1 - bin.place, bin.place - (self.bins - 2)]).clamp(0, 1)
            slopes = torch.lerp(slopes, unit, at_end)
        a, b = slopes.unbind(0)
        return bin, unit, a, b

    def _outside(self, x: Tensor, inner: Tensor, z: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        if self.boundary != "linear":
            return finish(self.boundary, self.low, self.high, x, z, log_slope)
        # The tails go on from the ends of the box, with slope 1; sums and products are faster than masks.
        beyond = x - inner
        return z + beyond, log_slope * (beyond == 0).to(z.dtype)


_LOG_5 = math.log(5.0)
_LOG2_5 = math.log2(5.0)


def _factor(delta: Tensor) -> Tensor:
    """5^tanh(δ/log 5): 1/5 … 5, and 1 at 0."""
    # With tanh(x) = 2σ(2x) − 1, as σ and powers of 2 are several times faster than tanh and exp.
    return torch.exp2(2 * _LOG2_5 * torch.sigmoid(2 / _LOG_5 * delta) - _LOG2_5)


def rational_root(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Where the rational quadratic from 0 to 1 with slopes a and b at its ends takes the value τ."""
    # (1 − a + τq) ξ² + (a − τq) ξ − τ = 0 with q = a + b − 2, solved so that nothing cancels; the discriminant is a² at one end, b² at the other.
    linear = a - (a + b - 2) * tau
    discriminant = linear * linear + 4 * tau * (1 - linear)
    return held(2 * tau / (linear + torch.sqrt(discriminant.clamp_min(torch.finfo(tau.dtype).tiny))), 0, 1)


def _quotient(a: Tensor, b: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """The rational quadratic from 0 to 1 with slopes a and b at its ends, and its derivative."""
    rest = 1 - xi
    eta, square = xi * rest, xi * xi
    denominator = (a + b - 2) * eta + 1
    numerator = torch.addcmul(b * square, a, rest * rest).add(eta, alpha=2)
    return torch.addcmul(square, a, eta) / denominator, numerator / (denominator * denominator)
