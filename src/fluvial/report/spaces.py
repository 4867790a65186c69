"""Two clouds of points beside each other, in the way that suits their space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus
from fluvial.report.angular import circle
from fluvial.report.coordinates import coordinates, factor_columns, factor_names
from fluvial.report.corner_plot import corner
from fluvial.report.globe import world_map
from fluvial.report.histograms import marginal, most_different
from fluvial.report.mesh_plot import MOST_FACES, surfaces
from fluvial.report.plane import Window, density, points, scatter, window
from fluvial.report.poincare_disc import disc
from fluvial.report.ramachandran import EDGES, angle_labels, degrees, torus_map
from fluvial.report.rotations import CELLS, COARSE_CELLS, COARSE_TILTS, TILTS, direction_density, rotation_map
from fluvial.report.theme import DATA, MODEL, as_rows

Figures = dict[str, go.Figure]
LogDensity = Callable[[Tensor], Tensor]
MOST_ANGLES = 8  # of a torus; the seven of a nucleotide are seen together
OF_FACTOR = " · "  # between the name of a factor of a product and the title of a figure of it


@dataclass(frozen=True)
class Clouds:
    r"""Data and samples of the same space.

    Attributes:
        data: Points, shape (n, \*event).
        drawn: Points, shape (m, \*event).
        weight: Weights of the data, shape (n,), or None.
        density: The log-density that the samples have, of points (k, \*event), or None.
        truth: That of the data, where known.
        names: Of the columns of the flattened points, or of a torus' angles.
        units: Of the same.
        view: Window for the plane; default one that holds both clouds.
        quick: Whether there are many of these to draw, so that the costliest densities and the largest figures had better be coarse.
    """

    data: Tensor
    drawn: Tensor
    weight: Tensor | None = None
    density: LogDensity | None = None
    truth: LogDensity | None = None
    names: Sequence[str] | None = None
    units: Sequence[str] | None = None
    view: Window | None = None
    quick: bool = False


def compared(manifold: Manifold, clouds: Clouds) -> Figures:
    """Samples beside data: figures by title."""
    found = _of_low_dimension(manifold, clouds)
    if found is not None:
        return found
    ours, theirs = (coordinates(manifold, x, names=clouds.names, units=clouds.units) for x in (clouds.data, clouds.drawn))
    kept = ours.independent
    flat, pushed = principal(ours.values[:, kept], theirs.values[:, kept])
    view = window(flat, pushed)
    labels = ("first principal direction", "second")
    return {"Data": scatter(flat, view, names=labels, weight=clouds.weight), "Samples": scatter(pushed, view, names=labels, colour=MODEL)}


def compared_latents(manifold: Manifold, z: Tensor, base: Tensor, weight: Tensor | None) -> Figures:
    """Encoded data beside samples of the base: figures by title."""
    labels = ("encoded data", "base")
    if isinstance(manifold, Product):
        parts = zip(factor_names(manifold), manifold.factors, manifold.split(z), manifold.split(base))
        return {
            f"{name}{OF_FACTOR}{title}": figure
            for name, factor, ours, theirs in parts
            for title, figure in compared_latents(factor, ours, theirs, weight).items()
        }
    if isinstance(manifold, Sphere) and manifold.dim == 2:
        return {"Encoded data": world_map(z, weight=weight, degrees=False), "Base": world_map(base, colour=MODEL, degrees=False)}
    if isinstance(manifold, SpecialOrthogonal) and manifold.n == 3:
        return {"Encoded data": rotation_map(z, weight=weight), "Base": rotation_map(base)}
    if _is_hyperbolic_plane(manifold):
        return {"Encoded data": disc(_in_disc(manifold, z), weight=weight), "Base": disc(_in_disc(manifold, base), colour=MODEL)}
    if isinstance(manifold, Mesh):
        return surfaces(manifold, {"Encoded data": (z, weight), "Base": (base, None)})
    if (angle := _circle_points(manifold, z)) is not None:
        return {"Encoded data and base": circle(angle, _circle_points(manifold, base), weight=weight, labels=labels)}
    if isinstance(manifold, Torus):
        return _latent_angles(z, base, weight, labels)
    ours, theirs = as_rows(z), as_rows(base)
    if ours.shape[1] == 2:
        view = window(ours, theirs)
        names = ("z₀", "z₁")
        figure = scatter(theirs, view, names=names, colour=MODEL)
        figure.add_trace(points(ours, DATA, name=labels[0], weight=weight))
        figure.data[0].name = labels[1]
        figure.update_layout(showlegend=True, margin={"t": 30, "b": 50}, legend={"itemsizing": "constant"})
        return {"Encoded data over the base": figure} | {
            f"Latent {k}": marginal(ours[:, k], theirs[:, k], name=names[k], weight=weight, labels=labels) for k in range(2)
        }
    return {f"Latent {k}": marginal(ours[:, k], theirs[:, k], name=f"z[{k}]", weight=weight, labels=labels) for k in most_different(ours, theirs)}


def principal(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both along the two directions in which the standardised rows vary most; rows that are not finite stay so."""
    finite = rows[np.isfinite(rows).all(1)]
    if len(finite) < 2:
        return rows[:, :2], others[:, :2]
    mean, scale = finite.mean(0), finite.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    axes = np.linalg.svd((finite - mean) / scale, full_matrices=False)[2][:2]
    return (rows - mean) / scale @ axes.T, (others - mean) / scale @ axes.T


