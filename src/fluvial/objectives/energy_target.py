"""What objectives share that learn from an energy rather than from data."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, batch_shape, transform
from fluvial.energies import Energy, HasLogZ
from fluvial.energies.energy import energies_at
from fluvial.ensemble import Ensemble
from fluvial.flow import Flow
from fluvial.metrics.likelihood import evaluating, float_of
from fluvial.objectives.objective import Batch

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset

Source = nn.Module | Sequence[Sequence[float]] | None
Anneal = tuple[float, float] | None
VALIDATED_CONDITIONS = 8
TRIED = 256


class Rows(NamedTuple):
    r"""How many points to draw, and under which conditions.

    Attributes:
        n: Points for each condition, or in all where there are none.
        c: Conditions, leaves of shape (groups, \*condition event), or None.
        weight: Weight of every group, shape (groups,), or None.
    """

    n: int
    c: Condition
    weight: Tensor | None


def exact_flow(name: str, flow: nn.Module) -> Flow:
    """The flow, if its density is exact.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(flow, Ensemble):
        raise TypeError(f"{name}: expected a Flow, got an Ensemble; train its members each by its own, as EachMember([{name}(…), {name}(…)])")
    if not isinstance(flow, Flow):
        raise TypeError(f"{name}: expected a Flow, got {type(flow).__name__}")
    if not flow.is_bijective:
        raise TypeError(
            f"{name}: this flow is free-form, and an energy would train its decoder alone; build an exact one, as flows.coupling(features), or draw "
            "samples of the energy and train on them with FreeFormLikelihood"
        )
    return flow


def check_target(name: str, flow: nn.Module, energy: Energy, condition: Source, dataset: "Dataset | None", proposal: nn.Module | None = None) -> None:
    """Refuse a flow and an energy that do not go together.

    Raises:
        TypeError: If the density of the flow or of the proposal is not exact.
        ValueError: If they live on different manifolds, only the energy takes a condition, it is not known under which conditions to draw, or the
            energy is finite nowhere.
    """
    found = exact_flow(name, flow)
    if energy.manifold != found.manifold:
        raise ValueError(f"{name}: the energy lives on {energy.manifold}, the flow on {found.manifold}; build the flow for the energy's manifold")
    if energy.condition is not None and found.condition is None:
        raise ValueError(
            f"{name}: the energy takes a condition of shape {energy.condition}, the flow none, so that it would learn an average over conditions; "
            "build it with context=…, or as Flow(…, condition=…)"
        )
    if proposal is not None:
        _check_proposed(name, proposal, found)
    conditional = found.condition is not None or energy.condition is not None
    if conditional and condition is None and (dataset is None or dataset.c is None):
        declared = found.condition if found.condition is not None else energy.condition
        raise ValueError(
            f"{name}: flow or energy take a condition of shape {declared}; say which with condition=…, a list of conditions or a distribution to "
            "draw them from, or give data with conditions"
        )
    _check_finite(name, found, energy, condition, dataset, proposal)


def _check_proposed(name: str, proposal: nn.Module, flow: Flow) -> None:
    """Refuse a proposal that cannot be compared with the flow."""
    if proposal.manifold != flow.manifold:
        raise ValueError(f"{name}: the proposal lives on {proposal.manifold}, the flow on {flow.manifold}")
    if not getattr(proposal, "is_bijective", True):
        raise TypeError(f"{name}: the proposal is a free-form flow, and its density must be exact; give a base, or a flow such as flows.coupling")
    declared = getattr(proposal, "condition", None)
    if declared is not None:
        raise ValueError(f"{name}: the proposal takes a condition of shape {declared}, and must not depend on any; give a base or unconditional flow")


