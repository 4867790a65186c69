"""The standard normal distribution."""

import math

import torch
from torch import Tensor

from fluvial.bases.base import Base, sample_shape
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean
from fluvial.manifolds.manifold import normals


class Normal(Base):
    r"""Independent standard normal coordinates.

    .. math:: \log p(z) = -\tfrac12 |z|^2 - \tfrac n2 \log 2\pi

    Args:
        event_shape: An int n, or the shape of one latent.

    Example:
        >>> Normal(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    has_rsample = True
    anchor: Tensor

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.manifold = Euclidean(event_shape)
        self.event_shape = self.manifold.event_shape
        # Holds the device and dtype that samples are drawn on.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of z (\*batch, \*event), shape (\*batch,)."""
        square = z.square().sum(tuple(range(-len(self.event_shape), 0)))
        return -0.5 * (square + self.manifold.dim * math.log(2 * math.pi))

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event)."""
        shape = (*sample_shape(n, c), *self.event_shape)
        return normals(shape, self.anchor, generator)

    def extra_repr(self) -> str:
        """The event shape, for repr."""
        return repr(self.manifold)
