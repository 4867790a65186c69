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
        ValueError: If it is a free-form flow, whose densities integrate to 1 only as far as its decoder inverts its encoder.

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
        if not getattr(density, "is_bijective", True):
            raise ValueError(
                "DensityEnergy: a free-form flow's density is not normalised exactly, so log Z = 0 would be a guess; give a flow that is "
                "bijective, or FunctionEnergy(lambda x: -flow.log_prob(x), flow.manifold), which claims no normalisation"
            )
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
        r"""0, shape (\*batch(c),).

        Raises:
            ValueError: If the density needs a condition and there is none.
        """
        if c is None and self.condition is not None:
            raise ValueError(f"DensityEnergy: this density is conditional; give c of event shape {self.condition}")
        like = next((t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.zeros(()))
        return like.new_zeros(batch_shape(c, self.condition))
