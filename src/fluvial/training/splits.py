"""Training and validation rows, checked against the flow before anything is trained."""

from typing import Any

import torch
from torch import Tensor, nn

from fluvial.bases.limits import nearest
from fluvial.codecs import Chain, Codec, Coupling, FreeForm
from fluvial.codecs.box import Box
from fluvial.data import Dataset, as_dataset
from fluvial.data.dataset import check_resolved
from fluvial.data.problems import check_finite, check_on_manifold, check_rank, check_weight
from fluvial.flow import Flow
from fluvial.joint import Joint
from fluvial.manifolds import Euclidean
from fluvial.training.batches import Batches, rows
from fluvial.training.fitted import fit_parts_
from fluvial.training.joint_rows import JointRows
from fluvial.training.settings import Settings
from fluvial.training.states import generator
from fluvial.training.validation import Validation

# Held-out rows need no gradient, so more of them fit than in a training batch.
CHUNK_BATCHES = 4
LEAST_CHUNK = 4096


Rows = Dataset | JointRows


def split_data(flow: nn.Module, data: Any, validation: Any, seed: int, dtype: torch.dtype) -> tuple[Rows | None, Rows | None]:
    """Training and held-out rows, or (None, None) without data.

    Raises:
        ValueError: If rows are bad, shapes are not the flow's, or nothing would be left to train or validate on.
    """
    if data is None:
        return None, None
    if isinstance(flow, Joint):
        joint = JointRows.of(flow, data)
        if isinstance(validation, bool | int | float):
            return joint.cut(_share(validation), seed)
        return joint, JointRows.of(flow, validation)
    whole = _on_manifold(flow, as_dataset(data), "data")
    if whole.x.dtype == torch.float64 and dtype == torch.float32:
        check_resolved(whole.x.cpu().numpy(), "fit: data")
        whole = whole.to(dtype)
    whole.check()
    _check_bounds(flow, whole.x, whole, "data")
    if isinstance(flow, Flow) and isinstance(flow.manifold, Euclidean) and not flow.is_bottleneck:
        check_rank(whole.x, whole.spec)
    if isinstance(validation, bool | int | float):
        return _cut(whole, validation, seed)
    held_out = _on_manifold(flow, as_dataset(validation), "validation")
    # What is odd about a distribution shows in the training rows; here only what no figure survives.
    check_weight(held_out.weight)
    check_finite(held_out.x, held_out.c, held_out.spec)
    check_on_manifold(held_out.x, held_out.spec)
    _check_bounds(flow, held_out.x, held_out, "validation")
    return whole, held_out


def _check_bounds(flow: nn.Module, x: Tensor, data: Dataset, what: str) -> None:
    """Refuse rows to which the codec that touches the data gives no density: every step with one of them would be left out."""
    part = getattr(flow, "codec", None)
    while isinstance(part, Chain):
        part = part.parts[0]
    if not isinstance(part, Box):
        return
    low, high = (bound.expand(x.shape[1:]) for bound in nearest(part.limits.to(x.device), x.dtype))
    outside = (x < low) | (x > high)
    if not bool(outside.any()):
        return
    columns = outside.flatten(1).sum(0)
    worst = int(columns.argmax())
    values, below, above = x.flatten(1)[:, worst], low.flatten()[worst].item(), high.flatten()[worst].item()
    largest = torch.finfo(x.dtype).max
    sides = [f"low={below:g}"] * (below > -largest) + [f"high={above:g}"] * (above < largest)
    raise ValueError(
        f"fit: {int(columns[worst])} of {len(x)} rows of the {what} are outside the bounds {', '.join(sides)} of {type(part).__name__} "
        f"in column {data.spec.column(worst)} (values from {values.min().item():g} to {values.max().item():g}), where the flow has no "
        "density; widen the bounds, or leave these rows out"
    )


