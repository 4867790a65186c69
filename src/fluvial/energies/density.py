"""The energy of a density that is known."""

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, batch_shape
from fluvial.energies.energy import Energy


class DensityEnergy(Energy):
    r"""A base or a trained flow as an energy, so that another flow can be trained on it.

    .. math:: E(x, c) = -\log p(x|c), \qquad Z = 1

    Args:
        density: A module with ``log_prob(x, c)``, ``sample(n, c, generator=…)`` and ``manifold``: a base, or a flow whose density is exact.

    Raises:
        TypeError: If it lacks one of these.

    Example:
        >>> from fluvial.bases import Normal
        >>> DensityEnergy(Normal(2))(torch.zeros(1, 2))
        tensor([1.8379])
    """

    def __init__(self, density: nn.Module) -> None:
        super().__init__()
        lacking = [name for name in ("log_prob", "sample", "manifold") if not hasattr(density, name)]
        if lacking:
            raise TypeError(f"DensityEnergy: expected a base or a flow, got {type(density).__name__}, which has no {', '.join(lacking)}")
        self.density = density
        self.manifold = density.manifold
        self.condition = getattr(density, "condition", None)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""−log p(x|c), shape (\*batch,)."""
        return -self.density.log_prob(x, c)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event)."""
        return self.density.sample(n, c, generator=generator)

    def log_z(self, c: Condition = None) -> Tensor:
        r"""0, shape (\*batch(c),)."""
        like = next((t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.zeros(()))
        return like.new_zeros(batch_shape(c, self.condition))
