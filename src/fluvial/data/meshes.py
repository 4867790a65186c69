"""Surfaces of triangles, and densities on them that follow the surface's own vibrations."""

import math
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluvial.data.dataset import Dataset
from fluvial.data.eigenfunctions import eigenfunctions
from fluvial.manifolds.mesh import Mesh

SOURCE = "https://github.com/harryjo97/riemannian-diffusion-mixture (folder data/mesh)"


class Surface(NamedTuple):
    """A published mesh.

    Attributes:
        files: Names of files that hold it, arrays ``vertices`` and ``faces`` of an .npz or an .obj.
        vertices: Number of vertices.
        faces: Number of faces.
        scale: What the positions are multiplied with.
        citation: Whom to cite.
        licence: Under what terms it is distributed.
    """

    files: tuple[str, ...]
    vertices: int
    faces: int
    scale: float
    citation: str
    licence: str


SURFACES = {
    "bunny": Surface(
        ("bunny.npz", "bunny_simp.obj", "bunny.obj"), 2502, 5000, 1 / 250, "Stanford 3D Scanning Repository", "free for research, with credit"
    ),
    "spot": Surface(("spot.npz", "spot_simp.obj", "spot.obj"), 2930, 5856, 1.0, "K. Crane, Spot", "CC0"),
}


class FaceDensity:
    r"""A density on a mesh that is constant on every face, per area.

    .. math:: p(x) = \frac{P_f}{A_f}, \qquad H = -\sum_f P_f \log\frac{P_f}{A_f}

    Args:
        mesh: The surface.
        probability: P of every face, shape (m,). Scaled to sum to 1.

    Raises:
        ValueError: If it is not one number ≥ 0 for each face, with a positive sum.

    Example:
        >>> square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
        >>> truth = FaceDensity(square, [3.0, 1.0])
        >>> truth.log_prob(torch.tensor([0.75, 0.25, 0.0])).exp().item()
        1.5
    """

    def __init__(self, mesh: Mesh, probability: Any) -> None:
        probability = np.asarray(probability, np.float64)
        total = float(probability.sum())
        if probability.shape != mesh.areas.shape or not (probability >= 0).all() or not 0 < total < math.inf:
            raise ValueError(f"FaceDensity: expected a probability for each of {len(mesh.areas)} faces, got shape {probability.shape}, sum {total:g}")
        self.mesh, self.probability = mesh, probability / total

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density in nats at the nearest points of the surface, shape (\*batch,), in the dtype of x (\*batch, 3); −∞ on empty faces."""
        if x.shape[-1:] != (3,):
            raise ValueError(f"log_prob: expected points in space, shape (*batch, 3), got {tuple(x.shape)}")
        face, _ = self.mesh.face_of(x.reshape(-1, 3).double())
        return torch.from_numpy(self._log_density()).to(x)[face].view(x.shape[:-1])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 3), in torch's default dtype."""
        at = torch.rand(n, 3, generator=generator, dtype=torch.float64).numpy()
        cumulated = self.probability.cumsum()
        face = np.searchsorted(cumulated, at[:, 0] * cumulated[-1], side="right").clip(max=len(cumulated) - 1)
        root = np.sqrt(at[:, 1])
        weights = np.stack([1 - root, root * (1 - at[:, 2]), root * at[:, 2]], 1)
        # A little away from the edges, so that rounding to float32 leaves every point on its face.
        weights = (1 - 1e-4) * weights + 1e-4 / 3
        corners = self.mesh.vertex_array[self.mesh.face_array[face]]
        return torch.from_numpy((weights[:, :, None] * corners).sum(1)).to(torch.get_default_dtype())

    def entropy(self) -> tuple[float, float]:
        """Entropy in nats, and its error, which is 0."""
        return -float((self.probability * self._log_density().clip(min=-1e3)).sum()), 0.0

    def _log_density(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.probability / self.mesh.areas)


def mesh(name: str = "bunny", *, root: str | Path | None = None, creases: Literal["sharp", "smooth"] = "smooth") -> Mesh:
    """A published surface as a manifold.

    Args:
        name: "bunny" (5000 faces, in 250ths of its file's units: about 2 across, area 9.467) or "spot" (a cow of 5856 faces, area 5.710).
        root: Folder of the file; default the folder ``meshes`` of the environment variable FLUVIAL_DATA, or that folder itself.
        creases: As for `Mesh`.

    Raises:
        FileNotFoundError: If the file is not there; the message says where to get it.
        ValueError: If there is no such surface, or the file holds another one.
    """
    if name not in SURFACES:
        raise ValueError(f"mesh: name must be one of {', '.join(SURFACES)}, got {name!r}; Mesh.read reads your own")
    surface = SURFACES[name]
    path = _find(name, surface, root)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            vertices, faces = arrays["vertices"] * surface.scale, arrays["faces"]
    else:
        read = Mesh.read(path, surface.scale)
        vertices, faces = read.vertex_array, read.face_array
    if (len(vertices), len(faces)) != (surface.vertices, surface.faces):
        wanted = f"{surface.vertices} vertices and {surface.faces} faces"
        raise ValueError(f"{path}: expected {wanted}, got {len(vertices)} and {len(faces)}; fetch it again from {SOURCE}")
    return Mesh(vertices, faces, creases=creases)


