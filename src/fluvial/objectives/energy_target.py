"""What objectives share that learn from an energy rather than from data."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, batch_shape, transform
from fluvial.energies import Energy, HasLogZ
from fluvial.flow import Flow
from fluvial.metrics.likelihood import float_of
from fluvial.objectives.objective import Batch

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset

Source = nn.Module | Sequence[Sequence[float]] | None
Anneal = tuple[float, float] | None
VALIDATED_CONDITIONS = 8


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
        TypeError: If the flow's density is not exact.
        ValueError: If they live on different manifolds, or it is not known under which conditions to draw.
    """
    found = exact_flow(name, flow)
    if energy.manifold != found.manifold:
        raise ValueError(f"{name}: the energy lives on {energy.manifold}, the flow on {found.manifold}; build the flow for the energy's manifold")
    if proposal is not None and proposal.manifold != found.manifold:
        raise ValueError(f"{name}: the proposal lives on {proposal.manifold}, the flow on {found.manifold}")
    conditional = found.condition is not None or energy.condition is not None
    if conditional and condition is None and (dataset is None or dataset.c is None):
        declared = found.condition if found.condition is not None else energy.condition
        raise ValueError(
            f"{name}: flow or energy take a condition of shape {declared}; say which with condition=…, a list of conditions or a distribution to "
            "draw them from, or give data with conditions"
        )


def check_energy_argument(name: str, energy: Any, anneal: Anneal, validation_samples: int) -> None:
    """Refuse at construction what is no energy, no schedule, or no number of samples.

    Raises:
        TypeError: If energy is not an `Energy`.
        ValueError: If the others are out of range.
    """
    if not isinstance(energy, Energy):
        mend = "wrap a function as energies.FunctionEnergy(function, n)"
        raise TypeError(f"{name}: energy must be a fluvial Energy, got {type(energy).__name__}; {mend}")
    if anneal is not None and not (len(anneal) == 2 and anneal[0] > 0 and 0 < anneal[1] <= 1):
        raise ValueError(f"{name}: anneal must be (temperature at the start > 0, share of the budget 0 … 1), got {anneal}")
    if validation_samples < 2:
        raise ValueError(f"{name}: validation_samples must be at least 2, got {validation_samples}")


def canonical_source(condition: Any) -> Any:
    """A source of conditions as it is kept: a module, or rows as nested tuples."""
    if condition is None or isinstance(condition, nn.Module):
        return condition
    rows = condition.tolist() if isinstance(condition, Tensor) else condition
    if len(rows) == 0 or not all(isinstance(row, Sequence) and len(row) == len(rows[0]) for row in rows):
        raise ValueError("condition: expected a distribution, or rows of shape (conditions, numbers of each), such as [[0.5], [1.0]]")
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
    return -energy(x, rows.c) - log_q


def figures_of(flow: Flow, energy: Energy, batch: Batch, condition: Source, samples: int, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Free energy ⟨log p_θ + E⟩, share of effective samples and log Z of the flow's draws, each a mean over a few conditions where there are some.

    With the energy's own log Z also ``reverse_kl``, the divergence itself.
    """
    rows = validation_rows(flow, batch, condition, samples, generator)
    log_w = log_weights(flow, energy, rows, generator)
    finite = torch.isfinite(log_w)
    free_energy = -torch.where(finite, log_w, 0.0).sum() / finite.sum()
    weights = torch.where(torch.isnan(log_w), -math.inf, log_w)
    log_sum, log_sum_square = weights.logsumexp(0), (2 * weights).logsumexp(0)
    found = {
        "free_energy": free_energy,
        "ess": ((2 * log_sum - log_sum_square).exp() / rows.n).mean(),
        "log_z": (log_sum - math.log(rows.n)).mean(),
    }
    if isinstance(energy, HasLogZ):
        found["reverse_kl"] = free_energy + energy.log_z(rows.c).to(free_energy).mean()
    return found


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
