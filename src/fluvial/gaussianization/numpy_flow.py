"""Flows of rotations and splines by NumPy alone: read, encode, decode, score, sample.

This file needs nothing but NumPy. Put it wherever a flow that `fluvial.gaussianization.export_numpy` wrote is to be used; ``module=`` of that
function writes a copy of it.
"""

import io
import math
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

FORMAT = "fluvial numpy flow 1"
# Names of the arrays of every kind of part, those after the bar only where the part has them.
ARRAYS = {
    "affine": "loc scale",
    "bounds": "low high floor logarithmic",
    "rotation": "matrix",
    "spline": "x y slope | shape",
    "anchored": "anchors scale bandwidth table",
    "sheared": "lean x y slope",
}
CONDITIONAL = ("anchored", "sheared")  # kinds that depend on the condition
LEAST_SHAPE = 1e-4  # of Pareto tails of anchored splines
_AT_ONCE = 2**22  # numbers of the knots that are held at once, where every row has its own
_ORTHOGONAL = 1e-4
_FAR = 8.0  # where 1 − Φ is taken from a continued fraction, of so many terms
_TERMS = 40
_STEPS = 12  # of Newton's method
_TINY = np.finfo(np.float64).tiny

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


class NumpyFlow:
    r"""A density given by rotations and monotone maps of single coordinates, in double precision.

    .. math:: \log p(x) = \log N(z; 0, 1) + \log|\det \partial z/\partial x|, \qquad z = \mathrm{encode}(x)

    Args:
        features: Number D of coordinates.
        parts: Kind and arrays of every part, the one that touches the data first.
        condition: Number f of entries of the condition, 0 without one.
        context: Parts that the condition goes through before the others see it.

    Raises:
        ValueError: If the arrays of a part are not what they should be.

    Example:
        >>> flow = NumpyFlow(2, [("affine", {"loc": np.zeros(2), "scale": np.full(2, 2.0)})])
        >>> flow.encode(np.array([[2.0, -4.0]])).tolist(), flow.sample(3, seed=0).shape
        ([[1.0, -2.0]], (3, 2))
    """

    def __init__(
        self,
        features: int,
        parts: Sequence[tuple[str, dict[str, np.ndarray]]],
        *,
        condition: int = 0,
        context: Sequence[tuple[str, dict[str, np.ndarray]]] = (),
    ) -> None:
        if features < 1 or condition < 0:
            raise ValueError(f"features must be positive and condition not negative, got {features} and {condition}")
        self.features = features
        self.condition = condition
        self.parts = [(kind, _checked(kind, arrays, features, condition, f"part {k}")) for k, (kind, arrays) in enumerate(parts)]
        self.context = [(kind, _checked(kind, arrays, condition, 0, f"context {k}")) for k, (kind, arrays) in enumerate(context)]

    def encode(self, x: Any, c: Any = None) -> np.ndarray:
        """Data (…, D) -> latents of the same shape; conditions (…, f), or one for all rows, (f,)."""
        return self._encoded(x, c)[0]

    def decode(self, z: Any, c: Any = None) -> np.ndarray:
        """Latents (…, D) -> data of the same shape."""
        z = np.asarray(z, np.float64)
        x, u = self._rows(z), self._conditions(c, z.shape[:-1])
        for kind, arrays in reversed(self.parts):
            x = _DECODE_AT[kind](x, arrays, u) if kind in CONDITIONAL else _DECODE[kind](x, arrays)
        return x.T.reshape(z.shape)

    def log_prob(self, x: Any, c: Any = None) -> np.ndarray:
        """Log-densities (…) of data (…, D), in nats, given conditions (…, f) or (f,); −∞ outside the support."""
        z, ladj = self._encoded(x, c)
        return -0.5 * np.square(z).sum(-1) - 0.5 * self.features * math.log(2 * math.pi) + ladj

    def sample(self, n: int, c: Any = None, *, seed: int | None = None) -> np.ndarray:
        """Draw n rows, (n, D), given a condition of each, (n, f), or of all, (f,)."""
        return self.decode(np.random.default_rng(seed).standard_normal((n, self.features)), c)

    def _encoded(self, x: Any, c: Any) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(x, np.float64)
        z, u = self._rows(x), self._conditions(c, x.shape[:-1])
        ladj = np.zeros(z.shape[1])
        for kind, arrays in self.parts:
            z, change = _ENCODE_AT[kind](z, arrays, u) if kind in CONDITIONAL else _ENCODE[kind](z, arrays)
            ladj = ladj + change
        return z.T.reshape(x.shape), ladj.reshape(x.shape[:-1])

    def _conditions(self, c: Any, shape: tuple[int, ...]) -> np.ndarray:
        """What the parts see of the conditions of so many rows, (f, n)."""
        if (c is None) != (self.condition == 0):
            raise ValueError(f"expected {f'a condition of {self.condition} numbers' if self.condition else 'no condition'}, got {type(c).__name__}")
        c = np.empty(0) if c is None else np.asarray(c, np.float64)
        if c.shape not in ((self.condition,), (*shape, self.condition)):
            raise ValueError(f"expected conditions of shape {(*shape, self.condition)} or ({self.condition},), got {c.shape}")
        u = np.broadcast_to(c, (*shape, self.condition)).reshape(-1, self.condition).T if self.condition else np.empty((0, math.prod(shape)))
        for kind, arrays in self.context:
            u = _ENCODE[kind](u, arrays)[0]
        return u

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """Coordinates first, (D, n)."""
        if x.ndim == 0 or x.shape[-1] != self.features:
            raise ValueError(f"expected rows of {self.features} numbers, got an array of shape {x.shape}")
        return x.reshape(-1, self.features).T


