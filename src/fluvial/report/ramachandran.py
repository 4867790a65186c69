"""Maps of the torus: one angle against another, in degrees, as Ramachandran drew them."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from fluvial.manifolds import Torus
from fluvial.report.globe import log_density_limits
from fluvial.report.plane import points
from fluvial.report.theme import DATA, DENSITY_SCALE, blank, colour_bar, numbers, styled

CELLS = 120
TICKS = list(range(-180, 181, 60))
EDGES = np.linspace(-180, 180, 73)
_WIDTH, _MARGIN = 360, {"l": 52, "r": 18, "t": 10, "b": 50}
_COLOUR_BAR = 40  # pixels below the plot


def torus_map(
    what: Any,
    *,
    names: Sequence[str] = ("φ", "ψ"),
    colour: str = DATA,
    weight: Tensor | None = None,
    like: Tensor | None = None,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """The whole torus T²: the first angle to the right, the second upwards, both from −180° to 180°.

    Opposite edges are one line. Log-densities are in nats per square radian.

    Args:
        what: Points of shape (n, 2, 2), drawn as markers; or a function of such points that returns their log-density
            (``flow.log_prob``), drawn as colours.
        names: What the two angles are called.
        colour: Of the markers.
        weight: Weights of the points, shape (n,).
        like: A tensor with the dtype and device of the points that the function takes; default float32 on the CPU.
        limits: Log-densities at both ends of the colours; default the largest value and 10 nats below it, or less where nothing is so low.

    Example:
        >>> uniform = lambda x: torch.full((len(x),), -2 * math.log(2 * math.pi))
        >>> torus_map(uniform).data[0].z.shape
        (120, 120)
    """
    bar = _COLOUR_BAR if callable(what) else 0
    height = _WIDTH - _MARGIN["l"] - _MARGIN["r"] + _MARGIN["t"] + _MARGIN["b"]
    figure = blank(width=_WIDTH, height=height + bar)
    figure.update_layout(margin=_MARGIN | {"b": _MARGIN["b"] + bar}, showlegend=False)
    axis = {"range": [-180, 180], "tickvals": TICKS, "constrain": "domain"}
    figure.update_xaxes(**axis, title={"text": f"{names[0]}, degrees"})
    figure.update_yaxes(**axis, title={"text": f"{names[1]}, degrees"}, scaleanchor="x", scaleratio=1)
    if callable(what):
        figure.add_trace(_colours(what, torch.zeros(()) if like is None else like, limits))
    else:
        figure.add_trace(points(degrees(what), colour, weight=weight))
    return figure


def class_maps(pairs: Mapping[str, tuple[go.Figure, go.Figure]], *, most: int = 1000) -> go.Figure:
    """Small maps of points for every class, data and samples side by side.

    Args:
        pairs: Class -> what `torus_map` drew of its data and of samples for it.
        most: Markers in one map at most.

    Example:
        >>> points = Torus.from_angles(torch.zeros(5, 2))
        >>> len(class_maps({"glycine": (torus_map(points), torus_map(points))}).data)
        2
    """
    across = min(2, len(pairs))
    down = math.ceil(len(pairs) / across)
    titles = [f"{name}: {of}" for name in pairs for of in ("data", "samples")]
    height, width = 262 * down + 40, 512 * across + 40
    # Titles stand in the gaps between the rows, which are of the same height however many there are.
    gaps = {"horizontal_spacing": 0.02, "vertical_spacing": 0.0 if down == 1 else 34 / height}
    figure = make_subplots(down, 2 * across, subplot_titles=titles, shared_xaxes=True, shared_yaxes=True, **gaps)
    styled(figure, height=height, width=width).update_layout(showlegend=False, margin={"t": 30})
    for k, drawn in enumerate(chain.from_iterable(pairs.values())):
        (trace,) = drawn.data
        step = max(1, math.ceil(len(trace.x) / most))
        small = {"x": trace.x[::step], "y": trace.y[::step], "marker": trace.marker.to_plotly_json() | {"size": 2.6}}
        figure.add_trace(go.Scatter(mode="markers", hovertemplate=trace.hovertemplate, **small), row=k // (2 * across) + 1, col=k % (2 * across) + 1)
    axis = {"range": [-180, 180], "tickvals": [-120, 0, 120], "showline": True, "mirror": True}
    figure.update_xaxes(**axis).update_yaxes(**axis)
    first = next(iter(pairs.values()))[0].layout
    for k in range(max(0, len(titles) - 2 * across), len(titles)):
        # The lowest map of every column, which need not be in the last row.
        figure.update_xaxes(showticklabels=True, title=first.xaxis.title, row=k // (2 * across) + 1, col=k % (2 * across) + 1)
    figure.update_yaxes(title=first.yaxis.title, col=1)
    return figure.update_annotations(font={"size": 12})


def degrees(x: Any) -> np.ndarray:
    """Points of a torus (n, k, 2), tensor or array -> angles (n, k) in degrees, in [−180, 180)."""
    tensor = x.detach().cpu().double() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x, np.float64))
    return Torus.to_degrees(tensor).numpy()


def angle_labels(names: Sequence[str] | None, k: int) -> list[str]:
    """What k angles are called: their names where there is one for each, else φ and ψ of two and φ₁, φ₂, … of more."""
    if names is not None and len(names) == k:
        return list(names)
    return ["φ", "ψ"] if k == 2 else [f"φ{''.join('₀₁₂₃₄₅₆₇₈₉'[int(digit)] for digit in str(j + 1))}" for j in range(k)]


def _colours(log_prob: Callable[[Tensor], Tensor], like: Tensor, limits: tuple[float, float] | None) -> go.Heatmap:
    centres = (torch.arange(CELLS, dtype=torch.float64) + 0.5) * (2 * math.pi / CELLS) - math.pi
    angles = torch.stack([g.flatten() for g in torch.meshgrid(centres, centres, indexing="xy")], -1)
    with torch.no_grad():
        values = log_prob(Torus.from_angles(angles).to(like)).double().view(CELLS, CELLS).cpu().numpy()
    low, high = limits if limits is not None else log_density_limits(values)
    return go.Heatmap(
        x=numbers(centres * (180 / math.pi)),
        y=numbers(centres * (180 / math.pi)),
        # −∞ would be drawn as a hole; it is the lowest colour.
        z=numbers(np.maximum(values, low - 1)),
        zmin=low,
        zmax=high,
        colorscale=DENSITY_SCALE,
        colorbar=colour_bar(),
        hovertemplate="(%{x:.0f}°, %{y:.0f}°)<br>log-density %{z:.3g}<extra></extra>",
    )
