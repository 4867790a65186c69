"""How the splines of a layer depend on the condition."""

import math
import warnings
from typing import Literal

import numpy as np
import torch
from torch import nn

from fluvial.codecs import AnchorWeights, ConditionalSpline
from fluvial.codecs.marginal_spline import Knots
from fluvial.nn import MLP, ConditionScaling

Conditioning = Literal["auto", "classes", "kernel", "network", "joint"]
MOST_CLASSES = 64  # different conditions, up to which they count as classes
SAMPLED = {"kernel": 5000, "network": 50_000, "joint": 10_000}  # rows that anchors, a network, or lines are found from
_FEWEST_IN_CLASS = 20.0
_ROWS_PER_ANCHOR = 1000.0
_MOST_ANCHORS = 32


def check_classes(classes: np.ndarray, rows: np.ndarray) -> None:
    """Refuse classes with too few rows to fit anything to.

    Raises:
        ValueError: Naming the class.
    """
    least = int(np.argmin(rows))
    if rows[least] < _FEWEST_IN_CLASS:
        raise ValueError(
            f"fit: the class {classes[least].tolist()} has {rows[least]:g} training rows, at least {_FEWEST_IN_CLASS:g} are needed; "
            "leave it out, or take conditioning='kernel'"
        )


def anchors_of_kernel(conditions: np.ndarray, rows: float, seed: int) -> AnchorWeights:
    """Anchors spread over the conditions, others for every layer, and a kernel as wide as they are apart.

    Args:
        conditions: Some of them, (m, f).
        rows: How many rows there are in all.
        seed: Of the layer.
    """
    scale = conditions.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    scaled = conditions / scale
    many = int(min(max(rows / _ROWS_PER_ANCHOR, 4), _MOST_ANCHORS, len(np.unique(scaled, axis=0))))
    if scaled.shape[1] == 1:
        # Quantiles, shifted at random, so that what one layer blurs the next one sees.
        shift = np.random.default_rng(seed).uniform()
        places = np.quantile(scaled, np.clip((np.arange(many) + shift) / many, 0, 1), axis=0)
        apart = np.median(np.diff(places[:, 0])) if many > 1 else 1.0
    else:
        places, apart = _centres(scaled, many, seed)
    return AnchorWeights(places * scale, bandwidth=max(float(apart), 1e-6), scale=scale.tolist())


def network_spline(
    x: np.ndarray, conditions: np.ndarray, start: Knots, *, bins: int, tail: str, seed: int, sets: int = 16, steps: int = 300
) -> ConditionalSpline:
    """Splines whose average is weighted by a network of the condition, both trained on the NLL of this layer alone.

    Args:
        x: Training rows as they enter the splines, (D, m).
        conditions: Theirs, (f, m).
        start: Knots without regard to the condition.
        bins: Of the splines.
        tail: Of the splines.
        seed: Of the network and the batches.
        sets: How many splines are averaged.
        steps: Of Adam, with a learning rate that falls to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    c, rows = torch.from_numpy(np.ascontiguousarray(conditions.T)), torch.from_numpy(np.ascontiguousarray(x.T))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(c.shape[1], sets, hidden=(64, 64))
    scaling = ConditionScaling(c.shape[1])
    scaling.fit_(c)
    splines = ConditionalSpline(len(x), bins, nn.Sequential(scaling, network, nn.Softmax(-1)), sets, tail=tail)
    splines.set_([start] * sets)
    with torch.no_grad():  # sets that are all alike would stay so
        splines.table.add_(0.1 * torch.randn(splines.table.shape, generator=generator))
    optimizer = torch.optim.Adam([parameter for parameter in splines.parameters() if parameter.requires_grad], lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(rows), (min(512, len(rows)),), generator=generator)
        z, ladj = splines.encode_ladj(rows[chosen], c[chosen])
        loss = (0.5 * z.square().sum(-1) - ladj).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(splines.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return splines


def _centres(scaled: np.ndarray, many: int, seed: int) -> tuple[np.ndarray, float]:
    """Centres of clusters, and how far the nearest other one typically is."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Sums over the threads of OpenMP would differ in their last digits with the number of these.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        places = KMeans(many, n_init=1, max_iter=30, random_state=seed % 2**31).fit(scaled).cluster_centers_
    square = ((places[:, None] - places) ** 2).sum(-1)
    np.fill_diagonal(square, math.inf)
    return places, float(np.median(np.sqrt(square.min(1)))) if many > 1 else 1.0
