"""Meshes of any size and place, brought to size one around the origin."""

import numpy as np
import torch
from torch import Tensor

from fluvial.codecs.codec import Bijection
from fluvial.conditions import Condition
from fluvial.manifolds import Mesh


class Similarity(Bijection):
    r"""Map a mesh onto the same mesh around the origin, of root-mean-square radius 1.

    .. math:: z = (x - m)/s, \qquad m = \frac1A \int_M x \, dA, \qquad s^2 = \frac1A \int_M |x - m|^2 \, dA, \qquad \log|\det| = -2 \log s

    Both are taken from the mesh, not from data. They are rounded to single precision, so that they are the same numbers whatever the type of x.

    Args:
        mesh: The surface on which x lives. The `codomain` is a `Mesh` with the same faces and creases.

    Raises:
        TypeError: If it is no mesh.

    Example:
        >>> square = Mesh([[4, 0, 0], [6, 0, 0], [6, 2, 0], [4, 2, 0]], [[0, 1, 2], [0, 2, 3]])
        >>> Similarity(square).encode(torch.tensor([[5.0, 1.0, 0.0], [5.0, 2.0, 0.0]])).round(decimals=3)
        tensor([[0.0000, 0.0000, 0.0000],
                [0.0000, 1.2250, 0.0000]])
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        if not isinstance(mesh, Mesh):
            raise TypeError(f"Similarity: expected a Mesh, got {mesh!r}")
        self.mesh = self.domain = mesh
        share = mesh.areas / mesh.areas.sum()
        corners = mesh.vertex_array[mesh.face_array]
        centre = (share[:, None] * corners.mean(1)).sum(0).astype(np.float32)
        corners = corners - centre
        # The mean of |x|² over a triangle of corners a, b, c is (|a|² + |b|² + |c|² + |a + b + c|²)/12.
        square = ((corners**2).sum((1, 2)) + (corners.sum(1) ** 2).sum(1)) / 12
        scale = np.sqrt((share * square).sum()).astype(np.float32)
        self.codomain = Mesh((mesh.vertex_array - centre) / np.float64(scale), mesh.face_array, creases=mesh.creases)
        # Not written to files, which hold the mesh.
        dtype = torch.get_default_dtype()
        self.register_buffer("centre", torch.tensor(centre.tolist(), dtype=dtype), persistent=False)
        self.register_buffer("scale", torch.tensor(float(scale), dtype=dtype), persistent=False)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """(x − m)/s."""
        return (x - self.centre) / self.scale

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse: m + s z."""
        return self.centre + self.scale * z

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z and −2 log s."""
        return self.encode(x), -self._log_area(x)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The inverse and 2 log s."""
        return self.decode(z), self._log_area(z)

    def _log_area(self, x: Tensor) -> Tensor:
        return (2 * self.scale.log()).to(x.dtype).expand(x.shape[:-1])

    def extra_repr(self) -> str:
        """The mesh, for repr."""
        return repr(self.mesh)
