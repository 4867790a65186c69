"""The true density of a data set, where it is known."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.conditions import Condition


def true_log_prob(truth: Any, x: Tensor, c: Condition = None) -> Tensor | None:
    r"""Log-density of rows under the truth of their data set.

    Args:
        truth: An object with ``log_prob(x)`` or ``log_prob(x, c)``, or None.
        x: Rows, shape (n, \*event).
        c: Their conditions, or None.

    Returns:
        Shape (n,), float64, on the CPU; None where there is no truth, or none that takes these conditions.
    """
    if truth is None or (c is not None and not takes_condition(truth.log_prob)):
        return None
    with torch.no_grad():
        found = truth.log_prob(x) if c is None else truth.log_prob(x, c)
    return found.double().cpu()


def takes_condition(fn: Callable[..., Any]) -> bool:
    """Whether a function has a parameter for the condition, called c."""
    return "c" in inspect.signature(fn).parameters
