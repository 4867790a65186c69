"""Maps of the sphere in equal-area projection, drawn from nothing but the points themselves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.report.theme import DATA, DENSITY_SCALE, LINE, as_rows, blank, colour_bar, numbers, thinned

WIDTH, HEIGHT = 2 * math.sqrt(2), math.sqrt(2)  # half axes of the ellipse
COLUMNS, ROWS = 200, 100
WIDE = 620  # pixels of a map, broader than other figures
NATS_SHOWN = 10.0  # of log-density below its largest value: what is rarer by more is drawn in the lowest colour


def world_map(
    what: Any,
    *,
    colour: str = DATA,
    weight: Tensor | None = None,
    like: Tensor | None = None,
    limits: tuple[float, float] | None = None,
    degrees: bool = True,
    cells: tuple[int, int] = (COLUMNS, ROWS),
) -> go.Figure:
    r"""The whole sphere S² in Mollweide's projection: equal areas of the sphere are equal areas of the map.

    .. math:: X = \tfrac{2\sqrt2}{\pi}\,\lambda\cos\theta, \quad Y = \sqrt2\sin\theta, \qquad 2\theta + \sin 2\theta = \pi\sin\varphi

    Log-densities are in nats, with respect to area on the unit sphere.

    Args:
        what: Points, unit vectors of shape (n, 3), drawn as markers; or a function of such points that returns their log-density
            (``flow.log_prob``), drawn as colours.
        colour: Of the markers.
        weight: Weights of the points, shape (n,).
        like: A tensor with the dtype and device of the points that the function takes; default float32 on the CPU.
        limits: Log-densities at both ends of the colours; default the largest value and 10 nats below it, or less where nothing is so low.
        degrees: Label the graticule (every 60° of longitude, 30° of latitude) with degrees.
        cells: Columns and rows of the grid on which a function is asked; of a coarser one the colours are interpolated.

    Example:
        >>> uniform = lambda x: torch.full((len(x),), -math.log(4 * math.pi))
        >>> world_map(uniform).data[0].z.shape
        (100, 200)
    """
    if callable(what):
        return on_map(_colours(what, torch.zeros(()) if like is None else like, limits, cells), degrees=degrees)
    rows = as_rows(what)
    return on_map(_markers(rows[thinned(len(rows), weight)], colour), degrees=degrees)


def on_map(trace: go.Heatmap | go.Scatter, *, degrees: bool, colours: bool = False) -> go.Figure:
    """A trace in the plane of the map, with the graticule over it, and room for a scale of colours if it has one."""
    field = isinstance(trace, go.Heatmap)
    bar = 40 if field or colours else 0  # pixels for the scale of colours
    figure = blank(width=WIDE, height=320 + bar)
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8 + bar}, showlegend=False)
    figure.update_xaxes(visible=False, range=[-1.05 * WIDTH, 1.05 * WIDTH], constrain="domain")
    figure.update_yaxes(visible=False, range=[-1.08 * HEIGHT, 1.08 * HEIGHT], scaleanchor="x", scaleratio=1, constrain="domain")
    figure.add_trace(trace)
    # A broad outline hides the steps of the cells.
    figure.add_traces(_graticule(outline=3.0 if field else 1.4))
    if degrees:
        for latitude in (-60, -30, 30, 60):
            x, y = mollweide(np.array([-math.pi]), np.radians([latitude]))
            figure.add_annotation(
                x=x[0], y=y[0], text=f"{abs(latitude)}°{'N' if latitude > 0 else 'S'}", showarrow=False, xanchor="right", font={"size": 10}
            )
    return figure


def mollweide(longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude in radians -> plane, within the ellipse of half axes 2√2 and √2.

    Example:
        >>> x, y = mollweide(np.array([0.0, np.pi]), np.array([np.pi / 2, 0.0]))
        >>> bool(abs(y[0] - 2**0.5) < 1e-4), bool(abs(x[1] - 8**0.5) < 1e-12)
        (True, True)
    """
    theta = np.asarray(latitude, np.float64).copy()
    target = np.pi * np.sin(latitude)
    for _ in range(60):
        slope = 2 + 2 * np.cos(2 * theta)
        # At the poles the slope vanishes with the error; there θ = φ is already the solution.
        step = np.where(slope > 1e-9, (2 * theta + np.sin(2 * theta) - target) / np.maximum(slope, 1e-9), 0.0)
        theta = np.clip(theta - step, -np.pi / 2, np.pi / 2)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return WIDTH / np.pi * np.asarray(longitude) * np.cos(theta), HEIGHT * np.sin(theta)


