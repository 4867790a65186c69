"""Files as data sets, and one clear line for those that are none."""

import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from fluvial.data import as_dataset, load
from fluvial.manifolds import Sphere

TABLE = "T,p,V\n300,1.0,24.9\n300,2.0,12.5\n400,1.0,33.3\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def frame():
    generator = np.random.default_rng(0)
    return pd.DataFrame(generator.normal(size=(20, 4)), columns=["a", "b", "T", "w"]).assign(w=lambda f: f.w.abs())


def save(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".npz":
        np.savez(path, **{name: frame[name].to_numpy() for name in frame})
    else:
        np.save(path, frame.to_records(index=False))


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npz", ".npy"])
def test_named_columns_of_every_format(frame, tmp_path, ending):
    path = tmp_path / f"table{ending}"
    save(frame, path)
    whole = load(path)
    assert whole.spec.names == ("a", "b", "T", "w")
    torch.testing.assert_close(whole.x, torch.tensor(frame.to_numpy(), dtype=torch.float32))
    ds = load(str(path), columns=["b", "a"], condition=["T"], weight="w", noise=0.1, dequantize=[0.1, 0])
    assert ds.name == "table"
    assert ds.spec.names == ("b", "a")
    assert ds.spec.condition_names == ("T",)
    assert (ds.spec.noise, ds.spec.dequantize) == (0.1, (0.1, 0.0))
    torch.testing.assert_close(ds.x[:, 0], torch.tensor(frame.b.to_numpy(), dtype=torch.float32))
    torch.testing.assert_close(ds.c[:, 0], torch.tensor(frame["T"].to_numpy(), dtype=torch.float32))
    torch.testing.assert_close(ds.weight, torch.tensor(frame.w.to_numpy(), dtype=torch.float32))
    assert load(path, condition="T", weight="w").spec.names == ("a", "b")
    assert as_dataset(path, condition="T").spec.names == ("a", "b", "w")
    with pytest.raises(ValueError, match="no column 'q'; there are 'a', 'b', 'T', 'w'"):
        load(path, columns=["q"])
    with pytest.raises(ValueError, match="'T' is given two uses"):
        load(path, columns=["a", "T"], condition=["T"])
    with pytest.raises(ValueError, match="no column is left to be data"):
        load(path, condition=["a", "b", "T", "w"])


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_arrays(tmp_path, ending):
    x = np.random.default_rng(0).normal(size=(10, 1, 4, 4))
    path = tmp_path / f"images{ending}"
    np.savez(path, x=x, c=np.arange(10.0), weight=np.ones(10)) if ending == ".npz" else np.save(path, x)
    ds = load(path)
    assert ds.x.shape == (10, 1, 4, 4)
    assert (ds.c is None, ds.weight is None) == ((False, False) if ending == ".npz" else (True, True))
    with pytest.raises(ValueError, match=r"columns can be chosen from an array of shape \(n, columns\), got \(10, 1, 4, 4\)"):
        load(path, columns=["x0"])


def test_npz_with_one_array_and_names(tmp_path):
    path = tmp_path / "run.npz"
    x = np.random.default_rng(0).normal(size=(10, 3))
    np.savez(path, x=x, names=["pt", "eta", "m"], T=np.arange(10.0), weight=np.arange(10.0))
    assert load(path).spec.names == ("pt", "eta", "m")
    ds = load(path, condition=["T"])
    assert ds.spec.names == ("pt", "eta", "m")
    assert ds.c.flatten().tolist() == ds.weight.tolist() == list(range(10))
    assert load(path, columns=["m"], condition="pt").spec.names == ("m",)
    assert load(path, condition=["eta", "T"]).spec.names == ("pt", "m")
    np.savez(path, **{"x": x, "c.T": x[:, :1], "c.field": x.reshape(10, 1, 3)})
    assert load(path).spec.condition == {"T": (1,), "field": (1, 3)}
    np.savez(path, x=x)
    assert load(path, columns=["x2", "x0"]).x[:, 0].tolist() == x[:, 2].astype(np.float32).tolist()


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        "# made by hand\n\n" + TABLE,
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace(",", ", "),
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE + "\n\n",
        TABLE.replace("T,", '"T",').replace("300,", '"300",'),
    ],
    ids=["plain", "comments", "semicolon", "tab", "spaces", "mark", "crlf", "trailing", "quotes"],
)
def test_csv_dialects(write, text):
    ds = load(write(text))
    assert ds.spec.names == ("T", "p", "V")
    assert ds.x.tolist() == [[300.0, 1.0, pytest.approx(24.9)], [300.0, 2.0, 12.5], [400.0, 1.0, pytest.approx(33.3)]]


def test_csv_without_names(write):
    ds = load(write("1,2.5,3\n4,,6e-1\n7,8,nan\n"), condition="x0")
    assert ds.spec.names == ("x1", "x2")
    assert ds.c.flatten().tolist() == [1, 4, 7]
    with pytest.raises(ValueError, match="row 1, column 'x1' is nan"):
        ds.check()


def test_csv_integers_first_and_fractions_later(write):
    # Longer than the block whose look would decide a guessed type.
    ds = load(write("a,b\n" + "1,2\n" * 400_000 + "1.5,2\n"))
    assert len(ds) == 400_001
    assert ds.x[-1].tolist() == [1.5, 2.0]


