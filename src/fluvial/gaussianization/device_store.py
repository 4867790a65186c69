"""Rows that live on a torch device, and the devices they can live on."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fluvial.gaussianization.sources import BLOCK
from fluvial.gaussianization.store import BlockStore, available_memory, block_bytes, parse_size
from fluvial.training.settings import training_device

# Elements that are worked on at a time: on a card enough to keep all of it busy, on the processor so few that they stay in its cache.
ELEMENTS = {"cpu": 2**18}
MANY_ELEMENTS = 2**22
WORKED = 160  # bytes that each of them takes meanwhile


def elements_at_a_time(device: torch.device) -> int:
    """How many elements of blocks are worked on at a time."""
    return ELEMENTS.get(device.type, MANY_ELEMENTS)


def wide_type(device: torch.device) -> torch.dtype:
    """The type of sums: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def choose_device(device: str | torch.device | None) -> str | None:
    """The device that is meant, by its full name: "auto" takes a CUDA card where there is one, else None; each process of a group has its own.

    Raises:
        ValueError: If there is no such device here.

    Example:
        >>> choose_device("cpu"), choose_device(None)
        ('cpu', None)
    """
    if device is None or (device == "auto" and not torch.cuda.is_available()):
        return None
    found = training_device("cuda" if device == "auto" else device, "32")
    if found.type != "cuda" or (device != "auto" and torch.device(device).index is not None):
        return str(found)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return str(torch.device("cuda", torch.cuda.current_device()))
    rank = torch.distributed.get_node_local_rank(fallback_rank=torch.distributed.get_rank())
    if rank >= torch.cuda.device_count():
        raise ValueError(
            f"fit: process {rank} of this machine has no CUDA card of its own, as there are {torch.cuda.device_count()}; "
            "start no more processes than cards, or name a card"
        )
    return f"cuda:{rank}"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """While entered, products of float32 matrices have all their digits, on every device, whatever was allowed before."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    allowed = [backend.fp32_precision for backend in backends]
    try:
        general = torch.get_float32_matmul_precision()
    except RuntimeError:  # chosen by the settings of each backend, of which this one knows nothing
        general = None
    # Both ways of setting it must agree, or torch refuses to multiply.
    if general is not None:
        torch.set_float32_matmul_precision("highest")
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if general is not None:
            torch.set_float32_matmul_precision(general)
        for backend, precision in zip(backends, allowed):
            backend.fp32_precision = precision


class DeviceStore(BlockStore):
    """Blocks side by side in tensors on a device, of which whole stretches can be worked on at once.

    Where the last block is shorter than others, its last row is repeated up to their length. Sums over rows must leave these out.

    Args:
        blocks: Numbers of the blocks, consecutive.
        rows: Rows of all the data.
        features: D.
        device: Where.
        condition_features: f, 0 without condition.
        has_weight: Whether rows have weights.
        memory: What the rows may take on the processor, in bytes or as a text; other devices tell it themselves.

    Raises:
        ValueError: If blocks are outside the data, or the device has no room for them.

    Example:
        >>> store = DeviceStore(range(1), 3, 2, device=torch.device("cpu"))
        >>> store.write(0, np.ones((2, 3), np.float32))
        >>> store.read(0).tolist(), store.tensor("x").shape
        ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], torch.Size([2, 8192]))
    """

    def __init__(
        self,
        blocks: range,
        rows: int,
        features: int,
        *,
        device: torch.device,
        condition_features: int = 0,
        has_weight: bool = False,
        memory: int | str | None = None,
    ) -> None:
        super().__init__(blocks, rows, features, condition_features=condition_features, has_weight=has_weight)
        if blocks.step != 1:
            raise ValueError(f"DeviceStore: expected consecutive blocks, got {blocks}")
        self.device = device
        held = len(blocks) * (block_bytes(features, condition_features=condition_features, has_weight=has_weight) + 2 * BLOCK)
        work = min(max(elements_at_a_time(device), BLOCK * features), len(blocks) * BLOCK * features) * WORKED
        free = _free(device, memory)
        shortage = (
            f"fit: {len(blocks) * BLOCK} rows of {features} columns take {held:,} bytes on the device {str(device)!r}, and {work:,} bytes to work on "
            f"them, but {free:,} are free; give fewer rows, or each process of a group (torchrun) a device of its own, or take device=None, "
            "which keeps the rows in memory or in a scratch file"
        )
        if held + work > free:
            raise ValueError(shortage)
        self._tensors: dict[str, Tensor] = {}
        try:
            for part, (columns, dtype) in self.parts.items():
                kind = wide_type(device) if part == "ladj" else torch.from_numpy(np.empty(0, dtype)).dtype
                shape = (len(blocks) * BLOCK,) if columns is None else (columns, len(blocks) * BLOCK)
                self._tensors[part] = torch.zeros(shape, dtype=kind, device=device)
        except torch.OutOfMemoryError:
            # Someone else took it meanwhile.
            self._tensors.clear()
            raise ValueError(shortage) from None

    def tensor(self, part: str) -> Tensor:
        """A part of all blocks, shape (columns, n) or (n,): the tensor itself."""
        return self._tensors[part]

    def write(self, block: int, values: np.ndarray, part: str = "x") -> None:
        """Bring a part of a block to the device."""
        self.check(block, values, part)
        whole, start = self._tensors[part][..., self._rows(block)], values.shape[-1]
        whole[..., :start] = torch.from_numpy(np.require(values, requirements="CW")).to(self.device, whole.dtype)
        whole[..., start:] = whole[..., start - 1 : start]

    def read(self, block: int, part: str = "x") -> np.ndarray:
        """A part of a block: a copy in main memory."""
        shape = self.shape(block, part)
        found = self._tensors[part][..., self._rows(block)][..., : shape[-1]].cpu().numpy()
        return np.array(found, self.parts[part][1], order="C")

    def close(self) -> None:
        """Free the memory."""
        self._tensors.clear()

    def _rows(self, block: int) -> slice:
        start = (int(block) - self.blocks.start) * BLOCK
        return slice(start, start + BLOCK)


def _free(device: torch.device, memory: int | str | None) -> int:
    """Bytes that can be taken on a device."""
    if device.type == "cuda":
        # What torch has taken and does not use is free to it.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory() if memory is None else parse_size(memory)
