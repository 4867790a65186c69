"""A density of two angles given in cells."""

import math

import torch
from torch import Tensor

from fluvial.manifolds import Torus


class Ramachandran:
    r"""A density on ``Torus(2)`` that is constant in each of n × m equal cells, per radian in both angles.

    .. math:: p(\varphi, \psi) = P_{ij}\, \frac{nm}{(2\pi)^2}, \qquad H = -\sum_{ij} P_{ij} \log p_{ij}

    Args:
        probability: P of every cell, shape (n, m): φ along the first axis, ψ along the second, both from −180 to 180 degrees. Scaled to sum to 1.

    Raises:
        ValueError: If it is not a table of numbers ≥ 0 with a positive sum.

    Example:
        >>> uniform = Ramachandran(torch.ones(4, 4))
        >>> round(uniform.entropy()[0], 4) == round(2 * math.log(2 * math.pi), 4)
        True
    """

    def __init__(self, probability: Tensor) -> None:
        probability = torch.as_tensor(probability, dtype=torch.float64)
        total = float(probability.sum())
        if probability.ndim != 2 or not bool((probability >= 0).all()) or not 0 < total < math.inf:
            raise ValueError(f"Ramachandran: expected probabilities, shape (φ cells, ψ cells), got shape {tuple(probability.shape)}, sum {total:g}")
        self.probability = probability / total

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density in nats at points x of shape (\*batch, 2, 2), shape (\*batch,), in the dtype of x; −∞ in empty cells."""
        if x.shape[-2:] != (2, 2):
            raise ValueError(f"log_prob: expected points of Torus(2), shape (*batch, 2, 2), got {tuple(x.shape)}")
        cells = torch.tensor(self.probability.shape, device=x.device)
        turns = (Torus.to_angles(x.double()) + math.pi) / (2 * math.pi)
        index = torch.minimum((turns * cells).long().clamp_min(0), cells - 1)
        return self._log_density().to(x)[index[..., 0], index[..., 1]]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2, 2), in torch's default dtype."""
        # One number picks the cell and two more the place in it; multinomial would refuse tables of more than 2²⁴ cells.
        at = torch.rand(n, 3, generator=generator, dtype=torch.float64)
        cumulated = self.probability.flatten().cumsum(0)
        cell = torch.searchsorted(cumulated, at[:, 0] * cumulated[-1], right=True).clamp(max=len(cumulated) - 1)
        rows, columns = self.probability.shape
        # A little away from the edges, so that rounding to float32 leaves every point in its cell.
        place = 1e-5 + (1 - 2e-5) * at[:, 1:]
        turns = (torch.stack([cell // columns, cell % columns], -1) + place) / torch.tensor([rows, columns])
        return Torus.from_angles(2 * math.pi * turns - math.pi).to(torch.get_default_dtype())

    def entropy(self) -> tuple[float, float]:
        """Entropy in nats, and its error, which is 0."""
        return -float((self.probability * self._log_density().clamp_min(-1e3)).sum()), 0.0

    def _log_density(self) -> Tensor:
        return torch.log(self.probability * (self.probability.numel() / (2 * math.pi) ** 2))
