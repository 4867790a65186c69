"""Where blocks live between layers: in memory, or in a scratch file."""

import errno
import math
import os
import re
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fluvial.gaussianization.sources import BLOCK

# Largest share of the memory given that blocks may take; the rest is for reading, statistics and the block in hand.
SHARE = 0.5
# What systems say where there is no more room: the disk, a quota, the largest file.
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
UNITS = {"": 1, **{f"{prefix}{mark}": base**power for power, prefix in enumerate("kmgt", 1) for mark, base in (("", 1000), ("i", 1024))}}


class BlockStore(ABC):
    """The blocks one process works on, each with its numbers per row.

    Every block has up to four parts: "x" (D, n) float32; "ladj" (n,) float64, 0 until it is written; "weight" (n,) int64; "condition" (f, n)
    float32. Use it as a context, or call `close`.

    Args:
        blocks: Numbers of the blocks, a range (any step).
        rows: Rows of all the data: only the last block of all is shorter than 8192.
        features: D.
        condition_features: f, 0 without condition.
        has_weight: Whether rows have weights.

    Raises:
        ValueError: If blocks are outside the data, or a number is not positive.
    """

    def __init__(self, blocks: range, rows: int, features: int, *, condition_features: int = 0, has_weight: bool = False) -> None:
        last = -(-rows // BLOCK)
        if rows < 1 or features < 1 or condition_features < 0:
            raise ValueError(f"{type(self).__name__}: expected rows and features ≥ 1, got {rows} rows, {features} and {condition_features} features")
        # min and max of a range would look at every number.
        ends = (blocks[0], blocks[-1]) if len(blocks) else (0, 0)
        if not 0 <= min(ends) <= max(ends) < last:
            raise ValueError(f"{type(self).__name__}: {rows} rows have blocks 0 to {last - 1}, got {blocks}")
        self.blocks = blocks
        self.rows = rows
        self.features = features
        self.condition_features = condition_features
        self.has_weight = has_weight
        # Columns (None: one number per row, without an axis of features) and type of every part.
        self.parts: dict[str, tuple[int | None, np.dtype]] = {"x": (features, np.dtype(np.float32)), "ladj": (None, np.dtype(np.float64))}
        if has_weight:
            self.parts["weight"] = (None, np.dtype(np.int64))
        if condition_features:
            self.parts["condition"] = (condition_features, np.dtype(np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes that all blocks take."""
        return len(self.blocks) * block_bytes(self.features, condition_features=self.condition_features, has_weight=self.has_weight)

    @abstractmethod
    def write(self, block: int, values: np.ndarray, part: str = "x") -> None:
        """Keep a part of a block; it is copied.

        Raises:
            ValueError: If there is no such block or part here, or shape or kind of number is not its own.
            OSError: If the disk is full.
        """

    @abstractmethod
    def read(self, block: int, part: str = "x") -> np.ndarray:
        """A part of a block, C order.

        It may be changed in place, but only `write` makes sure that the store knows.

        Raises:
            ValueError: If there is no such block or part here, or it was never written.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the blocks take; a closed store can be closed again."""

    def __enter__(self) -> "BlockStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def shape(self, block: int, part: str = "x") -> tuple[int, ...]:
        """Shape of a part of a block.

        Raises:
            ValueError: If there is no such block or part here.
        """
        # A range looks at every number for what is not a plain int.
        if int(block) not in self.blocks:
            raise ValueError(f"{type(self).__name__}: no block {block} here, only {self.blocks}")
        if part not in self.parts:
            raise ValueError(f"{type(self).__name__}: no part {part!r}; there are {', '.join(map(repr, self.parts))}")
        columns, n = self.parts[part][0], min(BLOCK, self.rows - block * BLOCK)
        return (n,) if columns is None else (columns, n)

    def check(self, block: int, values: np.ndarray, part: str) -> None:
        """Refuse values that do not fit.

        Raises:
            ValueError: If shape or kind of number is not that of the part of the block.
        """
        shape, dtype = self.shape(block, part), self.parts[part][1]
        if values.shape != shape or not np.can_cast(values.dtype, dtype, "same_kind"):
            raise ValueError(f"{type(self).__name__}: {part!r} of block {block} is {dtype} of shape {shape}, got {values.dtype} of {values.shape}")


class MemoryStore(BlockStore):
    """Blocks in memory; `read` gives the stored array itself, so what is changed in place is changed here. Arguments as for `BlockStore`.

    Example:
        >>> store = MemoryStore(range(1), 3, 2)
        >>> store.write(0, np.ones((2, 3), np.float32))
        >>> store.read(0)[0] *= 5
        >>> store.read(0).tolist(), store.read(0, "ladj").tolist()
        ([[5.0, 5.0, 5.0], [1.0, 1.0, 1.0]], [0.0, 0.0, 0.0])
    """

    def __init__(self, blocks: range, rows: int, features: int, *, condition_features: int = 0, has_weight: bool = False) -> None:
        super().__init__(blocks, rows, features, condition_features=condition_features, has_weight=has_weight)
        self._held: dict[tuple[int, str], np.ndarray] = {}

    def write(self, block: int, values: np.ndarray, part: str = "x") -> None:
        """Keep a part of a block; the array that `read` gave is only recognised."""
        self.check(block, values, part)
        held = self._held.get((block, part))
        if held is None:
            self._held[block, part] = np.array(values, self.parts[part][1], order="C")
        elif held is not values:
            held[...] = values

    def read(self, block: int, part: str = "x") -> np.ndarray:
        """A part of a block: the stored array itself."""
        shape = self.shape(block, part)
        if part == "ladj" and (block, part) not in self._held:
            self._held[block, part] = np.zeros(shape)
        if (block, part) not in self._held:
            raise ValueError(f"MemoryStore: {part!r} of block {block} was never written")
        return self._held[block, part]

    def close(self) -> None:
        """Free the memory."""
        self._held.clear()


class FileStore(BlockStore):
    """Blocks in a scratch file, read and written at offsets: one block at a time is in memory.

    The file has no name (on POSIX systems), or is deleted by the system when it is closed (Windows): it is gone however the process ends.
    Where the folder for temporary files is itself in memory (tmpfs), give another one.

    Args:
        blocks: Numbers of the blocks, a range (any step).
        rows: Rows of all the data: only the last block of all is shorter than 8192.
        features: D.
        folder: Where the scratch file goes; default that of the system for temporary files.
        condition_features: f, 0 without condition.
        has_weight: Whether rows have weights.

    Raises:
        ValueError: If blocks are outside the data, or a number is not positive.
        OSError: If the folder is missing or not writable, or the disk has no room for all blocks.

    Example:
        >>> with FileStore(range(1), 3, 2) as store:
        ...     store.write(0, np.ones((2, 3), np.float32))
        ...     store.read(0).tolist(), store.read(0, "ladj").tolist()
        ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        blocks: range,
        rows: int,
        features: int,
        *,
        folder: str | os.PathLike[str] | None = None,
        condition_features: int = 0,
        has_weight: bool = False,
    ) -> None:
        super().__init__(blocks, rows, features, condition_features=condition_features, has_weight=has_weight)
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"scratch file: there is no folder {self.folder}; create it first")
        free = shutil.disk_usage(self.folder).free
        if free < self.nbytes:
            raise OSError(errno.ENOSPC, self._full(f"has {_size(free)} free"))
        try:
            self._file = tempfile.TemporaryFile(buffering=0, dir=self.folder, prefix="fluvial-")  # noqa: SIM115 (open as long as the store)
        except OSError as error:
            raise OSError(error.errno, f"scratch file: cannot write into {self.folder} ({error.strerror}); give another folder") from None
        self._lock = threading.Lock()
        self._offsets: dict[str, int] = {}
        at = 0
        for part, (columns, dtype) in self.parts.items():
            self._offsets[part] = at
            at += BLOCK * (1 if columns is None else columns) * dtype.itemsize
        self._record = at
        self._written: set[tuple[int, str]] = set()

    def write(self, block: int, values: np.ndarray, part: str = "x") -> None:
        """Write a part of a block into the file."""
        self.check(block, values, part)
        rest = _bytes(np.ascontiguousarray(values, self.parts[part][1]))
        at = self.blocks.index(int(block)) * self._record + self._offsets[part]
        try:
            while len(rest):
                count = self._write_at(rest, at)
                rest, at = rest[count:], at + count
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise OSError(error.errno, self._full(f"refused block {block} ({error.strerror})")) from None
        self._written.add((block, part))

    def read(self, block: int, part: str = "x") -> np.ndarray:
        """A part of a block: a new array."""
        shape = self.shape(block, part)
        if (block, part) not in self._written:
            if part == "ladj":
                return np.zeros(shape)
            raise ValueError(f"FileStore: {part!r} of block {block} was never written")
        values = np.empty(shape, self.parts[part][1])
        rest, at = _bytes(values), self.blocks.index(int(block)) * self._record + self._offsets[part]
        while len(rest):
            count = self._read_at(rest, at)
            if not count:
                raise OSError(errno.EIO, f"scratch file in {self.folder}: block {block} is cut off; is the disk failing?")
            rest, at = rest[count:], at + count
        return values

    def close(self) -> None:
        """Remove the scratch file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _write_at(self, data: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), data, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.write(data)

    def _read_at(self, data: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [data], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(data)

    def _full(self, what: str) -> str:
        return (
            f"disk full: the scratch file needs {_size(self.nbytes)} for {len(self.blocks)} blocks, but {self.folder} {what}; "
            "free space there, give another folder, or more memory"
        )


def choose_store(
    blocks: range,
    rows: int,
    features: int,
    *,
    memory: int | str | None = None,
    folder: str | os.PathLike[str] | None = None,
    condition_features: int = 0,
    has_weight: bool = False,
) -> BlockStore:
    """A store in memory where the blocks take no more than half of it, else in a scratch file.

    Args:
        blocks: Numbers of the blocks this process works on.
        rows: Rows of all the data.
        features: D.
        memory: Bytes this process may take, as a number or a text such as "500M"; default what is free on the machine, which is too much where
            several processes share it.
        folder: Where a scratch file goes; default that of the system for temporary files.
        condition_features: f, 0 without condition.
        has_weight: Whether rows have weights.

    Example:
        >>> type(choose_store(range(2), 10_000, 3, memory="500M")).__name__
        'MemoryStore'
    """
    budget = available_memory() if memory is None else parse_size(memory)
    need = len(blocks) * block_bytes(features, condition_features=condition_features, has_weight=has_weight)
    if need <= SHARE * budget:
        return MemoryStore(blocks, rows, features, condition_features=condition_features, has_weight=has_weight)
    return FileStore(blocks, rows, features, folder=folder, condition_features=condition_features, has_weight=has_weight)


def block_bytes(features: int, *, condition_features: int = 0, has_weight: bool = False) -> int:
    """Bytes of a full block with all its parts.

    Example:
        >>> block_bytes(32) == 8192 * (32 * 4 + 8)
        True
    """
    return BLOCK * (4 * (features + condition_features) + 8 + (8 if has_weight else 0))


def parse_size(size: int | str) -> int:
    """Bytes from a number or a text: k, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024; a B may follow.

    Raises:
        ValueError: If it is no such size, or not positive.

    Example:
        >>> parse_size("500M"), parse_size("2 GiB"), parse_size(1024)
        (500000000, 2147483648, 1024)
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)b?\s*", size.lower())
        number = math.floor(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    else:
        number = 0 if isinstance(size, bool) or not isinstance(size, int | np.integer) else int(size)
    if number < 1:
        raise ValueError(f"memory: expected a number of bytes or a text such as '500M' or '2GiB', got {size!r}")
    return number


def available_memory() -> int:
    """Bytes this process could take now: free on the machine, and within the limit of its control group (Linux).

    Example:
        >>> available_memory() > 0
        True
    """
    return max(1, min(_free_on_machine(), *_free_in_groups()))


def _free_on_machine() -> int:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        # Half of all: how much of it is free is not told in one way on all systems.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 2**32


def _free_in_groups() -> Iterable[int]:
    root = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            yield int((root / limit).read_text()) - int((root / used).read_text())
        except (OSError, ValueError):
            # No such group, or no limit ("max").
            yield 2**63


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
