"""A layerwise fit by threads, processes and Dask's workers: the same bits, whoever reads which rows, and in what pieces."""

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from fluvial.codecs import spline_loops
from fluvial.gaussianization import store
from fluvial.gaussianization import workers as workers_module
from fluvial.gaussianization.fit import fit
from fluvial.gaussianization.shard import Plan, Shard
from fluvial.gaussianization.sources import ArrayRows, Rows, RowSource, open_rows
from fluvial.gaussianization.workers import LocalWorkers, reader_of, shares, single_threaded

ROWS = 40_000
SIZES = {"eager": 3, "compiled": 33}


def table(features, rows=ROWS):
    """Correlated and skewed rows."""
    rng = np.random.default_rng(features)
    x = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features))
    x[:, 0] += x[:, 1] ** 2
    return x.astype(np.float32)


def fitted(data, **options):
    return fit(data, **{"max_layers": 4, "progress": False, "threads": 1} | options)


def parameters(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}


def same(found, expected):
    found, expected = (parameters(flow) if isinstance(flow, torch.nn.Module) else flow for flow in (found, expected))
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def reference():
    return {name: parameters(fitted(table(features))) for name, features in SIZES.items()}


# ---- threads, and the pieces in which rows are read


def test_the_sizes_are_for_both_engines():
    chosen = {name: spline_loops.choose_engine(ROWS, features) for name, features in SIZES.items()}
    assert chosen == {"eager": "eager", "compiled": "compiled" if spline_loops.has_numba() else "eager"}


@pytest.mark.parametrize("engine", SIZES)
@pytest.mark.parametrize("threads", [2, 3, 40])
def test_any_number_of_threads_gives_the_same_bits(reference, engine, threads):
    assert same(fitted(table(SIZES[engine]), threads=threads), reference[engine])


def test_another_seed_gives_others(reference):
    assert not same(fitted(table(3), seed=1), reference["eager"])


def test_the_number_of_threads_of_torch_does_not_count(reference):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert same(fitted(table(33)), reference["compiled"])
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["classes", "kernel"])
def test_conditions_and_weights_change_nothing_in_that(kind):
    x = table(3, 20_000)
    condition = x[:, 1:] + 0.5
    c = (condition[:, :1] > 0).astype(np.float32) if kind == "classes" else condition
    weight = np.random.default_rng(0).uniform(0.5, 2, len(x))
    expected = fitted((x, c, weight), max_layers=3, conditioning=kind)
    assert same(fitted((x, c, weight), max_layers=3, conditioning=kind, threads=3), expected)


