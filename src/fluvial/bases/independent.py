"""Independent latents side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fluvial.bases.base import Base
from fluvial.conditions import Condition
from fluvial.manifolds import Product


class Independent(Base):
    r"""The product of several bases, on the product of their manifolds.

    .. math:: \log p(z|c) = \sum_k \log p_k(z_k|c)

    Args:
        bases: One base for each factor of the manifold.

    Raises:
        ValueError: If there is none.
        TypeError: If one is no base.

    Example:
        >>> from fluvial.bases import Normal, UniformOn
        >>> from fluvial.manifolds import SpecialOrthogonal
        >>> Independent([UniformOn(SpecialOrthogonal(3)), Normal(3)]).sample(5).shape
        torch.Size([5, 12])
    """

    def __init__(self, bases: Sequence[Base]) -> None:
        super().__init__()
        if not bases:
            raise ValueError("Independent: give at least one base")
        if odd := [base for base in bases if not isinstance(base, Base)]:
            raise TypeError(f"Independent: expected bases, got {type(odd[0]).__name__}")
        self.bases = nn.ModuleList(bases)
        self.manifold = Product(*(base.manifold for base in bases))
        self.has_rsample = all(base.has_rsample for base in bases)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Sum of the log-densities of the factors, z (\*batch, size), shape (\*batch,)."""
        return torch.stack([base.log_prob(part, c) for base, part in zip(self.bases, self.manifold.split(z))]).sum(0)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), size)."""
        return self.manifold.join(*(base.sample(n, c, generator=generator) for base in self.bases))
