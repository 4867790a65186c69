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


class Bin(NamedTuple):
    """The bin of every point, fields of shape (F, B); widths in units of U, heights in units of V.

    Attributes:
        left: Sum of u over the bins before this one.
        width: u of this bin.
        bottom: Sum of v over the bins before this one.
        slope: ρ of this bin, so that its height is width · slope.
        slope_before: ρ of the bin before; at the first one its own, or on a circle the last one's.
        slope_after: ρ of the bin after; at the last one its own, or on a circle the first one's.
        total_width: U.
        total_height: V.
        index: k, int64.
    """

    left: Tensor
    width: Tensor
    bottom: Tensor
    slope: Tensor
    slope_before: Tensor
    slope_after: Tensor
    total_width: Tensor
    total_height: Tensor
    index: Tensor


def find_bin(s: Tensor, t: Tensor, *, floors: tuple[float, float], circular: bool = False, by_height: bool = False) -> Bin:
    """The bin of every point.

    Args:
        s: Sigmoids, shape (2K, F, B).
        t: Where the points lie in the box, 0 … 1, shape (F, B). Only the index depends on it, so it gets no gradient.
        floors: ε_w and ε_s.
        circular: Whether the last bin is before the first one.
        by_height: Find the bin on the axis of the heights, as the inverse of the spline needs.
    """
    # The compiler fuses the plain operations itself, and would drop the rule for forward derivatives without a word; cards run few large
    # kernels faster than many small ones.
    if torch.compiler.is_compiling() or s.device.type != "cpu":
        return find_bin_plainly(s, t, floors=floors, circular=circular, by_height=by_height)
    *found, index = _FindBin.apply(s, t.detach(), floors, circular, by_height)
    return Bin(*found, index)


def find_bin_plainly(s: Tensor, t: Tensor, *, floors: tuple[float, float], circular: bool = False, by_height: bool = False) -> Bin:
    """`find_bin` in operations that differentiate themselves: the reference, and what is compiled."""
    bins = len(s) // 2
    u, rho = s[:bins] + floors[0], s[bins:] + floors[1]
    v = u * rho
    sums_u, sums_v = torch.cumsum(u, 0), torch.cumsum(v, 0)
    searched = (sums_v if by_height else sums_u).detach()
    index = (searched[:-1] < t.detach() * searched[-1]).sum(0)
    return _gathered(u, rho, sums_u, sums_v, index, circular=circular)


def _gathered(u: Tensor, rho: Tensor, sums_u: Tensor, sums_v: Tensor, index: Tensor, *, circular: bool) -> Bin:
    before, after = neighbours(index, len(u), circular=circular)
    first = index == 0
    left, bottom = (torch.where(first, 0.0, at(sums, (index - 1).clamp_min(0))) for sums in (sums_u, sums_v))
    return Bin(left, at(u, index), bottom, at(rho, index), at(rho, before), at(rho, after), sums_u[-1], sums_v[-1], index)


def at(values: Tensor, index: Tensor) -> Tensor:
    """The entries of values (K, F, B) at index (F, B)."""
    return torch.gather(values, 0, index.unsqueeze(0)).squeeze(0)


def neighbours(index: Tensor, bins: int, *, circular: bool) -> tuple[Tensor, Tensor]:
    """Indices of the bins before and after; the ends of a line are their own neighbours."""
    if circular:
        return torch.where(index == 0, bins - 1, index - 1), torch.where(index == bins - 1, 0, index + 1)
    return (index - 1).clamp_min(0), (index + 1).clamp_max(bins - 1)


