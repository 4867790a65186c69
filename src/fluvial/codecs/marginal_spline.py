"""Monotone maps of the coordinates, one by one, with their own knots."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fluvial.codecs.bins import is_mapped
from fluvial.codecs.codec import Bijection
from fluvial.codecs.rational_quadratic import rational_root
from fluvial.codecs.transformer import held
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean

Tail = Literal["straight", "pareto"]
_LEAST_SHAPE = 1e-4  # of a Pareto tail: below, it is an exponential one to all digits of single precision
_REACH = 3.0  # of the knots at the start, in both directions


class Knots(NamedTuple):
    r"""Splines of many coordinates, and their tails.

    Attributes:
        x: Places of the knots, increasing, shape (\*coordinates, K).
        y: Values there, increasing.
        slope: Slopes there, positive.
        shape: ξ > 0 of the left and right Pareto tail, (\*coordinates, 2); None for straight tails.
    """

    x: Tensor
    y: Tensor
    slope: Tensor
    shape: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Knots":
        """The same in another precision."""
        return Knots(*(part if part is None else part.to(dtype) for part in self))


class MarginalSpline(Bijection):
    r"""Every coordinate through a monotone rational-quadratic spline of its own, with tails that go on for ever.

    Between the knots (x_k, y_k) with slopes δ_k, with w and h the width and height of the bin, s = h/w and ξ the position in it,

    .. math:: z = y_k + h \frac{s\xi^2 + \delta_k \xi(1-\xi)}{s + (\delta_k + \delta_{k+1} - 2s)\,\xi(1-\xi)}

    Beyond the outer knots a straight tail has their slope, so that a tail of the latent normal distribution is one of the data, in another
    scale. A Pareto tail, for data with heavy tails, maps the generalised Pareto distribution beyond x_K onto the normal tail beyond y_K:

    .. math:: 1 - \Phi(z) = (1 - \Phi(y_K))\,\bigl(1 + \xi\,(x - x_K)/\sigma\bigr)^{-1/\xi}, \qquad
              \sigma = \frac{1 - \Phi(y_K)}{\varphi(y_K)\,\delta_K}

    with σ chosen so that the slope is continuous. Knots and slopes are learned as logarithms of widths, heights and slopes; they start as the
    identity, and `set_` puts them where a fit wants them.

    Args:
        features: Number D of coordinates.
        bins: Number of bins, one less than knots.
        tail: "straight" or "pareto".

    Raises:
        ValueError: If features or bins are not positive, or the tail is unknown.

    References:
        Gregory, Delbourgo (1982), "Piecewise rational quadratic interpolation to monotonic data"; Durkan, Bekasov, Murray, Papamakarios (2019),
        "Neural spline flows", arXiv:1906.04032; Meng, Song, Song, Ermon (2020), "Gaussianization flows", arXiv:2003.01941 (trained marginal maps).

    Example:
        >>> codec = MarginalSpline(2, 4)
        >>> codec.set_(torch.tensor([[0.0, 1, 2, 3, 4]] * 2), torch.tensor([[-2.0, -1, 0, 1, 2]] * 2), torch.ones(2, 5))
        >>> codec.encode(torch.tensor([[2.0, 10.0]])).tolist()
        [[0.0, 8.0]]
    """

    def __init__(self, features: int, bins: int = 32, *, tail: Tail = "straight") -> None:
        super().__init__()
        if features < 1 or bins < 1:
            raise ValueError(f"MarginalSpline: features and bins must be positive, got {features} and {bins}")
        if tail not in get_args(Tail):
            raise ValueError(f"MarginalSpline: tail is 'straight' or 'pareto', got {tail!r}")
        self.domain = self.codomain = Euclidean(features)
        self.features = features
        self.bins = bins
        self.tail = tail
        width = math.log(2 * _REACH / bins)
        self.left = nn.Parameter(torch.full((features,), -_REACH))
        self.bottom = nn.Parameter(torch.full((features,), -_REACH))
        self.log_widths = nn.Parameter(torch.full((features, bins), width))
        self.log_heights = nn.Parameter(torch.full((features, bins), width))
        self.log_slopes = nn.Parameter(torch.zeros(features, bins + 1))
        self.log_shapes = nn.Parameter(torch.full((features, 2), math.log(0.1))) if tail == "pareto" else None

    @property
    def knots(self) -> Knots:
        """Knots, values and slopes, of shape (D, bins + 1), and the shapes of the tails, (D, 2)."""
        x = nn.functional.pad(self.log_widths.exp().cumsum(-1), (1, 0)) + self.left.unsqueeze(-1)
        y = nn.functional.pad(self.log_heights.exp().cumsum(-1), (1, 0)) + self.bottom.unsqueeze(-1)
        shape = None if self.log_shapes is None else self.log_shapes.exp().clamp_min(_LEAST_SHAPE)
        return Knots(x, y, self.log_slopes.exp(), shape)

    @torch.no_grad()
    def set_(self, x: Tensor, y: Tensor, slope: Tensor, shape: Tensor | None = None) -> None:
        """Put the knots at x (D, bins + 1) with values y and slopes there, and give Pareto tails their shapes (D, 2).

        Raises:
            ValueError: If knots or values do not increase, slopes or shapes are not positive, or their number is another.
        """
        wanted = (self.features, self.bins + 1)
        for name, given in (("x", x), ("y", y), ("slope", slope)):
            if given.shape != wanted or not bool(torch.isfinite(given).all()):
                raise ValueError(f"MarginalSpline: {name} must be finite, of shape {wanted}, got shape {tuple(given.shape)}")
        if (shape is None) != (self.log_shapes is None) or (shape is not None and not bool((shape > 0).all())):
            raise ValueError(f"MarginalSpline: positive shapes of shape ({self.features}, 2) belong to tail='pareto', and only there")
        widths, heights = (part.double().diff(dim=-1) for part in (x, y))
        if not bool((widths > 0).all() and (heights > 0).all() and (slope > 0).all()):
            raise ValueError("MarginalSpline: knots and their values must increase, and slopes be positive")
        self.left.copy_(x[:, 0])
        self.bottom.copy_(y[:, 0])
        self.log_widths.copy_(widths.log())
        self.log_heights.copy_(heights.log())
        self.log_slopes.copy_(slope.log())
        if self.log_shapes is not None and shape is not None:
            self.log_shapes.copy_(shape.log())

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data (batch, D) -> z of the same shape."""
        return self.encode_ladj(x, c)[0]

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse."""
        return self.decode_ladj(z, c)[0]

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z (batch, D) and Σ log dz/dx, (batch,)."""
        z, log_slope = spline_encode(x.movedim(-1, 0).flatten(1), self.knots.to(x.dtype))
        return z.view(self.features, *x.shape[:-1]).movedim(0, -1), log_slope.sum(0).view(x.shape[:-1])

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """X (batch, D) and Σ log dx/dz, (batch,)."""
        x, log_slope = spline_decode(z.movedim(-1, 0).flatten(1), self.knots.to(z.dtype))
        return x.view(self.features, *z.shape[:-1]).movedim(0, -1), log_slope.sum(0).view(z.shape[:-1])

    def extra_repr(self) -> str:
        """Sizes and kind of tail, for repr."""
        return f"{self.features}, bins={self.bins}, tail={self.tail!r}"


