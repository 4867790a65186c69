"""Several flows as one density."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, ConditionShape, batch_shape, draw_shape, expand_flat, transform
from fluvial.distribution import FlowDistribution
from fluvial.flow import At, Flow, Volume
from fluvial.manifolds import Manifold


class Ensemble(nn.Module):
    r"""The mixture of K flows with equal weights; how far they differ says where their density is not to be trusted.

    .. math:: p(x|c) = \frac1K \sum_{k=1}^K p_k(x|c)

    `fluvial.fit(ensemble, data)` trains every member by its own natural objective, each as a parameter group of its own. Members differ by
    the weights they start from; with ``EachMember(bootstrap=True)`` also by the data they see. For members that are independent in
    everything, order of rows included, train them one by one: ``for k, flow in enumerate(ensemble.flows): fit(flow, data, seed=k)``.

    Args:
        flows: At least one flow, all on the same manifold, of the same latent dimension and with the same condition.

    Attributes:
        manifold: Where the data live.
        condition: Declared event shape of the condition, or None.
        dim: Intrinsic dimension of the members' latents.
        spec: What `fluvial.fit` knows about the data, saved with the ensemble.

    Raises:
        TypeError: If a member is not a `Flow`.
        ValueError: If there is none, or they do not agree.

    References:
        Lakshminarayanan et al. (2017), Simple and scalable predictive uncertainty estimation using deep ensembles, arXiv:1612.01474.

    Example:
        >>> import fluvial as fl
        >>> ensemble = Ensemble([fl.flows.free_form(2, width=16) for _ in range(3)])
        >>> x = ensemble.sample(5)
        >>> x.shape, ensemble.log_prob(x).shape, ensemble.members(x).shape, ensemble.spread(x).shape
        (torch.Size([5, 2]), torch.Size([5]), torch.Size([3, 5]), torch.Size([5]))
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__()
        if len(flows) == 0:
            raise ValueError("Ensemble: expected at least one flow, got none")
        for k, flow in enumerate(flows):
            if not isinstance(flow, Flow):
                raise TypeError(f"Ensemble: member {k} must be a Flow, got {type(flow).__name__}")
            if flow.manifold != flows[0].manifold:
                raise ValueError(f"Ensemble: member {k} lives on {flow.manifold}, member 0 on {flows[0].manifold}; build all on one manifold")
            if flow.dim != flows[0].dim:
                raise ValueError(
                    f"Ensemble: member {k} has a latent of dimension {flow.dim}, member 0 one of {flows[0].dim}; such densities do not add"
                )
            if flow.condition != flows[0].condition:
                raise ValueError(f"Ensemble: member {k} takes a condition of shape {flow.condition}, member 0 one of {flows[0].condition}")
            if any(flow is other for other in flows[:k]):
                raise ValueError(f"Ensemble: member {k} is in the list twice; build one flow for each member")
        self.flows = nn.ModuleList(flows)
        self.manifold: Manifold = flows[0].manifold
        self.condition: ConditionShape = flows[0].condition
        self.dim = flows[0].dim
        self.spec: Any = None

    @property
    def is_bijective(self) -> bool:
        """Whether every member's density is exact."""
        return all(flow.is_bijective for flow in self.flows)

    @property
    def is_bottleneck(self) -> bool:
        """Whether the latents have fewer dimensions than the data."""
        return self.dim < self.manifold.dim

    def log_prob(self, x: Tensor, c: Condition = None, *, volume: Volume = "decoder", at: At = "reconstruction") -> Tensor:
        r"""Log-density of the mixture: log of the mean of the members' densities.

        Args:
            x: Points, shape (\*batch, \*event).
            c: Condition, whose batch broadcasts against that of x.
            volume: As in `Flow.log_prob`.
            at: As in `Flow.log_prob`.

        Returns:
            Shape (\*batch,).
        """
        return _log_mean_exp(self.members(x, c, volume=volume, at=at))

    def members(self, x: Tensor, c: Condition = None, *, volume: Volume = "decoder", at: At = "reconstruction") -> Tensor:
        r"""Log-density of every member, shape (K, \*batch)."""
        return torch.stack([flow.log_prob(x, c, volume=volume, at=at) for flow in self.flows])

    def spread(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""Standard deviation of the members' log-densities, in nats: how uncertain log p(x|c) is, shape (\*batch,).

        0 where no member has any density, inf where only some have.
        """
        log_p = self.members(x, c)
        if len(log_p) == 1:
            return torch.zeros_like(log_p[0])
        nowhere = log_p == -torch.inf
        spread = torch.where(nowhere, 0.0, log_p).std(0)
        return torch.where(nowhere.all(0), 0.0, torch.where(nowhere.any(0), torch.inf, spread))

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Independent draws, each from a member chosen at random.

        Args:
            n: How many per condition, an int or a shape; ``()`` draws one.
            c: Condition.
            generator: Source of randomness, on the flows' device.

        Returns:
            Shape (\*n, \*batch(c), \*event).
        """
        shape, c = self._expand(n, c)
        pieces, order = [], []
        for flow, rows in zip(self.flows, self._choose(shape, generator)):
            pieces.append(flow.sample(*_some(c, rows), generator=generator))
            order.append(rows)
        return _in_order(pieces, order).view(*shape, *self.manifold.event_shape)

    def sample_and_log_prob(
        self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws and their log-density under the mixture, the share of the member that drew them from its own latent.

        Returns:
            Samples of shape (\*n, \*batch(c), \*event) and log-densities of shape (\*n, \*batch(c)).
        """
        shape, c = self._expand(n, c)
        chosen = self._choose(shape, generator)
        own = [flow.sample_and_log_prob(*_some(c, rows), generator=generator) for flow, rows in zip(self.flows, chosen)]
        x = _in_order([drawn for drawn, _ in own], chosen)
        table = []
        for k, flow in enumerate(self.flows):
            others = torch.cat([rows for j, rows in enumerate(chosen) if j != k] or [chosen[k][:0]])
            log_p = flow.log_prob(x[others], transform(c, lambda leaf: leaf[others]))  # noqa: B023
            table.append(_in_order([own[k][1], log_p], [chosen[k], others]))
        return x.view(*shape, *self.manifold.event_shape), _log_mean_exp(torch.stack(table)).view(shape)

    def distribution(self, c: Condition = None) -> FlowDistribution:
        """The ensemble at a fixed condition as a `torch.distributions.Distribution`, whose samples carry no gradient."""
        return FlowDistribution(self, c)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x, c)

    def _expand(self, n: int | tuple[int, ...], c: Condition) -> tuple[tuple[int, ...], Condition]:
        """The full sample shape (*n, *batch(c)) and one row of conditions for each sample."""
        if c is None and self.condition is not None:
            raise ValueError(f"Ensemble: its flows are conditional; give c of event shape {self.condition}")
        shape = (*draw_shape(n), *(batch_shape(c, self.condition) if c is not None else ()))
        return shape, expand_flat(c, shape, self.condition)

    def _choose(self, shape: tuple[int, ...], generator: torch.Generator | None) -> list[Tensor]:
        """For every member the rows that it is to draw: independent choices, so that samples are exchangeable."""
        total, k = math.prod(shape), len(self.flows)
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        chosen = torch.randint(k, (total,), generator=generator, device=device)
        counts = torch.bincount(chosen, minlength=k).tolist()
        return list(torch.argsort(chosen, stable=True).split(counts))


def _some(c: Condition, rows: Tensor) -> tuple[Any, Condition]:
    """The arguments (n, c) of sample that draw one sample for each of some rows."""
    return (len(rows), None) if c is None else ((), transform(c, lambda leaf: leaf[rows]))


def _in_order(pieces: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Pieces that belong to given rows, as one tensor in the order of the rows."""
    return torch.cat(pieces)[torch.argsort(torch.cat(rows))]


def _log_mean_exp(log_p: Tensor) -> Tensor:
    """Log of the mean of exp over the first axis; −inf, with gradient 0, where all are −inf."""
    nowhere = (log_p == -torch.inf).all(0)
    # logsumexp of nothing but −inf has a gradient of NaN.
    mean = torch.logsumexp(torch.where(nowhere, 0.0, log_p), 0) - math.log(len(log_p))
    return torch.where(nowhere, -torch.inf, mean)
