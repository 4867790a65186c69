"""Exact, mergeable histograms of blocks: integer counts, whose sum does not depend on the order in which they are added.

Two grids. A fixed one on [−8, 8] for coordinates that are nearly standard normal; and, for coordinates of unknown range, the order-preserving
integers ("keys") of float32: first by their 16 leading bits, then, within the cells where quantiles lie, by the following bits.

In all of them −0.0 counts as 0.0, and NaN is counted nowhere: the counts then sum to less than the rows.
"""

import numpy as np

from fluvial.codecs.spline_kernel import check_block
from fluvial.codecs.spline_loops import Engine, compiled, resolve_engine

# The fixed grid.
LOW, HIGH, BINS = -8.0, 8.0, 4096


def edges() -> np.ndarray:
    """The edges of the fixed grid, exact in float32 too: bin i of `histogram_` is from edge i, included, to edge i + 1.

    Returns:
        −∞, −8, −8 + 1/256, …, 8, ∞: float64, shape (4099,).
    """
    return np.concatenate([[-np.inf], np.linspace(LOW, HIGH, BINS + 1), [np.inf]])


def histogram_(x: np.ndarray, counts: np.ndarray, weight: np.ndarray | None = None, *, engine: Engine | None = None) -> None:
    """Add a block to the histogram of each coordinate on a fixed grid: 4096 bins on [−8, 8), and one beyond each end.

    Args:
        x: Block, float32, shape (D, n), C-contiguous.
        counts: int64, shape (D, 4098); added to. The edges are k/256, exactly; an element at an edge counts above it.
        weight: How often each row counts: int64, shape (n,); None for once.
        engine: "compiled", "eager" (NumPy), or None: compiled where numba is installed. The counts are the same.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: If a type or layout is another.

    Example:
        >>> counts = np.zeros((1, 4098), np.int64)
        >>> histogram_(np.float32([[-9, 0, 0.001, 8]]), counts)
        >>> [(int(bin), int(counts[0, bin])) for bin in counts[0].nonzero()[0]]
        [(0, 1), (2049, 2), (4097, 1)]
    """
    check_block(x)
    _check_counts(counts, (len(x), BINS + 2))
    _check_weight(weight, x)
    if resolve_engine(engine) == "compiled":
        compiled("histogram")(x, counts, _weights(weight))
        return
    for row, count in zip(x, counts):
        number = ~np.isnan(row)
        _add(count, _cells(row[number]), None if weight is None else weight[number])


