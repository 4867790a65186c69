"""Who works on the rows: threads of this process, or the processes of a group."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fluvial.gaussianization.shard import Plan, Shard


class Workers(Protocol):
    """All shards of the data. Every method of `Shard` is called on all of them at once."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard, in the order of their blocks."""
        ...

    def agree(self, value: Any) -> list[Any]:
        """The values of all processes."""
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

    The matrix library keeps to one thread in each, so that its results do not depend on their number.

    Args:
        plan: Of the fit.
        threads: How many.
        blocks: The blocks to share among them; default all.
    """

    leads = True

    def __init__(self, plan: Plan, *, threads: int = 1, blocks: range | None = None) -> None:
        from threadpoolctl import threadpool_limits

        blocks = range(plan.source.blocks) if blocks is None else blocks
        threads = max(1, min(threads, len(blocks)))
        self.shards = [Shard(plan, part) for part in shares(blocks, threads)]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._limits = threadpool_limits(1)

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard."""

        def one(shard: Shard) -> Any:
            return getattr(shard, method)(*args, **kwargs)

        run: Callable[..., Any] = map if self._pool is None else self._pool.map
        return list(run(one, self.shards))

    def agree(self, value: Any) -> list[Any]:
        """The value."""
        return [value]

    def from_leader(self, value: Any) -> Any:
        """The value."""
        return value

    def close(self) -> None:
        """Free the blocks and the threads."""
        for shard in self.shards:
            shard.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._limits.restore_original_limits()


class GroupWorkers:
    """The processes of torch's process group, each with a share of the blocks. All of them run the same fit.

    Args:
        plan: Of the fit; every process opens the same rows.
        threads: In each process.
    """

    def __init__(self, plan: Plan, *, threads: int = 1) -> None:
        import torch.distributed as dist

        self._dist = dist
        rank, size = dist.get_rank(), dist.get_world_size()
        self.leads = rank == 0
        self._local = LocalWorkers(plan, threads=threads, blocks=shares(range(plan.source.blocks), size)[rank])

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method returns on every shard of all processes."""
        gathered: list[Any] = [None] * self._dist.get_world_size()
        try:
            mine: Any = self._local.call(method, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the others wait for an answer, and must learn of it
            mine = error
        self._dist.all_gather_object(gathered, mine)
        for part in gathered:
            if isinstance(part, Exception):
                raise part
        return [result for part in gathered for result in part]

    def agree(self, value: Any) -> list[Any]:
        """The values of all processes."""
        gathered: list[Any] = [None] * self._dist.get_world_size()
        self._dist.all_gather_object(gathered, value)
        return gathered

    def from_leader(self, value: Any) -> Any:
        """The value of the first process."""
        held = [value]
        self._dist.broadcast_object_list(held, src=0)
        return held[0]

    def close(self) -> None:
        """Free the blocks."""
        self._local.close()


def shares(blocks: range, workers: int) -> list[range]:
    """The blocks in as many consecutive parts of nearly equal length; some empty where there are fewer blocks."""
    bounds = [len(blocks) * k // workers for k in range(workers + 1)]
    return [blocks[start:stop] for start, stop in zip(bounds, bounds[1:])]
