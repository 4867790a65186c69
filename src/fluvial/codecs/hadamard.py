"""A random orthogonal map for many coordinates."""

import math

import torch
from torch import Tensor

from fluvial.codecs.isometry import Isometry, turned_space
from fluvial.codecs.matrices import product
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold

_LARGEST = 64  # a Walsh–Hadamard matrix up to this size is multiplied outright: fewer passes over memory than sums and differences


class Hadamard(Isometry):
    r"""A random orthogonal map in O(n log n): shuffle, flip signs at random, and apply the Walsh–Hadamard transform.

    .. math:: z = H D P x, \qquad H = 2^{-k/2} \begin{pmatrix} 1 & 1 \\ 1 & -1 \end{pmatrix}^{\otimes k}, \qquad \log|\det| = 0

    For n = 2ᵏ every z is a sum of all x with equal weights and random signs. For any other n this is done three times, each time with other P
    and D, and H acts on the first m coordinates only, m being the largest power of two below n; those it left alone are the first ones of the
    next time, so that every z again depends on every x. Nothing is padded: the map is orthogonal on n coordinates.
    It mixes many coordinates as a `Rotation` does, and is faster from about 256 of them on, or 1000 where n is no power of two. Below about 16
    there are few different ones, and a `Rotation` is better.

    Args:
        features: Length n of the vectors.
        seed: Of signs and order, which are stored with the weights. Blocks of one flow should differ in it.
        manifold: Where the vectors live, Euclidean(n) or Sphere(n − 1); default the first.

    Raises:
        ValueError: If features is not positive, or the manifold has points of another shape.

    References:
        Ailon, Chazelle (2009), "The fast Johnson–Lindenstrauss transform and approximate nearest neighbors".

    Example:
        >>> Hadamard(4).encode(torch.tensor([[2.0, 0.0, 0.0, 0.0]])).abs().tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    signs: Tensor
    order: Tensor
    walsh: Tensor

    def __init__(self, features: int, *, seed: int = 0, manifold: Manifold | None = None) -> None:
        super().__init__()
        self.manifold = self.domain = self.codomain = turned_space("Hadamard", features, manifold)
        self.features = features
        self.seed = seed
        self._size = 1 << (features.bit_length() - 1)
        self._radices = _radices(self._size)
        rounds = 1 if self._size == features else 3
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("signs", torch.randint(0, 2, (rounds, features), generator=generator).to(torch.get_default_dtype()) * 2 - 1)
        self.register_buffer("order", torch.stack([_order(features, self._size, generator) for _ in range(rounds)]))
        self.register_buffer("walsh", _walsh(max(self._radices, default=1)), persistent=False)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """H D P x."""
        for signs, order in zip(self.signs, self.order):
            x = self._transform(x.index_select(-1, order) * signs)
        return x

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Pᵀ D H z: every factor is its own inverse but P."""
        for signs, order in zip(self.signs.flip(0), self.order.flip(0)):
            z = (self._transform(z) * signs).index_select(-1, order.argsort())
        return z

    def _transform(self, x: Tensor) -> Tensor:
        """The Walsh–Hadamard transform of the first m coordinates."""
        head, tail = x[..., : self._size], x[..., self._size :]
        shape = head.shape
        for radix in self._radices:
            matrix = self.walsh[:radix, :radix] / math.sqrt(radix)
            # H₂⊗…⊗H₂ acts on one axis of the array after the other; each is transformed and becomes the last.
            if radix < self._size:
                head = product(head.reshape(*shape[:-1], radix, self._size // radix).mT, matrix).reshape(shape)
            else:
                head = product(head, matrix)
        return torch.cat([head, tail], -1) if tail.shape[-1] else head

    def extra_repr(self) -> str:
        """Size and seed, for repr."""
        return f"{self.features}, seed={self.seed}"


def _radices(size: int) -> tuple[int, ...]:
    """A power of two as a product of as few as possible factors of nearly equal size, none above the largest."""
    bits = size.bit_length() - 1
    count = -(-bits // (_LARGEST.bit_length() - 1))
    return tuple(1 << (bits // count + (k < bits % count)) for k in range(count))


def _order(features: int, size: int, generator: torch.Generator) -> Tensor:
    """A random order in which the coordinates after the first `size` come first."""
    tail = size + torch.randperm(features - size, generator=generator)
    return torch.cat([tail, torch.randperm(size, generator=generator)])


def _walsh(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
