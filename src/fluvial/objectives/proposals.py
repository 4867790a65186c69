"""Where the points come from at which flow and energy are compared."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fluvial.energies import Energy
from fluvial.energies.energy import energies_at
from fluvial.flow import Flow
from fluvial.objectives.energy_target import Rows


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
