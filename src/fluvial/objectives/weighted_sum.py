"""Several objectives at once."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fluvial.objectives.objective import Batch, Objective, Progress

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset

Schedule = float | Sequence[tuple[float, float]]


class WeightedSum(Objective):
    r"""A weighted sum of objectives, each weight a number or a schedule over the budget.

    .. math:: L = \sum_k w_k(t)\, L_k, \qquad t \in [0, 1]

    Args:
        objectives: The objectives by name.
        weights: For each name a number, or points (t, w) between which the weight is interpolated linearly; default 1.

    Raises:
        ValueError: If names do not match, or a schedule is not sorted in t.

    Example:
        >>> from fluvial.objectives import MaximumLikelihood
        >>> both = WeightedSum({"nll": MaximumLikelihood()}, weights={"nll": [(0.0, 0.0), (0.5, 1.0)]})
        >>> both.weight("nll", 0.25), both.weight("nll", 0.9)
        (0.5, 1.0)
    """

    def __init__(self, objectives: Mapping[str, Objective], *, weights: Mapping[str, Schedule] | None = None) -> None:
        super().__init__()
        unknown = sorted(set(weights or {}) - set(objectives))
        if not objectives or unknown:
            raise ValueError(
                f"WeightedSum: weights name {unknown}, objectives are {sorted(objectives)}; give at least one objective and weights for these only"
            )
        self.objectives = nn.ModuleDict(dict(objectives))
        self.weights = dict(weights or {})
        for name, schedule in self.weights.items():
            if not isinstance(schedule, (int, float)):
                times = [t for t, _ in schedule]
                if not times or times != sorted(times):
                    raise ValueError(f"WeightedSum: the schedule of {name!r} must be points (t, weight) with rising t, got {list(schedule)}")
        self.adapt_every = max((part.adapt_every for part in self._parts().values()), default=0)  # pyright: ignore[reportIncompatibleVariableOverride]

    def weight(self, name: str, fraction: float) -> float:
        """The weight of one objective when `fraction` of the budget is used up."""
        schedule = self.weights.get(name, 1.0)
        if isinstance(schedule, (int, float)):
            return float(schedule)
        points = list(schedule)
        if fraction <= points[0][0]:
            return float(points[0][1])
        for (t0, w0), (t1, w1) in zip(points, points[1:]):
            if fraction <= t1:
                return float(w0 + (w1 - w0) * (fraction - t0) / (t1 - t0)) if t1 > t0 else float(w1)
        return float(points[-1][1])

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Prepare every part."""
        for part in self._parts().values():
            part.prepare(flow, dataset)

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The weighted loss; entries of the parts are logged as name/entry. A part of weight 0 is not evaluated."""
        total, logged = None, {}
        for name, part in self._parts().items():
            weight = self.weight(name, progress.fraction)
            if weight == 0:
                continue
            figures = part(flow, batch, progress)
            loss = figures.pop("loss")
            total = weight * loss if total is None else total + weight * loss
            logged |= {f"{name}/loss": loss.detach()} | {f"{name}/{key}": value for key, value in figures.items()}
        if total is None:
            raise ValueError("WeightedSum: all weights are 0 at this point of the schedule, so there is nothing to minimise")
        return {"loss": total, **logged}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The figures of all parts; the monitor is their weighted sum at the end of the schedule."""
        monitor, figures = None, {}
        for name, part in self._parts().items():
            own = part.validate(flow, batch, progress)
            share = self.weight(name, 1.0) * own.pop("monitor")
            monitor = share if monitor is None else monitor + share
            figures |= {key if key not in figures else f"{name}/{key}": value for key, value in own.items()}
        return {"monitor": monitor, **figures}  # pyright: ignore[reportReturnType]

    def adapt(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Move the controllers of the parts that have one."""
        moving = {name: part for name, part in self._parts().items() if part.adapt_every}
        return {f"{name}/{key}": value for name, part in moving.items() for key, value in part.adapt(flow, batch, progress).items()}

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """The groups of the parts, each parameter once."""
        seen: set[int] = set()
        groups = []
        for part in self._parts().values():
            for group in part.param_groups(flow):
                fresh = [p for p in group["params"] if id(p) not in seen]
                seen |= {id(p) for p in fresh}
                if fresh:
                    groups.append({**group, "params": fresh})
        return groups

    def _parts(self) -> dict[str, Objective]:
        return dict(self.objectives.items())  # pyright: ignore[reportReturnType]
