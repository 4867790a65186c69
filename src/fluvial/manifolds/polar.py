"""The nearest rotation of a matrix, with derivatives that do not see the order of its singular values."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Polar(NamedTuple):
    """R₀ = nearest rotation of x, and the eigenvectors V and eigenvalues λ of the symmetric S = R₀ᵀx, all without graph."""

    rotation: Tensor
    vectors: Tensor
    values: Tensor


def polar_factor(x: Tensor) -> Tensor:
    r"""The rotation R that maximises tr(Rᵀx), shape (\*batch, n, n).

    The derivative of a singular value decomposition is not finite where singular values coincide, as they do for rotations; that of R is.
    So R₀ is decomposed without graph, and three steps R ← R exp(Ω), SΩ + ΩS = Rᵀx − xᵀR, which change nothing in value, bring in the
    derivatives up to the third. Never in less than single precision: half the digits would be no rotation, and have no decomposition.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = _single(x)
        return _with_derivatives(_decompose(x), x)


def polar_linearize(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The same, and the map of directions t (K, *x.shape) to its derivatives RΩ, SΩ + ΩS = Rᵀt − tᵀR."""
    with torch.autocast(x.device.type, enabled=False):
        x = _single(x)
        polar = _decompose(x)
        r = _with_derivatives(polar, x)
        s = r.transpose(-1, -2) @ x
        s = (s + s.transpose(-1, -2)) / 2

    def push(t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            rt = r.transpose(-1, -2) @ _single(t)
            right = rt - rt.transpose(-1, -2)
            omega = _solve(polar, right)
            if _followed(s):
                # Zero in value; each correction is one more derivative of S.
                for _ in range(2):
                    change = _solve(polar, right - s @ omega - omega @ s)
                    omega = omega + (change - change.detach())
            return r @ omega

    return r, push


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _with_derivatives(polar: _Polar, x: Tensor) -> Tensor:
    r = polar.rotation
    for _ in range(3 if _followed(x) else 0):
        rx = r.transpose(-1, -2) @ x
        omega = _solve(polar, rx - rx.transpose(-1, -2))
        # 0 but for rounding, which is not worth keeping and large where singular values cancel.
        omega = omega - omega.detach()
        square = omega @ omega
        r = r + r @ (omega + square / 2 + omega @ square / 6)
    return r


def _followed(x: Tensor) -> bool:
    """Whether anybody asks for derivatives: a graph, or a function transform."""
    return (torch.is_grad_enabled() and x.requires_grad) or torch._C._functorch.maybe_current_level() is not None


def _decompose(x: Tensor) -> _Polar:
    x = x.detach()
    bad = ~torch.isfinite(x).all(-1, keepdim=True).all(-2, keepdim=True)
    # LAPACK refuses a whole batch for one NaN.
    u, sigma, vh = torch.linalg.svd(torch.where(bad, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), x))
    sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(x.dtype)
    signs = torch.cat([torch.ones_like(sigma[..., 1:]), sign.unsqueeze(-1)], -1)
    return _Polar(torch.where(bad, torch.nan, u * signs.unsqueeze(-2) @ vh), vh.transpose(-1, -2), sigma * signs)


def _solve(polar: _Polar, right: Tensor) -> Tensor:
    """The skew Ω with S₀Ω + ΩS₀ = right."""
    v, values = polar.vectors, polar.values
    sums = values.unsqueeze(-1) + values.unsqueeze(-2)
    # Where two singular values cancel the nearest rotation jumps: a large derivative stands for none.
    floor = 1e-6 * values[..., :1].abs().unsqueeze(-1) + torch.finfo(values.dtype).tiny ** 0.25
    rotated = v.transpose(-1, -2) @ right @ v
    # Skew to the last bit: on the diagonal rounding would be divided by the floor, again in every step.
    rotated = (rotated - rotated.transpose(-1, -2)) / 2
    return v @ (rotated / torch.maximum(sums, floor)) @ v.transpose(-1, -2)


def square_root(r: Tensor) -> Tensor:
    """The rotation by half of every angle: R + 1 is it times a symmetric matrix."""
    return polar_factor(r + torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))
