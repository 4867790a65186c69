"""The share of the rows that lives on a torch device, and what is done with it there."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.codecs import AnchorWeights, Bijection, ConditionalSpline, ShearedSpline
from fluvial.codecs.marginal_spline import Knots, spline_encode
from fluvial.gaussianization.device_store import DeviceStore, elements_at_a_time, wide_type
from fluvial.gaussianization.kernel_histogram import BINS
from fluvial.gaussianization.shard import PART, Layer, Plan, Shard
from fluvial.gaussianization.sources import BLOCK
from fluvial.gaussianization.store import BlockStore
from fluvial.gaussianization.tree import TreeSum

# Rows x (D, n) with conditions c (f, n) -> z (D, n) and log-determinants (n,).
Bending = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_PER_BIN = 4  # numbers of the tables of knots, and some made of them, for every bin
_SUMMED = 2**27  # bytes of sums that may wait on the device before they are fetched


class DeviceShard(Shard):
    """A shard whose rows lie in one float32 tensor (D, n) on a device, over which every pass is a few operations of torch for many blocks at once.

    Raw rows are read, and sent through the first maps, on the processor. From then on nothing comes back but counts, extremes, sums of blocks, and
    the few rows that are asked for. Counts are those of `Shard`, exactly, where the rows are the same; what layers make of them differs in the last
    digits.

    Args:
        plan: Of the fit; it names the device.
        blocks: Numbers of its blocks, consecutive.
    """

    def __init__(self, plan: Plan, blocks: range) -> None:
        super().__init__(plan, blocks)
        self.device = torch.device(plan.device or "cpu")
        self._wide = wide_type(self.device)
        self._elements = elements_at_a_time(self.device)
        self._sides = torch.empty(2, 0, dtype=torch.bool)

    def load(self, before: Bijection, widths: np.ndarray, weight_scale: float, context: nn.Module | None = None) -> None:
        """Read all rows through the first maps, and bring them to the device."""
        super().load(before, widths, weight_scale, context)
        # Which rows are for training, and which for validation; of those that only fill the last block neither.
        sides = np.zeros((2, len(self.blocks) * BLOCK), bool)
        for position, block in enumerate(self._each()):
            training = self.is_training(block)
            sides[:, position * BLOCK : position * BLOCK + len(training)] = training, ~training
        self._sides = torch.from_numpy(sides).to(self.device)

    def count_keys(self, columns: slice) -> np.ndarray:
        """Training rows by the upper half of their keys, for some coordinates, int64, (columns, 65536)."""
        counts = self._zeros(self._part("x")[columns].shape[0], 2**16 + 1)
        for rows in self._pieces():
            x = self._part("x")[columns, rows]
            _count_(counts, torch.where(x == x, (keys(x) >> 16) + 2**15, 2**16), self._counted(rows))
        return _kept(counts)

    def count_fine(self, columns: slice, selected: np.ndarray, slots: int) -> np.ndarray:
        """Training rows in the selected cells by the next eight bits of their keys, int64, (columns, slots, 256)."""
        chosen = torch.from_numpy(selected).to(self.device, torch.int64)
        counts = self._zeros(len(chosen), slots * 256 + 1)
        for rows in self._pieces():
            x = self._part("x")[columns, rows]
            key = keys(x)
            slot = chosen.gather(1, (key >> 16) + 2**15)
            _count_(counts, torch.where((slot >= 0) & (x == x), slot * 256 + ((key & 0xFFFF) >> 8), slots * 256), self._counted(rows))
        return _kept(counts).reshape(len(chosen), slots, 256)

    def count_grid(self, rotation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotated training rows on the fixed grid, int64, (D, 4098), and their extremes, (D,) each."""
        counts, extremes = self._zeros(self.plan.source.features, BINS + 3), _Extremes(self.plan.source.features, self.device)
        for rows, x in self._turned(rotation):
            _count_(counts, grid_cells(x), self._counted(rows))
            extremes.add(x)
        return _kept(counts), *extremes.found()

    def count_conditional(self, rotation: np.ndarray | None, weights: nn.Module, sets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
        """Like `count_grid`, for each of the sets that are averaged; see `Shard.count_conditional`."""
        features = self.plan.source.features
        counts, extremes = torch.stack([self._zeros(features, BINS + 3)] * sets), _Extremes(features, self.device)
        sums, weights = _BlockSums(self.blocks), copy.deepcopy(weights).to(self.device)
        for rows, x in self._turned(rotation, width=sets * self.plan.source.condition_features):
            with torch.no_grad():
                share = weights(self._part("condition")[:, rows].mT).mT.to(self._wide)
            number = (share * (PART * self._counted(rows))).round().long()
            cell = grid_cells(x)
            if _by_class(weights):
                # A row counts in one set only.
                _count_(counts, cell, number.sum(0), of=share.argmax(0))
            else:
                for count, one in zip(counts, number):
                    _count_(count, cell, one)
            extremes.add(x)
            part = (number.to(self._wide) / PART).unflatten(-1, (-1, BLOCK))
            sums.add({"": torch.stack([part.sum(-1), part.square().sum(-1)]).movedim(-1, 0)})
        return _kept(counts), *extremes.found(), sums.nodes()

    def conditions(self, limit: int) -> np.ndarray | None:
        """Different conditions of the rows, sorted, (m, f); None where there are more than a limit."""
        found = torch.empty(0, self.plan.source.condition_features, device=self.device)
        for rows in self._pieces():
            found = torch.cat([found, self._part("condition")[:, rows].mT]).unique(dim=0)
            if len(found) > limit:
                return None
        return found.cpu().numpy()

    def apply(self, layer: Layer, *, covariance: bool) -> list[Any]:
        """Send the rows through a layer, and sum as `Shard.apply` does."""
        bend, sums = self._bending(layer.splines), _BlockSums(self.blocks)
        for rows, x in self._turned(layer.rotation):
            z, added = bend(x, self._condition_of(rows))
            self._part("x")[:, rows] = z
            self._part("ladj")[rows] += added
            sums.add(self._sums_of(rows, z, covariance=covariance))
        return sums.nodes()

    def look(self, *, covariance: bool) -> list[Any]:
        """The sums of `apply`, without a layer."""
        sums = _BlockSums(self.blocks)
        for rows, x in self._turned(None):
            sums.add(self._sums_of(rows, x, covariance=covariance))
        return sums.nodes()

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of the rows with these numbers (sorted) those that are here and have weight: numbers (m,), values (D, m), conditions (f, m) or None."""
        first, last = np.searchsorted(numbers, [self.blocks.start * BLOCK, self.blocks.stop * BLOCK])
        numbers = numbers[first:last]
        here = torch.from_numpy(numbers - self.blocks.start * BLOCK).to(self.device)
        if self.plan.source.has_weight:
            weighty = self._part("weight").reshape(-1).index_select(0, here) > 0
            here, numbers = here[weighty], numbers[weighty.cpu().numpy()]
        values = self._part("x").index_select(1, here).cpu().numpy()
        if not self.plan.source.condition_features or not len(here):
            return numbers, values, None
        return numbers, values, self._part("condition").index_select(1, here).cpu().numpy()

    def _new_store(self) -> BlockStore:
        source = self.plan.source
        return DeviceStore(
            self.blocks,
            source.rows,
            source.features,
            device=self.device,
            condition_features=source.condition_features,
            has_weight=source.has_weight,
            memory=self.plan.memory,
        )

    def _part(self, name: str) -> Tensor:
        store = self._stored()
        if not isinstance(store, DeviceStore):
            raise TypeError(f"DeviceShard: expected rows on a device, got a {type(store).__name__}")
        return store.tensor(name)

    def _condition_of(self, rows: slice) -> Tensor:
        return self._part("condition")[:, rows] if self.plan.source.condition_features else self._part("x")[:0, rows]

    def _zeros(self, features: int, cells: int) -> Tensor:
        return torch.zeros(features, cells, dtype=torch.int64, device=self.device)

    def _pieces(self, width: int = 1) -> Iterator[slice]:
        """The rows in stretches of whole blocks, as long as nobody stops."""
        step = max(1, self._elements // (BLOCK * max(width, self.plan.source.features))) * BLOCK
        for start in range(0, len(self.blocks) * BLOCK, step):
            if self._stopped:
                raise RuntimeError("Shard: stopped")
            yield slice(start, min(start + step, len(self.blocks) * BLOCK))

    def _turned(self, rotation: np.ndarray | None, *, width: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Stretches of rows, rotated; without a rotation they are the rows themselves."""
        matrix = None if rotation is None else torch.from_numpy(rotation).to(self.device)
        for rows in self._pieces(width):
            x = self._part("x")[:, rows]
            yield rows, x if matrix is None else matrix @ x

    def _counted(self, rows: slice) -> Tensor:
        """How often every row counts in training, int64."""
        training = self._sides[0, rows]
        return self._part("weight")[rows] * training if self.plan.source.has_weight else training.long()

    def _bending(self, splines: Knots | ConditionalSpline | ShearedSpline) -> Bending:
        if isinstance(splines, Knots):
            knots = Knots(*(None if part is None else part.to(self.device) for part in splines))
            return lambda x, c: self._in_parts(lambda part, _: _bent(part, knots, self._wide), x, c, 1)
        if isinstance(splines, ShearedSpline):
            raise TypeError("DeviceShard: splines that lean towards a condition are fitted without a device")
        codec = copy.deepcopy(splines).to(self.device)

        def through(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                z, ladj = codec.encode_ladj(x.mT, c.mT)
            return z.mT, ladj.to(self._wide)

        # Other than classes, every row has knots of its own, which take room.
        return lambda x, c: self._in_parts(through, x, c, 1 if _by_class(codec.weights) else _PER_BIN * (codec.bins + 1))

    def _in_parts(self, bend: Bending, x: Tensor, c: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Rows one part after the other, where each of their elements takes as much room as so many."""
        size = max(1, self._elements // (len(x) * width))
        if x.shape[1] <= size:
            return bend(x, c)
        z, ladj = zip(*(bend(*parts) for parts in zip(x.split(size, 1), c.split(size, 1))))
        return torch.cat(z, 1), torch.cat(ladj)

    def _sums_of(self, rows: slice, x: Tensor, *, covariance: bool) -> dict[str, Tensor]:
        """The sums of `Shard.apply` over every block of a stretch, whose number is their first axis."""
        nll = 0.5 * x.square().sum(0, dtype=self._wide) + 0.5 * len(x) * np.log(2 * np.pi) - self._part("ladj")[rows]
        weight = self._sides[:, rows].to(self._wide)
        if self.plan.source.has_weight:
            weight *= self._part("weight")[rows]
        sides, nll = weight.unflatten(-1, (-1, BLOCK)), nll.unflatten(-1, (-1, BLOCK))
        weighted = sides * nll
        moments = torch.stack([sides.sum(-1), weighted.sum(-1), (weighted * nll).sum(-1)], -1)
        sums = {"nll": moments.movedim(1, 0), "weight2": sides.square().sum(-1).mT}
        if covariance:
            counted = (x * weight[0].to(x.dtype)).unflatten(-1, (-1, BLOCK))
            # One product for every block.
            second = counted.movedim(1, 0) @ x.unflatten(-1, (-1, BLOCK)).permute(1, 2, 0)
            sums |= {"first": counted.sum(-1, dtype=self._wide).mT, "second": second}
        return sums


def keys(x: Tensor) -> Tensor:
    """The integers that order float32, as `kernel_histogram.to_keys` gives them, but with a sign: less 2³¹; int64.

    Example:
        >>> keys(torch.tensor([-1.0, -0.0, 0.0, 1.0])).tolist()
        [-1065353217, 0, 0, 1065353216]
    """
    bits = torch.where(x == 0, 0.0, x).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def grid_cells(x: Tensor) -> Tensor:
    """The bins of `kernel_histogram.histogram_`, int64; a bin of its own, after the last one, for what is no number.

    Example:
        >>> grid_cells(torch.tensor([-9.0, 0.0, 0.001, 8.0, torch.nan])).tolist()
        [0, 2049, 2049, 4097, 4098]
    """
    # Exact: a product with a power of 2.
    return (x * 256).floor_().clamp_(-2049, 2048).nan_to_num_(nan=2049.0).long().add_(2049)


class _Extremes:
    """Smallest and largest values of every coordinate, which stay on the device until they are asked for."""

    def __init__(self, features: int, device: torch.device) -> None:
        self._low = torch.full((features,), torch.inf, device=device)
        self._high = -self._low

    def add(self, x: Tensor) -> None:
        self._low, self._high = torch.minimum(self._low, x.amin(1)), torch.maximum(self._high, x.amax(1))

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        return self._low.cpu().double().numpy(), self._high.cpu().double().numpy()


class _BlockSums:
    """Sums of every block, which wait on the device so that its queue does not run empty, and are added up in main memory along the tree."""

    def __init__(self, blocks: range) -> None:
        self._blocks = iter(blocks)
        self._waiting: list[dict[str, Tensor]] = []
        self._bytes = 0
        self._total = TreeSum()

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add those of the next blocks: their number is the first axis. A single array without a name has the name ""."""
        self._waiting.append(sums)
        self._bytes += sum(part.nbytes for part in sums.values())
        if self._bytes > _SUMMED:
            self._fetch()

    def nodes(self) -> list[Any]:
        self._fetch()
        return self._total.nodes

    def _fetch(self) -> None:
        if self._waiting:
            fetched = {name: torch.cat([sums[name] for sums in self._waiting]).cpu().numpy() for name in self._waiting[0]}
            for row in range(len(next(iter(fetched.values())))):
                values = {name: part[row] for name, part in fetched.items()}
                self._total.add(next(self._blocks), values.get("", values))
        self._waiting, self._bytes = [], 0


def _by_class(weights: nn.Module) -> bool:
    """Whether one set has all the weight at every condition."""
    return isinstance(weights, AnchorWeights) and weights.bandwidth == 0


def _count_(counts: Tensor, cell: Tensor, weight: Tensor, *, of: Tensor | None = None) -> None:
    """Add the weights of rows (n,) to the counts (D, cells) of their cells (D, n); of several sets of counts, (sets, D, cells), to those of one."""
    features, cells = counts.shape[-2:]
    place = cell + cells * torch.arange(features, device=cell.device).unsqueeze(1)
    if of is not None:
        place += of * (features * cells)
    counts.view(-1).scatter_add_(0, place.view(-1), weight.expand_as(place).reshape(-1))


def _kept(counts: Tensor) -> np.ndarray:
    """Without the last cell, in which lies what is not counted."""
    return np.ascontiguousarray(counts[..., :-1].cpu().numpy())


def _bent(x: Tensor, knots: Knots, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows through splines, and the sums of the logarithms of their slopes."""
    z, log_slope = spline_encode(x, knots._replace(shape=None))
    if knots.shape is not None:
        # Pareto tails take many operations, and few elements lie in them.
        coordinate, row = ((x < knots.x[:, :1]) | (x > knots.x[:, -1:])).nonzero(as_tuple=True)
        ends = (part[:, [0, -1]][coordinate] for part in (knots.x, knots.y, knots.slope))
        value, log_tail = spline_encode(x[coordinate, row].unsqueeze(-1), Knots(*ends, knots.shape[coordinate]))
        z[coordinate, row], log_slope[coordinate, row] = value[:, 0], log_tail[:, 0]
    return z, log_slope.sum(0, dtype=wide)