def _of_low_dimension(manifold: Manifold, clouds: Clouds) -> Figures | None:
    """Figures of the spaces that can be seen whole."""
    data, drawn, weight = clouds.data, clouds.drawn, clouds.weight
    if isinstance(manifold, Product):
        return _factors(manifold, clouds)
    if isinstance(manifold, Sphere) and manifold.dim == 2:
        found = _fields(clouds, "log-density", "of the flow", lambda f, limits: world_map(f, like=data, limits=limits))
        return found | {"Data": world_map(data, weight=weight), "Samples": world_map(drawn, colour=MODEL)}
    if isinstance(manifold, SpecialOrthogonal) and manifold.n == 3:
        return _rotations(clouds)
    if _is_hyperbolic_plane(manifold):
        return _discs(manifold, clouds)
    if isinstance(manifold, Mesh):
        return _meshes(manifold, clouds)
    if (angle := _circle_points(manifold, data)) is not None:
        f = clouds.density
        ask = None if f is None else lambda at: f(_from_circle(manifold, at))
        return {"Density, data and samples": circle(angle, _circle_points(manifold, drawn), ask, weight=weight, like=data)}
    if isinstance(manifold, Torus):
        return _angles(clouds, angle_labels(clouds.names, manifold.dim))
    ours, theirs = (coordinates(manifold, x, names=clouds.names, units=clouds.units) for x in (data, drawn))
    if len(ours.labels) == 1:
        return {"Data and samples": marginal(ours.values, theirs.values, name=ours.labels[0], weight=weight)}
    if len(ours.labels) == 2 and isinstance(manifold, Euclidean):
        return _planes(clouds, ours.labels)
    return None


def _fields(clouds: Clouds, what: str, of: str, draw: Callable[[LogDensity, tuple[float, float] | None], go.Figure]) -> Figures:
    """The density of the flow and the true one, as far as they are known, in one scale of colours."""
    found: Figures = {}
    limits = None
    if clouds.density is not None and clouds.truth is not None:
        known = draw(clouds.truth, None)
        limits = float(known.data[0].zmin), float(known.data[0].zmax)
        found[f"True {what}{'' if of == 'of the flow' else f' {of}'}"] = known
    if clouds.density is not None:
        found = {f"{what.capitalize()} {of}": draw(clouds.density, limits)} | found
    return found


def _planes(clouds: Clouds, names: list[str]) -> Figures:
    data, drawn = clouds.data, clouds.drawn
    view = window(data, drawn) if clouds.view is None else clouds.view
    shared = {"names": names, "like": data}
    found = _fields(clouds, "density", "of the flow", lambda f, limits: density(_on_rows(f, data), view, **shared, top=limits and limits[1]))
    return found | {"Data": scatter(data, view, names=names, weight=clouds.weight), "Samples": scatter(drawn, view, names=names, colour=MODEL)}


def _rotations(clouds: Clouds) -> Figures:
    cells, tilts = (COARSE_CELLS, COARSE_TILTS) if clouds.quick else (CELLS, TILTS)

    def draw(f: LogDensity, limits: tuple[float, float] | None) -> go.Figure:
        return world_map(direction_density(f, tilts=tilts), like=clouds.data, limits=limits, degrees=False, cells=cells)

    found = _fields(clouds, "log-density", "of the direction", draw)
    return found | {
        "Data, coloured by tilt": rotation_map(clouds.data, weight=clouds.weight),
        "Samples, coloured by tilt": rotation_map(clouds.drawn),
    }


