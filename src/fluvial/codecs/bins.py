r"""The bins of monotone splines: which one a point falls into, and what is known about it.

A spline maps a box onto itself. It has K bins of widths w_k and heights h_k, given by 2K numbers s in (0, 1), the sigmoids of a network's output:

.. math:: u_k = \epsilon_w + s_k, \quad \rho_k = \epsilon_s + s_{K+k}, \quad v_k = u_k \rho_k, \qquad
          w_k = u_k/U, \quad h_k = v_k/V, \quad h_k/w_k = \rho_k\, U/V

with U = Σu and V = Σv, in units of the box. Since s is bounded, the widths of two bins differ by a factor 1 + 1/ε_w at most, and every mean slope h/w
lies between ε_s/(1 + ε_s) and its inverse, whatever the network puts out. That is what keeps inverses accurate.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Bins(NamedTuple):
    """What the rows of the parameters θ (P, F, B) are: K logits of widths, K logits of mean slopes, numbers of the knots, and whatever else.

    Attributes:
        count: K.
        floors: ε_w and ε_s.
        circular: Whether the last bin is before the first one.
        knots: How many knots have a number: K + 1, K on a circle, K − 1 where the two ends have none, or 0.
    """

    count: int
    floors: tuple[float, float]
    circular: bool = False
    knots: int = 0


class Bin(NamedTuple):
    """The bin of every point, fields of shape (F, B); widths in units of U, heights in units of V.

    Attributes:
        place: Which one it is, 0 … K − 1, as a floating-point number.
        s: The sigmoids of all bins, shape (2K, F, B).
        total_width: U.
        total_height: V.
        left: Sum of u over the bins before this one.
        bottom: Sum of v over the bins before this one.
        width: u of this bin.
        slope: ρ of this bin, so that its height is width · slope.
        slope_before: ρ of the bin before; at the first one its own, or on a circle the last one's.
        slope_after: ρ of the bin after; at the last one its own, or on a circle the first one's.
        knot_before: The number of the knot where it begins, or of the next knot that has one; left out where none has.
        knot_after: The number of the knot where it ends, likewise.
    """

    place: Tensor
    s: Tensor
    total_width: Tensor
    total_height: Tensor
    left: Tensor
    bottom: Tensor
    width: Tensor
    slope: Tensor
    slope_before: Tensor
    slope_after: Tensor
    knot_before: Tensor | None = None
    knot_after: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """Which one it is, int64."""
        return self.place.long()


def find_bin(theta: Tensor, t: Tensor, bins: Bins, *, by_height: bool = False) -> Bin:
    """The bin of every point.

    Args:
        theta: Parameters, shape (P, F, B).
        t: Where the points lie in the box, 0 … 1, shape (F, B). Only the place depends on it, so it gets no gradient.
        bins: What the rows of theta are.
        by_height: Find the bin on the axis of the heights, as the inverse of the spline needs.
    """
    # The compiler fuses the plain operations itself, and would drop the rule for forward derivatives without a word; cards run few large
    # kernels faster than many small ones.
    if torch.compiler.is_compiling() or theta.device.type != "cpu":
        return find_bin_plainly(theta, t, bins, by_height=by_height)
    return Bin(*_FindBin.apply(theta, t.detach(), bins, by_height))


def find_bin_plainly(theta: Tensor, t: Tensor, bins: Bins, *, by_height: bool = False) -> Bin:
    """`find_bin` in operations that differentiate themselves: the reference, and what is compiled."""
    s = torch.sigmoid(theta[: 2 * bins.count])
    u, rho = _sizes(s, bins)
    sums_u, sums_v = torch.cumsum(u, 0), torch.cumsum(u * rho, 0)
    searched = (sums_v if by_height else sums_u).detach()
    index = (searched[:-1] < t.detach() * searched[-1]).sum(0)
    return Bin(index.to(s.dtype), s, *_gathered(u, rho, sums_u, sums_v, theta[2 * bins.count :], index, bins))


def at(values: Tensor, index: Tensor) -> Tensor:
    """The entries of values (K, F, B) at index (F, B)."""
    return torch.gather(values, 0, index.unsqueeze(0)).squeeze(0)


def neighbours(index: Tensor, bins: int, *, circular: bool) -> tuple[Tensor, Tensor]:
    """Indices of the bins before and after; the ends of a line are their own neighbours."""
    if circular:
        return torch.where(index == 0, bins - 1, index - 1), torch.where(index == bins - 1, 0, index + 1)
    return (index - 1).clamp_min(0), (index + 1).clamp_max(bins - 1)


def _ends(index: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Indices of the numbers that belong to the knots at both ends of a bin."""
    if bins.knots < bins.count:
        return (index - 1).clamp_min(0), index.clamp_max(bins.knots - 1)
    return index, neighbours(index, bins.knots, circular=bins.circular)[1]