def load(path: str | os.PathLike[str]) -> NumpyFlow:
    """Read a flow that `export_numpy` wrote. Nothing in the file is run, and no more memory is taken than the file is long.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or a damaged one.
    """
    try:
        arrays = _arrays(path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: not a whole .npz file: {error}") from error
    if "format" not in arrays or str(arrays["format"]) != FORMAT:
        raise ValueError(f"{path}: not a flow written by export_numpy in the format {FORMAT!r}")
    for name, dtype in (("features", "i"), ("kinds", "U")):
        if name not in arrays or arrays[name].dtype.kind != dtype or arrays[name].ndim != (name == "kinds"):
            raise ValueError(f"{path}: the array {name!r} is missing or of the wrong kind")
    kinds, kinds_of_none = [str(kind) for kind in arrays["kinds"]], np.empty(0, "U1")
    try:
        parts = [(kind, _own(arrays, f"{k}.")) for k, kind in enumerate(kinds)]
        if "condition" not in arrays:
            return NumpyFlow(int(arrays["features"]), parts)
        if arrays["condition"].dtype.kind != "i" or arrays["condition"].ndim or arrays.get("context", kinds_of_none).dtype.kind != "U":
            raise ValueError("the arrays of the condition are of the wrong kind")
        context = [(str(kind), _own(arrays, f"c{k}.")) for k, kind in enumerate(arrays.get("context", kinds_of_none))]
        return NumpyFlow(int(arrays["features"]), parts, condition=int(arrays["condition"]), context=context)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _own(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a part."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that holds plain, uncompressed ones only."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        rest = os.path.getsize(path)
        for member in archive.infolist():
            rest -= member.file_size
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED or rest < 0 or name == member.filename or name in arrays:
                raise ValueError(f"{path}: the entry {member.filename!r} is none that export_numpy writes")
            with archive.open(member) as file:
                content = file.read()
            arrays[name] = _array(content, f"{path}: {name}")
    return arrays


def _array(content: bytes, what: str) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{what}: unknown version {version} of the .npy format")
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    # An array of objects would be unpickled, and a shape that the bytes do not fill would be made room for.
    if dtype.kind not in "fiU" or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{what}: expected {len(content) - file.tell()} bytes of plain numbers or text, got dtype {dtype} and shape {shape}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _checked(kind: str, arrays: dict[str, np.ndarray], features: int, condition: int, where: str) -> dict[str, np.ndarray]:
    """The arrays of a part, once they are known to be a map."""
    if kind not in ARRAYS or (kind in CONDITIONAL and not condition):
        raise ValueError(f"{where}: unknown kind {kind!r}")
    needed, _, optional = ARRAYS[kind].partition(" | ")
    if not set(needed.split()) <= set(arrays) <= {*needed.split(), *optional.split()}:
        raise ValueError(f"{where}: expected the arrays {ARRAYS[kind]}, got {sorted(arrays)}")
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    splined = kind in ("spline", "sheared")
    knots = arrays["x"].shape[-1] if splined and arrays["x"].ndim == 2 else 0
    shapes: dict[str, tuple[int, ...]] = {"matrix": (features, features), "shape": (features, 2), "lean": (features, condition)}
    shapes |= dict.fromkeys(("x", "y", "slope"), (features, knots))
    if kind == "anchored":
        sets, width = len(np.atleast_1d(arrays["anchors"])), arrays["table"].shape[-1] if arrays["table"].ndim == 3 else 0
        # 3 · bins + 3 numbers, and 2 more for the shapes of tails.
        width = width if sets and width >= 6 and width % 3 != 1 else -1
        shapes = {"anchors": (sets, condition), "scale": (condition,), "bandwidth": (), "table": (sets, features, width)}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, (features,)) or (splined and knots < 2):
            raise ValueError(f"{where}: {kind} {name} has the shape {array.shape}, which does not fit {features} features")
        if np.isnan(array).any() or (name not in ("low", "high") and not np.isfinite(array).all()):
            raise ValueError(f"{where}: {kind} {name} holds numbers that are not finite")
    if not _is_map(kind, arrays):
        raise ValueError(f"{where}: the arrays of {kind} are no invertible map")
    return arrays


def _is_map(kind: str, arrays: dict[str, np.ndarray]) -> bool:
    if kind == "affine":
        return bool((arrays["scale"] > 0).all())
    if kind == "anchored":
        return bool((arrays["scale"] > 0).all() and arrays["bandwidth"] >= 0)
    if kind == "rotation":
        matrix = arrays["matrix"]
        return bool(np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < _ORTHOGONAL)
    if kind == "bounds":
        low, high, floor = arrays["low"], arrays["high"], arrays["floor"]
        width = np.subtract(high, low, where=low < high, out=np.zeros(len(low)))
        return bool((low < high).all() and (low < np.inf).all() and (high > -np.inf).all() and ((floor > 0) & (floor < width)).all())
    increasing = (np.diff(arrays["x"]) > 0).all() and (np.diff(arrays["y"]) > 0).all()
    return bool(increasing and (arrays["slope"] > 0).all() and (arrays.get("shape", np.ones(1)) > 0).all())


# ------------------------------------------------------------------------------------------ maps of coordinates (D, n), and their log-slopes (n,)


def _affine_encode(x: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
    return (x - arrays["loc"][:, None]) / arrays["scale"][:, None], -np.log(arrays["scale"]).sum()


def _affine_decode(z: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["loc"][:, None] + arrays["scale"][:, None] * z


def _rotation_encode(x: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
    return arrays["matrix"] @ x, 0.0


def _rotation_decode(z: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["matrix"].T @ z


def _bounds_encode(x: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    z, log_slope, outside = x.copy(), np.zeros(x.shape[1]), np.zeros(x.shape[1], bool)
    for k, (low, high, floor, logarithmic) in enumerate(zip(*(arrays[name] for name in ("low", "high", "floor", "logarithmic")))):
        bounded = [math.isfinite(bound) for bound in (low, high)]
        if not any(bounded):
            continue
        beyond = (x[k] < low) | (x[k] > high)
        outside |= beyond
        inside = np.where(beyond, (low + (high - low) / 2 if all(bounded) else low + 1 if bounded[0] else high - 1), x[k])
        if all(bounded):
            below, above = np.log(_distance(inside - low, floor)), np.log(_distance(high - inside, floor))
            z[k] = below - above
            log_slope += math.log(high - low) - below - above
            continue
        distance = _distance(inside - low if bounded[0] else high - inside, floor)
        log = np.log(distance if logarithmic else -np.expm1(-distance))
        z[k] = (1 if bounded[0] else -1) * (log if logarithmic else distance + log)
        log_slope -= log
    return z, np.where(outside, -np.inf, log_slope)


def _distance(d: np.ndarray, floor: float) -> np.ndarray:
    """Distances from a bound; a value upon it is read as if it lay a little inside."""
    return np.maximum(np.where(d == 0, floor, d), _TINY)


def _bounds_decode(z: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    x = z.copy()
    for k, (low, high, logarithmic) in enumerate(zip(*(arrays[name] for name in ("low", "high", "logarithmic")))):
        bounded = [math.isfinite(bound) for bound in (low, high)]
        if all(bounded):
            # Measured from the nearer bound, where floating-point numbers are densest.
            distance = (high - low) * np.exp(-np.logaddexp(0.0, np.abs(z[k])))
            x[k] = np.where(z[k] < 0, low + distance, high - distance)
        elif any(bounded):
            q = z[k] if bounded[0] else -z[k]
            distance = np.exp(np.minimum(q, 700.0)) if logarithmic else np.logaddexp(0.0, q)
            x[k] = low + distance if bounded[0] else high - distance
        x[k] = np.clip(x[k], low, high)
    return x


def _spline_encode(x: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    z, log_slope = np.empty_like(x), np.zeros(x.shape[1])
    for k, (at, to, slope) in enumerate(zip(arrays["x"], arrays["y"], arrays["slope"])):
        place = _place(at, x[k])
        width, height = _pick(np.diff(at), place), _pick(np.diff(to), place)
        mean = height / width
        a, b = _pick(slope, place) / mean, _pick(slope, place + 1) / mean
        xi = np.clip((x[k] - _pick(at, place)) / width, 0.0, 1.0)
        eta, rest = xi * (1 - xi), 1 - xi
        denominator = 1 + (a + b - 2) * eta
        z[k] = _pick(to, place) + height * (xi * xi + a * eta) / denominator
        own = np.log(mean * (b * xi * xi + 2 * eta + a * rest * rest) / denominator**2)
        for side, mask in ((-1, x[k] < at[..., 0]), (1, x[k] > at[..., -1])):
            knot, value, steep = (_end(values, side, mask) for values in (at, to, slope))
            excess = side * (x[k][mask] - knot)
            if "shape" not in arrays:
                beyond, own[mask] = steep * excess, np.log(steep)
            else:
                beyond, own[mask] = _pareto_encode(excess, side * value, steep, _end(arrays["shape"][k], side, mask))
            z[k][mask] = value + side * beyond
        log_slope += own
    return z, log_slope


def _spline_decode(z: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    x = np.empty_like(z)
    for k, (at, to, slope) in enumerate(zip(arrays["x"], arrays["y"], arrays["slope"])):
        place = _place(to, z[k])
        width, height = _pick(np.diff(at), place), _pick(np.diff(to), place)
        a, b = _pick(slope, place) * width / height, _pick(slope, place + 1) * width / height
        share = np.clip((z[k] - _pick(to, place)) / height, 0.0, 1.0)
        quadratic, linear = 1 - a + share * (a + b - 2), a - share * (a + b - 2)
        root = linear + np.sqrt(np.maximum(linear**2 + 4 * quadratic * share, 0.0))
        x[k] = _pick(at, place) + width * np.where(share > 0, 2 * share / np.where(root > 0, root, 1.0), 0.0)
        for side, mask in ((-1, z[k] < to[..., 0]), (1, z[k] > to[..., -1])):
            knot, value, steep = (_end(values, side, mask) for values in (at, to, slope))
            excess = side * (z[k][mask] - value)
            if "shape" not in arrays:
                x[k][mask] = knot + side * excess / steep
            else:
                x[k][mask] = knot + side * _pareto_decode(excess, side * value, steep, _end(arrays["shape"][k], side, mask))
    return x


def _place(knots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """In which bin every value (n,) lies: of the same knots (K,) for all, or of its own, (n, K)."""
    if knots.ndim == 1:
        return np.searchsorted(knots[1:-1], values, side="right")
    return (knots[:, 1:-1] <= values[:, None]).sum(1)


def _pick(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The values of these bins or knots, (n,)."""
    return values[place] if values.ndim == 1 else np.take_along_axis(values, place[:, None], 1)[:, 0]


def _end(values: np.ndarray, side: int, mask: np.ndarray) -> np.ndarray:
    """The first value or the last one: for all, or of each of the rows."""
    end = values[..., 0 if side < 0 else -1]
    return end if values.ndim == 1 else end[mask]


def _anchored(x: np.ndarray, arrays: dict[str, np.ndarray], u: np.ndarray, change: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates through splines whose parameters are an average over anchors, by how near these are to the condition."""
    table, bandwidth = arrays["table"], float(arrays["bandwidth"])
    z, log_slope = np.empty_like(x), np.zeros(x.shape[1])
    square = np.stack([np.square((u.T - anchor) / arrays["scale"]).sum(1) for anchor in arrays["anchors"]], 1)
    if bandwidth == 0:
        nearest = square.argmin(1)
        groups = [(np.flatnonzero(nearest == k), _knots_of(table[k])) for k in np.unique(nearest)]
    else:
        weight = np.exp(-0.5 * (square - square.min(1, keepdims=True)) / bandwidth**2)
        weight /= weight.sum(1, keepdims=True)
        step = max(1, _AT_ONCE // table[0].size)
        starts = range(0, x.shape[1], step)
        groups = (
            (np.arange(start, min(start + step, x.shape[1])), _knots_of(np.tensordot(table, weight[start : start + step], (0, 1))))
            for start in starts
        )
    for rows, knots in groups:
        z[:, rows], log_slope[rows] = change(x[:, rows], knots)
    return z, log_slope


def _knots_of(table: np.ndarray) -> dict[str, np.ndarray]:
    """Knots (D, K) from their parameters (D, W), or of every row, (D, n, K), from (D, W, n)."""
    table = table if table.ndim == 2 else np.moveaxis(table, 1, 2)
    bins = table.shape[-1] // 3 - 1
    left, bottom, widths, heights, slopes, shapes = np.split(table, np.cumsum([1, 1, bins, bins, bins + 1]), -1)
    ends = [np.concatenate([start, start + np.exp(logs).cumsum(-1)], -1) for start, logs in ((left, widths), (bottom, heights))]
    knots = {"x": ends[0], "y": ends[1], "slope": np.exp(slopes)}
    return knots | ({"shape": np.maximum(np.exp(shapes), LEAST_SHAPE)} if shapes.shape[-1] else {})


def _anchored_encode(x: np.ndarray, arrays: dict[str, np.ndarray], u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _anchored(x, arrays, u, _spline_encode)


def _anchored_decode(z: np.ndarray, arrays: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    return _anchored(z, arrays, u, lambda part, knots: (_spline_decode(part, knots), 0.0))[0]


def _shear(arrays: dict[str, np.ndarray], u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the lines, (D, 1), and how far the conditions shear the coordinates along them, (D, n)."""
    cosine = 1 / np.sqrt(1 + np.square(arrays["lean"]).sum(1, keepdims=True))
    return cosine, cosine * arrays["lean"] @ u


def _sheared_encode(x: np.ndarray, arrays: dict[str, np.ndarray], u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cosine, shift = _shear(arrays, u)
    bent, log_slope = _spline_encode(cosine * x + shift, arrays)
    return (bent - shift) / cosine, log_slope


def _sheared_decode(z: np.ndarray, arrays: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    cosine, shift = _shear(arrays, u)
    return (_spline_decode(cosine * z + shift, arrays) - shift) / cosine


def _pareto_encode(excess: np.ndarray, knot: Any, slope: Any, shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """How far beyond the knot's value z lies for an excess of x over the knot, and the logarithm of the slope there."""
    start = _log_survival(np.array(knot))
    rate = np.log(slope) + _log_hazard(np.array(knot))
    t = np.log1p(shape * excess * np.exp(rate)) / shape
    z = np.sqrt(np.maximum(-2 * (start - t + 0.919), 0.25))
    for _ in range(_STEPS):
        z = z + (_log_survival(z) - (start - t)) * np.exp(-_log_hazard(z))
    return z - knot, rate - shape * t - _log_hazard(z)


def _pareto_decode(excess: np.ndarray, knot: Any, slope: Any, shape: Any) -> np.ndarray:
    """How far beyond the knot x lies for an excess of z over the knot's value."""
    t = _log_survival(np.array(knot)) - _log_survival(knot + excess)
    return np.expm1(shape * t) / (shape * slope * np.exp(_log_hazard(np.array(knot))))


def _log_survival(z: np.ndarray) -> np.ndarray:
    """Log of 1 − Φ(z)."""
    near, far = np.minimum(z, _FAR), np.maximum(z, _FAR)
    fraction = far
    for k in range(_TERMS, 0, -1):
        fraction = far + k / fraction
    tail = -0.5 * far * far - 0.5 * math.log(2 * math.pi) - np.log(fraction)
    low = np.log1p(-0.5 * _erfc(-np.minimum(near, 0.0) / math.sqrt(2)))
    middle = np.log(0.5 * _erfc(np.maximum(near, 0.0) / math.sqrt(2)))
    return np.where(z > _FAR, tail, np.where(z > 0, middle, low))


def _log_hazard(z: np.ndarray) -> np.ndarray:
    """Log of φ(z)/(1 − Φ(z))."""
    return -0.5 * z * z - 0.5 * math.log(2 * math.pi) - _log_survival(z)


_ENCODE = {"affine": _affine_encode, "bounds": _bounds_encode, "rotation": _rotation_encode, "spline": _spline_encode}
_DECODE = {"affine": _affine_decode, "bounds": _bounds_decode, "rotation": _rotation_decode, "spline": _spline_decode}
_ENCODE_AT = {"anchored": _anchored_encode, "sheared": _sheared_encode}
_DECODE_AT = {"anchored": _anchored_decode, "sheared": _sheared_decode}
