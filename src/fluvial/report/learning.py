"""The course of training."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fluvial.report.theme import DATA, FIFTH, FOURTH, INK, MODEL, THIRD, blank, numbers, text_in

_KNOWN = {
    "ess",
    "log_z",
    "reverse_kl",
    "temperature",
    "dropped",
    "effective",
    "step",
    "layer",
    "rotation",
    "epoch",
    "seconds",
    "learning_rate",
    "skipped",
    "loss",
    "monitor",
    "nll",
    "nll_encoder",
    "gap",
    "beta",
    "reconstruction",
}
_COLOURS = (MODEL, DATA, THIRD, FOURTH, FIFTH)
_PANEL, _SPACE = 185, 46  # pixels
_MARGIN = {"l": 64, "r": 12, "t": 34, "b": 56}


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
        ['NLL', 'loss']
    """
    rows = list(getattr(history, "rows", history))
    if not rows:
        raise ValueError("curves: the history has no rows")
    best = best or getattr(history, "best", None) or best_row(rows)
    panels = [(title, log, found) for title, log, select in _PANELS if (found := select(rows))]
    if not panels:
        return text_in(blank(height=_PANEL), "the history holds no figures")
    inner = len(panels) * _PANEL + (len(panels) - 1) * _SPACE
    figure = blank(height=inner + _MARGIN["t"] + _MARGIN["b"])
    for k, (title, log, found) in enumerate(panels):
        number = "" if k == 0 else str(k + 1)
        top = 1 - k * (_PANEL + _SPACE) / inner
        axis = {"domain": [max(0.0, top - _PANEL / inner), top], "title": {"text": title}, "nticks": 6, **_scale(rows, found, log=log)}
        legend = {"x": 0, "xanchor": "left", "y": top, "yanchor": "bottom", "orientation": "h"}
        figure.update_layout({f"yaxis{number}": axis, f"legend{number}": legend})
        for trace in _traces(rows, found, log=log):
            figure.add_trace(trace.update(xaxis="x", yaxis=f"y{number}", legend=f"legend{number}"))
        if best is not None:
            at = {"x0": best["step"], "x1": best["step"], "y0": 0, "y1": 1}
            figure.add_shape(type="line", xref="x", yref=f"y{number} domain", line={"color": INK, "dash": "dot", "width": 1.3}, **at)
    last = f"y{len(panels) if len(panels) > 1 else ''}"
    unit = "layer" if any("layer" in row for row in rows) else "step"
    title = unit if best is None else f"{unit} (dotted: best weights, {unit} {best['step']})"
    span = _padded([row["step"] for row in rows])
    return figure.update_layout(xaxis={"title": {"text": title}, "anchor": last, "range": span}, margin=_MARGIN, hovermode="x")


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the smallest monitor, or None where none is finite."""
    name = "nll" if any("layer" in row for row in rows) else "monitor"  # layers are compared by nothing else
    finite = [row for row in rows if _is_number(row.get(name)) and math.isfinite(row[name])]
    return min(finite, key=lambda row: row[name]) if finite else None


Curve = tuple[str, str, str]  # key, name, colour


def _having(rows: list[dict[str, Any]], *curves: Curve) -> list[Curve]:
    return [curve for curve in curves if any(_is_number(row.get(curve[0])) for row in rows)]


def _loss(rows: list[dict[str, Any]]) -> list[Curve]:
    if any("layer" in row for row in rows):
        return []
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
    if any("layer" in row for row in rows):
        return _having(rows, ("nll", "rows held out", MODEL), ("train_nll", "training rows", DATA))
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
        "effective samples",
        False,
        lambda rows: _having(rows, ("ess", "share of validation draws", MODEL), ("effective", "share of training weights", FIFTH)),
    ),
    ("log Z", False, lambda rows: _having(rows, ("log_z", "log Z by validation draws", MODEL))),
    (
        "reconstruction",
        True,
        lambda rows: _having(
            rows, ("reconstruction", "validation, root mean square", MODEL), ("train_reconstruction", "training, mean square (standardised)", FIFTH)
        ),
    ),
    ("β and gap", True, lambda rows: _having(rows, ("beta", "β", THIRD), ("gap", "|NLL encoder − NLL decoder|, nats", FOURTH))),
    ("learning rate", False, lambda rows: _having(rows, ("learning_rate", "learning rate", FIFTH))),
)


def _traces(rows: list[dict[str, Any]], curves: list[Curve], *, log: bool) -> list[go.Scatter]:
    """For each curve its line and, where rows carry an error, the band around it."""
    traces = []
    for key, name, colour in curves:
        found = [(row["step"], row[key], row.get(f"{key}_error"), _when(row)) for row in rows if _is_number(row.get(key))]
        x, y, error, when = ([entry[k] for entry in found] for k in range(4))
        if any(_is_number(e) for e in error):
            width = np.array([e if _is_number(e) else 0.0 for e in error])
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


def clock(seconds: float) -> str:
    """Seconds in the unit that reads best.

    Example:
        >>> clock(90), clock(600)
        ('90 s', '10.0 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _when(row: dict[str, Any]) -> str:
    seconds = row.get("seconds")
    if not isinstance(seconds, int | float):
        return ""
    return clock(seconds) + (f", epoch {row['epoch']:.4g}" if _is_number(row.get("epoch")) else "")


def _scale(rows: list[dict[str, Any]], curves: list[Curve], *, log: bool) -> dict[str, Any]:
    """Kind and range of a vertical axis: room for all but the first few values, which would flatten the rest."""
    ends = []
    for key, _, _ in curves:
        for row in rows:
            if _is_number(row.get(key)):
                error = row.get(f"{key}_error")
                width = error if _is_number(error) and not log else 0.0
                ends += [row[key] - width, row[key] + width]
    values = np.array(ends, float)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    kind: dict[str, Any] = {"type": "log" if log else "linear"}
    if len(values) == 0:
        return kind
    if log:
        low, high = float(np.log10(values.min())), float(np.log10(values.max()))
        # Below two decades plotly labels the digits between the powers.
        return kind | {"range": [low - 0.15, high + 0.15], "dtick": 1 if high - low > 2 else None}
    if len(rows) < 8:
        return kind
    low, high = float(values.min()), float(np.quantile(values, 0.95))
    room = 0.08 * (high - low)
    return kind | ({"range": [low - room, high + room]} if room > 0 else {})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _padded(steps: list[int]) -> list[float]:
    room = 0.02 * (max(steps) - min(steps)) or 1.0
    return [min(steps) - room, max(steps) + room]