def test_csv_ignores_text_that_is_not_asked_for(write):
    path = write("name,x,y\nfoo,1,2\nbar,3,5\n")
    assert load(path, columns=["x", "y"]).x.tolist() == [[1, 2], [3, 5]]
    with pytest.raises(ValueError, match=r"table.csv: column 'name', row 0 \(line 2\): 'foo' is not a number; leave"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the file is empty \(0 bytes\)"),
        ("# nothing\n\n", "only comments or empty lines"),
        ("a,b\n", "no rows, only the columns 'a', 'b'"),
        ("a,b\n1,2\n3,4\n5\n", r"line 4 \(row 2\) has 1 entries, expected 2"),
        ("# note\na,b\n1,2\n3,4,5\n", r"line 4 \(row 1\) has 3 entries, expected 2"),
        ("a,b\n1,2\n\n3,x\n", r"column 'b', row 1 \(line 4\): 'x' is not a number"),
        ("a,b\n1,2\n3,1_000\n", "'1_000' is not a number"),
        ("a,2\n1,2\n", "line 1 is neither all names nor all numbers: 'a'"),
        ("a,a\n1,2\n", "column name 'a' occurs 2 times"),
        (b"\xff\xfe\x00a,b\n1,2\n", "not a text file in UTF-8"),
    ],
)
def test_csv_errors_name_the_place(write, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(write(text))
    assert "table.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_files(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"gone.csv: no such file"):
        load(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"unknown ending '.xlsx'; data is read from .npz, .npy, .csv, .parquet"):
        load(write("1,2", "table.xlsx"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="not a file"):
        load(tmp_path / "folder.csv")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_never_opened(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Bomb(), 1.0], dtype=object)
    np.save(tmp_path / "objects.npy", objects)
    np.savez(tmp_path / "objects.npz", x=objects)
    for path in (write(pickle.dumps(Bomb()), "p.npy"), tmp_path / "objects.npy", tmp_path / "objects.npz"):
        with pytest.raises(ValueError, match=rf"{path.name}: .* pickle.*never opened"):
            load(path)
    with zipfile.ZipFile(tmp_path / "q.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="a pickle"):
        load(tmp_path / "q.npz")
    assert not (tmp_path / "exploded").exists()


def test_broken_binary_files(tmp_path, write, frame):
    for ending in (".parquet", ".npz", ".npy"):
        with pytest.raises(ValueError, match=f"bad{ending}: .*(not readable|no numpy array)"):
            load(write(b"hello world, this is nothing of the kind", f"bad{ending}"))
        save(frame, tmp_path / f"whole{ending}")
        content = (tmp_path / f"whole{ending}").read_bytes()
        with pytest.raises(ValueError, match=f"cut{ending}: .*(not readable|truncated)"):
            load(write(content[: len(content) // 2], f"cut{ending}"))
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(ValueError, match=r"uneven.npz: expected one array x, or named arrays of one shape"):
        load(tmp_path / "uneven.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="no arrays"):
        load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000000000, 2), }",
        "{'descr': '<f8', 'fortran",
        "{'descr': ('a',), 'fortran_order': False, 'shape': (1, 2), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000, 2), }",
        "x y",
        "",
    ],
)
def test_headers_that_lie_or_are_malformed(header, tmp_path, write):
    line = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + bytes(64)
    with pytest.raises(ValueError, match=r"bad.npy: array is broken") as caught:
        load(write(content, "bad.npy"))
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=r"bad.npz: x.npy is broken"):
        load(tmp_path / "bad.npz")


def test_whole_numbers_that_no_float_holds_are_refused_by_column(tmp_path, write):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"i": [1, 2**53 + 1], "f": [1.0, 1e20]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"t.parquet: column 'i' holds whole numbers beyond 2\*\*53"):
        load(path)
    assert len(load(path, columns="f")) == 2
    with pytest.raises(ValueError, match=r"table.csv: column 'i' holds the whole number -9007199254740993 beyond"):
        load(write("i,f\n1,2\n-9007199254740993,1e20\n"))
    assert len(load(write("i,f\n1,2\n9007199254740992,1e20\n"))) == 2


def test_parquet_types(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "f": np.float32([1, 2]), "b": [True, False], "s": ["u", "v"]}).to_parquet(path)
    ds = load(path, columns=["i", "f", "b"])
    assert ds.x[0].tolist() == [1, 1, 1]
    assert ds.x[1].isnan().tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"t.parquet: column 's' holds (large_)?string, 'u' in row 0, not numbers; leave it out with columns="):
        load(path)
    pd.DataFrame({"a": np.zeros(0)}).to_parquet(path)
    with pytest.raises(ValueError, match="no rows"):
        load(path)


def test_latitude_and_longitude_become_unit_vectors(write):
    path = write("lon,when,lat\n0,1,0\n90,2,0\n10,3,90\n-180,4,45\n")
    ds = load(path, latlon=("lat", "lon"), condition="when")
    root = 0.5**0.5
    torch.testing.assert_close(ds.x, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-root, 0, root]]))
    assert ds.spec.manifold == Sphere(2)
    assert ds.spec.condition_names == ("when",)
    with pytest.raises(ValueError, match=r"latitude of row 1 is 91, outside ±90 degrees; are latitude and longitude swapped\?"):
        load(write("lat,lon\n1,2\n91,3\n"), latlon=("lat", "lon"))
    with pytest.raises(ValueError, match="names of two columns"):
        load(path, latlon="lat")
    with pytest.raises(ValueError, match="no columns="):
        load(path, latlon=("lat", "lon"), columns=["when"])


def test_constant_columns_are_dropped_on_request(write):
    ds = load(write(TABLE.replace("400", "300")), drop_constant=True)
    assert ds.spec.dropped == ("T",)
    assert ds.spec.names == ("p", "V")
