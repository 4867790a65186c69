"""Where rows come from: arrays, files and folders of files, read a range of rows at a time."""

import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluvial.data import Dataset, as_dataset
from fluvial.data.load import load
from fluvial.data.table import choose
from fluvial.manifolds import Euclidean

# Rows of a block: row r belongs to block r // BLOCK, whatever the files, chunks or workers.
BLOCK = 8192


class Rows(NamedTuple):
    """Some consecutive rows, arrays of the reader's own.

    Attributes:
        x: Shape (n, D), float32 or float64, C order.
        c: Condition, shape (n, f), or None.
        weight: Shape (n,), float64, or None where all rows count alike.
    """

    x: np.ndarray
    c: np.ndarray | None
    weight: np.ndarray | None


class RowSource(ABC):
    """Rows by their number, read a range at a time, from wherever they are.

    A source can be pickled: what it reads from files is opened again by the process that reads.

    Attributes:
        rows: How many there are.
        features: Columns D of x.
        names: Column names of x, or None.
        condition_features: Columns f of the condition, 0 without one.
        condition_names: Column names of the condition, or None.
        has_weight: Whether rows have weights.
    """

    rows: int
    features: int
    names: tuple[str, ...] | None
    condition_features: int
    condition_names: tuple[str, ...] | None
    has_weight: bool

    @property
    def blocks(self) -> int:
        """Number of blocks of 8192 rows, the last of which may be shorter."""
        return -(-self.rows // BLOCK)

    @abstractmethod
    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop − 1, for any 0 ≤ start ≤ stop ≤ rows; the same numbers however they are cut into ranges.

        Raises:
            IndexError: If there are no such rows.
            ValueError: If an entry is missing, NaN or infinite, or a weight negative, naming column and row; if a file is not what it was.
        """

    def read_block(self, block: int) -> Rows:
        """Rows of block number `block`."""
        return self.read(block * BLOCK, min((block + 1) * BLOCK, self.rows))

    def release(self) -> None:  # noqa: B027 - most sources hold nothing
        """Free what is held of the files; the next range opens them again."""

    def check_range(self, start: int, stop: int) -> None:
        """Refuse ranges that are not there.

        Raises:
            IndexError: If not 0 ≤ start ≤ stop ≤ rows.
        """
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of a source of {self.rows} rows")


def open_rows(
    data: Any,
    *,
    columns: str | Sequence[str] | None = None,
    condition: str | Sequence[str] | None = None,
    weight: str | None = None,
) -> RowSource:
    """Whatever holds samples, as rows that are read a range at a time.

    Memory maps, ``.npy`` and Parquet files stay on disk; of Parquet, no more than one batch of a row group is held. Other files are loaded
    whole by `fluvial.data.load`.

    Args:
        data: An array or tensor of shape (n, D), a memory map, a tuple (x, c) or (x, c, weight) of these, a `Dataset`, a DataFrame, the path of
            a file, or of a folder of ``.parquet`` files, whose rows follow each other in the order of their names.
        columns: Columns of a file or DataFrame that become x; default all that are not condition or weight (of Parquet: all such that hold numbers).
        condition: Columns that become the condition c.
        weight: Column that holds the weights.

    Returns:
        A source with x of shape (rows, D).

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If there are no rows, shapes do not fit, a column is missing or holds no numbers, samples are not vectors in flat space, or
            a file is broken.
        TypeError: If the data is of none of these kinds, or columns are chosen where there are none.

    Example:
        >>> source = open_rows((np.arange(6.0).reshape(3, 2), np.array([0.1, 0.2, 0.3])))
        >>> source.rows, source.features, source.condition_features
        (3, 2, 1)
        >>> source.read(1, 3).x.tolist()
        [[2.0, 3.0], [4.0, 5.0]]
    """
    wishes: dict[str, Any] = {"columns": columns, "condition": condition, "weight": weight}
    if isinstance(data, RowSource):
        return data
    if isinstance(data, str | os.PathLike):
        return _open_path(Path(data), wishes)
    parts = data if isinstance(data, tuple) else (data,)
    # Arrays are not copied into a Dataset, which memory may not hold; lists and frames are.
    if 1 <= len(parts) <= 3 and all(wish is None for wish in wishes.values()) and isinstance(parts[0], np.ndarray | Tensor):
        return ArrayRows(*parts)
    return _from_dataset(as_dataset(data, **wishes))


class FileArray:
    """An array in a file, of shape (n,) or (n, D), whose rows are read by offset.

    Not a memory map: pages of a map stay resident and count as memory of the process.

    Args:
        path: The file.
        dtype: Type of its numbers.
        shape: (n,) or (n, D).
        offset: Byte where the first row begins.
        column_stride: Bytes from one column to the next of an array written column by column; None for one written row by row.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.bin"
        >>> np.arange(6.0).tofile(path)
        >>> FileArray(path, np.dtype(float), (3, 2))[1:2].tolist()
        [[2.0, 3.0]]
    """

    def __init__(
        self, path: str | os.PathLike[str], dtype: np.dtype, shape: tuple[int, ...], *, offset: int = 0, column_stride: int | None = None
    ) -> None:
        self.path = os.path.abspath(path)
        self.dtype = np.dtype(dtype)
        self.shape = tuple(shape)
        self.offset = offset
        self.column_stride = column_stride

    @property
    def ndim(self) -> int:
        """1 or 2."""
        return len(self.shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        size = self.dtype.itemsize
        # Opened for every range: nothing to close, to share between threads, or to send to another process.
        with open(self.path, "rb", buffering=0) as file:
            if self.ndim == 2 and self.column_stride is not None:
                found = np.empty((self.shape[1], stop - start), self.dtype)
                for k, column in enumerate(found):
                    self._fill(file, self.offset + k * self.column_stride + start * size, column)
                return found.T
            found = np.empty((stop - start, *self.shape[1:]), self.dtype)
            self._fill(file, self.offset + start * size * math.prod(self.shape[1:]), found)
            return found

    def _fill(self, file: Any, offset: int, array: np.ndarray) -> None:
        file.seek(offset)
        rest = memoryview(array.reshape(-1).view(np.uint8))
        while len(rest):
            count = file.readinto(rest)
            if not count:
                raise ValueError(
                    f"{self.path}: the file ends early, {len(rest)} bytes are missing of the shape {self.shape} it had when it was opened"
                )
            rest = rest[count:]


class Selected:
    """Some columns of an array of shape (n, D), as one of shape (n, k), or (n,) for a single number."""

    def __init__(self, array: Any, columns: list[int] | int) -> None:
        self.array = array
        self.columns = columns
        self.dtype = array.dtype
        self.shape = (array.shape[0],) if isinstance(columns, int) else (array.shape[0], len(columns))

    @property
    def ndim(self) -> int:
        """1 or 2."""
        return len(self.shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.array[rows][:, self.columns]


class ArrayRows(RowSource):
    """Rows of arrays: in memory, on a device, or in files.

    Args:
        x: Shape (n, D) or (n,), which counts as (n, 1): array, tensor, memory map, or anything with shape, dtype and slices of rows.
        c: Condition, shape (n, f) or (n,), or None.
        weight: Shape (n,), or None.
        names: Column names of x.
        condition_names: Column names of c.
        where: What to call the data in messages.

    Raises:
        ValueError: If shapes or row counts do not fit, or there are no rows.
        TypeError: If something is not made of numbers.
    """

    def __init__(
        self,
        x: Any,
        c: Any = None,
        weight: Any = None,
        *,
        names: Sequence[str] | None = None,
        condition_names: Sequence[str] | None = None,
        where: str = "data",
    ) -> None:
        self.x = _part(x, f"{where}: x")
        self.c = None if c is None else _part(c, f"{where}: condition")
        self.weight = None if weight is None else _part(weight, f"{where}: weight")
        self.where = where
        self.rows = self.x.shape[0]
        if self.rows == 0:
            raise ValueError(f"{where}: there are no rows (x has shape {tuple(self.x.shape)})")
        for part, what in ((self.c, "condition"), (self.weight, "weight")):
            if part is not None and part.shape[0] != self.rows:
                raise ValueError(f"{where}: expected one {what} per row of x ({self.rows}), got shape {tuple(part.shape)}")
        if self.weight is not None and self.weight.ndim != 1:
            raise ValueError(f"{where}: weight must be one number per row, shape ({self.rows},), got {tuple(self.weight.shape)}")
        self.features = 1 if self.x.ndim == 1 else self.x.shape[1]
        self.condition_features = 0 if self.c is None else 1 if self.c.ndim == 1 else self.c.shape[1]
        self.names = None if names is None else tuple(names)
        self.condition_names = None if condition_names is None else tuple(condition_names)
        self.has_weight = self.weight is not None

    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop − 1."""
        self.check_range(start, stop)
        x = _numbers(self.x, start, stop).reshape(stop - start, self.features)
        self._check(x, start, self.names, "column")
        c = weight = None
        if self.c is not None:
            c = _numbers(self.c, start, stop).reshape(stop - start, self.condition_features)
            self._check(c, start, self.condition_names, "condition column")
        if self.weight is not None:
            weight = _numbers(self.weight, start, stop).astype(np.float64)
            if (bad := bad_weight(weight)) is not None:
                mend = "weights must be finite and ≥ 0, leave such rows out"
                raise ValueError(f"{self.where}: weight of row {start + bad} is {weight[bad]:g}; {mend}")
        return Rows(x, c, weight)

    def _check(self, values: np.ndarray, start: int, names: tuple[str, ...] | None, what: str) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            row, k = map(int, np.argwhere(~finite)[0])
            name = k if names is None else repr(names[k])
            raise ValueError(f"{self.where}: row {start + row}, {what} {name} is {values[row, k]}; remove such rows or fill them in")


def bad_weight(weight: np.ndarray) -> int | None:
    """The first row whose weight is negative, NaN or infinite; None where there is none."""
    good = (weight >= 0) & (weight < np.inf)
    return None if good.all() else int(np.argmin(good))


def float_type(dtype: np.dtype) -> np.dtype:
    """float32 for types whose numbers it holds exactly, else float64."""
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32, "safe") else np.float64)


