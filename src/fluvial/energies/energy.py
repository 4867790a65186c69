"""What an energy must say about itself, and what it may say."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, ConditionShape, batch_shape, leaves
from fluvial.manifolds import Manifold


class Energy(nn.Module, ABC):
    r"""A density on ``manifold`` that is known up to a factor, possibly one that depends on a condition.

    .. math:: p(x|c) = \frac{e^{-E(x, c)}}{Z(c)}, \qquad Z(c) = \int e^{-E(x, c)}\, dx

    Energies are dimensionless (in units of k_B T) and refer to Riemannian volume. Outside the support they are +∞. What else an energy knows
    it says by having the methods of `HasSample`, `HasLogZ` and `HasGradC`.

    Attributes:
        manifold: Where its points live.
        condition: Event shape of the condition it needs; None where it needs none, and accepts and ignores any.
    """

    manifold: Manifold
    condition: ConditionShape = None

    @abstractmethod
    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""E(x, c) for x of shape (\*batch, \*event), shape (\*batch,); the batch of c broadcasts with that of x."""


@runtime_checkable
class HasSample(Protocol):
    """An energy whose density can be sampled exactly."""

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Independent draws, shape (\*n, \*batch(c), \*event)."""
        ...


@runtime_checkable
class HasLogZ(Protocol):
    """An energy whose normalisation is known."""

    def log_z(self, c: Condition = None) -> Tensor:
        r"""Log ∫ exp(−E(x, c)) dx, shape (\*batch(c),)."""
        ...


@runtime_checkable
class HasGradC(Protocol):
    """An energy whose derivative in the condition is known in closed form."""

    def grad_c(self, x: Tensor, c: Condition) -> Condition:
        r"""∂E/∂c at fixed x: the structure of c, every leaf of shape (\*batch, \*condition event)."""
        ...


def energies_at(energy: Energy, x: Tensor, c: Condition = None) -> Tensor:
    r"""E(x, c), refused where it is not one number for each point: such values would broadcast into something else.

    Args:
        energy: The energy.
        x: Points, shape (\*batch, \*event).
        c: Condition, whose batch broadcasts with that of x, or None.

    Returns:
        The energies, shape of the joint batch of x and c.

    Raises:
        ValueError: If the energy returns another shape.

    Example:
        >>> from fluvial.energies import DoubleWell
        >>> energies_at(DoubleWell(), torch.zeros(3, 2))
        tensor([0., 0., 0.])
    """
    return checked_values(energy, energy(x, c), x, c)


def checked_values(energy: Energy, value: Tensor, x: Tensor, c: Condition = None) -> Tensor:
    """The value that an energy returned for x and c, if it is one number for each point.

    Raises:
        ValueError: If it is not.
    """
    batch = x.shape[: x.ndim - len(energy.manifold.event_shape)]
    expected = batch
    if isinstance(value, Tensor):
        if energy.condition is None and value.shape == batch:
            return value
        # A condition that is not declared may be used or ignored.
        expected = batch if c is None else torch.broadcast_shapes(batch, batch_shape(c, energy.condition))
        if value.shape == expected:
            return value
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"{type(energy).__name__}: expected one energy for each point, shape {tuple(expected)}, got {got}; sum over the axes of a point, "
        "such as .sum(-1)"
    )


def grad_c(energy: Energy, x: Tensor, c: Condition) -> Condition:
    r"""∂E/∂c at fixed x, in closed form where the energy has one, else by automatic differentiation.

    Args:
        energy: The energy.
        x: Points, shape (\*batch, \*event).
        c: Condition, whose batch broadcasts with that of x.

    Returns:
        The structure of c, every leaf of shape (\*batch, \*condition event) with the joint batch of x and c. It carries a graph where x or c
        requires a gradient.

    Example:
        >>> from fluvial.energies import DoubleWell, Tempered
        >>> x, T = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0]])
        >>> grad_c(Tempered(DoubleWell()), x, T)  # −E/T²
        tensor([[-0.5000]])
    """
    if c is None:
        raise ValueError("grad_c: there is no condition to differentiate in")
    if isinstance(energy, HasGradC):
        return energy.grad_c(x, c)
    batch = torch.broadcast_shapes(x.shape[: x.ndim - len(energy.manifold.event_shape)], batch_shape(c, energy.condition))
    keeps_graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *leaves(c).values()))
    with torch.enable_grad():
        # Every row has its own copy of the condition, so that one derivative of the sum gives those of all rows.
        given = {name: _rows(leaf, batch, energy.condition, name) for name, leaf in leaves(c).items()}
        total = energies_at(energy, x, given if isinstance(c, dict) else given["c"]).sum()
        if not total.requires_grad:
            found = tuple(torch.zeros_like(leaf) for leaf in given.values())
        else:
            found = torch.autograd.grad(total, list(given.values()), create_graph=keeps_graph, materialize_grads=True)
    entries = dict(zip(given, found))
    return entries if isinstance(c, dict) else entries["c"]


def _rows(leaf: Tensor, batch: tuple[int, ...], declared: ConditionShape, name: str) -> Tensor:
    event = leaf.shape[-1:] if declared is None else declared[name] if isinstance(declared, dict) else declared
    rows = leaf.expand(*batch, *event)
    return rows if leaf.requires_grad else rows.detach().clone().requires_grad_()
