r"""The bins of monotone splines: which one a point falls into, and what is known about it.

A spline maps a box onto itself. It has K bins of widths w_k and heights h_k, given by 2K numbers s in (0, 1), the sigmoids of a network's output:

.. math:: u_k = \epsilon_w + s_k, \quad \rho_k = \epsilon_s + s_{K+k}, \quad v_k = u_k \rho_k, \qquad
          w_k = u_k/U, \quad h_k = v_k/V, \quad h_k/w_k = \rho_k\, U/V

with U = Σu and V = Σv, in units of the box. Since s is bounded, the widths of two bins differ by a factor 1 + 1/ε_w at most, and every mean slope h/w
lies between ε_s/(1 + ε_s) and its inverse, whatever the network puts out. That is what keeps inverses accurate.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluvial.codecs.transformer import middle


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


def equal_bins(bins: Bins, size: int) -> Tensor:
    """Parameters of bins of equal width and slope, each in the middle of its bounds, and zeros for what else there is, shape (size,)."""
    theta = torch.zeros(size)
    for k, floor in enumerate(bins.floors):
        theta[k * bins.count : (k + 1) * bins.count] = middle(floor)
    return theta


class Bin(NamedTuple):
    """The bin of every point, fields of shape (F, B); widths in units of U, heights in units of V.

    Attributes:
        place: Which one it is, 0 … K − 1, as a floating-point number.
        sizes: U and ρ of all bins, one behind the other, shape (2K, F, B).
        total_width: U.
        total_height: V.
        left: Sum of u over the bins before this one.
        bottom: Sum of v over the bins before this one.
        width: u of this bin.
        slope: ρ of this bin, so that its height is width · slope.
        beside: ρ of the bins before and after, shape (2, F, B). At the ends of a line it is this bin's own.
        knots: The numbers of the knots at both ends, or of the nearest knots that have one, shape (2, F, B); None where no knot has.
    """

    place: Tensor
    sizes: Tensor
    total_width: Tensor
    total_height: Tensor
    left: Tensor
    bottom: Tensor
    width: Tensor
    slope: Tensor
    beside: Tensor
    knots: Tensor | None = None

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
    return Bin(*_applied()(theta, t.detach(), bins, by_height))


def _applied() -> Callable[..., Any]:
    """The custom function, out of the compiler's reach: between two pieces of a compiled program it would trace the sweep itself."""
    return _hidden() if "torch._dynamo" in sys.modules else _FindBin.apply


@cache
def _hidden() -> Callable[..., Any]:
    return torch.compiler.disable(_FindBin.apply)


def find_bin_plainly(theta: Tensor, t: Tensor, bins: Bins, *, by_height: bool = False) -> Bin:
    """`find_bin` in operations that differentiate themselves: the reference, and what is compiled."""
    s = torch.sigmoid(theta[: 2 * bins.count])
    u, rho = s[: bins.count] + bins.floors[0], s[bins.count :] + bins.floors[1]
    sums_u, sums_v = torch.cumsum(u, 0), torch.cumsum(u * rho, 0)
    searched = (sums_v if by_height else sums_u).detach()
    index = (searched[:-1] < t.detach() * searched[-1]).sum(0)
    return Bin(index.to(s.dtype), torch.cat([u, rho]), *_gathered(u, rho, sums_u, sums_v, theta[2 * bins.count :], index, bins))


def at(values: Tensor, index: Tensor) -> Tensor:
    """The entries of values (K, F, B) at index (F, B)."""
    return torch.gather(values, 0, index.unsqueeze(0)).squeeze(0)


def neighbours(index: Tensor, bins: int, *, circular: bool) -> tuple[Tensor, Tensor]:
    """Indices of the bins before and after; the ends of a line are their own neighbours."""
    if circular:
        return torch.where(index == 0, bins - 1, index - 1), torch.where(index == bins - 1, 0, index + 1)
    return (index - 1).clamp_min(0), (index + 1).clamp_max(bins - 1)


