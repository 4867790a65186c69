"""Monotone maps of the coordinates, one by one, with their own knots."""

import math
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.codecs.bins import is_mapped
from fluvial.codecs.blocks import BlockMap, send
from fluvial.codecs.codec import Bijection
from fluvial.codecs.spline_kernel import Prepared, Tables, decode_, encode_, prepare
from fluvial.codecs.spline_loops import Engine
from fluvial.codecs.transformer import held
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean

Tail = Literal["straight", "pareto"]
LEAST_SHAPE = 1e-4  # of a Pareto tail: below, it is an exponential one to all digits of single precision
_FARTHEST = 1e30  # logarithm of a probability, from which on a tail goes no farther
_NARROWEST = 1e-30  # bin
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
        x, y = _increasing(self.left, self.log_widths), _increasing(self.bottom, self.log_heights)
        shape = None if self.log_shapes is None else self.log_shapes.exp().clamp_min(LEAST_SHAPE)
        return Knots(x, y, self.log_slopes.exp(), shape)

    @torch.no_grad()
    def set_(self, x: Tensor, y: Tensor, slope: Tensor, shape: Tensor | None = None) -> None:
        """Put the knots at x (D, bins + 1) with values y and slopes there, and give Pareto tails their shapes (D, 2).

        Raises:
            ValueError: If knots or values do not increase, in the precision of the parameters too; slopes or shapes are not positive; or their
                number is another.
        """
        wanted = (self.features, self.bins + 1)
        for name, given in (("x", x), ("y", y), ("slope", slope)):
            if given.shape != wanted or not bool(torch.isfinite(given).all()):
                raise ValueError(f"MarginalSpline: {name} must be finite, of shape {wanted}, got shape {tuple(given.shape)}")
        fits = shape is None or (shape.shape == (self.features, 2) and bool(((shape > 0) & torch.isfinite(shape)).all()))
        if (shape is None) != (self.log_shapes is None) or not fits:
            raise ValueError(f"MarginalSpline: positive shapes of shape ({self.features}, 2) belong to tail='pareto', and only there")
        if not bool((slope > 0).all()):
            raise ValueError("MarginalSpline: slopes must be positive")
        starts, logs = [], []
        for name, knots in (("x", x), ("y", y)):
            starts.append(knots[:, 0].to(self.left))
            logs.append(knots.double().diff(dim=-1).log().to(self.left))
            stored = _increasing(starts[-1], logs[-1])
            if not bool((stored.diff(dim=-1) > 0).all()):
                d, k = (~(stored.diff(dim=-1) > 0)).nonzero()[0].tolist()
                pair = f"{knots[d, k]:.9g}, {knots[d, k + 1]:.9g}"
                raise ValueError(f"MarginalSpline: {name} must increase by more than rounding; coordinate {d} has {pair} at knots {k}, {k + 1}")
        for parameter, value in zip((self.left, self.bottom, self.log_widths, self.log_heights, self.log_slopes), (*starts, *logs, slope.log())):
            parameter.copy_(value)
        if self.log_shapes is not None and shape is not None:
            self.log_shapes.copy_(shape.log())

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data (batch, D) -> z of the same shape."""
        sent = send([self], x, splines=1, inverse=False, ladj=False)
        return self._encode_eager(x)[0] if sent is None else sent[0]

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse."""
        sent = send([self], z, splines=1, inverse=True, ladj=False)
        return self._decode_eager(z)[0] if sent is None else sent[0]

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z (batch, D) and Σ log dz/dx, (batch,)."""
        sent = send([self], x, splines=1, inverse=False)
        return self._encode_eager(x) if sent is None else sent

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """X (batch, D) and Σ log dx/dz, (batch,)."""
        sent = send([self], z, splines=1, inverse=True)
        return self._decode_eager(z) if sent is None else sent

    def block_map(self, *, inverse: bool) -> BlockMap | None:
        """The map of blocks; None where knots are so close, or slopes so extreme, that only torch can do it."""
        with torch.no_grad():
            knots = Knots(*(None if part is None else part.contiguous() for part in self.knots))
        try:
            tables = prepared(knots, only="decode" if inverse else "encode")
        except ValueError:
            return None

        def bent(block: Tensor, ladj: np.ndarray | None) -> Tensor:
            bend_(block.numpy(), knots, tables, ladj, inverse=inverse, engine="compiled")
            return block

        return bent

    def _encode_eager(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = spline_encode(_by_coordinate(x), self.knots.to(x.dtype))
        return z.view(self.features, *x.shape[:-1]).movedim(0, -1), log_slope.sum(0).view(x.shape[:-1])

    def _decode_eager(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = spline_decode(_by_coordinate(z), self.knots.to(z.dtype))
        return x.view(self.features, *z.shape[:-1]).movedim(0, -1), log_slope.sum(0).view(z.shape[:-1])

    def extra_repr(self) -> str:
        """Sizes and kind of tail, for repr."""
        return f"{self.features}, bins={self.bins}, tail={self.tail!r}"


def _increasing(start: Tensor, log_steps: Tensor) -> Tensor:
    """Numbers that begin at start (D,) and go on by steps (D, bins)."""
    return nn.functional.pad(log_steps.exp().cumsum(-1), (1, 0)) + start.unsqueeze(-1)


def _by_coordinate(x: Tensor) -> Tensor:
    """Rows (batch, D) as (D, n); a single row (D,) too."""
    return x.movedim(-1, 0).unsqueeze(-1).flatten(1)


def prepared(knots: Knots, *, only: Literal["encode", "decode"] | None = None) -> Prepared:
    """Knots (D, K) as `bend_` wants them.

    Raises:
        ValueError: If they are not those of an increasing spline, or closer than the kernel can tell.
    """
    return prepare(Tables(*(part.numpy() for part in (knots.x, knots.y, knots.slope))), only=only)


def bend_(x: np.ndarray, knots: Knots, tables: Prepared, ladj: np.ndarray | None, *, inverse: bool = False, engine: Engine | None = None) -> None:
    """Replace a block, float32 (D, n), by its image, and add the logarithms of the slopes to ladj, float64 (n,)."""
    apply_ = decode_ if inverse else encode_
    if knots.shape is None:
        apply_(x, tables, ladj, engine=engine)
        return
    # The kernel knows straight tails; the few elements that lie in Pareto ones are put right, from the outer knots alone.
    ends = Knots(*(part[:, [0, -1]] for part in (knots.x, knots.y, knots.slope)), knots.shape)
    outer = (ends.y if inverse else ends.x).numpy()
    # Of truth values NumPy finds the few that are set several times as fast as torch does.
    found = np.flatnonzero((x < outer[:, :1]) | (x > outer[:, 1:]))
    beyond = torch.from_numpy(x.ravel()[found])
    apply_(x, tables, ladj, engine=engine)
    if not len(found):
        return
    coordinate, row = (torch.from_numpy(part) for part in np.divmod(found, x.shape[1]))
    own = Knots(*(None if part is None else part[coordinate] for part in ends))
    with torch.no_grad():
        value, log_slope = (part.squeeze(-1) for part in _with_tails(*(beyond.unsqueeze(-1),) * 3, own, decode=inverse))
    x.reshape(-1)[found] = value.numpy()
    if ladj is not None:
        straight = torch.where(beyond > torch.from_numpy(outer)[coordinate, 1], own.slope[:, 1], own.slope[:, 0]).double().log()
        torch.from_numpy(ladj).index_add_(0, row, log_slope.double() + (straight if inverse else -straight))


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
    xi = _root(a, b, held((inner - bottom) / height, 0, 1))
    x, log_slope = torch.addcmul(left, width, xi), -torch.log(mean_slope * _quotient(a, b, xi)[1])
    return _with_tails(z, x, log_slope, knots, decode=True)


def _place(t: Tensor, knots: Tensor) -> Tensor:
    """In which bin every point lies; points beyond the outer knots belong to the bin next to them."""
    inner, t = knots[..., 1:-1].detach(), t.detach()
    if not torch.compiler.is_compiling() and (is_mapped(t) or is_mapped(inner)):  # torch.searchsorted warns there, whatever the order in memory
        return (t.unsqueeze(-1) >= inner.unsqueeze(-2)).sum(-1)
    return torch.searchsorted(inner.contiguous(), t.contiguous(), right=True)


def _bin(place: Tensor, knots: Knots) -> list[Tensor]:
    """Left end and width, bottom and height, and the slopes at both ends of every point's bin."""
    ends = [(part.gather(-1, place), part.gather(-1, place + 1)) for part in (knots.x, knots.y, knots.slope)]
    (left, right), (bottom, top), (a, b) = ends
    # Bins that training has made as narrow as nothing: no division by 0.
    return [left, (right - left).clamp_min(_NARROWEST), bottom, (top - bottom).clamp_min(_NARROWEST), a, b]


