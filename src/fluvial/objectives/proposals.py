"""Where the points come from at which flow and energy are compared."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.energies import Energy
from fluvial.energies.energy import energies_at
from fluvial.flow import Flow
from fluvial.objectives.energy_target import Anneal, Rows, Source, canonical_source, check_energy_argument, check_target
from fluvial.objectives.objective import Objective

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset


class Compared(NamedTuple):
    r"""Energies and densities of points that are held fixed.

    Attributes:
        energy: E(x, c)/T, detached, shape (n,) or (n, groups).
        log_q: Log-density of the flow at x, with its graph, same shape.
        log_s: Log-density that x was drawn from, detached, same shape.
    """

    energy: Tensor
    log_q: Tensor
    log_s: Tensor


def check_proposal(name: str, proposal: nn.Module | None, share: float) -> None:
    """Refuse what is no distribution or no share.

    Raises:
        TypeError: If the proposal has no ``sample`` and ``log_prob``.
        ValueError: If the share is not strictly between 0 and 1.
    """
    if proposal is not None and not all(hasattr(proposal, name) for name in ("sample", "log_prob", "manifold")):
        raise TypeError(f"{name}: proposal must be a base or a flow, with sample and log_prob, got {type(proposal).__name__}")
    if not 0 < share < 1:
        raise ValueError(f"{name}: share of the points from the proposal must be between 0 and 1, got {share}")


def compare(
    flow: Flow, energy: Energy, rows: Rows, proposal: nn.Module | None, share: float, T: float, generator: torch.Generator | None
) -> Compared:
    r"""Draw from the mixture s = (1 − δ) p_θ + δ r of the flow and a fixed proposal, δ the share, each with its part of the points."""
    wide = 0 if proposal is None else min(rows.n - 1, max(1, round(share * rows.n)))
    with torch.no_grad():
        x = flow.sample(rows.n - wide, rows.c, generator=generator)
        if proposal is not None:
            groups = x.shape[1 : x.ndim - len(flow.manifold.event_shape)]
            x = torch.cat([x, proposal.sample((wide, *groups), generator=generator).to(x)])
        value = energies_at(energy, x, rows.c) / T
    log_q = flow.log_prob(x, rows.c)
    log_s = log_q.detach()
    if proposal is not None:
        part = x.new_tensor(wide / rows.n)
        with torch.no_grad():
            log_s = torch.logaddexp(torch.log1p(-part) + log_s, part.log() + proposal.log_prob(x))
    return Compared(value, log_q, log_s)


class Weighing(Objective):
    """An objective that compares the energy with the density of the flow at points drawn for each condition, and holds the points fixed.

    Args:
        energy: The target.
        proposal: A distribution from which a part of the points is drawn, or None.
        share: That part.
        anneal: (T₀, share of the budget): the temperature falls from T₀ to 1.
        condition: Where conditions come from, if not from data.
        per_condition: Points for each condition, at least 2.
        validation_samples: Draws for the figures on fixed noise.
    """

    def __init__(
        self,
        energy: Energy,
        *,
        proposal: nn.Module | None,
        share: float,
        anneal: Anneal,
        condition: Source,
        per_condition: int,
        validation_samples: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_energy_argument(name, energy, anneal, validation_samples)
        check_proposal(name, proposal, share)
        if per_condition < 2:
            raise ValueError(f"{name}: at least 2 points per condition are compared with each other, got per_condition={per_condition}")
        self.energy = energy
        self.proposal = proposal
        self.share = share
        self.anneal = None if anneal is None else tuple(anneal)
        self.condition = canonical_source(condition)
        self.per_condition = per_condition
        self.validation_samples = validation_samples

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Refuse flows that this energy cannot train."""
        check_target(type(self).__name__, flow, self.energy, self.condition, dataset, self.proposal)

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """The flow's parameters; those of energy and proposal stay as they are."""
        return [{"params": [p for p in flow.parameters() if p.requires_grad]}]
