"""Sums by a fixed tree, random numbers by key, and the stores of blocks."""

import errno
import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest

from fluvial.gaussianization import keyed, store
from fluvial.gaussianization.keyed import chosen, normal, sample_rows, uniform
from fluvial.gaussianization.sources import BLOCK
from fluvial.gaussianization.store import BlockStore, FileStore, MemoryStore, choose_store, parse_size
from fluvial.gaussianization.tree import TreeSum, merge

# ---- sums by a fixed tree


def nasty(blocks, seed=0):
    """Numbers whose sum depends on the order of adding."""
    rng = np.random.default_rng(seed)
    return rng.choice([1e16, 1.0, -1e16, 3.0, 1e-3], (blocks, 3)) * rng.normal(1, 0.1, (blocks, 3))


def by_definition(values):
    """The tree as the documentation says it: neighbours level by level, an odd one carried up."""
    while len(values) > 1:
        pairs = [left + right for left, right in zip(values[::2], values[1::2])]
        values = pairs + ([values[-1]] if len(values) % 2 else [])
    return values[0]


def shares(values, owner):
    parts = {worker: TreeSum() for worker in set(owner)}
    for block, worker in enumerate(owner):
        parts[worker].add(block, values[block])
    return [part.nodes for part in parts.values()]


@pytest.mark.parametrize("blocks", range(1, 41))
def test_any_division_of_blocks_gives_the_same_bits(blocks):
    rng = np.random.default_rng(blocks)
    values = nasty(blocks, blocks)
    expected = by_definition(list(values))
    for workers in range(1, 6):
        contiguous = np.sort(rng.integers(workers, size=blocks))
        for owner in (contiguous, rng.integers(workers, size=blocks), np.arange(blocks) % workers):
            nodes = shares(values, owner.tolist())
            rng.shuffle(nodes)
            np.testing.assert_array_equal(merge(pickle.loads(pickle.dumps(nodes)), blocks), expected)


def test_the_order_would_matter_without_the_tree():
    different = [not np.array_equal(by_definition(list(nasty(33, seed))), sum(nasty(33, seed))) for seed in range(5)]
    assert any(different)


def test_few_nodes_are_kept():
    part = TreeSum()
    most = 0
    for block in range(1001, 9001):
        part.add(block, np.ones(1))
        most = max(most, len(part.nodes))
    assert most <= 2 * 13
    assert sum(node.value[0] for node in part.nodes) == 8000


def test_values_are_copied_and_dicts_added_by_name():
    parts, buffer = TreeSum(), np.zeros(2)
    for block in range(5):
        buffer[:] = block
        parts.add(block, {"sum": buffer, "count": np.int64(2**53 + 1)})
    for _ in range(2):
        # Merging changes nothing in what it is given.
        found = merge([parts.nodes], 5)
        assert found["sum"].tolist() == [10.0, 10.0]
        assert found["count"] == 5 * (2**53 + 1)


@pytest.mark.parametrize(
    ("owned", "blocks", "message"),
    [
        ([[0, 1], [3]], 4, "block 2 is missing"),
        ([[0, 1], [1, 2]], 3, "block 1 was added twice"),
        ([[0, 1, 2, 3], [2]], 4, "block 2 was added twice"),
        ([[0, 1]], 3, "block 2 is missing"),
        ([[0, 1, 2]], 2, "there are 3"),
        ([[]], 0, "at least one"),
    ],
)
def test_blocks_missing_or_twice_are_named(owned, blocks, message):
    parts = [TreeSum() for _ in owned]
    for part, numbers in zip(parts, owned):
        for block in numbers:
            part.add(block, np.ones(1))
    with pytest.raises(ValueError, match=message):
        merge([part.nodes for part in parts], blocks)


def test_wrong_order_and_other_shapes_are_refused():
    part = TreeSum()
    part.add(4, np.ones(2))
    with pytest.raises(ValueError, match="got block 4 after block 4"):
        part.add(4, np.ones(2))
    with pytest.raises(ValueError, match="block 5 has float64 \\(1,\\)"):
        part.add(5, np.ones(1))
    other = TreeSum()
    other.add(5, {"a": np.ones(2)})
    first = TreeSum()
    for block in range(4):
        first.add(block, np.ones(2))
    with pytest.raises(ValueError, match="block 5 has"):
        merge([first.nodes, part.nodes, other.nodes], 6)


