"""Likelihood and reconstruction of rows of data under a flow."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, leaves, transform
from fluvial.data import Dataset, as_dataset
from fluvial.manifolds import Euclidean, Manifold, Product
from fluvial.metrics.estimate import Estimate, mean_estimate

Volume = Literal["decoder", "encoder"]
At = Literal["reconstruction", "preimage"]
ROWS_AT_A_TIME = 8192
# How far a row may lie from its manifold, in parts of 1 + its length: the density there says nothing about points that are further away.
BESIDE = 1e-2


class Reconstruction(NamedTuple):
    """How far reconstructions lie from the data.

    Attributes:
        rms: Root mean square distance |x − x̂|, in the units of the data.
        mean: Mean distance.
    """

    rms: Estimate
    mean: Estimate


class Gap(NamedTuple):
    """How far the encoder's and the decoder's idea of the same density differ, in nats.

    Attributes:
        absolute: Mean over the rows of |NLL_encoder − NLL_decoder|.
        signed: Mean over the rows of NLL_encoder − NLL_decoder.
    """

    absolute: Estimate
    signed: Estimate


def nll(
    flow: nn.Module, x: Any, c: Condition = None, *, weight: Tensor | None = None, volume: Volume = "decoder", at: At = "reconstruction"
) -> Estimate:
    r"""Mean negative log-likelihood −⟨log p(x|c)⟩ in nats, with its standard error.

    Args:
        flow: A `Flow` or `Joint`.
        x: Data, shape (n, \*event).
        c: Conditions of the rows, leaves of shape (n, \*condition event), or None.
        weight: Weights of the rows, shape (n,), or None.
        volume: Whose Jacobian gives the volume change of a free-form flow; a bijection's is exact.
        at: Where a free-form flow's decoder density is taken: at ``reconstruct(x)``, or at x itself after solving decode(z) = x.

    Returns:
        The mean over all rows. Rows of density 0 make it infinite; they are counted and named in its ``note``.

    Raises:
        ValueError: If a row lies further than 0.01 (1 + \|x\|) from the flow's manifold.

    Example:
        >>> from fluvial.bases import Normal
        >>> from fluvial.codecs import Standardize
        >>> from fluvial.flow import Flow
        >>> flow = Flow(Standardize(2), Normal(2))
        >>> round(nll(flow, torch.zeros(10, 2)).value, 4)
        1.8379
    """
    refuse_beside(flow, x)
    return mean_estimate(-log_prob(flow, x, c, volume=volume, at=at), weight)


def reconstruction(flow: nn.Module, x: Tensor, c: Condition = None, *, weight: Tensor | None = None) -> Reconstruction:
    r"""Distance between x and ``flow.reconstruct(x)``; on a manifold the chord, the straight line between the embedded points.

    Args:
        flow: A `Flow`.
        x: Data, shape (n, \*event).
        c: Conditions of the rows, or None.
        weight: Weights of the rows, shape (n,), or None.
    """
    with evaluating(flow):
        distance = _by_rows(lambda rows, cond: (rows - flow.reconstruct(rows, cond)).flatten(1).double().norm(dim=1), x, c)
    return Reconstruction(rms_estimate(distance, weight), mean_estimate(distance, weight))


def encoder_decoder_gap(flow: nn.Module, x: Tensor, c: Condition = None, *, weight: Tensor | None = None) -> Gap:
    r"""NLL from the encoder's volume minus NLL from the decoder's, row by row: 0 for exact inverses, and a sign of trouble where it is not small.

    For a bottleneck the encoder's volume is only a bound (NLL_encoder ≤ NLL_decoder for exact left inverses).

    Args:
        flow: A `Flow`.
        x: Data, shape (n, \*event).
        c: Conditions of the rows, or None.
        weight: Weights of the rows, shape (n,), or None.
    """
    return gap_of(log_prob(flow, x, c, volume="encoder"), log_prob(flow, x, c), weight)


def figures(flow: nn.Module, dataset: "Dataset | Any") -> dict[str, Estimate]:
    """The figures of a flow on held-out data: a Dataset, or what makes one.

    Returns:
        ``nll`` (the decoder's density; exact for a bijection), ``nll_encoder``, ``gap`` (the difference
        NLL_encoder − NLL_decoder), ``gap_rows`` (its mean absolute value, row by row), ``reconstruction`` (root mean square, in the units of the
        data) and ``n`` (number of rows).

    Raises:
        ValueError: If a row lies further than 0.01 (1 + |x|) from the flow's manifold.
    """
    x, c, weight = placed(flow, as_dataset(dataset))
    refuse_beside(flow, x)
    decoder, encoder = log_prob(flow, x, c), log_prob(flow, x, c, volume="encoder")
    gap = gap_of(encoder, decoder, weight)
    return {
        "nll": mean_estimate(-decoder, weight),
        "nll_encoder": mean_estimate(-encoder, weight),
        "gap": gap.signed,
        "gap_rows": gap.absolute,
        "reconstruction": reconstruction(flow, x, c, weight=weight).rms,
        "n": Estimate(float(len(x))),
    }


def log_prob(flow: nn.Module, x: Any, c: Condition = None, *, volume: Volume = "decoder", at: At = "reconstruction") -> Tensor:
    """flow.log_prob in evaluation mode, without gradients and in chunks of rows, shape (n,)."""
    # A Joint and other densities know only the defaults.
    chosen = {} if (volume, at) == ("decoder", "reconstruction") else {"volume": volume, "at": at}
    with evaluating(flow):
        return _by_rows(lambda rows, cond: flow.log_prob(rows, cond, **chosen), x, c)


def refuse_beside(flow: nn.Module, x: Any) -> None:
    r"""Refuse rows of x, shape (n, \*event), far beside the flow's manifold; factor by factor on products.

    Raises:
        ValueError: Naming the first such row.
    """
    manifold = getattr(flow, "manifold", None)
    # What has another shape is refused by the flow, in its own words.
    if not isinstance(manifold, Manifold) or not isinstance(x, Tensor) or tuple(x.shape[1:]) != manifold.event_shape:
        return
    with torch.no_grad():
        _refuse_beside(manifold, x)


def _refuse_beside(manifold: Manifold, x: Tensor) -> None:
    if isinstance(manifold, Product):
        for factor, part in zip(manifold.factors, manifold.split(x)):
            _refuse_beside(factor, part)
        return
    if isinstance(manifold, Euclidean):
        return
    for start in range(0, len(x), ROWS_AT_A_TIME):
        rows = x[start : start + ROWS_AT_A_TIME]
        nearest = manifold.project(rows)
        away, size = (nearest - rows).flatten(1).norm(dim=1), 1 + rows.flatten(1).norm(dim=1)
        # Where a small step changes the projection much, as at the centre of a sphere, there is no nearest point.
        torn = (manifold.project(rows + 1e-3) - nearest).flatten(1).norm(dim=1) > 0.1 * size
        # Rows that are not finite have no density, and are counted as such.
        far = ~(away <= BESIDE * size) | torn
        far &= torch.isfinite(size)
        if bool(far.any()):
            row = int(far.nonzero()[0])
            distance = "where the nearest point is not unique, far" if bool(torn[row]) else f"{float(away[row]):.3g} away"
            raise ValueError(
                f"row {start + row} lies {distance} from {manifold}, on which the flow is: log_prob says nothing about such points; "
                "call manifold.project(x) first if they are meant, or fluvial.data.load for degrees, quaternions and rotation vectors"
            )


def gap_of(encoder: Tensor, decoder: Tensor, weight: Tensor | None = None) -> Gap:
    """The gap of two log-densities of the same rows, shapes (n,)."""
    difference = decoder.double() - encoder.double()
    return Gap(mean_estimate(difference.abs(), weight), mean_estimate(difference, weight))


def rms_estimate(distance: Tensor, weight: Tensor | None = None) -> Estimate:
    """√⟨d²⟩ with the standard error that the one of ⟨d²⟩ implies, SE(√m) = SE(m) / (2√m)."""
    square = mean_estimate(distance.double().square(), weight)
    if square.bad_rows:
        return Estimate(square.value, math.nan, square.n, square.bad_rows, mean_estimate(distance, weight).note)
    rms = math.sqrt(square.value)
    return Estimate(rms, square.standard_error / (2 * rms) if rms > 0 else 0.0, square.n)


def placed(flow: nn.Module, dataset: "Dataset", *, seed: int = 0) -> tuple[Tensor, Condition, Tensor | None]:
    """Data, conditions and weights of a data set in the flow's floating type and on its device.

    Where the flow was trained on dequantised data, so are these, since discrete ones have no density; noise alone is not added.
    """
    like = float_of(flow)
    x = dataset.x.to(like)
    spec = dataset.spec if getattr(flow, "spec", None) is None else flow.spec
    if spec.dequantize is not None:  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        x = spec.perturb(x, torch.Generator(like.device).manual_seed(seed))  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess, reportCallIssue]
    c = transform(dataset.c, lambda leaf: leaf.to(like) if leaf.is_floating_point() else leaf.to(like.device))
    return x, c, None if dataset.weight is None else dataset.weight.to(like)


def float_of(flow: nn.Module) -> Tensor:
    """A tensor with the floating type and the device of a flow."""
    return next((t for t in (*flow.parameters(), *flow.buffers()) if t.is_floating_point()), torch.zeros(()))


@contextmanager
def evaluating(flow: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode inside; the mode of every part as before afterwards."""
    modes = {module: module.training for module in flow.modules()}
    flow.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _by_rows(fn: Callable[[Any, Condition], Tensor], x: Any, c: Condition) -> Tensor:
    n = len(next(iter(leaves(x).values())))
    if n == 0:
        raise ValueError("expected at least one row of data, got none")
    for name, leaf in leaves(c).items():
        if len(leaf) != n:
            raise ValueError(
                f"condition {name!r}: expected one entry per row of x, {n} in all, got {len(leaf)}; repeat a common one with c.expand({n}, …)"
            )
    chunks = [slice(start, start + ROWS_AT_A_TIME) for start in range(0, n, ROWS_AT_A_TIME)]
    return torch.cat([fn(transform(x, lambda leaf: leaf[rows]), transform(c, lambda leaf: leaf[rows])) for rows in chunks])  # noqa: B023
