"""Flows of zuko as codecs and flows of fluvial.

zuko's autoregressive flows are fast in one direction: ``log_prob`` is one pass, sampling one pass per feature (two in all where
``passes=2`` makes them couplings). NSF, MAF, NICE and NCSF have closed inverses. NAF, UNAF, SOSPF, BPF and GF are inverted by bisection, to
about 1e-6 and within 10 standard deviations (GF in single precision within about 4); that has one derivative, and cannot be vmapped.
UNAF and SOSPF integrate numerically, so that their log_prob too has one derivative only: nothing that needs ∂²/∂c∂θ is trained with them.

Importing zuko switches the argument validation of `torch.distributions` off for the whole process; that is zuko's own doing.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform

try:
    import zuko
except ImportError as error:
    raise ImportError("fluvial.interop.zuko needs the package zuko: pip install 'fluvial[zuko]'") from error

from fluvial.bases import Base, Normal, Uniform, sample_shape
from fluvial.codecs import Bijection, Chain, Standardize
from fluvial.conditions import Condition, as_features
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean
from fluvial.manifolds.manifold import normals
from fluvial.nn import ConditionScaling

# What a file may name; nothing else of zuko is called on behalf of a file.
FAMILIES = ("NSF", "MAF", "NICE", "NAF", "UNAF", "SOSPF", "BPF", "NCSF", "GF")
CIRCULAR = ("NCSF",)
ACTIVATIONS = ("ReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Tanh", "Softplus", "LeakyReLU")
_MOST_TRANSFORMS = 1000


class _ZukoBijection(Bijection):
    """What the two public codecs share: a lazy transformation of zuko in ``transform``, called at a condition of ``context`` features."""

    features: int
    context: int
    transform: nn.Module

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data -> latents, one pass."""
        transform: Any = self._at(c)
        return transform(x)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Latents -> data, as many passes as the family needs."""
        # The inverse holds the transformation only weakly.
        transform: Any = self._at(c)
        return transform.inv(z)

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Latents and log|det ∂z/∂x|, one pass."""
        z, ladj = self._at(c).call_and_ladj(x)
        return z, ladj

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Data and log|det ∂x/∂z|."""
        transform = self._at(c)
        x, ladj = transform.inv.call_and_ladj(z)
        return x, ladj

    def _at(self, c: Condition) -> Transform:
        return self.transform(_features(c, self.context, type(self).__name__))


class ZukoCodec(_ZukoBijection):
    r"""A flow of zuko, by the name of its family, as a `Bijection` between vectors.

    .. math:: z = f_c(x), \qquad \mathrm{ladj} = \log|\det \partial f_c/\partial x|

    NCSF acts on angles in [−π, π] and has values there; outside its density is 0 (ladj = −inf). All other families map space to space.

    Args:
        features: Length n of a vector.
        context: Length of the condition, 0 for none; a dict counts with all its leaves.
        family: One of NSF, MAF, NICE, NAF, UNAF, SOSPF, BPF, NCSF, GF.
        options: Further arguments of that class of zuko.flows, such as ``{"transforms": 5, "hidden_features": (128, 128), "bins": 8}``;
            an activation by its name in torch.nn, such as "ELU".

    Raises:
        ValueError: If the family is not one of these, or zuko does not take an option.

    References:
        Rozet et al. (2022), Zuko: normalizing flows in PyTorch.

    Example:
        >>> codec = ZukoCodec(3, family="MAF", options={"transforms": 2, "hidden_features": (16,)})
        >>> z, ladj = codec.encode_ladj(torch.zeros(5, 3))
        >>> z.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, features: int, context: int = 0, *, family: str = "NSF", options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if features < 1 or context < 0:
            raise ValueError(f"ZukoCodec: features must be positive and context not negative, got {features} and {context}")
        if family not in FAMILIES:
            raise ValueError(f"ZukoCodec: family must be one of {', '.join(FAMILIES)}, got {family!r}; wrap any other flow by from_zuko(flow)")
        self.features = features
        self.context = context
        self.family = family
        self.options = dict(options or {})
        self.transform = _build(family, features, context, self.options).transform
        self.domain = self.codomain = Euclidean(features)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data -> latents, one pass."""
        return self._within(super().encode(x, c))

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Latents and log|det ∂z/∂x|, one pass."""
        z, ladj = super().encode_ladj(x, c)
        return self._within(z), self._supported(x, ladj)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Data and log|det ∂x/∂z|."""
        x, ladj = super().decode_ladj(z, c)
        return x, self._supported(z, ladj)

    @property
    def support(self) -> torch.distributions.constraints.Constraint | None:
        """Where the density is not 0; None is all of space."""
        if self.family not in CIRCULAR:
            return None
        return torch.distributions.constraints.independent(torch.distributions.constraints.interval(-math.pi, math.pi), 1)

    def _within(self, z: Tensor) -> Tensor:
        # Rounding must not carry an angle out of the box.
        return z.clamp(-math.pi, math.pi) if self.family in CIRCULAR else z

    def _supported(self, x: Tensor, ladj: Tensor) -> Tensor:
        if self.family not in CIRCULAR:
            return ladj
        return torch.where((x.abs() <= math.pi).all(-1), ladj, -torch.inf)

    def extra_repr(self) -> str:
        """Family and sizes, for repr."""
        return f"{self.features}, context={self.context}, family={self.family!r}"


class ZukoTransform(_ZukoBijection):
    """Any lazy transformation of zuko as a `Bijection` between vectors; it has no written form, so a flow of it is not saved by `fluvial.save`.

    Args:
        transform: A `zuko.lazy.LazyTransform`.
        features: Length of a vector.
        context: Length of the condition it takes, 0 for none.

    Raises:
        TypeError: If it is something else.
    """

    unwritable = (
        "it wraps a zuko flow that was built by code, which has no written form; "
        "name its family, from_zuko(flow, family=…, options=…), or keep its state_dict yourself"
    )

    def __init__(self, transform: nn.Module, features: int, *, context: int = 0) -> None:
        super().__init__()
        if not isinstance(transform, zuko.lazy.LazyTransform):
            raise TypeError(f"ZukoTransform: expected a zuko.lazy.LazyTransform, got {type(transform).__name__}")
        self.transform = transform
        self.features = features
        self.context = context
        self.domain = self.codomain = Euclidean(features)


class ZukoBase(Base):
    r"""A lazy distribution of zuko with independent normal or uniform coordinates as a base.

    Args:
        base: A `zuko.lazy.LazyDistribution`; its parameters are trained, and may depend on the condition.
        context: Length of the condition it takes, 0 for none.

    Raises:
        TypeError: If its coordinates are neither normal nor uniform.

    Example:
        >>> box = zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, -torch.ones(2), torch.ones(2), buffer=True)
        >>> ZukoBase(box).log_prob(torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
        tensor([-1.3863,    -inf])
    """

    unwritable = "it wraps a base of zuko, which has no written form; use a base of fluvial.bases"

    has_rsample = True

    def __init__(self, base: nn.Module, *, context: int = 0) -> None:
        super().__init__()
        if not isinstance(base, zuko.lazy.LazyDistribution):
            raise TypeError(f"ZukoBase: expected a zuko.lazy.LazyDistribution, got {type(base).__name__}")
        self.base = base
        self.context = context
        with torch.no_grad():
            self.manifold = Euclidean(tuple(self._coordinates(_trial_condition(base, context))[1].shape[-1:]))

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of z (\*batch, n), shape (\*batch,)."""
        kind, a, b = self._coordinates(c)
        if kind == "normal":
            return -(0.5 * ((z - a) / b).square() + b.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        inside = ((z >= a) & (z <= b)).all(-1)
        return torch.where(inside, -(b - a).log().sum(-1), -torch.inf)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), n)."""
        kind, a, b = self._coordinates(c)
        shape = (*sample_shape(n, c), *self.manifold.event_shape)
        if kind == "normal":
            return a + b * normals(shape, a, generator)
        return torch.lerp(a.expand(shape), b.expand(shape), torch.rand(shape, generator=generator, dtype=a.dtype, device=a.device))

    def _coordinates(self, c: Condition) -> tuple[str, Tensor, Tensor]:
        """The kind of the coordinates, with mean and standard deviation or with lower and upper bounds."""
        distribution: Distribution = self.base(_features(c, self.context, "ZukoBase"))
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        if isinstance(distribution, torch.distributions.Normal):
            return "normal", distribution.loc, distribution.scale
        if isinstance(distribution, torch.distributions.Uniform):
            return "uniform", distribution.low, distribution.high
        raise TypeError(f"ZukoBase: only DiagNormal and BoxUniform bases are taken over, got {type(distribution).__name__}")


def flow(features: int, context: int = 0, *, family: str = "NSF", **options: Any) -> Flow:
    """A flow of zuko as a fluvial `Flow`, with standardisation of data and conditions, that can be saved.

    NCSF is for angles in [−π, π], which are not standardised; its base is uniform.

    Args:
        features: Length of a sample.
        context: Length of the condition, 0 for none.
        family: See `ZukoCodec`.
        options: Further arguments of that class of zuko.flows.

    Example:
        >>> flow(2, family="NSF", transforms=2, hidden_features=(16, 16)).sample(3).shape
        torch.Size([3, 2])
    """
    codec = ZukoCodec(features, context, family=family, options=options)
    scaling = ConditionScaling(context) if context else None
    condition = context or None
    if family in CIRCULAR:
        return Flow(codec, Uniform([-math.pi] * features, [math.pi] * features), context=scaling, condition=condition)
    return Flow(Chain([Standardize(features), codec]), Normal(features), context=scaling, condition=condition)


def from_zuko(flow: nn.Module, context: int = 0, *, family: str | None = None, options: Mapping[str, Any] | None = None) -> Flow:
    """A flow of zuko, trained or not, as a fluvial `Flow` of the same density.

    Args:
        flow: A `zuko.flows.Flow`; its weights are shared, not copied, unless `family` is given.
        context: Length of the condition it takes, 0 for none.
        family: Name of its class, with `options` the further arguments it was made from: the result then has copies of the weights and can be
            saved by `fluvial.save`. Without it, it cannot.
        options: See `family`.

    Raises:
        TypeError: If it is not a flow of zuko, or its base is neither DiagNormal nor BoxUniform.
        ValueError: If it does not take such a condition, or the weights do not fit the family and options.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> theirs = zuko.flows.MAF(2)
        >>> torch.allclose(from_zuko(theirs).log_prob(x), theirs().log_prob(x))
        True
    """
    if not isinstance(flow, zuko.lazy.Flow):
        raise TypeError(f"from_zuko: expected a zuko.flows.Flow, got {type(flow).__name__}")
    base = ZukoBase(flow.base, context=context if _is_conditional(flow.base) else 0)
    features = base.manifold.dim
    codec: Bijection = ZukoTransform(flow.transform, features, context=context)
    _try_out(codec, features, context)
    if family is not None:
        codec = _named(flow, features, context, family, options)
    plain = Normal(features) if _is_standard_normal(base) else _as_uniform(base) if family is not None else base
    return Flow(codec, plain, condition=context or None)


def _build(family: str, features: int, context: int, options: Mapping[str, Any]) -> nn.Module:
    """The flow of zuko that a name and options stand for."""
    arguments = dict(options)
    if "activation" in arguments:
        if arguments["activation"] not in ACTIVATIONS:
            raise ValueError(f"ZukoCodec: activation must be one of {', '.join(ACTIVATIONS)} (a name), got {arguments['activation']!r}")
        arguments["activation"] = getattr(nn, arguments["activation"])
    count = arguments.get("transforms", 1)
    if not isinstance(count, int) or not 1 <= count <= _MOST_TRANSFORMS:
        raise ValueError(f"ZukoCodec: transforms must be a number from 1 to {_MOST_TRANSFORMS}, got {count!r}")
    if {"features", "context"} & set(arguments):
        raise ValueError("ZukoCodec: features and context are arguments of their own, not options")
    try:
        return getattr(zuko.flows, family)(features, context, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ZukoCodec: zuko.flows.{family} does not take the options {sorted(options)}: {reason}") from error


def _features(c: Condition, context: int, who: str) -> Tensor | None:
    """The condition as the one tensor that zuko takes; None, whatever is given, where it takes none."""
    if context == 0:
        return None
    features = as_features(c)
    if features is None or features.shape[-1] != context:
        got = "none" if features is None else f"one of shape {tuple(features.shape)}"
        raise ValueError(f"{who}: expected a condition of shape (rows, {context}), got {got}")
    return features


def _trial_condition(module: nn.Module, context: int) -> Tensor | None:
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.zeros(()))
    return tensor.new_zeros(1, context) if context else None


def _is_conditional(base: nn.Module) -> bool:
    """Whether a base does anything with a condition: those that are made from a constructor ignore it."""
    return not isinstance(base, zuko.lazy.UnconditionalDistribution)


@torch.no_grad()
def _try_out(codec: ZukoTransform, features: int, context: int) -> None:
    tensor = next((t for t in codec.parameters() if t.is_floating_point()), torch.zeros(()))
    try:
        codec.encode_ladj(tensor.new_zeros(1, features), _trial_condition(codec, context))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"from_zuko: the flow cannot be called at a condition of length {context} ({reason}); give from_zuko(flow, context)"
        ) from error


def _named(flow: nn.Module, features: int, context: int, family: str, options: Mapping[str, Any] | None) -> ZukoCodec:
    """The codec of that family and those options, with copies of the flow's weights."""
    codec = ZukoCodec(features, context, family=family, options=options)
    wanted, given = codec.transform.state_dict(), flow.transform.state_dict()
    for name in (*wanted, *given):
        shapes = [tuple(state[name].shape) if name in state else None for state in (wanted, given)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"from_zuko: the flow is not zuko.flows.{family} with the options {dict(options or {})}: its tensor {name} is of shape "
                f"{shapes[1]}, not {shapes[0]}; give the arguments it was made from"
            )
    like = next((tensor for tensor in given.values() if tensor.is_floating_point()), torch.zeros(()))
    codec.to(like).transform.load_state_dict(given)
    # Options such as a slope leave no trace in the shapes.
    x = torch.linspace(-2, 2, 5 * features, dtype=like.dtype, device=like.device).view(5, features)
    c = _trial_condition(flow, context)
    with torch.no_grad():
        c = None if c is None else c.expand(5, context)
        ours, theirs = (part.encode_ladj(x, c) for part in (codec, ZukoTransform(flow.transform, features, context=context)))
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(ours, theirs)):
        raise ValueError(
            f"from_zuko: zuko.flows.{family} with the options {dict(options or {})} is another map; give the arguments the flow was made from"
        )
    return codec


def _is_standard_normal(base: ZukoBase) -> bool:
    if any(True for _ in base.parameters()) or base.context:
        return False
    kind, mean, deviation = base._coordinates(None)
    return kind == "normal" and bool((mean == 0).all() and (deviation == 1).all())


def _as_uniform(base: ZukoBase) -> Base:
    """A fixed uniform base as one that can be written down."""
    if any(True for _ in base.parameters()) or base.context:
        return base
    kind, low, high = base._coordinates(None)
    if kind != "uniform":
        return base
    return Uniform(low.tolist(), high.tolist())
