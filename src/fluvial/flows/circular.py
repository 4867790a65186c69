"""Spline coupling flows of angles."""

import math
from collections.abc import Sequence

from fluvial.bases import Uniform
from fluvial.codecs import Angles, Bijection, Chain, Coupling, RationalQuadratic, Wrap
from fluvial.flow import Flow
from fluvial.flows.coupling import halves
from fluvial.nn import ConditionScaling


def circular(
    features: int,
    context: int = 0,
    *,
    blocks: int = 8,
    bins: int = 16,
    hidden: Sequence[int] = (64, 64, 64),
    activation: str = "silu",
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    r"""Build an exact flow of angles in radians: circular splines in coupling layers, from the uniform distribution on [−π, π)ᵏ.

    The density is periodic and continuous across ±π: angles are taken modulo 2π, and it integrates to 1 over one turn of each.

    Args:
        features: Number k of angles.
        context: Length of the condition, 0 for none.
        blocks: Number of coupling layers.
        bins: Bins of the splines.
        hidden: Widths of the hidden layers of each network.
        activation: As of `fluvial.nn.MLP`.
        standardize: Shift and scale the condition to order one, fitted by `fluvial.fit` on the training rows.
        seed: Of the halves.

    Returns:
        An ordinary `Flow` on `Euclidean(features)`.

    Raises:
        ValueError: If a size is not positive.

    References:
        Rezende, Papamakarios, Racanière, Albergo, Kanwar, Shanahan, Cranmer (2020), "Normalizing flows on tori and spheres", arXiv:2002.02428.

    Example:
        >>> flow = circular(2, blocks=2, hidden=[16])
        >>> bool((flow.sample(100).abs() <= math.pi).all())
        True
    """
    parts = circular_parts(features, context, blocks, bins, hidden, activation, seed)
    return _flow([Wrap(features), *parts], features, context, standardize=standardize)


def on_torus(
    dim: int,
    context: int = 0,
    *,
    blocks: int = 8,
    bins: int = 16,
    hidden: Sequence[int] = (64, 64, 64),
    activation: str = "silu",
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    r"""Build an exact flow on the torus: the flow of `circular`, for data that are k unit vectors.

    Densities are with respect to the angles, (2π)⁻ᵏ for the uniform one. Angles φ become points by ``Torus.from_angles``.

    Args:
        dim: Number k of circles.
        context: Length of the condition, 0 for none.
        blocks: Number of coupling layers.
        bins: Bins of the splines.
        hidden: Widths of the hidden layers of each network.
        activation: As of `fluvial.nn.MLP`.
        standardize: Shift and scale the condition to order one, fitted by `fluvial.fit` on the training rows.
        seed: Of the halves.

    Returns:
        An ordinary `Flow` on `Torus(dim)`.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> on_torus(2, blocks=2, hidden=[16]).sample(5).shape
        torch.Size([5, 2, 2])
    """
    parts = circular_parts(dim, context, blocks, bins, hidden, activation, seed)
    return _flow([Angles(dim), *parts], dim, context, standardize=standardize)


def circular_parts(features: int, context: int, blocks: int, bins: int, hidden: Sequence[int], activation: str, seed: int) -> list[Bijection]:
    """Coupling layers on angles."""
    if features < 1 or blocks < 1:
        raise ValueError(f"circular: the number of angles and blocks must be positive, got {features} and {blocks}")
    spline = RationalQuadratic(bins, low=-math.pi, high=math.pi, boundary="circular")
    everywhere = range(features)
    return [
        Coupling(features, spline, active=active, periodic=everywhere, context=context, hidden=hidden, activation=activation)
        for active in halves(features, blocks, seed)
    ]


def _flow(parts: list[Bijection], features: int, context: int, *, standardize: bool) -> Flow:
    scaling = ConditionScaling(context) if context and standardize else None
    base = Uniform([-math.pi] * features, [math.pi] * features)
    return Flow(Chain(parts), base, context=scaling, condition=context or None)
