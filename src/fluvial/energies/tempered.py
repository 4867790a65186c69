"""An energy at a temperature that the condition gives."""

from typing import Literal

import torch
from torch import Tensor

from fluvial.conditions import Condition
from fluvial.energies.energy import Energy

Chart = Literal["temperature", "inverse", "log"]


class Tempered(Energy):
    r"""An energy divided by a temperature T, which is the condition.

    .. math:: E(x, T) = \frac{E_1(x)}{T}, \qquad \frac{\partial E}{\partial T} = -\frac{E_1}{T^2}, \quad
              \frac{\partial E}{\partial \beta} = E_1, \quad \frac{\partial E}{\partial \tau} = -E_1 e^{-\tau}

    Args:
        energy: E₁, the energy at T = 1, which needs no condition.
        chart: Which number the condition (\*batch, 1) holds: the "temperature" T, the "inverse" temperature β = 1/T, or its "log" τ = ln T.

    Raises:
        ValueError: If the energy needs a condition of its own, or chart is none of these.

    Example:
        >>> from fluvial.energies import DoubleWell
        >>> Tempered(DoubleWell())(torch.tensor([[2.0**0.5, 0.0]]), torch.tensor([[0.5]]))
        tensor([-8.0000])
    """

    def __init__(self, energy: Energy, *, chart: Chart = "temperature") -> None:
        super().__init__()
        if energy.condition is not None:
            raise ValueError(f"Tempered: the energy needs a condition of shape {energy.condition} itself; give one that needs none")
        if chart not in ("temperature", "inverse", "log"):
            raise ValueError(f"Tempered: chart is 'temperature', 'inverse' or 'log', got {chart!r}")
        self.energy = energy
        self.chart: Chart = chart
        self.manifold = energy.manifold
        self.condition = (1,)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""E₁(x)/T, shape (\*batch,)."""
        return self.energy(x) * inverse_temperature(c, self.chart)

    def grad_c(self, x: Tensor, c: Condition) -> Tensor:
        r"""The derivative in the number that the condition holds, shape (\*batch, 1)."""
        beta = inverse_temperature(c, self.chart)
        slope = {"temperature": -beta.square(), "inverse": torch.ones_like(beta), "log": -beta}[self.chart]
        return (self.energy(x) * slope).unsqueeze(-1)


def inverse_temperature(c: Condition, chart: Chart) -> Tensor:
    r"""1/T of a condition (\*batch, 1), shape (\*batch,).

    Raises:
        ValueError: If there is none, or it is no single number.
    """
    if not isinstance(c, Tensor) or c.shape[-1:] != (1,):
        got = "none" if c is None else f"shape {tuple(c.shape)}" if isinstance(c, Tensor) else f"the entries {sorted(c)}"
        raise ValueError(f"energy: the temperature is the condition, of shape (*batch, 1), got {got}")
    value = c.squeeze(-1)
    return 1 / value if chart == "temperature" else value if chart == "inverse" else torch.exp(-value)
