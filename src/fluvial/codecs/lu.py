"""A trainable linear map whose determinant and inverse are cheap."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fluvial.codecs.codec import Bijection
from fluvial.codecs.matrices import product, solve
from fluvial.codecs.permutation import checked_order
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class LU(Bijection):
    r"""A trainable linear map, kept as its triangular factors.

    .. math:: z = P D L U x + b, \qquad \log|\det| = \sum_i \log D_{ii}

    L and U are lower and upper triangular with 1 on their diagonals; D is diagonal and positive, learned as its logarithm, so that the map is
    invertible whatever is learned. D stands in front because there its size costs no digits: P D L U are the same maps as P L D U.
    Decoding solves two triangular systems. At the start L = U = D = 1 and b = 0.

    Args:
        features: Length n of the vectors.
        order: The fixed permutation P, of which row i has its 1 in column order[i]; default none. Without it the map cannot learn to swap
            two coordinates; put a `Permutation` or `Rotation` beside it, or give an order.

    Raises:
        ValueError: If features is not positive, or order is no permutation of so many features.

    References:
        Kingma, Dhariwal (2018), "Glow: generative flow with invertible 1×1 convolutions", arXiv:1807.03039, section 3.2.

    Example:
        >>> codec = LU(2, order=[1, 0])
        >>> z, ladj = codec.encode_ladj(torch.tensor([[3.0, 4.0]]))
        >>> z.tolist(), ladj.tolist()
        ([[4.0, 3.0]], [0.0])
    """

    index: Tensor | None
    inverse: Tensor | None

    def __init__(self, features: int, *, order: Sequence[int] | None = None) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"LU: features must be positive, got {features}")
        self.domain = self.codomain = Euclidean(features)
        self.features = features
        self.order = None if order is None else checked_order("LU", order)
        if self.order is not None and len(self.order) != features:
            raise ValueError(f"LU: order must hold {features} numbers, one for each feature, got {len(self.order)}")
        index = None if self.order is None else torch.tensor(self.order)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("inverse", None if index is None else index.argsort(), persistent=False)
        # L below the diagonal, U above it, log D on it.
        self.weight = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """P D L U x + b."""
        lower, upper, log_scale = self._factors()
        matrix = log_scale.exp().unsqueeze(1) * product(lower, upper)
        if self.index is not None:
            matrix = matrix.index_select(0, self.index)
        return product(x, matrix.mT) + self.bias

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """U⁻¹ L⁻¹ D⁻¹ Pᵀ (z − b)."""
        lower, upper, log_scale = self._factors()
        y = z - self.bias
        if self.inverse is not None:
            y = y.index_select(-1, self.inverse)
        y = y * torch.exp(-log_scale)
        return solve(upper, solve(lower, y, upper=False), upper=True)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z and Σ log D."""
        return self.encode(x), self._ladj(x)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The inverse and −Σ log D."""
        return self.decode(z), -self._ladj(z)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        eye = torch.eye(self.features, dtype=self.weight.dtype, device=self.weight.device)
        return self.weight.tril(-1) + eye, self.weight.triu(1) + eye, self.weight.diagonal()

    def _ladj(self, x: Tensor) -> Tensor:
        return self.weight.diagonal().sum().expand(x.shape[:-1])

    def extra_repr(self) -> str:
        """Size, for repr."""
        return f"{self.features}{'' if self.order is None else ', permuted'}"
