"""Figures on held-out rows."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.metrics.estimate import mean_estimate
from fluvial.metrics.likelihood import evaluating
from fluvial.objectives.objective import Batch, Objective, Progress
from fluvial.training.batches import chunks
from fluvial.training.states import generator


class Validation:
    """The same held-out rows, noise and random numbers every time, so that figures can be compared.

    Args:
        batch: The rows.
        chunk: Rows handed to the objective at a time; scalars it returns are averaged over the chunks by weight.
        seed: Of the random numbers an objective may draw.
        device: The training device.
    """

    def __init__(self, batch: Batch, *, chunk: int, seed: int, device: torch.device) -> None:
        self.batch = batch
        self.chunk = chunk
        self._seed = seed
        self._device = device

    def run(self, flow: nn.Module, objective: Objective, progress: Progress) -> dict[str, float]:
        """The objective's figures; those known row by row with their standard error, and a count of rows where they are not finite, if any.

        Raises:
            ValueError: If the objective names no monitor.
        """
        parts: list[dict[str, Tensor]] = []
        totals: list[float] = []
        with evaluating(flow), evaluating(objective):
            fixed = self._fixed(progress, "validation")
            for batch in chunks(self.batch, self.chunk):
                parts.append({name: torch.as_tensor(value) for name, value in objective.validate(flow, batch, fixed).items()})
                totals.append(float(len(batch.x)) if batch.weight is None else float(batch.weight.sum()))
        figures: dict[str, float] = {}
        for name, first in parts[0].items():
            values = [part[name] for part in parts]
            if first.ndim == 0:
                # A chunk without weight says nothing, not even through a NaN.
                figures[name] = sum(total * float(value) for total, value in zip(totals, values) if total > 0) / sum(totals)
            else:
                estimate = mean_estimate(torch.cat(values), self.batch.weight)
                figures |= {name: estimate.value, f"{name}_error": estimate.standard_error}
                if estimate.bad_rows:
                    figures[f"{name}_bad_rows"] = estimate.bad_rows
        if "monitor" not in figures:
            raise ValueError(
                f"fit: {type(objective).__name__}.validate must return a 'monitor', the figure that is to become small; got {sorted(figures)}"
            )
        return figures

    def adapt(self, flow: nn.Module, objective: Objective, progress: Progress) -> dict[str, float]:
        """Let the objective's controllers move, on the first few of the rows."""
        with evaluating(flow), evaluating(objective):
            batch = next(chunks(self.batch, objective.adapt_rows))
            figures = objective.adapt(flow, batch, self._fixed(progress, "adaptation"))
        return {name: float(value) for name, value in figures.items()}

    def _fixed(self, progress: Progress, purpose: str) -> Progress:
        return dataclasses.replace(progress, generator=generator(self._seed, purpose, self._device))


def make_row(known: dict[str, Any], terms: dict[str, float], adapted: dict[str, float], figures: dict[str, float]) -> dict[str, Any]:
    """One row of the history; where names meet, the training term is called train_…, what a controller says adapt_…, a figure validation_…."""
    loss = {"loss": terms.get("loss", math.nan)}
    figures = {f"validation_{name}" if name in known or name == "loss" else name: value for name, value in figures.items()}
    taken = {*known, "loss", *figures}
    adapted = {f"adapt_{name}" if name in taken else name: value for name, value in adapted.items()}
    taken |= set(adapted)
    terms = {f"train_{name}" if name in taken else name: value for name, value in terms.items() if name != "loss"}
    return {**known, **loss, **terms, **adapted, **figures}
