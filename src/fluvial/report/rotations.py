"""Maps of the rotations of space: where they turn the x axis, and how far they tilt what is around it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from fluvial.manifolds import SpecialOrthogonal
from fluvial.report.globe import angles, mollweide, on_map
from fluvial.report.theme import as_rows, colour_bar, numbers, thinned

TILT_SCALE = "Phase"  # cyclic, and of a middling lightness all around
# Of the grid over which densities are summed: 90 000 rotations, or 25 000.
CELLS, TILTS = (88, 44), 30
COARSE_CELLS, COARSE_TILTS = (52, 26), 24


def rotation_map(x: Any, *, weight: Tensor | None = None) -> go.Figure:
    r"""Rotations of space as points on a map of the sphere, coloured by the angle that the map leaves open.

    .. math:: R = R_z(\lambda)\, R_y(-\varphi)\, R_x(\tau)

    The map, in Mollweide's equal-area projection, shows the direction R eₓ (longitude λ, latitude φ); the colour is the tilt τ about it.
    Uniformly distributed rotations cover the map evenly with all colours. Pointing at a marker shows its rotation vector in degrees.

    Args:
        x: Rotations, shape (n, 3, 3).
        weight: Weights of the rotations, shape (n,).

    References:
        Murphy, Esteves, Jampani, Ramalingam, Makadia (2021), "Implicit-PDF: non-parametric representation of probability distributions on the
        rotation manifold", arXiv:2106.05965 (the plot).

    Example:
        >>> rotations = SpecialOrthogonal(3)
        >>> figure = rotation_map(rotations.from_rotation_vector([[0.0, 0.0, 0.0], [math.pi / 2, 0.0, 0.0]]))
        >>> figure.data[0].marker.color.round().tolist()
        [0.0, 90.0]
    """
    rows = as_rows(x).reshape(-1, 3, 3)
    rows = rows[thinned(len(rows), weight)]
    direction, tilt = seen(rows)
    across, up = mollweide(*angles(direction))
    vector = np.degrees(rotation_vectors(rows))
    markers = go.Scatter(
        x=numbers(across),
        y=numbers(up),
        mode="markers",
        marker={
            "size": 3.6,
            "color": numbers(np.degrees(tilt)),
            "cmin": -180,
            "cmax": 180,
            "colorscale": TILT_SCALE,
            "opacity": 0.85,
            "line": {"width": 0},
            "colorbar": colour_bar()
            | {"tickvals": list(range(-180, 181, 60)), "ticktext": [f"{a}°".replace("-", "−") for a in range(-180, 181, 60)]},
        },
        customdata=numbers(np.concatenate([vector, np.linalg.norm(vector, axis=1, keepdims=True)], 1)),
        hovertemplate=(
            "rotation vector (%{customdata[0]:.1f}°, %{customdata[1]:.1f}°, %{customdata[2]:.1f}°)<br>"
            "angle %{customdata[3]:.1f}°, tilt %{marker.color:.1f}°<extra></extra>"
        ),
    )
    return on_map(markers, degrees=False, colours=True)


def direction_density(log_prob: Callable[[Tensor], Tensor], *, tilts: int = TILTS) -> Callable[[Tensor], Tensor]:
    r"""The log-density of R eₓ, the direction into which a random rotation turns the x axis.

    .. math:: p(u) = \int_{-\pi}^{\pi} p(R_{u,\tau})\, d\tau

    as a sum over equally spaced tilts. In the metric in which a rotation by θ has the length θ, the volume is just dΩ dτ.

    Args:
        log_prob: Function of rotations (n, 3, 3), shape (n,).
        tilts: Terms of the sum.

    Returns:
        A function of unit vectors (n, 3), shape (n,), in nats per unit area of the sphere.

    Example:
        >>> uniform = lambda x: torch.full((len(x),), -math.log(8 * math.pi**2))
        >>> density = direction_density(uniform)(torch.eye(3))
        >>> torch.allclose(density, torch.full((3,), -math.log(4 * math.pi)))
        True
    """

    def of_direction(u: Tensor) -> Tensor:
        tilt = ((torch.arange(tilts, dtype=u.dtype, device=u.device) + 0.5) / tilts * 2 - 1) * math.pi
        values = log_prob(rotation_at(u.unsqueeze(1), tilt).flatten(0, 1)).view(len(u), tilts)
        return torch.logsumexp(values, 1) + math.log(2 * math.pi / tilts)

    return of_direction


def rotation_at(u: Tensor, tilt: Tensor) -> Tensor:
    r"""Unit vectors (\*batch, 3) and tilts (\*batch,), broadcast -> the rotations R = R_z(λ) R_y(−φ) R_x(τ), shape (\*batch, 3, 3)."""
    x, y, z = u.unbind(-1)
    flat = torch.hypot(x, y)
    # At the poles the longitude is anything; 0 will do.
    pole = flat == 0
    cos, sin = torch.where(pole, 1.0, x / torch.where(pole, 1.0, flat)), torch.where(pole, 0.0, y / torch.where(pole, 1.0, flat))
    east, north = torch.stack([-sin, cos, torch.zeros_like(sin)], -1), torch.stack([-z * cos, -z * sin, flat], -1)
    c, s = tilt.cos().unsqueeze(-1), tilt.sin().unsqueeze(-1)
    columns = torch.broadcast_tensors(u, c * east + s * north, c * north - s * east)
    return torch.stack(columns, -1)


def seen(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3) -> the directions of their first columns (n, 3) and the tilts about these in radians, in (−π, π], shape (n,)."""
    return rotations[:, :, 0], np.arctan2(rotations[:, 2, 1], rotations[:, 2, 2])


def rotation_vectors(x: Any) -> np.ndarray:
    """Rotations (n, 3, 3), tensor or array -> axis times angle in radians, shape (n, 3)."""
    return SpecialOrthogonal.to_rotation_vector(torch.as_tensor(as_rows(x)).view(-1, 3, 3)).numpy()
