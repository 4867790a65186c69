"""A mixture of Gaussians as an energy: exact samples, exact normalisation, any number of modes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fluvial.bases.base import count, sample_shape
from fluvial.conditions import Condition, batch_shape
from fluvial.energies.energy import Energy
from fluvial.manifolds import Euclidean
from fluvial.manifolds.manifold import normals


class GaussianMixture(Energy):
    r"""A mixture of K Gaussians in ℝⁿ.

    .. math:: E(x) = -\log \sum_k w_k\, N(x;\, \mu_k, \Sigma_k) - \log Z

    Args:
        means: Means μ, shape (K, n).
        scales: Standard deviations: one number, one for each component (K,), or one for each component and coordinate (K, n).
        covariances: Covariances Σ, shape (K, n, n), in place of scales.
        weights: Positive weights w of the components, shape (K,), divided by their sum; default equal ones.
        offset: The log Z = log ∫ e^{−E} dx that this energy is to have.

    Raises:
        ValueError: If shapes do not fit, a scale or weight is not positive, a covariance is not positive definite, or a number is not finite,
            or not in single precision.

    Example:
        >>> energy = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], scales=0.5)
        >>> energy(torch.tensor([[2.0, 0.0]])), energy.log_z()
        (tensor([1.1447]), tensor(0.))
    """

    _centre: Tensor
    _factor: Tensor
    _inverse: Tensor
    _log_weight: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        scales: float | Sequence[float] | Sequence[Sequence[float]] | Tensor | None = None,
        *,
        covariances: Sequence[Sequence[Sequence[float]]] | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        centre = _numbers("means", means)
        if centre.ndim != 2 or 0 in centre.shape:
            raise ValueError(f"GaussianMixture: means must have shape (components, dimensions), got {tuple(centre.shape)}")
        modes, n = centre.shape
        factor = _factors(modes, n, scales, covariances)
        share = torch.ones(modes, dtype=torch.float64) if weights is None else _numbers("weights", weights)
        if share.shape != (modes,) or not bool((share > 0).all()):
            raise ValueError(f"GaussianMixture: weights must be {modes} positive numbers, got {_plain(weights)}")
        if not math.isfinite(offset):
            raise ValueError(f"GaussianMixture: offset must be a finite number, got {offset}")
        self.manifold = Euclidean(n)
        self.means, self.scales, self.covariances, self.weights = _plain(means), _plain(scales), _plain(covariances), _plain(weights)
        self.offset = float(offset)
        # Plain numbers are the arguments, so that recipes can say them; what is computed with follows device and dtype.
        inverse = torch.linalg.solve_triangular(factor, torch.eye(n, dtype=torch.float64).expand(modes, n, n), upper=False)
        log_weight = share.log().log_softmax(0)
        _check_single(centre, factor, inverse)
        for name, value in (("_centre", centre), ("_factor", factor), ("_inverse", inverse), ("_log_weight", log_weight)):
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""E of x (\*batch, n), shape (\*batch,)."""
        z = torch.einsum("kij,...kj->...ki", self._inverse, x.unsqueeze(-2) - self._centre)
        # From the rounded numbers themselves, so that the weights sum to 1 and every component integrates to its own in any dtype.
        volume = self._inverse.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * self.manifold.dim * math.log(2 * math.pi)
        return -torch.logsumexp(self._log_weight.log_softmax(0) + volume - 0.5 * z.square().sum(-1), -1) - self.offset

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), n)."""
        shape = sample_shape(n, c)
        if count(shape) == 0:
            return self._centre.new_empty(*shape, self.manifold.dim)
        which = torch.multinomial(self._log_weight.exp(), count(shape), replacement=True, generator=generator)
        z = normals((count(shape), self.manifold.dim), self._centre, generator)
        return (self._centre[which] + (self._factor[which] @ z.unsqueeze(-1)).squeeze(-1)).view(*shape, self.manifold.dim)

    def log_z(self, c: Condition = None) -> Tensor:
        r"""The normalisation asked for, shape (\*batch(c),)."""
        return self._centre.new_full(batch_shape(c), self.offset)

    def extra_repr(self) -> str:
        """Components and dimension, for repr."""
        return f"{len(self.means)} components on {self.manifold}"


def _factors(modes: int, n: int, scales: Any, covariances: Any) -> Tensor:
    """Lower triangular L with Σ = L Lᵀ, shape (K, n, n), float64."""
    if (scales is None) == (covariances is None):
        raise ValueError("GaussianMixture: give either scales or covariances")
    if covariances is not None:
        matrix = _numbers("covariances", covariances)
        if matrix.shape != (modes, n, n) or not torch.allclose(matrix, matrix.mT):
            raise ValueError(f"GaussianMixture: covariances must be {modes} symmetric matrices {n} × {n}, got shape {tuple(matrix.shape)}")
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed.any()):
            raise ValueError(f"GaussianMixture: covariance {int(failed.nonzero()[0])} is not positive definite")
        return factor
    scale = _numbers("scales", scales)
    if scale.shape not in ((), (modes,), (modes, n)) or not bool((scale > 0).all()):
        raise ValueError(f"GaussianMixture: scales must be positive, one number or shape ({modes},) or ({modes}, {n}), got {_plain(scales)}")
    return torch.diag_embed((scale.unsqueeze(-1) if scale.ndim == 1 else scale).expand(modes, n))


def _numbers(what: str, values: Any) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    bad = numbers[~numbers.isfinite()]
    if len(bad):
        raise ValueError(f"GaussianMixture: {what} must be finite numbers, got {bad[0].item()} among them")
    return numbers


def _check_single(centre: Tensor, factor: Tensor, inverse: Tensor) -> None:
    """Refuse what overflows or vanishes in single precision."""
    centre, factor, inverse = centre.float(), factor.float(), inverse.float()
    if not bool(centre.isfinite().all()):
        raise ValueError(f"GaussianMixture: means must be finite in single precision, up to {torch.finfo(torch.float32).max:.1e}; rescale x")
    widths = torch.stack([matrix.diagonal(dim1=1, dim2=2) for matrix in (factor, inverse)])
    if not (bool((widths > 0).all()) and bool(factor.isfinite().all()) and bool(inverse.isfinite().all())):
        raise ValueError("GaussianMixture: standard deviations must be between 1e-38 and 1e38, so that single precision holds them; rescale x")


def _plain(values: Any) -> Any:
    """Tensors and lists as nested tuples of numbers, which is how an argument is kept."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    return tuple(map(_plain, values)) if isinstance(values, list | tuple) else None if values is None else float(values)
