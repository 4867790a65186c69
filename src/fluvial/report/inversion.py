"""How well the decoder undoes the encoder."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from fluvial.report.theme import DATA, LINE, MODEL, as_rows, blank, numbers, text_in


def distances(distance: Any, *, spread: float | None = None, weight: Tensor | None = None) -> go.Figure:
    """Histogram of |x − decode(encode(x))| on a logarithmic axis, with its median and root mean square.

    Args:
        distance: One distance per row, shape (n,), in the units of the data.
        spread: Root mean square distance of the data from their mean, drawn for comparison.
        weight: Weights of the rows, shape (n,).

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
    logs = np.log10(values[keep])
    low, high = float(logs.min()), float(logs.max())
    edges = np.linspace(low - 0.05, max(high, low + 0.2) + 0.05, 46)
    share = np.histogram(logs, edges, weights=w[keep])[0] / w.sum()
    figure.add_trace(
        go.Bar(
            x=numbers(10 ** ((edges[1:] + edges[:-1]) / 2)),
            y=numbers(share),
            width=numbers(10 ** edges[1:] - 10 ** edges[:-1]),
            marker={"color": MODEL, "opacity": 0.75},
            hovertemplate="%{x:.3g}: %{y:.2%}<extra></extra>",
        )
    )
    rms = float(np.sqrt(np.average(values[keep] ** 2, weights=w[keep]))) if w[keep].sum() > 0 else float("nan")
    marks = [("median", float(np.median(values[keep])), DATA, 1.0), ("root mean square", rms, DATA, 0.88), ("spread of the data", spread, LINE, 0.76)]
    shown = [mark for mark in marks if mark[1] is not None and mark[1] > 0]
    for name, at, colour, height in shown:
        figure.add_shape(type="line", x0=at, x1=at, y0=0, y1=height, yref="y domain", line={"color": colour, "dash": "dot", "width": 1.6})
        figure.add_annotation(x=np.log10(at), y=height, yref="y domain", text=f"{name} {at:.3g}", showarrow=False, yanchor="bottom", xanchor="auto")
    ends = np.log10([10**low, 10**high, *(mark[1] for mark in shown)])
    room = 0.12 * (ends.max() - ends.min()) + 0.1
    figure.update_layout(
        xaxis={
            "type": "log",
            "title": {"text": "distance between a row and its reconstruction"},
            "range": [float(ends.min() - room), float(ends.max() + room)],
            "exponentformat": "power",
            "dtick": 1 if ends.max() - ends.min() > 1 else None,
        },
        yaxis={"title": {"text": "share of rows"}, "tickformat": ".0%", "nticks": 5},
        margin={"t": 30},
        showlegend=False,
    )
    return figure
