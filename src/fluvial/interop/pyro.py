"""Flows as distributions of Pyro: in models, guides and plates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

try:
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ImportError as error:
    raise ImportError("fluvial.interop.pyro needs the package pyro-ppl: pip install 'fluvial[pyro]'") from error

from fluvial.conditions import Condition, leaves
from fluvial.distribution import FlowDistribution
from fluvial.ensemble import Ensemble
from fluvial.flow import Flow


class PyroFlow(FlowDistribution, TorchDistributionMixin):
    """A flow at a fixed condition as a distribution of Pyro; see `distribution`."""

    _drawn: tuple[Tensor, Tensor, list[tuple[int, int]]] | None = None

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density, shape (\*sample, \*batch); of a sample just drawn from a bijection, that of its own latent, without a second pass."""
        if self._drawn is not None and self._drawn[0] is value and self._drawn[2] == self._versions(value):
            log_p = self._drawn[1]
            if log_p.requires_grad or not (_wants_graph(self.flow) or value.requires_grad):
                return log_p
        with _recorded(self.flow):
            return super().log_prob(value)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        r"""Draws of shape (\*sample, \*batch, \*event), differentiable in c and in the flow's parameters."""
        if not (self.has_rsample and self.flow.is_bijective):
            with _recorded(self.flow):
                return super().rsample(sample_shape)
        shape = tuple(sample_shape) if self.c is not None else (*sample_shape, *self.batch_shape)
        with _recorded(self.flow):
            x, log_p = self.flow.sample_and_log_prob(shape, self.c)
        # Tensors of inference mode do not count their changes.
        self._drawn = None if x.is_inference() else (x, log_p, self._versions(x))
        return x

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PyroFlow":
        """The same distribution over a larger batch, of independent copies; conditions are broadcast."""
        new: Any = super().expand(batch_shape)
        if new is not self:
            new._drawn = None
        return new

    def _versions(self, value: Tensor) -> list[tuple[int, int]]:
        """Tells apart every state of what a density depends on: the value, the condition, parameters and buffers."""
        tensors = (value, *leaves(self.c).values(), *self.flow.parameters(), *self.flow.buffers())
        return [(id(t), -1 if t.is_inference() else t._version) for t in tensors]


def distribution(flow: Flow | Ensemble, c: Condition = None, *, validate_args: bool | None = None) -> PyroFlow:
    r"""A flow at a fixed condition for ``pyro.sample``: in models and guides, inside plates, masked, or reshaped by ``to_event``.

    As everywhere in Pyro, parameters get gradients whether or not the flow is in training mode; tell Pyro of them by
    ``pyro.module(name, flow)`` where they are to be trained, and leave that out (or ``flow.requires_grad_(False)``) where they are not. A flow
    on a curved manifold is a fine guide or observation model; as a latent site for NUTS it is not, as Pyro unconstrains flat supports only.

    Args:
        flow: A `Flow` or an `Ensemble`. In the guide of an `SVI` a bijection is drawn and scored in one pass; an ensemble is scored by the
            score-function estimator.
        c: Condition; its batch is the batch shape.
        validate_args: Refuse values outside the support; default as Pyro is set.

    Example:
        >>> import pyro
        >>> import fluvial as fl
        >>> flow = fl.Flow(fl.codecs.Standardize(2), fl.bases.Normal(2))
        >>> def model():
        ...     with pyro.plate("rows", 7):
        ...         return pyro.sample("x", distribution(flow))
        >>> model().shape
        torch.Size([7, 2])
    """
    return PyroFlow(flow, c, validate_args=validate_args)


@contextmanager
def _recorded(flow: Flow | Ensemble) -> Iterator[None]:
    """Graphs are kept inside where a parameter wants a gradient, as if in training mode, though no layer (such as dropout) is put in that mode."""
    eager = [part for part in flow.modules() if isinstance(part, Flow | Ensemble) and not part.training]
    wanted = _wants_graph(flow)
    for part in eager:
        part.training = wanted
    try:
        yield
    finally:
        for part in eager:
            part.training = False


def _wants_graph(flow: Flow | Ensemble) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in flow.parameters())
