"""Samples beside data, and encoded data beside the base."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.conditions import Condition, transform
from fluvial.data import as_dataset
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Manifold, Sphere, Torus
from fluvial.metrics.likelihood import evaluating, log_prob, placed
from fluvial.report.angular import circle
from fluvial.report.corner_plot import corner
from fluvial.report.globe import world_map
from fluvial.report.histograms import marginal, most_different
from fluvial.report.pictures import Frame, image_frame, images
from fluvial.report.plane import Window, density, points, scatter, window
from fluvial.report.ramachandran import EDGES, angle_labels, degrees, torus_map
from fluvial.report.settings import Setting
from fluvial.report.theme import DATA, MODEL, as_rows, generator

if TYPE_CHECKING:
    from fluvial.data import DataSpec

MOST_DRAWN = 5000
Figures = dict[str, go.Figure]


def samples(flow: Flow, dataset: Any, *, c: Condition = None, seed: int = 0) -> Figures:
    """Samples beside data, in the way that suits the space.

    In the plane: the density, the true one where it is known, data, samples. On the sphere and the torus of two angles: maps of the same.
    More angles: their pairs. On the circle and the line: histograms. Images: mosaics of data, reconstructions and samples. Elsewhere: data and
    samples along the data's two principal directions.

    Args:
        flow: The flow.
        dataset: Data, anything that ``fluvial.data.as_dataset`` takes; for a conditional flow those rows to compare with samples at c.
        c: One condition, leaves of shape (*condition event).
        seed: Of the samples.

    Returns:
        The figures by title.

    Raises:
        ValueError: If a conditional flow gets no c.
    """
    if flow.condition is not None and c is None:
        raise ValueError("samples: this flow is conditional; say at which condition to draw, c=…")
    data = as_dataset(dataset)
    x, rows_c, weight = placed(flow, data, seed=seed)
    setting = Setting("", c, np.arange(len(x)))
    return sample_figures(flow, x, condition_of(flow, x, rows_c), weight, setting, spec=data.spec, truth=data.truth, seed=seed)


def sample_figures(
    flow: Flow,
    x: Tensor,
    rows_c: Condition,
    weight: Tensor | None,
    setting: Setting,
    *,
    spec: "DataSpec",
    truth: Any = None,
    view: Window | None = None,
    seed: int = 0,
) -> Figures:
    """What `samples` returns, for rows of data that are already on the flow's device."""
    rows = torch.as_tensor(setting.rows, device=x.device)
    data, w, c = x[rows], None if weight is None else weight[rows], setting.c
    count = min(MOST_DRAWN, max(len(data), 1000))
    drawn = draw(flow, count, setting.repeated(count), seed=seed)
    manifold, frame = flow.manifold, image_frame(flow.manifold.event_shape, spec.names)
    ask = None if flow.is_bottleneck else _density_of(flow, setting)
    true = truth.log_prob if truth is not None and c is None else None
    if frame is not None:
        return _mosaics(flow, data, transform(rows_c, lambda leaf: leaf[rows]), drawn, frame)
    if isinstance(manifold, Sphere) and manifold.dim == 2:
        return _maps(data, drawn, w, ask, x)
    if isinstance(manifold, Sphere) and manifold.dim == 1:
        return {"Density, data and samples": circle(data, drawn, ask, weight=w, like=x)}
    if isinstance(manifold, Torus):
        return _angles(data, drawn, w, ask, true, angle_labels(spec.names, manifold.dim), x)
    columns = data[0].numel()
    names = column_labels(spec, columns)
    if columns == 1:
        return {"Data and samples": marginal(data, drawn, name=names[0], weight=w)}
    if columns == 2 and isinstance(manifold, Euclidean):
        return _planes(data, drawn, w, ask, true, names, x, view)
    flat, pushed = principal(as_rows(data), as_rows(drawn))
    view = window(flat, pushed)
    labels = ("first principal direction", "second")
    return {"Data": scatter(flat, view, names=labels, weight=w), "Samples": scatter(pushed, view, names=labels, colour=MODEL)}


