"""Rows read a range at a time from arrays, maps, files and folders."""

import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from fluvial.data import Dataset
from fluvial.gaussianization.parquet_rows import ParquetRows
from fluvial.gaussianization.sources import BLOCK, Appended, ArrayRows, FileArray, Rows, RowSource, open_rows
from fluvial.manifolds import Sphere

pytestmark = pytest.mark.filterwarnings("ignore:.*left out, as they hold no numbers")

N, D = 25_000, 3


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    return Rows(rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(N, 2)).astype(np.float32), rng.exponential(size=N))


def frame(rows: Rows) -> pa.Table:
    x, c, weight = rows
    return pa.table({"a": x[:, 0], "c0": c[:, 0], "b": x[:, 1], "text": ["t"] * len(x), "w": weight, "c1": c[:, 1], "d": x[:, 2]})


@pytest.fixture(scope="module")
def folder(numbers, tmp_path_factory):
    """Three files, none of which begins or ends at a block, in row groups that do neither."""
    path = tmp_path_factory.mktemp("folder")
    table = frame(numbers)
    for name, start, stop, size in (("a", 0, 9_500, 1000), ("b", 9_500, 9_500, 1000), ("c", 9_500, 19_507, 10_007), ("d", 19_507, N, 8191)):
        parquet.write_table(table.slice(start, stop - start), path / f"part-{name}.parquet", row_group_size=size)
    (path / "_SUCCESS").touch()
    (path / ".hidden.parquet").write_bytes(b"no data")
    return path


@pytest.fixture(scope="module", params=["arrays", "tensors", "memmap", "npy", "npy by column", "parquet"])
def opened(request, numbers, folder, tmp_path_factory):
    """A source of every kind and what it must hold."""
    path = tmp_path_factory.mktemp("files")
    if request.param == "arrays":
        return open_rows(tuple(numbers)), numbers
    if request.param == "tensors":
        return open_rows(tuple(map(torch.from_numpy, numbers))), numbers
    if request.param == "memmap":
        maps = []
        for k, part in enumerate(numbers):
            maps.append(np.memmap(path / f"{k}.bin", part.dtype, "w+", offset=100, shape=part.shape))
            maps[-1][:] = part
        return open_rows(tuple(maps)), numbers
    if request.param == "parquet":
        return open_rows(folder, condition=["c0", "c1"], weight="w"), numbers
    np.save(path / "x.npy", np.concatenate([numbers.x, numbers.c, numbers.weight[:, None]], 1, dtype=np.float64)[:, [0, 3, 1, 5, 4, 2]])
    if request.param == "npy by column":
        np.save(path / "x.npy", np.asfortranarray(np.load(path / "x.npy")))
    source = open_rows(path / "x.npy", condition=["x1", "x4"], weight="x3")
    return source, Rows(*(part.astype(np.float64) for part in numbers))


def check_equal(found: Rows, expected: Rows, start: int, stop: int):
    for part, whole in zip(found, expected):
        np.testing.assert_array_equal(part, whole[start:stop], strict=True)
        assert part.flags.c_contiguous
        assert part.flags.writeable


# ---- ranges


@pytest.mark.parametrize("size", [1, 7, 8191, 8192, 10_000, N])
def test_any_ranges_are_the_whole(opened, size):
    source, expected = opened
    assert (source.rows, source.features, source.condition_features, source.has_weight, source.blocks) == (N, D, 2, True, 4)
    stop = N if size > 100 else 60 * size
    for start in range(0, stop, size):
        check_equal(source.read(start, min(start + size, stop)), expected, start, min(start + size, stop))


def test_ranges_in_any_order(opened):
    source, expected = opened
    for start, stop in np.sort(np.random.default_rng(1).integers(0, N + 1, (30, 2)), 1).tolist():
        check_equal(source.read(start, stop), expected, start, stop)
    check_equal(source.read_block(3), expected, 3 * BLOCK, N)
    check_equal(source.read(N, N), expected, N, N)
    for start, stop in ((-1, 3), (5, 4), (0, N + 1)):
        with pytest.raises(IndexError, match=f"rows {start} to {stop} of a source of 25000"):
            source.read(start, stop)


def test_sources_are_pickled(opened):
    source, expected = opened
    source.read(100, 200)
    twin = pickle.loads(pickle.dumps(source))
    assert isinstance(twin, RowSource)
    check_equal(twin.read(8000, 9600), expected, 8000, 9600)
    check_equal(source.read(200, 300), expected, 200, 300)


