"""Dask's workers: each holds a part of the rows, and another one takes its place where it is lost."""

import contextlib
import dataclasses
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fluvial.codecs.spline_loops import resolve_engine
from fluvial.gaussianization.joint_layers import ConditionRows
from fluvial.gaussianization.parquet_rows import ParquetRows
from fluvial.gaussianization.shard import Plan
from fluvial.gaussianization.sources import BLOCK, Appended, ArrayRows, FileArray, Rows, RowSource, Selected
from fluvial.gaussianization.store import available_memory, parse_size
from fluvial.gaussianization.workers import Counted, LocalWorkers, combined, shares

_CHANGES = ("load", "apply")  # methods of a shard that change its blocks
_POLL = 1.0  # seconds between looks at which workers are left
_PATIENCE = 300.0  # seconds to wait for a worker where none is left
_MOVES = 5  # how often a part may lose its worker within one call
_LARGE = 2**20  # bytes from which on what is sent goes straight to a worker, and not through the graph of tasks


class DaskWorkers:
    """The workers of a Dask cluster, each with a share of the blocks; the layers are found here.

    What changes the blocks, reading them and applying layers, is kept: where a worker is lost, another one goes through it again from the rows.

    Args:
        plan: Of the fit. Its memory is that of each worker process, by default the limit that Dask gives it.
        client: A `distributed.Client`, or "local" for one of a cluster on this machine, which ends with the fit.
        threads: Processes of a local cluster, by default as many as torch has threads; the workers of others use the threads they have.

    Raises:
        ModuleNotFoundError: Without `distributed`.
        TypeError: If it is no client.
        ValueError: If it has no workers.
    """

    leads = True

    def __init__(self, plan: Plan, client: Any, *, threads: int | None = None) -> None:
        try:
            import distributed
        except ImportError:
            raise ModuleNotFoundError('fit: client needs Dask: pip install "fluvial[dask]"') from None
        if plan.memory is not None:
            parse_size(plan.memory)
        self._open = contextlib.ExitStack()
        if isinstance(client, str) and client == "local":
            processes = min(torch.get_num_threads() if threads is None else threads, plan.source.blocks)
            cluster = distributed.LocalCluster(n_workers=processes, threads_per_worker=1, dashboard_address=":0")
            client = self._open.enter_context(distributed.Client(self._open.enter_context(cluster)))
        elif not isinstance(client, distributed.Client) or client.asynchronous:
            kind = "an asynchronous client" if isinstance(client, distributed.Client) else repr(client)
            raise TypeError(f"fit: client must be a distributed.Client (not an asynchronous one) or 'local', got {kind}")
        self._client = client
        self._plan = plan
        self._steps: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        workers = client.nthreads()
        if not workers:
            self._open.close()
            raise ValueError("fit: the Dask cluster has no workers yet; wait for them with client.wait_for_workers(n)")
        pieces, self._parts = shares(range(plan.source.blocks), sum(workers.values())), []
        for worker, size in workers.items():
            own, pieces = pieces[:size], pieces[size:]
            if own[-1].stop > own[0].start:
                self._parts.append(_Part(len(self._parts), range(own[0].start, own[-1].stop), worker))

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard."""
        found = dict(self._results((method, args, kwargs)))
        return [result for number in sorted(found) for result in found[number]]

    def total(self, method: str, *args: Any, **kwargs: Any) -> np.ndarray:
        """The sum over all shards."""
        total: Any = 0
        for _, results in self._results((method, args, kwargs)):
            total = sum(results, start=total)
        return total

    def counted(self, method: str, *args: Any) -> Counted:
        """What the method counts on all shards together."""
        return combined(self.call(method, *args))

    def jointly(self, work: Any) -> list[Any]:
        """What the function returns here."""
        return [work()]

    def from_leader(self, value: Any) -> Any:
        """The value."""
        return value

    def close(self) -> None:
        """Let the workers free what they hold, and end a local cluster."""
        with self._open:
            for part in self._parts:
                part.forget()

    def _results(self, call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Iterator[tuple[int, list[Any]]]:
        """Numbers and results of the parts, as they come in."""
        from distributed import CancelledError, KilledWorker, wait

        query = None if call[0] in _CHANGES else call
        if query is None:
            self._steps.append(call)
        pending = {self._submit(part, query): part for part in self._parts}
        moves = dict.fromkeys(range(len(self._parts)), 0)
        try:
            while pending:
                # Cancelled ones are found below.
                with contextlib.suppress(TimeoutError, CancelledError):
                    wait(list(pending), timeout=_POLL, return_when="FIRST_COMPLETED")
                ready = [future for future in pending if future.status in ("finished", "error", "cancelled", "lost")]
                left = None if ready else self._client.nthreads()
                for future, part in list(pending.items()):
                    if future in ready and future.status in ("finished", "error") and not isinstance(future.exception(), KilledWorker):
                        del pending[future]
                        result = future.result()
                        future.release()
                        if isinstance(result, Behind):
                            part.known = result.done
                            pending[self._submit(part, query)] = part
                            continue
                        part.known, part.data = len(self._steps), None
                        yield part.number, result
                    elif future in ready or (left is not None and part.worker not in left):
                        del pending[future]
                        moves[part.number] += 1
                        if moves[part.number] > _MOVES:
                            raise RuntimeError(
                                f"fit: Dask lost {_MOVES} workers one after the other with blocks {part.blocks.start} to {part.blocks.stop - 1}; "
                                "do they have too little memory? give memory=, or more workers"
                            )
                        future.cancel()
                        self._move(part)
                        pending[self._submit(part, query)] = part
        finally:
            if pending:
                self._client.cancel(list(pending))

    def _submit(self, part: "_Part", query: Any) -> Any:
        """The task that answers for a part: first the steps its worker does not know yet."""
        while True:
            # Of a step itself the answer is wanted, even where it was done before and the answer got lost.
            first = min(part.known, len(self._steps) - (query is None))
            try:
                if part.held is None:
                    plan = dataclasses.replace(self._plan, source=portable(self._plan.source, part.blocks))
                    part.data = self._sent(plan, part)
                    part.held = self._client.submit(Held, part.data, part.blocks, key=_key("hold"), workers=[part.worker], pure=False)
                request = self._sent((first, self._steps[first:], query), part)
            except (OSError, TimeoutError):
                # The worker was lost on the way; others may be left.
                self._move(part)
                continue
            name = (query or self._steps[-1])[0]
            return self._client.submit(answer, part.held, request, key=_key(name), workers=[part.worker], pure=False)

    def _sent(self, message: Any, part: "_Part") -> Any:
        """The message as bytes, or where it is large the future of bytes that are at the part's worker."""
        import cloudpickle

        packed = cloudpickle.dumps(message)
        return packed if len(packed) < _LARGE else self._client.scatter(packed, workers=[part.worker], hash=False)

    def _move(self, part: "_Part") -> None:
        """Give a part to the worker that has least to do."""
        deadline = time.monotonic() + _PATIENCE
        while not (left := self._client.nthreads()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"fit: no Dask worker is left, and none came back within {_PATIENCE:.0f} s")
            time.sleep(_POLL)
        load = dict.fromkeys(left, 0.0)
        for other in self._parts:
            if other is not part and other.worker in left:
                load[other.worker] += len(other.blocks) / left[other.worker]
        part.forget()
        part.worker = min(load, key=lambda worker: load[worker])


