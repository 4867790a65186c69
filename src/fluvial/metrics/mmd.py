"""Maximum mean discrepancy."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["gaussian", "multiquadric"]


def squared_mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] | Tensor = (1.0,),
    kernel: Kernel = "gaussian",
    weight: Tensor | None = None,
    paired: Tensor | None = None,
) -> Tensor:
    r"""The estimate of the squared maximum mean discrepancy between two samples without bias; it may be negative.

    .. math:: \mathrm{MMD}^2 = \frac{\sum_{i \ne j} w_i w_j\, k(x_i, x_j)}{\sum_{i \ne j} w_i w_j}
              + \frac{\sum_{i \ne j} v_i v_j\, k(y_i, y_j)}{\sum_{i \ne j} v_i v_j} - 2\, \frac{\sum_{ij} w_i v_j\, k(x_i, y_j)}{\sum_{ij} w_i v_j}

    w are the weights of x. v = 1, but v = w for ``paired`` samples: y_i comes with the coordinates of row i, and counts as much as that row. Weights
    that differ are divided by their own sum, so that the estimate is then unbiased only for many rows.

    k is the mean over the bandwidths h of exp(−d²/2h²) ("gaussian") or of 1/(1 + d²/2h²) ("multiquadric", whose slope reaches farther).

    Args:
        x: Data, shape (n, \*event); the distance is that of the flattened rows.
        y: Samples, shape (m, \*event).
        bandwidths: h, in the units of x.
        kernel: Its form.
        weight: Non-negative weights of the rows of x, shape (n,), or None.
        paired: Further coordinates that row i of x and row i of y have in common (conditions in units of their own kernel width), shape (n, k): the
            kernel is multiplied by exp(−d²/2) of them, and pairs i = j are left out in all three sums, so that joint distributions are compared.

    Returns:
        A scalar, differentiable in x and y.

    Raises:
        ValueError: If shapes do not fit or there are fewer than two rows.

    References:
        Gretton et al. (2012), A kernel two-sample test, JMLR 13, eq. (3).

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0]])
        >>> round(squared_mmd(x, y).item(), 4)  # e^(−1/2) + 1 − (1 + e^(−1/2))
        0.0
    """
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2 or (paired is not None and not len(x) == len(y) == len(paired)):
        raise ValueError(f"squared_mmd: expected two samples of one event shape, at least 2 rows each, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.flatten(1), y.flatten(1)
    widths = torch.as_tensor(bandwidths, dtype=x.dtype, device=x.device).unbind()
    # Near the origin, so that the differences of squares below lose little.
    centre = x.detach().mean(0)
    x, y = x - centre, y - centre
    tilt = None if paired is None else torch.exp(-0.5 * _squared_distances(paired, paired))

    def gram(a: Tensor, b: Tensor) -> Tensor:
        square = _squared_distances(a, b)
        terms = [torch.exp(-square / (2 * h**2)) if kernel == "gaussian" else 1 / (1 + square / (2 * h**2)) for h in widths]
        value = torch.stack(terms).mean(0) if len(terms) > 1 else terms[0]
        return value if tilt is None else value * tilt

    w = x.new_ones(len(x)) if weight is None else weight.to(x)
    data = _off_diagonal(gram(x, x), w, w)
    own = x.new_ones(len(y)) if paired is None else w
    samples = _off_diagonal(gram(y, y), own, own)
    cross = gram(x, y)
    between = _off_diagonal(cross, w, own) if tilt is not None else (w @ cross).sum() / (w.sum() * len(y))
    return data + samples - 2 * between


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * (a @ b.T)).clamp_min(0.0)


def _off_diagonal(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Σ_{i≠j} v_i w_j k_ij / Σ_{i≠j} v_i w_j."""
    diagonal = v * w
    return (v @ k @ w - (diagonal * k.diagonal()).sum()) / (v.sum() * w.sum() - diagonal.sum())