def test_what_is_read_is_the_readers_own(numbers):
    kept = numbers.x.copy()
    source = open_rows(kept)
    source.read(0, 5).x[:] = 0
    np.testing.assert_array_equal(kept, numbers.x)


def test_another_process_reads_the_same(folder, tmp_path):
    source = open_rows(folder, columns=["d", "a"])
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(source))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).read(9400, 9600).x.sum(dtype='f8'))"
    done = subprocess.run([sys.executable, "-c", code, "source.pickle"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == source.read(9400, 9600).x.sum(dtype="f8")


def test_one_source_after_another(numbers, folder):
    both = Appended(open_rows(folder, condition=["c0", "c1"], weight="w"), open_rows(tuple(part[:100] for part in numbers)))
    whole = Rows(*(np.concatenate([part, part[:100]]) for part in numbers))
    assert (both.rows, both.names) == (N + 100, ("a", "b", "d"))
    for start, stop in ((0, 10), (N - 5, N + 5), (N, N), (N + 3, N + 90), (3, N + 100)):
        check_equal(both.read(start, stop), whole, start, stop)
    with pytest.raises(ValueError, match="validation rows have features=2, the training rows 3"):
        Appended(both, open_rows(numbers.x[:, :2]))


# ---- kinds of arrays


def test_maps_are_read_from_their_files(numbers, tmp_path):
    np.save(tmp_path / "x.npy", numbers.x)
    whole = np.load(tmp_path / "x.npy", mmap_mode="r")
    for part, by_file in ((whole, True), (whole[1000:20_000], True), (whole.T[1], False), (whole[:, :2], False), (np.asarray(whole)[5:], True)):
        source = open_rows(part)
        assert isinstance(source, ArrayRows)
        assert isinstance(source.x, FileArray) == by_file
        np.testing.assert_array_equal(source.read(3, 5000).x, np.array(part[3:5000]).reshape(4997, -1))
    np.save(tmp_path / "f.npy", np.asfortranarray(numbers.x))
    columns = np.load(tmp_path / "f.npy", mmap_mode="r")[7:, 1:]
    source = open_rows(columns)
    assert isinstance(source.x, FileArray)
    np.testing.assert_array_equal(source.read(0, 100).x, numbers.x[7:107, 1:])
    assert len(pickle.dumps(source)) < 2000
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[0] = 5
    assert open_rows(private).read(0, 1).x.tolist() == [[5.0, 5.0, 5.0]]


@pytest.mark.parametrize(("kind", "expected"), [("i8", "f8"), ("i2", "f4"), ("?", "f4"), ("f2", "f4"), (">f8", "f8"), (">f4", "f4"), ("u4", "f8")])
def test_other_numbers_become_floats_exactly(kind, expected, tmp_path):
    values = np.array([[0, 1], [1, 0], [1, 1]], kind)
    np.save(tmp_path / "x.npy", values)
    for data in (values, tmp_path / "x.npy", *(() if ">" in kind else (torch.from_numpy(values),))):
        found = open_rows(data).read(0, 3).x
        assert found.dtype == expected
        np.testing.assert_array_equal(found, values)


def test_vectors_count_as_one_column():
    source = open_rows((np.arange(5.0), np.arange(5.0)))
    assert (source.features, source.condition_features) == (1, 1)
    assert source.read(1, 3).x.tolist() == [[1.0], [2.0]]
    assert open_rows((np.ones((5, 2)), None, np.ones(5))).read(0, 2).weight.tolist() == [1.0, 1.0]


def test_data_sets_frames_and_files_keep_their_names(numbers, tmp_path):
    data = Dataset(numbers.x[:100], numbers.c[:100], names=("a", "b", "d"), condition_names=("u", "v"), name="tracks")
    table = pd.DataFrame(np.concatenate([numbers.x, numbers.c], 1)[:100], columns=["a", "b", "d", "u", "v"])
    table.to_csv(tmp_path / "table.csv", index=False)
    np.savez(tmp_path / "table.npz", x=numbers.x[:100], c=numbers.c[:100])
    for source in (open_rows(data), open_rows(table, condition=["u", "v"]), open_rows(str(tmp_path / "table.csv"), condition=["u", "v"])):
        assert source.names == ("a", "b", "d")
        assert source.condition_names == ("u", "v")
        np.testing.assert_allclose(source.read(10, 30).x, numbers.x[10:30], rtol=1e-6)
        np.testing.assert_allclose(source.read(10, 30).c, numbers.c[10:30], rtol=1e-6)
    assert open_rows(tmp_path / "table.npz").condition_features == 2
    assert open_rows(source) is source


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((4, 2, 2)), r"shape \(n, features\), got \(4, 2, 2\); flatten"),
        (np.ones((0, 2)), r"no rows \(x has shape \(0, 2\)\)"),
        (np.ones((4, 0)), r"got \(4, 0\)"),
        ((np.ones((4, 2)), np.ones(3)), r"one condition per row of x \(4\), got shape \(3,\)"),
        ((np.ones((4, 2)), {"m": np.ones(4)}), "got a dict"),
        ((np.ones((4, 2)), None, np.ones((4, 1))), r"weight must be one number per row"),
        (np.ma.masked_equal(np.eye(3), 1), "3 entries are masked"),
        (Dataset(torch.eye(3), manifold=Sphere(2)), "flat space, got points on"),
    ],
)
def test_unfit_data_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        open_rows(data)


