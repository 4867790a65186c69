"""What stands beside the figures of a flow: simpler models and the truth, on the same rows."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fluvial.commands.similarity import discrete_similarity, similarity
from fluvial.conditions import Condition
from fluvial.data import Dataset, Splits
from fluvial.manifolds import Euclidean, Manifold, Torus, has_uniform
from fluvial.metrics import Estimate, mean_estimate, pca_gaussian
from fluvial.metrics.kernel_density import best_kernels
from fluvial.metrics.kernels import has_kernel
from fluvial.metrics.likelihood import placed, rms_estimate
from fluvial.metrics.truth import true_log_prob

if TYPE_CHECKING:
    from fluvial.flow import Flow

Placed = tuple[Tensor, Condition, Tensor | None]
References = dict[str, dict[str, Estimate]]

KERNELS = 25_000
BANDWIDTH_ROWS = 2_000
# Beyond so many dimensions kernels are no match; on curved spaces of finite extent no kernel is far from all points.
KERNEL_DIM = 3
KERNEL_DIM_CURVED = 8
# One kernel estimate for each class of a condition, where there are few, and each has so many rows to train and to choose the width by.
MOST_CLASSES = 32
LEAST_ROWS = 50


def references(flow: "Flow", splits: Splits, seed: int, classes: Sequence[Tensor | None]) -> tuple[References, Tensor | None]:
    """Figures of simpler models on the test rows.

    Args:
        flow: The flow they stand beside.
        splits: The data.
        seed: Of what is drawn.
        classes: Class of every row of the three parts, where the condition is one of few classes.

    Returns:
        Model -> name -> figure, and the log-densities of the kernel estimate on the test rows, float64, where there is one.
    """
    train, held_out, test = (placed(flow, part, seed=seed) for part in splits)
    x, c, weight = test
    found: References = {}
    positive = all(part is None or bool((part >= 0).all()) for _, _, part in (train, held_out, test))
    if flow.is_bottleneck:
        if c is None and positive and isinstance(flow.manifold, Euclidean) and flow.dim <= min(train[0].flatten(1).shape):
            found["pca"] = _of_pca(train[0], train[2], x, weight, flow.dim, splits.test, seed)
        return found, None
    if has_uniform(flow.manifold):
        found["uniform"] = {"nll": Estimate(math.log(flow.manifold.total_volume), 0.0)}
    if not positive or not _in_reach(flow.manifold):
        return found, None
    if c is None:
        log_p, note = _of_kernels(flow.manifold, train, held_out, x)
    elif all(part is not None for part in classes):
        log_p, note = _of_kernels_by_class(flow.manifold, train, held_out, x, [part for part in classes if part is not None])
    else:
        return found, None
    if log_p is None:
        return found, None
    estimate = mean_estimate(-log_p, weight)
    note = "; ".join(filter(None, (note, estimate.note)))
    found["kernel_density"] = {"nll": Estimate(estimate.value, estimate.standard_error, estimate.n, estimate.bad_rows, note)}
    return found, log_p


def of_truth(flow: "Flow", test: Dataset, seed: int, log_prob_of_flow: Tensor) -> References:
    """Figures of the true density on the same rows, where it is known."""
    x, c, weight = placed(flow, test, seed=seed)
    true = true_log_prob(test.truth, x.cpu(), None if c is None else _on_cpu(c))
    if true is None:
        return {}
    # The excess is taken row by row, so that the chance in the choice of rows cancels.
    found = {"nll": mean_estimate(-true, weight), "excess": mean_estimate(true - log_prob_of_flow.cpu().double(), weight)}
    return {"truth": found | ({"entropy": Estimate(*test.truth.entropy())} if hasattr(test.truth, "entropy") else {})}  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def classes_of(c: Condition) -> Tensor | None:
    """The class of every row, shape (n,), where the condition is one vector with a single 1 among zeros and there are few classes; else None."""
    if not isinstance(c, Tensor) or c.ndim != 2 or not 2 <= c.shape[1] <= MOST_CLASSES:
        return None
    one_hot = bool(((c == 0) | (c == 1)).all()) and bool((c.sum(1) == 1).all())
    return c.argmax(1).cpu() if one_hot else None


def _on_cpu(c: Condition) -> Condition:
    return {name: leaf.cpu() for name, leaf in c.items()} if isinstance(c, dict) else None if c is None else c.cpu()


def _in_reach(manifold: Manifold) -> bool:
    if not has_kernel(manifold):
        return False
    wide = isinstance(manifold, Torus) or not isinstance(manifold, Euclidean)
    return manifold.dim <= (KERNEL_DIM_CURVED if wide else KERNEL_DIM)


def _of_kernels(manifold: Manifold, train: Placed, held_out: Placed, x: Tensor) -> tuple[Tensor, str]:
    """Log-densities of rows by a kernel density estimate, on so many training rows that it takes seconds, and how it was made."""
    points, widths = slice(KERNELS), slice(BANDWIDTH_ROWS)
    kernels, bandwidth = best_kernels(
        train[0][points],
        held_out[0][widths],
        manifold,
        weight=None if train[2] is None else train[2][points],
        validation_weight=None if held_out[2] is None else held_out[2][widths],
    )
    what = f"κ = {bandwidth:g}"
    if kernels.is_relative:
        unit = "standard deviations" if isinstance(manifold, Euclidean) else "of the root of the area" if manifold.dim == 2 else "of the spread"
        what = f"width {bandwidth:.3g} {unit}"
    return kernels.log_prob(x), f"{what}, on {min(len(train[0]), KERNELS)} training rows"


def _of_kernels_by_class(manifold: Manifold, train: Placed, held_out: Placed, x: Tensor, classes: Sequence[Tensor]) -> tuple[Tensor | None, str]:
    """The same by one estimate for each class; None where a class has too few rows."""
    log_p = torch.empty(len(x), dtype=torch.float64)
    for k in classes[2].unique().tolist():
        rows = [(part == k).nonzero().squeeze(1) for part in classes]
        if min(len(rows[0]), len(rows[1])) < LEAST_ROWS:
            return None, ""
        parts = [(whole[0][at], None, None if whole[2] is None else whole[2][at]) for whole, at in zip((train, held_out), rows)]
        log_p[rows[2]] = _of_kernels(manifold, parts[0], parts[1], x[rows[2]])[0]
    return log_p, f"one estimate for each class, each on at most {KERNELS} training rows"


def _of_pca(train: Tensor, train_weight: Tensor | None, x: Tensor, weight: Tensor | None, d: int, test: Dataset, seed: int) -> dict[str, Estimate]:
    """Principal components of the same dimension, and samples of the Gaussian of their coordinates."""
    pca = pca_gaussian(train, d, weight=train_weight)
    distance = (x - pca.reconstruct(x)).flatten(1).norm(dim=1)
    samples = pca.sample(len(x), generator=torch.Generator(x.device).manual_seed(seed))
    return {
        "reconstruction": rms_estimate(distance, weight),
        "reconstruction_mean": mean_estimate(distance, weight),
        **similarity(samples, x, None, weight, seed),
        **discrete_similarity(samples, test, None, weight, seed),
    }
