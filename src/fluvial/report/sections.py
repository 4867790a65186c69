"""What a page consists of, one function for each section."""

from collections.abc import Callable

import numpy as np

from fluvial.manifolds import Euclidean, Sphere, Torus
from fluvial.report.blocks import Cell, Panel, Section, Table
from fluvial.report.corner_plot import corner
from fluvial.report.draws import column_labels, latent_figures, sample_figures
from fluvial.report.globe import angles
from fluvial.report.histograms import marginal, most_different
from fluvial.report.inversion import distances
from fluvial.report.learning import clock, curves
from fluvial.report.material import Material
from fluvial.report.pictures import image_frame, images
from fluvial.report.plane import window
from fluvial.report.ramachandran import EDGES, angle_labels, degrees
from fluvial.report.tables import check, configuration, figures
from fluvial.report.theme import as_rows

_NLL_CURVES = (
    "The validation NLL is that of log_prob, never the training surrogate, on "
    "rows held out from training, with bands of one standard error. It should fall and level off: "
    "if it still falls at the end, train longer; if it rises again while the loss falls, the model overfits. "
    "For free-form flows the two NLL curves should meet."
)


def training(material: Material) -> Section:
    """The curves."""
    if not material.history:
        return Section("training", "Training", missing=" ".join(filter(None, (material.history_note, material.hints.history))))
    last = material.history[-1]
    took = f"{last.get('step', 0):,} steps".replace(",", " ")
    if isinstance(last.get("seconds"), int | float):
        took += f" in {clock(last['seconds'])}"
    ended = ", interrupted" if material.stopped == "interrupted" else f", ended by {material.stopped}" if material.stopped else ""
    skipped = f"; {last['skipped']} steps were skipped because something in them was not finite" if last.get("skipped") else ""
    note = f" {material.history_note}" if material.history_note else ""
    caption = (
        _NLL_CURVES
        if any("nll" in row for row in material.history)
        else "Figures on draws of the flow, from the same noise every time. The share of effective samples should rise to 1, log Z come to rest."
    )
    figure = curves(material.history, best=material.best)
    return Section("training", "Training", f"{took}{ended}{skipped}.{note}", [Panel("", [figure], caption, "full")])


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
    titles = list(found[0])
    span = {1: "full", 2: "half", 4: "half"}.get(len(titles), "third")
    if isinstance(flow.manifold, Sphere) and flow.manifold.dim == 2:
        span = "half"
    panels = [
        Panel(title, [figures[title] for figures in found], _SAMPLE_CAPTIONS.get(title, ""), "full" if title == "Log-density of the flow" else span)
        for title in titles
    ]
    lead = "The samples should look like another draw of the data: no detail blurred, no bridge between separate parts, none missing."
    settings = [setting.label for setting in material.settings] if material.c is not None else []
    if settings and not material.settings[0].exact:
        lead += " The data shown are the rows whose condition comes nearest to the one chosen."
    elif settings:
        lead += " The data shown are the rows with the condition chosen."
    return Section("samples", "Samples beside data", lead, panels, settings=settings)


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
    "Pairs of angles": "Contours that hold 50 % and 90 % of the rows. It is good if the two colours run on top of each other.",
    "Data": "Held-out data, which the flow was not trained on.",
    "Samples": "Drawn from the flow, one pass of the decoder each.",
    "Their reconstructions": "decode(encode(x)) of the data beside: what the latent keeps. They should be recognisably the same.",
    "Density, data and samples": "Histograms of the angle, and the density as a dashed line; the dotted line is the uniform density.",
    "Data and samples": "Top: the two histograms. Bottom: samples over data, with the statistical errors of both.",
}


