"""Rows of Parquet files, of which one batch is held at a time."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluvial.data.table import Chosen, choose
from fluvial.gaussianization.sources import BLOCK, Rows, RowSource, bad_weight, float_type

if TYPE_CHECKING:
    import pyarrow as pa

# Decoded bytes of a batch: a smaller row group is held whole.
BATCH_BYTES = 2**24
# Bytes read ahead of each column; without it, or with pre_buffer, whole compressed columns of a row group are read at once.
BUFFER_BYTES = 2**16


def files_of(folder: Path) -> list[Path]:
    """The Parquet files in a folder, sorted by name; hidden ones (. and _) are no data.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".parquet" and path.name[0] not in "._" and path.is_file())
    if not files:
        deeper = next((path for path in sorted(folder.rglob("*.parquet")) if path.is_file()), None)
        hint = f"; there is {deeper}, give that folder" if deeper else ""
        raise ValueError(f"{folder}: there are no .parquet files in this folder{hint}")
    return files


class ParquetRows(RowSource):
    """Rows of Parquet files, one after the other.

    Only the needed columns are read. The last batch (16 MiB of numbers, or the whole row group where it is smaller) is kept, so that consecutive
    ranges decode nothing twice; a range before it decodes its row group again from the beginning.

    Args:
        paths: The files, in order.
        columns: Columns that become x; default all that hold numbers and are not condition or weight.
        condition: Columns that become the condition.
        weight: Column of the weights.

    Raises:
        ValueError: If a file is not readable, a column is missing or not made of numbers, the files have different columns, or there are no rows.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> path = Path(tempfile.mkdtemp()) / "tracks.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"pt": [1.0, 2.0, 3.0], "charge": [1, -1, 1]}), path, row_group_size=2)
        >>> source = ParquetRows([path], condition="charge")
        >>> source.names, source.read(1, 3).x.tolist()
        (('pt',), [[2.0], [3.0]])
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        columns: str | Sequence[str] | None = None,
        condition: str | Sequence[str] | None = None,
        weight: str | None = None,
    ) -> None:
        self.paths = [os.path.abspath(path) for path in paths]
        chosen: Chosen | None = None
        first: dict[str, Any] = {}
        kinds: dict[str, list[np.dtype]] = {}
        # (file, row group, rows) of every row group that has rows.
        groups: list[tuple[int, int, int]] = []
        for number, path in enumerate(self.paths):
            schema, sizes = _footer(path)
            if chosen is None:
                first = _fields(schema, path)
                chosen = _choose(first, {"columns": columns, "condition": condition, "weight": weight}, path)
            fields = _fields(schema, path)
            _compare(chosen, first, fields, path=path, reference=self.paths[0], strict=not columns)
            for name in chosen.needed:
                kinds.setdefault(name, []).append(_float_of(fields[name]))
            groups += [(number, group, rows) for group, rows in enumerate(sizes) if rows]
        if chosen is None:
            raise ValueError("ParquetRows: expected at least one file, got none")
        if not groups:
            where = self.paths[0] if len(self.paths) == 1 else f"{os.path.dirname(self.paths[0])}: {len(self.paths)} Parquet files"
            raise ValueError(f"{where}: there are no rows, only the columns {', '.join(map(repr, chosen.needed))}")
        self.chosen = chosen
        self.names = tuple(chosen.x)
        self.condition_names = tuple(chosen.c) or None
        self.features, self.condition_features, self.has_weight = len(chosen.x), len(chosen.c), chosen.weight is not None
        self.x_dtype = np.result_type(*(kind for name in chosen.x for kind in kinds[name]))
        self.c_dtype = np.result_type(*(kind for name in chosen.c for kind in kinds[name])) if chosen.c else None
        self.group_file, self.group_number, sizes = np.array(groups, np.int64).T
        # Row where every group begins, and the end of all.
        self.group_start = np.concatenate([[0], np.cumsum(sizes)])
        self.rows = int(self.group_start[-1])
        self.batch_rows = max(BLOCK, BATCH_BYTES // (8 * len(chosen.needed)))
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_file", "_batches", "_batch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        # What is open: file number and its handle, row group, the batches to come, the current one and its rows.
        self._file: tuple[int, Any] = (-1, None)
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = self._stop = 0

    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop − 1."""
        self.check_range(start, stop)
        x = np.empty((stop - start, self.features), self.x_dtype)
        c = np.empty((stop - start, self.condition_features), self.c_dtype) if self.condition_features else None
        weight = np.empty(stop - start) if self.has_weight else None
        columns = [*x.T, *(() if c is None else c.T), *(() if weight is None else (weight,))]
        with self._lock:
            row = start
            while row < stop:
                self._seek(row)
                upto = min(stop, self._stop)
                part = self._batch.slice(row - self._first, upto - row)
                for name, column in zip(self.chosen.needed, columns):
                    column[row - start : upto - start] = self._column(part, name, row)
                row = upto
        if weight is not None and (bad := bad_weight(weight)) is not None:
            raise self._error(self.chosen.weight, start + bad, f"weight {weight[bad]:g}; weights must be finite and ≥ 0, leave such rows out")
        return Rows(x, c, weight)

    def release(self) -> None:
        """Close the file and free its batch, and with it what pyarrow keeps for later."""
        import pyarrow as pa

        with self._lock:
            if self._file[1] is not None:
                self._file[1].close()
            self._forget()
        pa.default_memory_pool().release_unused()

    def _seek(self, row: int) -> None:
        """Make the batch that holds the row the current one."""
        group = int(np.searchsorted(self.group_start, row, "right")) - 1
        path = self._path(group)
        if group != self._group or row < self._first:
            self._group = -1
            self._batches = _named(self._open, path, group)
            self._group, self._first, self._stop = group, int(self.group_start[group]), int(self.group_start[group])
        while row >= self._stop:
            self._batch = None
            self._batch = _named(next, path, self._batches, None)
            if self._batch is None:
                self._group = -1
                raise ValueError(f"{path}: row group {self.group_number[group]} ends early; was the file changed since it was opened?")
            self._first, self._stop = self._stop, self._stop + self._batch.num_rows

    def _open(self, group: int) -> Iterator["pa.RecordBatch"]:
        """The batches of a row group."""
        import pyarrow as pa
        from pyarrow import parquet

        # Every row group leaves pages behind that its successor does not use again.
        pa.default_memory_pool().release_unused()
        number, path = int(self.group_file[group]), self._path(group)
        if number != self._file[0]:
            if self._file[1] is not None:
                self._file[1].close()
            self._file = (-1, None)
            self._file = (number, parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False))
        file = self._file[1]
        within, rows = int(self.group_number[group]), int(self.group_start[group + 1] - self.group_start[group])
        if (
            within >= file.num_row_groups
            or file.metadata.row_group(within).num_rows != rows
            or not {*self.chosen.needed} <= {*file.schema_arrow.names}
        ):
            raise ValueError(f"{path}: row group {within} is not what it was when it was opened; was the file changed?")
        # One thread: processes share the cores already, and every thread of the decoder keeps memory of its own.
        return file.iter_batches(self.batch_rows, row_groups=[within], columns=self.chosen.needed, use_threads=False)

    def _column(self, part: "pa.RecordBatch", name: str, row: int) -> np.ndarray:
        import pyarrow as pa

        column = part.column(part.schema.get_field_index(name))
        if column.null_count:
            missing = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise self._error(name, row + missing, "the entry is missing; remove such rows or fill them in")
        if not pa.types.is_floating(column.type):
            try:
                return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
            except pa.ArrowInvalid as error:
                large = "whole numbers beyond 2**53, which a float cannot tell apart; leave the column out with columns=, or scale it"
                raise self._error(name, row, large if pa.types.is_integer(column.type) else _line(error)) from None
        values = column.to_numpy(zero_copy_only=False)
        finite = np.isfinite(values)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise self._error(name, row + bad, f"{values[bad]} is no number to learn from; remove such rows or fill them in")
        return values

    def _error(self, name: str | None, row: int, what: str) -> ValueError:
        group = int(np.searchsorted(self.group_start, row, "right")) - 1
        number = self.group_file[group]
        within = row - int(self.group_start[np.argmax(self.group_file == number)])
        return ValueError(f"{self._path(group)}: column {name!r}, row {within}: {what}")

    def _path(self, group: int) -> str:
        return self.paths[int(self.group_file[group])]


