"""The course of training."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fluvial.report.theme import DATA, FIFTH, FOURTH, LINE, MODEL, THIRD, blank, numbers, text_in

_KNOWN = {"step", "epoch", "seconds", "learning_rate", "skipped", "loss", "monitor", "nll", "nll_encoder", "gap", "beta", "reconstruction"}
_COLOURS = (MODEL, DATA, THIRD, FOURTH, FIFTH)
_PANEL, _SPACE = 190, 58  # pixels


def curves(history: Any, *, best: dict[str, Any] | None = None) -> go.Figure:
    """Loss and its terms, exact validation figures, reconstruction, β and learning rate against the step, one below the other.

    Bands are ± one standard error; a dotted line marks the step of the best weights. Panels for which there is nothing are left out.

    Args:
        history: What ``fluvial.fit`` returned, or a list of its rows.
        best: The row of the best weights; default the history's own, or the one with the smallest monitor.

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> figure = curves([{"step": 1, "loss": 2.0, "nll": 1.9}, {"step": 2, "loss": 1.5, "nll": 1.6}])
        >>> [trace.name for trace in figure.data]
        ['loss', 'NLL (decoder)']
    """
    rows = list(getattr(history, "rows", history))
    if not rows:
        raise ValueError("curves: the history has no rows")
    best = best or getattr(history, "best", None) or best_row(rows)
    panels = [(title, log, found) for title, log, select in _PANELS if (found := select(rows))]
    if not panels:
        return text_in(blank(height=_PANEL), "the history holds no figures")
    height = len(panels) * _PANEL + (len(panels) - 1) * _SPACE + 90
    inner = height - 90
    figure = blank(height=height)
    steps = [row["step"] for row in rows]
    for k, (title, log, found) in enumerate(panels, start=1):
        top = 1 - (k - 1) * (_PANEL + _SPACE) / inner
        legend = f"legend{k if k > 1 else ''}"
        domain = [max(0.0, top - _PANEL / inner), top]
        for trace in _traces(rows, found, log=log):
            figure.add_trace(trace.update(xaxis="x", yaxis=f"y{k if k > 1 else ''}", legend=legend))
        limits = _limits(rows, [key for key, _, _ in found], log=log)
        axis = {
            "domain": domain,
            "title": {"text": title},
            "type": "log" if log else "linear",
            "range": limits,
            "anchor": "x" if k == len(panels) else "free",
        }
        if log:
            axis |= {"exponentformat": "power", "dtick": 1 if limits is None or limits[1] - limits[0] > 1.2 else "D2"}
        figure.update_layout({f"yaxis{k if k > 1 else ''}": axis, legend: {"orientation": "h", "x": 0, "y": top, "yanchor": "bottom"}})
        if best is not None:
            figure.add_shape(
                type="line", x0=best["step"], x1=best["step"], y0=0, y1=1, yref=f"y{k if k > 1 else ''} domain", line={"color": LINE, "dash": "dot"}
            )
    bottom = f"y{len(panels) if len(panels) > 1 else ''}"
    figure.update_layout(
        xaxis={"title": {"text": "step"}, "anchor": bottom, "range": _padded(steps)}, margin={"l": 64, "t": 34, "b": 56}, hovermode="x"
    )
    if best is not None:
        figure.add_annotation(text="best weights", x=best["step"], y=1, yref="paper", xanchor="auto", yanchor="bottom", showarrow=False)
    return figure


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the smallest monitor, or None where none is finite."""
    finite = [row for row in rows if isinstance(row.get("monitor"), int | float) and math.isfinite(row["monitor"])]
    return min(finite, key=lambda row: row["monitor"]) if finite else None


Curve = tuple[str, str, str]  # key, name, colour


def _having(rows: list[dict[str, Any]], *curves: Curve) -> list[Curve]:
    return [curve for curve in curves if any(isinstance(row.get(curve[0]), int | float) for row in rows)]