@dataclasses.dataclass
class _Part:
    """Some of the blocks, and where they are.

    Attributes:
        number: Of the part.
        blocks: Theirs.
        worker: Address.
        held: Future of the `Held` there.
        data: What that is made of, as long as it is on its way.
        known: Steps that were done there.
    """

    number: int
    blocks: range
    worker: str
    held: Any = None
    data: Any = None
    known: int = 0

    def forget(self) -> None:
        """Let go of what is held, which the worker then frees."""
        if self.held is not None:
            self.held.release()
        self.held, self.data, self.known = None, None, 0


@dataclasses.dataclass(frozen=True)
class Behind:
    """The answer of a worker that has done fewer steps than were assumed.

    Attributes:
        done: How many it has done.
    """

    done: int


class Held:
    """What a worker holds: the shards of its part, as long as the client keeps the future of it.

    Args:
        packed: The plan.
        blocks: Of the part.
    """

    def __init__(self, packed: bytes, blocks: range) -> None:
        from distributed import get_worker

        worker = get_worker()
        plan: Plan = pickle.loads(packed)
        try:
            resolve_engine(plan.engine)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f'fit: the Dask worker {worker.address} has no numba, but the client has; install it there too (pip install "fluvial[fast]")'
            ) from None
        memory = plan.memory
        if memory is None:
            memory = min(available_memory(), worker.memory_manager.memory_limit or available_memory())
        self._workers = LocalWorkers(dataclasses.replace(plan, memory=memory), threads=worker.state.nthreads, blocks=blocks)
        self._lock = threading.Lock()
        self.done = 0
        self._last: list[Any] = []

    def __reduce__(self) -> Any:
        raise TypeError("Held: the blocks of a worker stay where they are")

    def __del__(self) -> None:
        # Not here and now: garbage is collected in any thread, whatever that is holding. At the end of the process there are no more threads.
        if hasattr(self, "_workers"):
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._workers.close, daemon=True).start()

    def answer(self, first: int, steps: list[Any], query: Any) -> list[Any] | Behind:
        """Do what is not done of the steps, which begin with number ``first``; then what the last one returned, or the query does."""
        with self._lock:
            if self.done < first:
                return Behind(self.done)
            for method, args, kwargs in steps[self.done - first :]:
                before, self.done = self.done, 0  # a step that fails leaves blocks that are to be read again
                self._last = self._workers.call(method, *args, **kwargs)
                self.done = before + 1
            return self._last if query is None else self._workers.call(query[0], *query[1], **query[2])


