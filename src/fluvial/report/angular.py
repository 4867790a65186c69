"""Angles on the circle."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.report.histograms import Histogram
from fluvial.report.theme import DATA, LINE, MODEL, THIRD, as_rows, blank, numbers

_BINS = 72


def circle(
    data: Any,
    model: Any,
    log_prob: Callable[[Tensor], Tensor] | None = None,
    *,
    weight: Tensor | None = None,
    like: Tensor | None = None,
    labels: tuple[str, str] = ("data", "samples"),
) -> go.Figure:
    """Histograms of the angle of points of S¹, with the density as a line.

    Args:
        data: Unit vectors, shape (n, 2).
        model: Unit vectors, shape (m, 2).
        log_prob: Function of unit vectors (k, 2) that returns their log-density per radian, shape (k,).
        weight: Weights of the data, shape (n,).
        like: A tensor with the dtype and device of the points that the function takes; default float32 on the CPU.
        labels: What the two are called.

    Example:
        >>> turn = torch.linspace(0, 6.28, 500)
        >>> points = torch.stack([turn.cos(), turn.sin()], -1)
        >>> len(circle(points, points).data)
        2
    """
    edges = np.linspace(-180, 180, _BINS + 1)
    w = None if weight is None else weight.detach().double().cpu().numpy()
    figure = blank(height=340)
    for points, name, colour, weights in ((data, labels[0], DATA, w), (model, labels[1], MODEL, None)):
        rows = as_rows(points)
        histogram = Histogram.of(np.degrees(np.arctan2(rows[:, 1], rows[:, 0])), edges, weights)
        # Per radian, like the density.
        y = np.degrees(np.append(histogram.density, histogram.density[-1:]))
        figure.add_trace(go.Scatter(x=numbers(edges), y=numbers(y), line={"shape": "hv", "color": colour, "width": 2}, mode="lines", name=name))
    if log_prob is not None:
        turn = torch.linspace(-math.pi, math.pi, 361, dtype=torch.float64)
        with torch.no_grad():
            value = log_prob(torch.stack([turn.cos(), turn.sin()], -1).to(torch.zeros(()) if like is None else like)).double().exp()
        figure.add_trace(
            go.Scatter(x=numbers(turn * 180 / math.pi), y=numbers(value), line={"color": THIRD, "dash": "dash"}, mode="lines", name="density")
        )
    figure.add_hline(y=1 / (2 * math.pi), line={"color": LINE, "dash": "dot"})
    figure.update_layout(
        xaxis={"title": {"text": "angle, degrees"}, "tickvals": list(range(-180, 181, 60)), "range": [-180, 180]},
        yaxis={"title": {"text": "density per radian"}, "rangemode": "tozero"},
        margin={"t": 34},
    )
    return figure
