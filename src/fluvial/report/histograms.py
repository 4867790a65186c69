"""One column at a time: data and samples as histograms, with their ratio below."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from fluvial.report.theme import DATA, LINE, MODEL, as_rows, blank, numbers

BINS = 40
_RATIOS = (0.2, 1.8)


@dataclass(frozen=True)
class Histogram:
    """A normalised histogram with its statistical error.

    Attributes:
        edges: Shape (bins + 1,).
        density: Share of weight per width, shape (bins,).
        error: Its standard error √Σw² in the same normalisation.
    """

    edges: np.ndarray
    density: np.ndarray
    error: np.ndarray

    @staticmethod
    def of(values: np.ndarray, edges: np.ndarray, weight: np.ndarray | None = None) -> "Histogram":
        """Count values within edges; what lies outside belongs to the total all the same."""
        w = np.ones(len(values)) if weight is None else weight
        content = np.histogram(values, edges, weights=w)[0]
        square = np.histogram(values, edges, weights=w**2)[0]
        scale = 1 / (w.sum() * np.diff(edges)) if w.sum() > 0 else np.zeros(len(edges) - 1)
        return Histogram(edges, content * scale, np.sqrt(square) * scale)


def edges_for(*columns: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Equal bins over all but the outermost half per cent of each column, fewer where the rows are few."""
    bins = max(12, min(bins, math.isqrt(min(map(len, columns)))))
    finite = [column[np.isfinite(column)] for column in columns]
    quantiles = np.array([np.quantile(column, (0.005, 0.995)) for column in finite if len(column)])
    low, high = (float(quantiles[:, 0].min()), float(quantiles[:, 1].max())) if len(quantiles) else (0.0, 1.0)
    # A constant column still needs a bin of some width, which its own size must not swallow.
    room = 0.06 * (high - low) or max(1.0, abs(low)) * 0.5
    return np.linspace(low - room, high + room, bins + 1)


def marginal(
    data: Any,
    model: Any,
    *,
    name: str = "x",
    weight: Tensor | None = None,
    labels: tuple[str, str] = ("data", "samples"),
    edges: np.ndarray | None = None,
) -> go.Figure:
    """Histograms of one column of data and of samples, and below them samples / data with errors.

    The grey band around 1 is the statistical error of the data, the bars are that of the samples.

    Args:
        data: Values, shape (n,).
        model: Values, shape (m,).
        name: Label of the axis.
        weight: Weights of the data, shape (n,).
        labels: What the two are called.
        edges: Bin edges; default at most 40 bins over all but the outermost values.

    Example:
        >>> [trace.name for trace in marginal(np.arange(50.0), np.arange(50.0)).data]
        ['data', 'samples', None, 'ratio']
    """
    ours, theirs = as_rows(data)[:, 0], as_rows(model)[:, 0]
    edges = edges_for(ours, theirs) if edges is None else edges
    w = None if weight is None else weight.detach().double().cpu().numpy()
    a, b = Histogram.of(ours, edges, w), Histogram.of(theirs, edges)
    figure = blank(height=310)
    figure.add_trace(_steps(a, labels[0], DATA, fill=True))
    figure.add_trace(_steps(b, labels[1], MODEL))
    _add_ratio(figure, a, b)
    figure.update_layout(
        xaxis={"title": {"text": name}, "anchor": "y2", "range": [float(edges[0]), float(edges[-1])]},
        yaxis={"domain": [0.36, 1], "rangemode": "tozero", "nticks": 5, "title": {"text": "density"}},
        yaxis2={"domain": [0, 0.28], "range": list(_RATIOS), "tickvals": [0.5, 1, 1.5], "title": {"text": "ratio"}},
        margin={"t": 30, "b": 46},
    )
    figure.add_shape(type="line", xref="x domain", x0=0, x1=1, yref="y2", y0=1, y1=1, line={"color": LINE, "width": 1})
    return figure


def _add_ratio(figure: go.Figure, data: Histogram, model: Histogram) -> None:
    """Model over data where the data say anything, on the second vertical axis."""
    centres = (data.edges[1:] + data.edges[:-1]) / 2
    told = (data.density > 0) & (data.error < 0.5 * data.density)
    below = np.where(told, data.density, np.nan)
    around = np.nan_to_num(data.error / below, nan=0.0)
    band = {"x": numbers(np.concatenate([centres, centres[::-1]])), "y": numbers(np.concatenate([1 + around, (1 - around)[::-1]]))}
    look = {"fill": "toself", "fillcolor": LINE, "line": {"width": 0}, "mode": "lines", "opacity": 0.6}
    figure.add_trace(go.Scatter(**band, **look, hoverinfo="skip", showlegend=False, yaxis="y2"))
    ratio = np.nan_to_num(model.density / below, nan=-1.0)
    low, high = _RATIOS
    # What lies outside the panel is a triangle at its edge.
    figure.add_trace(
        go.Scatter(
            x=numbers(centres),
            y=numbers(np.where(ratio < 0, np.nan, ratio.clip(low + 0.06, high - 0.06))),
            error_y={"array": numbers(np.where((ratio > low) & (ratio < high), model.error / below, np.nan)), "width": 0, "thickness": 1.2},
            mode="markers",
            marker={
                "color": MODEL,
                "size": 5,
                "symbol": np.where(ratio > high, "triangle-up", np.where(ratio < low, "triangle-down", "circle")).tolist(),
            },
            customdata=numbers(ratio),
            name="ratio",
            showlegend=False,
            yaxis="y2",
            hovertemplate="ratio %{customdata:.3f}<extra></extra>",
        )
    )


def _steps(histogram: Histogram, name: str, colour: str, *, fill: bool = False) -> go.Scatter:
    return go.Scatter(
        x=numbers(histogram.edges),
        y=numbers(np.append(histogram.density, histogram.density[-1:])),
        line={"shape": "hv", "color": colour, "width": 2},
        mode="lines",
        fill="tozeroy" if fill else None,
        fillcolor="rgba(213,94,0,0.16)" if fill else None,
        name=name,
        hovertemplate="%{x:.3g}: %{y:.3g}<extra>" + name + "</extra>",
    )


def most_different(data: np.ndarray, model: np.ndarray, most: int = 6) -> list[int]:
    """The columns, in their order, whose data and samples differ most by the Kolmogorov–Smirnov distance; all where there are few."""
    columns = range(data.shape[1])
    if len(columns) <= most:
        return list(columns)
    distance = [_kolmogorov_smirnov(data[:, k], model[:, k]) for k in columns]
    return sorted(np.argsort(distance)[::-1][:most].tolist())


def _kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b)).max())
