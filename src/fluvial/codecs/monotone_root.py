"""Where a monotone function on the unit interval takes a given value."""

from collections.abc import Callable

import torch
from torch import Tensor

from fluvial.codecs.transformer import held

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
STEPS = 12


def monotone_root(fn: Slope, target: Tensor, guess: Tensor) -> Tensor:
    """The ξ in [0, 1] with f(ξ) = target, for increasing f; differentiable in target and in what f depends on, twice.

    Newton's method, kept inside a bracket that shrinks with every step, so that it cannot run away; no step waits for the result of another one.

    Args:
        fn: ξ -> (f(ξ), f'(ξ)).
        target: Values in [f(0), f(1)].
        guess: Where to start.
    """
    with torch.no_grad():
        fixed = target.detach()
        low, high, xi = torch.zeros_like(guess), torch.ones_like(guess), guess.detach().clamp(0, 1)
        for _ in range(STEPS):
            value, slope = fn(xi)
            above = value > fixed
            low, high = torch.where(above, low, xi), torch.where(above, xi, high)
            newton = xi - (value - fixed) / slope
            xi = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
    if not torch.is_grad_enabled():
        return xi
    # One more step carries the first derivative of the implicit function, two carry the second.
    for _ in range(2):
        value, slope = fn(xi)
        xi = xi - (value - target) / slope
    return held(xi, 0, 1)
