"""Random numbers by key: a function of seed, purpose, row and column, never a stream."""

import hashlib

import numpy as np

# Rows hashed at once; their keys stay in the cache.
CHUNK = 2**16
# Increment and multipliers of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators"; Stafford's variant 13).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, rows: np.ndarray, column: int, purpose: str | int) -> np.ndarray:
    r"""Numbers uniform on [0, 1), each a function of its key only: the same whatever the chunks, workers or order.

    .. math:: u = 2^{-53} \lfloor h / 2^{11} \rfloor, \qquad h = m(m(g r + k_1) \oplus k_2)

    with m the SplitMix64 mixer, g its increment, r the row number, and the 64-bit keys k from a cryptographic hash of seed, purpose and column.

    Args:
        seed: Any integer.
        rows: Row numbers, shape (n,), integers.
        column: Column number.
        purpose: What for; other purposes give independent numbers.

    Returns:
        Shape (n,), float64.

    Example:
        >>> rows = np.arange(4)
        >>> u = uniform(0, rows, 0, "dither")
        >>> bool((u[2:] == uniform(0, rows[2:], 0, "dither")).all()), bool((u == uniform(0, rows, 1, "dither")).any())
        (True, False)
    """
    return (_hash(rows, _keys(seed, column, purpose)) >> np.uint64(11)) * 2.0**-53


def normal(seed: int, rows: np.ndarray, column: int, purpose: str | int) -> np.ndarray:
    r"""Standard normal numbers by key (Box–Muller): :math:`\sqrt{-2 \log(1 - u_1)} \cos(2 \pi u_2)`; arguments as for `uniform`, shape (n,).

    Example:
        >>> normal(0, np.arange(3), 0, "noise").shape
        (3,)
    """
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, rows, column, f"{purpose!r} radius")))
    return radius * np.cos(2.0 * np.pi * uniform(seed, rows, column, f"{purpose!r} angle"))


def chosen(seed: int, rows: np.ndarray, fraction: float, purpose: str | int) -> np.ndarray:
    """Which rows belong to a random part of about this share: shape (n,), bool. A larger fraction keeps the rows of a smaller one.

    Args:
        seed: Any integer.
        rows: Row numbers, shape (n,).
        fraction: Share of rows, within [0, 1].
        purpose: What for.

    Raises:
        ValueError: If the fraction is not within [0, 1].

    Example:
        >>> bool(chosen(0, np.arange(1000), 1.0, "validation").all()), int(chosen(0, np.arange(1000), 0.0, "validation").sum())
        (True, 0)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"chosen: expected a fraction within [0, 1], got {fraction}")
    return uniform(seed, rows, 0, purpose) < fraction


def sample_rows(seed: int, total_rows: int, size: int, purpose: str | int) -> np.ndarray:
    """Row numbers of a random subsample without repeats: those with the `size` smallest hashes of all.

    Holds about `size` numbers and one chunk, whatever total_rows; a larger subsample contains a smaller one.

    Args:
        seed: Any integer.
        total_rows: Rows 0 … total_rows − 1 to choose from.
        size: How many; at least total_rows means all.
        purpose: What for.

    Returns:
        Shape (min(size, total_rows),), int64, sorted.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> rows = sample_rows(0, 1_000_000, 5, "knots")
        >>> len(rows), set(rows) <= set(sample_rows(0, 1_000_000, 50, "knots"))
        (5, True)
    """
    if total_rows < 0 or size < 0:
        raise ValueError(f"sample_rows: expected numbers ≥ 0, got total_rows {total_rows} and size {size}")
    if size >= total_rows:
        return np.arange(total_rows, dtype=np.int64)
    keys = _keys(seed, 0, purpose)
    # Hashes below this bound are kept: about five standard deviations more than are needed, so that a second round is hardly ever one.
    wanted = size + 5.0 * size**0.5 + 5.0
    while True:
        share = min(wanted / total_rows, 1.0)
        bound = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
        rows, hashes = [], []
        for start in range(0, total_rows, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, total_rows), dtype=np.int64)
            hashed = _hash(chunk, keys)
            below = np.flatnonzero(hashed <= bound)
            rows.append(chunk[below])
            hashes.append(hashed[below])
        candidates, order = np.concatenate(rows), np.concatenate(hashes)
        if len(candidates) >= size:
            return np.sort(candidates[np.lexsort((candidates, order))[:size]])
        wanted *= 2.0


def _keys(seed: int, column: int, purpose: str | int) -> tuple[np.uint64, np.uint64]:
    digest = hashlib.blake2b(repr((int(seed), int(column), purpose)).encode(), digest_size=16).digest()
    return np.uint64(int.from_bytes(digest[:8], "little")), np.uint64(int.from_bytes(digest[8:], "little"))


def _hash(rows: np.ndarray, keys: tuple[np.uint64, np.uint64]) -> np.ndarray:
    """64 mixed bits per row, shape (n,), uint64."""
    mixed = np.asarray(rows).astype(np.uint64)  # a copy, changed in place from here
    mixed *= GOLDEN
    mixed += keys[0]
    _mix(mixed)
    mixed ^= keys[1]
    _mix(mixed)
    return mixed


def _mix(values: np.ndarray) -> None:
    values ^= values >> np.uint64(30)
    values *= FIRST
    values ^= values >> np.uint64(27)
    values *= SECOND
    values ^= values >> np.uint64(31)
