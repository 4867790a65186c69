"""The uniform distribution on a manifold of finite volume."""

import math

import torch
from torch import Tensor

from fluvial.bases.base import Base, count, sample_shape
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold, has_uniform


class UniformOn(Base):
    r"""Constant density on a manifold of finite volume.

    .. math:: \log p(z) = -\log \mathrm{vol}(M)

    Args:
        manifold: Where it lives, for instance ``Sphere(2)``.

    Raises:
        ValueError: If the manifold's volume is not finite.

    Example:
        >>> from fluvial.manifolds import Sphere
        >>> UniformOn(Sphere(2)).log_prob(torch.tensor([[0.0, 0.0, 1.0]]))
        tensor([-2.5310])
    """

    has_rsample = True
    anchor: Tensor

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        if not has_uniform(manifold):
            raise ValueError(f"UniformOn: {manifold} has no finite volume, so no uniform density; use bases.Normal or another base that decays")
        self.manifold = manifold
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""−log vol for every z (\*batch, \*event), shape (\*batch,)."""
        return z.new_full(z.shape[: z.ndim - len(self.manifold.event_shape)], -math.log(self.manifold.total_volume))

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event)."""
        shape = sample_shape(n, c)
        z = self.manifold.random_uniform(count(shape), generator=generator, dtype=self.anchor.dtype, device=self.anchor.device)
        return z.view(*shape, *self.manifold.event_shape)

    def extra_repr(self) -> str:
        """The manifold, for repr."""
        return repr(self.manifold)
