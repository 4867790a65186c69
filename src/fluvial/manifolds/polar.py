"""The nearest rotation of a matrix, with derivatives that do not see the order of its singular values."""

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
    derivatives up to the third.
    """
    polar = _decompose(x)
    if not (torch.is_grad_enabled() and x.requires_grad) and torch._C._functorch.maybe_current_level() is None:
        return polar.rotation
    r = polar.rotation
    for _ in range(3):
        rx = r.transpose(-1, -2) @ x
        omega = _solve(polar, rx - rx.transpose(-1, -2))
        square = omega @ omega
        r = r + r @ (omega + square / 2 + omega @ square / 6)
    return r


def polar_dual(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices x and directions t (K, *x.shape) -> R and its derivatives RΩ, SΩ + ΩS = Rᵀt − tᵀR."""
    polar = _decompose(x)
    r = polar_factor(x)
    s = r.transpose(-1, -2) @ x
    s = (s + s.transpose(-1, -2)) / 2
    rt = r.transpose(-1, -2) @ t
    right = rt - rt.transpose(-1, -2)
    omega = _solve(polar, right)
    if torch.is_grad_enabled() and (s.requires_grad or right.requires_grad) or torch._C._functorch.maybe_current_level() is not None:
        # Zero in value; each correction is one more derivative of S.
        for _ in range(2):
            omega = omega + _solve(polar, right - s @ omega - omega @ s)
    return r, r @ omega


def _decompose(x: Tensor) -> _Polar:
    u, sigma, vh = torch.linalg.svd(x.detach())
    sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(x.dtype)
    signs = torch.cat([torch.ones_like(sigma[..., 1:]), sign.unsqueeze(-1)], -1)
    return _Polar(u * signs.unsqueeze(-2) @ vh, vh.transpose(-1, -2), sigma * signs)


def _solve(polar: _Polar, right: Tensor) -> Tensor:
    """The skew Ω with S₀Ω + ΩS₀ = right."""
    v, values = polar.vectors, polar.values
    sums = values.unsqueeze(-1) + values.unsqueeze(-2)
    # Where two singular values cancel the nearest rotation jumps: a large derivative stands for none.
    floor = 1e-6 * values[..., :1].abs().unsqueeze(-1) + torch.finfo(values.dtype).tiny ** 0.25
    return v @ ((v.transpose(-1, -2) @ right @ v) / torch.maximum(sums, floor)) @ v.transpose(-1, -2)


def square_root(r: Tensor) -> Tensor:
    """The rotation by half of every angle: R + 1 is it times a symmetric matrix."""
    return polar_factor(r + torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))