def _numbers(part: Any, start: int, stop: int) -> np.ndarray:
    """Rows of any array as a new C-ordered one of float32 or float64."""
    values = part[start:stop]
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has every type of torch but this.
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.array(values, float_type(values.dtype), order="C")


def _part(values: Any, what: str) -> Any:
    """Anything array-like as what can be sliced by rows; maps of files become `FileArray` where their layout allows."""
    if isinstance(values, FileArray | Selected):
        return values
    if isinstance(values, dict):
        raise ValueError(f"{what}: expected one array of shape (n, f), got a dict; join its parts {list(values)} into one vector per row")
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"{what}: expected real numbers, got {values.dtype}; stack real and imaginary parts as columns")
    else:
        if np.ma.is_masked(values):
            raise ValueError(f"{what}: {int(np.ma.count_masked(values))} entries are masked; remove such rows or fill them in")
        values = values if isinstance(values, np.ndarray) else np.asarray(values)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"{what}: expected numbers, got an array of dtype {values.dtype}")
    if values.ndim not in (1, 2) or 0 in values.shape[1:]:
        raise ValueError(f"{what}: expected rows of vectors, shape (n, features), got {tuple(values.shape)}; flatten samples of other shapes first")
    return _unmapped(values) if isinstance(values, np.ndarray) else values