def _discs(manifold: Manifold, clouds: Clouds) -> Figures:
    def draw(f: LogDensity, limits: tuple[float, float] | None) -> go.Figure:
        return disc((lambda at: f(Hyperboloid.from_ball(at))) if isinstance(manifold, Hyperboloid) else f, like=clouds.data, limits=limits)

    data, drawn = _in_disc(manifold, clouds.data), _in_disc(manifold, clouds.drawn)
    found = _fields(clouds, "log-density", "on the disc", draw)
    return found | {"Data": disc(data, weight=clouds.weight), "Samples": disc(drawn, colour=MODEL)}


def _meshes(manifold: Mesh, clouds: Clouds) -> Figures:
    asked = {title: f for title, f in (("Density on the surface", clouds.density), ("True density on the surface", clouds.truth)) if f is not None}
    seen = {"Density of the data": (clouds.data, clouds.weight), "Density of the samples": (clouds.drawn, None)}
    scale = "True density on the surface" if clouds.truth is not None else "Density of the data"
    return surfaces(manifold, seen, asked, scale=scale, like=clouds.data, most=MOST_FACES // 4 if clouds.quick else MOST_FACES)


def _angles(clouds: Clouds, names: list[str]) -> Figures:
    data, drawn, weight = clouds.data, clouds.drawn, clouds.weight
    if len(names) > 2:
        labels = [f"{name}, degrees" for name in names]
        return {"Pairs of angles": corner(degrees(data), degrees(drawn), names=labels, weight=weight, period=360.0, most=MOST_ANGLES)}
    found = _fields(clouds, "log-density", "of the angles", lambda f, limits: torus_map(f, names=names, like=data, limits=limits))
    return found | {"Data": torus_map(data, names=names, weight=weight), "Samples": torus_map(drawn, names=names, colour=MODEL)}


def _latent_angles(z: Tensor, base: Tensor, weight: Tensor | None, labels: tuple[str, str]) -> Figures:
    if z.shape[-2] == 2:
        names = ("first latent angle", "second")
        return {"Encoded data": torus_map(z, names=names, weight=weight), "Base": torus_map(base, names=names, colour=MODEL)}
    ours, theirs = degrees(z), degrees(base)
    return {
        f"Latent {j}": marginal(ours[:, j], theirs[:, j], name=f"latent angle {j + 1}, degrees", weight=weight, labels=labels, edges=EDGES)
        for j in most_different(ours, theirs, MOST_ANGLES)
    }


def _factors(manifold: Product, clouds: Clouds) -> Figures:
    """Factor by factor; the density of one factor alone is not known."""
    found: Figures = {}
    named, measured = factor_columns(manifold, clouds.names), factor_columns(manifold, clouds.units)
    parts = zip(factor_names(manifold), manifold.factors, manifold.split(clouds.data), manifold.split(clouds.drawn), named, measured)
    for name, factor, data, drawn, columns, units in parts:
        own = replace(clouds, data=data, drawn=drawn, density=None, truth=None, names=columns, units=units, view=None)
        figures = _of_low_dimension(factor, own)
        if figures is None:
            ours, theirs = (coordinates(factor, x, names=columns, units=units) for x in (data, drawn))
            kept = ours.independent
            labels = [ours.labels[k] for k in kept]
            figures = {"Pairs of columns": corner(ours.values[:, kept], theirs.values[:, kept], names=labels, weight=clouds.weight)}
        found |= {f"{name}{OF_FACTOR}{title}": figure for title, figure in figures.items()}
    return found


def _is_hyperbolic_plane(manifold: Manifold) -> bool:
    return isinstance(manifold, PoincareBall | Hyperboloid) and manifold.dim == 2


def _in_disc(manifold: Manifold, x: Tensor) -> Tensor:
    return Hyperboloid.to_ball(x) if isinstance(manifold, Hyperboloid) else x


def _circle_points(manifold: Manifold, x: Tensor) -> Tensor | None:
    """Points of a circle in whatever guise as unit vectors (n, 2), or None for other spaces."""
    if isinstance(manifold, Sphere) and manifold.dim == 1:
        return x
    if isinstance(manifold, Torus) and manifold.dim == 1:
        return x.flatten(1)
    if isinstance(manifold, SpecialOrthogonal) and manifold.n == 2:
        return x[..., 0]
    return None


def _from_circle(manifold: Manifold, at: Tensor) -> Tensor:
    """Unit vectors (n, 2) -> points of the circle in its own guise."""
    if isinstance(manifold, SpecialOrthogonal):
        cos, sin = at.unbind(-1)
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return at.reshape(-1, *manifold.event_shape)


def _on_rows(f: LogDensity, like: Tensor) -> LogDensity:
    return lambda at: f(at.reshape(-1, *like.shape[1:]))
