"""One Adam per parameter group: scaled, clipped, and skipped apart."""

from typing import Any

import torch
from torch import Tensor, nn

from fluvial.objectives.objective import Objective
from fluvial.training.settings import Settings


class GuardedAdam:
    r"""Adam on one group of parameters, whose step can be left out without asking the device whether it must be.

    The gradient g is clipped to g · min(1, clip/|g|), the norm being taken over the whole group.

    Args:
        params: The group.
        learning_rate: Before the schedule.
        weight_decay: Strength λ of the term λθ added to the gradient.
        clip: Largest norm of the gradient, or None.
    """

    def __init__(self, params: list[nn.Parameter], *, learning_rate: float, weight_decay: float, clip: float | None) -> None:
        self.params = params
        self.learning_rate = learning_rate
        self.clip = clip
        self.fused = all(p.is_floating_point() for p in params)
        try:
            self.adam = torch.optim.Adam(params, lr=learning_rate, weight_decay=weight_decay, fused=self.fused)
        except RuntimeError:
            # Not every device has the fused kernel.
            self.fused = False
            self.adam = torch.optim.Adam(params, lr=learning_rate, weight_decay=weight_decay)

    def norm(self) -> Tensor:
        """Norm of the gradient over the whole group, a scalar on its device."""
        grads = [p.grad for p in self.params if p.grad is not None]
        if not grads:
            return torch.zeros((), device=self.params[0].device)
        return torch.nn.utils.get_total_norm(grads)

    def step(self, norm: Tensor, skip: Tensor, factor: float) -> None:
        """One step with learning rate times `factor`, unless the scalar `skip` is 1: then neither weights nor moments move."""
        self.adam.param_groups[0]["lr"] = self.learning_rate * factor
        shrink = None if self.clip is None else (norm / self.clip).clamp_min(1.0)
        if self.fused:
            # The kernel divides by grad_scale and does nothing where found_inf is 1.
            self.adam.grad_scale = None if shrink is None else shrink.float()
            self.adam.found_inf = skip.float()
            self.adam.step()
        elif not bool(skip):
            for p in self.params:
                if p.grad is not None and shrink is not None:
                    p.grad.div_(shrink)
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def make_optimizers(objective: Objective, flow: nn.Module, settings: Settings) -> list[GuardedAdam]:
    """One optimiser for each of the objective's parameter groups.

    Raises:
        ValueError: If there is nothing to train, a group has an unknown entry, or a parameter is in two groups.
    """
    optimizers: list[GuardedAdam] = []
    seen: set[int] = set()
    for group in objective.param_groups(flow):
        unknown = set(group) - {"params", "lr_scale", "weight_decay", "clip"}
        if unknown:
            raise ValueError(f"fit: a parameter group has the entries params, lr_scale, weight_decay and clip, got {sorted(unknown)} too")
        params = [p for p in group["params"] if p.requires_grad]
        if seen.intersection(map(id, params)) or len({id(p) for p in params}) < len(params):
            raise ValueError(f"fit: {type(objective).__name__}.param_groups names a parameter twice; each belongs to one group")
        seen.update(map(id, params))
        if params:
            optimizers.append(_optimizer(params, group, settings))
    if not optimizers:
        raise ValueError(f"fit: {type(flow).__name__} has no parameter to train; check requires_grad")
    return optimizers


def _optimizer(params: list[nn.Parameter], group: dict[str, Any], settings: Settings) -> GuardedAdam:
    return GuardedAdam(
        params,
        learning_rate=settings.learning_rate * group.get("lr_scale", 1.0),
        weight_decay=group.get("weight_decay", settings.weight_decay),
        clip=group.get("clip", settings.clip),
    )
