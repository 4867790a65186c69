"""What training minimises: the interface, and what it is handed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset


class Batch(NamedTuple):
    r"""Rows of a data set on the training device.

    Attributes:
        x: Data, shape (B, \*event), noise and dequantisation already applied; a dict of such tensors for a `Joint`.
        c: Condition, leaves of shape (B, \*condition event), or None.
        weight: Weight of every row, shape (B,), or None where all count alike. In training their mean over the whole split is 1.
        index: Row numbers in the training split, shape (B,).
        clean: x before noise was added, or None where none was.
    """

    x: Tensor
    c: Condition = None
    weight: Tensor | None = None
    index: Tensor | None = None
    clean: Tensor | None = None


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        step: Optimisation steps done.
        epoch: Passes over the data begun, as a float.
        fraction: How much of the budget is used up, 0 … 1; schedules follow it.
        n_train: Rows of the training split.
        generator: The only source of randomness of an objective, on the training device; its state is part of every checkpoint.
    """

    step: int = 0
    epoch: float = 0.0
    fraction: float = 0.0
    n_train: int = 0
    generator: torch.Generator | None = field(default=None, repr=False)

    @property
    def source(self) -> torch.Generator | None:
        """The generator to draw from; under the compiler, which can trace none but the default one, that one."""
        return None if torch.compiler.is_compiling() else self.generator


class Objective(nn.Module, ABC):
    """What training minimises. It may own buffers (tables, controllers) and parameters (a discriminator); both are checkpointed."""

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:  # noqa: B027
        """Look at flow and training data once, before the first step (refuse what does not fit, fill tables)."""

    @abstractmethod
    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The scalar to minimise under "loss"; every other entry, a detached scalar, is logged under its name."""

    @abstractmethod
    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Figures on held-out rows, called under no_grad in eval mode: a scalar "monitor" (lower is better) that decides on best weights and
        early stopping; the other scalars are shown and logged. Entries of shape (B,) are per-row values, whose mean and standard error are reported.
        """  # fmt: skip

    def adapt(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Called under no_grad every ``adapt_every`` steps with one fixed subset of the validation split: controllers move here. Logged."""
        return {}

    adapt_every: int = 0
    adapt_rows: int = 256

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """Optimiser groups: dicts with "params" and optionally "lr_scale", "weight_decay", "clip"; each group is clipped and guarded apart."""
        return [{"params": [p for p in (*flow.parameters(), *self.parameters()) if p.requires_grad]}]


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Σ w v / Σ w over the rows, or the plain mean. Rows of weight 0 count for nothing, whatever stands in them."""
    return values.mean() if weight is None else (weight * _counting(values, weight)).sum() / weight.sum()


def training_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Σ w v / B over a training batch, whose weights have mean 1 over the whole training split.

    Unlike the mean that divides by the batch's own Σ w, its average over batches is the weighted mean of all rows.
    """
    return values.mean() if weight is None else (weight * _counting(values, weight)).mean()


def _counting(values: Tensor, weight: Tensor) -> Tensor:
    return torch.where(weight > 0, values, 0.0)
