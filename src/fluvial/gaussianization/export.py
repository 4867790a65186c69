"""Fitted flows for places without torch."""

import copy
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fluvial.bases import Normal
from fluvial.codecs import (
    AnchorWeights,
    Chain,
    Codec,
    ConditionalSpline,
    Encoded,
    Isometry,
    MarginalSpline,
    PrincipalAxes,
    ShearedSpline,
    Standardize,
    Whiten,
)
from fluvial.codecs.box import Box
from fluvial.codecs.marginal_spline import Knots
from fluvial.files import write_atomic
from fluvial.flow import Flow
from fluvial.gaussianization import numpy_flow

Part = tuple[str, dict[str, np.ndarray]]


def export_numpy(flow: Flow, path: str | os.PathLike[str], *, module: str | os.PathLike[str] | None = None) -> None:
    """Write a flow of rotations and splines into one file that NumPy alone can use.

    The file is an uncompressed .npz of plain arrays, in double precision. `fluvial.gaussianization.numpy_flow.load` reads it; that module is one
    file without imports but NumPy, of which ``module`` names a place for a copy, so that neither fluvial nor torch need be there.

    Args:
        flow: Of the codecs Standardize, Bounds, Logit, Softplus, Log, Rotation, Hadamard, TrainableRotation, PrincipalAxes, MarginalSpline,
            ConditionalSpline with AnchorWeights, and ShearedSpline, on a standard normal base; the condition, if any, one vector, as it is or
            Encoded by these: what `fit` returns but with conditioning="network", as it is or trained further.
        path: Where to; by custom the name ends in .npz.
        module: Where to put the reader, for instance numpy_flow.py.

    Raises:
        TypeError: If it is no flow.
        ValueError: If it has other parts, naming the first of them.

    Example:
        >>> import tempfile
        >>> import fluvial as fl
        >>> flow = Flow(Chain([fl.codecs.Rotation(2), MarginalSpline(2, 8)]), Normal(2)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_numpy(flow, Path(folder, "flow.npz"))
        ...     there = numpy_flow.load(Path(folder, "flow.npz"))
        >>> x = flow.sample(3)
        >>> bool(np.allclose(there.log_prob(x.numpy()), flow.log_prob(x).numpy(), atol=1e-5))
        True
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"export_numpy: expected a Flow, got {type(flow).__name__}")
    condition = flow.condition
    if condition is not None and (isinstance(condition, dict) or len(condition) != 1):
        raise ValueError(f"export_numpy: expected a condition that is one vector, got {condition}; fluvial.save keeps it")
    if flow.context is not None and not isinstance(flow.context, Encoded):
        raise ValueError(f"export_numpy: the context is a {type(flow.context).__name__}, which the NumPy reader does not know; fluvial.save keeps it")
    shape = flow.manifold.event_shape
    if type(flow.base) is not Normal or len(shape) != 1 or flow.base.manifold.event_shape != shape:
        raise ValueError(f"export_numpy: expected vectors and a standard normal base, got samples of shape {shape} and {type(flow.base).__name__}")
    with torch.no_grad():
        eps = torch.finfo(_precision(flow)).eps
        parts = list(_parts(copy.deepcopy(flow.codec).cpu().double(), eps))
        context = [] if flow.context is None else list(_parts(copy.deepcopy(flow.context.codec).cpu().double(), eps))
    entries = 0 if condition is None else condition[0]
    numpy_flow.NumpyFlow(shape[0], parts, condition=entries, context=context)  # checks them as a reader will
    arrays = {"format": np.array(numpy_flow.FORMAT), "features": np.array(shape[0]), "kinds": _kinds(parts)}
    arrays |= {} if condition is None else {"condition": np.array(entries), "context": _kinds(context)}
    for prefix, some in (("", parts), ("c", context)):
        for k, (_, own) in enumerate(some):
            arrays |= {f"{prefix}{k}.{name}": array for name, array in own.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
    if module is not None:
        write_atomic(module, Path(numpy_flow.__file__).read_bytes())


def _kinds(parts: list[Part]) -> np.ndarray:
    return np.array([kind for kind, _ in parts], "U8")


def _precision(flow: Flow) -> torch.dtype:
    tensors = [*flow.parameters(), *flow.buffers()]
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _parts(codec: Codec, eps: float) -> Iterator[Part]:
    """The codec in double precision, as parts that the reader knows; ``eps`` is that of the precision it came in."""
    if isinstance(codec, Chain):
        for part in codec.parts:
            yield from _parts(part, eps)
    elif isinstance(codec, Standardize):
        yield "affine", {"loc": codec.loc.numpy(), "scale": codec.scale.numpy()}
    elif isinstance(codec, Box):
        yield "bounds", _bounds(codec, eps)
    elif isinstance(codec, PrincipalAxes):
        features = codec.domain.dim
        yield "affine", {"loc": codec.loc.numpy(), "scale": np.ones(features)}
        yield "rotation", {"matrix": codec.encode(codec.loc + torch.eye(features, dtype=torch.float64)).T.numpy()}
    elif isinstance(codec, Whiten) and codec.method == "pca":
        features = codec.domain.dim
        plain = Whiten(features).double()  # without its scales, which stand beside it
        plain.axes.copy_(codec.axes)
        yield "affine", {"loc": codec.loc.numpy(), "scale": codec.scale.numpy()}
        yield "rotation", {"matrix": plain.encode(torch.eye(features, dtype=torch.float64)).T.numpy()}
        yield "affine", {"loc": np.zeros(features), "scale": codec.spread.numpy()}
    elif isinstance(codec, Isometry):
        yield "rotation", {"matrix": codec.encode(torch.eye(codec.domain.event_shape[0], dtype=torch.float64)).T.numpy()}
    elif isinstance(codec, MarginalSpline):
        yield "spline", {name: array.numpy() for name, array in zip(Knots._fields, codec.knots) if array is not None}
    elif isinstance(codec, ShearedSpline):
        yield (
            "sheared",
            {"lean": codec.lean.numpy(), **{name: array.numpy() for name, array in codec.spline.knots._asdict().items() if array is not None}},
        )
    elif isinstance(codec, ConditionalSpline) and isinstance(codec.weights, AnchorWeights):
        weights = codec.weights
        yield (
            "anchored",
            {
                "anchors": weights.places.numpy(),
                "scale": weights.scales.numpy(),
                "bandwidth": np.array(weights.bandwidth),
                "table": codec.table.numpy(),
            },
        )
    else:
        within = f" of {type(codec.weights).__name__}" if isinstance(codec, ConditionalSpline) else ""
        raise ValueError(
            f"export_numpy: the flow contains a {type(codec).__name__}{within}, which the NumPy reader does not know; it knows Standardize, Bounds, "
            "Logit, Softplus, Log, rotations, MarginalSpline, ShearedSpline, and ConditionalSpline of AnchorWeights"
        )


def _bounds(codec: Box, eps: float) -> dict[str, np.ndarray]:
    low, high = codec.limits.view(torch.float64).expand(2, codec.domain.dim).numpy()
    width = np.where(np.isfinite(low) & np.isfinite(high), np.where(np.isfinite(high), high, 1.0) - np.where(np.isfinite(low), low, 0.0), 1.0)
    largest = np.maximum(*(np.where(np.isfinite(side), np.abs(side), 0.0) for side in (low, high)))
    # How far inside a value on a bound is read, in the precision of the flow; see Box.
    step = eps / 4
    floor = np.maximum(width * (step if codec.eps is None else codec.eps), np.minimum(largest * step, width / 4))
    logarithmic = np.full(len(low), float(getattr(codec, "one_sided", "softplus") == "log" or type(codec).__name__ == "Log"))
    return {"low": low, "high": high, "floor": floor, "logarithmic": logarithmic}
