"""A fixed random rotation."""

import torch
from torch import Tensor

from fluvial.codecs.isometry import Isometry, turned_space
from fluvial.codecs.matrices import checked_orthogonal, product, random_rotation, stored_orthonormal
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold


class Rotation(Isometry):
    r"""A fixed rotation, drawn uniformly from SO(n).

    .. math:: z = Q x, \qquad Q^\top Q = 1, \qquad \det Q = 1, \qquad \log|\det| = 0

    Between coupling blocks it lets every coordinate reach every other, where a permutation only reorders them. The matrix is stored with the
    weights; it does not depend on the random numbers of a later version of torch.

    Args:
        features: Length n of the vectors.
        seed: Of the matrix. Blocks of one flow should differ in it.
        manifold: Where the vectors live, Euclidean(n) or Sphere(n − 1); default the first.

    Raises:
        ValueError: If features is not positive, or the manifold has points of another shape.

    References:
        Mezzadri (2007), "How to generate random matrices from the classical compact groups", arXiv:math-ph/0609050.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> z, ladj = Rotation(2, seed=1).encode_ladj(x)
        >>> round(z.norm().item(), 5), ladj.tolist()
        (5.0, [0.0])
    """

    matrix: Tensor

    def __init__(self, features: int, *, seed: int = 0, manifold: Manifold | None = None) -> None:
        super().__init__()
        self.manifold = self.domain = self.codomain = turned_space("Rotation", features, manifold)
        self.features = features
        self.seed = seed
        self.register_buffer("matrix", random_rotation(features, seed=seed).to(torch.get_default_dtype()))

    def set_(self, matrix: Tensor) -> None:
        """Take this orthogonal matrix (n, n) in place of the drawn one.

        Raises:
            ValueError: If it is not orthogonal, or has another size.
        """
        self.matrix.copy_(checked_orthogonal("Rotation", matrix, self.features))

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Q x."""
        return product(x, stored_orthonormal(self.matrix, x).mT)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Qᵀ z."""
        return product(z, stored_orthonormal(self.matrix, z))

    def extra_repr(self) -> str:
        """Size and seed, for repr."""
        return f"{self.features}, seed={self.seed}"
