"""Learning an energy by the variance of the log-weights."""

import torch
from torch import Tensor, nn

from fluvial.energies import Energy
from fluvial.objectives.energy_target import (
    Anneal,
    Source,
    exact_flow,
    figures_of,
    outside_penalty,
    rows_of,
    temperature,
    validation_rows,
)
from fluvial.objectives.objective import Batch, Progress
from fluvial.objectives.proposals import Weighing, compare


class LogVariance(Weighing):
    r"""Half the variance of log p_θ + E over points that are held fixed. It needs no data and no gradient of the energy.

    .. math:: L = \tfrac12 \operatorname{Var}_{x \sim s}\bigl[\log p_\theta(x|c) + E(x, c)/T\bigr]

    It is zero if and only if the flow is the target wherever s has points, whatever log Z is. On the flow's own points, s = p_θ held fixed, its
    gradient is that of the reverse divergence in expectation, and exactly zero where the flow is the target; with a ``proposal`` r, s is the
    mixture (1 − δ) p_θ + δ r, and modes that r reaches are not overlooked. Points where one of the two is not finite are left out and counted under
    ``dropped``; the monitor counts −log(1 − dropped) for the flow's own draws, so that a flow mostly outside the support does not look good.

    Args:
        energy: The target, on the manifold of the flow.
        proposal: A wide distribution r that does not depend on the condition: a base or a flow.
        share: δ, part of the points from the proposal.
        anneal: (T₀, share): the temperature falls geometrically from T₀ to 1 over that share of the budget.
        condition: Where the conditions of a conditional flow come from, if not from data: a distribution, such as a base, or a list of rows.
        per_condition: Points drawn for each condition, among which the variance is taken.
        validation_samples: Draws for the figures on fixed noise.

    Raises:
        TypeError: If energy is not an `Energy`, or in training if the flow's density is not exact.
        ValueError: If a number is out of range, or in training if flow, energy and proposal live on different manifolds.

    References:
        Richter, Boustati, Nüsken, Ruiz, Akyildiz (2020), VarGrad, arXiv:2010.10436.

    Example:
        >>> from fluvial.energies import MultiWell
        >>> LogVariance(MultiWell(2), anneal=(5.0, 0.5)).anneal
        (5.0, 0.5)
    """

    def __init__(
        self,
        energy: Energy,
        *,
        proposal: nn.Module | None = None,
        share: float = 0.25,
        anneal: Anneal = None,
        condition: Source = None,
        per_condition: int = 64,
        validation_samples: int = 4096,
    ) -> None:
        super().__init__(
            energy,
            proposal=proposal,
            share=share,
            anneal=anneal,
            condition=condition,
            per_condition=per_condition,
            validation_samples=validation_samples,
        )

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss, the share of points that were left out, and the temperature."""
        flow = exact_flow("LogVariance", flow)
        T = temperature(self.anneal, progress.fraction)
        rows = rows_of(flow, batch, self.condition, self.per_condition, progress.source)
        found = compare(flow, self.energy, rows, self.proposal, self.share, T, progress.source)
        difference = found.energy + found.log_q
        each = _half_variance(difference)
        # Conditions of which fewer than two points are left say nothing; 0/0 where that is so for all, a step that training leaves out.
        told = ~torch.isnan(each.detach())
        loss = torch.where(told, each if rows.weight is None else rows.weight * each, 0.0).sum() / told.sum()
        dropped = 1 - torch.isfinite(difference.detach()).to(loss.dtype).mean()
        return {"loss": loss, "dropped": dropped, "temperature": dropped.new_tensor(T)}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss on fixed noise at T = 1, with what lies outside the support, as monitor; effective samples, log Z, and the reverse divergence."""
        flow = exact_flow("LogVariance", flow)
        rows = validation_rows(flow, batch, self.condition, self.validation_samples, progress.source)
        found = compare(flow, self.energy, rows, self.proposal, self.share, 1.0, progress.source)
        figures = figures_of(flow, self.energy, batch, self.condition, self.validation_samples, progress.source)
        return {"monitor": _half_variance(found.energy + found.log_q).mean() + outside_penalty(figures["dropped"]), **figures}


def _half_variance(values: Tensor) -> Tensor:
    """Half the unbiased variance over the first axis of the entries that are finite; NaN where there are fewer than two."""
    kept = torch.isfinite(values)
    few = kept.sum(0) < 2
    count = kept.sum(0).clamp_min(2)
    finite = torch.where(kept, values, 0.0)
    deviation = torch.where(kept, finite - finite.sum(0) / count, 0.0)
    return torch.where(few, torch.nan, 0.5 * deviation.square().sum(0) / (count - 1))
