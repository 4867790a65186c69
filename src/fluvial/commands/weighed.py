"""The figures of a flow that was trained on an energy."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fluvial.conditions import Condition, leaves, transform
from fluvial.energies import Energy
from fluvial.metrics import Estimate, importance
from fluvial.metrics.importance import at_precision
from fluvial.metrics.likelihood import float_of
from fluvial.objectives.energy_target import draw_conditions

if TYPE_CHECKING:
    from fluvial.flow import Flow

DRAWS = 50_000
CONDITIONS = 8
AVERAGED = ("ess", "ess_forward", "coverage", "reverse_kl", "forward_kl", "pareto_k")


class Weighed(NamedTuple):
    """Figures by name, exact values beside them, and one sentence where a figure should not be trusted."""

    figures: dict[str, Estimate]
    exact: dict[str, Estimate]
    warning: str


def of_energy(flow: "Flow", energy: Energy, c: Condition, source: Any, *, seed: int = 0) -> Weighed:
    """Effective samples and log Z of a flow, for a conditional one as means over a few conditions.

    Args:
        flow: The flow.
        energy: What it was trained on.
        c: Conditions of the test rows, or None.
        source: Where the objective takes conditions from, for where there are no test rows.
        seed: Of all draws.
    """
    energy = at_precision(energy, float_of(flow))
    if flow.condition is None and energy.condition is None:
        found = importance(flow, energy, DRAWS, seed=seed)
        figures = {name: value for name in (*AVERAGED, "log_z") if (value := getattr(found, name)) is not None}
        exact = {} if found.true_log_z is None else {"log_z": Estimate(found.true_log_z)}
        return Weighed(figures, exact, found.warning)
    like = float_of(flow)
    generator = torch.Generator(like.device).manual_seed(seed)
    rows = draw_conditions(source, CONDITIONS, like, generator) if source is not None else transform(c, lambda leaf: leaf[:CONDITIONS].to(like))
    # There may be fewer test rows than that.
    count = min((len(leaf) for leaf in leaves(rows).values()), default=0)
    if count == 0:
        raise ValueError("effective samples: this energy takes a condition, and there are neither test rows with one nor a source of conditions")
    several = [
        importance(flow, energy, DRAWS // count, transform(rows, lambda leaf: leaf[k : k + 1]), seed=seed + k)  # noqa: B023
        for k in range(count)
    ]
    figures = {name: _mean([getattr(found, name) for found in several]) for name in AVERAGED if getattr(several[0], name) is not None}
    if several[0].true_log_z is not None:
        figures["log_z_error"] = _mean(
            [Estimate(abs(found.log_z.value - (found.true_log_z or 0.0)), found.log_z.standard_error, found.log_z.n) for found in several]
        )
    return Weighed(figures, {}, next((found.warning for found in several if found.warning), ""))


def _mean(parts: list[Estimate]) -> Estimate:
    error = math.sqrt(sum(part.standard_error**2 for part in parts)) / len(parts)
    return Estimate(sum(part.value for part in parts) / len(parts), error, sum(part.n or 0 for part in parts))