def _unmapped(array: np.ndarray) -> Any:
    """The part of a file that a memory map shows; the array itself where it is none, only the map was changed, or nothing is contiguous in it."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.mode == "c" or root.filename is None or not os.path.exists(root.filename):
        return array
    by_column = array.ndim == 2 and array.shape[1] > 1 and array.strides[0] == array.dtype.itemsize and array.strides[1] > 0
    if not by_column and not array.flags.c_contiguous:
        return array
    if root.mode != "r":
        root.flush()
    # A slice of a map keeps the offset of the whole: where it begins is told by its address.
    begin = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY
    offset = begin + array.__array_interface__["data"][0] - np.frombuffer(root._mmap, np.uint8).__array_interface__["data"][0]
    return FileArray(root.filename, array.dtype, array.shape, offset=offset, column_stride=array.strides[1] if by_column else None)


def _from_dataset(dataset: Dataset, where: str | None = None) -> ArrayRows:
    spec = dataset.spec
    where = where or f"data {dataset.name}".strip()
    if spec.manifold is not None and not isinstance(spec.manifold, Euclidean):
        raise ValueError(f"{where}: expected vectors in flat space, got points on {spec.manifold}; map them to coordinates first")
    return ArrayRows(dataset.x, dataset.c, dataset.weight, names=spec.names, condition_names=spec.condition_names, where=where)


def _open_path(path: Path, wishes: dict[str, Any]) -> RowSource:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix.lower() == ".parquet":
        from fluvial.gaussianization.parquet_rows import ParquetRows, files_of

        return ParquetRows(files_of(path) if path.is_dir() else [path], **wishes)
    array = _npy(path) if path.suffix.lower() == ".npy" else None
    if array is None:
        return _from_dataset(load(path, **wishes), str(path))
    if not any(wishes.values()):
        return ArrayRows(array, where=str(path))
    if array.ndim != 2:
        raise ValueError(f"{path}: columns can be chosen from an array of shape (n, columns), got {array.shape}")
    labels = [f"x{k}" for k in range(array.shape[1])]
    chosen = choose(labels, **wishes, where=str(path))
    place = {label: k for k, label in enumerate(labels)}
    return ArrayRows(
        Selected(array, [place[name] for name in chosen.x]),
        Selected(array, [place[name] for name in chosen.c]) if chosen.c else None,
        None if chosen.weight is None else Selected(array, place[chosen.weight]),
        names=chosen.x,
        condition_names=chosen.c or None,
        where=str(path),
    )


def _npy(path: Path) -> FileArray | None:
    """The array in a .npy file, unread; None where it is not plain numbers of shape (n,) or (n, D), which loading names or reads."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file:
        try:
            shape, by_column, dtype = headers[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError, SyntaxError, TypeError, EOFError):
            return None
        offset = file.tell()
    if dtype.kind not in "fiub" or len(shape) not in (1, 2) or 0 in shape:
        return None
    held, size = path.stat().st_size - offset, int(np.prod(shape, dtype=object)) * dtype.itemsize
    if held < size:
        raise ValueError(f"{path}: truncated, {held} bytes of numbers where its shape {shape} of {dtype} takes {size}")
    return FileArray(path, dtype, shape, offset=offset, column_stride=shape[0] * dtype.itemsize if by_column and len(shape) == 2 else None)


class Appended(RowSource):
    """The rows of one source, and after them those of another."""

    def __init__(self, first: RowSource, second: RowSource) -> None:
        for name in ("features", "condition_features", "has_weight"):
            if getattr(first, name) != getattr(second, name):
                ours, theirs = getattr(first, name), getattr(second, name)
                raise ValueError(f"validation rows have {name}={theirs}, the training rows {ours}; both need the same columns")
        self.first = first
        self.second = second
        self.rows = first.rows + second.rows
        self.features, self.names = first.features, first.names
        self.condition_features, self.condition_names = first.condition_features, first.condition_names
        self.has_weight = first.has_weight

    def release(self) -> None:
        """Free what is held of the files of both."""
        self.first.release()
        self.second.release()

    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop − 1 of both together."""
        self.check_range(start, stop)
        cut = self.first.rows
        parts = [self.first.read(min(start, cut), min(stop, cut)), self.second.read(max(start, cut) - cut, max(stop, cut) - cut)]
        parts = [part for part in parts if len(part.x)] or parts[:1]
        columns = zip(*parts)
        return Rows(*(None if column[0] is None else np.concatenate(column) for column in columns))
