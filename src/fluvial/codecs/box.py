"""Boxes, of which some sides may be missing, mapped onto all of space coordinate by coordinate."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fluvial.bases.limits import Limit, intervals, inward, nearest, pack
from fluvial.codecs.codec import Bijection
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean

OneSided = Literal["softplus", "log"]


class Box(Bijection):
    r"""What `Logit`, `Softplus`, `Log` and `Bounds` share: they differ in their arguments only.

    With b = x − l below and a = h − x above a coordinate, and B(d) = 1 − e^{−d} (softplus) or d (log), all of it is one formula,

    .. math:: z = s + \log\beta - \log\alpha, \qquad \log z' = \log w - \log\beta - \log\alpha

    =================  ======  ======  =====================  =====
    bounds             β       α       s                      w
    =================  ======  ======  =====================  =====
    l and h            b       a       0                      h − l
    l                  B(b)    1       b (softplus), 0 (log)  1
    h                  1       B(a)    −a (softplus), 0 (log) 1
    none               1       1       x                      1
    =================  ======  ======  =====================  =====

    Values exactly on a bound, where z is infinite, are read as if they lay a little inside; see `Bounds`.

    Args:
        event_shape: An int n, or the shape of one sample.
        low: Lower bounds, one or one for each coordinate of a vector.
        high: Upper bounds, likewise.
        one_sided: The map of coordinates with one bound.
        eps: How far inside values on a bound are read.

    Raises:
        ValueError: If bounds, eps or one_sided make no sense.
    """

    limits: Tensor
    has_low: Tensor
    has_high: Tensor

    def __init__(
        self, event_shape: int | tuple[int, ...], low: Sequence[Limit], high: Sequence[Limit], *, one_sided: OneSided, eps: float | None
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.domain = self.codomain = Euclidean(event_shape)
        self.event_shape = self.domain.event_shape
        below, above = intervals(who, low, high)
        if one_sided not in ("softplus", "log"):
            raise ValueError(f"{who}: one_sided is 'softplus' or 'log', got {one_sided!r}")
        if eps is not None and not 0 < eps < 0.5:
            raise ValueError(f"{who}: eps must be a number between 0 and 0.5, or None for half a step of the precision in use, got {eps}")
        self.eps = eps
        self._soft = one_sided == "softplus"
        self.register_buffer("limits", pack(below, above), persistent=False)
        self.register_buffer("has_low", torch.tensor([a is not None for a in below]), persistent=False)
        self.register_buffer("has_high", torch.tensor([b is not None for b in above]), persistent=False)
        # Known without looking at a tensor, so that maps that no coordinate has are not computed.
        sides = [(a is not None) + (b is not None) for a, b in zip(below, above)]
        self._two_sided, self._one_sided, self._free = (_quantifier(count == kind for count in sides) for kind in (2, 1, 0))
        self._low, self._high = (_quantifier(bound is not None for bound in bounds) for bounds in (below, above))

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""Data (batch, \*event) -> z of the same shape, finite also where x is outside."""
        shift, below, above, _ = self._logs(x)
        return shift + (below - above)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Any z (batch, \*event) -> data of the same shape, finite and within the bounds, including them."""
        low, high = inward(self.limits, z.dtype)
        upward = self._upward(z)
        # Each coordinate is measured from the bound that it is nearer to, where floating-point numbers are densest.
        q = torch.where(upward, z, -z)
        tiny, most = math.log(torch.finfo(z.dtype).tiny), 0.999 * math.log(torch.finfo(z.dtype).max)
        held = q.clamp_min(tiny)
        distance = _pick(
            self._two_sided,
            self.has_low & self.has_high,
            lambda: self._width(z.dtype) * torch.sigmoid(held),
            lambda: -logsigmoid(-held) if self._soft else torch.exp(held.clamp_max(most)),
        )
        start, end = nearest(self.limits, z.dtype)
        x = torch.where(upward, start + distance, end - distance)
        return _pick(self._free, ~(self.has_low | self.has_high), lambda: z, lambda: x).clamp(low, high)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        r"""Z and Σ log z', shapes (batch, \*event) and (batch,); −∞ for rows with a coordinate outside."""
        shift, below, above, outside = self._logs(x)
        slope = self._log_width(x.dtype) - below - above
        outside = outside.flatten(-len(self.event_shape)).any(-1)
        return shift + (below - above), torch.where(outside, -math.inf, self._sum(slope))

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        r"""X and Σ log x', shapes (batch, \*event) and (batch,)."""
        return self.decode(z), self._sum(self._log_slope(z))

    def _log_slope(self, z: Tensor) -> Tensor:
        """Log x' of every coordinate."""
        q = torch.where(self._upward(z), z, -z)
        # q + 2 log σ(−q) is log σ(q)σ(−q), which does not underflow; it is smooth at 0, where q changes sign.
        return _pick(
            self._two_sided,
            self.has_low & self.has_high,
            lambda: self._log_width(z.dtype) + (q + 2 * logsigmoid(-q)),
            lambda: _pick(self._free, ~(self.has_low | self.has_high), lambda: torch.zeros_like(z), lambda: logsigmoid(q) if self._soft else q),
        )

    def _upward(self, z: Tensor) -> Tensor:
        """Which coordinates are measured from their lower bound."""
        return self.has_low & (~self.has_high | (z < 0))

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """S, log β, log α of the table above, and which coordinates are outside."""
        low, high = nearest(self.limits, x.dtype)
        outside = (x < low) | (x > high)
        one = torch.ones((), dtype=x.dtype, device=x.device)
        # Coordinates outside are moved inside before any logarithm, so that their gradients are zero and not NaN.
        centre = torch.where(self.has_low, torch.where(self.has_high, low + (high - low) / 2, low + 1), torch.where(self.has_high, high - 1, 0 * one))
        x = torch.where(outside, centre, x)
        width = torch.where(self.has_low & self.has_high, high - low, one)
        largest = torch.maximum(torch.where(self.has_low, low.abs(), 0 * one), torch.where(self.has_high, high.abs(), 0 * one))
        step = torch.finfo(x.dtype).eps / 4
        # No less than the rounding of the bounds, and never past the middle.
        floor = torch.maximum(width * (step if self.eps is None else self.eps), torch.minimum(largest * step, width / 4))
        below = _pick(self._low, self.has_low, lambda: _distance(x - low, floor), lambda: one)
        above = _pick(self._high, self.has_high, lambda: _distance(high - x, floor), lambda: one)
        shift = _pick(self._free, ~(self.has_low | self.has_high), lambda: x, lambda: 0 * one)
        if self._soft and self._one_sided != "none":
            both = self.has_low & self.has_high
            shift = torch.where(self.has_low ^ self.has_high, torch.where(self.has_low, below, -above), shift)
            below, above = (torch.where(has & ~both, -torch.expm1(-d), d) for has, d in ((self.has_low, below), (self.has_high, above)))
        return shift, torch.log(below), torch.log(above), outside

    def _width(self, dtype: torch.dtype) -> Tensor:
        low, high = nearest(self.limits, dtype)
        return torch.where(self.has_low & self.has_high, high - low, 1.0)

    def _log_width(self, dtype: torch.dtype) -> Tensor:
        return torch.log(self._width(dtype))

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum(tuple(range(-len(self.event_shape), 0)))


def _distance(d: Tensor, floor: Tensor) -> Tensor:
    """Distances from a bound, those of 0 replaced by `floor`; numbers so small that their inverse overflows are made a little larger."""
    return torch.where(d == 0, floor, d).clamp_min(torch.finfo(d.dtype).tiny)


def _quantifier(flags: Iterable[bool]) -> str:
    """Whether all, some or none of them are true."""
    flags = list(flags)
    return "all" if all(flags) else "some" if any(flags) else "none"


def _pick(which: str, mask: Tensor, yes: Callable[[], Tensor], no: Callable[[], Tensor]) -> Tensor:
    """torch.where, computing only what is needed."""
    if which == "some":
        return torch.where(mask, yes(), no())
    return yes() if which == "all" else no()
