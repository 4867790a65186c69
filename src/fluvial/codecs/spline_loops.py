"""The inner loops of the kernels, compiled by numba where it is installed.

The loops stand here as plain Python and are compiled at their first use, about a second each; the machine code is kept beside the package, in the
user's cache where the package cannot be written, or only in memory where neither can.

They pass over short pieces that stay in the first-level cache: passes that only compute become vector instructions, passes that look something up
(an entry of a table, a counter) go element by element. No fast-math: every operation is rounded by itself, NaN stays NaN, and an element's result
depends neither on its neighbours nor on where its block was cut.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Engine = Literal["compiled", "eager"]

# Elements of a layer from which loading numba, or even compiling, is repaid within a fit of some tens of layers.
WORTH_COMPILING = 2**20
# Elements that splines have taken one by one in torch until loading numba, half a second or so, would have been repaid.
WORTH_LOADING = 2**23
# Elements of a piece: its nine arrays take 18 kB.
PIECE = 512
# Slopes in float32 whose product stays within float64.
PRODUCT = 8


_ready: set[str] = set()  # loops that are machine code already
_waited = 0  # elements that had to do without


@functools.cache
def has_numba() -> bool:
    """Whether numba can be imported (the extra "fast")."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def choose_engine(rows: int, features: int) -> Engine:
    """What a whole fit should compute with: "compiled" where numba is installed and the data are large enough to repay it, otherwise "eager".

    The two agree to rounding, not to the last bit: choose once for a fit, from its total size, and hand the choice to every call and worker.

    Args:
        rows: Rows of the whole data set.
        features: D.

    Example:
        >>> choose_engine(20_000, 2)
        'eager'
    """
    return "compiled" if rows * features >= WORTH_COMPILING and has_numba() else "eager"


def resolve_engine(engine: Engine | None) -> Engine:
    """The engine of one call: None takes the compiled one where there is one.

    Raises:
        ValueError: If the engine is unknown.
        ModuleNotFoundError: If the compiled one is asked for without numba.
    """
    if engine is None:
        return "compiled" if has_numba() else "eager"
    if engine not in ("compiled", "eager"):
        raise ValueError(f'engine: expected "compiled", "eager" or None, got {engine!r}')
    if engine == "compiled" and not has_numba():
        raise ModuleNotFoundError('engine "compiled" needs numba: pip install "fluvial[fast]", or leave engine out')
    return engine


def repays_loading(elements: int) -> bool:
    """Whether to send elements through the compiled splines: when they are there, or so many elements went without them that loading is repaid."""
    global _waited
    if "spline" not in _ready:
        _waited += elements
    return ("spline" in _ready or _waited >= WORTH_LOADING) and has_numba()


@functools.cache
def compiled(name: str) -> Callable[..., None]:
    """The loop of that name as machine code: one compilation, for the one signature it has."""
    import numba
    from numba import types

    def array(dtype: Any, ndim: int = 1, *, written: bool = False) -> Any:
        return types.Array(dtype, ndim, "C", readonly=not written)

    counts, weight = array(types.int64, 2, written=True), array(types.int64)
    keys, matrix, size = array(types.uint32, 2), array(types.float32, 2), types.int64
    loop, arguments = {
        "spline": (
            spline,
            (
                array(types.float32, 2, written=True),
                *(matrix, array(types.uint16, 2), weight, matrix, array(types.float32, 3)),
                *(types.boolean, array(types.float64, written=True)),
            ),
        ),
        "histogram": (histogram, (matrix, counts, weight)),
        "key_histogram": (key_histogram, (keys, counts, weight, size)),
        "refine_histogram": (refine_histogram, (keys, array(types.int32, 2), array(types.int64, 3, written=True), weight, size)),
    }[name]
    try:
        # A division by zero gives inf, as in NumPy; a test for it would keep the loop from being vectorised.
        made = numba.njit(types.void(*arguments), error_model="numpy", nogil=True, cache=True)(loop)
    except (RuntimeError, OSError):  # no folder that can be written, or no space in it
        made = numba.njit(types.void(*arguments), error_model="numpy", nogil=True)(loop)
    _ready.add(name)
    return made