def grid_sums(x: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Sums of a value of every element over the rows that `histogram_` counts in a bin.

    Args:
        x: Block, float32, shape (D, n).
        value: Shape (D, n).

    Returns:
        float64, shape (D, 4098).

    Example:
        >>> sums = grid_sums(np.float32([[0, 0.001, 1]]), np.array([[1.0, 2.0, 4.0]]))
        >>> sums[0, sums[0].nonzero()].tolist()
        [[3.0, 4.0]]
    """
    found = [np.bincount(_cells(row), own, BINS + 2) for row, own in zip(x, value)]
    return np.array(found).reshape(len(x), BINS + 2)


def to_keys(x: np.ndarray) -> np.ndarray:
    """The integers that order float32: a < b exactly if key(a) < key(b), and −0.0 has the key of 0.0.

    Args:
        x: float32, any shape.

    Returns:
        uint32, same shape. Keys of NaN lie beyond those of the infinities, on the side of their sign.

    Example:
        >>> to_keys(np.float32([-np.inf, -1.0, 0.0, 1.0, np.inf])).tolist()
        [8388607, 1082130431, 2147483648, 3212836864, 4286578688]
    """
    if x.dtype != np.float32:
        raise TypeError(f"to_keys: expected float32, got {x.dtype}")
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    bits = np.where(bits == 0x80000000, np.uint32(0), bits)
    return np.where(bits >= 0x80000000, ~bits, bits ^ np.uint32(0x80000000))


def from_keys(keys: np.ndarray) -> np.ndarray:
    """The float32 of each key: the inverse of `to_keys`.

    Example:
        >>> from_keys(to_keys(np.float32([-2.5, 0.0, 1e-42]))).tolist() == np.float32([-2.5, 0.0, 1e-42]).tolist()
        True
    """
    if keys.dtype != np.uint32:
        raise TypeError(f"from_keys: expected uint32, got {keys.dtype}")
    bits = np.where(keys >= 0x80000000, keys ^ np.uint32(0x80000000), ~keys)
    return np.ascontiguousarray(bits).view(np.float32).reshape(keys.shape)


def key_histogram_(x: np.ndarray, counts: np.ndarray, weight: np.ndarray | None = None, *, shift: int = 16, engine: Engine | None = None) -> None:
    """Add a block to the histogram of each coordinate over the leading bits of its keys: exact for any range, without a first look at it.

    Cell j holds the keys j·2^shift … (j + 1)·2^shift − 1. With shift 16 there are 128 cells between a power of 2 and the next: 0.4 to 0.8 % of |x|.

    Args:
        x: Block, float32, shape (D, n), C-contiguous.
        counts: int64, shape (D, 2^(32 − shift)); added to.
        weight: How often each row counts: int64, shape (n,); None for once.
        shift: Trailing bits left out.
        engine: "compiled", "eager" (NumPy), or None: compiled where numba is installed. The counts are the same.

    Raises:
        ValueError: If shapes do not fit, or the shift is not in 8 … 31.
        TypeError: If a type or layout is another.
    """
    check_block(x)
    if not 8 <= shift <= 31:
        raise ValueError(f"key_histogram_: expected a shift in 8 … 31, got {shift}")
    _check_counts(counts, (len(x), 2 ** (32 - shift)))
    _check_weight(weight, x)
    if resolve_engine(engine) == "compiled":
        compiled("key_histogram")(x.view(np.uint32), counts, _weights(weight), shift)
        return
    for row, count in zip(x, counts):
        number = ~np.isnan(row)
        _add(count, to_keys(row[number]) >> np.uint32(shift), None if weight is None else weight[number])


def refine_histogram_(
    x: np.ndarray, selected: np.ndarray, counts: np.ndarray, weight: np.ndarray | None = None, *, engine: Engine | None = None
) -> None:
    """Within selected cells of `key_histogram_` (shift 16), add a block to the histogram over the bits that follow.

    With 2^b counts a slot, sub-cell i of cell j holds 2^(16 − b) neighbouring floats, the keys from j·2^16 + i·2^(16 − b) on. b = 8: a width of at
    most 3e-5 of |x|, 2 kB a slot (4 MB for 32 coordinates with 64 slots each). b = 16: every float by itself, 0.5 MB a slot.

    Args:
        x: Block, float32, shape (D, n), C-contiguous.
        selected: The slot of each cell, or −1: int32, shape (D, 65536), all below S.
        counts: int64, shape (D, S, 2^b) with b in 0 … 16; added to.
        weight: How often each row counts: int64, shape (n,); None for once.
        engine: "compiled", "eager" (NumPy), or None: compiled where numba is installed. The counts are the same.

    Raises:
        ValueError: If shapes do not fit, or a slot is beyond the counts.
        TypeError: If a type or layout is another.
    """
    check_block(x)
    _check_counts(counts, (len(x), *counts.shape[1:2], *counts.shape[2:3]))
    size = counts.shape[2] if counts.ndim == 3 else 0
    if not 1 <= size <= 2**16 or size & (size - 1):
        raise ValueError(f"refine_histogram_: expected counts of shape (D, slots, a power of 2 up to 65536), got {counts.shape}")
    if not (isinstance(selected, np.ndarray) and selected.dtype == np.int32 and selected.flags.c_contiguous):
        raise TypeError(f"selected: expected a C-contiguous int32 array, got {getattr(selected, 'dtype', type(selected).__name__)}")
    if selected.shape != (len(x), 2**16):
        raise ValueError(f"selected: expected shape ({len(x)}, 65536), got {selected.shape}")
    if selected.max(initial=-1) >= counts.shape[1]:
        raise ValueError(f"selected: expected slots below {counts.shape[1]}, as counts has, got {selected.max()}")
    _check_weight(weight, x)
    shift = 17 - size.bit_length()
    if resolve_engine(engine) == "compiled":
        compiled("refine_histogram")(x.view(np.uint32), selected, counts, _weights(weight), shift)
        return
    for row, slots, count in zip(x, selected, counts):
        keys = to_keys(row)
        slot = slots[keys >> np.uint32(16)]
        chosen = (slot >= 0) & ~np.isnan(row)
        cell = slot[chosen].astype(np.int64) * size + ((keys[chosen] & np.uint32(0xFFFF)) >> np.uint32(shift))
        _add(count.reshape(-1), cell, None if weight is None else weight[chosen])


def _cells(row: np.ndarray) -> np.ndarray:
    """In which bin of the fixed grid every number lies."""
    return np.floor(np.clip(row, -9, 9) * np.float32(256)).clip(-2049, 2048).astype(np.int64) + 2049


def _add(counts: np.ndarray, cell: np.ndarray, weight: np.ndarray | None) -> None:
    if weight is None:
        counts += np.bincount(cell, minlength=len(counts))
    else:
        np.add.at(counts, cell, weight)  # bincount would sum weights as floats


def _weights(weight: np.ndarray | None) -> np.ndarray:
    return np.empty(0, np.int64) if weight is None else weight


def _check_counts(counts: np.ndarray, shape: tuple[int, ...]) -> None:
    if not (isinstance(counts, np.ndarray) and counts.dtype == np.int64 and counts.flags.c_contiguous and counts.flags.writeable):
        raise TypeError(f"counts: expected a C-contiguous int64 array that can be added to, got {getattr(counts, 'dtype', type(counts).__name__)}")
    if counts.shape != shape:
        raise ValueError(f"counts: expected shape {shape}, got {counts.shape}")


def _check_weight(weight: np.ndarray | None, x: np.ndarray) -> None:
    if weight is None:
        return
    if not (isinstance(weight, np.ndarray) and weight.dtype == np.int64 and weight.flags.c_contiguous):
        raise TypeError(f"weight: expected a contiguous int64 array, got {getattr(weight, 'dtype', type(weight).__name__)}")
    if weight.shape != (x.shape[1],):
        raise ValueError(f"weight: expected shape ({x.shape[1]},), one entry per row of the block, got {weight.shape}")
