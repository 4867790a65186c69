"""What a latent distribution must say about itself."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, batch_shape, draw_shape
from fluvial.manifolds import Manifold


class Base(nn.Module, ABC):
    """A distribution on ``manifold`` whose density, with respect to Riemannian volume, and samples are known.

    Attributes:
        manifold: Where its samples live.
        has_rsample: Whether samples follow the base's own parameters with their gradient. Without it such parameters are trained by ``log_prob``
            alone, not by objectives that learn through samples. A base that does not say counts as True only while it has nothing to train.
    """

    manifold: Manifold
    has_rsample: bool

    @abstractmethod
    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density at z of shape (\*batch, \*event), shape (\*batch,)."""

    @abstractmethod
    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Independent draws, shape (\*n, \*batch(c), \*event): n per condition, or n in all without one."""


def sample_shape(n: int | tuple[int, ...], c: Condition = None) -> tuple[int, ...]:
    """(*n, *batch(c))."""
    return (*draw_shape(n), *batch_shape(c))


def count(shape: tuple[int, ...]) -> int:
    """How many samples a sample shape asks for."""
    return math.prod(shape)