def spline_encode(x: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    r"""Z and log dz/dx at points x (\*coordinates, n), of the same shape."""
    place = _place(x, knots.x)
    left, width, bottom, height, a, b = _bin(place, knots)
    inner = x.clamp(knots.x[..., :1], knots.x[..., -1:])
    mean_slope = height / width
    share, slope = _quotient(a / mean_slope, b / mean_slope, held((inner - left) / width, 0, 1))
    z, log_slope = torch.addcmul(bottom, height, share), torch.log(mean_slope * slope)
    return _with_tails(x, z, log_slope, knots, decode=False)


def spline_decode(z: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    r"""The inverse x and log dx/dz at z (\*coordinates, n)."""
    place = _place(z, knots.y)
    left, width, bottom, height, a, b = _bin(place, knots)
    inner = z.clamp(knots.y[..., :1], knots.y[..., -1:])
    mean_slope = height / width
    a, b = a / mean_slope, b / mean_slope
    xi = rational_root(a, b, held((inner - bottom) / height, 0, 1))
    x, log_slope = torch.addcmul(left, width, xi), -torch.log(mean_slope * _quotient(a, b, xi)[1])
    return _with_tails(z, x, log_slope, knots, decode=True)


def _place(t: Tensor, knots: Tensor) -> Tensor:
    """In which bin every point lies; points beyond the outer knots belong to the bin next to them."""
    inner, t = knots[..., 1:-1].detach(), t.detach()
    if is_mapped(t) or is_mapped(inner):  # torch.searchsorted warns there, whatever the order in memory
        return (t.unsqueeze(-1) >= inner.unsqueeze(-2)).sum(-1)
    return torch.searchsorted(inner.contiguous(), t.contiguous(), right=True)


def _bin(place: Tensor, knots: Knots) -> list[Tensor]:
    """Left end and width, bottom and height, and the slopes at both ends of every point's bin."""
    ends = [(part.gather(-1, place), part.gather(-1, place + 1)) for part in (knots.x, knots.y, knots.slope)]
    (left, right), (bottom, top), (a, b) = ends
    return [left, right - left, bottom, top - bottom, a, b]


def _quotient(a: Tensor, b: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """The rational quadratic from 0 to 1 with slopes a and b at its ends, and its derivative."""
    rest = 1 - xi
    eta, square = xi * rest, xi * xi
    denominator = (a + b - 2) * eta + 1
    numerator = torch.addcmul(b * square, a, rest * rest).add(eta, alpha=2)
    return torch.addcmul(square, a, eta) / denominator, numerator / (denominator * denominator)


def _with_tails(t: Tensor, inner: Tensor, log_slope: Tensor, knots: Knots, *, decode: bool) -> tuple[Tensor, Tensor]:
    """The map beyond the outer knots too."""
    source, target = (knots.y, knots.x) if decode else (knots.x, knots.y)
    first, last = source[..., :1], source[..., -1:]
    below, above = t < first, t > last
    slope = knots.slope.reciprocal() if decode else knots.slope
    if knots.shape is None:
        # Sums, not masks: 0 in between, where the slope of the spline counts.
        under, over = (t - first).clamp_max(0), (t - last).clamp_min(0)
        value = inner + slope[..., :1] * under + slope[..., -1:] * over
        log_slope = torch.where(below, slope[..., :1].log(), torch.where(above, slope[..., -1:].log(), log_slope))
        return value, log_slope
    tail = _pareto_decode if decode else _pareto_encode
    # What lies elsewhere is read at the knot, so that neither values nor gradients can overflow there.
    up, log_up = tail(torch.where(above, t, last) - last, knots.y[..., -1:], knots.slope[..., -1:], knots.shape[..., 1:])
    down, log_down = tail(first - torch.where(below, t, first), -knots.y[..., :1], knots.slope[..., :1], knots.shape[..., :1])
    value = torch.where(above, target[..., -1:] + up, torch.where(below, target[..., :1] - down, inner))
    return value, torch.where(above, log_up, torch.where(below, log_down, log_slope))


def _log_survival(z: Tensor) -> Tensor:
    """Log of 1 − Φ(z)."""
    # By functions that torch.func can map; each only where it keeps its digits.
    far = torch.log(0.5 * torch.special.erfcx(z.clamp_min(0) / math.sqrt(2))) - 0.5 * z.clamp_min(0).square()
    return torch.where(z > 0, far, torch.log1p(-0.5 * torch.special.erfc(-z.clamp_max(0) / math.sqrt(2))))


def _log_hazard(z: Tensor) -> Tensor:
    """Log of φ(z)/(1 − Φ(z))."""
    return -0.5 * z * z - 0.5 * math.log(2 * math.pi) - _log_survival(z)


def _pareto_encode(excess: Tensor, knot: Tensor, slope: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """How far beyond the knot's value z lies for an excess of x over the knot, and the logarithm of the slope there."""
    rate = slope.log() + _log_hazard(knot)
    t = torch.log1p(shape * excess * rate.exp()) / shape
    z = _from_log_survival(_log_survival(knot) - t)
    return z - knot, rate - shape * t - _log_hazard(z)


def _pareto_decode(excess: Tensor, knot: Tensor, slope: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """How far beyond the knot x lies for an excess of z over the knot's value, and the logarithm of the slope dx/dz there."""
    rate = slope.log() + _log_hazard(knot)
    z = knot + excess
    t = _log_survival(knot) - _log_survival(z)
    return torch.expm1(shape * t) / (shape * rate.exp()), _log_hazard(z) + shape * t - rate


def _from_log_survival(log_p: Tensor) -> Tensor:
    """The z with log(1 − Φ(z)) = log_p; differentiable twice."""

    def step(z: Tensor) -> Tensor:
        return z + (_log_survival(z) - log_p) * torch.exp(-_log_hazard(z))

    with torch.no_grad():
        # From 1 − Φ(z) ≈ φ(z)/z far out. Newton's steps for a concave function come from one side after the first.
        z = torch.sqrt((-2 * (log_p + 0.919)).clamp_min(0.25))
        for _ in range(6):
            z = step(z)
    # One more step carries the first derivative of the implicit function, two carry the second.
    return step(step(z)) if torch.is_grad_enabled() else z
