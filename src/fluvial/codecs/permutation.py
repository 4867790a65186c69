"""Coordinates in another order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fluvial.codecs.isometry import Isometry, turned_space
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold


class Permutation(Isometry):
    r"""Put the coordinates into another order.

    .. math:: z_i = x_{\mathrm{order}_i}, \qquad \log|\det| = 0

    Args:
        order: Which coordinate of x becomes the i-th of z: the numbers 0 … n − 1, each once.
        manifold: Where the vectors live, Euclidean(n) or Sphere(n − 1); default the first.

    Raises:
        ValueError: If order is no permutation, or the manifold has points of another shape.

    Example:
        >>> Permutation([2, 0, 1]).encode(torch.tensor([[10.0, 11.0, 12.0]])).tolist()
        [[12.0, 10.0, 11.0]]
        >>> Permutation.reversed(3).order, Permutation.random(3, seed=4).order
        ((2, 1, 0), (1, 0, 2))
    """

    index: Tensor
    inverse: Tensor

    def __init__(self, order: Sequence[int], *, manifold: Manifold | None = None) -> None:
        super().__init__()
        self.order = checked_order("Permutation", order)
        self.manifold = self.domain = self.codomain = turned_space("Permutation", len(self.order), manifold)
        index = torch.tensor(self.order)
        # Not part of the weights: they follow from the argument.
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("inverse", index.argsort(), persistent=False)

    @classmethod
    def reversed(cls, features: int, *, manifold: Manifold | None = None) -> "Permutation":
        """Last coordinate first."""
        return cls(range(features - 1, -1, -1), manifold=manifold)

    @classmethod
    def random(cls, features: int, *, seed: int = 0, manifold: Manifold | None = None) -> "Permutation":
        """A random order, the same for the same seed."""
        return cls(torch.randperm(features, generator=torch.Generator().manual_seed(seed)).tolist(), manifold=manifold)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """The coordinates in their new order."""
        return x.index_select(-1, self.index)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The coordinates in their old order."""
        return z.index_select(-1, self.inverse)

    def extra_repr(self) -> str:
        """The order, for repr."""
        shown = ", ".join(map(str, self.order[:8]))
        return f"{shown}{', …' if len(self.order) > 8 else ''}"


def checked_order(name: str, order: Sequence[int]) -> tuple[int, ...]:
    """An order as a tuple of ints.

    Raises:
        ValueError: If it is not the numbers 0 … n − 1, each once.
    """
    given = tuple(int(k) for k in order)
    if not given:
        raise ValueError(f"{name}: order must hold each of the numbers 0 … n − 1 once, got none")
    seen: set[int] = set()
    for k in given:
        if k in seen or not 0 <= k < len(given):
            raise ValueError(f"{name}: order must hold each of the numbers 0 … {len(given) - 1} once, got {k}{' twice' if k in seen else ''}")
        seen.add(k)
    return given
