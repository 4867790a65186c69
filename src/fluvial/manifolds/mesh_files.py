"""Triangle meshes as files and as text."""

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

_KINDS = {"vertices": "float64", "faces": "int32"}
_TEXT = re.compile(r"(float64|int32)\[(\d{1,9}),3\]:")

_PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}


def as_text(array: np.ndarray) -> str:
    """An array of rows of three as one line: float64[n,3] or int32[n,3], and its little-endian bytes in base 64."""
    kind = "float64" if array.dtype.kind == "f" else "int32"
    code = base64.b64encode(array.astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()
    return f"{kind}[{len(array)},3]:{code}"


def from_text(text: str, name: str) -> np.ndarray:
    """The inverse of `as_text`; `name` is "vertices" or "faces".

    Raises:
        ValueError: If it is no such text.
    """
    head = _TEXT.match(text)
    if head is None or head[1] != _KINDS[name]:
        raise ValueError(f"Mesh: {name} as text must begin with {_KINDS[name]}[n,3]:, got {text[:40]!r}; Mesh.read(path) reads files")
    try:
        content = base64.b64decode(text[head.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"Mesh: {name} as text is damaged: {error}") from error
    dtype = np.dtype(head[1]).newbyteorder("<")
    expected = int(head[2]) * 3 * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"Mesh: {name} as text is damaged: {expected} bytes expected, got {len(content)}")
    return np.frombuffer(content, dtype).reshape(-1, 3).astype(head[1])


def read_mesh(path: str | os.PathLike[str]) -> Arrays:
    """Vertices (n, 3) and faces (m, 3) of an .obj, .ply or .stl file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its ending is another, if it is damaged, or if it has no faces.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"Mesh: cannot read {path.name!r}; the ending must be one of {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"Mesh: there is no file {path}")
    try:
        vertices, faces = reader(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not len(faces):
        raise ValueError(f"{path}: there are no faces in it, only {len(vertices)} vertices")
    return vertices, faces


# ------------------------------------------------------------------------------------------------------------------ .obj


def _obj(content: bytes) -> Arrays:
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    for number, line in enumerate(content.decode("utf-8", "replace").replace("\\\n", " ").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words or words[0] not in ("v", "f"):
            continue
        try:
            if words[0] == "v":
                vertices.append([float(word) for word in words[1:4]])
                if len(vertices[-1]) < 3:
                    raise ValueError("a vertex needs three numbers")
            else:
                # vertex/texture/normal; negative numbers count back from the last vertex so far.
                corners = [int(word.partition("/")[0]) for word in words[1:]]
                faces += _fan([corner + len(vertices) if corner < 0 else corner - 1 for corner in corners])
        except ValueError as error:
            raise ValueError(f"line {number} ({line.strip()[:60]!r}) cannot be read: {error}") from error
    return np.array(vertices, np.float64).reshape(-1, 3), np.array(faces, np.int64).reshape(-1, 3)


def _fan(corners: list[int]) -> list[tuple[int, int, int]]:
    if len(corners) < 3:
        raise ValueError(f"a face needs three corners, got {len(corners)}")
    return [(corners[0], b, c) for b, c in zip(corners[1:], corners[2:])]


# ------------------------------------------------------------------------------------------------------------------ .ply

Properties = list[tuple[str, str, str | None]]  # name, type of the values, type of their number in lists


def _ply(content: bytes) -> Arrays:
    head = re.match(rb"ply\s*\n", content)
    end = re.search(rb"\nend_header[ \t]*\r?\n", content[: 1 << 20])
    if head is None or end is None:
        raise ValueError("this is no .ply file: its header does not go from 'ply' to 'end_header'")
    order, elements = _ply_header(content[: end.start()].decode("ascii", "replace"))
    missing = {"vertex", "face"} - {name for name, _, _ in elements}
    if missing:
        raise ValueError(f"the header has no element {sorted(missing)[0]}")
    body = content[end.end() :]
    columns = _ply_text(body, elements) if order is None else _ply_binary(body, elements, order)
    for axis in "xyz":
        if not isinstance(columns["vertex"].get(axis), np.ndarray):
            raise ValueError(f"the vertices have no property {axis}")
    vertices = np.stack([columns["vertex"][axis] for axis in "xyz"], 1).astype(np.float64)
    corners = next((columns["face"][name] for name in ("vertex_indices", "vertex_index") if name in columns["face"]), None)
    if corners is None:
        raise ValueError("the faces have no property vertex_indices")
    if isinstance(corners, np.ndarray):
        return vertices, corners.astype(np.int64).reshape(len(corners), -1)
    return vertices, np.array([triangle for face in corners for triangle in _fan([int(k) for k in face])], np.int64).reshape(-1, 3)


def _ply_header(text: str) -> tuple[str | None, list[tuple[str, int, Properties]]]:
    """Byte order, None for text, and the elements: name, number, properties."""
    orders = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
    order: str | None = ""
    elements: list[tuple[str, int, Properties]] = []
    for line in text.splitlines()[1:]:
        match line.split():
            case ["format", name, *_] if name in orders:
                order = orders[name]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", "list", size, kind, name] if elements and size in _PLY_TYPES and kind in _PLY_TYPES and "f" not in _PLY_TYPES[size]:
                elements[-1][2].append((name, _PLY_TYPES[kind], _PLY_TYPES[size]))
            case ["property", kind, name] if elements and kind in _PLY_TYPES:
                elements[-1][2].append((name, _PLY_TYPES[kind], None))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise ValueError(f"the line {line.strip()[:60]!r} of the header cannot be read")
    if order == "":
        raise ValueError("the header has no line 'format'")
    return order, elements


Columns = dict[str, dict[str, np.ndarray | list[np.ndarray]]]


def _ply_text(body: bytes, elements: list[tuple[str, int, Properties]]) -> Columns:
    words = body.split()
    place = 0
    found: Columns = {}
    for name, count, properties in elements:
        if not properties:
            continue
        if count * len(properties) > len(words) - place:
            raise ValueError(f"the file is cut off: {count} of element {name} do not fit into it")
        if all(size is None for _, _, size in properties):
            table = np.array(words[place : place + count * len(properties)], np.float64).reshape(count, -1)
            place += table.size
            found[name] = {key: table[:, k] for k, (key, _, _) in enumerate(properties)}
            continue
        rows: dict[str, list[np.ndarray]] = {key: [] for key, _, _ in properties}
        for _ in range(count):
            for key, _, size in properties:
                length = int(words[place]) if size is not None and place < len(words) else 1
                place += size is not None
                if not 0 <= length <= len(words) - place:
                    raise ValueError(f"the file is cut off in element {name}")
                rows[key].append(np.array(words[place : place + length], np.float64))
                place += length
        found[name] = dict(rows)
    return found


def _ply_binary(body: bytes, elements: list[tuple[str, int, Properties]], order: str) -> Columns:
    place = 0
    found: Columns = {}
    for name, count, properties in elements:
        if not properties:
            continue
        # Lists of three, the only ones of most files, are read at a stroke; their numbers tell whether they are.
        guess = np.dtype([part for key, kind, size in properties for part in _fields(key, order + kind, size and order + size)])
        least = sum(np.dtype(size or kind).itemsize for _, kind, size in properties)
        if count * least > len(body) - place:
            raise ValueError(f"the file is cut off: {count} of element {name} do not fit into it")
        if count * guess.itemsize <= len(body) - place:
            table = np.frombuffer(body, guess, count, place)
            if all((table[f"{key} length"] == 3).all() for key, _, size in properties if size):
                found[name] = {key: table[key] for key, _, _ in properties}
                place += table.nbytes
                continue
        rows: dict[str, list[np.ndarray]] = {key: [] for key, _, _ in properties}
        for _ in range(count):
            for key, kind, size in properties:
                values, place = _values(body, place, order, kind, size, name)
                rows[key].append(values)
        found[name] = dict(rows)
    return found


def _fields(key: str, kind: str, size: str | None) -> Iterator[tuple[str, str] | tuple[str, str, tuple[int, ...]]]:
    if size is None:
        yield key, kind
    else:
        yield f"{key} length", size
        yield key, kind, (3,)


def _values(body: bytes, place: int, order: str, kind: str, size: str | None, name: str) -> tuple[np.ndarray, int]:
    dtype, length = np.dtype(order + kind), 1
    if size is not None:
        counter = np.dtype(order + size)
        length = int(np.frombuffer(body, counter, 1, place)[0]) if place + counter.itemsize <= len(body) else -1
        place += counter.itemsize
    if length < 0 or length * dtype.itemsize > len(body) - place:
        raise ValueError(f"the file is cut off or damaged in element {name}")
    return np.frombuffer(body, dtype, length, place), place + length * dtype.itemsize


# ------------------------------------------------------------------------------------------------------------------ .stl

_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def _stl(content: bytes) -> Arrays:
    count = int.from_bytes(content[80:84], "little") if len(content) >= 84 else 0
    size = 84 + count * _FACET.itemsize
    # Some binary files begin with "solid" too.
    if content.lstrip()[:5].lower() == b"solid" and len(content) != size and b"endsolid" in content.lower():
        corners = _stl_text(content)
    elif len(content) < max(size, 84):
        raise ValueError(f"the file is cut off or no .stl file: {count} faces need {size} bytes, it has {len(content)}")
    else:
        corners = np.frombuffer(content, _FACET, count, 84)["corners"].astype(np.float64)
    # Adding 0 makes −0 and 0 the same corner.
    vertices, faces = np.unique(corners.reshape(-1, 3) + 0.0, axis=0, return_inverse=True)
    return vertices, faces.reshape(-1, 3)


def _stl_text(content: bytes) -> np.ndarray:
    numbers = re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", content, re.IGNORECASE)
    if len(numbers) % 3 or content.lower().count(b"endfacet") * 3 != len(numbers):
        raise ValueError(f"the file is cut off or damaged: {len(numbers)} corners in {content.lower().count(b'endfacet')} whole faces")
    return np.array(numbers, np.float64).reshape(-1, 3, 3)


_READERS: dict[str, Callable[[bytes], Arrays]] = {".obj": _obj, ".ply": _ply, ".stl": _stl}
