"""The look that all figures share: readable on light and on dark, told apart by colour-blind eyes."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

DATA, MODEL, THIRD, FOURTH, FIFTH = "#d55e00", "#2f8fd8", "#009e73", "#cc79a7", "#b8860b"
INK, LINE, GRID = "#6b7480", "rgba(128,136,148,0.55)", "rgba(128,136,148,0.22)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
DENSITY_SCALE = "Viridis"

MOST_POINTS = 3000  # markers in one panel: more hide each other and make a phone slow

_AXIS: dict[str, Any] = {
    "gridcolor": GRID,
    "linecolor": LINE,
    "tickcolor": LINE,
    "ticks": "outside",
    "ticklen": 4,
    "zeroline": False,
    "automargin": True,
    "exponentformat": "power",
    "title": {"standoff": 6, "font": {"size": 12.5}},
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [DATA, MODEL, THIRD, FOURTH, FIFTH],
        "margin": {"l": 48, "r": 12, "t": 12, "b": 44},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "bargap": 0,
    }
)


def blank(*, height: int, width: int | None = None) -> go.Figure:
    """An empty figure in the shared look. With a width, the two say its aspect, which the page keeps at every size."""
    return styled(go.Figure(), height=height, width=width)


def styled(figure: go.Figure, *, height: int, width: int | None = None) -> go.Figure:
    """Give a figure the shared look."""
    return figure.update_layout(template=_TEMPLATE, height=height, width=width)


def text_in(figure: go.Figure, text: str) -> go.Figure:
    """Write in the middle of a figure why there is nothing else in it."""
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def as_rows(x: Any) -> np.ndarray:
    """Tensor or array (n, *event) as float64 (n, prod(event))."""
    array = x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x, np.float64)
    return array.reshape(len(array), -1)


def thinned(n: int, weight: Tensor | None = None, *, most: int = MOST_POINTS, seed: int = 0) -> np.ndarray:
    """Numbers of the rows to draw as markers: all, or at most `most` of n, drawn by their weights."""
    rng = np.random.default_rng(seed)
    if weight is None:
        return np.arange(n) if n <= most else np.sort(rng.permutation(n)[:most])
    share = weight.detach().double().cpu().clamp_min(0).numpy()
    if not share.sum() > 0:
        return np.arange(0)
    # With replacement, so that the cloud has the density of the weighted distribution.
    return np.sort(rng.choice(n, size=min(n, most), p=share / share.sum()))


def numbers(values: Any, dtype: Any = np.float32) -> np.ndarray:
    """Compact enough for a page; infinities, which plotly draws as nothing, become NaN."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    array = array.astype(np.float64)
    return np.where(np.isfinite(array), array, np.nan).astype(dtype)


def colour_bar() -> dict[str, Any]:
    """A slim scale below the plot, so that panels with and without one stay aligned."""
    return {
        "orientation": "h",
        "thickness": 9,
        "len": 0.9,
        "x": 0.5,
        "yref": "container",
        "y": 0.02,
        "yanchor": "bottom",
        "outlinewidth": 0,
        "ticks": "outside",
        "ticklen": 3,
        "nticks": 6,
    }


def generator(like: Tensor, seed: int) -> torch.Generator:
    """A source of randomness on the device of `like`."""
    return torch.Generator(like.device).manual_seed(seed)
