"""An energy of your own."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluvial.conditions import Condition, condition_shape
from fluvial.energies.energy import Energy, checked_values
from fluvial.manifolds import Euclidean, Manifold


class FunctionEnergy(Energy):
    r"""Any torch function of a batch of points as an energy.

    A plain function cannot be written into a file; what is to be saved is a `torch.nn.Module`, or an `Energy` of your own. In a recipe a function
    is named by its import path.

    Args:
        function: Called ``function(x, c)``, or ``function(x)`` where there is no condition or it takes no second argument; x has shape
            (\*batch, \*event), the result (\*batch,).
        manifold: Where x lives; an int n stands for ``Euclidean(n)``.
        condition: Event shape of the condition it needs, or None.

    Raises:
        TypeError: If function cannot be called.
        ValueError: At the first call, if the result is not one number for each point.

    Example:
        >>> import torch
        >>> energy = FunctionEnergy(lambda x: x.square().sum(-1) / 2, 3)
        >>> energy(torch.ones(2, 3))
        tensor([1.5000, 1.5000])
    """

    def __init__(
        self, function: Callable[..., Any], manifold: Manifold | int, *, condition: int | tuple[int, ...] | dict[str, int] | None = None
    ) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"FunctionEnergy: function must be callable, got {type(function).__name__}")
        self.function = function
        self.manifold = Euclidean(manifold) if isinstance(manifold, int) else manifold
        self.condition = condition_shape(condition)
        self._takes_condition = self.condition is not None or _positional(function) > 1

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""The function's values, shape (\*batch,)."""
        value = self.function(x) if c is None or not self._takes_condition else self.function(x, c)
        return checked_values(self, value, x, c if self._takes_condition else None)


def _positional(function: Callable[..., Tensor]) -> int:
    """How many arguments a function takes by position; 1 where it does not say."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(2 if p.kind is p.VAR_POSITIONAL else p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
