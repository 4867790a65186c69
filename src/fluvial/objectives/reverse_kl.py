"""Learning an energy from the flow's own samples."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fluvial.bases import TruncatedNormal, Uniform
from fluvial.codecs import Angles, Chain, Coupling, Cylinder, Inverse, Permutation
from fluvial.energies import Energy
from fluvial.energies.energy import energies_at
from fluvial.flow import Flow
from fluvial.objectives.energy_target import (
    Anneal,
    Source,
    attach,
    canonical_source,
    check_energy_argument,
    check_samples,
    check_target,
    exact_flow,
    figures_of,
    outside_penalty,
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

    which is exactly zero, row by row, where the flow is the target. What is left out has zero mean only where the support of p_θ does not depend
    on θ: latents in a box (`Uniform`, `TruncatedNormal`) need a codec that maps it onto itself, such as the splines of `flows.circular`, or
    ``path_gradient=False``; others are refused. The energy is differentiated in x only, its own parameters are not trained.

    The divergence is small also for a flow that misses modes. Give ``anneal`` to begin with a hot target in which they are joined, and look at
    ``coverage`` of `fluvial.metrics.importance`; `AlphaDivergence` with α ≥ 1 cannot overlook modes that its proposal reaches. Points of
    infinite energy are left out and counted under ``dropped``: a hard support belongs into the flow, as a codec that keeps it. The monitor is the
    loss of the flow restricted to where the energy is finite, plus −log(1 − dropped): the divergence itself would be infinite.

    Args:
        energy: The target, on the manifold of the flow.
        path_gradient: Whether to leave out the part of zero mean. It costs one more pass, and pays where the flow comes close to the target.
        anneal: (T₀, share): the temperature falls geometrically from T₀ to 1 over that share of the budget.
        condition: Where the conditions of a conditional flow come from, if not from data: a distribution, such as a base, or a list of rows.
        validation_samples: Draws for the figures on fixed noise.

    Raises:
        TypeError: If energy is not an `Energy`, or in training if the flow's density is not exact.
        ValueError: If a number is out of range, or in training if flow and energy live on different manifolds, the path gradient is biased, or the
            parameters of the base are out of reach of its samples, as those of `VonMisesFisherMixture`.

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
        found = exact_flow("ReverseKL", flow)
        check_samples("ReverseKL", found, "use AlphaDivergence or LogVariance, or a base of fixed parameters (learnable=False)")
        if self.path_gradient and _moves_support(found):
            raise ValueError(
                f"ReverseKL: the codec moves the bounds of {type(found.base).__name__}, and there the path gradient is biased; give "
                "path_gradient=False, or use a codec that keeps the box: couplings with boundary='interval' or 'circular' on the same bounds"
            )

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
            energy = energies_at(self.energy, point, rows.c) / T
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
        """The loss on fixed noise at T = 1, with what lies outside the support, as monitor; effective samples, log Z, and where log Z is known the
        divergence.
        """  # fmt: skip
        flow = exact_flow("ReverseKL", flow)
        found = figures_of(flow, self.energy, batch, self.condition, self.validation_samples, progress.source)
        return {"monitor": found.pop("free_energy") + outside_penalty(found["dropped"]), **found}

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """The flow's parameters; those of the energy stay as they are."""
        return [{"params": [p for p in flow.parameters() if p.requires_grad]}]


def _moves_support(flow: Flow) -> bool:
    """Whether the set where the density is positive may depend on the parameters.

    From the base's box towards the data: a coupling keeps it if its maps bend in the same interval or act on an unbounded coordinate; parts without
    parameters may change its shape, but trained ones after such a part may then move it.
    """
    base = flow.base
    if not isinstance(base, Uniform | TruncatedNormal):
        return False
    low, high = (torch.as_tensor(_ends(end, base.manifold.dim, infinite)) for end, infinite in ((base.low, -math.inf), (base.high, math.inf)))
    if not bool((torch.isfinite(low) | torch.isfinite(high)).any()):
        return False
    is_box = True
    for part in reversed(list(_single_parts(flow.codec))):
        inner = part.codec if isinstance(part, Inverse) else part
        if isinstance(inner, Permutation) and is_box:
            turn = part.decode
            low, high = turn(low.unsqueeze(0).to(inner.index.device))[0].cpu(), turn(high.unsqueeze(0).to(inner.index.device))[0].cpu()
        elif isinstance(inner, Angles | Cylinder):
            edges = [math.pi, 1.0] if isinstance(inner, Cylinder) else [math.pi] * len(low)
            if is_box and all(_same(-a, edge) and _same(b, edge) for a, b, edge in zip(low.tolist(), high.tolist(), edges)):
                # The whole sphere or torus, which nothing can move.
                return False
            is_box = False
        elif not any(p.requires_grad for p in part.parameters()):
            is_box = False
        elif not (is_box and isinstance(inner, Coupling) and _keeps_box(inner, low, high)):
            return True
    return False


def _keeps_box(coupling: Coupling, low: Tensor, high: Tensor) -> bool:
    maps = coupling.transformer
    for a, b in ((float(low[i]), float(high[i])) for i in coupling.active):
        unbounded = maps.boundary == "linear" and math.isinf(a) and math.isinf(b)
        if not unbounded and (maps.boundary == "linear" or not (_same(a, maps.low) and _same(b, maps.high))):
            return False
    return True


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)


def _single_parts(codec: nn.Module) -> Iterator[Any]:
    """The parts of chains within chains, from the data side."""
    if isinstance(codec, Chain):
        for part in codec.parts:
            yield from _single_parts(part)
    else:
        yield codec


def _ends(end: Any, n: int, infinite: float) -> list[float]:
    ends = list(end) if isinstance(end, tuple | list) else [end] * n
    return [infinite if number is None else float(number) for number in ends]
