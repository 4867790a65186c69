"""Maps that keep all distances."""

import numpy as np
import torch
from torch import Tensor

from fluvial.codecs.blocks import BlockMap
from fluvial.codecs.codec import Bijection
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean, Manifold, Sphere

_LARGEST = 256  # coordinates up to which a product with a matrix is as fast as any other way to turn a block


class Isometry(Bijection):
    r"""A bijection that keeps distances, and so volumes: its ladj is 0.

    A subclass defines ``encode`` and ``decode``, and sets ``domain`` and ``codomain``.
    """

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Latents and 0."""
        z = self.encode(x, c)
        return z, z.new_zeros(z.shape[: z.ndim - len(self.codomain.event_shape)])

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Data and 0."""
        x = self.decode(z, c)
        return x, x.new_zeros(x.shape[: x.ndim - len(self.domain.event_shape)])

    def block_map(self, *, inverse: bool) -> BlockMap | None:
        """The map of blocks: a product with the matrix, where there is one."""
        turn = self.decode if inverse else self.encode
        if len(self.domain.event_shape) != 1 or self.domain.event_shape != self.codomain.event_shape:
            return None
        (features,) = self.domain.event_shape
        if features <= _LARGEST and not bool(turn(torch.zeros(1, features, dtype=torch.float32, device="cpu")).any()):
            matrix = turn(torch.eye(features, dtype=torch.float32, device="cpu")).mT.contiguous()

            def turned(block: Tensor, ladj: np.ndarray | None) -> Tensor:
                return torch.mm(matrix, block)

            return turned
        return lambda block, ladj: turn(block.mT).mT.contiguous()


def turned_space(name: str, features: int, manifold: Manifold | None) -> Manifold:
    """Where vectors of so many features live on which an orthogonal matrix acts: flat space, or the sphere.

    Raises:
        ValueError: If features is not positive, or an orthogonal matrix of that size is no isometry of the manifold.
    """
    if features < 1:
        raise ValueError(f"{name}: features must be positive, got {features}")
    if manifold is None:
        return Euclidean(features)
    if not isinstance(manifold, Euclidean | Sphere) or manifold.event_shape != (features,):
        sphere = f" or Sphere({features - 1})" if features > 1 else ""
        raise ValueError(f"{name}: {features} features can be turned on Euclidean({features}){sphere}, got {manifold}")
    return manifold
