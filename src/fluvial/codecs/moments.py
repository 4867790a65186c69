"""Mean and covariance of weighted rows, in double precision."""

import torch
from torch import Tensor


def checked_rows(name: str, x: Tensor, event_shape: tuple[int, ...], weight: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Data (n, \*event) as vectors (n, d), and the share of each row, float64 of sum 1.

    Raises:
        ValueError: If there are no rows, the event shape is another, a number is not finite, or the weights are not weights.
    """
    if x.shape[1:] != event_shape or len(x) == 0:
        raise ValueError(f"{name}: expected data of shape (n, {', '.join(map(str, event_shape))}) with n ≥ 1, got {tuple(x.shape)}")
    flat = x.flatten(1)
    bad = (~torch.isfinite(flat)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(f"{name}: row {row}, coordinate {column} is {flat[row, column].item()}; leave out rows that are not finite")
    if weight is None:
        return flat, torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
    share = weight.to(torch.float64)
    if share.shape != (len(x),) or not bool((share >= 0).all()) or not bool(torch.isfinite(share).all()) or not bool(share.sum() > 0):
        raise ValueError(f"{name}: weight must be {len(x)} finite numbers, none negative and not all 0, got a tensor of shape {tuple(weight.shape)}")
    return flat, share / share.sum()


def mean_and_covariance(rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of rows (n, d), float64; a few rows at a time, so that memory does not double."""
    size = max(1, 2**22 // rows.shape[1])
    pieces = list(zip(rows.split(size), share.split(size)))
    # Counted from the first row, so that a constant coordinate has a spread of exactly 0.
    first = rows[0].to(torch.float64)
    mean = first + sum(part @ (piece.to(torch.float64) - first) for piece, part in pieces)
    covariance = first.new_zeros(len(first), len(first))
    for piece, part in pieces:
        off = piece.to(torch.float64) - mean
        covariance += off.T @ (part.unsqueeze(1) * off)
    return mean, covariance


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) in decreasing order and the orthonormal axes (d, d) they belong to, as columns.

    Signs are made certain: of each axis the first entry at least half as large as its largest is positive.
    """
    variances, axes = torch.linalg.eigh(covariance)
    variances, order = variances.sort(descending=True, stable=True)
    axes = axes[:, order]
    large = (axes.abs() >= 0.5 * axes.abs().amax(0)).to(torch.int8)
    leading = axes.gather(0, large.argmax(0, keepdim=True))
    return variances, axes * torch.where(leading < 0, -1.0, 1.0)
