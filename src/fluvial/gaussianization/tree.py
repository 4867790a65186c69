"""Sums over blocks by a fixed tree, so that floating-point results do not depend on who added which block."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# An array, or several by name.
Value = np.ndarray | dict[str, np.ndarray]


class Partial(NamedTuple):
    """The sum over blocks index·2^level … (index + 1)·2^level − 1.

    Attributes:
        level: Height in the tree; 0 is a single block.
        index: Number among the nodes of this level.
        value: The sum, an array or a dict of arrays.
    """

    level: int
    index: int
    value: Any

    @property
    def start(self) -> int:
        """First block."""
        return self.index << self.level

    @property
    def stop(self) -> int:
        """One after the last block."""
        return (self.index + 1) << self.level


class TreeSum:
    """One worker's share of a sum over blocks, added up along a fixed binary tree.

    Neighbours (0, 1), (2, 3), … are added, then neighbours among these sums, and so on; an odd one at the end is carried up. A worker adds those
    pairs of which it has both halves, and keeps the rest apart, for `merge`: about 2 log₂ n values for n consecutive blocks. Blocks here and
    there work too, but every one without its neighbour is kept.

    Attributes:
        nodes: The sums so far, in the order of blocks: the largest complete subtrees.

    Example:
        >>> parts = [TreeSum(), TreeSum()]
        >>> for block, number in enumerate([1e16, 1.0, -1e16, 4.0, 2.0]):
        ...     parts[block >= 2].add(block, np.array([number]))
        >>> [(node.level, node.index) for node in parts[1].nodes]
        [(1, 1), (0, 4)]
        >>> merge([part.nodes for part in parts], blocks=5)
        array([6.])
    """

    def __init__(self) -> None:
        self.nodes: list[Partial] = []

    def add(self, block: int, value: Value) -> None:
        """Add the value of a block, an array or a dict of arrays of the same shapes for every block; it is copied.

        Integers are added as int64, all else as float64.

        Raises:
            ValueError: If the block does not come after those added before, or shapes or names differ from theirs.
        """
        if block < 0 or (self.nodes and block < self.nodes[-1].stop):
            before = f" after block {self.nodes[-1].stop - 1}" if self.nodes else ""
            raise ValueError(f"TreeSum: blocks are added once and in increasing order, got block {block}{before}")
        self._push(Partial(0, block, value))

    def _push(self, node: Partial) -> None:
        level, index, value = node.level, node.index, _copy(node.value)
        if self.nodes and _form(value) != _form(self.nodes[-1].value):
            raise ValueError(f"TreeSum: block {node.start} has {_form(value)}, expected {_form(self.nodes[-1].value)} as before")
        # A left neighbour of the same size can only be the last node.
        while index % 2 and self.nodes and self.nodes[-1][:2] == (level, index - 1):
            value = _add(self.nodes.pop().value, value)
            level, index = level + 1, index // 2
        self.nodes.append(Partial(level, index, value))


def merge(parts: Iterable[Sequence[tuple[int, int, Any]]], blocks: int) -> Value:
    """The sum over all blocks, from the nodes of all workers: the same bits whoever added which block, in any order of workers.

    Args:
        parts: Of every worker its ``TreeSum.nodes``.
        blocks: How many blocks there are.

    Returns:
        The sum, of the shape of one block's value.

    Raises:
        ValueError: If a block is missing or was added twice.
    """
    if blocks < 1:
        raise ValueError(f"merge: expected at least one block, got {blocks}")
    nodes = sorted((Partial(*node) for nodes in parts for node in nodes), key=lambda node: (node.start, node.level))
    total, covered = TreeSum(), 0
    for node in nodes:
        if node.start != covered:
            reached = f"block {covered} is missing" if node.start > covered else f"block {node.start} was added twice"
            raise ValueError(f"merge: {reached}; every one of the {blocks} blocks must be added by one worker")
        total._push(node)
        covered = node.stop
    if covered != blocks:
        what = f"block {covered} is missing" if covered < blocks else f"there are {covered}"
        raise ValueError(f"merge: {what}; every one of the {blocks} blocks must be added by one worker, and no other")
    # What is left has no neighbour of its size: odd ones, carried up from the right.
    value = total.nodes[-1].value
    for node in reversed(total.nodes[:-1]):
        value = _add(node.value, value)
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    array = np.asarray(value)
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float64)


def _add(left: Any, right: Any) -> Any:
    """Their sum, in place of the left one."""
    if isinstance(left, dict):
        for name, part in left.items():
            part += right[name]
    else:
        left += right
    return left


def _form(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _form(value[name]) for name in sorted(value)}
    return f"{value.dtype} {value.shape}"
