"""Data sets from files."""

import csv
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.coordinates import coordinates
from fluvial.data.dataset import Dataset
from fluvial.data.problems import nearest_points
from fluvial.data.table import Chosen, choose, numbers
from fluvial.manifolds import Manifold


def load(
    path: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    condition: str | Sequence[str] | None = None,
    categorical: str | Sequence[str] | None = None,
    weight: str | None = None,
    latlon: Sequence[str] | None = None,
    degrees: str | Sequence[str] | None = None,
    radians: str | Sequence[str] | None = None,
    quaternion: Sequence[str] | None = None,
    scalar_first: bool = False,
    rotation_vector: Sequence[str] | None = None,
    rotation_matrix: Sequence[str] | None = None,
    manifold: Manifold | None = None,
    project: bool = False,
    noise: float | Sequence[float] = 0.0,
    dequantize: float | Sequence[float] | None = None,
    drop_constant: bool = False,
) -> Dataset:
    r"""Read samples from a file; its ending says how.

    - ``.csv``: numbers separated by comma, semicolon or tab, with or without a line of names. Leading lines that start with # are skipped.
      Without names the columns are called x0, x1, …
    - ``.parquet``: named columns.
    - ``.npz``: one array ``x`` of shape (n, \*event) with at least two axes, and where there are any ``c`` (for a dict ``c.NAME``),
      ``weight`` and ``names`` (of the columns of x); or several arrays of shape (n,), which are named columns.
    - ``.npy``: one array of shape (n, \*event), or a structured array of named columns.

    Nothing is ever unpickled. Empty fields become NaN, which `Dataset.check` names.

    Columns may stand for points of a manifold: latlon, degrees, radians, quaternion, rotation_vector, rotation_matrix. Several of these, or one
    beside columns, make points of a `Product` whose factors come in this order, flat columns last; columns not named are then left out. So
    ``quaternion=["qx", "qy", "qz", "qw"], columns=["x", "y", "z"]`` are poses, on ``Product(SpecialOrthogonal(3), Euclidean(3))``.

    Args:
        path: The file.
        columns: Columns that become x; default all that are not condition or weight.
        condition: Columns that become the condition c, in this order.
        categorical: Columns of text or whole numbers that become conditions too, a column of 0 and 1 for each level, sorted, called "column=level".
            They come after the others unless condition names them too.
        weight: Column that holds the weights.
        latlon: Two columns, latitude and longitude in degrees, that become unit vectors on ``Sphere(2)``; in place of columns.
        degrees: k columns, angles in degrees within ±360, that become points of ``Torus(k)``.
        radians: k columns, angles in radians within ±2π, that become points of ``Torus(k)``.
        quaternion: Four columns, x, y, z, w, of quaternions of any length but 0, that become rotations of ``SpecialOrthogonal(3)``.
        scalar_first: Whether the columns of the quaternion are w, x, y, z. Names that end in w where they should not are refused.
        rotation_vector: Three columns, axis times angle in radians, that become rotations. Refused where most are longer than 2π.
        rotation_matrix: Nine columns, the entries row by row, that become the nearest rotations; refused where they are off by more than 1e-3.
        manifold: Where the samples live; for columns that are points of it already.
        project: Move the rows to the nearest points of manifold, as for measurements beside a mesh. Otherwise training refuses rows that lie off it,
            as it does with rows that have no nearest point: reflections, points outside a ball, the centre of a sphere.
        noise: Standard deviation of Gaussian noise in training, one number or one per column (of a product also one per flat column).
        dequantize: Width of uniform noise in training, one number or one per column. On a product one number is for the flat columns only, and
            there may be one per flat column.
        drop_constant: Leave constant columns out.

    Returns:
        A `Dataset` in torch's default dtype, called by the name of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, broken, pickled, of an unknown kind or ragged, a column unknown or not made of numbers, or numbers are
            no such coordinates; the message names the row.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "pressure.csv"
        >>> _ = file.write_text("T,p,V\n300,1.0,24.9\n300,2.0,12.5\n400,1.0,33.3\n")
        >>> load(file, condition=["T"])
        Dataset pressure: 3 rows of 2 (p, V), condition ['T']
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    read = READERS.get(path.suffix.lower())
    if read is None or not path.is_file():
        kind = f"unknown ending {path.suffix!r}" if path.is_file() else "not a file"
        raise ValueError(f"{path}: {kind}; data is read from {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    try:
        groups = coordinates(
            columns=columns,
            scalar_first=scalar_first,
            latlon=latlon,
            degrees=degrees,
            radians=radians,
            quaternion=quaternion,
            rotation_vector=rotation_vector,
            rotation_matrix=rotation_matrix,
        )
        if project and groups is None and manifold is None:
            raise ValueError("project=True moves rows to the nearest points of a manifold; give manifold= too, or leave it out")
        if groups is not None and manifold is not None:
            raise ValueError(f"manifold={manifold} and {groups[0].kind}= both say where the samples live; leave manifold out")
        found = read(path, {"columns": columns, "condition": condition, "weight": weight, "groups": groups, "categorical": categorical})
        if manifold is not None:
            found["manifold"] = manifold
        dataset = Dataset(**found, noise=noise, dequantize=dequantize, drop_constant=drop_constant, name=path.stem)
        if project and dataset.spec.manifold is not None:
            dataset.x = nearest_points(dataset.x, dataset.spec.manifold)
        return dataset
    except (ValueError, TypeError) as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _read_csv(path: Path, wishes: dict[str, Any]) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import csv as arrow_csv

    skip, delimiter, header, first = _csv_head(path)
    names = header or [f"x{k}" for k in range(len(first))]
    chosen = choose(names, **wishes, where=str(path))
    # float64 is asked for, not guessed: a guess made on the first block ("all integers") would fail on a later one.
    types = dict.fromkeys(chosen.numeric, pa.float64()) | dict.fromkeys(chosen.categorical, pa.string())
    convert = arrow_csv.ConvertOptions(include_columns=chosen.needed, column_types=types)
    parse = arrow_csv.ParseOptions(delimiter=delimiter)
    try:
        table = arrow_csv.read_csv(path, arrow_csv.ReadOptions(column_names=names, skip_rows=skip), parse, convert)
    except pa.ArrowInvalid as error:
        _explain_csv(path, skip, delimiter, names, chosen)
        raise ValueError(f"not readable as csv ({str(error).splitlines()[0]})") from None
    found = _assemble_arrow(table, chosen)
    # What is written with a point or an exponent is rounded by whoever wrote it; whole numbers beyond 2**53 would be rounded here.
    large = [name for name in chosen.numeric if (compute.max(compute.abs(table.column(name))).as_py() or 0.0) >= 2.0**53]
    if large:
        convert = arrow_csv.ConvertOptions(include_columns=large, column_types=dict.fromkeys(large, pa.string()))
        table = arrow_csv.read_csv(path, arrow_csv.ReadOptions(column_names=names, skip_rows=skip), parse, convert)
        for name in large:
            column = table.column(name)
            for entry in column.filter(compute.match_substring_regex(column, r"^\s*[+-]?[0-9]{16,}\s*$")).to_pylist():
                if abs(int(entry)) > 2**53:
                    raise _too_long(name, entry.strip())
    return found


def _csv_head(path: Path) -> tuple[int, str, list[str] | None, list[str]]:
    """Lines before the first row of numbers, the delimiter, the names (None without them), and the first line's fields."""
    comments = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
            while line.startswith("#") or (line and not line.strip()):
                comments += 1
                line = file.readline()
    except UnicodeDecodeError:
        raise ValueError("not a text file in UTF-8; is it really csv?") from None
    if not line:
        raise ValueError("there are only comments or empty lines")
    delimiter = next((mark for mark in ",;\t" if mark in line), ",")
    fields = [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]
    if any(_is_number(field) for field in fields):
        # An empty field is a missing number.
        odd = next((field for field in fields if field and not _is_number(field)), None)
        if odd is None:
            return comments, delimiter, None, fields
        raise ValueError(f"line {comments + 1} is neither all names nor all numbers: {odd!r} is not a number")
    return comments + 1, delimiter, fields, fields