def _knots(index: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Indices of the numbers that belong to the knots at both ends of a bin."""
    if bins.knots < bins.count:
        return (index - 1).clamp_min(0), index.clamp_max(bins.knots - 1)
    return index, neighbours(index, bins.knots, circular=bins.circular)[1]


def _sigmoids(sizes: Tensor, bins: Bins) -> Tensor:
    """The sigmoids that give u and ρ."""
    return torch.cat([sizes[: bins.count] - bins.floors[0], sizes[bins.count :] - bins.floors[1]])


def _gathered(u: Tensor, rho: Tensor, sums_u: Tensor, sums_v: Tensor, knots: Tensor, index: Tensor, bins: Bins) -> tuple[Tensor, ...]:
    """The fields of a bin from ``total_width`` on."""
    before, after = neighbours(index, bins.count, circular=bins.circular)
    first, previous = index == 0, (index - 1).clamp_min(0)
    left, bottom = (torch.where(first, 0.0, at(sums, previous)) for sums in (sums_u, sums_v))
    beside = torch.stack([at(rho, before), at(rho, after)])
    found = (sums_u[-1], sums_v[-1], left, bottom, at(u, index), at(rho, index), beside)
    return (*found, torch.stack([at(knots, end) for end in _knots(index, bins)])) if bins.knots else found


class _FindBin(torch.autograd.Function):
    """`find_bin` for the processor: one sweep over the bins forwards, one backwards, and nothing of size K kept but u and ρ.

    A comparison yields 0 or 1 in floating point, and these are the weights of sums and of interpolations, which are exact with them: vectorised
    arithmetic is several times faster than boolean masks and gathering by integers.
    """

    @staticmethod
    def forward(theta: Tensor, t: Tensor, bins: Bins, by_height: bool) -> tuple[Tensor, ...]:  # noqa: FBT001
        sizes = torch.sigmoid(theta[: 2 * bins.count])
        u, rho = sizes[: bins.count].add_(bins.floors[0]), sizes[bins.count :].add_(bins.floors[1])
        v = u * rho
        total_u, total_v = u.sum(0), v.sum(0)
        us, vs = u.unbind(0), v.unbind(0)
        searched, beyond = (vs, t * total_v) if by_height else (us, t * total_u)
        left, bottom, place, passed = (torch.zeros_like(beyond) for _ in range(4))
        rows = [us, _around(rho, bins), *_ends(theta[2 * bins.count :], bins)]
        values = [each[0].clone() for each in rows]
        for k in range(bins.count - 1):
            # How far the point lies beyond this bin, and whether it does. NaN does not: it has the first bin.
            torch.gt(beyond.sub_(searched[k]), 0, out=passed)
            place.add_(passed)
            left.addcmul_(us[k], passed)
            bottom.addcmul_(vs[k], passed)
            for value, each in zip(values, rows):
                value.lerp_(each[k + 1], passed)
        width, around, *knots = values
        # Views would not do: forward derivatives are laid out like the values.
        return place, sizes, total_u, total_v, left, bottom, width, around[1].clone(), around[::2].clone(), *knots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        theta, _, ctx.bins, _ = inputs
        place, sizes, *_ = output
        ctx.rows = len(theta)
        ctx.mark_non_differentiable(place)
        ctx.save_for_backward(sizes, place)
        ctx.save_for_forward(sizes, place)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        sizes, place = ctx.saved_tensors
        _, dsizes, *fields = grads
        shapes = [place.shape] * 6 + [(2, *place.shape)] * 2
        fields = [place.new_zeros(shape) if grad is None else grad for shape, grad in zip(shapes, fields)]
        # Somebody who differentiates this gradient, or maps over it, needs operations that know how.
        watched = torch.is_grad_enabled() or any(grad is not None and is_mapped(grad) for grad in grads)
        pull = _pull if watched else _swept
        return pull(sizes, place, dsizes, fields, ctx.rows, ctx.bins), None, None, None

    @staticmethod
    def jvp(ctx: Any, dtheta: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        sizes, place = ctx.saved_tensors
        bins: Bins = ctx.bins
        s = _sigmoids(sizes, bins)
        dsizes = dtheta[: 2 * bins.count] * (s * (1 - s))
        (u, rho), (du, drho) = (both.split(bins.count) for both in (sizes, dsizes))
        sums_u, sums_v = torch.cumsum(du, 0), torch.cumsum(du * rho + u * drho, 0)
        return None, dsizes, *_gathered(du, drho, sums_u, sums_v, dtheta[2 * bins.count :], place.long(), bins)

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


def _around(rho: Tensor, bins: Bins) -> list[Tensor]:
    """For every bin, ρ of the one before, of itself and of the one after, shape (3, F, B)."""
    before, after = (-1, 0) if bins.circular else (0, -1)
    first, last = torch.stack([rho[before], rho[0], rho[1]]), torch.stack([rho[-2], rho[-1], rho[after]])
    return [first, *(rho[k - 1 : k + 2] for k in range(1, bins.count - 1)), last]


def _ends(knots: Tensor, bins: Bins) -> list[list[Tensor]]:
    """For every bin, the numbers of the knots at both ends, shape (2, F, B)."""
    own = knots[: bins.knots]
    if bins.knots == 0:
        return []
    if bins.knots < bins.count:
        first, last = own[:1].expand(2, *own.shape[1:]), own[-1:].expand(2, *own.shape[1:])
        return [[first, *(own[k - 1 : k + 1] for k in range(1, bins.count - 1)), last]]
    closed = torch.cat([own, own[:1]]) if bins.circular else own
    return [[closed[k : k + 2] for k in range(bins.count)]]


def is_mapped(tensor: Tensor) -> bool:
    """Whether a function transform maps over it, be it the new or the old kind."""
    transforms = torch._C._functorch
    return transforms.maybe_current_level() is not None or transforms.is_legacy_batchedtensor(tensor)


def _pull(sizes: Tensor, place: Tensor, dsizes: Tensor | None, grads: list[Tensor], rows: int, bins: Bins) -> Tensor:
    """The transposed derivative of `find_bin` in θ, which has ``rows`` rows."""
    total_u, total_v, left, bottom, width, slope, beside, *knots = grads
    u, rho = sizes.split(bins.count)
    index = place.long()
    k = torch.arange(rows, device=sizes.device).view(-1, *(1,) * index.ndim)
    bin, knot = k[: bins.count], k[: rows - 2 * bins.count]
    before, after = neighbours(index, bins.count, circular=bins.circular)
    passed, here = (bin < index).to(u.dtype), (bin == index).to(u.dtype)
    dv = total_v + bottom * passed
    du = total_u + left * passed + width * here + rho * dv
    drho = u * dv + slope * here + beside[0] * (bin == before) + beside[1] * (bin == after)
    both = torch.cat([du, drho]) if dsizes is None else torch.cat([du, drho]) + dsizes
    others = torch.zeros_like(knot * place)
    for gradient, end in zip(knots[0] if knots else (), _knots(index, bins)):
        others = others + gradient * (knot == end)
    s = _sigmoids(sizes, bins)
    return torch.cat([both * (s * (1 - s)), others])


def _swept(sizes: Tensor, place: Tensor, dsizes: Tensor | None, grads: list[Tensor], rows: int, bins: Bins) -> Tensor:
    """The same as `_pull`, in place and with fewer tensors of size K."""
    total_u, total_v, left, bottom, width, slope, beside, *knots = grads
    out = sizes.new_empty(rows, *place.shape)
    both, others = out[: 2 * bins.count], out[2 * bins.count :].zero_()
    du, drho = both.split(bins.count)
    passed, dv = torch.empty_like(place), torch.empty_like(place)
    each = (half.unbind(0) for half in (*sizes.split(bins.count), du, drho))
    for k, (u, rho, du_k, drho_k) in enumerate(zip(*each)):
        torch.gt(place, k, out=passed)
        torch.addcmul(total_v, bottom, passed, out=dv)
        torch.addcmul(total_u, left, passed, out=du_k).addcmul_(rho, dv)
        torch.mul(u, dv, out=drho_k)
    index = place.long()
    before, after = neighbours(index, bins.count, circular=bins.circular)
    scattered = [(index, width, du), (index, slope, drho), (before, beside[0], drho), (after, beside[1], drho)]
    if knots:
        scattered += [(end, gradient, others) for end, gradient in zip(_knots(index, bins), knots[0])]
    for where, gradient, target in scattered:
        target.scatter_add_(0, where.unsqueeze(0), gradient.unsqueeze(0))
    if dsizes is not None:
        both.add_(dsizes)
    for half, gradient, floor in zip(sizes.split(bins.count), (du, drho), bins.floors):
        torch.ops.aten.sigmoid_backward(gradient, half - floor, grad_input=gradient)
    return out