@pytest.mark.parametrize(
    "data", [np.array([["a", "b"]]), np.ones((3, 2), complex), torch.ones(3, 2, dtype=torch.complex64), (np.ones(3),) * 4, object()]
)
def test_what_is_no_data_is_refused(data):
    with pytest.raises(TypeError):
        open_rows(data)
    with pytest.raises(TypeError, match="columns= name columns|name columns of a DataFrame"):
        open_rows(np.ones((3, 2)), columns=["a"])


def test_bad_entries_are_named(numbers):
    x, c, weight = (np.array(part[:9000]) for part in numbers)
    x[8500, 1], c[8600, 0], weight[8700] = np.nan, np.inf, -2
    for data, stop, message in (
        (x, 8500, r"row 8500, column 1 is nan; remove"),
        ((x[:, 2:], c), 8600, r"row 8600, condition column 0 is inf"),
        ((x[:, 2:], None, weight), 8700, r"weight of row 8700 is -2"),
        (Dataset(x, names=("a", "b", "d"), name="tracks"), 8500, r"data tracks: row 8500, column 'b' is nan"),
    ):
        source = open_rows(data)
        source.read(8192, stop)
        with pytest.raises(ValueError, match=message):
            source.read(8192, 9000)


def test_broken_npy_files(tmp_path, numbers):
    path = tmp_path / "x.npy"
    np.save(path, numbers.x)
    source = open_rows(path)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ValueError, match=r"x.npy: the file ends early, .* bytes are missing"):
        source.read(N - 10, N)
    with pytest.raises(ValueError, match=r"x.npy: truncated, 200000 bytes of numbers where its shape \(25000, 3\)"):
        open_rows(path)
    path.write_bytes(b"\x80\x04hello")
    with pytest.raises(ValueError, match="x.npy: .*pickle"):
        open_rows(path)
    np.save(path, np.ones((0, 3)))
    with pytest.raises(ValueError, match="x.npy: .*no rows"):
        open_rows(path)
    np.save(path, np.ones(5))
    with pytest.raises(ValueError, match="columns can be chosen from"):
        open_rows(path, columns=["x0"])
    np.save(path, np.array([(1.0, 2.0)], [("a", "f4"), ("b", "f4")]))
    assert open_rows(path).names == ("a", "b")
    with pytest.raises(FileNotFoundError, match="nowhere.npy: no such file"):
        open_rows(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match="unknown ending"):
        open_rows(__file__)


# ---- Parquet


def test_parquet_columns_are_chosen(folder, numbers):
    source = open_rows(folder)
    assert source.names == ("a", "c0", "b", "w", "c1", "d")
    assert source.read(0, 1).x.dtype == np.float64  # for w
    source = open_rows(folder / "part-c.parquet", columns=["d", "a"], condition="b")
    assert (source.names, source.condition_names, source.has_weight, source.rows) == (("d", "a"), ("b",), False, 10_007)
    np.testing.assert_array_equal(source.read(5, 9).x, numbers.x[9505:9509][:, [2, 0]], strict=True)


