"""Flows as density estimators of sbi: for NPE (posteriors) and NLE (likelihoods)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

try:
    from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
except ImportError as error:
    raise ImportError("fluvial.interop.sbi needs the package sbi: pip install 'fluvial[sbi]'") from error

from fluvial.codecs import Standardize, fit_codec_
from fluvial.flow import Flow
from fluvial.nn import ConditionScaling

Build = Callable[[int, int], Flow]


class FlowEstimator(ConditionalDensityEstimator):
    r"""A conditional bijection in the interface of sbi's density estimators; `estimator` makes it.

    ``net`` is the flow itself; without an embedding it stands alone after training: ``estimator.net.log_prob(theta, x)``.

    Args:
        flow: A conditional `Flow` whose log_prob is exact.
        condition_shape: Event shape of the condition as sbi gives it.
        embedding: From conditions (rows, \*condition_shape), standardised, to features (rows, k); default they are flattened.

    Raises:
        TypeError: If it is not a bijective `Flow`.
    """

    def __init__(self, flow: Flow, condition_shape: Sequence[int], *, embedding: nn.Module | None = None) -> None:
        if not isinstance(flow, Flow) or not flow.is_bijective:
            raise TypeError(
                "FlowEstimator: sbi minimises −log_prob, so the flow must be a Flow of bijections; train free-form flows by fluvial.fit(flow, (θ, x))"
            )
        super().__init__(net=flow, input_shape=torch.Size(flow.manifold.event_shape), condition_shape=torch.Size(condition_shape))
        self.embedding = embedding
        self.scaling = Standardize(tuple(condition_shape)) if embedding is not None else None

    @property
    def embedding_net(self) -> nn.Module | None:
        """The embedding of the condition, if there is one."""
        return self.embedding

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        r"""Log-densities of inputs ([samples,] batch, \*event) at conditions ([samples,] batch, \*condition), shape (samples, batch)."""
        self._check_input_shape(input)
        input = input.unsqueeze(0) if input.ndim == len(self.input_shape) + 1 else input
        return self.net.log_prob(input, self.features(condition))

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        r"""−log_prob of inputs (batch, \*event), shape (batch,)."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any) -> Tensor:
        r"""Draws of shape (\*sample_shape, batch, \*event)."""
        return self.net.sample(tuple(sample_shape), self.features(condition))

    def sample_and_log_prob(self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""Draws and their log-densities, in one pass."""
        return self.net.sample_and_log_prob(tuple(sample_shape), self.features(condition))

    def features(self, condition: Tensor) -> Tensor:
        r"""Conditions (\*batch, \*condition_shape) as the flow takes them, shape (\*batch, k)."""
        self._check_condition_shape(condition)
        batch = condition.shape[: condition.ndim - len(self.condition_shape)]
        rows = condition.reshape(-1, *self.condition_shape)
        rows = rows.flatten(1) if self.embedding is None or self.scaling is None else self.embedding(self.scaling.encode(rows))
        return rows.view(*batch, rows.shape[-1])


def estimator(
    build: Build | None = None, *, of: Literal["posterior", "likelihood"] = "posterior", embedding: nn.Module | None = None
) -> Callable[[Tensor, Tensor], FlowEstimator]:
    r"""What ``sbi.inference.NPE(density_estimator=…)`` and ``NLE(density_estimator=…)`` take: a function of a batch (θ, x) that builds the estimator.

    Standardisation of inputs and conditions is taken from the batch, which sbi chooses from its training rows.

    Args:
        build: ``build(features, context) -> Flow``; default `fluvial.flows.coupling`.
        of: "posterior" for densities of θ given x (NPE), "likelihood" for those of x given θ (NLE).
        embedding: Module from conditions (rows, \*shape) to features (rows, k), trained with the flow.

    Raises:
        ValueError: If ``of`` is something else; later, if the flow that is built does not fit the batch.

    Example:
        >>> make = estimator()
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 3)
        >>> make(theta, x).log_prob(theta, x).shape
        torch.Size([1, 50])
    """
    if of not in ("posterior", "likelihood"):
        raise ValueError(f"estimator: of must be 'posterior' (NPE) or 'likelihood' (NLE), got {of!r}")

    def density_estimator(batch_theta: Tensor, batch_x: Tensor) -> FlowEstimator:
        value, c = (batch_theta, batch_x) if of == "posterior" else (batch_x, batch_theta)
        if value.ndim != 2:
            raise ValueError(f"estimator: expected {'θ' if of == 'posterior' else 'x'} of shape (n, features), got {tuple(value.shape)}")
        with torch.no_grad():
            context = c[:1].numel() if embedding is None else embedding(c[:2]).shape[-1]
        flow = _default(value.shape[1], context) if build is None else build(value.shape[1], context)
        made = FlowEstimator(flow, c.shape[1:], embedding=embedding)
        if flow.manifold.event_shape != tuple(value.shape[1:]) or flow.condition not in (None, (context,)):
            raise ValueError(
                f"estimator: build({value.shape[1]}, {context}) gave a flow on {flow.manifold} with a condition of shape {flow.condition}; "
                f"expected samples of shape {tuple(value.shape[1:])} and a condition of shape {(context,)}"
            )
        with torch.no_grad():
            if made.scaling is not None:
                made.scaling.fit_(c)
            elif isinstance(flow.context, ConditionScaling):
                flow.context.fit_(c.flatten(1))
            given = made.features(c)
            fit_codec_(flow.codec, value, given if flow.context is None else flow.context(given))
        return made

    return density_estimator


def _default(features: int, context: int) -> Flow:
    from fluvial.flows.coupling import coupling

    return coupling(features, context)
