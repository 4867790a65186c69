"""Learning an energy from the flow's own samples."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fluvial.energies import Energy
from fluvial.objectives.energy_target import (
    Anneal,
    Source,
    attach,
    canonical_source,
    check_energy_argument,
    check_target,
    exact_flow,
    figures_of,
    rows_of,
    temperature,
)
from fluvial.objectives.objective import Batch, Objective, Progress

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset


class ReverseKL(Objective):
    r"""The reverse Kullback–Leibler divergence to the density of an energy, up to its log Z. It needs no data.

    .. math:: L = E_{x \sim p_\theta}\bigl[\log p_\theta(x|c) + E(x, c)/T\bigr] = \mathrm{KL}(p_\theta \,\|\, p) - \log Z

    With x = g_θ(z) the gradient has two parts, along the path of x and through log p_θ at fixed x. The second is zero in expectation and is left
    out by the path gradient

    .. math:: \nabla_\theta L = E_z\Bigl[\bigl(\nabla_x \log p_\theta(x) + \nabla_x E(x)/T\bigr)^\top
              \frac{\partial g_\theta(z)}{\partial\theta}\Bigr],

    which is exactly zero, row by row, where the flow is the target. The energy is differentiated in x only, its own parameters are not trained.

    The divergence is small also for a flow that misses modes. Give ``anneal`` to begin with a hot target in which they are joined, and look at
    ``coverage`` of `fluvial.metrics.importance`; `AlphaDivergence` with α ≥ 1 cannot overlook modes that its proposal reaches. Points of
    infinite energy are left out and counted under ``dropped``: a hard support belongs into the flow, as a codec that keeps it.

    Args:
        energy: The target, on the manifold of the flow.
        path_gradient: Whether to leave out the part of zero mean. It costs one more pass, and pays where the flow comes close to the target.
        anneal: (T₀, share): the temperature falls geometrically from T₀ to 1 over that share of the budget.
        condition: Where the conditions of a conditional flow come from, if not from data: a distribution, such as a base, or a list of rows.
        validation_samples: Draws for the figures on fixed noise.

    Raises:
        TypeError: If energy is not an `Energy`, or in training if the flow's density is not exact.
        ValueError: If a number is out of range, or in training if flow and energy live on different manifolds.

    References:
        Roeder, Wu, Duvenaud (2017), Sticking the landing, arXiv:1703.09194; Vaitl, Nicoli, Nakajima, Kessel (2022), arXiv:2207.08219.

    Example:
        >>> from fluvial.energies import GaussianMixture
        >>> ReverseKL(GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], scales=0.5), anneal=(10.0, 0.3)).anneal
        (10.0, 0.3)
    """

    def __init__(
        self,
        energy: Energy,
        *,
        path_gradient: bool = True,
        anneal: Anneal = None,
        condition: Source = None,
        validation_samples: int = 4096,
    ) -> None:
        super().__init__()
        check_energy_argument("ReverseKL", energy, anneal, validation_samples)
        self.energy = energy
        self.path_gradient = path_gradient
        self.anneal = None if anneal is None else tuple(anneal)
        self.condition = canonical_source(condition)
        self.validation_samples = validation_samples

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Refuse flows that this energy cannot train."""
        check_target("ReverseKL", flow, self.energy, self.condition, dataset)

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss on as many draws as the batch has rows, the share of draws that were left out, and the temperature."""
        flow = exact_flow("ReverseKL", flow)
        T = temperature(self.anneal, progress.fraction)
        rows = rows_of(flow, batch, self.condition, 1, progress.source)
        if self.path_gradient:
            x, log_q = flow.sample(rows.n, rows.c, generator=progress.source), None
        else:
            x, log_q = flow.sample_and_log_prob(rows.n, rows.c, generator=progress.source)
        point = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self.energy(point, rows.c) / T
            if not energy.requires_grad:
                raise ValueError(
                    "ReverseKL: the energy has no gradient in x; write it in differentiable torch functions, or use AlphaDivergence or LogVariance, "
                    "which need only its values"
                )
            value = energy if log_q is not None else energy + flow.log_prob(point, rows.c)
            slope = torch.autograd.grad(value.sum(), point)[0]
        value, slope = value.detach(), slope.detach()
        kept = torch.isfinite(value) & torch.isfinite(slope).flatten(value.ndim).all(-1)
        slope = torch.where(kept.view(*kept.shape, *(1,) * (slope.ndim - kept.ndim)), slope, 0.0)
        loss = attach(torch.where(kept, value, 0.0), x, slope)
        if log_q is not None:
            loss = loss + torch.where(kept, log_q, 0.0)
        if rows.weight is not None:
            loss = loss * rows.weight
        dropped = 1 - kept.to(loss.dtype).mean()
        # 0/0 where nothing is left, which training counts as a step that was not finite.
        return {"loss": loss.sum() / kept.sum(), "dropped": dropped, "temperature": loss.new_tensor(T)}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss on fixed noise at T = 1 as monitor, share of effective samples, log Z, and the divergence itself where log Z is known."""
        flow = exact_flow("ReverseKL", flow)
        found = figures_of(flow, self.energy, batch, self.condition, self.validation_samples, progress.source)
        return {"monitor": found.pop("free_energy"), **found}

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """The flow's parameters; those of the energy stay as they are."""
        return [{"params": [p for p in flow.parameters() if p.requires_grad]}]
