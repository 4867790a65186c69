"""Eigenfunctions of the Laplace–Beltrami operator of a triangle mesh."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fluvial.files import write_atomic
from fluvial.manifolds.mesh import Mesh


class Eigenfunctions(NamedTuple):
    """The lowest eigenvalues and their functions.

    Attributes:
        values: Eigenvalues λ in ascending order, shape (count,); the first is 0.
        functions: Values at the vertices, shape (vertices, count).
    """

    values: np.ndarray
    functions: np.ndarray


def eigenfunctions(mesh: Mesh, count: int, *, cache: str | os.PathLike[str] | None = None) -> Eigenfunctions:
    r"""The `count` smoothest functions on a surface.

    .. math:: -\Delta \varphi = \lambda \varphi, \qquad \sum_i m_i \varphi_i^2 = 1, \qquad \sum_i m_i \varphi_i^3 \ge 0

    The Laplacian has cotangent weights; the mass m of a vertex is a third of the area of its faces. A sign is chosen so that the cube has a positive
    integral: the function then has higher peaks than troughs. Where the surface's symmetry makes that integral 0, or eigenvalues equal, the
    function is one of several. Boundaries are free: the derivative across them is 0.

    Args:
        mesh: The surface. Every vertex must be of a face.
        count: How many, the constant one included.
        cache: Folder where the result is kept and looked for, by a checksum of the mesh; default none.

    Returns:
        Eigenvalues and functions.

    Raises:
        ValueError: If there are not so many, or a vertex is of no face.

    References:
        U. Pinkall, K. Polthier, Computing discrete minimal surfaces and their conjugates, Experimental Mathematics 2, 1993 (the weights).

    Example:
        >>> tetrahedron = Mesh([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
        >>> eigenfunctions(tetrahedron.subdivide(3), 4).values.round(1).tolist()  # 4π²/24 on the smooth surface
        [0.0, 1.6, 1.6, 1.6]
    """
    vertices = len(mesh.vertex_array)
    if not 1 <= count < vertices:
        raise ValueError(f"eigenfunctions: count must be from 1 to {vertices - 1}, one less than the mesh has vertices, got {count}")
    stored = None if cache is None else Path(cache) / f"eigenfunctions-{_checksum(mesh)}-{count}.npz"
    if stored is not None and stored.is_file():
        with np.load(stored, allow_pickle=False) as arrays:
            return Eigenfunctions(arrays["values"], arrays["functions"])
    found = _solve(mesh, count)
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(stored, lambda file: np.savez(file, values=found.values, functions=found.functions))
    return found


def laplacian(mesh: Mesh) -> tuple[Any, np.ndarray]:
    """The stiffness matrix, sparse (n, n), of which φᵀLφ = ∫|∇φ|² for functions linear on every face, and the masses (n,)."""
    from scipy import sparse

    points, faces, areas = mesh.vertex_array, mesh.face_array, mesh.areas
    n = len(points)
    rows, columns, entries = [], [], []
    for k in range(3):
        here, first, second = faces[:, k], faces[:, (k + 1) % 3], faces[:, (k + 2) % 3]
        # The cotangent of the angle here belongs to the edge opposite.
        cotangent = ((points[first] - points[here]) * (points[second] - points[here])).sum(1) / (2 * areas)
        rows += [first, second]
        columns += [second, first]
        entries += [-cotangent / 2] * 2
    weights = sparse.csr_matrix((np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), (n, n))
    stiffness = weights - sparse.diags(np.asarray(weights.sum(1)).ravel())
    mass = np.bincount(faces.ravel(), np.repeat(areas / 3, 3), n)
    return stiffness, mass


def _solve(mesh: Mesh, count: int) -> Eigenfunctions:
    from scipy import sparse
    from scipy.sparse.linalg import eigsh

    stiffness, mass = laplacian(mesh)
    if not (mass > 0).all():
        raise ValueError(
            f"eigenfunctions: vertex {int(np.flatnonzero(mass == 0)[0])} is of no face; make the mesh with Mesh.cleaned(vertices, faces)"
        )
    # Just below the lowest eigenvalue, where the shifted matrix is positive definite; the start is fixed so that the result is.
    start = np.random.default_rng(0).normal(size=len(mass))
    values, functions = eigsh(stiffness, count, sparse.diags(mass), sigma=-1 / mesh.total_volume, v0=start)
    order = np.argsort(values)
    functions = functions[:, order] * np.where(mass @ functions[:, order] ** 3 < 0, -1.0, 1.0)
    return Eigenfunctions(values[order].clip(min=0.0), functions)


def _checksum(mesh: Mesh) -> str:
    return hashlib.sha256(mesh.vertex_array.astype("<f8").tobytes() + mesh.face_array.astype("<i4").tobytes()).hexdigest()[:16]