def test_types_of_all_files_decide(tmp_path):
    kinds = {"a": pa.float32(), "b": pa.float64(), "c": pa.int8(), "d": pa.bool_(), "e": pa.decimal128(6, 1), "f": pa.int64(), "g": pa.float16()}
    for name, kind in kinds.items():
        values = pa.array(np.array([1, 0, 1], np.float16)) if name == "g" else pa.array([True, False, True]).cast(pa.int8()).cast(kind)
        parquet.write_table(pa.table({"x": values}), tmp_path / f"{name}.parquet")
    source = open_rows(tmp_path)
    assert source.rows == 21
    np.testing.assert_array_equal(source.read(0, 21).x[:, 0], [1.0, 0, 1] * 7, strict=True)
    for name in "acdg":
        assert open_rows(tmp_path / f"{name}.parquet").read(0, 3).x.dtype == np.float32


def test_labels_of_frames_are_no_data(tmp_path):
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [4.0, 5.0, 6.0, 7.0]})
    table[table.a != 3].to_parquet(tmp_path / "x.parquet")
    assert "__index_level_0__" in parquet.read_schema(tmp_path / "x.parquet").names
    assert open_rows(tmp_path / "x.parquet").names == ("a", "b")


def write(path, **columns):
    parquet.write_table(pa.table(columns), path, row_group_size=2)


def test_bad_entries_are_named_by_file_column_and_row(tmp_path):
    write(tmp_path / "a.parquet", a=[1.0, 2.0, 3.0], w=[1.0, 1.0, 1.0])
    for column, entry, message in (
        ("a", None, r"b.parquet: column 'a', row 3: the entry is missing"),
        ("a", float("nan"), r"b.parquet: column 'a', row 3: nan is no number"),
        ("a", float("inf"), r"b.parquet: column 'a', row 3: inf"),
        ("w", -1.0, r"b.parquet: column 'w', row 3: weight -1; weights must be"),
    ):
        columns = {"a": [1.0] * 5, "w": [1.0] * 5}
        columns[column][3] = entry
        write(tmp_path / "b.parquet", **columns)
        source = open_rows(tmp_path, weight="w")
        source.read(0, 6)
        with pytest.raises(ValueError, match=message):
            source.read(2, 8)
    write(tmp_path / "b.parquet", a=[1, 2**60 + 1], w=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"b.parquet: column 'a', row 0: whole numbers beyond 2\*\*53"):
        open_rows(tmp_path, weight="w").read(0, 5)


def test_files_that_differ_are_named(tmp_path):
    write(tmp_path / "a.parquet", a=[1.0, 2.0], b=[1.0, 2.0], text=["u", "v"])
    other = tmp_path / "b.parquet"
    write(other, a=[1.0], text=["u"])
    with pytest.raises(ValueError, match=r"b.parquet: no column 'b', which .*a.parquet has"):
        open_rows(tmp_path)
    assert open_rows(tmp_path, columns="a").rows == 3
    write(other, a=[1.0], b=["high"])
    with pytest.raises(ValueError, match=r"b.parquet: column 'b' holds string, not numbers"):
        open_rows(tmp_path)
    write(other, b=[3.0], a=[1.0], z=[0.0])
    with pytest.raises(ValueError, match=r"b.parquet: column 'z' is not in .*a.parquet; say with columns="):
        open_rows(tmp_path)
    # The order of columns within a file means nothing.
    assert open_rows(tmp_path, columns=["a", "b"]).read(2, 3).x.tolist() == [[1.0, 3.0]]
    write(other, b=[3.0], a=[1.0], other_text=["z"])
    assert open_rows(tmp_path).names == ("a", "b")


def test_broken_folders_and_files_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        open_rows(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no .parquet files in this folder"):
        open_rows(tmp_path)
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "x.parquet", a=[1.0])
    with pytest.raises(ValueError, match="there is .*deeper.x.parquet, give that folder"):
        open_rows(tmp_path)
    path.touch()
    with pytest.raises(ValueError, match=r"x.parquet: the file is empty \(0 bytes\)"):
        open_rows(tmp_path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"x.parquet: not readable as Parquet"):
        open_rows(path)
    write(path, a=pa.array([], pa.float64()), t=pa.array([], pa.string()))
    with pytest.raises(ValueError, match=r"x.parquet: there are no rows, only the columns 'a'"):
        open_rows(path)
    write(path, t=["u"])
    with pytest.raises(ValueError, match=r"x.parquet: no column holds numbers; there are 't' \(string\)"):
        open_rows(path)
    with pytest.raises(ValueError, match=r"x.parquet: column 't' holds string, not numbers"):
        open_rows(path, columns="t")
    write(path, a=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"x.parquet: no column 'z'; there are 'a'"):
        open_rows(path, weight="z")
    with pytest.raises(ValueError, match=r"no column is left to be data"):
        open_rows(path, weight="a")
    with pytest.raises(ValueError, match=r"column 'a' is given two uses"):
        open_rows(path, columns="a", weight="a")


