"""What a page consists of, one function for each section."""

from collections.abc import Callable

import numpy as np

from fluvial.manifolds import Mesh, Product, Torus
from fluvial.report.blocks import Cell, Panel, Section, Table
from fluvial.report.coordinates import coordinates
from fluvial.report.corner_plot import corner
from fluvial.report.draws import frame_of, sample_figures
from fluvial.report.globe import WIDE
from fluvial.report.histograms import marginal, most_different
from fluvial.report.inversion import distances
from fluvial.report.learning import clock, curves
from fluvial.report.material import Material
from fluvial.report.pictures import images
from fluvial.report.plane import window
from fluvial.report.ramachandran import class_maps
from fluvial.report.spaces import MOST_ANGLES, OF_FACTOR, Figures, compared_latents
from fluvial.report.tables import check, configuration, figures
from fluvial.report.theme import as_rows

_NLL_CURVES = (
    "The validation NLL is that of log_prob, never the training surrogate, on "
    "rows held out from training, with bands of one standard error. It should fall and level off: "
    "if it still falls at the end, train longer; if it rises again while the loss falls, the model overfits. "
    "For free-form flows the two NLL curves should meet."
)


_LAYER_CURVES = (
    "The NLL of the flow of so many layers, on rows held out, with bands of one standard error, and on the rows they were fitted to. Where "
    "the first rises again while the second falls, layers learn the rows by heart: fewer bins or stronger shrinkage (alpha) help. Where both still "
    "fall at the end, more layers do."
)


def training(material: Material) -> Section:
    """The curves."""
    if not material.history:
        return Section("training", "Training", missing=" ".join(filter(None, (material.history_note, material.hints.history))))
    last = material.history[-1]
    layers = "layer" in last
    took = f"{last.get('step', 0):,} {'layers' if layers else 'steps'}".replace(",", " ")
    if isinstance(last.get("seconds"), int | float):
        took += f" in {clock(last['seconds'])}"
    ended = ", interrupted" if material.stopped == "interrupted" else f", ended by {material.stopped}" if material.stopped else ""
    skipped = f"; {last['skipped']} steps were skipped because something in them was not finite" if last.get("skipped") else ""
    note = f" {material.history_note}" if material.history_note else ""
    caption = (
        _LAYER_CURVES
        if layers
        else _NLL_CURVES
        if any("nll" in row for row in material.history)
        else "Figures on draws of the flow, from the same noise every time. The share of effective samples should rise to 1, log Z come to rest."
    )
    figure = curves(material.history, best=material.best)
    return Section("training", "Layers" if layers else "Training", f"{took}{ended}{skipped}.{note}", [Panel("", [figure], caption, "full")])


def samples(material: Material) -> Section:
    """Samples beside data."""
    spec, truth = material.dataset.spec, material.dataset.truth
    flow = material.flow
    # One window for all settings, so that the eye can follow what moves.
    view = window(material.x, material.samples) if material.x[0].numel() == 2 else None
    found = [
        sample_figures(flow, material.x, material.c, material.weight, setting, spec=spec, truth=truth, view=view, seed=material.seed)
        for setting in material.settings
    ]
    panels = [
        Panel(title, [figures[title] for figures in found], _SAMPLE_CAPTIONS.get(title.split(OF_FACTOR)[-1], ""), span)
        for title, span in _spans(material, found[0]).items()
    ]
    if isinstance(flow.manifold, Torus) and flow.manifold.dim == 2 and len(found) > 1 and material.settings[0].exact:
        pairs = {setting.label: (figures["Data"], figures["Samples"]) for setting, figures in zip(material.settings, found)}
        panels.append(Panel("All conditions at once", [class_maps(pairs)], "For every condition the data and, to their right, the samples.", "full"))
    lead = "The samples should look like another draw of the data: no detail blurred, no bridge between separate parts, none missing."
    settings = [setting.label for setting in material.settings] if material.c is not None else []
    if settings and not material.settings[0].exact:
        lead += " The data shown are the rows whose condition comes nearest to the one chosen."
    elif settings:
        lead += " The data shown are the rows with the condition chosen."
    return Section("samples", "Samples beside data", lead, panels, settings=settings)


