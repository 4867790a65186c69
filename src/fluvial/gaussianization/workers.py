"""Who works on the rows: threads of this process, or the processes of a group."""

import contextlib
import copy
import dataclasses
import hashlib
import pickle
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fluvial.gaussianization.device_shard import DeviceShard
from fluvial.gaussianization.device_store import exact_products
from fluvial.gaussianization.shard import Plan, Shard
from fluvial.gaussianization.sources import RowSource
from fluvial.gaussianization.store import available_memory, block_bytes, parse_size

_POLL = 0.2  # seconds between looks at whether someone pressed Ctrl-C
_THREAD_BYTES = 2**26  # what a thread needs for the batch of a Parquet file, and for counts
_THREAD_BLOCKS = 8  # and for blocks in hand, some in double precision
_COMPARED = 1000  # rows by which processes know that they hold the same data
_MENDS = {"engine": "install numba in all environments or in none", "device": "all must compute on the same kind of device"}


class Counted(NamedTuple):
    """What several shards have counted: arrays of one shape that are summed, extremes, and what else they found.

    Attributes:
        counts: Sum of the counts, int64.
        low: Smallest values.
        high: Largest.
        rest: Of every shard what it returned after these, in the order of their blocks.
    """

    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rest: list[tuple[Any, ...]]


class Workers(Protocol):
    """All shards of the data. Every method of `Shard` is called on all of them at once."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard, in the order of their blocks. What it raises on one is raised in every process."""
        ...

    def total(self, method: str, *args: Any, **kwargs: Any) -> np.ndarray:
        """The sum over all shards of the whole numbers that the method returns."""
        ...

    def counted(self, method: str, *args: Any) -> Counted:
        """What the method counts on all shards together."""
        ...

    def jointly(self, work: Callable[[], Any]) -> list[Any]:
        """What the function returns in every process that runs the fit, the leading one first. What it raises in one is raised in all."""
        ...

    def from_leader(self, value: Any) -> Any:
        """The value of the process that leads."""
        ...

    def close(self) -> None:
        """Free what the shards hold."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reports and writes files."""
        ...


