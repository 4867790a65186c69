"""Points of a torus as angles."""

from torch import Tensor

from fluvial.codecs.codec import Bijection
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean, Torus


class Angles(Bijection):
    r"""The k angles of a point of the torus, in radians.

    .. math:: z_i = \operatorname{atan2}(x_{i2}, x_{i1}) \in [-\pi, \pi), \qquad x_i = (\cos z_i, \sin z_i), \qquad \log|\det| = 0

    The angle π is given as −π. ``decode`` takes any real numbers and is periodic, so the latents of a flow behind it belong on
    [−π, π)ᵏ, where the two maps are inverse: use a base and bijections of that box, such as circular splines.

    Args:
        features: Number of angles k.

    Example:
        >>> import torch
        >>> Angles(2).encode(torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))
        tensor([[ 1.5708, -3.1416]])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.domain = Torus(features)
        self.codomain = Euclidean(features)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Points (batch, k, 2) -> angles (batch, k) in [−π, π)."""
        return Torus.to_angles(x)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Angles (batch, k), any real numbers -> points (batch, k, 2)."""
        return Torus.from_angles(z)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Angles and 0."""
        return self.encode(x), x.new_zeros(x.shape[:-2])

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Points and 0."""
        return self.decode(z), z.new_zeros(z.shape[:-1])

    def extra_repr(self) -> str:
        """Number of angles, for repr."""
        return str(self.features)
