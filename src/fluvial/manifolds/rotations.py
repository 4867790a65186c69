"""Rotations of space as matrices, quaternions and rotation vectors."""

from typing import Any

import torch
from torch import Tensor

from fluvial.manifolds.polar import polar_factor, square_root


def matrix_from_quaternion(q: Any, *, scalar_first: bool = False) -> Tensor:
    r"""Quaternions (\*batch, 4) of any length but 0 -> rotation matrices (\*batch, 3, 3)."""
    q = _entries(q, 4, "quaternion")
    # Divided by the largest entry, which changes no rotation, squares neither overflow nor vanish.
    q = q / q.detach().abs().amax(-1, keepdim=True)
    w, x, y, z = (q if scalar_first else q.roll(1, -1)).unbind(-1)
    s = 2 / q.square().sum(-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)),
        (s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)),
        (s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternion_from_matrix(r: Tensor, *, scalar_first: bool = False) -> Tensor:
    r"""Rotation matrices (\*batch, 3, 3) -> unit quaternions (\*batch, 4) with w ≥ 0."""
    if r.shape[-2:] != (3, 3):
        raise ValueError(f"to_quaternion: expected rotations of shape (*batch, 3, 3), got {tuple(r.shape)}")
    a, b, c = r.diagonal(dim1=-2, dim2=-1).unbind(-1)
    xy, xz, yz = r[..., 1, 0] + r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0], r[..., 2, 1] + r[..., 1, 2]
    wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    # 4 q qᵀ in the order w, x, y, z: every row is a multiple of q, and the longest loses no digits.
    outer = torch.stack(
        [
            torch.stack([1 + a + b + c, wx, wy, wz], -1),
            torch.stack([wx, 1 + a - b - c, xy, xz], -1),
            torch.stack([wy, xy, 1 - a + b - c, yz], -1),
            torch.stack([wz, xz, yz, 1 - a - b + c], -1),
        ],
        -2,
    )
    longest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = outer.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 4)).squeeze(-2)
    q = torch.nn.functional.normalize(q, dim=-1)
    q = torch.where(q[..., :1] < 0, -q, q)
    return q if scalar_first else q.roll(-1, -1)


def matrix_from_rotation_vector(v: Any) -> Tensor:
    r"""Axis times angle in radians (\*batch, 3) -> rotation matrices (\*batch, 3, 3), by Rodrigues' formula."""
    v = _entries(v, 3, "rotation vector")
    square = v.square().sum(-1)
    small = square < 1e-12 if v.dtype == torch.float64 else square < 1e-6
    angle = torch.sqrt(torch.where(small, 1.0, square))
    # sin θ/θ and (1 − cos θ)/θ², with two terms of their series where θ is small.
    first = torch.where(small, 1 - square / 6, torch.sin(angle) / angle)
    second = torch.where(small, 0.5 - square / 24, 2 * (torch.sin(angle / 2) / angle).square())
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return eye + first[..., None, None] * skew + second[..., None, None] * (skew @ skew)


def rotation_vector_from_matrix(r: Tensor) -> Tensor:
    r"""Rotation matrices (\*batch, 3, 3) -> axis times angle, the angle within [0, π], shape (\*batch, 3)."""
    q = quaternion_from_matrix(r)
    v, w = q[..., :3], q[..., 3]
    square = v.square().sum(-1)
    small = square < 1e-12 if r.dtype == torch.float64 else square < 1e-7
    sine = torch.sqrt(torch.where(small, 1.0, square))
    # θ / sin(θ/2), with θ = 2 asin s = 2s + s³/3 + … where it is small.
    scale = torch.where(small, 2 + square / 3, 2 * torch.atan2(sine, w) / sine)
    return scale.unsqueeze(-1) * v


def log_rotation(r: Tensor) -> Tensor:
    r"""The skew logarithm of rotations of any size (\*batch, n, n); where an angle is π, one of several, or a finite matrix near one."""
    n = r.shape[-1]
    if n == 2:
        angle = torch.atan2(r[..., 1, 0] - r[..., 0, 1], r[..., 0, 0] + r[..., 1, 1])
        zero = torch.zeros_like(angle)
        return torch.stack([zero, -angle, angle, zero], -1).unflatten(-1, (2, 2))
    if n == 3:
        x, y, z = rotation_vector_from_matrix(r).unbind(-1)
        zero = torch.zeros_like(x)
        return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    # Halved four times, no angle exceeds π/16; then log R = 2 artanh K with K = (R − 1)(R + 1)⁻¹, |K| ≤ tan(π/32).
    dtype = r.dtype
    # In single precision rounding would leave nothing of a plane that is turned by nearly π.
    r = _off_half_turns(r if dtype == torch.float64 or r.device.type == "mps" else polar_factor(r.double()))
    for _ in range(4):
        r = square_root(r)
    eye = torch.eye(n, dtype=r.dtype, device=r.device)
    k = torch.linalg.solve(r + eye, r - eye, left=False)
    k = (k - k.transpose(-1, -2)) / 2
    square, term, total = k @ k, k, k
    for odd in range(3, 19, 2):
        term = term @ square
        total = total + term / odd
    return 32 * total.to(dtype)


def _off_half_turns(r: Tensor) -> Tensor:
    """Rotations with an angle of π, of which R + 1 sees no axis, turned a little further, always in the same way; others as they are."""
    n = r.shape[-1]
    little = 1e-6 if r.dtype == torch.float64 else 1e-3
    eye = torch.eye(n, dtype=r.dtype, device=r.device)
    half_turn = torch.linalg.svdvals((r + eye).detach())[..., -1] < little / 10
    # A skew matrix as irregular as a random one, which leaves no plane of use unturned.
    i = torch.arange(1, n + 1, dtype=r.dtype, device=r.device)
    a = torch.sin(i.square().unsqueeze(-1) * i + 2.7 * i)
    return torch.where(half_turn[..., None, None], r @ torch.linalg.matrix_exp(little * (a - a.T)), r)


def _entries(values: Any, length: int, what: str) -> Tensor:
    # A copy of arrays, which may be read-only, as those of data frames are.
    values = values if isinstance(values, Tensor) else torch.tensor(values)
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    if values.ndim < 1 or values.shape[-1] != length:
        raise ValueError(f"{what}: expected shape (*batch, {length}), got {tuple(values.shape)}")
    if length == 4 and not torch._C._functorch.maybe_current_level() and bool((values == 0).all(-1).any()):
        raise ValueError("quaternion: one is 0 and stands for no rotation")
    return values