# ---- random numbers by key


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("first", [0, 2**40])
def test_uniform_is_uniform_and_independent(first):
    n = 200_000
    rows = np.arange(first, first + n)
    u = uniform(0, rows, 0, "dither")
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    # 255 degrees of freedom: mean 255, standard deviation 22.6. Highest and lowest bits alike.
    for bits in (u, (u * 2**30) % 1):
        counts = np.bincount((bits * 256).astype(int), minlength=256)
        assert 165 < ((counts - n / 256) ** 2 / (n / 256)).sum() < 365
    # Pairs of neighbouring rows fill the square evenly.
    cells = np.bincount((u[:-1:2] * 16).astype(int) * 16 + (u[1::2] * 16).astype(int), minlength=256)
    assert 165 < ((cells - n / 512) ** 2 / (n / 512)).sum() < 365
    for lag in (1, 2, 64, 8192):
        assert abs(correlation(u[:-lag], u[lag:])) < 5 / n**0.5
    others = [uniform(1, rows, 0, "dither"), uniform(0, rows, 1, "dither"), uniform(0, rows, 0, "split"), uniform(-1, rows, 0, "dither")]
    for k, other in enumerate(others):
        assert abs(correlation(u, other)) < 5 / n**0.5
        assert all(abs(correlation(other, third)) < 5 / n**0.5 for third in others[:k])


def test_uniform_depends_on_the_key_only():
    rows = np.arange(1000)
    whole = uniform(7, rows, 3, "dither")
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(uniform(7, rows[order], 3, "dither"), whole[order])
    np.testing.assert_array_equal(np.concatenate([uniform(7, rows[k : k + 1], 3, "dither") for k in range(50)]), whole[:50])
    # The numbers of this version: a later one must not fit other flows to the same data and seed.
    assert [f"{number:.12f}" for number in uniform(0, np.array([0, 1, 2**40]), 0, "dither")] == GOLDEN
    assert not np.array_equal(uniform(0, rows, 0, 1), uniform(0, rows, 0, "1"))


GOLDEN = ["0.678496748597", "0.978728117710", "0.842911325403"]


