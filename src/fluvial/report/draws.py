"""Samples beside data, and encoded data beside the base."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fluvial.conditions import Condition, transform
from fluvial.data import as_dataset
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Manifold
from fluvial.metrics.likelihood import evaluating, log_prob, placed
from fluvial.report.pictures import Frame, image_frame, images
from fluvial.report.plane import Window
from fluvial.report.settings import Setting
from fluvial.report.spaces import Clouds, Figures, compared, compared_latents
from fluvial.report.theme import as_rows, generator

if TYPE_CHECKING:
    from fluvial.data import DataSpec

MOST_DRAWN = 5000


def samples(flow: Flow, dataset: Any, *, c: Condition = None, seed: int = 0) -> Figures:
    """Samples beside data, in the way that suits the space.

    In the plane: the density, the true one where it is known, data, samples. On the sphere, the torus of two angles, the hyperbolic plane and
    meshes: maps of the same; of rotations of space, maps of where they turn the x axis. More angles: their pairs. On the circle and the line:
    histograms. On products: data and samples factor by factor. Images: mosaics of data, reconstructions and samples. Elsewhere: data and samples
    along the data's two principal directions.

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
    frame = frame_of(flow.manifold, spec.names)
    if frame is not None:
        return _mosaics(flow, data, transform(rows_c, lambda leaf: leaf[rows]), drawn, frame)
    clouds = Clouds(
        data,
        drawn,
        weight=w,
        density=None if flow.is_bottleneck else _density_of(flow, setting),
        truth=truth.log_prob if truth is not None and c is None else None,
        names=spec.names,
        units=spec.units,
        view=view,
        quick=c is not None,
    )
    return compared(flow.manifold, clouds)


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
    return compared_latents(flow.latent_manifold, encode(flow, x, c), base_draws(flow, len(x), c, seed=seed), weight)


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


def frame_of(manifold: Manifold, names: Sequence[str] | None) -> Frame | None:
    """How points of this space are images, or None; a rotation matrix is none, whatever its shape."""
    return image_frame(manifold.event_shape, names) if isinstance(manifold, Euclidean) else None


def _density_of(flow: Flow, setting: Setting) -> Callable[[Tensor], Tensor]:
    return lambda at: log_prob(flow, at, setting.repeated(len(at)))


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
