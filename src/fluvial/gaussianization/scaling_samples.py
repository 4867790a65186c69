"""The losses of samples under layers fitted one after the other with random rotations."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fluvial.codecs.marginal_spline import Knots, bend_, prepared
from fluvial.codecs.matrices import random_rotation
from fluvial.codecs.spline_kernel import rotate
from fluvial.gaussianization.kernel_histogram import BINS, histogram_
from fluvial.gaussianization.marginals import fit_marginals
from fluvial.gaussianization.sources import BLOCK
from fluvial.gaussianization.statistics import binned_grid

_SETTLED = 20  # layers, before which the pace says nothing


class Followed(NamedTuple):
    """What became of the loss.

    Attributes:
        losses: L₀, L₁, … in nats: the means over the rows held out.
        errors: Their standard errors.
        stopped: "reached", "layers" (no more allowed) or "out of reach" (a pace that would not get there in the layers allowed).
    """

    losses: list[float]
    errors: list[float]
    stopped: Literal["reached", "layers", "out of reach"]

    def needed(self, factor: float) -> float:
        """The first layer after which the loss is not above L₀/f; infinite where there is none."""
        return next((layer for layer, loss in enumerate(self.losses) if loss <= self.losses[0] / factor), math.inf)


class SampleLayers:
    r"""Training rows and rows held out, on their way through layers.

    Before the first layer the columns have mean 0 and variance 1. Every layer, the first one too, is a rotation followed by a spline for each
    coordinate through its quantiles, fitted to the training rows.

    Args:
        train: Rows (n, D).
        held_out: Rows (m, D).
        log_prob: Of the rows held out under the distribution they come from, shape (m,), or 0 where it is not known.
        bins: Of the splines.
    """

    def __init__(self, train: np.ndarray, held_out: np.ndarray, log_prob: np.ndarray | float, *, bins: int) -> None:
        mean, scale = train.mean(0), train.std(0)
        self.features = train.shape[1]
        self.bins = bins
        self._number = len(train)
        self._layers = 0
        self._train, self._held_out = (_blocks((rows - mean) / scale) for rows in (train, held_out))
        self._truth = np.broadcast_to(log_prob, len(held_out))
        self._ladj = [np.full(block.shape[1], -np.log(scale).sum()) for block in self._held_out]

    def rows(self) -> np.ndarray:
        """Log p − log q of every row held out, shape (m,): its mean is the loss KL(p ‖ q) (the NLL, where p is not known)."""
        nll = [0.5 * np.einsum("dn,dn->n", x, x, dtype=np.float64) - ladj for x, ladj in zip(self._held_out, self._ladj)]
        return np.concatenate(nll) + 0.5 * self.features * math.log(2 * math.pi) + self._truth

    def covariance(self) -> np.ndarray:
        """Of the training rows as they stand, (D, D)."""
        mean = sum(block.sum(1, dtype=np.float64) for block in self._train) / self._number
        return sum((block @ block.T).astype(np.float64) for block in self._train) / self._number - np.outer(mean, mean)

    def add(self, rotation: np.ndarray, *, alpha: float = 0.0) -> None:
        """Fit one more layer after a rotation (D, D), and send all rows through it."""
        matrix = np.ascontiguousarray(rotation, np.float32)
        counts = np.zeros((self.features, BINS + 2), np.int64)
        low, high = np.full(self.features, np.inf), np.full(self.features, -np.inf)
        for x in self._train:
            x[:] = rotate(matrix, x, np.empty_like(x))
            histogram_(x, counts)
            low, high = np.minimum(low, x.min(1)), np.maximum(high, x.max(1))
        # As in `fit`, the tails of the data end in the first layer.
        tail = "affine" if self._layers else "gaussian"
        fitted = fit_marginals(binned_grid(counts, low, high), rows=self._number, bins=self.bins, tail=tail, alpha=alpha)
        knots = Knots(*(None if part is None else part.float().contiguous() for part in fitted))
        tables = prepared(knots)
        for x in self._train:
            bend_(x, knots, tables, np.zeros(x.shape[1]), engine=None)
        for x, ladj in zip(self._held_out, self._ladj):
            x[:] = rotate(matrix, x, np.empty_like(x))
            bend_(x, knots, tables, ladj, engine=None)
        self._layers += 1


def follow(
    layers: SampleLayers, *, factors: Sequence[float], max_layers: int, rng: np.random.Generator, check: Callable[[], None] = lambda: None
) -> Followed:
    """Add layers with uniform random rotations until the loss is divided by the largest factor, or that is out of reach.

    Args:
        layers: Before their first one.
        factors: f > 1.
        max_layers: No more layers than these.
        rng: Of the rotations.
        check: Called before every layer; may raise to end it all.
    """
    losses, errors = [], []
    while True:
        rows = layers.rows()
        losses.append(float(rows.mean()))
        errors.append(float(rows.std()) / math.sqrt(len(rows)))
        targets = [losses[0] / factor for factor in sorted(factors) if min(losses) > losses[0] / factor]
        if not targets:
            return Followed(losses, errors, "reached")
        if len(losses) > max_layers:
            return Followed(losses, errors, "layers")
        if _is_out_of_reach(losses, targets[0], max_layers):
            return Followed(losses, errors, "out of reach")
        check()
        layers.add(random_rotation(layers.features, seed=int(rng.integers(2**31))).numpy())


def reference_rows(
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    bins: int,
    alphas: Sequence[float] = (0.0, 0.5),
    max_layers: int = 30,
    patience: int = 5,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Log-densities (m,) of the rows held out under the best flow that looks along principal axes.

    Their mean takes the place of −H, where the entropy is not known. It is below it, and chosen on the rows it is for: of all numbers of layers and
    shrinkages the one with the largest mean.
    """
    best = np.full(len(held_out), -np.inf)
    for alpha in alphas:
        layers, kept, found = SampleLayers(train, held_out, 0.0, bins=bins), 0, -math.inf
        for layer in range(max_layers):
            check()
            axes = np.linalg.eigh(layers.covariance())[1].T
            # The first layer brings the columns themselves to normal ones, and shrinks nothing, as in `fit`.
            layers.add(axes if layer else np.eye(layers.features), alpha=alpha if layer else 0.0)
            log_prob = -layers.rows()
            if log_prob.mean() > best.mean():
                best = log_prob
            if log_prob.mean() > found:
                found, kept = float(log_prob.mean()), layer
            elif layer - kept >= patience:
                break
    return best


def _is_out_of_reach(losses: list[float], target: float, max_layers: int) -> bool:
    """Whether the pace of the later half of the layers, which slows down as a rule, would need more layers than there may be."""
    last = len(losses) - 1
    if last < _SETTLED:
        return False
    pace = math.log(losses[last // 2] / losses[-1]) / (last - last // 2)
    return pace <= 0 or last + math.log(losses[-1] / target) / pace > max_layers


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(x[start : start + BLOCK].T, np.float32) for start in range(0, len(x), BLOCK)]