def latent(flow: Flow, dataset: Any, *, seed: int = 0) -> Figures:
    """Encoded data beside samples of the base: the same, for a flow that has learned its data.

    Args:
        flow: The flow.
        dataset: Data, anything that ``fluvial.data.as_dataset`` takes, with the condition where the flow has one.
        seed: Of the base samples.

    Returns:
        The figures by title: a plane, maps, a circle, or the marginals of the coordinates that differ most.
    """
    data = as_dataset(dataset)
    x, c, weight = placed(flow, data, seed=seed)
    c = condition_of(flow, x, c)
    return latent_figures(flow.latent_manifold, encode(flow, x, c), base_draws(flow, len(x), c, seed=seed), weight)


def latent_figures(manifold: Manifold, z: Tensor, base: Tensor, weight: Tensor | None) -> Figures:
    """What `latent` returns, from latents and base samples."""
    labels = ("encoded data", "base")
    if isinstance(manifold, Sphere) and manifold.dim == 2:
        return {"Encoded data": world_map(z, weight=weight, degrees=False), "Base": world_map(base, colour=MODEL, degrees=False)}
    if isinstance(manifold, Sphere) and manifold.dim == 1:
        return {"Encoded data and base": circle(z, base, weight=weight, labels=labels)}
    if isinstance(manifold, Torus):
        return _latent_angles(z, base, weight, labels)
    ours, theirs = as_rows(z), as_rows(base)
    if ours.shape[1] == 2:
        view = window(ours, theirs)
        names = ("z₀", "z₁")
        figure = scatter(theirs, view, names=names, colour=MODEL)
        figure.add_trace(points(ours, DATA, name=labels[0], weight=weight))
        figure.data[0].name = labels[1]
        figure.update_layout(showlegend=True, margin={"t": 30, "b": 50}, legend={"itemsizing": "constant"})
        return {"Encoded data over the base": figure} | {
            f"Latent {k}": marginal(ours[:, k], theirs[:, k], name=names[k], weight=weight, labels=labels) for k in range(2)
        }
    return {f"Latent {k}": marginal(ours[:, k], theirs[:, k], name=f"z[{k}]", weight=weight, labels=labels) for k in most_different(ours, theirs)}


def draw(flow: Flow, n: int, c: Condition = None, *, seed: int = 0) -> Tensor:
    """Samples in pieces of bounded size: n of them, or one for each of the n conditions."""
    source = generator(next(iter(flow.parameters()), torch.zeros(())), seed)
    with evaluating(flow):
        pieces = [
            flow.sample(stop - start, generator=source) if c is None else flow.sample((), _rows(c, start, stop), generator=source)
            for start, stop in _pieces(n)
        ]
    return torch.cat(pieces)


def base_draws(flow: Flow, n: int, c: Condition = None, *, seed: int = 0) -> Tensor:
    """Samples of the base: n of them, or one for each of the n conditions."""
    source = generator(next(iter(flow.parameters()), torch.zeros(())), seed)
    with evaluating(flow):
        if c is None:
            return flow.base.sample(n, generator=source)
        return flow.base.sample((), c if flow.context is None else flow.context(c), generator=source)


def condition_of(flow: Flow, x: Tensor, c: Condition) -> Condition:
    """The condition of the rows, or None for a flow that can be asked without one."""
    if c is None or flow.condition is not None or flow.context is not None:
        return c
    try:
        encode(flow, x[:1])
    except (ValueError, TypeError, RuntimeError):
        return c
    return None


def encode(flow: Flow, x: Tensor, c: Condition = None) -> Tensor:
    """Latents of the rows, in pieces of bounded size."""
    with evaluating(flow):
        return torch.cat([flow.encode(x[start:stop], _rows(c, start, stop)) for start, stop in _pieces(len(x))])


def decode(flow: Flow, z: Tensor, c: Condition = None) -> Tensor:
    """Data of the latents, in pieces of bounded size."""
    with evaluating(flow):
        return torch.cat([flow.decode(z[start:stop], _rows(c, start, stop)) for start, stop in _pieces(len(z))])


def column_labels(spec: "DataSpec", columns: int) -> list[str]:
    """Name and unit of every column of the flattened sample."""
    names = list(spec.names) if spec.names is not None and len(spec.names) == columns else [f"x[{k}]" for k in range(columns)]
    if spec.units is None or len(spec.units) != columns:
        return names
    return [f"{name} [{unit}]" if unit else name for name, unit in zip(names, spec.units)]