class _FindBin(torch.autograd.Function):
    """`find_bin` for the processor: one sweep over the bins forwards, one backwards, and nothing of size K kept but s itself.

    Comparisons are done in floating point, c = clamp(BIG · (t − edge), 0, 1): vectorised arithmetic is several times faster than boolean masks.
    """

    @staticmethod
    def forward(s: Tensor, t: Tensor, floors: tuple[float, float], circular: bool, by_height: bool) -> tuple[Tensor, ...]:  # noqa: FBT001
        bins = len(s) // 2
        u, rho = s[:bins] + floors[0], s[bins:] + floors[1]
        v = u * rho
        total_u, total_v = u.sum(0), v.sum(0)
        searched, target = (v, t * total_v) if by_height else (u, t * total_u)
        left, bottom, edge = torch.zeros_like(target), torch.zeros_like(target), torch.zeros_like(target)
        place, passed = torch.zeros_like(target), torch.empty_like(target)
        for k in range(bins - 1):
            edge.add_(searched[k])
            # 1 where the point lies beyond this bin; the smallest difference of two numbers near `edge` times BIG is still above 1.
            torch.sub(target, edge, out=passed).mul_(_BIG).clamp_(0, 1)
            place.add_(passed)
            left.addcmul_(passed, u[k])
            bottom.addcmul_(passed, v[k])
        # NaN has no bin: it takes the first one and stays NaN in the point's coordinate.
        index = place.long().clamp_(0, bins - 1)
        before, after = neighbours(index, bins, circular=circular)
        return left, at(u, index), bottom, at(rho, index), at(rho, before), at(rho, after), total_u, total_v, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        s, _, ctx.floors, ctx.circular, _ = inputs
        index = output[-1]
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(s, index)
        ctx.save_for_forward(s, index)
        ctx.set_materialize_grads(True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        s, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Somebody differentiates this gradient: in operations that know their own.
            return _pull(s, index, grads[:-1], ctx.floors, circular=ctx.circular), None, None, None, None
        return _swept(s, index, grads[:-1], ctx.floors, circular=ctx.circular), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        s, index = ctx.saved_tensors
        bins = len(s) // 2
        u, rho = s[:bins] + ctx.floors[0], s[bins:] + ctx.floors[1]
        du, drho = ds[:bins], ds[bins:]
        dv = du * rho + u * drho
        pushed = _gathered(du, drho, torch.cumsum(du, 0), torch.cumsum(dv, 0), index, circular=ctx.circular)
        return *pushed[:-1], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], s: Tensor, t: Tensor, *settings: Any) -> tuple[Any, Any]:
        """Points do not see each other, so that a mapped axis is but more of them."""
        s, t = (
            value.unsqueeze(-2).expand(*value.shape[:-1], info.batch_size, value.shape[-1]) if dim is None else value.movedim(dim, -2)
            for value, dim in zip((s, t), in_dims)
        )
        rows = s.shape[-1]
        found = _FindBin.apply(s.flatten(-2), t.flatten(-2), *settings)
        return tuple(value.unflatten(-1, (info.batch_size, rows)) for value in found), tuple(-2 for _ in found)


_BIG = 1e30


def _pull(s: Tensor, index: Tensor, grads: tuple[Tensor, ...], floors: tuple[float, float], *, circular: bool) -> Tensor:
    """The transposed derivative of `_gathered` in s."""
    left, width, bottom, slope, slope_before, slope_after, total_u, total_v = grads
    bins = len(s) // 2
    u, rho = s[:bins] + floors[0], s[bins:] + floors[1]
    k = torch.arange(bins, device=s.device).view(-1, *(1,) * index.ndim)
    before, after = neighbours(index, bins, circular=circular)
    passed, here = (k < index).to(s.dtype), (k == index).to(s.dtype)
    dv = total_v + bottom * passed
    du = total_u + left * passed + width * here + rho * dv
    drho = u * dv + slope * here + slope_before * (k == before) + slope_after * (k == after)
    return torch.cat([du, drho])


def _swept(s: Tensor, index: Tensor, grads: tuple[Tensor, ...], floors: tuple[float, float], *, circular: bool) -> Tensor:
    """The same as `_pull`, in place and without tensors of size K."""
    left, width, bottom, slope, slope_before, slope_after, total_u, total_v = grads
    bins = len(s) // 2
    out = torch.empty_like(s)
    du, drho = out[:bins], out[bins:]
    place = index.to(s.dtype)
    passed, dv, factor = torch.empty_like(place), torch.empty_like(place), torch.empty_like(place)
    for k in range(bins):
        torch.sub(place, k, out=passed).clamp_(0, 1)
        torch.addcmul(total_v, bottom, passed, out=dv)
        torch.addcmul(total_u, left, passed, out=du[k])
        du[k].addcmul_(torch.add(s[bins + k], floors[1], out=factor), dv)
        torch.mul(torch.add(s[k], floors[0], out=factor), dv, out=drho[k])
    before, after = neighbours(index, bins, circular=circular)
    for where, gradient, target in ((index, width, du), (index, slope, drho), (before, slope_before, drho), (after, slope_after, drho)):
        target.scatter_add_(0, where.unsqueeze(0), gradient.unsqueeze(0))
    return out
