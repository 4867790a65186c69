"""Kernel density estimates: what a flow must beat."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fluvial.manifolds import Euclidean, Manifold, Sphere, Torus
from fluvial.metrics.estimate import Estimate, mean_estimate

# Concentrations κ of the kernels on spheres and tori (κ = 3000: a standard deviation of one degree of arc), and widths of Gaussian
# kernels in units of each column's standard deviation. On tori of many angles the best kernels are broad.
CONCENTRATIONS = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
TORUS_CONCENTRATIONS = (1.0, 3.0, *CONCENTRATIONS)
WIDTHS = tuple(10 ** (-2.5 + k / 8) for k in range(21))
DISTANCES_AT_A_TIME = 2**22


class KernelDensity:
    r"""One kernel on every point: Gaussian in flat space, von Mises–Fisher on a sphere, a product of von Mises kernels on a torus.

    .. math:: p(x) = \sum_i w_i\, k_h(x, x_i), \qquad
              k_h = \prod_j \mathcal{N}(x_j;\, x_{ij},\, h^2 \sigma_j^2) \quad\text{or}\quad
              k_\kappa = \frac{\kappa^{p/2 - 1}}{(2\pi)^{p/2} I_{p/2 - 1}(\kappa)}\, e^{\kappa \langle x, x_i\rangle},\; p = n + 1
              \quad\text{or}\quad \prod_j \frac{e^{\kappa \cos(\varphi_j - \varphi_{ij})}}{2\pi I_0(\kappa)}

    Everything is computed in float64, in chunks.

    Args:
        points: Shape (m, \*event).
        bandwidth: Width h in units of the standard deviations σ of the columns of points; on a sphere or torus
            the concentration κ (larger is narrower).
        manifold: `Euclidean`, `Sphere` or `Torus`; default flat space.
        weight: Weights of the points, shape (m,), or None.

    Raises:
        ValueError: If the bandwidth is not positive, the shape does not fit the manifold, or a column of points is constant.
        TypeError: If the manifold has no kernel here.

    Example:
        >>> north = torch.tensor([[0.0, 0.0, 1.0]])
        >>> float(KernelDensity(north, 1e-9, Sphere(2)).log_prob(-north)) + math.log(4 * math.pi) < 1e-6
        True
    """

    def __init__(self, points: Tensor, bandwidth: float, manifold: Manifold | None = None, *, weight: Tensor | None = None) -> None:
        if not bandwidth > 0:
            raise ValueError(f"KernelDensity: expected a positive bandwidth, got {bandwidth}")
        self.bandwidth = float(bandwidth)
        self.manifold = Euclidean(tuple(points.shape[1:])) if manifold is None else manifold
        if points.shape[1:] != self.manifold.event_shape or len(points) == 0:
            raise ValueError(
                f"KernelDensity: expected points of shape (m, {', '.join(map(str, self.manifold.event_shape))}), got {tuple(points.shape)}"
            )
        self._points, self._scale = _flat(points), torch.ones(1, dtype=torch.float64)
        if isinstance(self.manifold, Euclidean):
            self._scale = self._points.std(0, correction=0)
            if not bool((self._scale > 0).all()):
                raise ValueError(f"KernelDensity: column {int((self._scale <= 0).nonzero()[0])} is constant and has no density; leave it out")
        elif not isinstance(self.manifold, Sphere | Torus):
            raise TypeError(f"KernelDensity: kernels exist on Euclidean space, spheres and tori, got {self.manifold}")
        w = torch.ones(len(points), dtype=torch.float64) if weight is None else weight.detach().to("cpu", torch.float64)
        self._log_weight = torch.log(w / w.sum())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density at x of shape (n, \*event) with respect to Riemannian volume, float64, shape (n,)."""
        return self.log_probs(x, [self.bandwidth])[0]

    def log_probs(self, x: Tensor, bandwidths: Sequence[float]) -> Tensor:
        r"""Log-densities for several bandwidths at the cost of one set of distances, shape (bandwidths, n)."""
        points, flat = self._points / self._scale, _flat(x) / self._scale
        rows = max(1, DISTANCES_AT_A_TIME // len(points))
        square, dim = points.square().sum(1), self.manifold.dim
        out = torch.empty(len(bandwidths), len(flat), dtype=torch.float64)
        for start in range(0, len(flat), rows):
            chunk = flat[start : start + rows]
            # −½|x − y|²; on the unit sphere that is ⟨x, y⟩ − 1, on a torus Σ (cos Δ_j − 1).
            exponent = torch.addmm(-(square + chunk.square().sum(1, keepdim=True)) / 2, chunk, points.T).clamp_max_(0)
            for k, width in enumerate(bandwidths):
                precision = 1 / width**2 if isinstance(self.manifold, Euclidean) else width
                out[k, start : start + rows] = torch.logsumexp(self._log_weight + precision * exponent, 1)
        if isinstance(self.manifold, Sphere):
            log_height = [_log_vmf_height(dim, kappa) for kappa in bandwidths]
        elif isinstance(self.manifold, Torus):
            log_height = [dim * _log_vmf_height(1, kappa) for kappa in bandwidths]
        else:
            log_height = [-dim * (math.log(h) + math.log(2 * math.pi) / 2) - float(self._scale.log().sum()) for h in bandwidths]
        return out + torch.tensor(log_height, dtype=torch.float64).unsqueeze(1)


def kernel_density_nll(
    train: Tensor,
    validation: Tensor,
    test: Tensor,
    manifold: Manifold | None = None,
    *,
    bandwidths: Sequence[float] | None = None,
    weight: Tensor | None = None,
    validation_weight: Tensor | None = None,
    test_weight: Tensor | None = None,
) -> tuple[Estimate, float]:
    r"""Test NLL of a kernel density estimate on the training split whose bandwidth is the best of a grid on the validation split.

    Args:
        train: Shape (n, \*event).
        validation: Shape (m, \*event).
        test: Shape (k, \*event).
        manifold: `Euclidean` (default), `Sphere` or `Torus`.
        bandwidths: The grid; default ``CONCENTRATIONS`` (10 … 10⁵) on spheres, ``TORUS_CONCENTRATIONS`` (1 … 10⁵) on tori,
            ``WIDTHS`` (0.003 … 1) in flat space.
        weight: Weights of the training rows, or None.
        validation_weight: Weights of the validation rows, or None.
        test_weight: Weights of the test rows, or None.

    Returns:
        The test NLL in nats, and the bandwidth.

    Example:
        >>> x = torch.randn(600, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> estimate, bandwidth = kernel_density_nll(x[:400], x[400:500], x[500:])
        >>> abs(estimate.value - 1.4189) < 0.15
        True
    """
    if bandwidths is None:
        bandwidths = CONCENTRATIONS if isinstance(manifold, Sphere) else TORUS_CONCENTRATIONS if isinstance(manifold, Torus) else WIDTHS
    density = KernelDensity(train, bandwidths[0], manifold, weight=weight)
    validations = [mean_estimate(-row, validation_weight).value for row in density.log_probs(validation, bandwidths)]
    best = min(range(len(bandwidths)), key=validations.__getitem__)
    return mean_estimate(-density.log_probs(test, [bandwidths[best]])[0], test_weight), bandwidths[best]


def _flat(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64).flatten(1)


def _log_vmf_height(n: int, kappa: float) -> float:
    """Log-density of a von Mises–Fisher distribution on Sⁿ at its mode."""
    if n == 2:
        return math.log(kappa / (2 * math.pi)) - math.log(-math.expm1(-2 * kappa))
    from scipy.special import ive

    order = (n - 1) / 2
    return order * math.log(kappa) - (n + 1) / 2 * math.log(2 * math.pi) - math.log(ive(order, kappa))
