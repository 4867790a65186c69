"""Layers against dimension."""

import math

import numpy as np
import plotly.graph_objects as go

from fluvial.gaussianization.scaling import FAMILIES, ScalingCurve
from fluvial.gaussianization.scaling_families import FROM_SAMPLES
from fluvial.gaussianization.scaling_images import IMAGES
from fluvial.gaussianization.scaling_result import StudyResult
from fluvial.gaussianization.theory import asymptotic_layers
from fluvial.report.blocks import Cell, Panel, Section, Table
from fluvial.report.theme import DATA, FIFTH, FOURTH, INK, MODEL, THIRD, blank, text_in

_COLOURS = (MODEL, DATA, THIRD, FOURTH, FIFTH, "#56b4e9", "#882255", "#7a9a01", "#8064c8", "#e69f00", "#44aa99", "#a0522d")
_GAUSSIAN, _PICTURES, _OTHERS = "circle", "diamond", "square"

_LEAD = (
    "How many layers with random rotations it takes to divide the loss KL(p ‖ q) by a factor f. Close to the end every layer takes the share "
    "2/(D + 2) of a Gaussian's loss, so that (D + 2)/2 · ln f layers are needed: the dashed line. It is no bound: a few directions of large "
    "variance are found at once in any dimension, and dependence that is not linear fades from random projections in many."
)
_CAPTION = (
    "Circles are Gaussians (followed by their covariances unless it says from samples), squares other densities, diamonds pictures. Bars are "
    "± one standard deviation over repetitions; where a repetition has not reached the factor there is no point."
)
_MEANING = (
    "Slope of layers against D, and of their logarithms (exponent: 1 is proportional), by least squares over D ≥ {fitted_from}; theory is ½ ln f. "
    "* some of these D were not reached, – fewer than two were. Layer numbers are means over repetitions; – was not reached within {most} layers."
)
_PICTURES_MEANING = (
    "The entropy of pictures is not known: the loss is the distance to the best flow of up to 30 layers along principal axes on the same rows."
)


def scaling_figure(result: StudyResult, factor: float, *, log: bool = False) -> go.Figure:
    """Layers needed against dimension, a line for each family, with error bars over repetitions and the line of the theory.

    Args:
        result: Of a `ScalingStudy`.
        factor: f, one of the study's.
        log: Both axes logarithmic.

    Raises:
        ValueError: If the study has no such factor.
    """
    if factor not in result.factors:
        raise ValueError(f"scaling_figure: the study has the factors {', '.join(f'{one:g}' for one in result.factors)}, not {factor:g}")
    figure = blank(height=540)
    curves = {curve.name: curve for curve in result.curves if curve.factor == factor}
    if not curves:
        return text_in(figure, f"no family has been divided by {factor:g}")
    for k, name in enumerate(result.families):
        if name in curves:
            figure.add_trace(_line(curves[name], _COLOURS[k % len(_COLOURS)], log=log))
    sizes = [size for curve in curves.values() for size in curve.features]
    line = np.geomspace(min(sizes), max(sizes), 40)
    figure.add_trace(
        go.Scatter(
            x=line,
            y=[(size + 2) / 2 * math.log(factor) for size in line],
            name=f"(D + 2)/2 · ln {factor:g}",
            mode="lines",
            line={"color": INK, "dash": "dash", "width": 2},
            hoverinfo="skip",
        )
    )
    kind = "log" if log else "linear"
    ticks = sorted({size for size in sizes if math.log2(size).is_integer()})
    figure.update_xaxes(type=kind, title={"text": "dimension D"}, tickvals=ticks if log else None)
    figure.update_yaxes(type=kind, title={"text": f"layers until L ≤ L₀/{factor:g}"}, rangemode="tozero", dtick=1 if log else None)
    return figure.update_layout(legend={"y": -0.16, "yanchor": "top"}, margin={"t": 12, "b": 200})


def scaling_table(result: StudyResult, factor: float) -> Table:
    """Slope, exponent and layer numbers of every family for one factor."""
    families = [name for name in result.families if result.counts(name, factor)]
    sizes = sorted({size for name in families for size in result.counts(name, factor)})
    rows = []
    for name in families:
        counts = result.counts(name, factor)
        numbers = ["" if size not in counts else _mean(counts[size]) for size in sizes]
        rows.append([Cell(name), *map(Cell, result.slopes(name, factor)), *map(Cell, numbers)])
    theory = [Cell("(D + 2)/2 · ln f"), Cell(f"{math.log(factor) / 2:.3f}"), Cell("1")]
    rows.append([*theory, *(Cell(f"{asymptotic_layers(size, factor):.3g}") for size in sizes)])
    caption = _MEANING.format(fitted_from=result.fitted_from, most=result.settings["max_layers"])
    if any(name in IMAGES for name in families):
        caption = f"{caption} {_PICTURES_MEANING}"
    return Table([f"f = {factor:g}", "slope", "exponent", *(f"D = {size}" for size in sizes)], rows, caption)


def scaling_section(result: StudyResult) -> Section:
    """The part of the page that is about a study: figures and a table for every factor."""
    if not result.cells:
        return Section("scaling", "Layers against dimension", missing="No cell of the study is finished yet; run it with resume=True.")
    panels = []
    for factor in result.factors:
        for log in (False, True):
            title = f"Loss divided by {factor:g}, {'logarithmic' if log else 'linear'} axes"
            panels.append(Panel(title, [scaling_figure(result, factor, log=log)], _CAPTION if log is False else "", "half"))
    notes = [_LEAD, *result.left_out, *([] if result.complete else ["The study is not finished: there are cells to come."])]
    return Section("scaling", "Layers against dimension", " ".join(notes), panels, [scaling_table(result, factor) for factor in result.factors])


def _mean(counts: list[float]) -> str:
    mean = sum(counts) / len(counts)
    return f"{mean:.3g}" if math.isfinite(mean) else "–"


def _line(curve: ScalingCurve, colour: str, *, log: bool) -> go.Scatter:
    features, layers, spread = curve.features, curve.layers, curve.spread
    width = [value if math.isfinite(value) else 0.0 for value in spread]
    # On a logarithmic axis a bar that reaches 0 would have no end.
    below = [min(value, 0.9 * count) if log else value for value, count in zip(width, layers)]
    symbol = _GAUSSIAN if curve.name.removesuffix(FROM_SAMPLES) in FAMILIES else _PICTURES if curve.name in IMAGES else _OTHERS
    return go.Scatter(
        x=features,
        y=layers,
        name=curve.name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 7, "symbol": symbol},
        error_y={"type": "data", "symmetric": False, "array": width, "arrayminus": below, "color": colour, "thickness": 1.2, "width": 3},
        hovertemplate="D = %{x}: %{y:.4g} layers",
    )