def _loss(rows: list[dict[str, Any]]) -> list[Curve]:
    names = dict.fromkeys(name for row in rows for name in row)
    terms = [
        n
        for n in names
        if n not in _KNOWN and not n.endswith(("_error", "_bad_rows")) and not n.startswith(("validation_", "adapt_", "train_reconstruction"))
    ]
    return _having(
        rows,
        ("loss", "loss", _COLOURS[0]),
        *((n, n.removeprefix("train_").replace("_", " "), _COLOURS[(k + 1) % 5]) for k, n in enumerate(terms[:4])),
    )


def _nll(rows: list[dict[str, Any]]) -> list[Curve]:
    free = any("nll_encoder" in row for row in rows)
    return _having(
        rows,
        ("nll", "NLL (decoder)" if free or any("reconstruction" in row for row in rows) else "NLL", MODEL),
        ("nll_encoder", "NLL (encoder)", DATA),
    )


_PANELS: tuple[tuple[str, bool, Callable[[list[dict[str, Any]]], list[Curve]]], ...] = (
    ("validation NLL, nats", False, _nll),
    ("training loss", False, _loss),
    (
        "reconstruction",
        True,
        lambda rows: _having(
            rows, ("reconstruction", "validation, mean distance", MODEL), ("train_reconstruction", "training, mean square (standardised)", FIFTH)
        ),
    ),
    ("β and gap", True, lambda rows: _having(rows, ("beta", "β", THIRD), ("gap", "|NLL encoder − NLL decoder|, nats", FOURTH))),
    ("learning rate", False, lambda rows: _having(rows, ("learning_rate", "learning rate", FIFTH))),
)


def _traces(rows: list[dict[str, Any]], curves: list[Curve], *, log: bool) -> list[go.Scatter]:
    """For each curve its line and, where rows carry an error, the band around it."""
    traces = []
    for key, name, colour in curves:
        found = [(row["step"], row[key], row.get(f"{key}_error"), _when(row)) for row in rows if isinstance(row.get(key), int | float)]
        x, y, error, when = ([entry[k] for entry in found] for k in range(4))
        if any(isinstance(e, int | float) for e in error):
            width = np.array([e if isinstance(e, int | float) else 0.0 for e in error])
            low, high = np.array(y, float) - width, np.array(y, float) + width
            if log:
                low = np.maximum(low, np.array(y) / 10)
            band = {"x": np.concatenate([x, x[::-1]]), "y": numbers(np.concatenate([high, low[::-1]]))}
            traces.append(
                go.Scatter(**band, fill="toself", fillcolor=colour, opacity=0.22, line={"width": 0}, hoverinfo="skip", showlegend=False, mode="lines")
            )
        mode = "lines+markers" if len(x) < 12 else "lines"
        hover = "%{y:.5g}<br>step %{x}, %{customdata}"
        traces.append(
            go.Scatter(
                x=x,
                y=numbers(y, np.float64),
                name=name,
                mode=mode,
                line={"color": colour, "width": 2},
                marker={"size": 5},
                customdata=when,
                hovertemplate=hover,
            )
        )
    return traces


def _when(row: dict[str, Any]) -> str:
    seconds = row.get("seconds")
    if not isinstance(seconds, int | float):
        return ""
    clock = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
    return clock + (f", epoch {row['epoch']:.4g}" if isinstance(row.get("epoch"), int | float) else "")


def _limits(rows: list[dict[str, Any]], keys: list[str], *, log: bool) -> list[float] | None:
    """Room for all but the first steps, whose losses would flatten the rest; on a log axis as exponents. None lets plotly choose."""
    values = np.array([row[key] for key in keys for row in rows if isinstance(row.get(key), int | float)], float)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if len(values) == 0:
        return None
    if log:
        low, high = np.log10(values.min()), np.log10(values.max())
        return [float(low - 0.15), float(high + 0.15)]
    if len(values) < 8:
        return None
    low, high = values.min(), np.quantile(values, 0.95)
    room = 0.08 * (high - low)
    return [float(low - room), float(high + room)] if room > 0 else None


def _padded(steps: list[int]) -> list[float]:
    room = 0.02 * (max(steps) - min(steps)) or 1.0
    return [min(steps) - room, max(steps) + room]