def _check_finite(name: str, flow: Flow, energy: Energy, condition: Source, dataset: "Dataset | None", proposal: nn.Module | None) -> None:
    """Refuse an energy without a finite value at a few draws of flow and proposal: there is nothing to learn from."""
    like = float_of(flow)
    source = torch.Generator(like.device).manual_seed(0)
    with evaluating(flow), evaluating(energy):
        c = draw_conditions(condition, TRIED, like, source)
        if c is None and dataset is not None:
            c = transform(dataset.c, lambda leaf: leaf[:TRIED].to(like) if leaf.is_floating_point() else leaf[:TRIED])
        x = flow.sample(TRIED if c is None else (), c, generator=source)
        finite = bool(torch.isfinite(energies_at(energy, x, c)).any())
        if not finite and proposal is not None:
            batch = x.shape[: x.ndim - len(flow.manifold.event_shape)]
            finite = bool(torch.isfinite(energies_at(energy, proposal.sample(tuple(batch), generator=source).to(x), c)).any())
    if not finite:
        drawn = "the flow" if proposal is None else "flow and proposal"
        raise ValueError(
            f"{name}: the energy is not finite at any of {TRIED} draws of {drawn}, so there is nothing to learn from; check its units and its "
            "support, and keep the flow inside by its base or its bounds"
        )


def check_samples(name: str, flow: Flow, mend: str) -> None:
    """Refuse a flow whose base has parameters that its samples do not follow: learning through samples would leave them as they are.

    Raises:
        ValueError: If it is one.
    """
    trained = any(p.requires_grad for p in flow.base.parameters())
    if trained and getattr(flow.base, "has_rsample", False) is not True:
        raise ValueError(f"{name}: samples of {type(flow.base).__name__} carry no gradient to its parameters, which would stay untrained; {mend}")


def check_energy_argument(name: str, energy: Any, anneal: Anneal, validation_samples: int) -> None:
    """Refuse at construction what is no energy, no schedule, or no number of samples.

    Raises:
        TypeError: If energy is not an `Energy`.
        ValueError: If the others are out of range.
    """
    if not isinstance(energy, Energy):
        mend = "wrap a function as energies.FunctionEnergy(function, n)"
        raise TypeError(f"{name}: energy must be a fluvial Energy, got {type(energy).__name__}; {mend}")
    if anneal is not None and not _is_schedule(anneal):
        raise ValueError(f"{name}: anneal must be (temperature at the start > 0, share of the budget 0 … 1), got {anneal}")
    if validation_samples < 2:
        raise ValueError(f"{name}: validation_samples must be at least 2, got {validation_samples}")


def _is_schedule(anneal: Any) -> bool:
    if not isinstance(anneal, Sequence) or len(anneal) != 2 or not all(isinstance(number, int | float) for number in anneal):
        return False
    return 0 < anneal[0] < math.inf and 0 < anneal[1] <= 1


def canonical_source(condition: Any) -> Any:
    """A source of conditions as it is kept: a module, or rows as nested tuples.

    Raises:
        ValueError: If it is neither, or a number is not finite.
    """
    if condition is None or isinstance(condition, nn.Module):
        return condition
    rows = condition.tolist() if hasattr(condition, "tolist") else condition
    if not isinstance(rows, Sequence) or len(rows) == 0 or not all(isinstance(row, Sequence) and len(row) == len(rows[0]) for row in rows):
        raise ValueError("condition: expected a distribution, or rows of shape (conditions, numbers of each), such as [[0.5], [1.0]]")
    for k, row in enumerate(rows):
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in row):
            raise ValueError(f"condition: expected finite numbers, got {list(row)} in row {k}")
    return tuple(tuple(float(number) for number in row) for row in rows)


def temperature(anneal: Anneal, fraction: float) -> float:
    """T of the annealed target: from the start it falls geometrically to 1, and stays there."""
    if anneal is None or fraction >= anneal[1]:
        return 1.0
    return anneal[0] ** (1 - fraction / anneal[1])