def principal(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both along the two directions in which the standardised rows vary most."""
    mean, scale = rows.mean(0), rows.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    axes = np.linalg.svd((rows - mean) / scale, full_matrices=False)[2][:2]
    return (rows - mean) / scale @ axes.T, (others - mean) / scale @ axes.T


def _density_of(flow: Flow, setting: Setting) -> Callable[[Tensor], Tensor]:
    return lambda at: log_prob(flow, at, setting.repeated(len(at)))


def _planes(
    data: Tensor,
    drawn: Tensor,
    weight: Tensor | None,
    ask: Callable[[Tensor], Tensor] | None,
    truth: Callable[[Tensor], Tensor] | None,
    names: list[str],
    like: Tensor,
    view: Window | None,
) -> Figures:
    view = window(data, drawn) if view is None else view
    found = {}
    top = None
    if ask is not None and truth is not None:
        known = density(truth, view, names=names, like=like)
        # One scale of colours for both.
        top = float(known.data[0].zmax)
        found["True density"] = known
    if ask is not None:
        found = {"Density of the flow": density(ask, view, names=names, like=like, top=top)} | found
    return found | {"Data": scatter(data, view, names=names, weight=weight), "Samples": scatter(drawn, view, names=names, colour=MODEL)}


def _maps(data: Tensor, drawn: Tensor, weight: Tensor | None, ask: Callable[[Tensor], Tensor] | None, like: Tensor) -> Figures:
    found = {} if ask is None else {"Log-density of the flow": world_map(ask, like=like)}
    return found | {"Data": world_map(data, weight=weight), "Samples": world_map(drawn, colour=MODEL)}


def _angles(
    data: Tensor,
    drawn: Tensor,
    weight: Tensor | None,
    ask: Callable[[Tensor], Tensor] | None,
    truth: Callable[[Tensor], Tensor] | None,
    names: list[str],
    like: Tensor,
) -> Figures:
    if len(names) == 1:
        on_circle = None if ask is None else lambda points: ask(points.unsqueeze(-2))
        return {"Density, data and samples": circle(data, drawn, on_circle, weight=weight, like=like)}
    if len(names) > 2:
        labels = [f"{name}, degrees" for name in names]
        return {"Pairs of angles": corner(degrees(data), degrees(drawn), names=labels, weight=weight, period=360.0)}
    found = {}
    limits = None
    if ask is not None and truth is not None:
        known = torus_map(truth, names=names, like=like)
        # One scale of colours for both.
        limits = float(known.data[0].zmin), float(known.data[0].zmax)
        found["True log-density of the angles"] = known
    if ask is not None:
        found = {"Log-density of the angles": torus_map(ask, names=names, like=like, limits=limits)} | found
    return found | {"Data": torus_map(data, names=names, weight=weight), "Samples": torus_map(drawn, names=names, colour=MODEL)}


def _latent_angles(z: Tensor, base: Tensor, weight: Tensor | None, labels: tuple[str, str]) -> Figures:
    k = z.shape[-2]
    if k == 1:
        return {"Encoded data and base": circle(z, base, weight=weight, labels=labels)}
    if k == 2:
        names = ("first latent angle", "second")
        return {"Encoded data": torus_map(z, names=names, weight=weight), "Base": torus_map(base, names=names, colour=MODEL)}
    ours, theirs = degrees(z), degrees(base)
    return {
        f"Latent {j}": marginal(ours[:, j], theirs[:, j], name=f"latent angle {j + 1}, degrees", weight=weight, labels=labels, edges=EDGES)
        for j in most_different(ours, theirs)
    }


def _mosaics(flow: Flow, data: Tensor, c: Condition, drawn: Tensor, frame: Frame) -> Figures:
    shown = data[:36]
    again = decode(flow, encode(flow, shown, _rows(c, 0, 36)), _rows(c, 0, 36))
    values = as_rows(data)
    limits = (float(np.nanquantile(values, 0.001)), float(np.nanquantile(values, 0.999)))
    parts = {"Data": shown, "Their reconstructions": again, "Samples": drawn[:36]}
    return {title: images(part, frame, limits=limits) for title, part in parts.items()}


def _pieces(n: int, size: int = 2048) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _rows(c: Condition, start: int, stop: int) -> Condition:
    return transform(c, lambda leaf: leaf[start:stop])
