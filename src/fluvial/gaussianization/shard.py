"""The share of the rows that one worker holds, and what it does with them."""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.codecs import Bijection, ConditionalSpline, ShearedSpline
from fluvial.codecs.marginal_spline import Knots
from fluvial.codecs.spline_kernel import rotate
from fluvial.codecs.spline_loops import Engine
from fluvial.gaussianization import keyed
from fluvial.gaussianization.bending import bending
from fluvial.gaussianization.kernel_histogram import BINS, grid_sums, histogram_, key_histogram_, refine_histogram_
from fluvial.gaussianization.sources import BLOCK, Rows, RowSource
from fluvial.gaussianization.store import BlockStore, choose_store
from fluvial.gaussianization.tree import TreeSum

WEIGHT_STEPS = 2**31  # the largest weight, where weights are not whole numbers, in the integers that are summed in their place
PART = 2**16  # parts of a row, in which rows are counted that belong to several sets of splines


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all workers must agree on.

    Attributes:
        source: The rows.
        train_rows: Rows before this one are for training (less the held-out share of them), those from it on for validation.
        held_out: Share of the training rows that is held out for validation.
        seed: Of the choice of rows held out, and of dithering.
        engine: "compiled" or "eager", for every block of the fit.
        memory: What one process may take, and of that a shard for its blocks, see `choose_store`.
        scratch: Folder of scratch files.
        device: Of torch, on which the rows live as one tensor; None for blocks in main memory or in a scratch file.
    """

    source: RowSource
    train_rows: int
    held_out: float
    seed: int
    engine: Engine
    memory: int | str | None = None
    scratch: str | None = None
    device: str | None = None


class Layer(NamedTuple):
    """One layer as it is applied to blocks: a rotation, or None, and splines.

    Attributes:
        rotation: Orthogonal matrix, float32, shape (D, D), or None.
        splines: Their knots, float32, or the codec that depends on the condition.
    """

    rotation: np.ndarray | None
    splines: Knots | ConditionalSpline | ShearedSpline


class Survey(NamedTuple):
    """A first look at the raw rows.

    Attributes:
        low: Smallest value of every coordinate, shape (D,).
        high: Largest.
        weight: Largest weight, and whether all are whole numbers.
        sample: Row numbers of the subsample that lie here, these rows, and their weights: (m,), (m, D) and (m,).
        condition: Smallest and largest entries of the conditions, (f,) each.
        digest: Of all numbers; those of several shards are added.
    """

    low: np.ndarray
    high: np.ndarray
    weight: tuple[float, bool]
    sample: tuple[np.ndarray, np.ndarray, np.ndarray]
    condition: tuple[np.ndarray, np.ndarray]
    digest: int


class Shard:
    """Blocks of rows, which it reads, and then transforms layer by layer.

    Every method is one pass over its blocks, and returns what can be merged with that of other shards: integer counts, extremes, or the nodes of
    a `TreeSum`.

    Args:
        plan: Of the fit.
        blocks: Numbers of its blocks.
    """

    def __init__(self, plan: Plan, blocks: range) -> None:
        self.plan = plan
        self.blocks = blocks
        self._store: BlockStore | None = None
        self._stopped = False

    def survey(self, before: Bijection | None, sample: np.ndarray) -> Survey:
        """Extremes of the rows after a first map, and some of the raw rows themselves."""
        features = self.plan.source.features
        low, high = np.full(features, np.inf), np.full(features, -np.inf)
        least, most = (np.full(self.plan.source.condition_features, end) for end in (np.inf, -np.inf))
        largest, whole, digest = 0.0, True, 0
        rows, numbers, weights = [], [], []
        for block in self._each():
            raw = self.plan.source.read_block(block)
            start = block * BLOCK
            here = sample[np.searchsorted(sample, start) : np.searchsorted(sample, start + len(raw.x))]
            numbers.append(here)
            rows.append(raw.x[here - start].astype(np.float64))
            weights.append(np.ones(len(here)) if raw.weight is None else raw.weight[here - start].astype(np.float64))
            digest += _digest(raw, block)
            x = _mapped(raw.x, before)[0]
            low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
            if raw.c is not None:
                least, most = np.minimum(least, raw.c.min(0)), np.maximum(most, raw.c.max(0))
            if raw.weight is not None:
                largest, whole = max(largest, float(raw.weight.max())), whole and bool((raw.weight % 1 == 0).all())
        none = (np.empty(0, np.int64), np.empty((0, features)), np.empty(0))
        sampled = (np.concatenate(numbers), np.concatenate(rows), np.concatenate(weights)) if rows else none
        return Survey(low, high, (largest, whole), sampled, (least, most), digest)

    def moments(self, before: Bijection | None, centre: np.ndarray, widths: np.ndarray, heaviest: float = 1.0) -> list[Any]:
        """Nodes of the sums of the training rows' weights, divided by a number, of their squares, of the rows that have any, of their distances to a
        centre, and of the squares of these.
        """
        total = TreeSum()
        for block in self._each():
            raw = self.plan.source.read_block(block)
            x = _mapped(self._dithered(raw.x, block, widths), before)[0] - centre
            weight = np.where(self.is_training(block), 1.0 if raw.weight is None else raw.weight / heaviest, 0.0)
            number = np.array([weight.sum(), weight @ weight, np.count_nonzero(weight)])
            total.add(block, {"number": number, "sum": weight @ x, "square": weight @ (x * x)})
        return total.nodes

    def load(self, before: Bijection, widths: np.ndarray, weight_scale: float, context: nn.Module | None = None) -> None:
        """Read all rows through the first maps, and their conditions through the context, and keep them as blocks."""
        source = self.plan.source
        self.close()
        self._store = store = self._new_store()
        for block in self._each():
            raw = source.read_block(block)
            z, ladj = _mapped(self._dithered(raw.x, block, widths), before)
            store.write(block, np.ascontiguousarray(z.T, dtype=np.float32))
            store.write(block, ladj, "ladj")
            if raw.weight is not None:
                store.write(block, np.rint(raw.weight * weight_scale).astype(np.int64), "weight")
            if raw.c is not None:
                store.write(block, np.ascontiguousarray(_embedded(raw.c, context).T, dtype=np.float32), "condition")
        # From here on the blocks are all that is needed.
        source.release()

    def count_keys(self, columns: slice) -> np.ndarray:
        """Training rows by the upper half of their keys, for some coordinates, int64, (columns, 65536)."""
        first = self._x(self.blocks[0])[columns] if len(self.blocks) else np.empty((columns.stop - columns.start, 0), np.float32)
        counts = np.zeros((len(first), 2**16), np.int64)
        for block in self._each():
            key_histogram_(np.ascontiguousarray(self._x(block)[columns]), counts, self._training(block), engine=self.plan.engine)
        return counts

    def count_fine(self, columns: slice, selected: np.ndarray, slots: int) -> np.ndarray:
        """Training rows in the selected cells by the next eight bits of their keys, int64, (columns, slots, 256)."""
        counts = np.zeros((len(selected), slots, 256), np.int64)
        for block in self._each():
            x = np.ascontiguousarray(self._x(block)[columns])
            refine_histogram_(x, selected, counts, self._training(block), engine=self.plan.engine)
        return counts

    def count_grid(self, rotation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotated training rows on the fixed grid, int64, (D, 4098), and their extremes, (D,) each. The blocks stay as they are."""
        counts = np.zeros((self.plan.source.features, BINS + 2), np.int64)
        low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        for block, x in self._rotated(rotation):
            histogram_(x, counts, self._training(block), engine=self.plan.engine)
            low, high = np.minimum(low, x.min(1)), np.maximum(high, x.max(1))
        return counts, low, high

    def count_conditional(self, rotation: np.ndarray | None, weights: nn.Module, sets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
        """Like `count_grid`, for each of the sets that are averaged: rows count with the set's weight at their condition.

        Returns:
            Counts (sets, D, 4098) of 2⁻¹⁶ rows, extremes, and nodes of the sums of the sets' weights and their squares, (2, sets).
        """
        counts = np.zeros((sets, self.plan.source.features, BINS + 2), np.int64)
        low, high = np.full(counts.shape[1], np.inf), np.full(counts.shape[1], -np.inf)
        total = TreeSum()
        for block, x in self._rotated(rotation):
            with torch.no_grad():
                share = weights(torch.from_numpy(np.ascontiguousarray(self._condition(block).T))).double().numpy().T
            training = self._training(block)
            number = np.rint(share * (PART if training is None else PART * training)).astype(np.int64)
            for one, count in zip(number, counts):
                histogram_(x, count, np.ascontiguousarray(one), engine=self.plan.engine)
            low, high = np.minimum(low, x.min(1)), np.maximum(high, x.max(1))
            part = number / PART
            total.add(block, np.stack([part.sum(1), (part**2).sum(1)]))
        return counts, low, high, total.nodes

    def count_sheared(
        self, rotation: np.ndarray | None, cosine: np.ndarray, matrix: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
        """Like `count_grid`, of rotated rows times cosines (D,) plus shifts, the product of a matrix (D, f) and the conditions.

        Returns:
            Counts, extremes, and nodes of the sums of the shifts of the rows counted, of the shape of the counts.
        """
        counts = np.zeros((self.plan.source.features, BINS + 2), np.int64)
        low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        total = TreeSum()
        for block, x in self._rotated(rotation):
            shift = matrix @ self._condition(block)
            x *= cosine[:, None]
            x += shift
            training = self._training(block)
            histogram_(x, counts, training, engine=self.plan.engine)
            low, high = np.minimum(low, x.min(1)), np.maximum(high, x.max(1))
            total.add(block, grid_sums(x, shift if training is None else shift * training.astype(np.float64)))
        return counts, low, high, total.nodes

    def conditions(self, limit: int) -> np.ndarray | None:
        """Different conditions of the rows, sorted, (m, f); None where there are more than a limit."""
        found = np.empty((0, self.plan.source.condition_features), np.float32)
        for block in self._each():
            found = np.unique(np.concatenate([found, self._condition(block).T]), axis=0)
            if len(found) > limit:
                return None
        return found

    def apply(self, layer: Layer, *, covariance: bool) -> list[Any]:
        """Send the blocks through a layer.

        Returns:
            Nodes of the sums over rows of weight, weight · NLL and weight · NLL², for training and validation, (2, 3); with ``covariance`` also of
            the first and second moments of the training rows.
        """
        store, total, bend_ = self._stored(), TreeSum(), bending(layer.splines, engine=self.plan.engine)
        for block, x in self._rotated(layer.rotation):
            ladj = store.read(block, "ladj")
            bend_(x, self._condition(block), ladj)
            store.write(block, x)
            store.write(block, ladj, "ladj")
            total.add(block, self._sums(block, x, ladj, covariance=covariance))
        return total.nodes

    def look(self, *, covariance: bool) -> list[Any]:
        """The sums of `apply`, without a layer."""
        total = TreeSum()
        for block in self._each():
            total.add(block, self._sums(block, self._x(block), self._stored().read(block, "ladj"), covariance=covariance))
        return total.nodes

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of the rows with these numbers (sorted) those that are here and have weight: numbers (m,), values (D, m), conditions (f, m) or None."""
        found, values, conditions = [], [], []
        for block in self._each():
            first, last = np.searchsorted(numbers, [block * BLOCK, (block + 1) * BLOCK])
            if last > first:
                here = numbers[first:last] - block * BLOCK
                if self.plan.source.has_weight:
                    here = here[self._stored().read(block, "weight")[here] > 0]
                found.append(here + block * BLOCK)
                values.append(self._x(block)[:, here])
                if self.plan.source.condition_features:
                    conditions.append(self._stored().read(block, "condition")[:, here])
        if not found:
            return np.empty(0, np.int64), np.empty((self.plan.source.features, 0), np.float32), None
        return np.concatenate(found), np.concatenate(values, 1), np.concatenate(conditions, 1) if conditions else None

    def stop(self) -> None:
        """End a pass that is under way in another thread, after its present block."""
        self._stopped = True

    def close(self) -> None:
        """Free the blocks."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def is_training(self, block: int) -> np.ndarray:
        """Which rows of a block are for training, shape (n,), bool."""
        return is_training(self.plan, np.arange(block * BLOCK, min((block + 1) * BLOCK, self.plan.source.rows)))

    def _each(self) -> Iterator[int]:
        """The numbers of the blocks, as long as nobody stops."""
        for block in self.blocks:
            if self._stopped:
                raise RuntimeError("Shard: stopped")
            yield block

    def _new_store(self) -> BlockStore:
        source = self.plan.source
        return choose_store(
            self.blocks,
            source.rows,
            source.features,
            memory=self.plan.memory,
            folder=self.plan.scratch,
            condition_features=source.condition_features,
            has_weight=source.has_weight,
        )

    def _stored(self) -> BlockStore:
        if self._store is None:
            raise RuntimeError("Shard: load comes first")
        return self._store

    def _x(self, block: int) -> np.ndarray:
        return self._stored().read(block)

    def _condition(self, block: int) -> np.ndarray:
        """Conditions of a block, (f, n)."""
        if self.plan.source.condition_features:
            return self._stored().read(block, "condition")
        return np.empty((0, self._x(block).shape[1]), np.float32)

    def _training(self, block: int) -> np.ndarray | None:
        """How often every row counts in training; None where all do, and do so once."""
        weight = self._stored().read(block, "weight") if self.plan.source.has_weight else None
        if self.plan.held_out == 0 and self.plan.train_rows == self.plan.source.rows:
            return weight
        is_training = self.is_training(block)
        return is_training.astype(np.int64) if weight is None else np.where(is_training, weight, 0)

    def _rotated(self, rotation: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
        """Block numbers and rotated blocks, which are the caller's."""
        for block in self._each():
            x = self._x(block)
            yield block, x.copy() if rotation is None else rotate(rotation, x, np.empty_like(x))

    def _dithered(self, x: np.ndarray, block: int, widths: np.ndarray) -> np.ndarray:
        if not widths.any():
            return x
        x = x.astype(np.float64)
        numbers = np.arange(block * BLOCK, block * BLOCK + len(x))
        for column in np.flatnonzero(widths):
            x[:, column] += widths[column] * keyed.uniform(self.plan.seed, numbers, int(column), "dither")
        return x

    def _sums(self, block: int, x: np.ndarray, ladj: np.ndarray, *, covariance: bool) -> dict[str, np.ndarray]:
        nll = 0.5 * np.einsum("dn,dn->n", x, x, dtype=np.float64) + 0.5 * len(x) * np.log(2 * np.pi) - ladj
        is_training = self.is_training(block)
        weight = self._stored().read(block, "weight").astype(np.float64) if self.plan.source.has_weight else np.ones(len(nll))
        sides = np.stack([np.where(side, weight, 0.0) for side in (is_training, ~is_training)])
        sums = {"nll": np.stack([sides.sum(1), sides @ nll, sides @ nll**2], 1), "weight2": (sides**2).sum(1)}
        if covariance:
            counted = x * sides[0].astype(np.float32)
            sums |= {"first": counted.sum(1, dtype=np.float64), "second": (counted @ x.T).astype(np.float64)}
        return sums


def _digest(raw: Rows, block: int) -> int:
    """Of the numbers of a block, and where it lies."""
    found = block
    for part in raw:
        if part is not None:
            found = zlib.crc32(np.ascontiguousarray(part, np.float64).data, found)
    return found


def is_training(plan: Plan, numbers: np.ndarray) -> np.ndarray:
    """Which of the rows with these numbers are for training, bool."""
    return (numbers < plan.train_rows) & ~keyed.chosen(plan.seed, numbers, plan.held_out, "validation")


def _embedded(c: np.ndarray, context: nn.Module | None) -> np.ndarray:
    if context is None:
        return c
    with torch.no_grad():
        return context(torch.from_numpy(c.astype(np.float32))).numpy()


def _mapped(x: np.ndarray, codec: Bijection | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) through a codec in double precision, with its log-determinants (n,)."""
    x = x.astype(np.float64)
    if codec is None:
        return x, np.zeros(len(x))
    with torch.no_grad():
        z, ladj = codec.encode_ladj(torch.from_numpy(x))
    return z.numpy(), _full(ladj, len(x))


def _full(ladj: Tensor, n: int) -> np.ndarray:
    return ladj.double().expand(n).numpy().copy()
