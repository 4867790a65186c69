"""A flow in the interface of `torch.distributions`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluvial.conditions import Condition, batch_shape, expand_flat, transform

if TYPE_CHECKING:
    from fluvial.flow import Flow


class FlowDistribution(torch.distributions.Distribution):
    """A flow at a fixed condition, in the interface of `torch.distributions`."""

    arg_constraints = {}
    has_rsample = True

    def __init__(self, flow: "Flow", c: Condition = None) -> None:
        self.flow = flow
        self.c = c
        batch = () if c is None else batch_shape(c, flow.condition)
        super().__init__(torch.Size(batch), torch.Size(flow.manifold.event_shape), validate_args=False)

    @property
    def support(self) -> torch.distributions.constraints.Constraint:
        """All of the ambient space."""
        return torch.distributions.constraints.independent(torch.distributions.constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Shape (*sample, *batch)."""
        return self.flow.log_prob(value, self.c)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Shape (*sample, *batch, *event), differentiable in c, and in training mode in the flow's parameters."""
        return self.flow.sample(tuple(sample_shape), self.c)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        """The same distribution with its conditions broadcast to a larger batch."""
        if self.c is None:
            if tuple(batch_shape):
                raise ValueError(
                    f"FlowDistribution: an unconditional flow has batch shape (), it cannot be expanded to {tuple(batch_shape)}; use sample(n)"
                )
            return self
        flat = expand_flat(self.c, tuple(batch_shape), self.flow.condition)
        return FlowDistribution(self.flow, transform(flat, lambda leaf: leaf.view(*batch_shape, *leaf.shape[1:])))