def _explain_csv(path: Path, skip: int, delimiter: str, names: list[str], chosen: Chosen) -> None:
    """Find the first line that is ragged or not made of numbers, and say so."""
    from pyarrow import csv as arrow_csv

    missing = set(arrow_csv.ConvertOptions().null_values)
    needed = [(names.index(name), name) for name in chosen.numeric]
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for _ in range(skip):
            file.readline()
        lines = csv.reader(file, delimiter=delimiter)
        row = -1
        for fields in lines:
            if not fields:
                continue
            row += 1
            place = f"line {skip + lines.line_num}"
            if len(fields) != len(names):
                raise ValueError(f"{place} (row {row}) has {len(fields)} entries, expected {len(names)} as in the first line")
            for k, name in needed:
                if fields[k].strip() not in missing and not _is_number(fields[k]):
                    mend = "leave the column out with columns=, mend the line, or make it a condition with categorical="
                    raise ValueError(f"column {name!r}, row {row} ({place}): {fields[k]!r} is not a number; {mend}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    # Python also reads 1_000, which no other program writes.
    return "_" not in text


def _read_parquet(path: Path, wishes: dict[str, Any]) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            chosen = choose(schema.names, **wishes, where=str(path))
            for name in chosen.numeric:
                kind = schema.field(name).type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)):
                    entry = next(iter(file.iter_batches(1, columns=[name])), None)
                    shown = f", {entry.column(0)[0].as_py()!r} in row 0" if entry is not None and entry.num_rows else ""
                    raise ValueError(
                        f"column {name!r} holds {kind}{shown}, not numbers; leave it out with columns=, or make it a condition with categorical="
                    )
            table = file.read(columns=chosen.needed)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not readable as Parquet ({str(error).splitlines()[0]})") from None
    return _assemble_arrow(table, chosen)


