"""Classifier two-sample test."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluvial.conditions import Condition, leaves
from fluvial.metrics.estimate import Estimate


class C2ST(NamedTuple):
    """How well a classifier tells two samples apart.

    Attributes:
        accuracy: Cross-validated accuracy: 0.5 where it cannot tell them apart, 1 where it always can.
        auc: Area under the receiver operating characteristic, same scale; it notices more, since it does not depend on one threshold.
    """

    accuracy: Estimate
    auc: Estimate


def c2st(
    samples: Tensor,
    reference: Tensor,
    *,
    c: Condition = None,
    reference_c: Condition = None,
    weight: Tensor | None = None,
    reference_weight: Tensor | None = None,
    folds: int = 5,
    max_rows: int = 10_000,
    seed: int = 0,
) -> C2ST:
    r"""Train classifiers to tell samples from reference points, and score them on points they have not seen.

    The score is that of the mean prediction of gradient-boosted trees, which see local detail in few dimensions, and of a small
    neural network, which sees correlations among many; either alone misses what the other finds. Columns are standardised, the
    larger set is thinned to the size of the smaller, and both sets carry the same total weight.

    Args:
        samples: Shape (n, \*event).
        reference: Shape (m, \*event).
        c: Conditions of the samples, appended to them so that the conditional distributions are compared; give both or neither.
        reference_c: Conditions of the reference points.
        weight: Weights of the samples, shape (n,), not negative.
        reference_weight: Weights of the reference points, shape (m,).
        folds: Number of cross-validation folds.
        max_rows: At most so many rows of each set are used.
        seed: Seed of thinning, folds and classifiers.

    Returns:
        Accuracy and AUC with standard errors: the scatter of single rows, times √(1 + k/(k − 1)) because the k folds share training rows.

    Raises:
        ValueError: If event shapes differ, a set has fewer than 2·folds rows, values are not finite, or a weight is negative.

    References:
        Lopez-Paz, Oquab (2017), "Revisiting classifier two-sample tests", arXiv:1610.06545.
        Nadeau, Bengio (2003), "Inference for the generalization error", Machine Learning 52.

    Example:
        >>> import torch
        >>> noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
        >>> c2st(noise[:200], noise[200:] + 5).accuracy.value > 0.95
        True
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(f"c2st: expected two sets of one event shape, got {tuple(samples.shape[1:])} and {tuple(reference.shape[1:])}")
    if (c is None) != (reference_c is None):
        raise ValueError("c2st: conditions were given for one of the two sets only; give both c and reference_c, or neither")
    size = min(len(samples), len(reference), max_rows)
    if size < 2 * folds:
        raise ValueError(f"c2st: expected at least {2 * folds} rows in each set for {folds} folds, got {len(samples)} and {len(reference)}")
    rng = np.random.default_rng(seed)
    # Sets of equal length may be pairs that share a condition: they are thinned alike, so that pairs stay together below.
    chosen = np.sort(rng.permutation(len(samples))[:size])
    other = chosen if len(reference) == len(samples) else np.sort(rng.permutation(len(reference))[:size])
    a, wa = _rows("samples", samples, c, weight, chosen)
    b, wb = _rows("reference", reference, reference_c, reference_weight, other)
    features, label, w = np.concatenate([a, b]), np.repeat([1, 0], size), np.concatenate([wa, wb])
    spread = features.std(0)
    features = (features - features.mean(0)) / np.where(spread > 0, spread, 1)

    # Row k of both sets falls into the same fold: all folds are balanced, and no partner of a test row is learned by heart.
    fold = np.tile(rng.permutation(size) % folds, 2)
    score = np.empty(2 * size)
    auc, auc_variance = 0.0, 0.0
    for k in range(folds):
        test = fold == k
        score[test] = _predict(features[~test], label[~test], w[~test], features[test], seed)
        value, variance = _auc(score[test], label[test], w[test])
        auc, auc_variance = auc + value / folds, auc_variance + variance / folds**2
    # A score of exactly ½ is a coin.
    right = np.where(score == 0.5, 0.5, (score > 0.5) == label)
    accuracy = float((w * right).sum() / w.sum())
    variance = float((w**2 * (right - accuracy) ** 2).sum() / w.sum() ** 2)
    # Where every row is classified rightly the scatter is 0, but the next one might not be.
    floor = float(w.max() / w.sum())
    shared = math.sqrt(1 + folds / (folds - 1))
    return C2ST(*(Estimate(value, max(shared * math.sqrt(v), floor), 2 * size) for value, v in ((accuracy, variance), (auc, auc_variance))))


def _rows(name: str, x: Tensor, c: Condition, weight: Tensor | None, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns = [x, *(leaf for _, leaf in sorted(leaves(c).items()))]
    flat = np.concatenate([t.detach().to("cpu", torch.float64).flatten(1).numpy()[index] for t in columns], 1)
    if not np.isfinite(flat).all():
        row = index[np.nonzero(~np.isfinite(flat).all(1))[0][0]]
        raise ValueError(f"c2st: row {row} of {name} is not finite; leave such rows out, and count them")
    if weight is None:
        return flat, np.ones(len(index))
    w = weight.detach().to("cpu", torch.float64).numpy()[index]
    if (w < 0).any() or not w.sum() > 0:
        raise ValueError(f"c2st: expected weights of {name} ≥ 0 with a positive sum; a classifier cannot learn from negative ones")
    return flat, w * len(index) / w.sum()


def _predict(train: np.ndarray, label: np.ndarray, w: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    trees = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
    network = MLPClassifier(
        (64, 64),
        batch_size=min(256, len(train) // 2),
        learning_rate_init=3e-3,
        max_iter=50,
        early_stopping=True,
        n_iter_no_change=5,
        random_state=seed,
    )
    # Equal weights are left out: weighted binning takes ten times as long. Matrices this small lose more by threads than they gain, up to
    # twenty times as much on a busy machine. Fifty epochs are the budget; not to have converged by then is no fault.
    weight = None if w.min() == w.max() else w
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        chances = [np.asarray(model.fit(train, label, sample_weight=weight).predict_proba(test))[:, 1] for model in (trees, network)]
    return np.mean(chances, 0)


def _auc(score: np.ndarray, label: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    # Each row's share in the AUC is the weight of the other set that it beats (ties count half); the variance is the shares' scatter
    # (DeLong, DeLong, Clarke-Pearson 1988), here with weights.
    shares = []
    value = 0.0
    for own, sign in ((label == 1, 1), (label == 0, -1)):
        other = np.argsort(sign * score[~own], kind="stable")
        ladder = sign * score[~own][other]
        cumulative = np.concatenate([[0.0], np.cumsum(w[~own][other])]) / w[~own].sum()
        left, right = (np.searchsorted(ladder, sign * score[own], side=side) for side in ("left", "right"))
        share = (cumulative[left] + cumulative[right]) / 2
        value = (w[own] * share).sum() / w[own].sum()
        shares.append(((w[own] ** 2 * (share - value) ** 2).sum()) / w[own].sum() ** 2)
    return float(value), float(sum(shares))
