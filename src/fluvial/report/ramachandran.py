"""Maps of the torus: one angle against another, in degrees, as Ramachandran drew them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.manifolds import Torus
from fluvial.report.globe import log_density_limits
from fluvial.report.plane import points
from fluvial.report.theme import DATA, DENSITY_SCALE, blank, colour_bar, numbers

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