def angles(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, 3) -> longitude and latitude in radians."""
    return np.arctan2(x[:, 1], x[:, 0]), np.arctan2(x[:, 2], np.hypot(x[:, 0], x[:, 1]))


def log_density_limits(values: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale for log-densities."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return -1.0, 0.0
    high = float(finite.max())
    low = max(float(finite.min()), high - NATS_SHOWN)
    # A flat density is one colour, not noise stretched over all of them.
    return (low, high) if high - low > 0.05 else (high - 0.5, high + 0.5)


def _colours(log_prob: Callable[[Tensor], Tensor], like: Tensor, limits: tuple[float, float] | None, cells: tuple[int, int]) -> go.Heatmap:
    x, y = _centres(cells)
    # Cells that only overlap the map are asked at its edge.
    beyond = np.hypot(x / WIDTH, y / HEIGHT)
    asked = beyond < (1 if cells == (COLUMNS, ROWS) else 1.1)
    x, y = (a[asked] * np.minimum(1, 1 / beyond[asked]) for a in (x, y))
    theta = np.arcsin(np.clip(y / HEIGHT, -1, 1))
    latitude = np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1))
    longitude = np.pi * x / (WIDTH * np.maximum(np.cos(theta), 1e-9))
    points = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], -1)
    values = np.full(asked.shape, np.nan)
    with torch.no_grad():
        values[asked] = log_prob(torch.as_tensor(points).to(like)).double().cpu().numpy()
    low, high = limits if limits is not None else log_density_limits(values)
    # −∞ would be drawn as a hole; it is the lowest colour.
    values = np.maximum(values, low - 1)
    if cells != (COLUMNS, ROWS):
        values = torch.nn.functional.interpolate(torch.as_tensor(values)[None, None], size=(ROWS, COLUMNS), mode="bilinear")[0, 0].numpy()
    x, y = _centres((COLUMNS, ROWS))
    return go.Heatmap(
        x=numbers(x[0]),
        y=numbers(y[:, 0]),
        z=numbers(np.where(np.hypot(x / WIDTH, y / HEIGHT) < 1, values, np.nan)),
        zmin=low,
        zmax=high,
        colorscale=DENSITY_SCALE,
        colorbar=colour_bar(),
        hovertemplate="log-density %{z:.3g}<extra></extra>",
    )


def _centres(cells: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Centres of the cells of a grid over the map, two arrays of shape (rows, columns)."""
    columns, rows = cells
    return np.meshgrid(((np.arange(columns) + 0.5) / columns * 2 - 1) * WIDTH, ((np.arange(rows) + 0.5) / rows * 2 - 1) * HEIGHT)


def _markers(points: np.ndarray, colour: str) -> go.Scatter:
    longitude, latitude = angles(points)
    x, y = mollweide(longitude, latitude)
    return go.Scatter(
        x=numbers(x),
        y=numbers(y),
        mode="markers",
        marker={"size": 2.6, "color": colour, "opacity": 0.6 if len(x) > 800 else 0.8, "line": {"width": 0}},
        customdata=np.stack([numbers(np.degrees(longitude)), numbers(np.degrees(latitude))], -1),
        hovertemplate="longitude %{customdata[0]:.1f}°, latitude %{customdata[1]:.1f}°<extra></extra>",
    )


def _graticule(outline: float) -> list[go.Scatter]:
    """Meridians, parallels and the outline as lines with gaps between them."""
    x, y = [], []
    along = np.linspace(-np.pi / 2, np.pi / 2, 61)
    for degree in range(-120, 121, 60):
        u, v = mollweide(np.full_like(along, math.radians(degree)), along)
        x += [*u, None]
        y += [*v, None]
    for degree in range(-60, 61, 30):
        u, v = mollweide(np.array([-np.pi, np.pi]), np.full(2, math.radians(degree)))
        x += [*u, None]
        y += [*v, None]
    turn = np.linspace(0, 2 * np.pi, 181)
    thin = go.Scatter(x=x, y=y, mode="lines", line={"color": LINE, "width": 0.7}, hoverinfo="skip")
    edge = go.Scatter(
        x=numbers(WIDTH * np.cos(turn)), y=numbers(HEIGHT * np.sin(turn)), mode="lines", line={"color": "#8d949e", "width": outline}, hoverinfo="skip"
    )
    return [thin, edge]
