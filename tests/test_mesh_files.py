"""Reading meshes: every format, and files that are damaged or hostile."""

import struct

import numpy as np
import pytest

from fluvial.manifolds import Mesh

SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]]


def square():
    return Mesh(*SQUARE, creases="sharp")


def text(*lines):
    return "\n".join(lines).encode() + b"\n"


PLY_HEAD = ("element vertex 4", "property float x", "property double y", "property float z", "property uchar red", "element face 2")
PLY_TAIL = ("property list uchar int vertex_indices", "end_header")


def ply_binary(order, *, quad=False):
    name = {"<": "little", ">": "big"}[order]
    faces = ((0, 1, 2, 3),) if quad else SQUARE[1]
    head = [line.replace("face 2", f"face {len(faces)}") for line in PLY_HEAD]
    body = b"".join(struct.pack(f"{order}fdfB", *map(float, v), 7) for v in SQUARE[0])
    body += b"".join(struct.pack(f"{order}B{len(f)}i", len(f), *f) for f in faces)
    return text("ply", f"format binary_{name}_endian 1.0", "comment made by hand", *head, *PLY_TAIL) + body


def stl_binary(faces=SQUARE[1]):
    corners = np.array(SQUARE[0], float)[np.array(faces)]
    facets = b"".join(struct.pack("<12fH", 0, 0, 1, *corner.ravel(), 0) for corner in corners)
    return b"solid of no text".ljust(80) + struct.pack("<I", len(faces)) + facets


def stl_text():
    lines = ["solid square"]
    for face in SQUARE[1]:
        lines += ["facet normal 0 0 1", "outer loop", *("vertex {:e} {} {}".format(*SQUARE[0][k]) for k in face), "endloop", "endfacet"]
    return text(*lines, "endsolid square")


FILES = {
    "plain.obj": text("# a square", "o square", "v 0 0 0", "v 1 0 0", "v 1 1 0 1.0", "v 0 1 0", "f 1 2 3 # half", "f 1 3 4"),
    "full.obj": text("v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0", "vt 0 0", "vn 0 0 1", "s off", "f 1/1/1 2/1/1 3/1/1", "f 1//1 3//1 4//1"),
    "back.obj": text("v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0", "f -4/1 -3/1 -2/1", "f -4 -2 -1"),
    "fan.OBJ": text("v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0", "f 1 2 \\", "3 4"),
    "text.ply": text("ply", "format ascii 1.0", *PLY_HEAD, *PLY_TAIL, "0 0 0 1", "1 0 0 1", "1 1 0 1", "0 1 0 1", "3 0 1 2", "3 0 2 3"),
    "quad.ply": text("ply", "format ascii 1.0", *PLY_HEAD[:-1], "element face 1", *PLY_TAIL, "0 0 0 1", "1 0 0 1", "1 1 0 1", "0 1 0 1", "4 0 1 2 3"),
    "little.ply": ply_binary("<"),
    "big.ply": ply_binary(">"),
    "little quad.ply": ply_binary("<", quad=True),
    "big quad.ply": ply_binary(">", quad=True),
    "text.stl": stl_text(),
    "binary.stl": stl_binary(),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    mesh = Mesh.read(tmp_path / name, scale=2.0)
    assert len(mesh.vertex_array) == 4, "corners are shared"
    corners = sorted(sorted(map(tuple, mesh.vertex_array[face])) for face in mesh.face_array)
    assert corners == sorted(sorted(tuple(2.0 * np.array(SQUARE[0][k])) for k in face) for face in SQUARE[1])
    normal = np.cross(*(mesh.vertex_array[mesh.face_array[:, k]] - mesh.vertex_array[mesh.face_array[:, 0]] for k in (1, 2)))
    assert (normal[:, 2] > 0).all(), "orientation is kept"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.off", b"OFF", r"\.obj, \.ply, \.stl"),
        ("points.obj", text("v 0 0 0"), "no faces"),
        ("number.obj", text("v 0 0 0", "v 0 0 zero"), r"line 2 \('v 0 0 zero'\)"),
        ("short.obj", text("v 0 0 0", "f 1 1"), "line 2.*three corners"),
        ("range.obj", text("v 0 0 0", "v 1 0 0", "f 1 2 3"), "range.obj: Mesh: face 0 names vertices"),
        ("zero.obj", text("v 0 0 0", "v 1 0 0", "v 1 1 0", "f 0 1 2"), "face 0 names vertices"),
        ("head.ply", b"ply\nformat ascii 1.0\n", "end_header"),
        ("other.ply", b"plain text", "no .ply file"),
        ("element.ply", text("ply", "format ascii 1.0", "element vertex 0", "property float x", "end_header"), "no element face"),
        ("line.ply", text("ply", "format ascii 1.0", "element vertex -4", "end_header"), "'element vertex -4'"),
        ("cut.ply", FILES["little.ply"][:-9], "cut off"),
        ("cut quad.ply", FILES["big quad.ply"][:-9], "cut off"),
        ("cut text.ply", FILES["text.ply"][:-8], "cut off"),
        ("hostile.ply", FILES["little.ply"].replace(b"vertex 4", b"vertex 999999999999"), "cut off"),
        ("hostile text.ply", FILES["text.ply"].replace(b"face 2", b"face 999999999999"), "cut off"),
        ("long list.ply", FILES["little.ply"][:-26] + struct.pack("<B", 255) + FILES["little.ply"][-25:], "cut off"),
        ("cut.stl", stl_binary()[:-1], "cut off"),
        ("hostile.stl", b" " * 80 + b"\xff\xff\xff\xff", "4294967295 faces need"),
        ("empty.stl", b"", "cut off"),
        ("cut text.stl", stl_text()[:-60], "cut off"),
        ("nothing.stl", b"solid nothing\nendsolid", "no faces"),
    ],
)
def test_damaged_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Mesh.read(tmp_path / name)


def test_files_that_are_not_there_or_need_mending(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.obj"):
        Mesh.read(tmp_path / "nothing.obj")
    (tmp_path / "flat.obj").write_bytes(FILES["plain.obj"] + b"f 1 1 2\n")
    with pytest.raises(ValueError, match=r"flat\.obj: Mesh: face 2 .*drop_degenerate=True"):
        Mesh.read(tmp_path / "flat.obj")
    assert Mesh.read(tmp_path / "flat.obj", creases="sharp", drop_degenerate=True) == square()
    with pytest.raises(ValueError, match="scale"):
        Mesh.read(tmp_path / "flat.obj", scale=0.0)
