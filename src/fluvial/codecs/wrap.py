"""Angles taken modulo their period."""

import math

from torch import Tensor

from fluvial.codecs.codec import Bijection
from fluvial.codecs.transformer import wrap
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class Wrap(Bijection):
    r"""Every coordinate modulo high − low, in [low, high): for angles that may come from any turn.

    A density behind it is periodic and integrates to 1 over one period, as that of `torch.distributions.VonMises`.

    Args:
        features: Number of coordinates.
        low: Lower end of the period.
        high: Upper end.

    Raises:
        ValueError: If the period is empty.

    Example:
        >>> import torch
        >>> Wrap(1).encode(torch.tensor([[3.5]]))
        tensor([[-2.7832]])
    """

    def __init__(self, features: int, *, low: float = -math.pi, high: float = math.pi) -> None:
        super().__init__()
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"Wrap: expected finite low < high, got low={low}, high={high}")
        self.features = features
        self.low = low
        self.high = high
        self.domain = self.codomain = Euclidean(features)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """X of shape (batch, features), each coordinate within one period."""
        return wrap(x, self.low, self.high)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The same."""
        return wrap(z, self.low, self.high)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The wrapped coordinates and 0."""
        return self.encode(x), x.new_zeros(len(x))

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The wrapped coordinates and 0."""
        return self.decode(z), z.new_zeros(len(z))
