"""Spline coupling flows in flat space."""

from collections.abc import Sequence
from typing import Literal

import torch

from fluvial.bases import Base, Normal
from fluvial.codecs import LU as PLU
from fluvial.codecs import Affine, Bijection, Bounds, Chain, Coupling, Cubic, RationalQuadratic, Rotation, Smooth, Standardize, Transformer
from fluvial.flow import Flow
from fluvial.nn import ConditionScaling

Transform = Literal["rqs", "cubic", "smooth", "affine"]
Mixing = Literal["alternate", "rotation", "lu"]


def coupling(
    features: int,
    context: int = 0,
    *,
    transform: Transform | Transformer = "rqs",
    blocks: int = 8,
    bins: int = 16,
    bound: float = 5.0,
    hidden: Sequence[int] = (64, 64, 64),
    activation: str = "silu",
    mixing: Mixing = "alternate",
    bounds: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
    base: Base | None = None,
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    r"""Build a coupling flow: exact density, and sampling as fast as evaluation.

    .. math:: z = f_B \circ \dots \circ f_1\bigl((x - \mu)/\sigma\bigr)

    Each f transforms half of the coordinates by increasing maps whose parameters a network computes from the other half and the condition.

    Args:
        features: Number of coordinates.
        context: Length of the condition, 0 for none.
        transform: The increasing maps: "rqs" (rational-quadratic splines, the most flexible), "cubic" (cubic splines, as published for LHC events),
            "smooth" (twice continuously differentiable, for derivatives with respect to the condition), "affine" (shift and scale, the fastest);
            or any `Transformer`.
        blocks: Number of coupling layers.
        bins: Bins of the splines.
        bound: Half the box of the splines, in standard deviations of the data; outside they are straight lines.
        hidden: Widths of the hidden layers of each network.
        activation: As of `fluvial.nn.MLP`.
        mixing: Which coordinates look at which: "alternate" (a random half, then the other one), "rotation" (a fixed random rotation before each
            layer), "lu" (a trainable linear map before each layer).
        bounds: (low, high), the lower bounds of all coordinates and then the upper ones, None where there is none: no sample will lie outside.
            The density falls to 0 at a bound, so that rows exactly on it cost many nats.
        base: Latent distribution; default standard normal.
        standardize: Shift and scale data and condition to order one, fitted by `fluvial.fit` on the training rows.
        seed: Of the halves and rotations.

    Returns:
        An ordinary `Flow`.

    Raises:
        ValueError: If a size or name is not one of the above.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), "Neural spline flows", arXiv:1906.04032.

    Example:
        >>> flow = coupling(3, blocks=2, hidden=[16])
        >>> flow.log_prob(flow.sample(5)).shape
        torch.Size([5])
    """
    if features < 1 or blocks < 1:
        raise ValueError(f"coupling: features and blocks must be positive, got {features} and {blocks}")
    maps = transformer(transform, bins, bound)
    mixers = _mixers(mixing, features, blocks, seed)
    masks = halves(features, blocks, seed) if mixing == "alternate" else [tuple(range(features // 2, features))] * blocks
    parts: list[Bijection] = []
    if bounds is not None:
        if len(bounds) != 2 or any(not isinstance(side, Sequence) or len(side) != features for side in bounds):
            raise ValueError(f"coupling: bounds must be (low, high), each with {features} entries (None for no bound), got {bounds}")
        parts.append(Bounds(*bounds))
    if standardize:
        parts.append(Standardize(features))
    for mixer, active in zip(mixers, masks):
        parts += mixer
        parts.append(Coupling(features, maps, active=active, context=context, hidden=hidden, activation=activation))
    scaling = ConditionScaling(context) if context and standardize else None
    return Flow(Chain(parts), base if base is not None else Normal(features), context=scaling, condition=context or None)


def transformer(transform: Transform | Transformer, bins: int, bound: float) -> Transformer:
    """The increasing maps by name."""
    if isinstance(transform, Transformer):
        return transform
    if transform == "affine":
        return Affine()
    kinds = {"rqs": RationalQuadratic, "cubic": Cubic, "smooth": Smooth}
    if transform not in kinds:
        raise ValueError(f"coupling: transform must be one of {', '.join(map(repr, [*kinds, 'affine']))}, or a Transformer, got {transform!r}")
    return kinds[transform](bins, low=-bound, high=bound)


def halves(features: int, blocks: int, seed: int) -> list[tuple[int, ...]]:
    """The active coordinates of each layer: a random half, then the other one, then another random half."""
    if features == 1:
        return [(0,)] * blocks
    generator = torch.Generator().manual_seed(seed)
    masks: list[tuple[int, ...]] = []
    while len(masks) < blocks:
        order = torch.randperm(features, generator=generator).tolist()
        masks += [tuple(sorted(order[features // 2 :])), tuple(sorted(order[: features // 2]))]
    return masks[:blocks]


def _mixers(mixing: Mixing, features: int, blocks: int, seed: int) -> list[list[Bijection]]:
    """The linear map before each layer."""
    if mixing == "alternate":
        return [[] for _ in range(blocks)]
    if mixing == "rotation":
        return [[Rotation(features, seed=seed + k)] for k in range(blocks)]
    if mixing == "lu":
        return [[Rotation(features, seed=seed + k), PLU(features)] for k in range(blocks)]
    raise ValueError(f"coupling: mixing must be 'alternate', 'rotation' or 'lu', got {mixing!r}")