def test_a_file_changed_while_it_is_read_is_named(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", a=np.arange(5.0))
    source = open_rows(tmp_path)
    source.read(0, 3)
    write(tmp_path / "b.parquet", a=np.arange(3.0))
    with pytest.raises(ValueError, match=r"b.parquet: row group 1 is not what it was"):
        source.read(3, 10)
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.parquet: no such file"):
        pickle.loads(pickle.dumps(source)).read(5, 7)
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[4:60] = b"\xff" * 56
    (tmp_path / "a.parquet").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a.parquet: not readable"):
        pickle.loads(pickle.dumps(source)).read(0, 3)


def test_row_groups_larger_than_a_batch(tmp_path, numbers, monkeypatch):
    monkeypatch.setattr("fluvial.gaussianization.parquet_rows.BATCH_BYTES", 8 * D * 9000)
    parquet.write_table(pa.table({f"x{k}": column for k, column in enumerate(numbers.x.T)}), tmp_path / "x.parquet", row_group_size=20_000)
    source = open_rows(tmp_path / "x.parquet")
    assert isinstance(source, ParquetRows)
    assert source.batch_rows == 9000
    opened = []
    monkeypatch.setattr(ParquetRows, "_open", lambda self, group, then=ParquetRows._open: (opened.append(group), then(self, group))[1])
    for block in range(source.blocks):
        np.testing.assert_array_equal(source.read_block(block).x, numbers.x[block * BLOCK : (block + 1) * BLOCK])
    assert opened == [0, 1]
    np.testing.assert_array_equal(source.read(100, 200).x, numbers.x[100:200])
    np.testing.assert_array_equal(source.read(19_000, 24_000).x, numbers.x[19_000:24_000])


@pytest.mark.parametrize("row_group_size", [10_007, 1_000_000])
def test_memory_stays_bounded(tmp_path, row_group_size):
    columns, rows = 16, 1_000_000
    path = tmp_path / "x.parquet"
    values = np.random.default_rng(0).random(rows, np.float32)
    with parquet.ParquetWriter(path, pa.schema([(f"x{k}", pa.float32()) for k in range(columns)]), use_dictionary=False) as writer:
        writer.write_table(pa.table({f"x{k}": np.roll(values, k) for k in range(columns)}), row_group_size=row_group_size)
    assert os.path.getsize(path) > 50e6
    source = open_rows(path)
    before, most, total = pa.total_allocated_bytes(), 0, 0.0
    for block in range(source.blocks):
        total += source.read_block(block).x[:, 3].sum(dtype=np.float64)
        most = max(most, pa.total_allocated_bytes() - before)
    assert total == pytest.approx(values.sum(dtype=np.float64), rel=1e-9)
    # A batch, and a page of every column packed and unpacked; all columns together hold 64 MB.
    assert most < 25e6


def test_an_array_in_a_file_is_never_resident(tmp_path):
    code = """
import numpy as np, resource, sys
from fluvial.gaussianization.sources import open_rows
source = open_rows(sys.argv[1])
source.read_block(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for block in range(source.blocks):
    source.read_block(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    np.save(tmp_path / "x.npy", np.ones((1_000_000, 15), np.float32))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.npy")], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000  # kB, of 60 000


def test_columns_of_text_are_left_out_with_a_word(tmp_path):
    parquet.write_table(pa.table({"a": np.arange(5.0), "kind": ["x"] * 5}), tmp_path / "rows.parquet")
    with pytest.warns(UserWarning, match=r"left out, as they hold no numbers: 'kind' \(string\); columns= says which are meant"):
        assert open_rows(tmp_path / "rows.parquet").features == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_rows(tmp_path / "rows.parquet", columns=["a"]).features == 1
