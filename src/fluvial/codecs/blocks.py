"""Chains of rotations and splines without a gradient: block by block through compiled loops, feature-major, in pieces that stay in the cache.

Where numba is installed, a large batch of float32 rows on the CPU goes through them several times as fast as through torch, with the same result to
rounding. What asks for a gradient, a transform of torch, a compiler or another precision goes the ordinary way, and so do small batches, until so
many of them have come that loading numba is repaid.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.codecs.bins import is_mapped
from fluvial.codecs.codec import Codec
from fluvial.codecs.spline_loops import repays_loading

# A map of blocks: float32 (D, n), contiguous, which it may overwrite; it adds the rows' log-determinants to a float64 (n,), where there is one.
BlockMap = Callable[[Tensor, np.ndarray | None], Tensor]

LEAST = 2**14  # elements of a batch from which laying out the tables is repaid
ELEMENTS = 2**18  # of a block: a megabyte
STEP = 512  # rows of blocks are multiples of it


class HasBlockMap(Protocol):
    """A bijection of vectors that can map blocks, whatever the condition."""

    def block_map(self, *, inverse: bool) -> BlockMap | None:
        """Its encoder, or decoder, on blocks, with the parameters of this moment; None where only torch can do it."""
        ...


def maps_blocks(codec: object) -> TypeGuard[HasBlockMap]:
    """Whether a codec knows blocks."""
    return hasattr(codec, "block_map")


def runs(parts: Sequence[Codec]) -> list[list[Codec]]:
    """The parts in order, those that follow each other and know blocks together, all others alone."""
    if torch.compiler.is_compiling():
        return [[part] for part in parts]
    found: list[list[Codec]] = []
    for part in parts:
        if found and maps_blocks(part) and maps_blocks(found[-1][-1]):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def send(parts: Sequence[Codec], x: Tensor, *, splines: int, inverse: bool, ladj: bool = True) -> tuple[Tensor, Tensor] | None:
    r"""Rows through parts that know blocks, if that is possible and faster.

    Args:
        parts: In the order in which they are passed.
        x: Rows, shape (\*batch, D).
        splines: How many of the parts are splines: the others gain nothing.
        inverse: Through the decoders.
        ladj: Whether log-determinants are wanted.

    Returns:
        Images (\*batch, D) and log-determinants (\*batch,), zeros if they are not wanted; None where the parts should be called one by one.
    """
    # The cheap questions first: this is asked at every call of a small batch too.
    if torch.compiler.is_compiling() or not splines or x.numel() < LEAST or x.dtype != torch.float32 or x.ndim < 2:
        return None
    if not is_plain(x) or torch.is_autocast_enabled("cpu") or not all(_is_ready(part) for part in parts) or not repays_loading(x.numel() * splines):
        return None
    with torch.no_grad():
        maps = [part.block_map(inverse=inverse) for part in parts if maps_blocks(part)]
        if any(one is None for one in maps):
            return None
        return _sent(x, [one for one in maps if one is not None], ladj=ladj)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor holds nothing but numbers in the memory of the CPU: no graph, tangent, transform, trace or fake."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not (x.requires_grad and torch.is_grad_enabled())
        and not is_mapped(x)
        and not torch.jit.is_tracing()
        and torch.autograd.forward_ad._current_level < 0
    )


def _is_ready(part: nn.Module) -> bool:
    tensors = (*part.parameters(), *part.buffers())
    return all(is_plain(tensor) and (tensor.dtype == torch.float32 or not tensor.is_floating_point()) for tensor in tensors)


def _sent(x: Tensor, maps: Sequence[BlockMap], *, ladj: bool) -> tuple[Tensor, Tensor]:
    features = x.shape[-1]
    rows = x.detach().reshape(-1, features)
    images, sums = np.empty(rows.shape, np.float32), np.zeros(len(rows))
    size = max(1, ELEMENTS // features // STEP) * STEP
    inference = torch.is_inference_mode_enabled()

    def one(first: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            here = slice(first, first + size)
            block = torch.empty_like(rows[here].mT, memory_format=torch.contiguous_format).copy_(rows[here].mT)
            added = sums[here] if ladj else None
            for each in maps:
                block = each(block, added)
            torch.from_numpy(images[here]).copy_(block.mT)

    starts, threads = range(0, len(rows), size), torch.get_num_threads()
    if threads == 1 or len(starts) == 1:
        for first in starts:
            one(first)
    else:
        # Each thread has a block of its own, and does not divide its matrix products further.
        with ThreadPoolExecutor(min(threads, len(starts)), "fluvial", torch.set_num_threads, (1,)) as pool:
            list(pool.map(one, starts))
        torch.set_num_threads(threads)  # which threads that begin later would inherit
    return torch.from_numpy(images).view(x.shape), torch.from_numpy(sums).float().view(x.shape[:-1])