def answer(held: Held, packed: bytes) -> list[Any] | Behind:
    """The task of a worker: what its shards say to a request."""
    from distributed import get_worker

    try:
        return held.answer(*pickle.loads(packed))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; asked for by the Dask worker {get_worker().address}: every worker must see this path") from None


class Window(RowSource):
    """The rows of some blocks, held in memory, with the numbers they have in all the data.

    Args:
        source: All the data.
        blocks: Which to hold.
    """

    def __init__(self, source: RowSource, blocks: range) -> None:
        self.rows, self.features, self.names = source.rows, source.features, source.names
        self.condition_features, self.condition_names, self.has_weight = source.condition_features, source.condition_names, source.has_weight
        self.start = blocks.start * BLOCK
        self._held = source.read(self.start, min(blocks.stop * BLOCK, source.rows))

    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop − 1."""
        held = slice(start - self.start, stop - self.start)
        if not 0 <= held.start <= held.stop <= len(self._held.x):
            raise IndexError(f"rows {start} to {stop} of a window on {len(self._held.x)} rows from {self.start} on")
        return Rows(*(None if part is None else part[held].copy() for part in self._held))


def portable(source: RowSource, blocks: range) -> RowSource:
    """The rows as they are sent to a worker: files by their paths, of what is in memory only the blocks it needs."""
    return source if _on_disk(source) else Window(source, blocks)


def _on_disk(source: RowSource) -> bool:
    if isinstance(source, ConditionRows):
        return _on_disk(source.source)
    if isinstance(source, Appended):
        return _on_disk(source.first) and _on_disk(source.second)
    if isinstance(source, ArrayRows):
        parts = [part.array if isinstance(part, Selected) else part for part in (source.x, source.c, source.weight) if part is not None]
        return all(isinstance(part, FileArray) for part in parts)
    return isinstance(source, ParquetRows)


def _key(name: str) -> str:
    return f"gaussianization-{name}-{uuid.uuid4().hex}"
