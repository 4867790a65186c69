"""Monotone splines of blocks: D independent ones, over all rows of a block, in place.

A block holds consecutive rows, feature-major: float32, shape (D, n), C-contiguous. Where numba is installed the work is done by compiled loops (some
150 million elements per second and core), otherwise by torch, with the same result to rounding.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fluvial.codecs.spline_loops import PRODUCT, Engine, compiled, resolve_engine

Matrix: TypeAlias = np.ndarray | Tensor

# With so many knots in one cell of the guide, bisection is faster than going through them.
LONGEST_SCAN = 3


class Tables(NamedTuple):
    r"""D monotone rational-quadratic splines with K knots each; straight lines with the outer slopes beyond the outer knots.

    In the bin from knot k to k + 1, of width w, height h and mean slope s = h/w, with ξ the position in it (0 … 1), η = ξ(1 − ξ), a and b the slopes
    at its ends divided by s:

    .. math:: z = y_k + h\,\frac{\xi^2 + a\eta}{1 + (a + b - 2)\eta}, \qquad
              \frac{dz}{dx} = s\,\frac{b\xi^2 + 2\eta + a(1-\xi)^2}{(1 + (a + b - 2)\eta)^2}

    Attributes:
        x: Knots x_k, shape (D, K), 2 ≤ K ≤ 65536, strictly increasing along each row.
        y: Their images, shape (D, K), strictly increasing.
        slope: Slopes dz/dx there, shape (D, K), positive.

    References:
        Gregory, Delbourgo (1982), "Piecewise rational quadratic interpolation to monotonic data", IMA Journal of Numerical Analysis 2.
    """

    x: Matrix
    y: Matrix
    slope: Matrix


class Lookup(NamedTuple):
    """One direction of the splines as the compiled loop reads it.

    Attributes:
        knots: The knots searched, but the last, then inf: shape (D, P + 1) with P a power of two.
        guide: Number of inner knots below each of G cells of equal width between the outer knots, shape (D, G).
        scans: Largest number of inner knots within a cell, shape (D,); −1 where a bisection is faster.
        ends: First knot, last knot, cells per unit, slope below, slope above, shape (D, 5).
        records: For each bin the first knot, 1 / width, the knot's image, height, and both slopes over the mean slope, shape (D, K − 1, 6).
    """

    knots: np.ndarray
    guide: np.ndarray
    scans: np.ndarray
    ends: np.ndarray
    records: np.ndarray


class Prepared(NamedTuple):
    """Tables with the lookups of one or both directions, made once for many blocks; see `prepare`."""

    tables: Tables
    forward: Lookup | None
    inverse: Lookup | None


def prepare(tables: Tables, *, only: Literal["encode", "decode"] | None = None) -> Prepared:
    """Check the tables, and lay them out once for many blocks, for one direction only or for both.

    `encode_` and `decode_` accept plain tables too, and prepare them at every call: about a tenth of the time of a block of 8192 rows.

    Raises:
        ValueError: If shapes disagree, knots do not increase, slopes are not positive, or differences of knots leave the range of float32.

    Example:
        >>> line = Tables(x=np.float32([[0, 1]]), y=np.float32([[0, 2]]), slope=np.float32([[2, 2]]))
        >>> x, ladj = np.float32([[-1, 0.25, 3]]), np.zeros(3)
        >>> encode_(x, prepare(line), ladj)
        >>> x.tolist(), ladj.round(4).tolist()
        ([[-2.0, 0.5, 6.0]], [0.6931, 0.6931, 0.6931])
    """
    checked = check_tables(tables)
    forward, inverse = (None if only == other else _lookup(checked, inverse=other == "encode") for other in ("decode", "encode"))
    return Prepared(checked, forward, inverse)


def encode_(x: np.ndarray, tables: Tables | Prepared, ladj: np.ndarray | None, *, engine: Engine | None = None) -> None:
    """Replace a block by its image, and add each row's log-determinant.

    An element's image does not depend on the other elements nor on where the block was cut: z and ladj are the same bits for any n. NaN gives NaN
    in both, ±inf gives ±inf and the slope of the tail.

    Args:
        x: Block, float32, shape (D, n), C-contiguous; overwritten with z.
        tables: The splines.
        ladj: Σ log dz/dx over the coordinates is added to it: float64, shape (n,), or None. Slopes are float32, but the sum is not: over 100 layers
            of 32 coordinates its error stays near 1e-5.
        engine: "compiled", "eager" (torch), or None: compiled where numba is installed.

    Raises:
        ValueError: If shapes do not fit, or the tables are not those of increasing splines.
        TypeError: If a type or layout is another.
    """
    _apply(x, tables, ladj, engine=engine, inverse=False)


def decode_(z: np.ndarray, tables: Tables | Prepared, ladj: np.ndarray | None = None, *, engine: Engine | None = None) -> None:
    """The inverse of `encode_`, in closed form: replace a block of z by x, and add Σ log dx/dz to ladj.

    Args:
        z: Block, float32, shape (D, n), C-contiguous; overwritten with x.
        tables: The splines.
        ladj: float64, shape (n,), or None.
        engine: "compiled", "eager" (torch), or None: compiled where numba is installed.

    Raises:
        ValueError: If shapes do not fit, or the tables are not those of increasing splines.
        TypeError: If a type or layout is another.

    Example:
        >>> line = Tables(x=np.float32([[0, 1]]), y=np.float32([[0, 2]]), slope=np.float32([[2, 2]]))
        >>> z = np.float32([[-2, 0.5, 6]])
        >>> decode_(z, line)
        >>> z.tolist()
        [[-1.0, 0.25, 3.0]]
    """
    _apply(z, tables, ladj, engine=engine, inverse=True)


def encode_eager(x: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """What `encode_` does, in torch operations: any device, any floating type, differentiable.

    Args:
        x: Shape (D, n).
        tables: The splines.

    Returns:
        z, shape (D, n), and Σ log dz/dx, float64, shape (n,).
    """
    bin = _find(x, tables.x, tables)
    xi = (bin.inner - bin.x) / bin.width
    share, relative = _quotient(bin, xi)
    z = torch.addcmul(bin.y, bin.height, share) + (x - bin.inner) * bin.tail
    return z, _sum_of_logs(torch.where(bin.beyond, bin.tail, bin.height / bin.width * relative))


def decode_eager(z: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """What `decode_` does, in torch operations: any device, any floating type, differentiable.

    Args:
        z: Shape (D, n).
        tables: The splines.

    Returns:
        x, shape (D, n), and Σ log dx/dz, float64, shape (n,).
    """
    bin = _find(z, tables.y, tables)
    tau = (bin.inner - bin.y) / bin.height
    linear = bin.a - (bin.a + bin.b - 2) * tau
    root = (linear * linear + 4 * tau * (1 - linear)).clamp_min(1e-37).sqrt()
    # (1 − linear) ξ² + linear ξ − τ = 0, solved by the form in which no two terms cancel.
    upright = linear >= 0
    xi = torch.where(upright, 2 * tau, root - linear) / torch.where(upright, linear + root, 2 * (1 - linear))
    xi = xi.clamp_max(1)
    x = torch.addcmul(bin.x, bin.width, xi) + (z - bin.inner) / bin.tail
    return x, _sum_of_logs(torch.where(bin.beyond, 1 / bin.tail, bin.width / (bin.height * _quotient(bin, xi)[1])))


def rotate(q: np.ndarray, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Rotate a block: out = q x, in float32.

    The last bits depend on the shape of the block and on the number of threads of the matrix library. For results that repeat on any number of
    workers, cut the rows always in the same blocks and limit the threads to 1 once around the whole fit (`threadpoolctl.threadpool_limits(1)`).

    Args:
        q: Matrix, shape (D, D); rounded to float32.
        x: Block, float32, shape (D, n).
        out: float32, shape (D, n), C-contiguous, another array than x.

    Returns:
        ``out``.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If a block is not contiguous float32.

    Example:
        >>> rotate(np.array([[0.0, 1.0], [-1.0, 0.0]]), np.float32([[1, 2], [3, 4]]), np.empty((2, 2), np.float32)).tolist()
        [[3.0, 4.0], [-1.0, -2.0]]
    """
    check_block(x)
    check_block(out, written=True)
    if q.shape != (len(x), len(x)) or out.shape != x.shape:
        raise ValueError(f"rotate: expected q (D, D) and out (D, n) for a block x (D, n), got q {q.shape}, out {out.shape}, x {x.shape}")
    if np.may_share_memory(x, out):
        raise ValueError("rotate: out overlaps x; give another array")
    return np.matmul(q.astype(np.float32, copy=False), x, out=out)


