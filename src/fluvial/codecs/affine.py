"""Shift and scale."""

import math

import torch
from torch import Tensor

from fluvial.codecs.transformer import Boundary, Transformer


class Affine(Transformer):
    r"""Shift and scale, the scale within bounds.

    .. math:: z = x\, e^{\sigma} + t, \qquad \sigma = m \tanh(\theta_1/m), \quad t = \theta_2

    Args:
        max_log_scale: Bound m of the log-scale.

    Raises:
        ValueError: If the bound is not positive.

    References:
        Dinh, Sohl-Dickstein, Bengio (2016), "Density estimation using Real NVP", arXiv:1605.08803.

    Example:
        >>> Affine().encode(torch.tensor([[[100.0]], [[1.0]]]), torch.tensor([[0.0]]))
        (tensor([[1.]]), tensor([[3.]]))
    """

    def __init__(self, *, max_log_scale: float = 3.0) -> None:
        super().__init__()
        if not 0 < max_log_scale < math.inf:
            raise ValueError(f"Affine: max_log_scale must be positive and finite, got {max_log_scale}")
        self.max_log_scale = max_log_scale
        self.n_parameters = 2
        self.low = -math.inf
        self.high = math.inf
        self.boundary: Boundary = "linear"

    def start(self) -> Tensor:
        """The identity: zeros."""
        return torch.zeros(2)

    def encode(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and the log-scale, both (F, B)."""
        log_scale, shift = self._read(theta.to(x.dtype))
        return torch.addcmul(shift, x, torch.exp(log_scale)), log_scale

    def decode(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """X and minus the log-scale, both (F, B)."""
        log_scale, shift = self._read(theta.to(z.dtype))
        return (z - shift) * torch.exp(-log_scale), -log_scale

    def _read(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.max_log_scale * torch.tanh(theta[0] / self.max_log_scale), theta[1]

    def extra_repr(self) -> str:
        """The bound, for repr."""
        return f"log-scale within ±{self.max_log_scale:g}"
