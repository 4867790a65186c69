"""Pairs of columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from fluvial.report.histograms import Histogram, edges_for, most_different
from fluvial.report.theme import DATA, MODEL, as_rows, numbers, styled

_BINS = 36
_MASSES = (0.5, 0.9)


def corner(
    data: Any,
    model: Any,
    *,
    names: Sequence[str] | None = None,
    weight: Tensor | None = None,
    most: int = 6,
    period: float | None = None,
    labels: tuple[str, str] = ("data", "samples"),
) -> go.Figure:
    """Every pair of columns as contours that hold 50 % and 90 % of the rows, with the single columns on the diagonal.

    Args:
        data: Rows, shape (n, columns).
        model: Rows, shape (m, columns).
        names: Labels of the columns.
        weight: Weights of the data, shape (n,).
        most: Columns at most; of more, those are taken in which data and samples differ most.
        period: Length after which every column repeats, 360 for degrees: all of it is then shown, from −period/2 to period/2.
        labels: What the two are called.

    Example:
        >>> import torch
        >>> rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> figure = corner(rows, rows)
        >>> len([trace for trace in figure.data if trace.type == "contour"])
        6
    """
    clouds = as_rows(data), as_rows(model)
    names = names if names is not None else [f"x{k}" for k in range(clouds[0].shape[1])]
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    chosen = most_different(*clouds, most=most)
    clouds = tuple(cloud[:, chosen] for cloud in clouds)
    n = len(chosen)
    if period is None:
        edges = [edges_for(clouds[0][:, k], clouds[1][:, k], bins=_BINS) for k in range(n)]
    else:
        edges = [np.linspace(-period / 2, period / 2, _BINS + 1)] * n
    wrap = period is not None
    w = None if weight is None else weight.detach().double().cpu().numpy()
    size = 150 if n > 3 else 210
    triangle = [[{} if j <= i else None for j in range(n)] for i in range(n)]
    figure = make_subplots(n, n, horizontal_spacing=0.06 / n, vertical_spacing=0.06 / n, specs=triangle)
    styled(figure, height=size * n + 90, width=size * n + 110)
    for cloud, weights, name, colour in zip(clouds, (w, None), labels, (DATA, MODEL)):
        for i in range(n):
            histogram = Histogram.of(cloud[:, i], edges[i], weights)
            y = numbers(np.append(histogram.density, histogram.density[-1:]) / max(histogram.density.max(), 1e-300))
            line = {"shape": "hv", "color": colour, "width": 1.8}
            figure.add_trace(
                go.Scatter(x=numbers(edges[i]), y=y, line=line, mode="lines", name=name, legendgroup=name, showlegend=i == 0, hoverinfo="skip"),
                row=i + 1,
                col=i + 1,
            )
            for j in range(i):
                figure.add_trace(_contours(cloud[:, j], cloud[:, i], edges[j], edges[i], weights, colour, name, wrap=wrap), row=i + 1, col=j + 1)
    for i in range(n):
        for j in range(i + 1):
            first, last = j == 0 and i > 0, i == n - 1
            x_range, y_range = ([float(edges[k][0]), float(edges[k][-1])] for k in (j, i))
            x_title, y_title = names[chosen[j]] if last else None, names[chosen[i]] if first else None
            figure.update_xaxes(range=x_range, showticklabels=last, title={"text": x_title}, nticks=4, tickangle=0, row=i + 1, col=j + 1)
            if i == j:
                figure.update_yaxes(range=[0, 1.1], showticklabels=False, ticks="", row=i + 1, col=j + 1)
            else:
                figure.update_yaxes(range=y_range, showticklabels=first, title={"text": y_title}, nticks=4, row=i + 1, col=j + 1)
    figure.update_layout(margin={"t": 36}, legend={"x": 1, "xanchor": "right", "y": 1, "yanchor": "top", "orientation": "v"})
    return figure


def _contours(
    x: np.ndarray, y: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray, weight: np.ndarray | None, colour: str, name: str, *, wrap: bool
) -> go.Contour:
    from scipy.ndimage import gaussian_filter

    count = np.histogram2d(x, y, (x_edges, y_edges), weights=weight)[0].T
    smooth = np.clip(gaussian_filter(count, 1.2, mode="wrap" if wrap else "reflect"), 0, None)
    # Share of the weight in cells at least as dense: its contour at 0.9 holds 90 %.
    order = np.argsort(smooth, axis=None)[::-1]
    mass = np.empty(smooth.size)
    mass[order] = np.cumsum(smooth.flat[order]) / max(smooth.sum(), 1e-300)
    return go.Contour(
        x=numbers((x_edges[1:] + x_edges[:-1]) / 2),
        y=numbers((y_edges[1:] + y_edges[:-1]) / 2),
        z=numbers(mass.reshape(smooth.shape)),
        contours={"start": _MASSES[0], "end": _MASSES[1], "size": _MASSES[1] - _MASSES[0], "coloring": "none"},
        line={"color": colour, "width": 1.6},
        showscale=False,
        hoverinfo="skip",
        name=name,
        legendgroup=name,
        showlegend=False,
    )