def _named(read: Callable[..., Any], path: str, *arguments: Any) -> Any:
    """What a function reads from a file; its errors name the file."""
    import pyarrow as pa

    try:
        return read(*arguments)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable as Parquet ({_line(error)})") from None


def _footer(path: str) -> tuple[Any, list[int]]:
    """Schema and rows of every row group."""
    from pyarrow import parquet

    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    metadata = _named(parquet.read_metadata, path, path)
    return metadata.schema.to_arrow_schema(), [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]


def _fields(schema: Any, path: str) -> dict[str, Any]:
    """Type by column name."""
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise ValueError(f"{path}: column name {twice!r} occurs {schema.names.count(twice)} times; give every column its own name")
    return dict(zip(schema.names, schema.types))


def _choose(fields: dict[str, Any], wishes: dict[str, Any], path: str) -> Chosen:
    asked = [name for wish in wishes.values() if wish is not None for name in ([wish] if isinstance(wish, str) else wish)]
    for name in asked:
        if name not in fields:
            raise ValueError(f"{path}: no column {name!r}; there are {', '.join(map(repr, fields))}")
    present = [name for name in fields if name in asked or _is_data(name, fields[name])]
    if not present:
        held = ", ".join(f"{name!r} ({kind})" for name, kind in fields.items())
        raise ValueError(f"{path}: no column holds numbers; there are {held or 'no columns'}")
    others = [f"{name!r} ({kind})" for name, kind in fields.items() if name not in present and not _is_number(kind)]
    if others and wishes.get("columns") is None:
        warnings.warn(f"{path}: left out, as they hold no numbers: {', '.join(others)}; columns= says which are meant", stacklevel=4)
    return choose(present, **wishes, where=path)


def _compare(chosen: Chosen, first: dict[str, Any], fields: dict[str, Any], *, path: str, reference: str, strict: bool) -> None:
    """Refuse a file without the needed columns, or with others where nobody said which are meant."""
    for name in chosen.needed:
        if name not in fields:
            raise ValueError(f"{path}: no column {name!r}, which {reference} has; all files of a folder need the same columns")
        if not _is_number(fields[name]):
            raise ValueError(f"{path}: column {name!r} holds {fields[name]}, not numbers; leave it out with columns=")
    extra = [name for name in fields if strict and name not in first and _is_data(name, fields[name])]
    if extra:
        raise ValueError(f"{path}: column {extra[0]!r} is not in {reference}; say with columns= which are meant")


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)


def _is_data(name: str, kind: Any) -> bool:
    # pandas stores the row labels of a frame as a column of this name.
    return _is_number(kind) and not name.startswith("__index_level_")


def _float_of(kind: Any) -> np.dtype:
    import pyarrow as pa

    return np.dtype(np.float64) if pa.types.is_decimal(kind) else float_type(np.dtype(kind.to_pandas_dtype()))


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
