"""Kernel density estimates: what a flow must beat."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fluvial.manifolds import Euclidean, Manifold, Mesh, Product, Sphere
from fluvial.metrics.estimate import Estimate, mean_estimate
from fluvial.metrics.kernels import kernel_on

# Concentrations κ of the kernels on spheres (κ = 3000: a standard deviation of one degree of arc); on tori and rotations of many dimensions,
# and in hyperbolic space, the best kernels may be broader. Widths of Gaussian kernels are in units of each column's standard deviation.
CONCENTRATIONS = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
BROAD_CONCENTRATIONS = (1.0, 3.0, *CONCENTRATIONS)
WIDTHS = tuple(10 ** (-2.5 + k / 8) for k in range(21))
MESH_WIDTHS = tuple(10 ** (-2.25 + k / 4) for k in range(8))
# Few enough to stay in the cache.
DISTANCES_AT_A_TIME = 2**18


class KernelDensity:
    r"""One kernel on every point: Gaussian in flat space, von Mises–Fisher on a sphere, and what corresponds to them elsewhere.

    .. math:: p(x) = \sum_i w_i\, k_h(x, x_i), \qquad
              k_h = \prod_j \mathcal{N}(x_j;\, x_{ij},\, h^2 \sigma_j^2) \quad\text{or}\quad
              k_\kappa = \frac{\kappa^{p/2 - 1}}{(2\pi)^{p/2} I_{p/2 - 1}(\kappa)}\, e^{\kappa \langle x, x_i\rangle},\; p = n + 1
              \quad\text{or}\quad \prod_j \frac{e^{\kappa \cos(\varphi_j - \varphi_{ij})}}{2\pi I_0(\kappa)}

    Rotations by an angle θ from each other have exp(κ cos θ) / 8π² (I₀(κ) − I₁(κ)), points of hyperbolic space at a distance d
    exp(−κ (cosh d − 1)), normalised by κ/2π in the plane and by Bessel functions elsewhere. On a mesh the kernel is a Gaussian of the chord,
    an approximation of the heat kernel, normalised around every point by quadrature over the faces. On a product it is the product of the
    factors' kernels, with one relative width for all of them. Everything is computed in float64, in chunks.

    Args:
        points: Shape (m, \*event).
        bandwidth: In flat space the width h in units of the standard deviations σ of the columns of points, on products in units of the
            spread of the points in each factor (root mean square distance over √2, per dimension), on a mesh in units of the root of its
            area; on spheres, tori, rotations and hyperbolic space the concentration κ (larger is narrower).
        manifold: Where the points lie; default flat space.
        weight: Weights of the points, shape (m,), or None.

    Raises:
        ValueError: If the bandwidth is not positive, the shape does not fit the manifold, or the points do not spread in some direction.
        TypeError: If the manifold has no kernel here: SO(n) beyond n = 3, and manifolds known by a projection only.

    Example:
        >>> import math
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
        self._points = _exact(points)
        self._kernel = kernel_on(self.manifold, self._points)
        w = torch.ones(len(points), dtype=torch.float64) if weight is None else weight.detach().to("cpu", torch.float64)
        self._log_weight = torch.log(w / w.sum())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density at x of shape (n, \*event) with respect to Riemannian volume, float64, shape (n,)."""
        return self.log_probs(x, [self.bandwidth])[0]

    def log_probs(self, x: Tensor, bandwidths: Sequence[float]) -> Tensor:
        r"""Log-densities for several bandwidths at the cost of one set of distances, shape (bandwidths, n)."""
        kernel = self._kernel
        points, at = kernel.features(self._points), kernel.features(_exact(x))
        signed = points if kernel.times is None else torch.where(kernel.times, -points, points)
        square, taus = kernel.square(points), [self._tau(width) for width in bandwidths]
        # What stands before the exponential may depend on the point.
        offsets = [self._log_weight + kernel.log_height(tau, self._points) for tau in taus]
        rows = max(1, DISTANCES_AT_A_TIME // len(points))
        out = torch.empty(len(bandwidths), len(at), dtype=torch.float64)
        for start in range(0, len(at), rows):
            chunk = at[start : start + rows]
            # −½|x − y|² in feature space: ⟨x, y⟩ − 1 on the unit sphere, Σ (cos Δ_j − 1) on a torus, 1 − cosh d in hyperbolic space.
            exponent = torch.addmm(-(square + kernel.square(chunk).unsqueeze(1)) / 2, chunk, signed.T).clamp_max_(0)
            for k, (tau, offset) in enumerate(zip(taus, offsets)):
                out[k, start : start + rows] = torch.logsumexp(offset + tau * exponent, 1)
        return out

    def sample(self, n: int, *, bandwidth: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        r"""N independent draws, float64, shape (n, \*event).

        Args:
            n: How many.
            bandwidth: Another one than that of the estimate.
            generator: Source of randomness of the CPU.
        """
        chosen = torch.multinomial(self._log_weight.exp(), n, replacement=True, generator=generator) if n else torch.zeros(0, dtype=torch.long)
        return self._kernel.draw(self._points[chosen], self._tau(self.bandwidth if bandwidth is None else bandwidth), generator)

    @property
    def is_relative(self) -> bool:
        """Whether bandwidths are widths relative to the spread of the points or the size of the space; otherwise they are concentrations."""
        return self._kernel.is_relative

    def _tau(self, bandwidth: float) -> float:
        return 1 / bandwidth**2 if self._kernel.is_relative else bandwidth


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
        manifold: Where the rows lie; default flat space.
        bandwidths: The grid; default `default_bandwidths`.
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
    density, bandwidth = best_kernels(train, validation, manifold, bandwidths=bandwidths, weight=weight, validation_weight=validation_weight)
    return mean_estimate(-density.log_prob(test), test_weight), bandwidth


def best_kernels(
    train: Tensor,
    validation: Tensor,
    manifold: Manifold | None = None,
    *,
    bandwidths: Sequence[float] | None = None,
    weight: Tensor | None = None,
    validation_weight: Tensor | None = None,
) -> tuple[KernelDensity, float]:
    """The kernel density estimate on training rows whose bandwidth gives validation rows the highest likelihood, and that bandwidth.

    Arguments as for `kernel_density_nll`.
    """
    if bandwidths is None:
        bandwidths = default_bandwidths(Euclidean(tuple(train.shape[1:])) if manifold is None else manifold)
    density = KernelDensity(train, bandwidths[0], manifold, weight=weight)
    validations = [mean_estimate(-row, validation_weight).value for row in density.log_probs(validation, bandwidths)]
    density.bandwidth = float(bandwidths[min(range(len(bandwidths)), key=validations.__getitem__)])
    return density, density.bandwidth


def default_bandwidths(manifold: Manifold) -> tuple[float, ...]:
    """A grid of bandwidths for 10³ to 10⁵ points.

    κ is 10 … 10⁵ on spheres, 1 … 10⁵ on tori, rotations and in hyperbolic space; widths are 0.003 … 1 in flat space and on products,
    0.006 … 0.3 on meshes.
    """
    if isinstance(manifold, Euclidean | Product):
        return WIDTHS
    if isinstance(manifold, Mesh):
        return MESH_WIDTHS
    return CONCENTRATIONS if isinstance(manifold, Sphere) else BROAD_CONCENTRATIONS


def _exact(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