def _cut(whole: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    splits = whole.split() if whole.official is not None else whole.split((1 - _share(share), share, 0.0), seed=seed)
    for name, part in (("train", splits.train), ("validate", splits.validation)):
        if len(part) == 0:
            raise ValueError(f"fit: no row of {len(whole)} is left to {name} on; give more data, or held-out data as validation=")
    return splits.train, splits.validation


def _share(share: float) -> float:
    if isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(f"fit: validation must be a share of the rows between 0 and 1, or held-out data, got {share!r}")
    return share


def _sees_condition(flow: Flow) -> bool:
    """Whether a part of the flow can take a condition; unknown parts are taken to."""
    parts = list(flow.codec.modules())
    readers = [net for part in parts if isinstance(part, FreeForm) for net in (part.encoder, part.decoder)]
    readers += [part for part in parts if isinstance(part, Coupling)]
    unknown = any(isinstance(part, Codec) and not type(part).__module__.startswith("fluvial.codecs") for part in parts)
    return flow.context is not None or unknown or not readers or any(getattr(reader, "context", None) != 0 for reader in readers)


def _on_manifold(flow: nn.Module, data: Dataset, what: str) -> Dataset:
    """The data with the flow's manifold in its description, once shapes and conditions are known to fit."""
    manifold = getattr(flow, "manifold", None)
    if manifold is None:
        return data
    if data.spec.event_shape != manifold.event_shape:
        raise ValueError(
            f"fit: {what} must have samples of shape {manifold.event_shape} on {manifold}, got {data.spec.event_shape}; "
            "choose the columns, or build the flow for this shape"
        )
    if data.spec.manifold is not None and data.spec.manifold != manifold:
        raise ValueError(f"fit: the flow lives on {manifold}, the {what} on {data.spec.manifold}; build the flow with manifold={data.spec.manifold}")
    declared = getattr(flow, "condition", None)
    if declared is not None and data.spec.condition != declared:
        got = "none" if data.spec.condition is None else f"one of shape {data.spec.condition}"
        raise ValueError(f"fit: the flow takes a condition of shape {declared}, the {what} have {got}; give fit(flow, (x, c))")
    if declared is None and data.spec.condition is not None and isinstance(flow, Flow) and not _sees_condition(flow):
        raise ValueError(
            f"fit: the {what} come with a condition of shape {data.spec.condition}, but the flow was built without one; build it with context=…, "
            "or leave the condition out (weights are the third entry: (x, None, weight))"
        )
    if data.spec.manifold is None and not isinstance(manifold, Euclidean):
        return as_dataset(data, manifold=manifold)
    known = getattr(flow, "spec", None)
    if data.spec.dequantize is None and known is not None and known.dequantize is not None:
        # A flow whose layers were fitted to columns of steps knows them.
        return as_dataset(data, dequantize=known.dequantize)
    return data


def fit_codec(flow: nn.Module, train: Rows, seed: int) -> None:
    """Let codecs that want to see data see the training rows, with the noise that training adds."""
    if isinstance(train, JointRows):
        train.fit_codecs(flow)
        return
    if isinstance(flow, Flow):
        noisy = train.spec.perturb(train.x, generator(seed, "codec", train.x.device))
        if noisy is not train.x:
            _check_bounds(flow, noisy, train, "data with the noise that training adds to them")
        fit_parts_(flow, noisy, train.c, train.weight)


def make_validation(held_out: Rows | None, batches: Batches, settings: Settings, device: torch.device) -> Validation:
    """The rows that are validated on, drawn once, with the noise of training drawn once; without data, the empty batch of training."""
    if held_out is None:
        batch, chunk = batches.next(), batches.batch_size
    else:
        order = torch.randperm(len(held_out), generator=generator(settings.seed, "validation rows"))[: settings.validation_points]
        batch = rows(held_out, order.to(device), generator(settings.seed, "validation noise", device))
        chunk = max(CHUNK_BATCHES * settings.batch_size, LEAST_CHUNK)
    return Validation(batch._replace(index=None), chunk=chunk, seed=settings.seed, device=device)
