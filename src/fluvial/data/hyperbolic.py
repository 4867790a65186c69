"""Toys on the hyperbolic plane with known densities, drawn on the Poincaré disc."""

import math

import numpy as np
import torch
from torch import Tensor

from fluvial.data.dataset import Dataset
from fluvial.data.toy import Toy, choice, in_blocks, normal, positive, rotate
from fluvial.data.toys import Checkerboard
from fluvial.manifolds import PoincareBall

DISC = PoincareBall(2)


class OnDisc:
    r"""A distribution in the plane, wrapped onto the Poincaré disc by the exponential map of its centre.

    .. math:: x = \exp_0(v) = \frac{\tanh|v|}{|v|}\,v, \qquad \log p(x) = \log p_\text{plane}(v) - \log\frac{2 \sinh 2|v|}{|v|}

    The plane is the tangent space at the centre in the coordinates of the disc, where the metric is four times the flat one: a point x is 2|v|
    away from the centre. The density is per hyperbolic area, of which 2 sinh(2r)/r is the ratio to the flat area dv; it is 4 at r = 0.

    Args:
        plane: The distribution of v.

    Example:
        >>> truth = OnDisc(PlaneGaussians([(0.0, 0.0)], 0.2))
        >>> at_centre = truth.log_prob(torch.zeros(2)).item()
        >>> round(at_centre + math.log(2 * math.pi * 0.2**2) + math.log(4), 5)
        0.0
    """

    def __init__(self, plane: Toy) -> None:
        self.plane = plane

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density in nats at points x of the disc, shape (\*batch, 2), shape (\*batch,), in the dtype of x; −∞ outside."""

        def wrapped(points: Tensor) -> Tensor:
            radius = points.norm(dim=-1)
            inside = radius < 1
            tangent = torch.atanh(torch.where(inside, radius, 0.5))
            v = points * (tangent / radius.clamp_min(1e-300)).unsqueeze(-1)
            return torch.where(inside, self.plane.log_prob(v) - log_area(tangent), -math.inf)

        return in_blocks(wrapped, x, 8)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points of the disc, shape (n, 2), in torch's default dtype."""
        v = self.plane.sample(n, generator).double()
        return DISC.exp(torch.zeros_like(v), v).to(torch.get_default_dtype())

    def entropy(self) -> tuple[float, float]:
        """Entropy in nats by the midpoint rule in the plane, on a grid of a third of the finest length, and its difference to a coarser grid."""
        fine, coarse = self._entropy(3), self._entropy(2)
        return fine, abs(fine - coarse)

    def _entropy(self, fineness: int) -> float:
        axes, cell = [], 1.0
        for low, high in self.plane.box:
            # A multiple of 4, so that the edges of squares fall between cells.
            count = 4 * math.ceil((high - low) * fineness / self.plane.noise / 4)
            axes.append(low + (high - low) / count * (torch.arange(count, dtype=torch.float64) + 0.5))
            cell *= (high - low) / count
        v = torch.cartesian_prod(*axes)
        log_p = self.plane.log_prob(v)
        return -float((cell * torch.special.xlogy(log_p.exp(), log_p.exp()) - cell * log_p.exp() * log_area(v.norm(dim=-1))).sum())


def log_area(radius: Tensor) -> Tensor:
    """Log of 2 sinh(2r)/r: how much hyperbolic area there is to flat area at tangent vectors of length r at the centre. Shape of r."""
    near = radius < 1e-4
    r = torch.where(near, 1.0, radius)
    # sinh(2r) = e²ʳ (1 − e⁻⁴ʳ)/2 does not overflow.
    return torch.where(near, math.log(4) + 2 * radius.square() / 3, 2 * r + torch.log(-torch.expm1(-4 * r)) - torch.log(r))


class PlaneGaussians(Toy):
    r"""Equal round Gaussians in the plane.

    .. math:: p(v) = \frac1K \sum_k N(v; m_k, \sigma^2 1)

    Args:
        means: Means m, K pairs.
        noise: Standard deviation σ.
    """

    name = "gaussians"

    def __init__(self, means: list[tuple[float, float]], noise: float) -> None:
        self.means, self.noise = means, positive(noise, self.name)
        first, second = ((min(axis) - 8 * noise, max(axis) + 8 * noise) for axis in zip(*means))
        self.box = (first, second)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        means = torch.tensor(self.means, dtype=torch.float64)
        return (means[choice(len(means), n, generator)] + self.noise * normal(n, generator)).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""

        def gaussians(points: Tensor) -> Tensor:
            square = (points.unsqueeze(1) - points.new_tensor(self.means)).square().sum(-1)
            return (-0.5 * square / self.noise**2).logsumexp(-1) - math.log(2 * math.pi * self.noise**2 * len(self.means))

        return in_blocks(gaussians, x, 2 * len(self.means))