class Pieces(RowSource):
    """Rows of another source, read so many at a time, wherever the blocks begin."""

    def __init__(self, source, size):
        for name in ("rows", "features", "names", "condition_features", "condition_names", "has_weight"):
            setattr(self, name, getattr(source, name))
        self.source, self.size = source, size

    def read(self, start, stop):
        parts, row = [], start
        while row < stop:
            # On a grid of pieces that knows nothing of the range.
            upto = min(stop, (row // self.size + 1) * self.size)
            parts.append(self.source.read(row, upto))
            row = upto
        return Rows(*(None if column[0] is None else np.concatenate(column) for column in zip(*parts)))


@pytest.mark.parametrize("size", [1, 7, 8191, 10_000])
def test_the_pieces_that_are_read_do_not_count(size):
    x = table(33, 10_000 if size < 100 else ROWS)
    weight = 1 + np.arange(len(x)) % 3
    expected = fitted((x, None, weight), max_layers=3, scratch=None)
    assert same(fitted(Pieces(ArrayRows(x, None, weight), size), max_layers=3, threads=2), expected)


def write_parquet(folder, x, sizes, group):
    from pyarrow import parquet, table

    folder.mkdir()
    start = 0
    for k, size in enumerate(sizes):
        part = x[start : start + size]
        parquet.write_table(table({f"x{i}": column for i, column in enumerate(part.T)}), folder / f"{k:02}.parquet", row_group_size=group)
        start += size
    assert start == len(x)
    return folder


@pytest.mark.parametrize("group", [5000, 8191, 30_000])
def test_files_and_row_groups_do_not_count(tmp_path, reference, group, monkeypatch):
    monkeypatch.setattr(workers_module, "_THREAD_BYTES", 0)
    monkeypatch.setattr(workers_module, "_THREAD_BLOCKS", 0.01)
    folder = write_parquet(tmp_path / "rows", table(33), [9000, 1, 18_999, 12_000], group)
    stores = []
    file_store = store.FileStore.__init__
    monkeypatch.setattr(store.FileStore, "__init__", lambda self, *args, **options: stores.append(args[0]) or file_store(self, *args, **options))
    assert same(fitted(folder, threads=2, memory="1M", scratch=tmp_path), reference["compiled"])
    assert stores == [range(2), range(2, 5)]


def test_every_thread_reads_a_file_for_itself(tmp_path, monkeypatch):
    from fluvial.gaussianization.parquet_rows import ParquetRows

    opened = []
    read = ParquetRows._open
    monkeypatch.setattr(ParquetRows, "_open", lambda self, group: opened.append(group) or read(self, group))
    x = table(3)
    source = open_rows(write_parquet(tmp_path / "rows", x, [ROWS], ROWS))
    workers = LocalWorkers(Plan(source, ROWS, 0.0, 0, "eager"), threads=2)
    with contextlib.closing(workers):
        found = workers.call("survey", None, np.array([3, 39_000]))
    np.testing.assert_array_equal(np.concatenate([part.sample[1] for part in found]), x[[3, 39_000]].astype(np.float64))
    assert len(opened) == 2


def test_readers_of_sources_within_sources_are_their_own():
    inner = ArrayRows(table(3))
    outer = Pieces(inner, 10)
    reader = reader_of(outer)
    assert reader is not outer
    assert reader.source is not inner
    assert reader.source.x is inner.x


def test_shares_hold_every_block_once_and_may_be_empty():
    for blocks in range(8):
        for workers in range(1, 12):
            parts = shares(range(blocks), workers)
            assert len(parts) == workers
            assert [block for part in parts for block in part] == list(range(blocks))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("survey", (None, np.array([0, 5]))),
        ("moments", (None, np.zeros(3), np.zeros(3))),
        ("count_keys", (slice(0, 3),)),
        ("count_fine", (slice(0, 3), np.full((3, 2**16), -1, np.int32), 1)),
        ("count_grid", (None,)),
        ("rows", (np.array([0, 5]),)),
    ],
)
def test_a_share_without_blocks_answers_with_nothing(method, arguments):
    plan = Plan(ArrayRows(table(3, 500)), 500, 0.1, 0, "eager")
    before = torch.nn.Identity()
    before.encode_ladj = lambda x: (x, torch.zeros(len(x)))
    full, empty = Shard(plan, range(1)), Shard(plan, range(0))
    for shard in (full, empty):
        shard.load(before, np.zeros(3), 1.0)
    one, none = getattr(full, method)(*arguments), getattr(empty, method)(*arguments)
    if isinstance(one, list):
        assert none == []
        return
    for whole, part in zip(*((found if isinstance(found, tuple) else (found,)) for found in (one, none))):
        if isinstance(whole, np.ndarray) and whole.dtype == np.int64 and method.startswith("count"):
            assert whole.shape == part.shape
            assert not part.any()


# ---- limits and memory


def blas_threads():
    return {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def test_products_are_limited_as_long_as_workers_live_and_no_longer():
    import scipy.linalg  # noqa: F401 - brings a library of its own
    from threadpoolctl import threadpool_limits

    plan = Plan(ArrayRows(table(3)), ROWS, 0.0, 0, "eager")
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        first = LocalWorkers(plan, threads=2)
        second = LocalWorkers(plan, threads=1)
        assert set(blas_threads().values()) == {1}
        first.close()
        assert set(blas_threads().values()) == {1}
        second.close()
        assert blas_threads() == before


def test_torch_is_limited_in_every_thread(monkeypatch):
    seen = set()
    look = Shard.look
    monkeypatch.setattr(
        Shard, "look", lambda self, **k: seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads())) or look(self, **k)
    )
    monkeypatch.setattr("fluvial.gaussianization.layers.matrix_of", checked_matrix)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fitted(table(3), threads=2, max_layers=2)
        assert seen == {(False, 1)}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def checked_matrix(kind, features, **options):
    from fluvial.gaussianization.rotations import matrix_of

    assert torch.get_num_threads() == 1
    return matrix_of(kind, features, **options)


def test_limits_end_with_an_error():
    before, threads = blas_threads(), torch.get_num_threads()
    x = table(3)
    x[-1, 1] = np.nan
    with pytest.raises(ValueError, match="row 39999, column 1 is nan"):
        fitted(x, threads=2)
    with pytest.raises(ValueError, match="memory"), single_threaded():
        fitted(table(3), memory="much")
    assert blas_threads() == before
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fluvial")]