def _assemble_arrow(table: Any, chosen: Chosen) -> dict[str, Any]:
    import pyarrow as pa

    if table.num_rows == 0:
        raise ValueError(f"there are no rows, only the columns {', '.join(map(repr, chosen.needed))}")
    columns = {}
    for name in chosen.needed:
        if name in chosen.categorical:
            columns[name] = np.array(table.column(name).to_pylist(), object)
            continue
        try:
            columns[name] = table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            if pa.types.is_integer(table.schema.field(name).type):
                raise _too_long(name) from None
            raise ValueError(f"column {name!r} cannot be read as numbers ({str(error).splitlines()[0]})") from None
    return chosen.assemble(columns)


def _too_long(name: str, entry: str = "") -> ValueError:
    held = f"the whole number {entry}" if entry else "whole numbers"
    return ValueError(f"column {name!r} holds {held} beyond 2**53, which a float cannot tell apart; leave it out with columns=, or scale it")


def _read_npy(path: Path, wishes: dict[str, Any]) -> dict[str, Any]:
    array = _numpy(path.read_bytes())
    if array.dtype.names:
        return _assemble_columns({name: array[name] for name in array.dtype.names}, wishes)
    return _assemble_array({"x": array}, wishes)


def _read_npz(path: Path, wishes: dict[str, Any]) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): _numpy(archive.read(name), name) for name in archive.namelist()}
    except zipfile.BadZipFile:
        raise ValueError("not readable as npz: it is no zip archive, or a truncated one") from None
    except (zlib.error, EOFError, OSError, MemoryError, RuntimeError) as error:  # the last: encrypted, or packed in an unknown way
        raise ValueError(f"not readable as npz ({str(error).partition(chr(10))[0] or type(error).__name__})") from None
    if not arrays:
        raise ValueError("there are no arrays in it")
    return _assemble_array(arrays, wishes) if "x" in arrays and arrays["x"].ndim > 1 else _assemble_columns(arrays, wishes)


def _numpy(content: bytes, name: str = "array") -> np.ndarray:
    # Checked before numpy sees it: a pickle is refused as such, whatever numpy would make of it.
    if not content.startswith(b"\x93NUMPY"):
        what = "a pickle, which could run any code, and is never opened" if content[:1] == b"\x80" else "no numpy array"
        raise ValueError(f"{name} is {what}; write it with numpy.save from plain numbers")
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except MemoryError:
        raise ValueError(f"{name} is broken or truncated (its header claims more numbers than fit into memory)") from None
    except Exception as error:  # the header is parsed as Python, which fails in many ways
        if "allow_pickle" in str(error):
            raise ValueError(f"{name} holds Python objects, a pickle that is never opened; write it from plain numbers") from None
        reason = str(error).strip().partition("\n")[0] if isinstance(error, ValueError) else "its header is malformed"
        raise ValueError(f"{name} is broken or truncated ({reason})") from None
    if array.size and not array.itemsize:
        raise ValueError(f"{name} is broken: its {array.size} entries of type {array.dtype.str} hold nothing")
    return array


def _assemble_array(arrays: dict[str, np.ndarray], wishes: dict[str, Any]) -> dict[str, Any]:
    """One array x, with c and weight beside it; its columns, and other arrays of shape (n,), may be chosen by name."""
    x, names = arrays["x"], arrays.get("names")
    if all(wish is None for wish in wishes.values()):
        parts = {key[2:]: array for key, array in arrays.items() if key.startswith("c.")}
        labels = None if names is None else [str(name) for name in names]
        return {"x": x, "c": parts or arrays.get("c"), "weight": arrays.get("weight"), "names": labels}
    if x.ndim != 2:
        raise ValueError(f"columns can be chosen from an array of shape (n, columns), got {x.shape}")
    labels = [f"x{k}" for k in range(x.shape[1])] if names is None else [str(name) for name in names]
    if len(labels) != x.shape[1]:
        raise ValueError(f"{len(labels)} names for the {x.shape[1]} columns of x")
    others = {key: array for key, array in arrays.items() if key not in ("x", "names") and array.shape == x.shape[:1]}
    if wishes["columns"] is None and wishes["groups"] is None:
        used = choose([*labels, *others], **wishes, where="the file")
        wishes = wishes | {"columns": [name for name in labels if name in used.x]}
    if wishes["weight"] is None and "weight" in others:
        wishes = wishes | {"weight": "weight"}
    return _assemble_columns({label: x[:, k] for k, label in enumerate(labels)} | others, wishes)


def _assemble_columns(columns: dict[str, np.ndarray], wishes: dict[str, Any]) -> dict[str, Any]:
    chosen = choose(list(columns), **wishes, where="the file")
    lengths = {name: columns[name].shape for name in chosen.needed}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise ValueError(f"expected one array x, or named arrays of one shape (n,); got {lengths}")
    return chosen.assemble({name: columns[name] if name in chosen.categorical else numbers(columns[name], name) for name in chosen.needed})


READERS = {".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv, ".parquet": _read_parquet}