def _spans(material: Material, found: Figures) -> dict[str, str]:
    """How wide each figure is."""
    titles = list(found)
    usual = {1: "full", 2: "half", 4: "half"}.get(len(titles), "third")
    if isinstance(material.flow.manifold, Product):
        return {title: "full" if title.split(OF_FACTOR)[-1].startswith(("Pairs", "Density, ")) else "half" for title in titles}
    if isinstance(material.flow.manifold, Mesh) or any(figure.layout.width == WIDE for figure in found.values()):
        # A wide map of a density without the true one to compare with has a row of its own.
        return {title: "full" if len(titles) == 3 and "og-density" in title else "half" for title in titles}
    return dict.fromkeys(titles, usual)


_CONTOURS = "Contours that hold 50 % and 90 % of the rows. It is good if the two colours run on top of each other."
_SAMPLE_CAPTIONS = {
    "Density of the flow": "The density that log_prob returns. It is good if it is high where the data are, dark where there are none.",
    "True density": "The density the data were drawn from, in the same colours.",
    "Log-density of the flow": (
        "Log-density in nats per unit area of the unit sphere, in equal-area (Mollweide) projection with longitude 0 in the middle. "
        "It is good if it is bright where the data cluster; the uniform density would be −2.53 everywhere."
    ),
    "Log-density of the angles": (
        "Log-density in nats per square radian; opposite edges are one line. "
        "It is good if it is bright where the data cluster; the uniform density would be −3.68 everywhere."
    ),
    "True log-density of the angles": "That of the density the data were drawn from, in the same colours.",
    "Pairs of angles": _CONTOURS,
    "Pairs of columns": _CONTOURS,
    "True log-density": "That of the density the data were drawn from, in the same colours.",
    "Log-density of the direction": (
        "Log-density, in nats per unit area of the unit sphere, of the direction into which a rotation turns the x axis, whatever its tilt; in "
        "equal-area (Mollweide) projection. It is good if it is bright where the data cluster; the uniform density would be −2.53 everywhere."
    ),
    "True log-density of the direction": "That of the density the data were drawn from, in the same colours.",
    "Data, coloured by tilt": (
        "Held-out data. The place on the map is the direction into which a rotation turns the x axis, the colour how far it turns about that "
        "direction; pointing at a marker shows its rotation vector."
    ),
    "Samples, coloured by tilt": "Drawn from the flow, one pass of the decoder each. Places and colours should be those of the data.",
    "Log-density on the disc": (
        "Log-density in nats per unit of hyperbolic area, in the Poincaré disc: its boundary is infinitely far away, and the thin circles have the "
        "distances 1, 2, 3 and 4 from the centre. It is good if it is bright where the data cluster."
    ),
    "True log-density on the disc": "That of the density the data were drawn from, in the same colours.",
    "Density on the surface": (
        "The density that log_prob returns, per unit of area, at the centre of every face. It is good if it is high where the data are, dark where "
        "there are none. Dragging turns all surfaces together."
    ),
    "True density on the surface": "The density the data were drawn from, in the same colours.",
    "Density of the data": "Held-out data, each row spread over the area that holds about twenty of them, in the same colours.",
    "Density of the samples": "Samples of the flow, spread over the same area. The two should differ by no more than chance.",
    "Data": "Held-out data, which the flow was not trained on.",
    "Samples": "Drawn from the flow, one pass of the decoder each.",
    "Their reconstructions": "decode(encode(x)) of the data beside: what the latent keeps. They should be recognisably the same.",
    "Density, data and samples": "Histograms of the angle, and the density as a dashed line; the dotted line is the uniform density.",
    "Data and samples": "Top: the two histograms. Bottom: samples over data, with the statistical errors of both.",
}


