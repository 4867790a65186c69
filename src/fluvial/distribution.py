"""A flow in the interface of `torch.distributions`."""

import copy
import math
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.distributions import constraint_registry, constraints

from fluvial.codecs import Bijection, Chain, Wrap
from fluvial.codecs.box import Box
from fluvial.conditions import Condition, batch_shape, expand_flat, transform
from fluvial.manifolds import Euclidean, Manifold

if TYPE_CHECKING:
    from fluvial.ensemble import Ensemble
    from fluvial.flow import Flow


class OnManifold(constraints.Constraint):
    r"""The points of a manifold, as a support: |x − project(x)| ≤ √ε (1 + |x|), ε the rounding of the numbers.

    Args:
        manifold: Where the points live.

    Example:
        >>> from fluvial.manifolds import Sphere
        >>> OnManifold(Sphere(2)).check(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]))
        tensor([ True, False])
    """

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        self.manifold = manifold
        self.event_dim = len(manifold.event_shape)

    def check(self, value: Tensor) -> Tensor:
        r"""Whether points (\*batch, \*event) lie on the manifold, shape (\*batch,)."""
        event = self.manifold.event_shape
        rows = value.reshape(*value.shape[: value.ndim - len(event)], math.prod(event))
        apart = torch.linalg.vector_norm(rows - self.manifold.project(value).reshape(rows.shape), dim=-1)
        return apart <= torch.finfo(value.dtype).eps ** 0.5 * (1 + torch.linalg.vector_norm(rows, dim=-1))

    def __repr__(self) -> str:
        return f"OnManifold({self.manifold})"


class LessThanEq(constraints.Constraint):
    r"""Numbers x ≤ `upper_bound`: as a density at the bound itself counts for nothing, they map onto all of space as x < `upper_bound` does.

    Args:
        upper_bound: The largest number.

    Example:
        >>> LessThanEq(torch.tensor(1.0)).check(torch.tensor([1.0, 2.0]))
        tensor([ True, False])
    """

    def __init__(self, upper_bound: Tensor) -> None:
        super().__init__()
        self.upper_bound = upper_bound

    def check(self, value: Tensor) -> Tensor:
        """Which numbers are no larger."""
        return value <= self.upper_bound

    def __repr__(self) -> str:
        return f"LessThanEq(upper_bound={self.upper_bound})"


constraint_registry.biject_to.register(LessThanEq, lambda closed: constraint_registry.biject_to(constraints.less_than(closed.upper_bound)))
constraint_registry.transform_to.register(LessThanEq, lambda closed: constraint_registry.transform_to(constraints.less_than(closed.upper_bound)))


