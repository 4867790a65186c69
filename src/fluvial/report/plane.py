"""Densities and points in two flat dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.report.theme import DATA, DENSITY_SCALE, as_rows, blank, colour_bar, numbers, thinned

Window = tuple[tuple[float, float], tuple[float, float]]
CELLS = 140
_WIDTH = 360
_MARGIN = {"l": 48, "r": 10, "t": 10, "b": 50}
_COLOUR_BAR = 40  # pixels below the plot


def window(*clouds: Any, room: float = 0.08) -> Window:
    """The range of each of two columns that holds all but the outermost rows of the clouds (n, 2), and some room around them."""
    rows = [as_rows(cloud) for cloud in clouds]
    rows = [r[np.isfinite(r).all(1)] for r in rows]
    spans = []
    for k in range(2):
        quantiles = np.array([np.quantile(r[:, k], (0.002, 0.998)) for r in rows if len(r)])
        low, high = (quantiles[:, 0].min(), quantiles[:, 1].max()) if len(quantiles) else (-1.0, 1.0)
        width = (high - low) or 1.0
        spans.append((float(low - room * width), float(high + room * width)))
    return spans[0], spans[1]


def density(
    log_prob: Callable[[Tensor], Tensor], view: Window, *, names: Sequence[str] = ("x₀", "x₁"), like: Tensor | None = None, top: float | None = None
) -> go.Figure:
    r"""The density exp(log_prob) over a window of the plane.

    Args:
        log_prob: Function of points (n, 2), for instance ``flow.log_prob``; shape (n,).
        view: ((x low, x high), (y low, y high)).
        names: Labels of the axes.
        like: A tensor with the dtype and device of the points to ask for; default float32 on the CPU.
        top: Density at the upper end of the colours; default its largest value here.

    Example:
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> density(normal.log_prob, ((-3, 3), (-3, 3))).data[0].z.shape
        (140, 140)
    """
    (x_low, x_high), (y_low, y_high) = view
    like = torch.zeros(()) if like is None else like
    x, y = (low + (torch.arange(CELLS, dtype=torch.float64) + 0.5) * (high - low) / CELLS for low, high in view)
    points = torch.stack([g.flatten() for g in torch.meshgrid(x, y, indexing="xy")], -1).to(like)
    with torch.no_grad():
        value = log_prob(points).double().exp().view(CELLS, CELLS).cpu().numpy()
    finite = value[np.isfinite(value)]
    top = top if top is not None else float(finite.max()) if len(finite) else 1.0
    figure = _plane(view, names)
    figure.update_layout(height=figure.layout.height + _COLOUR_BAR, margin={"b": _MARGIN["b"] + _COLOUR_BAR})
    figure.add_trace(
        go.Heatmap(
            x=numbers(x),
            y=numbers(y),
            z=numbers(value),
            zmin=0,
            zmax=top or 1.0,
            colorscale=DENSITY_SCALE,
            colorbar=colour_bar(),
            hovertemplate="(%{x:.3g}, %{y:.3g})<br>density %{z:.3g}<extra></extra>",
        )
    )
    return figure


def scatter(
    x: Any, view: Window | None = None, *, names: Sequence[str] = ("x₀", "x₁"), colour: str = DATA, weight: Tensor | None = None
) -> go.Figure:
    """Points of the plane, thinned by weight where there are many.

    Args:
        x: Points, shape (n, 2).
        view: ((x low, x high), (y low, y high)); default all but the outermost.
        names: Labels of the axes.
        colour: Of the markers.
        weight: Weights of the points, shape (n,).

    Example:
        >>> len(scatter(torch.randn(10_000, 2)).data[0].x)
        3000
    """
    rows = as_rows(x)
    figure = _plane(view if view is not None else window(rows), names)
    figure.add_trace(points(rows, colour, weight=weight))
    return figure


def points(rows: np.ndarray, colour: str, *, name: str = "", weight: Tensor | None = None, seed: int = 0) -> go.Scatter:
    """A cloud of small markers, thinned."""
    shown = rows[thinned(len(rows), weight, seed=seed)]
    marker = {"size": 3.2, "color": colour, "opacity": 0.55 if len(shown) > 800 else 0.75, "line": {"width": 0}}
    hover = "(%{x:.3g}, %{y:.3g})<extra>" + name + "</extra>"
    return go.Scatter(x=numbers(shown[:, 0]), y=numbers(shown[:, 1]), mode="markers", marker=marker, name=name, hovertemplate=hover)


def _plane(view: Window, names: Sequence[str]) -> go.Figure:
    (x_low, x_high), (y_low, y_high) = view
    # Equal scales where they make sense; a plane of pressure against temperature keeps its own.
    ratio = (y_high - y_low) / (x_high - x_low)
    equal = 0.4 < ratio < 2.5
    side = min(max(ratio, 0.5), 1.4) if equal else 0.7
    inner = _WIDTH - _MARGIN["l"] - _MARGIN["r"]
    figure = blank(width=_WIDTH, height=round(inner * side) + _MARGIN["t"] + _MARGIN["b"])
    figure.update_layout(margin=_MARGIN, showlegend=False)
    figure.update_xaxes(range=[x_low, x_high], title={"text": names[0]}, constrain="domain", nticks=7)
    figure.update_yaxes(range=[y_low, y_high], title={"text": names[1]}, constrain="domain", nticks=7)
    if equal:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure
