"""Points of the sphere as longitude and height."""

import torch
from torch import Tensor

from fluvial.codecs.codec import Bijection
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean, Sphere, Torus

# Closer than this to the axis (in radii) a point has no longitude.
_ON_AXIS = 1e-12


class Cylinder(Bijection):
    r"""Longitude and height of a point of S²: the projection onto the cylinder around the sphere, which keeps areas.

    .. math:: \varphi = \operatorname{atan2}(x_2, x_1) \in [-\pi, \pi), \quad h = x_3 \in [-1, 1], \qquad
              \mathrm{d}A = \mathrm{d}\varphi\,\mathrm{d}h, \qquad \log|\det| = 0

    A density on the rectangle [−π, π) × [−1, 1] is the same density per area on the sphere (Archimedes). The longitude π is given as −π and that
    of the poles as 0; both maps have finite gradients there too. ``decode`` takes any longitude, and heights outside [−1, 1] as the nearer pole.

    A height near ±1 has few digits left for the distance θ from the pole: with numbers of resolution ε, decode(encode(x)) moves a point by up to
    min(√ε, ε/θ) + 3ε radians. In float32 that is 0.00035 beside the pole and 0.00001 at θ = 0.01; in float64 it does not matter. What is
    decoded lies on the sphere up to rounding everywhere.

    Args:
        axis: Which coordinate is the height, 0, 1 or 2; the other two follow cyclically.

    Raises:
        ValueError: If there is no such axis.

    Example:
        >>> Cylinder().encode(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]))
        tensor([[ 1.5708,  0.0000],
                [ 0.0000, -1.0000]])
    """

    def __init__(self, axis: int = 2) -> None:
        super().__init__()
        if axis not in (0, 1, 2):
            raise ValueError(f"Cylinder: axis must be 0, 1 or 2, got {axis!r}")
        self.axis = axis
        self.domain = Sphere(2)
        self.codomain = Euclidean(2)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Points (batch, 3) -> longitude and height (batch, 2)."""
        first, second, height = (x[..., (self.axis + k) % 3] for k in (1, 2, 0))
        pole = first.square() + second.square() < _ON_AXIS**2
        flat = torch.stack([torch.where(pole, 1.0, first), torch.where(pole, 0.0, second)], -1)
        return torch.stack([Torus.to_angles(flat), height.clamp(-1, 1)], -1)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Longitude and height (batch, 2) -> points (batch, 3)."""
        height = z[..., 1].clamp(-1, 1)
        # Not 1 − h², which has lost its digits near the poles.
        square = (1 - height) * (1 + height)
        pole = square <= 0
        radius = torch.where(pole, 0.0, torch.sqrt(torch.where(pole, 1.0, square)))
        parts = (radius * z[..., 0].cos(), radius * z[..., 0].sin(), height)
        return torch.stack([parts[(k - self.axis - 1) % 3] for k in range(3)], -1)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Longitude and height, and 0."""
        return self.encode(x), x.new_zeros(x.shape[:-1])

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Points and 0."""
        return self.decode(z), z.new_zeros(z.shape[:-1])

    def extra_repr(self) -> str:
        """The axis, for repr."""
        return f"axis={self.axis}"