def rows_of(flow: Flow, batch: Batch, condition: Source, each: int, generator: torch.Generator | None) -> Rows:
    """As many points as the batch has rows, `each` under one condition; conditions come from the source, else from the batch."""
    total = len(batch.x)
    groups = max(1, total // each)
    c = draw_conditions(condition, groups, float_of(flow), generator)
    if c is not None:
        return Rows(max(1, total // groups), c, None)
    if batch.c is None:
        return Rows(total, None, None)
    weight = None if batch.weight is None else batch.weight[:groups]
    return Rows(max(1, total // groups), transform(batch.c, lambda leaf: leaf[:groups]), weight)


def draw_conditions(condition: Source, n: int, like: Tensor, generator: torch.Generator | None = None) -> Condition:
    """N conditions from a distribution or a list of rows; None without a source."""
    if condition is None:
        return None
    if isinstance(condition, nn.Module):
        with torch.no_grad():
            return transform(condition.sample(n, generator=generator), lambda leaf: leaf.to(like))
    rows = torch.as_tensor(condition, dtype=like.dtype, device=like.device)
    return rows[torch.randint(len(rows), (n,), generator=generator, device=like.device)]


def log_weights(flow: Flow, energy: Energy, rows: Rows, generator: torch.Generator | None) -> Tensor:
    """−E − log p_θ of the flow's own draws, shape (n,) or (n, groups)."""
    x, log_q = flow.sample_and_log_prob(rows.n, rows.c, generator=generator)
    return -energies_at(energy, x, rows.c) - log_q


def figures_of(flow: Flow, energy: Energy, batch: Batch, condition: Source, samples: int, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Free energy, share of effective samples and log Z of the flow's draws, each a mean over a few conditions where there are some.

    The share ``dropped`` of the draws lies where the energy is not finite. The free energy is that of the flow q restricted to the rest, whose
    density is q/(1 − dropped): ⟨log q + E⟩ − log(1 − dropped) ≥ −log Z. Without the logarithm it would be the lower the less of the flow is inside.
    With the energy's own log Z also ``reverse_kl``, the divergence of the flow restricted in this way.
    """
    rows = validation_rows(flow, batch, condition, samples, generator)
    log_w = log_weights(flow, energy, rows, generator)
    finite = torch.isfinite(log_w)
    inside = finite.to(log_w.dtype).mean(0)
    within = -torch.where(finite, log_w, 0.0).mean(0) / inside - inside.log()
    free_energy = torch.where(inside > 0, within, math.inf).mean()
    weights = torch.where(torch.isnan(log_w), -math.inf, log_w)
    log_sum, log_sum_square = weights.logsumexp(0), (2 * weights).logsumexp(0)
    share = torch.where(log_sum == -math.inf, 0.0, (2 * log_sum - log_sum_square).exp() / rows.n)
    found = {
        "free_energy": free_energy,
        "ess": share.mean(),
        "log_z": (log_sum - math.log(rows.n)).mean(),
        "dropped": 1 - inside.mean(),
    }
    if isinstance(energy, HasLogZ):
        found["reverse_kl"] = free_energy + energy.log_z(rows.c).to(free_energy).mean()
    return found


def outside_penalty(dropped: Tensor) -> Tensor:
    r"""−log(1 − dropped): KL(q'‖q) in nats from the flow q' restricted to the support of the energy to the flow itself; +∞ where all is outside.

    A divergence of q' alone is blind to what lies outside, that of q is infinite from the first point outside. The sum of this one and that of q'
    can be compared between flows, and prefers more of a flow inside.
    """
    return -torch.log1p(-dropped)


def validation_rows(flow: Flow, batch: Batch, condition: Source, samples: int, generator: torch.Generator | None) -> Rows:
    """`samples` points in all, under a few conditions where there are some."""
    c = draw_conditions(condition, VALIDATED_CONDITIONS, float_of(flow), generator)
    if c is None and batch.c is not None:
        c = transform(batch.c, lambda leaf: leaf[:VALIDATED_CONDITIONS])
    groups = math.prod(batch_shape(c, flow.condition)) if c is not None else 1
    return Rows(max(2, samples // groups), c, None)


def attach(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    r"""A value (\*batch,) whose gradient is that of x times the given slope (\*batch, \*event), and nothing else."""
    moved = ((x - x.detach()) * slope).flatten(value.ndim).sum(-1)
    return value.detach() + moved


def group_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over groups, shape (groups,) or (); weights have mean 1 over all of the training split."""
    return values.mean() if weight is None else (weight * values).mean()