class LocalWorkers:
    """Threads of this process.

    Matrix products keep to one thread in each, so that their results do not depend on the number of threads.

    Args:
        plan: Of the fit; its memory is that of all threads together.
        threads: How many; fewer where the memory is less than they would need.
        blocks: The blocks to share among them; default all.
    """

    leads = True

    def __init__(self, plan: Plan, *, threads: int = 1, blocks: range | None = None) -> None:
        blocks = range(plan.source.blocks) if blocks is None else blocks
        memory = available_memory() if plan.memory is None else parse_size(plan.memory)
        each = _THREAD_BYTES + _THREAD_BLOCKS * block_bytes(plan.source.features, condition_features=plan.source.condition_features)
        # Half of the memory is for blocks, the other for reading and counting them.
        threads = max(1, min(threads, len(blocks), memory // 2 // each))
        if plan.device is not None and torch.device(plan.device).type != "cpu":
            threads = 1  # a card has one queue
        plan = dataclasses.replace(plan, memory=max(1, memory // threads))
        # A reader of its own for each: they are at different places of a file.
        kind = Shard if plan.device is None else DeviceShard
        self.shards = [kind(dataclasses.replace(plan, source=reader_of(plan.source)), part) for part in shares(blocks, threads)]
        self._open = contextlib.ExitStack()
        self._open.enter_context(_limited_products())
        if plan.device is not None:
            self._open.enter_context(exact_products())
        self._pool = ThreadPoolExecutor(threads, "fluvial", torch.set_num_threads, (1,))

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard."""
        return self._results(method, args, kwargs)

    def total(self, method: str, *args: Any, **kwargs: Any) -> np.ndarray:
        """The sum over all shards."""
        return sum(self._results(method, args, kwargs), start=np.zeros((), np.int64))

    def counted(self, method: str, *args: Any) -> Counted:
        """What the method counts on all shards together."""
        return combined(self._results(method, args, {}))

    def _results(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        futures = [self._pool.submit(getattr(shard, method), *args, **kwargs) for shard in self.shards]
        pending = set(futures)
        while pending:
            # Not without end, as Ctrl-C may reach this thread only when it wakes.
            done, pending = wait(pending, timeout=_POLL, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        return [future.result() for future in futures]

    def jointly(self, work: Callable[[], Any]) -> list[Any]:
        """What the function returns."""
        return [work()]

    def from_leader(self, value: Any) -> Any:
        """The value."""
        return value

    def close(self) -> None:
        """Free the blocks and the threads; a pass that is under way ends with its present block."""
        with self._open:
            for shard in self.shards:
                shard.stop()
            self._pool.shutdown(cancel_futures=True)
            for shard in self.shards:
                shard.close()


class GroupWorkers:
    """The processes of torch's process group, each with a share of the blocks. All of them run the same fit.

    Args:
        plan: Of the fit; every process opens the same rows. Its memory is that of each process.
        threads: In each process.

    Raises:
        ValueError: If the group is of a kind that cannot exchange arrays in main memory, or the processes do not hold the same rows, or only some of
            them have numba.
    """

    def __init__(self, plan: Plan, *, threads: int = 1) -> None:
        import torch.distributed as dist

        self._dist = dist
        rank, size = dist.get_rank(), dist.get_world_size()
        self.leads = rank == 0
        _refuse_differences(self.jointly(lambda: _outline(plan)))
        if plan.memory is None:
            hosts = self.jointly(platform.node)
            plan = dataclasses.replace(plan, memory=max(1, available_memory() // hosts.count(platform.node())))
        blocks = shares(range(plan.source.blocks), size)[rank]
        self._local = together(lambda: LocalWorkers(plan, threads=threads, blocks=blocks))

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard of all processes."""
        return [result for part in self.jointly(lambda: self._local.call(method, *args, **kwargs)) for result in part]

    def total(self, method: str, *args: Any, **kwargs: Any) -> np.ndarray:
        """The sum over all shards of all processes."""
        total = together(lambda: self._local.total(method, *args, **kwargs))
        # A sum of whole numbers is the same in any order, and needs no list of everyone's.
        self._dist.all_reduce(torch.from_numpy(total))
        return total

    def counted(self, method: str, *args: Any) -> Counted:
        """What the method counts on all shards of all processes together."""
        found = together(lambda: self._local.counted(method, *args))
        # A sum of whole numbers, and the extremes of any numbers, are the same in any order.
        reduce = self._dist.ReduceOp
        for array, operation in ((found.counts, reduce.SUM), (found.low, reduce.MIN), (found.high, reduce.MAX)):
            self._dist.all_reduce(torch.from_numpy(array), operation)
        return found._replace(rest=[one for part in self.jointly(lambda: found.rest) for one in part])

    def jointly(self, work: Callable[[], Any]) -> list[Any]:
        """What the function returns in every process."""
        return jointly(work)

    def from_leader(self, value: Any) -> Any:
        """The value of the first process."""
        held = [value]
        self._dist.broadcast_object_list(held, src=0)
        return held[0]

    def close(self) -> None:
        """Free the blocks."""
        self._local.close()


def in_group() -> bool:
    """Whether this process belongs to a group of torch's."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def jointly(work: Callable[[], Any]) -> list[Any]:
    """What the function returns in every process of the group; alone where there is none.

    What it raises in one of them is raised in all, so that none waits for an answer that never comes.

    Raises:
        ValueError: If the group cannot exchange what is in main memory.
    """
    if not in_group():
        return [work()]
    import torch.distributed as dist

    if dist.get_backend() not in ("gloo", "mpi") and "cpu:" not in dist.get_backend():
        raise ValueError(
            f"fit: the process group has the backend {dist.get_backend()!r}, which exchanges nothing in main memory; "
            "use init_process_group('gloo') or 'cpu:gloo,cuda:nccl'"
        )
    gathered: list[Any] = [None] * dist.get_world_size()
    try:
        mine: Any = work()
    except Exception as error:  # noqa: BLE001 - the others wait for an answer, and must learn of it
        mine = _Failure(_sendable(error), dist.get_rank())
    dist.all_gather_object(gathered, mine)
    for part in gathered:
        if isinstance(part, _Failure):
            if part.rank != dist.get_rank():
                part.error.add_note(f"in process {part.rank} of {len(gathered)}")
            raise part.error
    return gathered


def together(work: Callable[[], Any]) -> Any:
    """What the function returns in this process, once it has succeeded in all of the group."""
    found: list[Any] = []
    jointly(lambda: found.append(work()))
    return found[0]


@dataclasses.dataclass
class _Failure:
    error: Exception
    rank: int


def _sendable(error: Exception) -> Exception:
    """The error, or its text where it does not survive the journey to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - errors of any library, whose constructors may raise whatever they like
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _outline(plan: Plan) -> dict[str, Any]:
    """What must be the same in all processes."""
    source = plan.source
    digest = hashlib.sha256()
    for part in source.read(0, min(_COMPARED, source.rows)):
        if part is not None:
            digest.update(np.ascontiguousarray(part).tobytes())
    return {
        "rows": source.rows,
        "columns": source.features,
        "columns of the condition": source.condition_features,
        "weights": source.has_weight,
        "training rows": plan.train_rows,
        "validation": plan.held_out,
        "seed": plan.seed,
        "engine": plan.engine,
        "device": None if plan.device is None else torch.device(plan.device).type,
        "first rows": digest.hexdigest()[:16],
    }


def _refuse_differences(outlines: list[dict[str, Any]]) -> None:
    for rank, outline in enumerate(outlines):
        for name, value in outline.items():
            if value != outlines[0][name]:
                mend = _MENDS.get(name, "every process must be given all the data")
                raise ValueError(f"fit: {name} is {outlines[0][name]} in process 0 and {value} in process {rank}; {mend}")


def combined(parts: list[tuple[Any, ...]]) -> Counted:
    """Counts, extremes and the rest of several shards as one."""
    counts, low, high, *_ = zip(*parts)
    return Counted(np.sum(counts, 0), np.minimum.reduce(low), np.maximum.reduce(high), [part[3:] for part in parts])


def shares(blocks: range, workers: int) -> list[range]:
    """The blocks in as many consecutive parts of nearly equal length; some empty where there are fewer blocks."""
    bounds = [len(blocks) * k // workers for k in range(workers + 1)]
    return [blocks[start:stop] for start, stop in zip(bounds, bounds[1:])]


def reader_of(source: RowSource) -> RowSource:
    """Another reader of the same rows, with a place of its own in files; arrays are shared."""
    reader = copy.copy(source)
    for name, value in vars(source).items():
        if isinstance(value, RowSource):
            setattr(reader, name, reader_of(value))
    return reader


_limiting = threading.RLock()
_limits: list[Any] = []  # the limit, once for every context that is entered


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """While entered, matrix products of NumPy, and in this thread those of torch, use one thread: then they do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _limited_products():
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _limited_products() -> Iterator[None]:
    """The limit on NumPy, which is one of the whole process; of several contexts that overlap the last one lifts it."""
    import scipy.linalg  # noqa: F401 - only libraries that are loaded can be limited, and scipy has one of its own
    from threadpoolctl import threadpool_limits

    with _limiting:
        _limits.append(_limits[0] if _limits else threadpool_limits(1, user_api="blas"))
    try:
        yield
    finally:
        with _limiting:
            limit = _limits.pop()
            if not _limits:
                limit.restore_original_limits()
