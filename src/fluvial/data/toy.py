"""What a distribution in the plane with a known density must offer, and what its sums are made of."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

# Rows are treated in blocks of this many numbers, nodes of the quadrature included.
BLOCK = 2**18


class Toy(ABC):
    """A distribution in the plane with exact log-density. All sums run in float64.

    Attributes:
        name: What it is called.
        noise: Its finest length, which sets the grid of `entropy`.
        box: Bounds ((x₁, x₁), (x₂, x₂)) that hold all but 1e-12 of the mass.
    """

    name: str
    noise: float
    box: tuple[tuple[float, float], tuple[float, float]]

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N independent points, shape (n, 2), in torch's default dtype."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density in nats at x of shape (\*batch, 2), shape (\*batch,), in the dtype of x."""

    def entropy(self) -> tuple[float, float]:
        """−∫ p log p in nats by the trapezoidal rule on a grid of a third of the noise, with its error.

        The rule converges exponentially for densities smoothed by a Gaussian; the error is the difference to the grid of twice the step.

        Returns:
            Entropy and error.

        Raises:
            ValueError: If the noise is so small that the grid has more than 2·10⁷ points.
        """
        axes = [torch.arange(low, high, self.noise / 3, dtype=torch.float64) for low, high in self.box]
        if math.prod(map(len, axes)) > 2e7:
            raise ValueError(f"{self.name}: the grid of {len(axes[0])} × {len(axes[1])} for noise {self.noise:g} is too fine; take more noise")
        log_p = self.log_prob(torch.cartesian_prod(*axes)).view(len(axes[0]), len(axes[1]))
        density = -torch.special.xlogy(log_p.exp(), log_p.exp())
        cell = (self.noise / 3) ** 2
        fine, coarse = float(density.sum() * cell), float(density[::2, ::2].sum() * 4 * cell)
        return fine, abs(fine - coarse)


def peak_integral(kappa: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The logarithm of ∫ exp(−2κ sin²(u/2)) du from low to high, 0 ≤ low ≤ high ≤ π, all of shape (n,); −∞ where low = high."""
    nodes, weights = (torch.tensor(part, dtype=torch.float64, device=kappa.device) for part in legendre(48))
    floor = torch.sin(low / 2).square()
    # Beyond this u the integrand is below e⁻⁴⁰ of its value at low, its largest.
    end = torch.minimum(high, 2 * torch.asin((floor + 20 / kappa).sqrt().clamp(max=1.0)))
    u = low.unsqueeze(1) + (end - low).clamp_min(0.0).unsqueeze(1) * nodes
    exponent = -2 * kappa.unsqueeze(1) * (torch.sin(u / 2).square() - floor.unsqueeze(1))
    return ((exponent.exp() @ weights) * (end - low).clamp_min(0.0)).log() - 2 * kappa * floor


@cache
def legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss–Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def in_blocks(log_prob: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    r"""Apply a log-density of rows (n, 2) in float64 to x of shape (\*batch, 2), in blocks.

    Args:
        log_prob: From rows (n, 2), float64, to (n,).
        x: Points.
        width: Numbers per row that `log_prob` holds at once, which sets the length of a block.
    """
    check_plane(x)
    rows = x.reshape(-1, 2).to(torch.float64)
    blocks = [log_prob(block) for block in rows.split(max(1, BLOCK // width))]
    return torch.cat(blocks).to(x.dtype).view(x.shape[:-1])


def check_plane(x: Tensor) -> None:
    """Refuse what are not points of the plane."""
    if x.shape[-1:] != (2,):
        raise ValueError(f"log_prob: expected points of the plane, shape (*batch, 2), got {tuple(x.shape)}")


def positive(noise: float, name: str) -> float:
    """The noise, if it is one."""
    if not 0 < noise < math.inf:
        raise ValueError(f"{name}: noise must be positive, got {noise}; without it there is no density")
    return float(noise)


def uniform(n: int, generator: torch.Generator | None) -> Tensor:
    """N numbers in [0, 1), float64."""
    return torch.rand(n, generator=generator, dtype=torch.float64)


def normal(n: int, generator: torch.Generator | None) -> Tensor:
    """N standard normal points of the plane, float64."""
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def choice(count: int, n: int, generator: torch.Generator | None) -> Tensor:
    """N numbers out of 0 … count − 1."""
    return torch.randint(count, (n,), generator=generator)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    r"""Points x (\*batch, 2) turned about the origin by angles (\*batch,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)
