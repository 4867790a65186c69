"""Flat space."""

import math

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.wrapping import log_isotropic


class Euclidean(Manifold):
    r"""Flat space ℝⁿ, its points arranged in an array of any shape.

    Args:
        event_shape: An int n for vectors, or the shape of one point, such as (1, 28, 28) for an image.

    Raises:
        ValueError: If a length is not positive.

    Example:
        >>> Euclidean((1, 8, 8)).dim
        64
    """

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(int(k) for k in event_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"Euclidean: event_shape must be positive lengths, got {event_shape!r}; a single number per sample is Euclidean(1)")
        self.event_shape = shape
        self.dim = math.prod(shape)

    @property
    def wraps(self) -> bool:
        """False: straight lines do not return."""
        return False

    def project(self, x: Tensor) -> Tensor:
        """The identity."""
        return x

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The identity, twice."""
        return x, t

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The identity: every vector is tangent."""
        return u

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""The unit matrix, shape (\*batch, \*event, n)."""
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device).view(*self.event_shape, self.dim)
        return eye.expand(*x.shape, self.dim)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed direction of length √n."""
        gauss = normals(x.shape, x, generator)
        axes = tuple(range(-len(self.event_shape), 0))
        return gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(axes, keepdim=True)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """X + v."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Y − x."""
        return y - x

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""The length of v in the embedding, shape (\*batch,)."""
        return length(v, len(self.event_shape))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""|x − y|, shape (\*batch,)."""
        return torch.linalg.vector_norm((x - y).flatten(-len(self.event_shape)), dim=-1)

    def log_volume(self, x: Tensor) -> Tensor:
        r"""0, shape (\*batch,)."""
        return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)])

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """0."""
        return torch.zeros(self.event_shape, dtype=dtype, device=device)

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """The vectors themselves, in the shape of points."""
        return a.unflatten(-1, self.event_shape)

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density of x + v at y, v normal, shape (\*batch,)."""
        return log_isotropic(self.norm(x, y - x), scale, self.dim)

    def __repr__(self) -> str:
        return f"Euclidean({self.event_shape[0] if len(self.event_shape) == 1 else self.event_shape})"
