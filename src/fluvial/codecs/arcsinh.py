"""Heavy tails drawn in."""

import math

import torch
from torch import Tensor

from fluvial.codecs.codec import Bijection
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class Arcsinh(Bijection):
    r"""Draw in heavy tails on both sides: linear about 0, logarithmic beyond the scale s.

    .. math:: z_i = \operatorname{arsinh}(x_i/s), \qquad \log|\det| = -\sum_i \log(s \cosh z_i)

    Args:
        event_shape: An int n, or the shape of one sample.
        scale: Where the bend lies, s > 0, in the units of the data.

    Raises:
        ValueError: If the scale is not a positive finite number.

    Example:
        >>> Arcsinh(1, scale=2.0).encode(torch.tensor([[-2e6], [0.0], [2e30]])).flatten()
        tensor([-14.5087,   0.0000,  69.7707])
    """

    def __init__(self, event_shape: int | tuple[int, ...], *, scale: float = 1.0) -> None:
        super().__init__()
        # Beyond these x / s and s · sinh(z) leave single precision.
        if not 1e-30 <= scale <= 1e30:
            raise ValueError(f"Arcsinh: scale must be a positive number, 1e-30 to 1e30, got {scale}")
        self.domain = self.codomain = Euclidean(event_shape)
        self.event_shape = self.domain.event_shape
        self.scale = float(scale)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """arsinh(x/s)."""
        # For large numbers the library function squares its argument, which overflows in some of its implementations and in its derivative.
        large = x.abs() > 1e9 * self.scale
        middle = torch.where(large, 0.0, x) / self.scale
        outer = torch.where(large, x, self.scale)
        return torch.where(large, outer.sign() * (outer.abs().log() + math.log(2 / self.scale)), torch.asinh(middle))

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """S sinh(z), the largest finite number where that would overflow."""
        most = 0.999 * math.log(torch.finfo(z.dtype).max) - max(0.0, math.log(self.scale))
        return self.scale * torch.sinh(z.clamp(-most, most))

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z and −Σ log(s cosh z)."""
        z = self.encode(x)
        return z, -self._log_slope(z)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The inverse and Σ log(s cosh z)."""
        return self.decode(z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        # cosh overflows, its logarithm does not.
        return (torch.logaddexp(z, -z) + math.log(self.scale / 2)).sum(tuple(range(-len(self.event_shape), 0)))

    def extra_repr(self) -> str:
        """Shape and scale, for repr."""
        return f"{self.domain}, scale={self.scale:g}"
