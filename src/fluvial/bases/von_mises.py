"""Bumps on the torus."""

import math

import torch
from torch import Tensor, nn

from fluvial.bases.base import Base, count, sample_shape
from fluvial.conditions import Condition
from fluvial.manifolds import Torus


class VonMises(Base):
    r"""A learnable mixture of products of von Mises distributions on the torus.

    .. math:: p(z) = \sum_m \pi_m \prod_{i=1}^k \frac{e^{\kappa_{mi} \cos(\varphi_i - \mu_{mi})}}{2\pi I_0(\kappa_{mi})}

    Args:
        manifold: A `Torus`.
        components: Number of components.
        concentration: κ of every angle of every component at the start; default components^(2/k), broad bumps that together cover the torus.
        learnable: Train means, concentrations and weights together with the flow.
        seed: Of the means at the start, which are uniform on the torus.

    Raises:
        TypeError: If the manifold is not a torus.
        ValueError: If components or concentration are not positive.

    References:
        Wood (1994), "Simulation of the von Mises Fisher distribution" (the rejection sampler, here for one angle).

    Example:
        >>> base = VonMises(Torus(2), components=4)
        >>> base.sample(3).shape, base.log_prob(base.sample(3)).shape
        (torch.Size([3, 2, 2]), torch.Size([3]))
    """

    def __init__(self, manifold: Torus, *, components: int = 1, concentration: float | None = None, learnable: bool = True, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(manifold, Torus):
            raise TypeError(f"VonMises: manifold must be a Torus, got {manifold}; on spheres use VonMisesFisherMixture, on rotations MatrixFisher")
        if components < 1 or not (concentration is None or 0 < concentration < math.inf):
            raise ValueError(f"VonMises: components and concentration must be positive, got {components} and {concentration}")
        kappa = components ** (2 / manifold.dim) if concentration is None else concentration
        self.manifold = manifold
        self.components = components
        self.concentration = concentration
        self.learnable = learnable
        # Drawing chooses a component and rejects: fixed ones need no gradient, learnable ones get none.
        self.has_rsample = not learnable
        self.seed = seed
        means = manifold.random_uniform(components, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # The directions of the pairs count, not their lengths.
        self.means = nn.Parameter(means.to(torch.get_default_dtype()), requires_grad=learnable)
        self.log_kappa = nn.Parameter(torch.full((components, manifold.dim), math.log(kappa)), requires_grad=learnable)
        self.logits = nn.Parameter(torch.zeros(components), requires_grad=learnable and components > 1)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of pairs of unit length z (\*batch, k, 2), shape (\*batch,)."""
        kappa = self.log_kappa.exp()
        # cos − 1 as half a squared chord keeps its digits for narrow bumps; with the scaled Bessel function nothing overflows.
        chord = (z.unsqueeze(-3) - self.manifold.project(self.means)).square().sum(-1)
        log_p = -0.5 * kappa * chord - torch.log(2 * math.pi * torch.special.i0e(kappa))
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + log_p.sum(-1), -1)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), k, 2), without gradient."""
        shape = sample_shape(n, c)
        total, k = count(shape), self.manifold.dim
        means = self.manifold.to_angles(self.manifold.project(self.means))
        if total:
            chosen = torch.multinomial(self.logits.softmax(0), total, replacement=True, generator=generator)
        else:
            chosen = torch.zeros(0, dtype=torch.long, device=means.device)
        turns = _sample_angle(self.log_kappa.exp()[chosen].flatten(), generator).view(total, k)
        return self.manifold.from_angles(means[chosen] + turns).view(*shape, k, 2)

    def extra_repr(self) -> str:
        """Manifold and number of components, for repr."""
        return f"{self.manifold}, components={self.components}{'' if self.learnable else ', fixed'}"


def _sample_angle(kappa: Tensor, generator: torch.Generator | None) -> Tensor:
    """Angles about 0, one for each κ, by rejection with an acceptance above 0.6 for every κ."""
    b = 1 / (torch.sqrt(4 * kappa.square() + 1) + 2 * kappa)
    x0, gap = (1 - b) / (1 + b), 2 * b / (1 + b)  # gap = 1 − x0
    versine = torch.zeros_like(kappa)
    left = torch.arange(len(kappa), device=kappa.device)
    while len(left):
        squares = torch.randn(2, len(left), generator=generator, dtype=kappa.dtype, device=kappa.device).square()
        beta = squares[0] / squares.sum(0)
        # t = 1 − cos rather than the cosine, which would round small angles off.
        t = 2 * b[left] * beta / (1 - (1 - b[left]) * beta)
        u = 1 - torch.rand(len(left), generator=generator, dtype=kappa.dtype, device=kappa.device)
        level = torch.log((gap[left] + x0[left] * t) / (gap[left] * (1 + x0[left])))
        accept = kappa[left] * (gap[left] - t) + level >= torch.log(u)
        versine[left[accept]] = t[accept]
        left = left[~accept]
    angle = 2 * torch.asin((versine / 2).clamp(0, 1).sqrt())
    sign = torch.randint(2, kappa.shape, generator=generator, device=kappa.device) * 2 - 1
    return angle * sign