def _sizes(s: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """U and ρ of all bins."""
    return s[: bins.count] + bins.floors[0], s[bins.count :] + bins.floors[1]


def _gathered(u: Tensor, rho: Tensor, sums_u: Tensor, sums_v: Tensor, knots: Tensor, index: Tensor, bins: Bins) -> tuple[Tensor, ...]:
    """The fields of a bin from ``total_width`` on."""
    before, after = neighbours(index, bins.count, circular=bins.circular)
    first, previous = index == 0, (index - 1).clamp_min(0)
    left, bottom = (torch.where(first, 0.0, at(sums, previous)) for sums in (sums_u, sums_v))
    found = (sums_u[-1], sums_v[-1], left, bottom, at(u, index), at(rho, index), at(rho, before), at(rho, after))
    return found + tuple(at(knots, end) for end in _ends(index, bins)) if bins.knots else found


class _FindBin(torch.autograd.Function):
    """`find_bin` for the processor: one sweep over the bins forwards, one backwards, and nothing of size K kept but s.

    A comparison yields 0 or 1 in floating point, and these are the weights of sums and of interpolations, which are exact with them: vectorised
    arithmetic is several times faster than boolean masks and gathering by integers.
    """

    @staticmethod
    def forward(theta: Tensor, t: Tensor, bins: Bins, by_height: bool) -> tuple[Tensor, ...]:  # noqa: FBT001
        s = torch.sigmoid(theta[: 2 * bins.count])
        u, rho = _sizes(s, bins)
        v = u * rho
        total_u, total_v = u.sum(0), v.sum(0)
        searched, beyond = (v, t * total_v) if by_height else (u, t * total_u)
        left, bottom, place, passed = (torch.zeros_like(beyond) for _ in range(4))
        chosen = [*_rows(u, rho, bins), *_end_rows(theta[2 * bins.count :], bins)]
        values = [rows[0].clone() for rows in chosen]
        for k in range(bins.count - 1):
            # How far the point lies beyond this bin, and whether it does. NaN does not: it has the first bin.
            torch.gt(beyond.sub_(searched[k]), 0, out=passed)
            place.add_(passed)
            left.addcmul_(passed, u[k])
            bottom.addcmul_(passed, v[k])
            for value, rows in zip(values, chosen):
                value.lerp_(rows[k + 1], passed)
        return place, s, total_u, total_v, left, bottom, *values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        theta, _, ctx.bins, _ = inputs
        place, s, *_ = output
        ctx.rows = len(theta)
        ctx.mark_non_differentiable(place)
        ctx.save_for_backward(s, place)
        ctx.save_for_forward(s, place)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        s, place = ctx.saved_tensors
        _, ds, *fields = grads
        fields = [torch.zeros_like(place) if grad is None else grad for grad in fields]
        # Somebody who differentiates this gradient needs operations that know their own.
        pull = _pull if torch.is_grad_enabled() else _swept
        return pull(s, place, ds, fields, ctx.rows, ctx.bins), None, None, None

    @staticmethod
    def jvp(ctx: Any, dtheta: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        s, place = ctx.saved_tensors
        bins: Bins = ctx.bins
        ds = dtheta[: 2 * bins.count] * (s * (1 - s))
        u, rho = _sizes(s, bins)
        du, drho = ds[: bins.count], ds[bins.count :]
        sums_u, sums_v = torch.cumsum(du, 0), torch.cumsum(du * rho + u * drho, 0)
        return None, ds, *_gathered(du, drho, sums_u, sums_v, dtheta[2 * bins.count :], place.long(), bins)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], theta: Tensor, t: Tensor, *settings: Any) -> tuple[Any, Any]:
        """Points do not see each other, so that a mapped axis is but more of them."""
        theta, t = (
            value.unsqueeze(-2).expand(*value.shape[:-1], info.batch_size, value.shape[-1]) if dim is None else value.movedim(dim, -2)
            for value, dim in zip((theta, t), in_dims)
        )
        rows = theta.shape[-1]
        found = _FindBin.apply(theta.flatten(-2), t.flatten(-2), *settings)
        return tuple(value.unflatten(-1, (info.batch_size, rows)) for value in found), tuple(-2 for _ in found)


