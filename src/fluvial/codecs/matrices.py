"""Matrix products and solves that keep their digits: the arithmetic of linear codecs."""

import torch
from torch import Tensor


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """X @ matrix in the higher precision of both, in mixed precision too: a map in 16 bits would no longer be the inverse of its inverse."""
    dtype = torch.promote_types(x.dtype, matrix.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(dtype) @ matrix.to(dtype)


def solve(triangle: Tensor, x: Tensor, *, upper: bool) -> Tensor:
    r"""The rows y with T y = x, for a triangular T (n, n) and rows x (\*batch, n)."""
    dtype = torch.promote_types(x.dtype, triangle.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return torch.linalg.solve_triangular(triangle.to(dtype).mT, x.to(dtype), upper=not upper, left=False)


def orthonormal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix of one that is nearly so, by one Newton–Schulz step Q (3 − QᵀQ)/2: an error ε becomes ε²."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return product(matrix, 1.5 * eye - 0.5 * product(matrix.mT, matrix))


def stored_orthonormal(matrix: Tensor, x: Tensor) -> Tensor:
    """An orthogonal matrix from a buffer, for use on x: in double precision it is freed of the rounding of a storage in single precision."""
    dtype = torch.promote_types(x.dtype, matrix.dtype)
    return orthonormal(matrix.to(dtype)) if dtype == torch.float64 else matrix


def random_rotation(features: int, *, seed: int) -> Tensor:
    """A matrix drawn uniformly (Haar) from SO(n), float64, the same for the same seed."""
    gauss = torch.randn(features, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(gauss)
    # Without the signs of R's diagonal the distribution of Q would be an accident of the algorithm.
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    # A fixed reflection takes the other half of O(n) onto SO(n), uniform as before.
    q[:, 0] *= torch.linalg.det(q).sign()
    return q


def checked_orthogonal(name: str, matrix: Tensor, features: int) -> Tensor:
    """An orthogonal matrix (n, n) as it is.

    Raises:
        ValueError: If it is none.
    """
    if matrix.shape != (features, features):
        raise ValueError(f"{name}: expected a matrix of shape ({features}, {features}), got {tuple(matrix.shape)}")
    apart = float((matrix.double() @ matrix.double().mT - torch.eye(features, dtype=torch.float64, device=matrix.device)).abs().max())
    if not apart < 1e-4:
        raise ValueError(f"{name}: the matrix is not orthogonal: its rows' products differ from 0 and 1 by up to {apart:.2g}")
    return matrix