def test_memory_is_that_of_the_process():
    plan = Plan(ArrayRows(table(3)), ROWS, 0.0, 0, "eager", memory="1G")
    with contextlib.closing(LocalWorkers(plan, threads=4)) as workers:
        assert [shard.plan.memory for shard in workers.shards] == [250_000_000] * 4
    plan = Plan(ArrayRows(table(3)), ROWS, 0.0, 0, "eager", memory="300M")
    with contextlib.closing(LocalWorkers(plan, threads=4)) as workers:
        assert len(workers.shards) == 2
    plan = Plan(ArrayRows(table(3)), ROWS, 0.0, 0, "eager")
    with contextlib.closing(LocalWorkers(plan, threads=2)) as workers, contextlib.closing(LocalWorkers(plan)) as alone:
        assert workers.shards[0].plan.memory < 0.75 * alone.shards[0].plan.memory


def test_closing_ends_a_pass_that_is_under_way():
    class Slow(Pieces):
        def read(self, start, stop):
            readers.add(threading.get_ident())
            if len(readers) == 2:  # both threads are at work
                begun.set()
            time.sleep(0.05)
            return super().read(start, stop)

    begun, readers = threading.Event(), set()
    workers = LocalWorkers(Plan(Slow(ArrayRows(table(3, 8192 * 200)), 10**6), 8192 * 200, 0.0, 0, "eager"), threads=2)
    errors = []

    def work():
        try:
            workers.call("survey", None, np.empty(0, np.int64))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    start = time.perf_counter()
    workers.close()
    thread.join(10)
    assert time.perf_counter() - start < 3  # of 10 s
    assert errors == ["Shard: stopped"]


# ---- resuming


