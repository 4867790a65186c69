"""Spline flows on the sphere."""

import math
from collections.abc import Sequence

from fluvial.bases import Base, UniformOn
from fluvial.codecs import Bijection, Chain, Coupling, Cylinder, Inverse, RationalQuadratic, Rotation
from fluvial.flow import Flow
from fluvial.manifolds import Sphere
from fluvial.nn import ConditionScaling


def on_sphere(
    context: int = 0,
    *,
    blocks: int = 6,
    bins: int = 16,
    hidden: Sequence[int] = (64, 64, 64),
    activation: str = "silu",
    base: Base | None = None,
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    r"""Build an exact flow on the unit sphere S²: splines in longitude φ and height h, about another axis in every block.

    .. math:: x = (\sqrt{1-h^2}\cos\varphi, \sqrt{1-h^2}\sin\varphi, h), \qquad dA = d\varphi\, dh

    By Archimedes' theorem the cylinder's coordinates preserve area, so that the log-determinant is that of the splines: a circular one in φ
    given h, and one on [−1, 1] in h given φ. Random rotations between the blocks give each its own axis. The density is bounded and continuous but
    for the two poles of every block's axis, points where it depends on the direction from which they are approached.

    Args:
        context: Length of the condition, 0 for none.
        blocks: Number of blocks, of two coupling layers each.
        bins: Bins of the splines.
        hidden: Widths of the hidden layers of each network.
        activation: As of `fluvial.nn.MLP`.
        base: Latent distribution on the sphere; default uniform.
        standardize: Shift and scale the condition to order one, fitted by `fluvial.fit` on the training rows.
        seed: Of the rotations.

    Returns:
        An ordinary `Flow` on `Sphere(2)`.

    Raises:
        ValueError: If a size is not positive.

    References:
        Rezende, Papamakarios, Racanière, Albergo, Kanwar, Shanahan, Cranmer (2020), "Normalizing flows on tori and spheres", arXiv:2002.02428.

    Example:
        >>> flow = on_sphere(blocks=2, hidden=[16])
        >>> flow.eval().sample(5).shape
        torch.Size([5, 3])
    """
    if blocks < 1:
        raise ValueError(f"on_sphere: blocks must be positive, got {blocks}")
    around = RationalQuadratic(bins, low=-math.pi, high=math.pi, boundary="circular")
    along = RationalQuadratic(bins, low=-1.0, high=1.0, boundary="interval")
    parts: list[Bijection] = []
    for k in range(blocks):
        parts += [Rotation(3, seed=seed + k, manifold=Sphere(2)), Cylinder()]
        parts += [
            Coupling(2, spline, active=[i], periodic=[0], context=context, hidden=hidden, activation=activation)
            for i, spline in enumerate((around, along))
        ]
        parts.append(Inverse(Cylinder()))
    scaling = ConditionScaling(context) if context and standardize else None
    return Flow(Chain(parts), base if base is not None else UniformOn(Sphere(2)), context=scaling, condition=context or None)
