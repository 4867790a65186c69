"""Triangle meshes."""

import math
import os
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fluvial.manifolds.closest import Surface, along, nearest_point, rows
from fluvial.manifolds.manifold import Manifold, length, normals
from fluvial.manifolds.mesh_files import as_text, from_text, read_mesh

# Faces less high than this, as a share of their longest edge, have no direction that rounding leaves alone.
_FLAT = 1e-12
_LARGEST = 1e12

_surfaces: weakref.WeakValueDictionary[tuple[str, str], Surface] = weakref.WeakValueDictionary()


class Mesh(Manifold):
    r"""A surface of triangles in space, with the lengths and areas of the embedding.

    .. math:: \mathrm{project}(x) = \operatorname{argmin}_{y \in M} |x - y|, \qquad
              \Bigl.\frac{\partial\,\mathrm{project}}{\partial x}\Bigr|_\mathrm{sharp} =
              \begin{cases} \text{projector onto the face} & \text{inside a face} \\
              \text{projector onto the edge} & \text{on an edge} \\ 0 & \text{on a corner} \end{cases}

    The nearest face is found through a tree of boxes that is built once, in double precision whatever the points; of faces equally near, the one
    of the lowest number counts. Tangent bases are constant on each face. Boundaries, holes and several pieces are allowed. Geodesics are not
    offered: ``exp``, ``log`` and ``distance`` raise, ``retract`` moves along a tangent vector.

    From outside, whole wedges of space have their nearest point on the same edge, where a decoder therefore loses a dimension and its
    log-determinant is −∞. With ``creases="smooth"``, the default, edges and corners have the derivative of their face, as if the mesh were the
    smooth surface that it stands for; the terms ``x_projection`` and ``z_projection`` of the objective keep the networks near the surface, where
    wedges are thin. ``creases="sharp"`` is for the derivative as it is.

    Args:
        vertices: Positions, shape (n, 3): an array, a tensor, nested lists, or the text that `vertices` holds.
        faces: Three vertices for each face, counted from 0, shape (m, 3), likewise.
        creases: "smooth" for the derivative of the nearest face everywhere, "sharp" for that of the projection as it is.

    Attributes:
        vertices: The positions as one line of text, which keeps every digit and goes into files; `vertex_array` has the numbers.
        faces: The faces likewise; `face_array` has the numbers.

    Raises:
        ValueError: If a shape is wrong, a position is not finite, a face names a vertex that does not exist, has no area, or occurs twice.

    Example:
        >>> square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
        >>> square.project(torch.tensor([[0.5, 0.25, 0.75], [2.0, 0.5, 0.0]])).tolist()
        [[0.5, 0.25, 0.0], [1.0, 0.5, 0.0]]
        >>> round(square.total_volume, 12)
        1.0
    """

    # Beside the attributes that make two meshes equal.
    __slots__ = ("_surface",)

    def __init__(self, vertices: Any, faces: Any, *, creases: Literal["sharp", "smooth"] = "smooth") -> None:
        if creases not in ("sharp", "smooth"):
            raise ValueError(f'Mesh: creases must be "sharp" or "smooth", got {creases!r}')
        points, triangles = _arrays(vertices, faces)
        self.dim = 2
        self.event_shape = (3,)
        self.vertices = as_text(points)
        self.faces = as_text(triangles)
        self.creases = creases
        key = self.vertices, self.faces
        surface = _surfaces.get(key)
        if surface is None:
            surface = Surface(points, triangles)
            _check_area(surface)
            _surfaces[key] = surface
        self._surface = surface

    def __reduce__(self) -> tuple[Callable[..., "Mesh"], tuple[Any, ...]]:
        return _again, (type(self), self.vertices, self.faces, self.creases)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], scale: float = 1.0, *, creases: Literal["sharp", "smooth"] = "smooth", drop_degenerate: bool = False
    ) -> "Mesh":
        """Read a mesh from a file.

        Args:
            path: A Wavefront .obj, a .ply or a .stl file, text or binary. Faces of more corners are cut into fans of triangles; the separate
                triangles of .stl files are joined where corners are equal.
            scale: What the positions are multiplied with.
            creases: As for the constructor.
            drop_degenerate: Leave out faces without area and repeated ones, as `cleaned` does.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file, is damaged, or holds no proper surface.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Mesh: scale must be positive and finite, got {scale}")
        vertices, faces = read_mesh(path)
        try:
            return (cls.cleaned if drop_degenerate else cls)(vertices * scale, faces, creases=creases)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def cleaned(cls, vertices: Any, faces: Any, *, creases: Literal["sharp", "smooth"] = "smooth") -> "Mesh":
        """The mesh that is left without faces of no area, repeated faces, and vertices that no face names."""
        points, triangles = _arrays(vertices, faces)
        surface = Surface(points, triangles)
        good = np.flatnonzero(surface.areas > _FLAT * surface.longest**2)
        good = good[np.sort(np.unique(np.sort(triangles[good], 1), axis=0, return_index=True)[1])]
        if not len(good):
            raise ValueError(f"Mesh: none of the {len(triangles)} faces has an area")
        used, renamed = np.unique(triangles[good], return_inverse=True)
        return cls(points[used], renamed.reshape(-1, 3), creases=creases)

    @property
    def vertex_array(self) -> np.ndarray:
        """Positions, shape (n, 3), float64."""
        return self._surface.vertices

    @property
    def face_array(self) -> np.ndarray:
        """Vertices of every face, shape (m, 3), int32."""
        return self._surface.faces

    @property
    def areas(self) -> np.ndarray:
        """Area of every face, shape (m,), float64."""
        return self._surface.areas

    @property
    def total_volume(self) -> float:
        """Area of the surface."""
        return self._surface.area

    def project(self, x: Tensor) -> Tensor:
        r"""The nearest points of the surface, shape (\*batch, 3); NaN for points that are not finite."""
        y, frame = self._nearest(x)
        # Nothing, but with the derivative; the nearest point itself comes from double precision.
        return y + along(frame, x - x.detach())

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> the nearest points, and the parts of t along the face, edge or corner they lie on."""
        y, push = self.linearize(x)
        return y, push(t)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The nearest points, and the map of directions to their parts along face, edge or corner, with one search for both."""
        y, frame = self._nearest(x)
        return y + along(frame, x - x.detach()), lambda t: along(frame, t)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The part of u in the plane of the face nearest to x."""
        return along(self.tangent_basis(x).to(u.dtype), u)

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""Two orthogonal directions in the face nearest to x, the first along its longest edge, shape (\*batch, 3, 2)."""
        tables = self._surface.tables(x.device)
        _, face, _ = nearest_point(x.detach(), tables.search)
        return rows(tables.frames, face)[..., 0, :, :].to(x.dtype)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed direction of length √2 in the face nearest to x."""
        gauss = normals((*x.shape[:-1], 2), x, generator)
        unit = gauss * (math.sqrt(2) * torch.rsqrt(gauss.square().sum(-1, keepdim=True)))
        return (self.tangent_basis(x) * unit.unsqueeze(-2)).sum(-1)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Not offered; see `retract`."""
        raise NotImplementedError("Mesh: geodesics are not offered, and with them exp; mesh.retract(x, v) = project(x + v) moves along v instead")

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Not offered."""
        raise NotImplementedError("Mesh: geodesics are not offered, and with them log; mesh.to_tangent(x, y - x) undoes mesh.retract for near points")

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""|v|, shape (\*batch,)."""
        return length(v, 1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Not offered."""
        raise NotImplementedError("Mesh: geodesic distances are not offered; the chord is (x - y).norm(dim=-1), and mesh.retract(x, v) replaces exp")

    def log_volume(self, x: Tensor) -> Tensor:
        r"""0: the embedding is isometric. Shape (\*batch,)."""
        return x.new_zeros(x.shape[:-1])

    def random_uniform(
        self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Independent uniform points, shape (n, 3)."""
        return self.random_on_faces(self.areas, n, generator=generator, dtype=dtype, device=device)

    def random_on_faces(
        self,
        face_weights: Any,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Independent points from a density that is constant on every face.

        Args:
            face_weights: Probability of every face, up to a common factor, shape (m,).
            n: Number of points.
            generator: Source of randomness; default the global one.
            dtype: Of the points; default torch's default.
            device: Of the points; default torch's default.

        Returns:
            Shape (n, 3).

        Raises:
            ValueError: If the weights do not fit the faces, are negative, not finite, or all zero.
        """
        weights = torch.as_tensor(face_weights).detach().to("cpu", torch.float64)
        if weights.shape != (len(self.areas),):
            raise ValueError(f"random_on_faces: expected one weight for each of {len(self.areas)} faces, got shape {tuple(weights.shape)}")
        bad = (~(weights.isfinite() & (weights >= 0))).nonzero()
        if len(bad) or not weights.any():
            what = f"face {int(bad[0])} has weight {float(weights[bad[0]]):g}" if len(bad) else "all weights are 0"
            raise ValueError(f"random_on_faces: weights must be finite, not negative, and not all zero, but {what}")
        dtype = dtype or torch.get_default_dtype()
        uniform = torch.rand(n, 3, generator=generator, dtype=torch.float64, device=device or (generator.device if generator else None))
        shares = weights.cumsum(0)
        shares = (shares / shares[-1]).to(uniform.device)
        face = torch.searchsorted(shares, uniform[:, 0].contiguous(), right=True)
        root = uniform[:, 1].sqrt()
        barycentric = torch.stack([1 - root, root * (1 - uniform[:, 2]), root * uniform[:, 2]], -1)
        corners = self._surface.tables(uniform.device).corners[face]
        return (barycentric.unsqueeze(-1) * corners).sum(-2).to(dtype)

    def face_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Where on the surface points are.

        Args:
            x: Points, shape (\*batch, 3); those off the surface count as their nearest point.

        Returns:
            Face, int64 of shape (\*batch,), and the weights of its three vertices, in the order of `face_array`, shape (\*batch, 3), without
            derivative. Of the faces that meet at an edge or vertex, the one of the lowest number.
        """
        tables = self._surface.tables(x.device)
        y, face, _ = nearest_point(x.detach().to(tables.corners.dtype), tables.search)
        plane = (rows(tables.frames, face)[..., 0, :, :] * (y - rows(tables.corners, face)[..., 0, :]).unsqueeze(-1)).sum(-2)
        size, along_first, height = rows(tables.shapes, face).unbind(-1)
        third = plane[..., 1] / height
        second = (plane[..., 0] - along_first * third) / size
        weights = torch.stack([1 - second - third, second, third], -1).clamp_min(0)
        # Back from the order with the longest edge first.
        order = (torch.arange(3, device=x.device) - rows(tables.rolled, face).unsqueeze(-1)) % 3
        return face, (weights / weights.sum(-1, keepdim=True)).gather(-1, order).to(x.dtype)

    def subdivide(self, times: int = 1) -> "Mesh":
        """Cut every face into four at the middles of its edges, `times` times: the same surface, finer.

        Args:
            times: How often; the number of faces grows by 4 each time.
        """
        if times < 0:
            raise ValueError(f"subdivide: times must not be negative, got {times}")
        vertices, faces = self.vertex_array, self.face_array
        for _ in range(times):
            edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
            pairs, middle = np.unique(edges, axis=0, return_inverse=True)
            ab, bc, ca = middle.reshape(-1, 3).T + len(vertices)
            a, b, c = faces.T
            vertices = np.concatenate([vertices, vertices[pairs].mean(1)])
            faces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], 1).reshape(-1, 3)
        return type(self)(vertices, faces, creases=self.creases)

    def __repr__(self) -> str:
        return f"Mesh({len(self.vertex_array)} vertices, {len(self.face_array)} faces)"

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest points without derivative, and the directions in which they follow x, (*batch, 3, 2)."""
        tables = self._surface.tables(x.device)
        y, face, part = nearest_point(x.detach(), tables.search)
        parts = tables.frames.shape[1]
        return y, rows(tables.frames.flatten(0, 1), face * parts + (part if self.creases == "sharp" else 0)).to(x.dtype)


def _again(cls: type[Mesh], vertices: str, faces: str, creases: Literal["sharp", "smooth"]) -> Mesh:
    return cls(vertices, faces, creases=creases)


def _arrays(vertices: Any, faces: Any) -> tuple[np.ndarray, np.ndarray]:
    """Arrays (n, 3) and (m, 3) from whatever was given."""
    try:
        points, triangles = (
            from_text(each, name) if isinstance(each, str) else np.array(each.detach().cpu().numpy() if isinstance(each, Tensor) else each)
            for each, name in ((vertices, "vertices"), (faces, "faces"))
        )
        points = points.astype(np.float64)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError("Mesh: vertices and faces must have three numbers in every row; some rows are of another length") from None
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"Mesh: vertices must have shape (n, 3), got {points.shape}")
    if triangles.ndim != 2 or triangles.shape[1] != 3 or not len(triangles):
        mend = "; cut faces of more corners into triangles, or let Mesh.read do it" if triangles.ndim == 2 and triangles.shape[1] > 3 else ""
        raise ValueError(f"Mesh: faces must have shape (m, 3) with at least one face, got {triangles.shape}{mend}")
    if triangles.dtype.kind not in "iu":
        raise ValueError(f"Mesh: faces must be whole numbers, got {triangles.dtype}")
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        raise ValueError(f"Mesh: vertex {bad[0]} is not finite: {tuple(points[bad[0]].tolist())}")
    if len(points) and np.abs(points).max() > _LARGEST:
        raise ValueError(f"Mesh: vertices reach to {np.abs(points).max():.1e}, beyond {_LARGEST:.0e}, where single precision fails; scale them down")
    bad = np.flatnonzero(((triangles < 0) | (triangles >= len(points))).any(1))
    if len(bad):
        one_based = triangles.min() == 1 and triangles.max() == len(points)
        mend = "; they seem to be counted from 1: subtract 1" if one_based else ""
        corners = tuple(triangles[bad[0]].tolist())
        raise ValueError(f"Mesh: face {bad[0]} names vertices {corners}, but there are {len(points)}, counted from 0{mend}")
    return points, triangles.astype(np.int32)


def _check_area(surface: Surface) -> None:
    mend = "make the mesh with Mesh.cleaned(vertices, faces), or read the file with drop_degenerate=True, to leave such faces out"
    bad = np.flatnonzero(~(surface.areas > _FLAT * surface.longest**2))
    if len(bad):
        raise ValueError(f"Mesh: face {bad[0]} (vertices {tuple(surface.faces[bad[0]].tolist())}) has no area; {mend}")
    _, first, which = np.unique(np.sort(surface.faces, 1), axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which.reshape(-1)] != np.arange(len(which.reshape(-1))))
    if len(again):
        raise ValueError(f"Mesh: face {again[0]} has the same corners as face {first[which.reshape(-1)[again[0]]]}; {mend}")