class Squares(Toy):
    """The dark squares of a board of 4 × 4 about the origin, uniformly: the `Checkerboard` in another size.

    Args:
        side: Side of a square.
    """

    name = "squares"

    def __init__(self, side: float) -> None:
        self.side = positive(side, self.name)
        # Not a length of the density, which has none: the grid's cell, a 64th of a square.
        self.noise = 3 * side / 64
        self.box = ((-2 * side, 2 * side), (-2 * side, 2 * side))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        column, half = choice(4, n, generator), choice(2, n, generator)
        # A little away from the edges, so that rounding on the disc leaves every point in its square.
        place = 1e-5 + (1 - 2e-5) * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return (self.side * (torch.stack([column, 2 * half + column % 2], -1) + place - 2)).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""−log(8 side²) on the dark squares, −∞ elsewhere, shape (\*batch,)."""
        return Checkerboard().log_prob(x * (2 / self.side)) - 2 * math.log(self.side / 2)


class Bananas(Toy):
    r"""Four bent ridges, each turned by a right angle against the last: together a whirl.

    .. math:: p(v) = \frac14 \sum_{k=1}^4 \frac1Z e^{-E(Q_k^{-1}(v - m_k))/T}, \qquad E(a, b) = (b - a^2)^2 + \kappa b^2

    with κ = 0.08. Z = √(πT/(1 + κ)) · 2 Γ(5/4) s^{-1/4} with s = κ/((1 + κ)T): the density of a is proportional to exp(−s a⁴), and b given a is
    normal about a²/(1 + κ) with variance T/(2(1 + κ)).

    Args:
        offset: Length of m, which points along +x, +y, −x, −y.
        temperature: T.
    """

    name = "bananas"
    bend = 0.08

    def __init__(self, offset: float = 0.6, temperature: float = 0.01) -> None:
        self.offset, self.temperature = offset, positive(temperature, self.name)
        self.noise = math.sqrt(temperature / (2 * (1 + self.bend)))
        self.steepness = self.bend / ((1 + self.bend) * temperature)
        far = (30 / self.steepness) ** 0.25
        reach = abs(offset) + math.hypot(far, far**2 + 8 * self.noise)
        self.box = ((-reach, reach), (-reach, reach))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        k, sign, noise = choice(4, n, generator), 2 * choice(2, n, generator) - 1, normal(n, generator)[:, 0]
        # a⁴ s is Gamma distributed of shape 1/4, which torch draws only without a generator.
        seed = int(torch.randint(2**62, (), generator=generator))
        a = sign * (torch.from_numpy(np.random.default_rng(seed).standard_gamma(0.25, n)) / self.steepness) ** 0.25
        b = a.square() / (1 + self.bend) + self.noise * noise
        places, angles = self._poses()
        return (rotate(torch.stack([a, b], -1), angles[k]) + places[k]).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""
        log_z = 0.5 * math.log(math.pi * self.temperature / (1 + self.bend)) + math.log(2) + math.lgamma(1.25) - 0.25 * math.log(self.steepness)

        def ridges(points: Tensor) -> Tensor:
            places, angles = (part.to(points.device) for part in self._poses())
            a, b = rotate(points.unsqueeze(1) - places, (-angles).expand(len(points), 4)).unbind(-1)
            energy = (b - a.square()).square() + self.bend * b.square()
            return (-energy / self.temperature).logsumexp(-1) - log_z - math.log(4)

        return in_blocks(ridges, x, 32)

    def _poses(self) -> tuple[Tensor, Tensor]:
        """The places m (4, 2), and the angles (4,) by which the ridges are turned."""
        quarter = torch.arange(4, dtype=torch.float64) * (math.pi / 2)
        return self.offset * torch.stack([quarter.cos(), quarter.sin()], -1), quarter - math.pi / 5 - math.pi / 2


def hyperbolic_gaussian(n: int = 100_000, *, seed: int = 0) -> Dataset:
    """One Gaussian of s.d. 0.3 about (−0.6, 0.6), wrapped onto the Poincaré disc as `OnDisc` says; the entropy is 2.343 nats.

    This and the other hyperbolic toys live on ``PoincareBall(2)`` and have a ``truth`` with log_prob, sample and entropy. Lengths are those of
    tangent vectors at the centre in the disc's coordinates, as in published figures; hyperbolic lengths are twice them.

    Args:
        n: Number of rows.
        seed: Of the rows.

    References:
        P. Sorrenson, F. Draxler et al., Learning distributions on manifolds with free-form flows, 2023, arXiv:2312.09852. The densities printed
        with its data are not normalised; these are.
    """
    return _drawn(PlaneGaussians([(-0.6, 0.6)], 0.3), n, seed, "hyperbolic_gaussian")


def hyperbolic_five_gaussians(n: int = 100_000, *, seed: int = 0) -> Dataset:
    """Five Gaussians of s.d. 0.25, one at the centre and four at radius 1.5; the entropy is 4.068 nats. See `hyperbolic_gaussian`."""
    means = [(1.5, 0.0), (-1.5, 0.0), (0.0, 1.5), (0.0, -1.5), (0.0, 0.0)]
    return _drawn(PlaneGaussians(means, 0.25), n, seed, "hyperbolic_five_gaussians")


def hyperbolic_checkerboard(n: int = 100_000, *, seed: int = 0) -> Dataset:
    """Eight squares of side 0.75, uniform in the tangent plane; the entropy is 3.710 nats. See `hyperbolic_gaussian`."""
    return _drawn(Squares(0.75), n, seed, "hyperbolic_checkerboard")


def hyperbolic_swish(n: int = 100_000, *, seed: int = 0) -> Dataset:
    """Four `Bananas` that whirl about the centre; the entropy is 2.229 nats. See `hyperbolic_gaussian`."""
    return _drawn(Bananas(), n, seed, "hyperbolic_swish")


def _drawn(plane: Toy, n: int, seed: int, name: str) -> Dataset:
    truth = OnDisc(plane)
    x = truth.sample(n, torch.Generator().manual_seed(seed))
    return Dataset(x, manifold=DISC, names=("x1", "x2"), truth=truth, name=name, synthetic=True)