class FlowDistribution(torch.distributions.Distribution):
    r"""A flow at a fixed condition, in the interface of `torch.distributions`.

    Batch shape is that of the condition (() without one), event shape that of one sample. What a flow does not know in closed form (mean,
    variance, entropy, cdf) raises NotImplementedError, rather than be estimated behind your back.

    ``has_rsample`` is False, and samples carry no gradient, where drawing involves a choice: for an ensemble, or a base with parameters
    of its own whose samples do not follow them.

    Args:
        flow: A `Flow` or an `Ensemble`.
        c: Condition.
        validate_args: Raise ValueError for values outside the support; by default their log-density is −inf, and off a manifold that of the
            projected point. None is torch's global setting.

    Example:
        >>> import fluvial as fl
        >>> flow = fl.Flow(fl.codecs.Standardize(2), fl.bases.Normal(2))
        >>> d = FlowDistribution(flow).expand((3,))
        >>> d, d.sample((5,)).shape, d.log_prob(torch.zeros(2)).shape
        (FlowDistribution(batch_shape=(3,), event_shape=(2,)), torch.Size([5, 3, 2]), torch.Size([3]))
    """

    arg_constraints = {}

    def __init__(self, flow: "Flow | Ensemble", c: Condition = None, *, validate_args: bool | None = False) -> None:
        if c is None and flow.condition is not None:
            raise ValueError(f"FlowDistribution: this flow is conditional; give c of event shape {flow.condition}")
        self.flow = flow
        self.c = c
        batch = () if c is None else batch_shape(c, flow.condition)
        super().__init__(torch.Size(batch), torch.Size(flow.manifold.event_shape), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether samples can be differentiated in c and in the flow's parameters."""
        base = getattr(self.flow, "base", None)
        if base is None:
            return False
        return getattr(base, "has_rsample", not any(p.requires_grad for p in base.parameters()))

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The manifold; in flat space the bounds or ``support`` of the codec that touches the data, one period of angles, or else all of space."""
        manifold = self.flow.manifold
        if not isinstance(manifold, Euclidean):
            return OnManifold(manifold)
        declared = _declared_support(self.flow)
        return declared if declared is not None else constraints.independent(constraints.real, len(manifold.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of values whose batch broadcasts with the batch shape, shape (\*sample, \*batch)."""
        if self._validate_args:
            self._validate_sample(value)
        log_p = self.flow.log_prob(value, self.c)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self._batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        r"""Independent draws without gradient, shape (\*sample, \*batch, \*event)."""
        with torch.no_grad():
            return self._draw(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        r"""Draws of shape (\*sample, \*batch, \*event), differentiable in c, and in training mode in the flow's parameters.

        Raises:
            NotImplementedError: Where ``has_rsample`` is False.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                "FlowDistribution: drawing from this flow involves a choice (an ensemble's member, a base's component), so samples carry no "
                "gradient; use sample(), and log_prob for a score-function estimate"
            )
        return self._draw(sample_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        """The same distribution over a larger batch, of independent copies; conditions are broadcast."""
        shape = torch.Size(batch_shape)
        if shape == self._batch_shape:
            return self
        try:
            fits = torch.broadcast_shapes(self._batch_shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"FlowDistribution: batch shape {tuple(self._batch_shape)} cannot be expanded to {tuple(shape)}")
        new = copy.copy(self)
        new._batch_shape = shape
        if self.c is not None:
            flat = expand_flat(self.c, tuple(shape), self.flow.condition)
            new.c = transform(flat, lambda leaf: leaf.view(*shape, *leaf.shape[1:]))
        return new

    @property
    def mean(self) -> Tensor:
        """Not known in closed form."""
        self._refuse("mean", "d.sample((n,)).mean(0) estimates it")

    @property
    def variance(self) -> Tensor:
        """Not known in closed form."""
        self._refuse("variance", "d.sample((n,)).var(0) estimates it")

    @property
    def mode(self) -> Tensor:
        """Not known in closed form."""
        self._refuse("mode", "climb log_prob by its gradient")

    def entropy(self) -> Tensor:
        """Not known in closed form."""
        self._refuse("entropy", "x, log_p = flow.sample_and_log_prob(n, c); −log_p.mean(0) estimates it")

    def cdf(self, value: Tensor) -> Tensor:
        """Not known in closed form."""
        self._refuse("cdf", "the share of samples below a value estimates it")

    def icdf(self, value: Tensor) -> Tensor:
        """Not known in closed form."""
        self._refuse("icdf", "quantiles of samples estimate it")

    def _draw(self, sample_shape: Any) -> Tensor:
        shape = tuple(sample_shape)
        return self.flow.sample(shape if self.c is not None else (*shape, *self._batch_shape), self.c)

    def _refuse(self, what: str, mend: str) -> NoReturn:
        raise NotImplementedError(f"FlowDistribution: the {what} of a flow is not known in closed form; {mend}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self._batch_shape)}, event_shape={tuple(self._event_shape)})"


def _declared_support(flow: "Flow | Ensemble") -> constraints.Constraint | None:
    """The support that the bijection on the data side declares, if any; of an ensemble that of its first member."""
    members = getattr(flow, "flows", None)
    part = members[0].codec if members is not None else flow.codec
    while isinstance(part, Chain):
        part = part.parts[0]
    like = next((t for t in (*flow.parameters(), *flow.buffers()) if t.is_floating_point()), torch.empty(0))
    if isinstance(part, Box):
        return _box(part, like.dtype)
    if isinstance(part, Wrap):
        # Any angle has a density, that of the same angle on the interval; the densities on the interval integrate to 1.
        event = part.domain.event_shape
        return constraints.independent(constraints.interval(like.new_full(event, part.low), like.new_full(event, part.high)), len(event))
    declared = getattr(part, "support", None) if isinstance(part, Bijection) else None
    return declared if isinstance(declared, constraints.Constraint) else None


def _box(box: Box, dtype: torch.dtype) -> constraints.Constraint:
    """The coordinate-wise bounds of a box, as constraints that torch and Pyro can map onto all of space."""
    axes = len(box.event_shape)
    kinds = torch.stack([box.has_low, box.has_high]).unique(dim=1).T.tolist()
    low, high = (bound.to(dtype) for bound in box.limits.view(torch.float64).unbind(0))
    if len(kinds) == 1:
        return constraints.independent(_side(*kinds[0], low, high), axes)
    each = zip(box.has_low.tolist(), box.has_high.tolist(), low, high)
    return constraints.stack([_side(*sides) for sides in each], dim=-1)


def _side(has_low: bool, has_high: bool, low: Tensor, high: Tensor) -> constraints.Constraint:  # noqa: FBT001
    if has_low and has_high:
        return constraints.interval(low, high)
    return constraints.greater_than_eq(low) if has_low else LessThanEq(high) if has_high else constraints.real
