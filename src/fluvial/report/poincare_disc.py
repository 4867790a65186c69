"""The hyperbolic plane as Poincaré drew it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.report.globe import log_density_limits
from fluvial.report.plane import points
from fluvial.report.theme import DATA, DENSITY_SCALE, LINE, as_rows, blank, colour_bar, numbers

CELLS = 140
CIRCLES = (1, 2, 3, 4)  # distances from the centre
_WIDTH, _MARGIN = 360, {"l": 10, "r": 10, "t": 10, "b": 10}
_COLOUR_BAR = 40  # pixels below the plot


def disc(
    what: Any,
    *,
    colour: str = DATA,
    weight: Tensor | None = None,
    like: Tensor | None = None,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    r"""The whole hyperbolic plane as the unit disc, its boundary infinitely far away; thin circles have the distances 1, 2, 3, 4 from the centre.

    Log-densities are in nats with respect to the hyperbolic area 4 dx₀ dx₁ / (1 − \|x\|²)².

    Args:
        what: Points of the unit disc, shape (n, 2), drawn as markers; or a function of such points that returns their log-density
            (``flow.log_prob``), drawn as colours.
        colour: Of the markers.
        weight: Weights of the points, shape (n,).
        like: A tensor with the dtype and device of the points that the function takes; default float32 on the CPU.
        limits: Log-densities at both ends of the colours; default the largest value and 10 nats below it, or less where nothing is so low.

    Example:
        >>> normal = lambda x: -torch.asinh(2 * x.norm(dim=1) / (1 - x.square().sum(1))).square()
        >>> figure = disc(normal)
        >>> figure.data[0].z.shape, bool(np.isnan(figure.data[0].z[0, 0]))
        ((140, 140), True)
    """
    bar = _COLOUR_BAR if callable(what) else 0
    figure = blank(width=_WIDTH, height=_WIDTH + bar)
    figure.update_layout(margin=_MARGIN | {"b": _MARGIN["b"] + bar}, showlegend=False)
    figure.update_xaxes(visible=False, range=[-1.04, 1.04], constrain="domain")
    figure.update_yaxes(visible=False, range=[-1.04, 1.04], scaleanchor="x", scaleratio=1, constrain="domain")
    if callable(what):
        figure.add_trace(_colours(what, torch.zeros(()) if like is None else like, limits))
    else:
        markers = points(as_rows(what), colour, weight=weight)
        radius = np.hypot(*np.asarray([markers.x, markers.y], np.float64)).clip(0, 1 - 1e-7)
        markers.update(
            customdata=numbers(2 * np.arctanh(radius)),
            hovertemplate="(%{x:.3g}, %{y:.3g})<br>%{customdata:.3g} from the centre<extra></extra>",
        )
        figure.add_trace(markers)
    # A broad boundary hides the steps of the cells.
    figure.add_traces(_circles(boundary=3.0 if callable(what) else 1.4))
    return figure


def _colours(log_prob: Callable[[Tensor], Tensor], like: Tensor, limits: tuple[float, float] | None) -> go.Heatmap:
    centres = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    x, y = np.meshgrid(centres, centres)
    inside = np.hypot(x, y) < 1
    values = np.full((CELLS, CELLS), np.nan)
    with torch.no_grad():
        values[inside] = log_prob(torch.as_tensor(np.stack([x[inside], y[inside]], -1)).to(like)).double().cpu().numpy()
    low, high = limits if limits is not None else log_density_limits(values)
    return go.Heatmap(
        x=numbers(centres),
        y=numbers(centres),
        # −∞ would be drawn as a hole; it is the lowest colour.
        z=numbers(np.where(inside & ~np.isnan(values), np.maximum(values, low - 1), np.nan)),
        zmin=low,
        zmax=high,
        colorscale=DENSITY_SCALE,
        colorbar=colour_bar(),
        hovertemplate="(%{x:.2f}, %{y:.2f})<br>log-density %{z:.3g}<extra></extra>",
    )


def _circles(boundary: float) -> list[go.Scatter]:
    """The boundary, and circles of known distance as one line with gaps."""
    turn = np.linspace(0, 2 * np.pi, 121)
    x, y = [], []
    for distance in CIRCLES:
        radius = math.tanh(distance / 2)
        x += [*numbers(radius * np.cos(turn)), None]
        y += [*numbers(radius * np.sin(turn)), None]
    edge = {"color": "#8d949e", "width": boundary}
    return [
        go.Scatter(x=x, y=y, mode="lines", line={"color": LINE, "width": 0.7}, hoverinfo="skip"),
        go.Scatter(x=numbers(np.cos(turn)), y=numbers(np.sin(turn)), mode="lines", line=edge, hoverinfo="skip"),
    ]