def bunny(
    k: int = 10,
    n: int = 100_000,
    *,
    subdivisions: int = 1,
    weighting: Literal["area", "published"] = "area",
    creases: Literal["sharp", "smooth"] = "smooth",
    seed: int = 0,
    root: str | Path | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """Points on the Stanford bunny whose density follows one of its vibrations: the positive part of the k-th Laplace–Beltrami eigenfunction.

    The function is averaged on the faces of the subdivided mesh, clipped at 0 and scaled, which gives a density that is constant on each of them
    and whose entropy is known. The benchmark has k = 10, 50, 100. The uniform density has 2.248 nats.

    Args:
        k: Which eigenfunction, counted from 1, the constant one.
        n: Number of rows.
        subdivisions: How often each face is cut into four before; the benchmark has 3, which changes entropies by less than 0.001.
        weighting: "area" for a density proportional to the function: probability of a face = value × area. "published" for probability = value, as
            in published code, which makes small faces denser.
        creases: Of the manifold, as for `Mesh`.
        seed: Of the rows.
        root: Folder of the file; default the folder ``meshes`` of the environment variable FLUVIAL_DATA, or that folder itself.
        cache: Folder where eigenfunctions are kept; default none.

    Returns:
        A `Dataset` of shape (n, 3) on the `Mesh` of 5000 faces; its ``truth`` is a `FaceDensity` with log_prob, sample and entropy.

    Raises:
        FileNotFoundError: If the file of the mesh is not there.
        ValueError: If k or weighting do not exist.

    References:
        R. T. Q. Chen, Y. Lipman, Flow matching on general geometries, 2023, arXiv:2302.03660. Mesh: Stanford 3D Scanning Repository.
    """
    surface = mesh("bunny", root=root, creases=creases)
    truth = eigenfunction_density(surface.subdivide(subdivisions), k, weighting=weighting, cache=cache)
    return _drawn("bunny", surface, truth, n, k=k, seed=seed)


def spot(
    k: int = 10,
    n: int = 100_000,
    *,
    subdivisions: int = 1,
    weighting: Literal["area", "published"] = "area",
    creases: Literal["sharp", "smooth"] = "smooth",
    seed: int = 0,
    root: str | Path | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """The same on Spot, a cow, where the uniform density has 1.742 nats. See `bunny`."""
    surface = mesh("spot", root=root, creases=creases)
    truth = eigenfunction_density(surface.subdivide(subdivisions), k, weighting=weighting, cache=cache)
    return _drawn("spot", surface, truth, n, k=k, seed=seed)


def eigenfunction_density(surface: Mesh, k: int, *, weighting: Literal["area", "published"] = "area", cache: str | Path | None = None) -> FaceDensity:
    """The positive part of the k-th eigenfunction of a surface as a density, constant on every face.

    Args:
        surface: The mesh.
        k: Which, counted from 1, the constant one.
        weighting: "area" for probability = value × area of a face, "published" for probability = value.
        cache: Folder where eigenfunctions are kept; default none.

    Raises:
        ValueError: If k or weighting do not exist.

    Example:
        >>> square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]]).subdivide(4)
        >>> value, error = eigenfunction_density(square, 1).entropy()  # the constant function on a square of area 1
        >>> abs(value) < 1e-12
        True
    """
    if weighting not in ("area", "published"):
        raise ValueError(f"weighting must be 'area' or 'published', got {weighting!r}")
    if not 1 <= k < len(surface.vertex_array):
        raise ValueError(f"k must be from 1, the constant eigenfunction, to {len(surface.vertex_array) - 1}, got {k}")
    function = eigenfunctions(surface, k, cache=cache).functions[:, -1]
    values = function[surface.face_array].mean(1).clip(min=0.0)
    return FaceDensity(surface, values * surface.areas if weighting == "area" else values)


def _drawn(name: str, surface: Mesh, truth: FaceDensity, n: int, *, k: int, seed: int) -> Dataset:
    return Dataset(
        truth.sample(n, torch.Generator().manual_seed(seed)),
        manifold=surface,
        names=("x", "y", "z"),
        truth=truth,
        name=f"{name} (eigenfunction {k})",
        citation=f"drawn on a mesh of {SURFACES[name].citation}",
        licence=SURFACES[name].licence,
        synthetic=True,
    )


def _find(name: str, surface: Surface, root: str | Path | None) -> Path:
    wanted = f"{' or '.join(surface.files)} ({surface.vertices} vertices, {surface.faces} faces; {SOURCE})"
    given = root if root is not None else os.environ.get("FLUVIAL_DATA")
    if not given:
        raise FileNotFoundError(f"{name}: set the environment variable FLUVIAL_DATA (or pass root=) to a folder with meshes/{wanted}")
    for path in (folder / file for folder in (Path(given), Path(given) / "meshes") for file in surface.files):
        if path.is_file():
            return path
    where = "root" if root is not None else "the environment variable FLUVIAL_DATA"
    raise FileNotFoundError(f"{name}: no such file in {given} or its folder meshes, given by {where}: expected {wanted}")
