"""Bumps on the sphere."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.bases.base import Base, count, sample_shape
from fluvial.conditions import Condition
from fluvial.manifolds import Sphere


class VonMisesFisherMixture(Base):
    r"""A learnable mixture of von Mises–Fisher distributions on the sphere Sⁿ.

    .. math:: p(z) = \sum_k \pi_k\, C_n(\kappa_k)\, e^{\kappa_k \langle\mu_k, z\rangle}

    Args:
        manifold: A `Sphere`.
        components: Number of components.
        concentration: κ of every component at the start; default √2·K, broad bumps that together cover the sphere.
        learnable: Train means, concentrations and weights together with the flow.
        seed: Of the means at the start, which are uniform on the sphere.

    Raises:
        TypeError: If the manifold is not a sphere.
        ValueError: If components or concentration are not positive.

    References:
        Sorrenson, Draxler, Rousselot, Hummerich, Köthe (2023), "Learning distributions on manifolds with free-form flows", arXiv:2312.09852
        (base of the earth data). Wood (1994), "Simulation of the von Mises Fisher distribution" (the rejection sampler).

    Example:
        >>> base = VonMisesFisherMixture(Sphere(2), components=4)
        >>> base.sample(3).shape, base.log_prob(base.sample(3)).shape
        (torch.Size([3, 3]), torch.Size([3]))
    """

    def __init__(self, manifold: Sphere, *, components: int = 8, concentration: float | None = None, learnable: bool = True, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(manifold, Sphere):
            raise TypeError(f"VonMisesFisherMixture: manifold must be a Sphere, got {manifold}")
        kappa = math.sqrt(2) * components if concentration is None else concentration
        if components < 1 or not kappa > 0:
            raise ValueError(f"VonMisesFisherMixture: components and concentration must be positive, got {components} and {concentration}")
        self.manifold = manifold
        self.components = components
        self.concentration = concentration
        self.learnable = learnable
        # Drawing chooses a component and rejects: fixed ones need no gradient, learnable ones get none.
        self.has_rsample = not learnable
        self.seed = seed
        means = manifold.random_uniform(components, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # The mean's direction counts, not its length.
        self.means = nn.Parameter(means.to(torch.get_default_dtype()), requires_grad=learnable)
        self.log_kappa = nn.Parameter(torch.full((components,), math.log(kappa)), requires_grad=learnable)
        self.logits = nn.Parameter(torch.zeros(components), requires_grad=learnable)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of unit vectors z (\*batch, n + 1), shape (\*batch,)."""
        kappa = self.log_kappa.exp()
        cosine = z @ self.manifold.project(self.means).T
        # log C + κ is what log_normaliser returns, so that the exponent κ(cos − 1) never overflows.
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + log_normaliser(kappa, self.manifold.dim) + kappa * (cosine - 1), -1)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), n + 1), without gradient."""
        shape = sample_shape(n, c)
        total = count(shape)
        k = torch.multinomial(self.logits.softmax(0), total, replacement=True, generator=generator) if total else torch.zeros(0, dtype=torch.long)
        mean = self.manifold.project(self.means)[k]
        cosine = _sample_cosine(self.log_kappa.exp()[k], self.manifold.dim, generator).unsqueeze(-1)
        side = self.manifold.project(
            self.manifold.to_tangent(mean, torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device))
        )
        # Of unit length up to rounding, as its parts are.
        z = torch.addcmul(cosine * mean, (1 - cosine.square()).clamp_min_(0).sqrt_(), side)
        return z.view(*shape, self.manifold.dim + 1)

    def extra_repr(self) -> str:
        """Manifold and number of components, for repr."""
        return f"{self.manifold}, components={self.components}{'' if self.learnable else ', fixed'}"


def log_normaliser(kappa: Tensor, n: int) -> Tensor:
    r"""Log C_n(κ) + κ of the von Mises–Fisher density C e^{κ⟨μ,z⟩} on Sⁿ, shape of κ."""
    if n == 1:
        return -math.log(2 * math.pi) - torch.log(torch.special.i0e(kappa))
    if n == 2:
        # κ / (4π sinh κ) = κ / (2π (1 − e^{−2κ})) e^{−κ};  κ/(1 − e^{−2κ}) → ½ as κ → 0.
        small = kappa < 1e-4
        safe = torch.where(small, 1.0, kappa)
        return torch.where(small, math.log(0.5) + kappa, torch.log(safe) - torch.log(-torch.expm1(-2 * safe))) - math.log(2 * math.pi)
    # vol(Sⁿ⁻¹) ∫₀^π e^{κ(cos t − 1)} sinⁿ⁻¹t dt by Gauss–Legendre, on 12 standard deviations about the integrand's peak.
    nodes, weights = (torch.as_tensor(a, dtype=kappa.dtype, device=kappa.device) for a in np.polynomial.legendre.leggauss(96))
    k = kappa.detach().unsqueeze(-1)
    cosine = 2 * k / (n - 1 + torch.sqrt((n - 1) ** 2 + 4 * k.square()))  # where κ sin² t = (n − 1) cos t
    peak, width = torch.acos(cosine), torch.rsqrt(k * cosine + (n - 1) / (1 - cosine.square()).clamp_min(1e-12))
    low, high = (peak - 12 * width).clamp_min(0.0), (peak + 12 * width).clamp_max(math.pi)
    t = low + (nodes + 1) / 2 * (high - low)
    integrand = kappa.unsqueeze(-1) * (torch.cos(t) - 1) + (n - 1) * torch.log(torch.sin(t))
    integral = torch.logsumexp(integrand + torch.log(weights / 2 * (high - low)), -1)
    return -integral - math.log(Sphere(n - 1).total_volume)


def _sample_cosine(kappa: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Cosines of the angle to the mean, one for each κ."""
    if n == 2:
        # Inverse distribution function in closed form: cos = 1 + log(1 − u (1 − e^{−2κ})) / κ, with u in [0, 1) as u = 1 is the antipode.
        u = torch.rand(kappa.shape, generator=generator, dtype=kappa.dtype, device=kappa.device)
        return (1 + torch.log1p(u * torch.expm1(-2 * kappa)) / kappa).clamp(-1, 1)
    # Wood (1994): a rejection sampler whose acceptance is above 0.6 for every κ.
    b = n / (torch.sqrt(4 * kappa.square() + n**2) + 2 * kappa)
    x0 = (1 - b) / (1 + b)
    level = kappa * x0 + n * torch.log1p(-x0.square())
    cosine = torch.full_like(kappa, torch.nan)
    left = torch.arange(len(kappa), device=kappa.device)
    while len(left):
        bl, kl = b[left], kappa[left]
        # Beta(n/2, n/2) as a ratio of sums of squares of normals.
        squares = torch.randn(2, len(left), n, generator=generator, dtype=kappa.dtype, device=kappa.device).square().sum(-1)
        beta = squares[0] / squares.sum(0)
        w = (1 - (1 + bl) * beta) / (1 - (1 - bl) * beta)
        u = torch.rand(len(left), generator=generator, dtype=kappa.dtype, device=kappa.device)
        accept = kl * w + n * torch.log1p(-x0[left] * w) - level[left] >= torch.log(u)
        cosine[left[accept]] = w[accept]
        left = left[~accept]
    return cosine
