"""The uniform distribution on a box."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fluvial.bases.base import Base, sample_shape
from fluvial.bases.limits import box_arguments, inward, nearest, pack
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class Uniform(Base):
    r"""Constant density on a box, whose faces belong to it.

    .. math:: \log p(z) = -\sum_i \log(h_i - l_i) \quad\text{where } l \le z \le h, \qquad -\infty \text{ elsewhere}

    The bounds are those of the precision of z: the number nearest to h in single precision is inside. Samples are within the bounds as given.

    Args:
        low: Lower bound l of all coordinates, or of each.
        high: Upper bound h > l of all coordinates, or of each.
        event_shape: An int n, or the shape of one latent; default a vector with as many coordinates as there are bounds.

    Raises:
        ValueError: If bounds are not finite, enclose no interval that single precision resolves, or do not fit the event shape.

    Example:
        >>> base = Uniform(0.0, (1.0, 2.0))
        >>> base.log_prob(torch.tensor([[1.0, 0.0], [1.5, 0.0]]))
        tensor([-0.6931,    -inf])
        >>> Uniform(-math.pi, math.pi, event_shape=3).sample(2).shape
        torch.Size([2, 3])
    """

    has_rsample = True
    anchor: Tensor
    limits: Tensor

    def __init__(self, low: float | Sequence[float], high: float | Sequence[float], *, event_shape: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        below, above, self.event_shape = box_arguments("Uniform", low, high, event_shape, finite=True)
        self.low = below if isinstance(low, Iterable) else below[0]
        self.high = above if isinstance(high, Iterable) else above[0]
        self.manifold = Euclidean(self.event_shape)
        self.register_buffer("limits", pack(below, above), persistent=False)
        # Holds the device and dtype that samples are drawn on.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of z (\*batch, \*event), shape (\*batch,); its gradient is 0."""
        low, high = nearest(self.limits, z.dtype)
        outside = torch.where(z.isnan(), z, -math.inf)
        each = torch.where((z >= low) & (z <= high), -torch.log(high - low), outside)
        return each.sum(tuple(range(-len(self.event_shape), 0)))

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event)."""
        low, high = inward(self.limits, self.anchor.dtype)
        shape = (*sample_shape(n, c), *self.event_shape)
        unit = torch.rand(shape, generator=generator, dtype=self.anchor.dtype, device=self.anchor.device)
        # Rounding may pass the upper bound by one step.
        return torch.lerp(low, high, unit).clamp(low, high)

    def extra_repr(self) -> str:
        """Bounds and event shape, for repr."""
        return f"low={self.low}, high={self.high}, event_shape={self.event_shape}"