@pytest.mark.parametrize("engine", SIZES)
def test_ctrl_c_in_a_layer_ends_after_it_and_the_fit_goes_on(tmp_path, reference, monkeypatch, engine):
    count, calls = Shard.count_grid, []

    def interrupted(self, rotation):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return count(self, rotation)

    monkeypatch.setattr(Shard, "count_grid", interrupted)
    fitted(table(SIZES[engine]), directory=tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"][-1]["layer"] == 3
    monkeypatch.undo()
    assert same(fitted(table(SIZES[engine]), directory=tmp_path, resume=True, threads=2), reference[engine])


def test_a_second_ctrl_c_in_a_layer_leaves_the_checkpoint_before(tmp_path, reference, monkeypatch):
    count, calls = Shard.count_grid, []

    def interrupted(self, rotation):
        calls.append(1)
        if len(calls) == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
        return count(self, rotation)

    monkeypatch.setattr(Shard, "count_grid", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(table(3), directory=tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"][-1]["layer"] == 3
    monkeypatch.undo()
    assert same(fitted(table(3), directory=tmp_path, resume=True), reference["eager"])


# ---- processes of a group


def member(rank, size, folder, task):
    """What a process of the group runs."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": size} if rank is not None else {}
    dist.init_process_group("gloo", timeout=timedelta(seconds=120), **where)
    TASKS[task](dist.get_rank(), folder)
    dist.destroy_process_group()


def fit_all(rank, folder):
    for name, features in SIZES.items():
        flow = fitted(table(features), threads=1 + rank % 2, directory=folder / name)
        torch.save(parameters(flow), folder / f"{name}-{rank}.pt")
    # One block for all of them.
    torch.save(parameters(fitted(table(3, 500))), folder / f"small-{rank}.pt")


def fail_all(rank, folder):
    """Every way to fail in one process only; what each of them is told. Then the leader is killed."""
    bad = table(3)
    bad[-1, 2] = np.nan
    blocked = folder / "blocked"
    blocked.touch()

    def complain(row):
        if rank == 1:
            raise ArithmeticError("enough")

    trials = {
        "bad row": lambda: fitted(bad),
        "missing": lambda: fitted(table(3) if rank == 0 else folder / "nowhere.npy"),
        "callback": lambda: fitted(table(3), on_layer=complain),
        "blocked": lambda: fitted(table(3), directory=blocked),
        "others": lambda: fitted(table(3) + np.float32(rank)),
        "fewer": lambda: fitted(table(3)[rank * 100 :]),
    }
    for name, trial in trials.items():
        try:
            trial()
            told = "nothing"
        except Exception as error:  # noqa: BLE001 - whatever it is
            told = f"{type(error).__name__}: {error} {' '.join(getattr(error, '__notes__', []))}"
        (folder / f"{name}-{rank}.txt").write_text(told)
    # The group still works.
    torch.save(parameters(fitted(table(3))), folder / f"eager-{rank}.pt")
    die(rank, folder)


def die(rank, folder):
    """The leader is killed in the middle of its third layer."""
    count, calls = Shard.count_grid, []

    def deadly(self, rotation):
        calls.append(1)
        if rank == 0 and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return count(self, rotation)

    Shard.count_grid = deadly
    fitted(table(3), directory=folder / "run")


TASKS = {"fit": fit_all, "trouble": fail_all}


def group(size, folder, task):
    """Exit codes of processes that run a task together."""
    folder.mkdir()
    command = [sys.executable, __file__]
    processes = [subprocess.Popen([*command, str(rank), str(size), str(folder), task], stderr=subprocess.PIPE, text=True) for rank in range(size)]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def test_processes_of_torchrun_give_the_same_bits(tmp_path, reference):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(tmp_path), "fit"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    check_group(tmp_path, 2, reference)


def test_four_processes_give_the_same_bits(tmp_path, reference):
    codes, errors = group(4, tmp_path / "four", "fit")
    assert codes == [0] * 4, errors
    check_group(tmp_path / "four", 4, reference)


def check_group(folder, size, reference):
    small = parameters(fitted(table(3, 500)))
    for rank in range(size):
        for name in SIZES:
            assert same(torch.load(folder / f"{name}-{rank}.pt"), reference[name])
            assert {path.name for path in (folder / name).iterdir()} == {"checkpoint.pt", "history.jsonl", "model.safetensors"}
        assert same(torch.load(folder / f"small-{rank}.pt"), small)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """The folder of two processes in which everything goes wrong, and their exit codes."""
    folder = tmp_path_factory.mktemp("troubled") / "group"
    start = time.perf_counter()
    codes, errors = group(2, folder, "trouble")
    assert time.perf_counter() - start < 110, errors  # and not the timeout of the group
    return folder, codes


def test_an_error_in_one_process_is_raised_in_all(troubled, reference):
    folder = troubled[0]
    told = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    for rank in (0, 1):
        assert told[f"bad row-{rank}"].startswith("ValueError: data: row 39999, column 2 is nan")
        assert told[f"missing-{rank}"].startswith("FileNotFoundError")
        assert told[f"callback-{rank}"].startswith("ArithmeticError: enough")
        assert told[f"blocked-{rank}"].startswith("ValueError: fit: directory")
        assert "first rows is" in told[f"others-{rank}"]
        assert "rows is 40000 in process 0 and 39900 in process 1; every process must be given all the data" in told[f"fewer-{rank}"]
        assert same(torch.load(folder / f"eager-{rank}.pt"), reference["eager"])
    assert told["callback-0"].endswith("in process 1 of 2")
    assert not told["callback-1"].endswith("in process 1 of 2")


def test_a_killed_process_ends_the_others_and_the_fit_goes_on_from_the_last_layer(troubled, reference):
    folder, codes = troubled
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, -signal.SIGKILL)
    run = folder / "run"
    assert torch.load(run / "checkpoint.pt", weights_only=True)["history"][-1]["layer"] == 2
    assert same(fitted(table(3), directory=run, resume=True), reference["eager"])
    assert len((run / "history.jsonl").read_text().splitlines()) == 4


# ---- Dask

needs_dask = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason='Dask is not installed: pip install "fluvial[dask]"')


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        yield client


@needs_dask
def test_dask_gives_the_same_bits_from_arrays_and_from_files(client, tmp_path, reference):
    assert same(fitted(table(3), client=client), reference["eager"])
    folder = write_parquet(tmp_path / "rows", table(33), [ROWS], 9000)
    assert same(fitted(folder, client=client), reference["compiled"])
    # Nothing is left with the workers.
    deadline = time.monotonic() + 10
    while any(client.has_what().values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(client.has_what().values())


@needs_dask
def test_dask_errors_reach_the_client(client, tmp_path):
    from distributed import Client

    np.save(tmp_path / "x.npy", table(3))

    def gone(row):
        raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError, match="enough"):
        fitted(table(3), client=client, on_layer=gone)
    source = open_rows(tmp_path / "x.npy")
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    with pytest.raises(FileNotFoundError, match=r"x\.npy.*Dask worker tcp.*every worker must see this path"):
        fitted(source, client=client)
    bad = table(3)
    bad[-1, 2] = np.nan
    with pytest.raises(ValueError, match="row 39999, column 2 is nan"):
        fitted(bad, client=client)
    with pytest.raises(TypeError, match=r"distributed\.Client"):
        fitted(table(3), client="cluster")
    with Client(set_as_default=False, n_workers=0, dashboard_address=":0") as idle, pytest.raises(ValueError, match="no workers yet"):
        fitted(table(3), client=idle)


@needs_dask
def test_a_worker_without_numba_is_named(client):
    pytest.importorskip("numba")

    def hide(name):
        import sys

        from fluvial.codecs import spline_loops

        spline_loops.has_numba.cache_clear()
        sys.modules["numba"] = None if name else __import__("importlib").import_module("numba") if sys.modules.pop("numba", 1) else None

    client.run(hide, "numba")
    try:
        with pytest.raises(ModuleNotFoundError, match="Dask worker tcp.* has no numba"):
            fitted(table(33), client=client)
    finally:
        client.run(hide, "")


@needs_dask
def test_a_dask_worker_killed_in_mid_fit_is_replaced(client, reference):
    processes = client.run(os.getpid)
    killed = []

    def kill(row):
        if row["layer"] == 2:
            killed.append(next(iter(processes.values())))
            os.kill(killed[0], signal.SIGKILL)

    assert same(fitted(table(3), client=client, on_layer=kill), reference["eager"])
    assert killed
    client.wait_for_workers(2)


@needs_dask
def test_what_a_dask_worker_holds_can_be_asked_again(monkeypatch):
    """Answers that got lost, steps that were not done, and steps that failed."""
    from fluvial.gaussianization import dask_workers

    held = object.__new__(dask_workers.Held)
    held._lock, held.done, held._last = threading.Lock(), 0, []

    class Recorder:
        calls = []

        def call(self, method, *args):
            self.calls.append(method)
            if method == "fails":
                raise OSError("disk full")
            return [method]

        def close(self):
            pass

    held._workers = Recorder()
    steps = [(name, (), {}) for name in ("load", "apply", "apply")]
    assert held.answer(2, steps[2:], None) == dask_workers.Behind(0)
    assert held.answer(0, steps[:2], None) == ["apply"]
    assert held.answer(1, steps[1:2], None) == ["apply"]
    assert held.answer(2, [], ("look", (), {})) == ["look"]
    assert held.answer(0, steps, ("look", (), {})) == ["look"]
    assert Recorder.calls == ["load", "apply", "look", "apply", "look"]
    with pytest.raises(OSError, match="disk full"):
        held.answer(3, [("fails", (), {})], None)
    assert held.answer(3, [], ("look", (), {})) == dask_workers.Behind(0)


@needs_dask
def test_a_local_cluster_ends_with_the_fit(monkeypatch, reference):
    import distributed

    started = []
    start = distributed.LocalCluster.__init__

    def in_this_process(self, **options):
        assert options["n_workers"] == 2
        started.append(self)
        start(self, **options, processes=False, silence_logs=50)

    monkeypatch.setattr(distributed.LocalCluster, "__init__", in_this_process)
    assert same(fitted(table(3), client="local", threads=2), reference["eager"])
    assert [cluster.status.name for cluster in started] == ["closed"]
    # What they held is freed, and the limits with it.
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("fluvial") for thread in threading.enumerate()) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fluvial")]
    assert not workers_module._limits


@needs_dask
def test_only_the_rows_of_a_part_are_sent(tmp_path):
    from fluvial.gaussianization.dask_workers import Window, portable
    from fluvial.gaussianization.sources import Appended

    x = table(3)
    np.save(tmp_path / "x.npy", x)
    on_disk, in_memory = open_rows(tmp_path / "x.npy"), open_rows(torch.from_numpy(x))
    assert portable(on_disk, range(2, 4)) is on_disk
    assert isinstance(portable(Appended(on_disk, in_memory), range(1)), Window)
    window = portable(in_memory, range(2, 5))
    assert window.blocks == in_memory.blocks
    for block in (2, 3, 4):
        np.testing.assert_array_equal(window.read_block(block).x, in_memory.read_block(block).x)
    with pytest.raises(IndexError, match="window"):
        window.read_block(1)
    import pickle

    assert len(pickle.dumps(window)) < 1.01 * (ROWS - 2 * 8192) * 3 * 4 + 1000


if __name__ == "__main__":
    if len(sys.argv) == 5:
        member(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        member(None, None, Path(sys.argv[1]), sys.argv[2])
