"""The usual free-form flow, in one call."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from fluvial.bases import Base, Normal, UniformOn
from fluvial.codecs import Chain, FreeForm, Standardize
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, HasUniform, Manifold
from fluvial.nn import ConditionScaling, ConvolutionalDecoder, ConvolutionalEncoder, Residual


def free_form(
    features: int | Sequence[int] | None = None,
    *,
    latent: int | None = None,
    manifold: Manifold | None = None,
    context: int = 0,
    base: Base | None = None,
    width: int = 256,
    blocks: int = 4,
    activation: str | None = None,
    input_scale: float | None = None,
    output_scale: float = 0.1,
    channels: Sequence[int] | None = None,
    standardize: bool | str = True,
) -> Flow:
    r"""Build a free-form flow of residual networks (convolutional ones for images), standardised where space is flat.

    Args:
        features: Length of the data vectors, or the shape of one sample; taken from ``manifold`` where that is given.
        latent: Dimensions of the latent; default as many as the data. Fewer make an injective flow.
        manifold: Where the data live, for instance ``Sphere(2)``; default flat space.
        context: Length of the condition, 0 for none.
        base: Latent distribution; default uniform on a manifold of finite volume, else standard normal.
        width: Hidden length of the networks.
        blocks: Residual steps of each network.
        activation: Default "silu" in flat space, "sin" on compact manifolds.
        input_scale: Factor on the networks' input; default 1 in flat space, 3 on compact manifolds.
        output_scale: Factor on the output layers at the start.
        channels: For an image shape (channels, height, width): channels of the convolutions.
        standardize: True for coordinate-wise standardisation, "isotropic" for one common scale, False for none; fitted by `fluvial.fit` on
            the training split. On curved manifolds it concerns the condition only, which is always taken entry by entry.

    Returns:
        An ordinary `Flow`.

    Raises:
        ValueError: If neither or both of features and manifold say what the data are, or the sizes do not fit.

    Example:
        >>> free_form(5, latent=2).is_bottleneck
        True
        >>> from fluvial.manifolds import Sphere
        >>> free_form(manifold=Sphere(2)).base
        UniformOn(Sphere(2))
    """
    if isinstance(features, Manifold):
        raise TypeError(f"free_form: {features} is a manifold; give it as manifold={features}")
    if standardize not in (True, False, "isotropic"):
        raise ValueError(f"free_form: standardize must be True, False or 'isotropic', got {standardize!r}")
    space = _space(features, manifold)
    flat = isinstance(space, Euclidean)
    if latent is not None and not flat:
        raise ValueError(
            f"free_form: latent={latent} makes sense in flat space only; on {space} give a base on a manifold of lower dimension instead"
        )
    if base is not None and latent is not None and base.manifold.event_shape != (latent,):
        raise ValueError(f"free_form: latent={latent} contradicts the base on {base.manifold}; leave one of them out")
    if base is not None and flat and latent is None and base.manifold.dim < space.dim:
        raise ValueError(
            f"free_form: the base on {base.manifold} has fewer dimensions than the data on {space}; say latent={base.manifold.dim} if that is meant"
        )
    if base is None:
        base = Normal(space.dim if latent is None else latent) if flat else _compact_base(space)
    width_out, width_in = math.prod(space.event_shape), math.prod(base.manifold.event_shape)
    options: dict[str, Any] = {
        "context": context,
        "width": width,
        "blocks": blocks,
        "activation": activation or ("silu" if flat else "sin"),
    }
    if channels is not None:
        encoder: nn.Module = ConvolutionalEncoder(space.event_shape, width_in, channels=channels, **options)
        decoder: nn.Module = ConvolutionalDecoder(width_in, space.event_shape, channels=channels, **options)
    else:
        if len(space.event_shape) != 1:
            raise ValueError(
                f"free_form: data of shape {space.event_shape} need channels=… for convolutions, or a hand-made Flow of your own networks"
            )
        scale = input_scale if input_scale is not None else (1.0 if flat else 3.0)
        encoder = Residual(width_out, width_in, input_scale=scale, output_scale=output_scale, **options)
        decoder = Residual(width_in, width_out, input_scale=scale, output_scale=output_scale, **options)
    codec: Any = FreeForm(encoder, decoder)
    if flat and standardize:
        codec = Chain([Standardize(space.event_shape, isotropic=standardize == "isotropic"), codec])
    scaling = ConditionScaling(context) if context and standardize else None
    return Flow(codec, base, manifold=space, context=scaling, condition=context or None)


def _space(features: int | Sequence[int] | None, manifold: Manifold | None) -> Manifold:
    if manifold is None:
        if features is None:
            raise ValueError("free_form: say what the data are, by features (an int or a shape) or by manifold")
        return Euclidean(features if isinstance(features, int) else tuple(features))
    shape = None if features is None else ((features,) if isinstance(features, int) else tuple(features))
    if shape is not None and shape != manifold.event_shape:
        raise ValueError(f"free_form: features {features} contradict {manifold}, whose points have shape {manifold.event_shape}; leave features out")
    return manifold


def _compact_base(space: Manifold) -> Base:
    if not isinstance(space, HasUniform):
        raise ValueError(f"free_form: {space} has no uniform distribution to start from; give base=…")
    return UniformOn(space)
