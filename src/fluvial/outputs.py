"""Writers of samples: block after block, with bounded memory, whole files or none."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fluvial.files import write_atomic

Block = tuple[np.ndarray, np.ndarray | None]
"""Samples of shape (k, *event), and their conditions of shape (k, condition columns) or None."""

EXTRAS = {".root": "events", ".lhe": "events", ".hepmc": "events", ".xyz": "molecules", ".pdb": "molecules"}


@dataclass(frozen=True)
class Layout:
    """What a file of samples holds.

    Args:
        rows: Number of samples.
        event_shape: Shape of one sample.
        names: Column names of the flattened sample.
        condition_names: Column names of the condition; () where there is none.
        dtype: Of all numbers, "float32" or "float64".

    Raises:
        ValueError: If the names do not fit the shape, or one occurs twice.
    """

    rows: int
    event_shape: tuple[int, ...]
    names: tuple[str, ...]
    condition_names: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        size = int(np.prod(self.event_shape, dtype=int))
        if len(self.names) != size:
            raise ValueError(f"samples of shape {self.event_shape} have {size} columns, got {len(self.names)} names")
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise ValueError(f"the column name {twice[0]!r} occurs more than once; columns of samples and condition need names of their own")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns of a table."""
        return self.names + self.condition_names

    def table(self, block: Block) -> np.ndarray:
        """A block as rows of numbers, shape (k, columns)."""
        x, c = block
        flat = x.reshape(len(x), -1).astype(self.dtype, copy=False)
        return flat if c is None else np.concatenate([flat, c.astype(self.dtype, copy=False)], 1)


def column_names(event_shape: tuple[int, ...], prefix: str = "x") -> tuple[str, ...]:
    """Names for columns that have none: x0, x1, …; for arrays x_0_0, x_0_1, ….

    Example:
        >>> column_names((2,)), column_names((1, 2))
        (('x0', 'x1'), ('x_0_0', 'x_0_1'))
    """
    if len(event_shape) == 1:
        return tuple(f"{prefix}{k}" for k in range(event_shape[0]))
    return tuple("_".join([prefix, *map(str, index)]) for index in np.ndindex(*event_shape))


def check_ending(path: str | os.PathLike[str]) -> str:
    """The ending of a file that can be written.

    Raises:
        ValueError: If it cannot; the message lists the endings, or names the extra that brings it.

    Example:
        >>> check_ending("samples.parquet")
        '.parquet'
    """
    ending = Path(path).suffix.lower()
    if ending in WRITERS:
        return ending
    known = f"here are {', '.join(sorted(WRITERS))}"
    if ending in EXTRAS:
        extra = EXTRAS[ending]
        raise ValueError(f"{path}: files that end in {ending} come with the extra '{extra}', which this version does not bring yet; {known}")
    raise ValueError(f"{path}: {f'the ending {ending!r} is not known' if ending else 'the file needs an ending'}; {known}")


def write_samples(path: str | os.PathLike[str], blocks: Iterable[Block], layout: Layout) -> None:
    r"""Write samples to a file whose ending says how; on any failure or interrupt an existing file stays as it was and nothing else is left.

    - ``.parquet``: one column for each number, one row group for each block.
    - ``.csv``: a line of names, then one line for each sample, with as many digits as make the same numbers again.
    - ``.npy``: one array of shape (n, \*event); with a condition, a structured array of all columns.
    - ``.npz``: arrays ``x`` of shape (n, \*event), ``names`` and, where there is a condition, ``c`` and ``condition_names``. The only one that
      is held in memory whole.

    Args:
        path: Where to.
        blocks: Blocks with `Layout.rows` samples in all.
        layout: Shape and names.

    Raises:
        ValueError: If the ending is not one of these, or the blocks hold another number of samples.
        OSError: If the file cannot be written, for a full disk by that name.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "two.csv")
        >>> write_samples(file, [(np.array([[0.5, 1.0]]), None)] * 2, Layout(2, (2,), ("pt", "eta")))
        >>> file.read_text().splitlines()
        ['"pt","eta"', '0.5,1', '0.5,1']
    """
    writer = WRITERS[check_ending(path)]

    def fill(file: BinaryIO) -> None:
        writer(file, _counted(blocks, layout.rows), layout)

    write_atomic(path, fill)


def _counted(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """The blocks, after making sure that nothing is missing, so that no short file is taken for a whole one."""
    seen = 0
    for block in blocks:
        seen += len(block[0])
        yield block
    if seen != rows:
        raise ValueError(f"expected {rows} samples in all, got {seen}")


def _write_csv(file: BinaryIO, blocks: Iterator[Block], layout: Layout) -> None:
    from pyarrow import csv

    names = ",".join('"' + name.replace('"', '""') + '"' for name in layout.columns)
    file.write(f"{names}\n".encode())
    options = csv.WriteOptions(include_header=False)
    for block in blocks:
        csv.write_csv(_arrow(block, layout), _Sink(file), options)


def _write_parquet(file: BinaryIO, blocks: Iterator[Block], layout: Layout) -> None:
    import pyarrow
    from pyarrow import parquet

    import fluvial

    kind = pyarrow.from_numpy_dtype(layout.dtype)
    about = {b"fluvial": json.dumps({"version": fluvial.__version__, "event_shape": layout.event_shape}).encode()}
    schema = pyarrow.schema([(name, kind) for name in layout.columns], about)
    sink = _Sink(file)
    writer = parquet.ParquetWriter(sink, schema)
    try:
        for block in blocks:
            writer.write_table(_arrow(block, layout).cast(schema))
    except BaseException:
        # Closing adds a footer, also later when the writer is thrown away; it must go nowhere.
        sink.failed = True
        raise
    finally:
        writer.close()


def _write_npy(file: BinaryIO, blocks: Iterator[Block], layout: Layout) -> None:
    if layout.condition_names:
        dtype = np.dtype([(name, layout.dtype) for name in layout.columns])
        shape: tuple[int, ...] = (layout.rows,)
    else:
        dtype, shape = np.dtype(layout.dtype), (layout.rows, *layout.event_shape)
    header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(layout.table(block)).data)


def _write_npz(file: BinaryIO, blocks: Iterator[Block], layout: Layout) -> None:
    parts = list(blocks)
    arrays = {"x": np.concatenate([x for x, _ in parts]).astype(layout.dtype, copy=False), "names": np.array(layout.names)}
    if layout.condition_names:
        arrays["c"] = np.concatenate([c for _, c in parts if c is not None]).astype(layout.dtype, copy=False)
        arrays["condition_names"] = np.array(layout.condition_names)
    np.savez(file, allow_pickle=False, **arrays)


def _arrow(block: Block, layout: Layout) -> Any:
    import pyarrow

    return pyarrow.table([np.ascontiguousarray(column) for column in layout.table(block).T], names=list(layout.columns))


class _Sink:
    """A file that pyarrow cannot close, and to which it writes nothing any more once a write has failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.closed = False
        self.failed = False

    def write(self, data: Any) -> int:
        if self.failed:
            return len(data)
        try:
            return self.file.write(data)
        except BaseException:
            self.failed = True
            raise

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        if not self.failed:
            self.file.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


WRITERS: dict[str, Callable[[BinaryIO, Iterator[Block], Layout], None]] = {
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
