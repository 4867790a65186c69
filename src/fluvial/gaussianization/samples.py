"""Samples as information is measured on them: in double precision, and free of what has no density."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fluvial.data import Dataset, as_dataset
from fluvial.gaussianization import keyed
from fluvial.gaussianization.columns import ties_of

_TIED = 0.5  # with fewer distinct values than this share of the rows, a column is one of steps


class Sample(NamedTuple):
    """Rows and their weights.

    Attributes:
        x: Shape (n, D), float64.
        weight: Shape (n,), positive, or None where all rows count alike.
        names: What the columns are called in messages.
        where: What the sample itself is called there.
    """

    x: np.ndarray
    weight: np.ndarray | None
    names: tuple[str, ...]
    where: str

    @property
    def share(self) -> np.ndarray:
        """Weights that sum to 1."""
        return np.full(len(self.x), 1 / len(self.x)) if self.weight is None else self.weight / self.weight.sum()

    @property
    def tied(self) -> list[int]:
        """Columns of steps."""
        return [k for k, column in enumerate(self.x.T) if len(np.unique(column)) < _TIED * len(column)]

    def weights_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Of the rows of these numbers."""
        return None if self.weight is None else self.weight[rows]


def read_sample(data: Any, where: str) -> Sample:
    """The rows of an array, a Dataset or whatever `as_dataset` takes; rows of weight 0 are left out.

    Raises:
        ValueError: If samples have a condition or live on a manifold, an entry is not finite, a weight is negative, or a column is constant.
    """
    return _sample(_dataset(data), where)


def read_pair(x: Any, y: Any, where: str) -> tuple[Sample, Sample]:
    """Two samples of the same rows, with the weights of whichever has any.

    Raises:
        ValueError: As for `read_sample`, and if they differ in their number of rows, or in their weights.
    """
    first, second = copy.copy(_dataset(x)), copy.copy(_dataset(y))
    if len(first) != len(second):
        raise ValueError(f"{where}: x has {len(first)} rows and y {len(second)}; row i of y must belong to row i of x")
    weights = [part.weight.double().cpu() for part in (first, second) if part.weight is not None]
    if len(weights) == 2 and not torch.equal(*weights):
        raise ValueError(f"{where}: x and y have different weights; a row has one weight, give it with x")
    # Wherever it was given.
    first.weight = second.weight = weights[0] if weights else None
    return _sample(first, f"{where}: x"), _sample(second, f"{where}: y")


def refuse_ties(sample: Sample) -> None:
    """Steps have no density.

    Raises:
        ValueError: If a column has so few values that it is one of steps.
    """
    for column, values in enumerate(sample.x.T):
        if (ties := ties_of(values)).kind == "atoms":
            raise ValueError(
                f"{sample.where}: column {sample.names[column]} has an atom: {ties.share:.0%} of its rows are {ties.value:g}, and has no density; "
                "measure the others and the share of these apart, or add noise whose width is of consequence"
            )
    for column in sample.tied:
        values = len(np.unique(sample.x[:, column]))
        raise ValueError(
            f"{sample.where}: column {sample.names[column]} takes {values} values in {len(sample.x)} rows and has no density; "
            "add uniform noise as wide as the steps"
        )


def normal_scores(sample: Sample, *, seed: int) -> np.ndarray:
    r"""Φ⁻¹ of the (weighted) ranks of every column, shape (n, D).

    .. math:: z = \Phi^{-1}\Bigl(\frac{\sum_{j: x_j < x} w_j + w / 2}{\sum_j w_j}\Bigr)

    Ties are ranked at random: each value of a discrete column becomes an interval, in which all places are alike.
    """
    from scipy.special import ndtri

    z, numbers = np.empty_like(sample.x), np.arange(len(sample.x))
    for k, column in enumerate(sample.x.T):
        order = np.lexsort((keyed.uniform(seed, numbers, k, f"ties of {sample.where}"), column))
        share = sample.share[order]
        z[order, k] = ndtri(np.cumsum(share) - share / 2)
    return z


def standardized(x: np.ndarray, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Columns to mean 0 and variance 1 over all samples alike, while they are in double precision; and the scale."""
    mean = np.mean([one.share @ one.x for one in samples], 0)
    scale = np.sqrt(np.mean([one.share @ (one.x - mean) ** 2 for one in samples], 0))
    return (x - mean) / scale, scale


def _dataset(data: Any) -> Dataset:
    parts = data if isinstance(data, tuple) else (data,)
    if parts and isinstance(parts[0], np.ndarray) and parts[0].dtype.kind == "f":
        # A tensor keeps double precision, which a Dataset of arrays gives up.
        parts = (torch.from_numpy(np.ascontiguousarray(parts[0], np.float64)), *parts[1:])
        return as_dataset(parts if len(parts) > 1 else parts[0])
    return as_dataset(data)


def _sample(dataset: Dataset, where: str) -> Sample:
    if dataset.spec.manifold is not None:
        raise ValueError(f"{where} lives on {dataset.spec.manifold}; information is measured in flat space only, give coordinates")
    if dataset.c is not None:
        raise ValueError(f"{where} has a condition; give x alone, or the condition as the other sample of mutual_information")
    x = dataset.x.detach().double().cpu().flatten(1).numpy()
    names = tuple(map(str, range(x.shape[1]))) if dataset.spec.names is None else tuple(map(repr, dataset.spec.names))
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise ValueError(f"{where}: row {row}, column {names[column]} is {x[row, column]}; leave such rows out")
    weight = None if dataset.weight is None else dataset.weight.double().cpu().numpy()
    if weight is not None:
        if (weight < 0).any():
            raise ValueError(f"{where}: weight of row {int(np.argmax(weight < 0))} is negative; a density is fitted to weights ≥ 0 only")
        x, weight = x[weight > 0], weight[weight > 0]
        if len(x) == 0:
            raise ValueError(f"{where}: all rows have weight 0")
    constant = np.flatnonzero(x.max(0) <= x.min(0))
    if len(constant):
        raise ValueError(f"{where}: column {names[constant[0]]} holds one value only; leave it out (Dataset(drop_constant=True))")
    return Sample(x, weight, names, where)
