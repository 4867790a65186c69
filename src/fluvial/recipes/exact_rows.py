"""Rows to judge a flow by that was trained on an energy: exact samples of it."""

from typing import Any

import torch
from torch import Tensor, nn

from fluvial.data import Dataset
from fluvial.energies import Energy, HasLogZ, HasSample
from fluvial.objectives import Objective, WeightedSum
from fluvial.objectives.energy_target import draw_conditions

ROWS = 10_000


class EnergyDensity:
    """The normalised density of an energy whose log Z is known, as the truth of a data set."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    def log_prob(self, x: Tensor) -> Tensor:
        r"""−E(x) − log Z, shape (\*batch,)."""
        with torch.no_grad():
            return -self.energy(x) - self.energy.log_z()  # pyright: ignore[reportCallIssue]


def energy_of(objective: Objective | None) -> Energy | None:
    """The energy that an objective, or a part of a sum, learns from; None where it learns from data alone."""
    parts: list[Any] = list(objective.objectives.values()) if isinstance(objective, WeightedSum) else [objective]
    return next((part.energy for part in parts if isinstance(getattr(part, "energy", None), Energy)), None)


def source_of(objective: Objective | None) -> Any:
    """Where that objective takes its conditions from."""
    parts: list[nn.Module | None] = list(objective.objectives.values()) if isinstance(objective, WeightedSum) else [objective]
    return next((part.condition for part in parts if isinstance(getattr(part, "energy", None), Energy)), None)  # pyright: ignore


def exact_rows(objective: Objective, *, n: int = ROWS, seed: int = 0) -> Dataset | None:
    """Exact samples of an objective's energy, under conditions as in training; None where the energy cannot be sampled."""
    energy = energy_of(objective)
    if energy is None or not isinstance(energy, HasSample):
        return None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        c = draw_conditions(source_of(objective), n, torch.zeros(()), generator)
        x = energy.sample(n, generator=generator) if c is None else energy.sample((), c, generator=generator)
    truth = EnergyDensity(energy) if c is None and isinstance(energy, HasLogZ) else None
    return Dataset(x, c, manifold=energy.manifold, truth=truth, name=f"exact samples of {type(energy).__name__}", synthetic=True)