def _quotient(a: Tensor, b: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """The rational quadratic from 0 to 1 with slopes a and b at its ends, and its derivative."""
    rest = 1 - xi
    eta, square = xi * rest, xi * xi
    denominator = (a + b - 2) * eta + 1
    numerator = torch.addcmul(b * square, a, rest * rest).add(eta, alpha=2)
    return torch.addcmul(square, a, eta) / denominator, numerator / (denominator * denominator)


def _root(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Where the rational quadratic from 0 to 1 with slopes a and b at its ends takes the value τ, to all digits however large the slopes are."""
    rest = 1 - tau
    middle, square = a * rest - b * tau, 4 * tau * rest
    size = middle.abs() + torch.sqrt(middle * middle + square)
    # ξ = 2τ/(2τ + m + √(m² + 4τ(1 − τ))) with m = a(1 − τ) − bτ; where m < 0, in the form in which nothing cancels.
    return 2 * tau / (2 * tau + torch.where(middle >= 0, size, square / size))


def _with_tails(t: Tensor, inner: Tensor, log_slope: Tensor, knots: Knots, *, decode: bool) -> tuple[Tensor, Tensor]:
    """The map beyond the outer knots too."""
    source, target = (knots.y, knots.x) if decode else (knots.x, knots.y)
    first, last = source[..., :1], source[..., -1:]
    below, above = t < first, t > last
    if knots.shape is None:
        slope = knots.slope.reciprocal() if decode else knots.slope
        # Sums, not masks: 0 in between, where the slope of the spline counts.
        under, over = (t - first).clamp_max(0), (t - last).clamp_min(0)
        value = inner + slope[..., :1] * under + slope[..., -1:] * over
        log_slope = torch.where(below, slope[..., :1].log(), torch.where(above, slope[..., -1:].log(), log_slope))
        return value, log_slope

    def side(low: Tensor, high: Tensor) -> Tensor:
        return torch.where(below, low, high)

    # A left tail is a right one, mirrored. What lies in neither is read at the last knot, so that values and gradients cannot overflow there.
    excess = side(first - torch.where(below, t, first), torch.where(above, t, last) - last)
    knot, slope, shape = (side(low, high) for low, high in zip(*_ends(knots)))
    beyond, log_beyond = (_pareto_decode if decode else _pareto_encode)(excess, knot, slope, shape)
    value = torch.where(above, target[..., -1:] + beyond, torch.where(below, target[..., :1] - beyond, inner))
    return value, torch.where(below | above, log_beyond, log_slope)


def _ends(knots: Knots) -> tuple[list[Tensor], list[Tensor]]:
    """Value at the outer knot, slope and shape of the left tail, mirrored, and of the right one."""
    parts = (knots.y, knots.slope, cast(Tensor, knots.shape))
    low, high = ([part[..., end].unsqueeze(-1) for part in parts] for end in (0, -1))
    return [-low[0], *low[1:]], high


def _survival(z: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of 1 − Φ(z), and of φ(z)/(1 − Φ(z)), to all digits on both sides of 0."""
    # By functions that torch.func can map; erfcx never underflows, and nothing cancels.
    upper = z > 0
    size = torch.where(upper, z, -z)
    half = 0.5 * size * size
    scaled = 0.5 * torch.special.erfcx(size / math.sqrt(2))
    log_lower = torch.log1p(-scaled * torch.exp(-half))
    log_scaled = torch.log(scaled)
    log_survival = torch.where(upper, log_scaled - half, log_lower)
    return log_survival, torch.where(upper, -log_scaled, -half - log_lower) - 0.5 * math.log(2 * math.pi)


def _pareto_encode(excess: Tensor, knot: Tensor, slope: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """How far beyond the knot's value z lies for an excess of x over the knot, and the logarithm of the slope there."""
    log_survival, log_hazard = _survival(knot)
    rate = slope.log() + log_hazard
    t = (torch.log1p(shape * excess * rate.exp()) / shape).clamp_max(_FARTHEST)
    z = _from_log_survival(log_survival - t)
    return z - knot, rate - shape * t - _survival(z)[1]


def _pareto_decode(excess: Tensor, knot: Tensor, slope: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """How far beyond the knot x lies for an excess of z over the knot's value, and the logarithm of the slope dx/dz there."""
    log_survival, log_hazard = _survival(knot)
    rate = slope.log() + log_hazard
    log_survival_there, log_hazard_there = _survival(knot + excess)
    t = log_survival - log_survival_there
    return torch.expm1(shape * t) / (shape * rate.exp()), log_hazard_there + shape * t - rate


def _from_log_survival(log_p: Tensor) -> Tensor:
    """The z with log(1 − Φ(z)) = log_p; differentiable twice."""

    def step(z: Tensor) -> Tensor:
        log_survival, log_hazard = _survival(z)
        return z + (log_survival - log_p) * torch.exp(-log_hazard)

    with torch.no_grad():
        known = log_p.detach()
        # The smaller one of Φ(z) and 1 − Φ(z) keeps its digits; where it underflows, 1 − Φ(z) ≈ φ(z)/z.
        upper = known < -math.log(2)
        small = torch.where(upper, torch.exp(known), -torch.expm1(known))
        near = torch.special.ndtri(small)
        square = (-2 * known - math.log(2 * math.pi)).clamp_min(4.0)
        far = torch.sqrt(square - torch.log(square))
        z = step(torch.where(known < -40, far, torch.where(upper, -near, near)))
    # Of these steps of Newton's the first carries the first derivative of the implicit function, and both the second.
    return step(step(z))