def check_block(x: np.ndarray, *, written: bool = False) -> None:
    """Whether this is a block.

    Raises:
        TypeError: If it is not float32 of two axes, C-contiguous, and writeable if it is to be written to.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 2 or not x.flags.c_contiguous:
        received = f"{x.dtype} {x.shape}, strides {x.strides}" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"expected a block, float32 (D, n) C-contiguous, got {received}; np.ascontiguousarray(rows.T, dtype=np.float32) makes one")
    if written and not x.flags.writeable:
        raise TypeError("expected a block that can be overwritten, got a read-only one; give a copy")


def check_tables(tables: Tables) -> Tables:
    """The tables as float32 arrays.

    Raises:
        ValueError: If shapes disagree, knots do not increase, slopes are not positive, or differences of knots leave the range of float32.
    """
    x, y, slope = (np.ascontiguousarray(t.detach().cpu().numpy() if isinstance(t, Tensor) else t, dtype=np.float32) for t in tables)
    if x.ndim != 2 or not 2 <= x.shape[1] <= 2**16 or not x.shape == y.shape == slope.shape:
        raise ValueError(f"Tables: expected x, y and slope of one shape (D, K), K from 2 to 65536, got {x.shape}, {y.shape}, {slope.shape}")
    for name, knots in (("x", x), ("y", y)):
        gap, span = np.diff(knots.astype(np.float64)), knots[:, -1:].astype(np.float64) - knots[:, :1]
        usable = (gap > 1e-36) & (span < 1e38)
        if not usable.all():
            d, k = np.argwhere(~usable)[0]
            pair = f"{knots[d, k]:g}, {knots[d, k + 1]:g}"
            raise ValueError(f"Tables: {name} must increase, by 1e-36 or more, over 1e38 or less; coordinate {d} has {pair} at knots {k}, {k + 1}")
    usable = (slope > 1e-36) & (slope < 1e36)
    if not usable.all():
        d, k = np.argwhere(~usable)[0]
        raise ValueError(f"Tables: slopes must be positive, 1e-36 to 1e36; coordinate {d} has {slope[d, k]:g} at knot {k}")
    return Tables(x, y, slope)


def _apply(x: np.ndarray, tables: Tables | Prepared, ladj: np.ndarray | None, *, engine: Engine | None, inverse: bool) -> None:
    check_block(x, written=True)
    plain = tables.tables if isinstance(tables, Prepared) else check_tables(tables)
    if len(plain.x) != len(x):
        raise ValueError(f"expected a block of {len(plain.x)} coordinates, as in the tables, got {len(x)}")
    if ladj is not None and not (isinstance(ladj, np.ndarray) and ladj.dtype == np.float64 and ladj.flags.c_contiguous and ladj.flags.writeable):
        raise TypeError(f"ladj: expected a contiguous float64 array that can be added to, got {getattr(ladj, 'dtype', type(ladj).__name__)}")
    if ladj is not None and ladj.shape != (x.shape[1],):
        raise ValueError(f"ladj: expected shape ({x.shape[1]},), one entry per row of the block, got {ladj.shape}")
    if x.size == 0:
        return
    if resolve_engine(engine) == "eager":
        out, change = (decode_eager if inverse else encode_eager)(torch.from_numpy(x), plain)
        x[...] = out.numpy()
        if ladj is not None:
            ladj += change.numpy()
        return
    prepared = (tables.inverse if inverse else tables.forward) if isinstance(tables, Prepared) else None
    lookup = _lookup(plain, inverse=inverse) if prepared is None else prepared
    compiled("spline")(x, *lookup, inverse, np.empty(0) if ladj is None else ladj)


def _lookup(tables: Tables, *, inverse: bool) -> Lookup:
    x, y, slope = (np.asarray(table, np.float32) for table in tables)
    # Slopes over the mean slope of the bin: the same in both directions.
    unit = np.diff(x.astype(np.float64)) / np.diff(y.astype(np.float64))
    a, b = slope[:, :-1] * unit, slope[:, 1:] * unit
    if inverse:
        x, y, slope = y, x, 1 / slope
    width, height = np.diff(x.astype(np.float64)), np.diff(y.astype(np.float64))
    records = np.stack([x[:, :-1], 1 / width, y[:, :-1], height, a, b], axis=-1, dtype=np.float32, casting="same_kind")

    features, bins = width.shape
    length = 1 << (bins - 1).bit_length()
    knots = np.full((features, length + 1), np.inf, np.float32)
    knots[:, :bins] = x[:, :-1]
    cells = max(64, min(8 * length, 2**15))
    low, high = x[:, :1], x[:, -1:]
    scale = np.float32(cells) / (high - low)
    # In the same operations as the loop's, which never decrease: a knot above an element cannot be in a cell below the element's.
    cell = np.minimum((x[:, 1:-1] - low) * scale, np.float32(cells - 1)).astype(np.int64)
    within = np.bincount((cell + cells * np.arange(features)[:, None]).ravel(), minlength=features * cells).reshape(features, cells)
    guide = (np.cumsum(within, axis=1) - within).astype(np.uint16)
    scans = within.max(axis=1).astype(np.int64)
    ends = np.concatenate([low, high, scale, slope[:, :1], slope[:, -1:]], axis=1, dtype=np.float32, casting="same_kind")
    return Lookup(knots, guide, np.where(scans <= LONGEST_SCAN, scans, -1), ends, records)


class _Bin(NamedTuple):
    """For each element: whether it is beyond the outer knots, itself moved between them, its bin, and the slope of the tail on its side."""

    beyond: Tensor
    inner: Tensor
    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    a: Tensor
    b: Tensor
    tail: Tensor


def _find(v: Tensor, knots: Matrix, tables: Tables) -> _Bin:
    knots = _like(v, knots)
    inner = v.clamp(knots[:, :1], knots[:, -1:])
    index = torch.searchsorted(knots[:, 1:-1].contiguous(), inner.detach(), right=True)
    # Differences and ratios of table entries in double precision, as they are taken once and not for every element.
    x, y, slope = (_like(v, t).double() for t in tables)
    width, height = x.diff(), y.diff()
    a, b = slope[:, :-1] * width / height, slope[:, 1:] * width / height
    entries = (x[:, :-1], width, y[:, :-1], height, a, b)
    found = [torch.gather(entry.to(v.dtype), 1, index) for entry in entries]
    low, high = v < knots[:, :1], v > knots[:, -1:]
    return _Bin(low | high, inner, *found, tail=torch.where(low, slope[:, :1].to(v.dtype), slope[:, -1:].to(v.dtype)))


def _like(v: Tensor, table: Any) -> Tensor:
    return torch.as_tensor(table, dtype=v.dtype, device=v.device)


def _quotient(bin: _Bin, xi: Tensor) -> tuple[Tensor, Tensor]:
    """The rational quadratic from 0 to 1, and its derivative."""
    rest = 1 - xi
    eta, square = xi * rest, xi * xi
    denominator = 1 + (bin.a + bin.b - 2) * eta
    slope = bin.b * square + 2 * eta + bin.a * (rest * rest)
    return (square + bin.a * eta) / denominator, slope / (denominator * denominator)


def _sum_of_logs(slopes: Tensor) -> Tensor:
    """Over the first axis; one logarithm for several slopes."""
    return torch.stack([group.prod(0).log() for group in slopes.double().split(PRODUCT)]).sum(0)
