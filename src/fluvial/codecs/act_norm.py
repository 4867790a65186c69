"""Standardisation that goes on learning."""

import torch
from torch import Tensor, nn

from fluvial.codecs.codec import Bijection
from fluvial.codecs.moments import checked_rows
from fluvial.codecs.standardize import Standardize
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class ActNorm(Bijection):
    r"""Shift and scale every coordinate: at first to mean 0 and standard deviation 1 of the data, afterwards as training wants.

    .. math:: z_i = e^{s_i}\, \frac{x_i - \mu_i}{\sigma_i} + t_i, \qquad \log|\det| = \sum_i (s_i - \log\sigma_i)

    μ and σ are taken from the first data that reach it, as `Standardize` does, and fixed from then on; s and t, at first 0, are learned. They
    are of order one whatever the units, so that one learning rate fits them. Without data it starts as the identity.

    Args:
        event_shape: An int n, or the shape of one sample.

    References:
        Kingma, Dhariwal (2018), "Glow: generative flow with invertible 1×1 convolutions", arXiv:1807.03039, section 3.1.

    Example:
        >>> codec = ActNorm(2)
        >>> codec.fit_(torch.tensor([[0.0, 0.0], [2.0, 20.0]]))
        >>> codec.encode(torch.tensor([[1.0, 20.0]])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.domain = self.codomain = Euclidean(event_shape)
        self.event_shape = self.domain.event_shape
        self.standardize = Standardize(self.event_shape)
        self.shift = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    @property
    def is_fitted(self) -> Tensor:
        """Whether it has seen data."""
        return self.standardize.is_fitted

    def fit_(self, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
        r"""Take mean and spread from x of shape (n, \*event), each row counting with its weight (n,).

        Raises:
            ValueError: If x has the wrong event shape, no rows or numbers that are not finite, or a weight is negative.
        """
        checked_rows("ActNorm", x, self.event_shape, weight)
        self.standardize.fit_(x, c, weight)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """The standardised x, scaled and shifted."""
        return self.standardize.encode(x) * self.log_scale.exp() + self.shift

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse."""
        return self.standardize.decode((z - self.shift) * torch.exp(-self.log_scale))

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z and Σ (s − log σ)."""
        y, ladj = self.standardize.encode_ladj(x)
        return y * self.log_scale.exp() + self.shift, ladj + self.log_scale.sum()

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The inverse and Σ (log σ − s)."""
        x, ladj = self.standardize.decode_ladj((z - self.shift) * torch.exp(-self.log_scale))
        return x, ladj - self.log_scale.sum()
