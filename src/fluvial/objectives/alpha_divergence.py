"""Learning an energy by importance weights."""

import math

import torch
from torch import Tensor, nn

from fluvial.energies import Energy
from fluvial.objectives.energy_target import (
    Anneal,
    Source,
    exact_flow,
    figures_of,
    group_mean,
    rows_of,
    temperature,
    validation_rows,
)
from fluvial.objectives.objective import Batch, Progress
from fluvial.objectives.proposals import Compared, Weighing, compare


class AlphaDivergence(Weighing):
    r"""The Rényi divergence of order α from the density p of an energy to the flow q, by self-normalised importance weights. It needs no data.

    .. math:: L = \frac{1}{\alpha(\alpha - 1)} \log \int p^\alpha q^{1 - \alpha}\, dx

    (its logarithm makes it insensitive to Z; to first order it is the α-divergence). α = 1 is the forward divergence KL(p‖q), α = 2 the logarithm of
    the variance of the importance weights, −½ log of the effective sample size; α → 0 is the reverse divergence, for which there is `ReverseKL`.
    For points x_i ~ s the gradient is estimated as

    .. math:: \nabla_\theta L \approx -\frac1\alpha \sum_i (\omega_i - \rho_i)\, \nabla_\theta \log q_\theta(x_i), \qquad
              \omega_i \propto \frac{p(x_i)^\alpha q(x_i)^{1-\alpha}}{s(x_i)}, \quad \rho_i \propto \frac{q(x_i)}{s(x_i)},

    both normalised to sum 1, and x, ω, ρ held fixed. The ρ are a control variate of zero mean: with them the gradient is exactly zero where q = p.
    Only values of the energy are needed, no gradients.

    Points come from the flow itself, s = q, which finds no mode where the flow has no points. With a ``proposal`` r, s = (1 − δ) q + δ r: what r
    reaches is not overlooked, and the weights stay bounded there. ``anneal`` begins with a hot target instead, in many dimensions the better way.
    Points of infinite energy have weight 0, in the loss and in the monitor, which is what they count for in these divergences.

    Args:
        energy: The target, on the manifold of the flow.
        alpha: α > 0.
        proposal: A wide distribution r that does not depend on the condition: a base or a flow.
        share: δ, part of the points from the proposal.
        anneal: (T₀, share): the temperature falls geometrically from T₀ to 1 over that share of the budget.
        condition: Where the conditions of a conditional flow come from, if not from data: a distribution, such as a base, or a list of rows.
        per_condition: Points drawn for each condition, among which weights are normalised.
        validation_samples: Draws for the figures on fixed noise.

    Raises:
        TypeError: If energy is not an `Energy`, or in training if the flow's density is not exact.
        ValueError: If a number is out of range, or in training if flow, energy and proposal live on different manifolds.

    References:
        Müller et al. (2019), Neural importance sampling, arXiv:1808.03856; Midgley et al. (2023), Flow annealed importance sampling bootstrap,
        arXiv:2208.01893, for α = 2; Li, Turner (2016), Rényi divergence variational inference, arXiv:1602.02311.

    Example:
        >>> from fluvial.bases import StudentT
        >>> from fluvial.energies import DoubleWell
        >>> AlphaDivergence(DoubleWell(), alpha=1.0, proposal=StudentT(2, df=2.0)).share
        0.25
    """

    def __init__(
        self,
        energy: Energy,
        alpha: float = 2.0,
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
        if not 0 < alpha < math.inf:
            raise ValueError(f"AlphaDivergence: alpha must be positive, got {alpha}; its limit at 0 is the reverse divergence, ReverseKL(energy)")
        self.alpha = alpha

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The estimated divergence with the gradient above, the effective share of the weights ω, and the temperature."""
        flow = exact_flow("AlphaDivergence", flow)
        T = temperature(self.anneal, progress.fraction)
        rows = rows_of(flow, batch, self.condition, self.per_condition, progress.source)
        found = compare(flow, self.energy, rows, self.proposal, self.share, T, progress.source)
        log_q = found.log_q.detach()
        omega = torch.softmax(_tilted(self.alpha, found.energy, log_q, found.log_s), 0)
        rho = torch.softmax(_usable(log_q - found.log_s), 0)
        surrogate = -((omega - rho) * torch.where(torch.isfinite(found.log_q), found.log_q, 0.0)).sum(0) / self.alpha
        loss = group_mean(surrogate - surrogate.detach() + _divergence(self.alpha, found), rows.weight)
        effective = (1 / omega.square().sum(0)).mean() / rows.n
        return {"loss": loss, "effective": effective, "temperature": effective.new_tensor(T)}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The divergence on fixed noise at T = 1 as monitor, share of effective samples, log Z, and the reverse divergence where log Z is known."""
        flow = exact_flow("AlphaDivergence", flow)
        rows = validation_rows(flow, batch, self.condition, self.validation_samples, progress.source)
        found = compare(flow, self.energy, rows, self.proposal, self.share, 1.0, progress.source)
        figures = figures_of(flow, self.energy, batch, self.condition, self.validation_samples, progress.source)
        return {"monitor": _divergence(self.alpha, found).mean(), **figures}


def _usable(log_w: Tensor) -> Tensor:
    """Log-weights in which what is not a weight counts for nothing."""
    return torch.where(torch.isnan(log_w) | (log_w == math.inf), -math.inf, log_w)


def _tilted(alpha: float, energy: Tensor, log_q: Tensor, log_s: Tensor) -> Tensor:
    """Log of p^α q^{1−α} / s up to a constant."""
    return _usable(-alpha * energy + (1 - alpha) * log_q - log_s)


def _divergence(alpha: float, found: Compared) -> Tensor:
    """The estimate of the divergence, shape () or (groups,), without a graph."""
    log_q, count = found.log_q.detach(), math.log(len(found.energy))
    log_p = _usable(-found.energy - found.log_s)
    log_z = log_p.logsumexp(0) - count
    if alpha == 1:
        weight = torch.softmax(log_p, 0)
        return torch.where(weight > 0, weight * (-found.energy - log_q), 0.0).sum(0) - log_z
    moment = _tilted(alpha, found.energy, log_q, found.log_s).logsumexp(0) - count
    return (moment - alpha * log_z) / (alpha * (alpha - 1))
