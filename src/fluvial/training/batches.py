"""Batches of data that are in memory: rows picked by index, no loader and no workers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluvial.conditions import leaves, transform
from fluvial.objectives.objective import Batch
from fluvial.training.states import generator

if TYPE_CHECKING:
    from fluvial.data import Dataset
    from fluvial.training.joint_rows import JointRows

# An iterable with a length is not fetched from in advance, which would draw random numbers before their time.
ENDLESS = 2**40


class Batches:
    """An endless stream of random batches that knows where it stands.

    Every pass visits all rows in a new random order; an incomplete last batch is left out (in another order the next pass),
    unless the rows do not even fill one.

    Args:
        data: The training split on the training device, or None for objectives that need none: then batches have x of shape (batch_size, 0).
        batch_size: Rows per batch.
        seed: Of the order of rows.
        device: The training device.
        noise: Source of the noise and dequantisation that the data specification asks for.
    """

    def __init__(self, data: "Dataset | JointRows | None", batch_size: int, *, seed: int, device: torch.device, noise: torch.Generator) -> None:
        self.data = data
        self.batch_size = batch_size if data is None else min(batch_size, len(data))
        self.steps_per_epoch = 0 if data is None else len(data) // self.batch_size
        self._order = generator(seed, "order of rows")
        self._noise = noise
        self._device = device
        self._permutation = torch.empty(0, dtype=torch.int64)
        self._cursor = 0
        weight = None if data is None else data.weight
        self._weight_scale = None if weight is None else 1 / weight.mean()
        self._empty = torch.empty(batch_size, 0, device=device)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def next(self) -> Batch:
        """The next batch; a new pass begins where the last one is used up."""
        if self.data is None:
            return Batch(x=self._empty)
        if self._cursor + self.batch_size > len(self._permutation):
            # Drawn on the processor, so that the order does not depend on the device.
            self._permutation = torch.randperm(len(self.data), generator=self._order).to(self._device)
            self._cursor = 0
        index = self._permutation[self._cursor : self._cursor + self.batch_size]
        self._cursor += self.batch_size
        batch = rows(self.data, index, self._noise)
        if batch.weight is None or self._weight_scale is None:
            return batch
        return batch._replace(weight=batch.weight * self._weight_scale)

    def state_dict(self) -> dict[str, Any]:
        """The order of this pass, the place in it, and the stream that the next orders come from."""
        return {"permutation": self._permutation.cpu().clone(), "cursor": self._cursor, "order": self._order.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        self._permutation = state["permutation"].to(self._device)
        self._cursor = state["cursor"]
        self._order.set_state(state["order"])


def rows(data: "Dataset | JointRows", index: Tensor, noise: torch.Generator) -> Batch:
    """Rows of a data set, noise and dequantisation of its description applied."""
    clean: Any = transform(data.x, lambda leaf: leaf.index_select(0, index))
    x = clean if data.spec is None else data.spec.perturb(clean, noise)
    return Batch(
        x=x,
        c=transform(data.c, lambda leaf: leaf.index_select(0, index)),
        weight=None if data.weight is None else data.weight.index_select(0, index),
        index=index,
        clean=None if x is clean else clean,
    )


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """The rows of a batch in order, at most `size` at a time."""
    n = len(next(iter(leaves(batch.x).values())))
    for start in range(0, n, size):
        yield Batch(*(transform(entry, lambda leaf: leaf[start : start + size]) for entry in batch))  # noqa: B023  # pyright: ignore