def test_normal_is_normal():
    n = 200_000
    g = normal(0, np.arange(n), 2, "noise")
    assert abs(g.mean()) < 5 / n**0.5
    assert abs(g.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((g**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs(correlation(g[:-1], g[1:])) < 5 / n**0.5


def test_chosen_has_its_share_and_nests():
    rows = np.arange(100_000)
    few, many = chosen(3, rows, 0.1, "validation"), chosen(3, rows, 0.3, "validation")
    assert abs(few.mean() - 0.1) < 5 * (0.09 / 1e5) ** 0.5
    assert not (few & ~many).any()
    with pytest.raises(ValueError, match="fraction within"):
        chosen(0, rows, 1.5, "validation")


@pytest.mark.parametrize(("total", "size"), [(10, 3), (1000, 999), (100_000, 10), (300_000, 20_000), (5, 5), (5, 9), (7, 0)])
def test_sample_rows_are_those_of_the_smallest_hashes(total, size, monkeypatch):
    found = sample_rows(1, total, size, "knots")
    hashes = keyed._hash(np.arange(total), keyed._keys(1, 0, "knots"))
    np.testing.assert_array_equal(found, np.sort(np.argsort(hashes, kind="stable")[:size]))
    monkeypatch.setattr(keyed, "CHUNK", 777)
    np.testing.assert_array_equal(sample_rows(1, total, size, "knots"), found)


def test_sample_rows_come_from_everywhere():
    counts = np.bincount(sample_rows(0, 1_000_000, 20_000, "knots") // 100_000, minlength=10)
    assert abs(counts - 2000).max() < 5 * (2000 * 0.9) ** 0.5


# ---- stores


def filled(make, rows, features, *, condition_features=2):
    rng = np.random.default_rng(0)
    held = make(range(-(-rows // BLOCK)), rows, features, condition_features=condition_features, has_weight=True)
    written = {}
    for block in held.blocks:
        n = min(BLOCK, rows - block * BLOCK)
        written[block] = {
            "x": rng.normal(size=(features, n)).astype(np.float32),
            "ladj": rng.normal(size=n),
            "weight": rng.integers(0, 2**60, n),
            "condition": rng.normal(size=(condition_features, n)).astype(np.float32),
        }
        for part, values in written[block].items():
            held.write(block, values, part)
    return held, written


@pytest.mark.parametrize("make", [MemoryStore, FileStore])
def test_stores_give_back_what_was_written(make):
    held, written = filled(make, 2 * BLOCK + 100, 3)
    with held:
        for block in (2, 0, 1):
            for part, values in written[block].items():
                found = held.read(block, part)
                np.testing.assert_array_equal(found, values, strict=True)
                assert found.flags.c_contiguous
        x = held.read(1)
        x += 1
        held.write(1, x)
        np.testing.assert_array_equal(held.read(1), written[1]["x"] + 1)
        np.testing.assert_array_equal(held.read(2), written[2]["x"])
        held.write(2, np.asfortranarray(written[2]["x"].astype(np.float64)))
        np.testing.assert_array_equal(held.read(2), written[2]["x"], strict=True)


@pytest.mark.parametrize("make", [MemoryStore, FileStore])
def test_stores_of_every_third_block(make):
    rows = 7 * BLOCK - 5
    with make(range(1, 7, 3), rows, 2) as held:
        held.write(4, np.full((2, BLOCK), 4, np.float32))
        assert held.read(4)[1, -1] == 4
        np.testing.assert_array_equal(held.read(1, "ladj"), np.zeros(BLOCK))
        for message, call in {
            "no block 2 here, only range\\(1, 7, 3\\)": lambda: held.read(2),
            "'x' of block 1 was never written": lambda: held.read(1),
            "no part 'weight'; there are 'x', 'ladj'": lambda: held.read(4, "weight"),
            "float32 of shape \\(2, 8192\\), got float32 of \\(8192, 2\\)": lambda: held.write(4, np.zeros((BLOCK, 2), np.float32)),
            "got complex128": lambda: held.write(4, np.zeros((2, BLOCK), complex)),
        }.items():
            with pytest.raises(ValueError, match=message):
                call()
    for blocks, rows, features, message in ((range(8), 7 * BLOCK, 2, "blocks 0 to 6"), (range(1), 0, 2, "got 0 rows"), (range(1), 5, 0, "≥ 1")):
        with pytest.raises(ValueError, match=message):
            make(blocks, rows, features)


def test_memory_store_is_changed_in_place():
    held, _ = filled(MemoryStore, 50, 2)
    held.read(0)[:] = 3
    assert (held.read(0) == 3).all()
    held.write(0, held.read(0))
    held.close()
    with pytest.raises(ValueError, match="never written"):
        held.read(0)


def test_scratch_takes_disk_and_leaves_nothing(tmp_path):
    held = FileStore(range(4), 4 * BLOCK, 5, folder=tmp_path)
    held.write(3, np.ones((5, BLOCK), np.float32))
    assert os.fstat(held._file.fileno()).st_size > 3 * held.nbytes // 4
    held.close()
    held.close()
    assert os.listdir(tmp_path) == []


def test_scratch_is_gone_after_a_kill(tmp_path):
    code = (
        "import sys, os, signal, numpy as np; from fluvial.gaussianization.store import FileStore\n"
        "held = FileStore(range(4), 4 * 8192, 5, folder=sys.argv[1]); held.write(3, np.ones((5, 8192), np.float32))\n"
        "print(os.fstat(held._file.fileno()).st_size, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert int(done.stdout) > 0
    assert os.listdir(tmp_path) == []


def test_a_disk_too_small_is_refused_before_writing(tmp_path):
    with pytest.raises(OSError, match="scratch file needs .* GB for 1000000000 blocks, but .* GB free; free space there") as caught:
        FileStore(range(10**9), 10**9 * BLOCK, 100, folder=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; create it first"):
        FileStore(range(1), 5, 2, folder=tmp_path / "nowhere")


def test_a_disk_that_fills_is_named(tmp_path):
    x = np.ones((5, BLOCK), np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with FileStore(range(4), 4 * BLOCK, 5, folder=tmp_path) as held:
        held.write(0, x)
        # A limit on the size of files refuses writes as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (held.nbytes // 2, limits[1]))
        try:
            with pytest.raises(OSError, match=r"disk full: the scratch file needs 0.9 MB .* refused block 3 .* another folder") as caught:
                held.write(3, x)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(tmp_path) in str(caught.value)
        np.testing.assert_array_equal(held.read(0), x)


def test_store_is_chosen_by_memory(tmp_path):
    need = 100 * BLOCK * (4 * 10 + 8)
    for memory, expected in ((2 * need, MemoryStore), (2 * need - 2, FileStore), ("1k", FileStore), ("1T", MemoryStore), (None, MemoryStore)):
        with choose_store(range(100), 100 * BLOCK, 10, memory=memory, folder=tmp_path) as held:
            assert type(held) is expected
            assert isinstance(held, BlockStore)
            assert held.nbytes == need
    assert type(choose_store(range(10**8), 10**8 * BLOCK, 10, memory="1000T")) is MemoryStore
    assert 0 < store.available_memory() < 2**50


SIZES = {"500M": 5e8, "500mb": 5e8, "1.5G": 1.5e9, "2GiB": 2**31, " 64 Ki ": 2**16, "12": 12, 7: 7, np.int64(9): 9, "1T": 1e12}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "5X", "-5M", 0, -1, True, 1.5, None, "1 2M", "i", "5iB"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="'500M' or '2GiB'"):
        parse_size(text)