def marginals(material: Material) -> Section | None:
    """Single columns, and pairs of them."""
    manifold, spec = material.flow.manifold, material.dataset.spec
    data, drawn = (coordinates(manifold, x, names=spec.names, units=spec.units) for x in (material.x, material.samples))
    if len(data.labels) == 1:
        return None  # the samples are shown in just this way already
    lead = "Samples / data should stay at 1 within the errors; a slope or a dip shows where the flow puts too much or too little."
    torus = isinstance(manifold, Torus)
    chosen = most_different(data.values, drawn.values, MOST_ANGLES if torus else 6)
    half = len(chosen) in (1, 2, 4)
    panels = [
        Panel(
            "",
            [marginal(data.values[:, k], drawn.values[:, k], name=data.labels[k], weight=material.weight, edges=data.edges[k])],
            "",
            "half" if half else "third",
        )
        for k in chosen
    ]
    if len(data.labels) > len(chosen):
        lead += f" Of {len(data.labels)} columns these are the {len(chosen)} in which data and samples differ most."
    pairs = data.independent
    if len(pairs) > 2 and not torus and frame_of(manifold, spec.names) is None:
        names = [data.labels[k] for k in pairs]
        figure = corner(data.values[:, pairs], drawn.values[:, pairs], names=names, weight=material.weight)
        panels.append(Panel("Pairs of columns", [figure], _CONTOURS, "full"))
    return Section("marginals", "Marginals", lead, panels)


def reconstruction(material: Material) -> Section:
    """Distances, and the worst rows."""
    distance = material.distance
    if material.flow.is_bijective:
        lead = "A bijection: what is left is rounding."
    elif material.flow.is_bottleneck:
        lead = f"{material.flow.manifold.dim} dimensions are squeezed through {material.flow.dim}: what the latent cannot hold is the distance."
    else:
        lead = "The density is that of the reconstruction, so detail finer than this distance is lost."
    caption = "It is good if the whole histogram lies well to the left of the spread of the data, and no tail reaches it."
    panels = [Panel("", [distances(distance, spread=material.spread, weight=material.weight, measure=material.measure)], caption, "full")]
    worst = distance.nan_to_num(nan=float("inf")).argsort(descending=True)
    frame = frame_of(material.flow.manifold, material.dataset.spec.names)
    if frame is None:
        return Section("reconstruction", "Reconstruction", lead, panels, [_worst(material, worst[:8].tolist())])
    values = as_rows(material.x)
    limits = (float(np.nanquantile(values, 0.001)), float(np.nanquantile(values, 0.999)))
    for title, rows in (("The worst rows", material.x), ("Their reconstructions", material.rebuilt)):
        panels.append(Panel(title, [images(rows[worst[:16]], frame, columns=8, limits=limits)], "", "half"))
    return Section("reconstruction", "Reconstruction", lead, panels)


def _worst(material: Material, rows: list[int]) -> Table:
    """Rows and their reconstructions, in their first few columns."""
    manifold, spec = material.flow.manifold, material.dataset.spec
    seen, again = (coordinates(manifold, x, names=spec.names, units=spec.units) for x in (material.x, material.rebuilt))
    shown = seen.independent[:4]
    names = [seen.labels[k] for k in shown]
    distance = material.distance
    cells = [
        [Cell(str(k)), Cell(f"{float(distance[k]):.3g}"), *(Cell(f"{seen.values[k, j]:.4g} → {again.values[k, j]:.4g}") for j in shown)] for k in rows
    ]
    return Table(
        ["row", material.measure, *names],
        cells,
        "The rows farthest from their reconstructions (value → reconstruction), by their number on this page.",
    )


def latent(material: Material) -> Section:
    """Encoded data against the base."""
    found = compared_latents(material.flow.latent_manifold, material.z, material.base, material.weight)
    span = {1: "full", 2: "half", 4: "half"}.get(len(found), "third")
    panels = [Panel("" if title.startswith("Latent ") else title, [figure], "", span) for title, figure in found.items()]
    more = ""
    space = material.flow.latent_manifold
    count = space.dim if isinstance(space, Torus) else material.z[0].numel()
    if len(found) > 3 and count > len(found) and not isinstance(space, Product):
        more = f" Of {count} coordinates these are the {len(found)} that differ most."
    return Section("latent", "Latent space", "Encoded data should be indistinguishable from samples of the base: no holes, no clumps." + more, panels)


SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    training,
    samples,
    marginals,
    reconstruction,
    latent,
    check,
    figures,
    configuration,
)
