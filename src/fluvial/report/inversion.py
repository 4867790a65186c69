"""How well the decoder undoes the encoder."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from fluvial.report.theme import DATA, LINE, MODEL, as_rows, blank, numbers, text_in


def distances(distance: Any, *, spread: float | None = None, weight: Tensor | None = None, measure: str = "distance") -> go.Figure:
    """Histogram of |x − decode(encode(x))| on a logarithmic axis, with its median and root mean square.

    Args:
        distance: One distance per row, shape (n,), in the units of the data.
        spread: Root mean square distance of the data from their mean, drawn for comparison.
        weight: Weights of the rows, shape (n,).
        measure: What the distance is, with its unit, such as "geodesic distance, radians".

    Example:
        >>> len(distances(np.array([0.1, 0.2, 0.3])).data[0].x) > 1
        True
    """
    values = as_rows(distance)[:, 0]
    w = np.ones(len(values)) if weight is None else weight.detach().double().cpu().numpy()
    keep = np.isfinite(values) & (values > 0)
    figure = blank(height=300)
    if not keep.any():
        return text_in(figure, "all rows are reconstructed exactly" if (values == 0).all() else "no distance is finite")
    logs, w = np.log10(values[keep]), w / w.sum()
    low, high = float(logs.min()), float(logs.max())
    edges = np.linspace(low - 0.05, max(high, low + 0.2) + 0.05, 46)
    share = np.histogram(logs, edges, weights=w[keep])[0]
    left, right = 10 ** edges[:-1], 10 ** edges[1:]
    bars = {"x": numbers((left + right) / 2, np.float64), "width": numbers(right - left, np.float64), "y": numbers(share)}
    figure.add_trace(go.Bar(**bars, marker={"color": MODEL, "opacity": 0.75}, hovertemplate="%{x:.3g}: %{y:.2%}<extra></extra>"))
    order = np.argsort(values[keep])
    median = float(values[keep][order][min(np.searchsorted(np.cumsum(w[keep][order]), 0.5 * w[keep].sum()), len(order) - 1)])
    rms = float(np.sqrt((w[keep] * values[keep] ** 2).sum() / w[keep].sum()))
    marks = [("median", median, DATA, 0.93), ("root mean square", rms, DATA, 0.84), ("spread of the data", spread or 0.0, LINE, 0.75)]
    shown = [mark for mark in marks if mark[1] > 0]
    ends = np.log10([10**low, 10**high, *(mark[1] for mark in shown)])
    middle = (ends.min() + ends.max()) / 2
    for name, at, colour, top in shown:
        figure.add_shape(type="line", xref="x", x0=at, x1=at, y0=0, y1=top, yref="y domain", line={"color": colour, "dash": "dot", "width": 1.6})
        # Towards the side where there is more room; names of two lines close to each other part.
        anchor = "left" if np.log10(at) < middle and name != "median" else "right"
        text = {"text": f" {name} {at:.3g} ", "xanchor": anchor, "yanchor": "middle", "showarrow": False}
        figure.add_annotation(x=np.log10(at), y=top, yref="y domain", **text)
    name, _, unit = measure.partition(", ")
    room = 0.05 * (ends.max() - ends.min()) + 0.08
    figure.update_layout(
        xaxis={
            "type": "log",
            "title": {"text": f"{name} between a row and its reconstruction" + (f" ({unit})" if unit else "")},
            "range": [float(ends.min() - room), float(ends.max() + room)],
            "dtick": 1 if ends.max() - ends.min() > 2 else None,
        },
        # Room above the bars for the marks.
        yaxis={"title": {"text": "share of rows"}, "tickformat": ".0%", "nticks": 6, "range": [0, 1.4 * float(share.max())]},
        showlegend=False,
    )
    return figure