def spline(
    x: np.ndarray,
    knots: np.ndarray,
    guide: np.ndarray,
    scans: np.ndarray,
    ends: np.ndarray,
    records: np.ndarray,
    inverse: bool,  # noqa: FBT001
    ladj: np.ndarray,
) -> None:
    """Replace x (D, n) by its image and add the log-determinants to ladj (n,), if it is not empty; the tables are those of `spline_kernel.Lookup`."""
    features, rows = x.shape
    zero, one, two, four = np.float32(0), np.float32(1), np.float32(2), np.float32(4)
    tiny = np.float32(1e-37)
    last_cell = np.float32(guide.shape[1] - 1)
    start = (knots.shape[1] - 1) // 2
    cell = np.empty(PIECE, np.uint16)
    # The rows: first knot, 1 / width, its image, height, the two relative slopes; the element moved into the range of the knots; its slope.
    piece = np.empty((8, PIECE), np.float32)
    product = np.ones(len(ladj), np.float64)
    for d in range(features):
        low, high, scale, below, above = ends[d, 0], ends[d, 1], ends[d, 2], ends[d, 3], ends[d, 4]
        scan = scans[d]
        for first in range(0, rows, PIECE):
            size = min(PIECE, rows - first)
            # Comparisons with NaN are false: here it stays, as a cell it becomes 0.
            for i in range(size):
                v = x[d, first + i]
                v = low if v < low else v
                piece[6, i] = high if v > high else v
            for i in range(size):
                v = (piece[6, i] - low) * scale
                v = v if v > zero else zero
                cell[i] = np.uint16(v if v < last_cell else last_cell)

            if scan < 0:
                # All elements one step at a time, as the steps of one element wait for each other.
                for i in range(size):
                    cell[i] = 0
                half = start
                while half > 0:
                    for i in range(size):
                        k = np.int64(cell[i])
                        cell[i] = np.uint16(k + half if piece[6, i] >= knots[d, k + half] else k)
                    half >>= 1
            for i in range(size):
                v = piece[6, i]
                k = np.int64(cell[i])
                if scan >= 0:
                    k = np.int64(guide[d, k])
                for _ in range(scan):
                    k += v >= knots[d, k + 1]
                piece[0, i] = records[d, k, 0]
                piece[1, i] = records[d, k, 1]
                piece[2, i] = records[d, k, 2]
                piece[3, i] = records[d, k, 3]
                piece[4, i] = records[d, k, 4]
                piece[5, i] = records[d, k, 5]

            if inverse:
                for i in range(size):
                    tau = (piece[6, i] - piece[0, i]) * piece[1, i]
                    a, b = piece[4, i], piece[5, i]
                    curvature = a + b - two
                    linear = a - curvature * tau
                    root = linear * linear + four * tau * (one - linear)
                    root = np.sqrt(tiny if root < tiny else root)
                    # Two forms of the same root: in neither do two terms cancel.
                    upper = two * tau if linear >= zero else root - linear
                    lower = linear + root if linear >= zero else two * (one - linear)
                    xi = upper / lower
                    xi = one if xi > one else xi
                    rest = one - xi
                    eta = xi * rest
                    denominator = one + curvature * eta
                    slope = b * (xi * xi) + two * eta + a * (rest * rest)
                    piece[7, i] = (piece[3, i] * piece[1, i]) * (denominator * denominator) / slope
                    piece[2, i] = piece[2, i] + piece[3, i] * xi
            else:
                for i in range(size):
                    xi = (piece[6, i] - piece[0, i]) * piece[1, i]
                    a, b = piece[4, i], piece[5, i]
                    rest = one - xi
                    eta = xi * rest
                    square = xi * xi
                    reciprocal = one / (one + (a + b - two) * eta)
                    slope = b * square + two * eta + a * (rest * rest)
                    piece[7, i] = (piece[3, i] * piece[1, i]) * slope * (reciprocal * reciprocal)
                    piece[2, i] = piece[2, i] + piece[3, i] * ((square + a * eta) * reciprocal)

            for i in range(size):
                v = x[d, first + i]
                x[d, first + i] = piece[2, i] + (v - piece[6, i]) * (below if v < low else above)
                slope = below if v < low else piece[7, i]
                piece[7, i] = above if v > high else slope
            if len(ladj) == 0:
                continue
            if d % PRODUCT == PRODUCT - 1 or d == features - 1:
                for i in range(size):
                    ladj[first + i] += np.log(product[first + i] * piece[7, i])
                    product[first + i] = 1.0
            else:
                for i in range(size):
                    product[first + i] *= piece[7, i]


def histogram(x: np.ndarray, counts: np.ndarray, weight: np.ndarray) -> None:
    """Count x (D, n) in 4096 bins on [-8, 8] and one beyond each end."""
    features, rows = x.shape
    cell = np.empty(PIECE, np.uint16)
    for d in range(features):
        for first in range(0, rows, PIECE):
            size = min(PIECE, rows - first)
            for i in range(size):
                # Exact: a product with a power of 2.
                v = np.floor(x[d, first + i] * np.float32(256))
                v = v if v > np.float32(-2049) else np.float32(-2049)
                v = v if v < np.float32(2048) else np.float32(2048)
                cell[i] = np.uint16(np.int32(v) + 2049)
            if len(weight) == 0:
                for i in range(size):
                    v = x[d, first + i]
                    counts[d, cell[i]] += v == v
            else:
                for i in range(size):
                    v = x[d, first + i]
                    counts[d, cell[i]] += weight[first + i] * (v == v)


def key_histogram(bits: np.ndarray, counts: np.ndarray, weight: np.ndarray, shift: int) -> None:
    """Count the bit patterns (D, n) of float32 by the leading bits of their keys."""
    features, rows = bits.shape
    for d in range(features):
        for j in range(rows):
            b = np.int64(bits[d, j])
            b = 0 if b == 0x80000000 else b
            key = 0xFFFFFFFF - b if b >= 0x80000000 else b + 0x80000000
            number = (b & 0x7FFFFFFF) <= 0x7F800000
            counts[d, np.uint64(key >> shift)] += number * (weight[j] if len(weight) > 0 else 1)


def refine_histogram(bits: np.ndarray, selected: np.ndarray, counts: np.ndarray, weight: np.ndarray, shift: int) -> None:
    """Count the bit patterns (D, n) whose key lies in a selected cell by the following bits of their keys."""
    features, rows = bits.shape
    for d in range(features):
        for j in range(rows):
            b = np.int64(bits[d, j])
            b = 0 if b == 0x80000000 else b
            key = 0xFFFFFFFF - b if b >= 0x80000000 else b + 0x80000000
            slot = selected[d, np.uint64(key >> 16)]
            if slot >= 0 and (b & 0x7FFFFFFF) <= 0x7F800000:
                counts[d, np.uint64(slot), np.uint64((key & 0xFFFF) >> shift)] += weight[j] if len(weight) > 0 else 1