def marginals(material: Material) -> Section | None:
    """Single columns, and pairs of them."""
    manifold = material.flow.manifold
    if isinstance(manifold, Sphere | Euclidean | Torus) and manifold.dim == 1:
        return None  # the samples are shown in just this way already
    lead = "Samples / data should stay at 1 within the errors; a slope or a dip shows where the flow puts too much or too little."
    if isinstance(manifold, Sphere) and manifold.dim == 2:
        (lon, lat), (lon_s, lat_s) = angles(as_rows(material.x)), angles(as_rows(material.samples))
        to_degrees = 57.29577951308232
        pairs = [("longitude, degrees", lon * to_degrees, lon_s * to_degrees), ("latitude, degrees", lat * to_degrees, lat_s * to_degrees)]
        return Section(
            "marginals", "Marginals", lead, [Panel("", [marginal(a, b, name=name, weight=material.weight)], "", "half") for name, a, b in pairs]
        )
    if isinstance(manifold, Torus):
        turned, pushed, labels = degrees(material.x), degrees(material.samples), angle_labels(material.dataset.spec.names, manifold.dim)
        panels = [
            Panel("", [marginal(turned[:, k], pushed[:, k], name=f"{labels[k]}, degrees", weight=material.weight, edges=EDGES)], "", "half")
            for k in most_different(turned, pushed)
        ]
        return Section("marginals", "Marginals", lead, panels)
    data, drawn = as_rows(material.x), as_rows(material.samples)
    names = column_labels(material.dataset.spec, data.shape[1])
    chosen = most_different(data, drawn)
    panels = [
        Panel("", [marginal(data[:, k], drawn[:, k], name=names[k], weight=material.weight)], "", "half" if len(chosen) < 3 else "third")
        for k in chosen
    ]
    if data.shape[1] > len(chosen):
        lead += f" Of {data.shape[1]} columns these are the {len(chosen)} in which data and samples differ most."
    if data.shape[1] > 2 and image_frame(manifold.event_shape, material.dataset.spec.names) is None:
        caption = "Contours that hold 50 % and 90 % of the rows. It is good if the two colours run on top of each other."
        panels.append(Panel("Pairs of columns", [corner(data, drawn, names=names, weight=material.weight)], caption, "full"))
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
    panels = [Panel("", [distances(distance, spread=material.spread, weight=material.weight)], caption, "full")]
    worst = distance.nan_to_num(nan=float("inf")).argsort(descending=True)
    frame = image_frame(material.flow.manifold.event_shape, material.dataset.spec.names)
    if frame is None:
        return Section("reconstruction", "Reconstruction", lead, panels, [_worst(material, worst[:8].tolist())])
    values = as_rows(material.x)
    limits = (float(np.nanquantile(values, 0.001)), float(np.nanquantile(values, 0.999)))
    for title, rows in (("The worst rows", material.x), ("Their reconstructions", material.rebuilt)):
        panels.append(Panel(title, [images(rows[worst[:16]], frame, columns=8, limits=limits)], "", "half"))
    return Section("reconstruction", "Reconstruction", lead, panels)


def _worst(material: Material, rows: list[int]) -> Table:
    """Rows and their reconstructions, in their first few columns."""
    flat, rebuilt = as_rows(material.x), as_rows(material.rebuilt)
    labels, manifold = column_labels(material.dataset.spec, flat.shape[1]), material.flow.manifold
    if isinstance(manifold, Torus):
        flat, rebuilt = degrees(material.x), degrees(material.rebuilt)
        labels = [f"{name}, degrees" for name in angle_labels(material.dataset.spec.names, manifold.dim)]
    distance, shown = material.distance, min(flat.shape[1], 4)
    names = labels[:shown]
    cells = [
        [Cell(str(k)), Cell(f"{float(distance[k]):.3g}"), *(Cell(f"{a:.4g} → {b:.4g}") for a, b in zip(flat[k, :shown], rebuilt[k, :shown]))]
        for k in rows
    ]
    return Table(
        ["row", "distance", *names], cells, "The rows farthest from their reconstructions (value → reconstruction), by their number on this page."
    )


def latent(material: Material) -> Section:
    """Encoded data against the base."""
    found = latent_figures(material.flow.latent_manifold, material.z, material.base, material.weight)
    span = {1: "full", 2: "half"}.get(len(found), "third")
    panels = [Panel("" if title.startswith("Latent ") else title, [figure], "", span) for title, figure in found.items()]
    more = ""
    if len(found) > 3 and material.z[0].numel() > len(found):
        more = f" Of {material.z[0].numel()} coordinates these are the {len(found)} that differ most."
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
