"""Surfaces coloured by a density."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.manifolds import Mesh
from fluvial.report.theme import DENSITY_SCALE, blank, colour_bar, numbers

MOST_FACES = 20_000  # in a plot: more make the page heavy, and are smaller than its pixels
ROWS_PER_SPOT = 20
MOST_STEPS = 3000
_CAMERA = {"eye": {"x": 0.9, "y": 0.9, "z": 1.1}, "up": {"x": 0, "y": 1, "z": 0}}
_MARGIN = {"l": 4, "r": 4, "t": 4, "b": 44}


@dataclass(frozen=True)
class Shape:
    """A mesh as plotted, with no more faces than a page bears.

    Attributes:
        vertices: Shape (n, 3).
        faces: Shape (f, 3).
        source: For each face the face of the mesh that it stands for, shape (f,).
    """

    vertices: np.ndarray
    faces: np.ndarray
    source: np.ndarray

    @staticmethod
    def of(mesh: Mesh, most: int = MOST_FACES) -> "Shape":
        """The mesh itself, or its vertices moved together on a grid until few enough faces are left."""
        found = whole = Shape(mesh.vertex_array, mesh.face_array, np.arange(len(mesh.face_array)))
        spacing = float(np.sqrt(2.2 * mesh.total_volume / most))
        while len(found.faces) > most:
            found = whole._on_grid(spacing)
            spacing *= 1.15
        return found

    def _on_grid(self, spacing: float) -> "Shape":
        cell = np.unique(np.floor(self.vertices / spacing).astype(np.int64), axis=0, return_inverse=True)[1].reshape(-1)
        count = np.bincount(cell)
        vertices = np.stack([np.bincount(cell, self.vertices[:, k]) / count for k in range(3)], 1)
        faces = cell[self.faces]
        spread = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
        first = np.unique(np.sort(faces[spread], 1), axis=0, return_index=True)[1]
        return Shape(vertices, faces[spread][first], np.flatnonzero(spread)[first])

    @property
    def centres(self) -> np.ndarray:
        """Shape (f, 3)."""
        return self.vertices[self.faces].mean(1)


def surface(shape: Shape, values: Any, *, top: float | None = None) -> go.Figure:
    """A mesh with one colour for each face.

    Args:
        shape: What ``Shape.of(mesh)`` made of the mesh.
        values: Density on every face, shape (f,).
        top: Density at the upper end of the colours; default that which all but the densest hundredth of the faces have.

    Example:
        >>> square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
        >>> surface(Shape.of(square), [0.5, 1.5]).data[0].intensity.tolist()
        [0.5, 1.5]
    """
    x, y, z = numbers(shape.vertices).T
    i, j, k = shape.faces.astype(np.uint16 if len(shape.vertices) <= 65_535 else np.int32).T
    top = (upper_end(np.asarray(values)) if top is None else top) or 1.0
    # Infinite densities are at the upper end; only what is no number is left blank.
    at = numbers(np.minimum(values, 100 * top))
    figure = blank(width=420, height=420)
    figure.add_trace(
        go.Mesh3d(
            x=x,
            y=y,
            z=z,
            i=i,
            j=j,
            k=k,
            intensity=at,
            intensitymode="cell",
            cmin=0,
            cmax=top,
            colorscale=DENSITY_SCALE,
            colorbar=colour_bar(),
            flatshading=True,
            # Little shade: enough to see the shape, too little to be taken for a lower density.
            lighting={"ambient": 0.8, "diffuse": 0.35, "specular": 0.0, "fresnel": 0.0, "roughness": 1.0},
            hovertemplate="(%{x:.3g}, %{y:.3g}, %{z:.3g})<br>density %{intensity:.3g}<extra></extra>",
        )
    )
    bare = {"visible": False, "showspikes": False}
    scene = {"xaxis": bare, "yaxis": bare, "zaxis": bare, "aspectmode": "data", "camera": _CAMERA, "bgcolor": "rgba(0,0,0,0)"}
    return figure.update_layout(margin=_MARGIN, scene=scene)


def surfaces(
    mesh: Mesh,
    clouds: Mapping[str, tuple[Tensor, Tensor | None]],
    densities: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    *,
    scale: str = "",
    like: Tensor | None = None,
    most: int = MOST_FACES,
) -> dict[str, go.Figure]:
    """Densities on a mesh, and those of clouds of points counted on it, all in one scale of colours.

    Args:
        mesh: The mesh.
        clouds: Title -> points on the mesh (n, 3) and their weights (n,) or None.
        densities: Title -> function of points (n, 3) that returns their log-density per area, shape (n,).
        scale: Title of the one that sets the scale of colours, up to the density that all but the densest hundredth of the faces have; default
            the first cloud. A flow's own density is a poor choice: where the decoder folds over an edge it is as high as can be.
        like: A tensor with the dtype and device of the points that the functions take; default float32 on the CPU.
        most: Faces drawn at most; of more, vertices are moved together.

    Returns:
        The figures by title, the densities first.
    """
    shape = Shape.of(mesh, most)
    centres = torch.as_tensor(shape.centres).to(torch.zeros(()) if like is None else like)
    values: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for title, log_prob in (densities or {}).items():
            values[title] = log_prob(mesh.project(centres)).double().exp().cpu().numpy()
    fewest = min((len(points) for points, _ in clouds.values()), default=0)
    for title, (points, weight) in clouds.items():
        values[title] = counted(mesh, points, weight, rows=fewest)[shape.source]
    top = upper_end(values[scale or next(iter(clouds))])
    return {title: surface(shape, found, top=top) for title, found in values.items()}


def counted(mesh: Mesh, points: Tensor, weight: Tensor | None = None, *, rows: int = 0) -> np.ndarray:
    r"""The density of a cloud of points: counted face by face, and spread as heat spreads over the surface, to where its neighbours are.

    .. math:: a_i \dot\rho_i = \sum_j g_{ij} (\rho_j - \rho_i), \qquad g_{ij} = \tfrac14 \min(a_i, a_j)

    over neighbouring faces i, j of area a, until a point covers the area that holds about 20 of the rows. Nothing is lost, and nothing leaks from
    one side of a thin sheet to the other.

    Args:
        mesh: The mesh.
        points: On it, shape (n, 3); those that are not finite count as rows that are nowhere.
        weight: Weights of the points, shape (n,).
        rows: How many rows decide how far a point is spread; default all, n.

    Returns:
        Share of weight per area on every face, shape (faces,).
    """
    from scipy.sparse import coo_matrix

    w = torch.ones(len(points), dtype=torch.float64) if weight is None else weight.detach().cpu().double()
    finite = torch.isfinite(points).all(-1)
    at, area = mesh.face_of(points[finite])[0].cpu().numpy(), mesh.areas
    density = np.bincount(at, w[finite.cpu()].numpy() / max(float(w.sum()), 1e-300), minlength=len(area)) / area
    i, j = _neighbours(mesh.face_array)
    if len(i) == 0 or len(points) == 0:
        return density
    conductance = np.minimum(area[i], area[j]) / 4
    corners = mesh.vertex_array[mesh.face_array].mean(1)
    # Mean square by which a point moves along each of two directions in one step, and by which it shall move in all.
    step = float((2 * conductance * np.square(corners[i] - corners[j]).sum(1)).sum() / area.sum() / 2)
    wanted = mesh.total_volume * ROWS_PER_SPOT / (rows or len(points)) / (4 * np.pi)
    between = coo_matrix((np.tile(conductance, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(len(area),) * 2).tocsr()
    leaving = np.asarray(between.sum(1))[:, 0]
    for _ in range(min(round(wanted / step), MOST_STEPS)):
        density = density + (between @ density - leaving * density) / area
    return density


def _neighbours(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of faces with an edge in common."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    order = np.lexsort(edges.T)
    edges, owner = edges[order], order // 3
    same = (edges[1:] == edges[:-1]).all(1)
    return owner[:-1][same], owner[1:][same]


def upper_end(values: np.ndarray) -> float:
    """The upper end of a scale of colours: a single face of high density must not leave all others in the dark."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, 0.99)) if len(finite) else 1.0