def _rows(u: Tensor, rho: Tensor, bins: Bins) -> list[list[Tensor]]:
    """For every bin, its u, its ρ, and ρ of the bins before and after it."""
    own = list(rho.unbind(0))
    first, last = (own[-1], own[0]) if bins.circular else (own[0], own[-1])
    return [list(u.unbind(0)), own, [first, *own[:-1]], [*own[1:], last]]


def _end_rows(knots: Tensor, bins: Bins) -> list[list[Tensor]]:
    """For every bin, the numbers of the knots at both ends."""
    own = list(knots[: bins.knots].unbind(0))
    if bins.knots == 0:
        return []
    if bins.knots < bins.count:
        return [[own[0], *own], [*own, own[-1]]]
    return [own, [*own[1:], own[0]]]


def _pull(s: Tensor, place: Tensor, ds: Tensor | None, grads: list[Tensor], rows: int, bins: Bins) -> Tensor:
    """The transposed derivative of `find_bin` in θ, which has ``rows`` rows; ds is the gradient of s."""
    total_u, total_v, left, bottom, width, slope, slope_before, slope_after, *knots = grads
    u, rho = _sizes(s, bins)
    index = place.long()
    k = torch.arange(rows, device=s.device).view(-1, *(1,) * index.ndim)
    bin, knot = k[: bins.count], k[: rows - 2 * bins.count]
    before, after = neighbours(index, bins.count, circular=bins.circular)
    passed, here = (bin < index).to(s.dtype), (bin == index).to(s.dtype)
    dv = total_v + bottom * passed
    du = total_u + left * passed + width * here + rho * dv
    drho = u * dv + slope * here + slope_before * (bin == before) + slope_after * (bin == after)
    sizes = torch.cat([du, drho]) if ds is None else torch.cat([du, drho]) + ds
    others = torch.zeros_like(knot * place)
    for gradient, end in zip(knots, _ends(index, bins)):
        others = others + gradient * (knot == end)
    return torch.cat([sizes * (s * (1 - s)), others])


def _swept(s: Tensor, place: Tensor, ds: Tensor | None, grads: list[Tensor], rows: int, bins: Bins) -> Tensor:
    """The same as `_pull`, in place and without tensors of size K."""
    total_u, total_v, left, bottom, width, slope, slope_before, slope_after, *knots = grads
    out = s.new_empty(rows, *place.shape)
    sizes, others = out[: 2 * bins.count], out[2 * bins.count :].zero_()
    du, drho = sizes[: bins.count], sizes[bins.count :]
    u, rho = _sizes(s, bins)
    passed, dv = torch.empty_like(place), torch.empty_like(place)
    for k in range(bins.count):
        torch.gt(place, k, out=passed)
        torch.addcmul(total_v, bottom, passed, out=dv)
        torch.addcmul(total_u, left, passed, out=du[k])
        du[k].addcmul_(rho[k], dv)
        torch.mul(u[k], dv, out=drho[k])
    index = place.long()
    before, after = neighbours(index, bins.count, circular=bins.circular)
    scattered = [(index, width, du), (index, slope, drho), (before, slope_before, drho), (after, slope_after, drho)]
    scattered += [(end, gradient, others) for end, gradient in zip(_ends(index, bins), knots)]
    for where, gradient, target in scattered:
        target.scatter_add_(0, where.unsqueeze(0), gradient.unsqueeze(0))
    if ds is not None:
        sizes.add_(ds)
    torch.ops.aten.sigmoid_backward(sizes, s, grad_input=sizes)
    return out
