"""The usual free-form flow, in one call."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fluvial.bases import Base, Independent, Normal, UniformOn, WrappedNormal
from fluvial.codecs import Bijection, Chain, Factorwise, FreeForm, Similarity, Standardize
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Manifold, Mesh, Product, Projected, has_uniform
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
        base: Latent distribution; default uniform on a manifold of finite volume, normal in flat space, on products factor by factor, and a wrapped
            normal on other spaces.
        width: Hidden length of the networks.
        blocks: Residual steps of each network.
        activation: Default "sin" where the volume is finite, else "silu".
        input_scale: Factor on the networks' input; default 3 where the volume is finite, else 1.
        output_scale: Factor on the output layers at the start.
        channels: For an image shape (channels, height, width): channels of the convolutions.
        standardize: True for coordinate-wise standardisation, "isotropic" for one common scale, False for none; fitted by `fluvial.fit` on
            the training split. On products it concerns the flat factors. Meshes are centred and scaled to radius 1, from their own shape, unless a
            base is given. On other manifolds it concerns the condition only, which is always taken entry by entry.

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
    flat, compact = isinstance(space, Euclidean), has_uniform(space)
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
    before = _standardized(space, kind=standardize, rescale=base is None) if standardize else None
    if base is None:
        base = Normal(latent) if latent is not None else _natural_base(space if before is None else before.codomain)
    outer, inner = _lengths(space), _lengths(base.manifold)
    options: dict[str, Any] = {
        "context": context,
        "width": width,
        "blocks": blocks,
        "activation": activation or ("sin" if compact else "silu"),
    }
    if channels is not None:
        encoder: nn.Module = ConvolutionalEncoder(space.event_shape, inner, channels=channels, **options)
        decoder: nn.Module = ConvolutionalDecoder(inner, space.event_shape, channels=channels, **options)
    else:
        if flat and len(space.event_shape) != 1:
            raise ValueError(
                f"free_form: data of shape {space.event_shape} need channels=… for convolutions, or a hand-made Flow of your own networks"
            )
        scale = input_scale if input_scale is not None else (3.0 if compact else 1.0)
        encoder = Residual(outer, inner, input_scale=scale, output_scale=output_scale, **options)
        decoder = Residual(inner, outer, input_scale=scale, output_scale=output_scale, **options)
    codec: Any = FreeForm(encoder, decoder)
    if before is not None:
        codec = Chain([before, codec])
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


def _lengths(space: Manifold) -> int | tuple[int, ...]:
    """The points' shape, as a number where they are vectors."""
    return space.event_shape[0] if len(space.event_shape) == 1 else space.event_shape


def _standardized(space: Manifold, *, kind: bool | str, rescale: bool) -> Bijection | None:
    """What brings the data to size one: from flat space to itself and, where that may change the latent space too, from meshes to rescaled ones."""
    if isinstance(space, Euclidean):
        return Standardize(space.event_shape, isotropic=kind == "isotropic")
    if isinstance(space, Product):
        parts = [_standardized(factor, kind=kind, rescale=rescale) for factor in space.factors]
        return Factorwise(space, parts) if any(part is not None for part in parts) else None
    return Similarity(space) if isinstance(space, Mesh) and rescale else None


def _natural_base(space: Manifold) -> Base:
    """Normal in flat space, uniform where the volume is finite, factor by factor on products, else a wrapped normal."""
    if isinstance(space, Euclidean):
        return Normal(space.event_shape)
    if isinstance(space, Product):
        return Independent([_natural_base(factor) for factor in space.factors])
    if has_uniform(space):
        return UniformOn(space)
    if isinstance(space, Projected):
        raise ValueError(f"free_form: the volume of {space} is not known; give base=bases.UniformByProjection(manifold, …)")
    return WrappedNormal(space)
