"""How long to train, when to look, and how fast to learn."""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "one-cycle", "constant"]
DEFAULT_STEPS = 10_000
VALIDATIONS = 50
# Steps between two validations at least: short runs are not spent on looking at themselves.
SHORTEST = 20
LONG_EPOCH = 1000


@dataclass(frozen=True)
class Budget:
    """When training is over: whatever is used up first.

    Args:
        max_steps: Optimisation steps, or None.
        max_epochs: Passes over the training split, or None.
        max_time: Seconds, or None.
        steps_per_epoch: Steps of one pass; 0 where there are no data.
    """

    max_steps: int | None
    max_epochs: float | None
    max_time: float | None
    steps_per_epoch: int

    @property
    def steps(self) -> int | None:
        """The number of steps, unless only time limits training; without any limit, 10 000."""
        limits = [] if self.max_steps is None else [self.max_steps]
        if self.max_epochs is not None:
            limits.append(max(1, math.ceil(self.max_epochs * self.steps_per_epoch)))
        if not limits and self.max_time is None:
            return DEFAULT_STEPS
        return min(limits) if limits else None

    def fraction(self, step: int, seconds: float) -> float:
        """How much of the budget is used up, 0 … 1."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.max_time is None else seconds / self.max_time
        return min(1.0, max(by_steps, by_time))

    def used_up(self, step: int, seconds: float) -> str | None:
        """The name of the limit that is reached, or None."""
        if self.steps is not None and step >= self.steps:
            by_epochs = self.max_epochs is not None and (self.max_steps is None or self.steps < self.max_steps)
            return "max_epochs" if by_epochs else "max_steps"
        if self.max_time is not None and seconds >= self.max_time:
            return "max_time"
        return None


@dataclass(frozen=True)
class Rhythm:
    """When to validate: every so many steps, or after so many seconds, whichever is due first.

    Time only counts where ``max_time`` limits training, so that a run limited by steps can be repeated bit by bit.
    """

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, budget: Budget, validate_every: int | None) -> "Rhythm":
        """About 50 validations over the budget, and at least one per epoch where epochs are longer than 1000 steps."""
        if validate_every is not None:
            return cls(validate_every, None)
        every = None if budget.steps is None else max(SHORTEST, math.ceil(budget.steps / VALIDATIONS))
        if budget.steps_per_epoch >= LONG_EPOCH:
            every = budget.steps_per_epoch if every is None else min(every, budget.steps_per_epoch)
        return cls(every, None if budget.max_time is None else budget.max_time / VALIDATIONS)

    def due(self, step: int, seconds: float, last: "Validated") -> bool:
        """Whether to validate now; by the clock at most a sixth of the time goes into it."""
        if self.steps is not None and step % self.steps == 0:
            return True
        return self.seconds is not None and seconds - last.seconds >= max(self.seconds, 5 * last.duration)


@dataclass
class Validated:
    """When the last validation ended, and how long it took."""

    step: int = 0
    seconds: float = 0.0
    duration: float = 0.0


def learning_rate_factor(schedule: Schedule, fraction: float, step: int, warmup: int) -> float:
    """What the learning rate is multiplied with.

    - ``cosine``: linear rise over the first `warmup` steps, times ½(1 + cos π·fraction), which ends at 0.
    - ``constant``: the linear rise only.
    - ``one-cycle``: from 1/25 up to 1 over the first 30 % of the budget and down to 1/2500 over the rest, both along cosines.

    Example:
        >>> [round(learning_rate_factor("cosine", f, 1000, 200), 3) for f in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    if schedule == "one-cycle":
        rise = 0.3
        if fraction < rise:
            return _cosine(1 / 25, 1.0, fraction / rise)
        return _cosine(1.0, 1 / 2500, (fraction - rise) / (1 - rise))
    warm = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    return warm * (_cosine(1.0, 0.0, fraction) if schedule == "cosine" else 1.0)


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))
