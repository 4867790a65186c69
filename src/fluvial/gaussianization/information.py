r"""How much is in a sample: entropy, total correlation, mutual information, divergence and negentropy, from densities fitted layer by layer.

All are means over rows of log-densities, or of their differences in the same row, under fits that have not seen the row: the rows are dealt into
folds, and each fold is scored by a fit to the others. Figures are in nats; divide by log 2 for bits.

References:
    Laparra, Johnson, Camps-Valls, Santos-Rodríguez, Malo (2025), "Estimating information theoretic measures via multidimensional Gaussianization",
    IEEE TPAMI 47(2), 1293–1308 (the measures; from the gains of layers there, from held-out densities here).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from fluvial.gaussianization.held_out import HeldOutFits, Information, encode, layers_of, log_normal, log_prob, mixed, safe_log_prob
from fluvial.gaussianization.samples import Sample, normal_scores, read_pair, read_sample, refuse_ties, standardized
from fluvial.metrics.estimate import mean_estimate

__all__ = ["Information", "entropy", "kl_divergence", "mutual_information", "negentropy", "total_correlation"]

_LOW = "low by the misfit of the joint density, which is in bias and not in the error"
_SCORES = {"alpha": (1.0, 0.8)}  # of fits to normal scores, with which the first layer has nothing to do


def entropy(x: Any, *, folds: int = 5, seed: int = 0, threads: int | None = None, progress: bool = False, **settings: Any) -> Information:
    r"""Differential entropy of a sample.

    .. math:: H(X) = -\mathbb{E} \log p(x) \le -\mathbb{E} \log q(x)

    The right side, at rows that the fit q has not seen, is what is given: too high by KL(p ‖ q) in expectation.

    Args:
        x: Rows (n, D) or (n,): array, tensor, DataFrame, ``(x, None, weight)``, or a `Dataset` (with weights, where it has any).
        folds: The rows are dealt into so many, each scored by a fit to the others. More folds leave more rows to fit to, and less bias.
        seed: Of folds and fits.
        threads: How many work on a fit; default those of torch.
        progress: Show the fits.
        **settings: Of the fits, as for `fit`: rotation, marginal, bins, alpha, tail, max_layers, patience, min_gain, validation (a share), memory,
            scratch.

    Returns:
        The estimate, for x in its own units.

    Raises:
        ValueError: If entries are not finite, a column is constant or one of steps (which has no density), rows are too few, or samples have a
            condition or live on a manifold.
        TypeError: If a setting is unknown.

    Example:
        >>> x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> found = entropy(2 * x, folds=2)
        >>> abs(found.value - (0.5 * math.log(2 * math.pi * math.e) + math.log(2))) < 0.1
        True
    """
    fits, sample = HeldOutFits("entropy", folds, seed, threads, progress, settings), read_sample(x, "entropy: x")
    refuse_ties(sample)
    fits.check(sample)
    z, scale = standardized(sample.x, [sample])

    def score(rows: np.ndarray) -> tuple[np.ndarray, int]:
        flow = fits.fit(z[rows], sample.weights_of(rows))
        return np.log(scale).sum() - safe_log_prob(flow, z), layers_of(flow)

    return fits.mean(sample, score, note="an upper bound in expectation: high by the misfit of the density, which is in bias and not in the error")


def total_correlation(x: Any, *, folds: int = 5, seed: int = 0, threads: int | None = None, progress: bool = False, **settings: Any) -> Information:
    r"""How much the columns of a sample depend on each other.

    .. math:: \mathrm{TC}(X) = \sum_i H(X_i) - H(X) = \mathbb{E} \log \frac{p(x)}{\prod_i p_i(x_i)}
              = \mathbb{E} \log \frac{p(z)}{\prod_i N(z_i; 0, 1)}, \qquad z_i = \Phi^{-1}(F_i(x_i))

    Columns are replaced by the normal scores z of their ranks first. So no entropy of a column has to be estimated, nothing depends on their units
    or on increasing maps of them, and what is missing is the joint density's misfit alone. Equal values are ranked at random, which leaves the
    dependence of a discrete column as it is.

    Args:
        x: Rows (n, D), D ≥ 2, in the forms that `entropy` takes.
        folds: Each is scored by a fit to the others.
        seed: Of folds, fits and ties.
        threads: How many work on a fit; default those of torch.
        progress: Show the fits.
        **settings: Of the fits, as for `entropy`; alpha is (1, 0.8) here.

    Returns:
        The estimate, a lower bound in expectation.

    Raises:
        ValueError: As for `entropy`, steps apart; if there is one column only.
        TypeError: If a setting is unknown.

    Example:
        >>> a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> found = total_correlation(torch.stack([a, 0.8 * a + 0.6 * b], -1), folds=2)
        >>> abs(found.value + 0.5 * math.log(1 - 0.8**2)) < 3 * found.standard_error + abs(found.bias)
        True
    """
    fits, sample = HeldOutFits("total_correlation", folds, seed, threads, progress, settings), read_sample(x, "total_correlation: x")
    if sample.x.shape[1] < 2:
        raise ValueError("total_correlation: x has one column, which has nothing to depend on; use mutual_information for two samples")
    fits.check(sample)
    z = normal_scores(sample, seed=seed)

    def score(rows: np.ndarray) -> tuple[np.ndarray, int]:
        flow = fits.fit(z[rows], sample.weights_of(rows), **_SCORES)
        return safe_log_prob(flow, z) - log_normal(z), layers_of(flow)

    return fits.mean(sample, score, note=_with_ties(_LOW, sample))


def mutual_information(
    x: Any, y: Any, *, folds: int = 5, seed: int = 0, threads: int | None = None, progress: bool = False, **settings: Any
) -> Information:
    r"""How much two samples, row by row, tell about each other.

    .. math:: I(X; Y) = H(X) + H(Y) - H(X, Y) = \mathbb{E} \log \frac{p(z_x, z_y)}{N(z_x; 0, 1)\,N(z_y; 0, 1)},
              \qquad z_x = f(x),\ z_y = g(y)

    with maps f, g that make each of x and y normal by itself: the normal scores of ranks and, where there are several columns, a fit to them. The
    joint fit goes on from there, so that what is misfitted within x or y cancels, and independent samples get 0 without any layer.

    Args:
        x: Rows (n, D₁), in the forms that `entropy` takes.
        y: Rows (n, D₂) that belong to those of x. Columns may be discrete, as for `total_correlation`.
        folds: Each is scored by a fit to the others.
        seed: Of folds, fits and ties.
        threads: How many work on a fit; default those of torch.
        progress: Show the fits.
        **settings: Of the fits, as for `entropy`; alpha is (1, 0.8) here.

    Returns:
        The estimate: with one column on either side a lower bound in expectation, otherwise mostly low.

    Raises:
        ValueError: As for `entropy`, steps apart; if x and y differ in their number of rows, or in their weights.
        TypeError: If a setting is unknown.

    Example:
        >>> x, e = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> mutual_information(x, x.square() + 0.5 * e, folds=2).value > 0.5  # though their correlation is 0
        True
    """
    fits = HeldOutFits("mutual_information", folds, seed, threads, progress, settings)
    samples = read_pair(x, y, "mutual_information")
    fits.check(samples[0])
    blocks = [normal_scores(sample, seed=seed) for sample in samples]

    def score(rows: np.ndarray) -> tuple[np.ndarray, int]:
        weight = samples[0].weights_of(rows)
        normal = list(blocks)
        for k, (block, sample) in enumerate(zip(blocks, samples)):
            if block.shape[1] > 1:
                latent = encode(fits.fit(block[rows], weight, **_SCORES), block)
                # Ranked again: rows that are thrown far out come back, and every coordinate is normal indeed.
                normal[k] = normal_scores(sample._replace(x=latent), seed=seed)
        z = np.concatenate(normal, 1)
        flow = fits.fit(z[rows], weight, **_SCORES)
        return safe_log_prob(flow, z) - log_normal(z), layers_of(flow)

    return fits.mean(samples[0], score, note=_with_ties(_LOW, *samples))


def kl_divergence(
    x: Any, y: Any, *, folds: int = 5, seed: int = 0, threads: int | None = None, progress: bool = False, **settings: Any
) -> Information:
    r"""How far the distribution P that x was drawn from is from Q, that of y.

    .. math:: \mathrm{KL}(P \,\|\, Q) = \mathbb{E}_P \log \frac{p(x)}{q(x)} = \mathrm{KL}\bigl(f_* P \,\|\, N(0, 1)\bigr), \qquad f_* Q = N(0, 1)

    A flow f is fitted to y, and another one to what f makes of x, so that what P and Q have in common cancels. The standard error is that of both
    samples: from the spread of log p/q over x, and from that of p/q over held-out rows of y, as all that is known of Q is these rows.

    Args:
        x: Rows (n, D) of P, in the forms that `entropy` takes.
        y: Rows (m, D) of Q.
        folds: Of either sample; each is scored by fits to the others.
        seed: Of folds and fits.
        threads: How many work on a fit; default those of torch.
        progress: Show the fits.
        **settings: Of the fits, as for `entropy`.

    Returns:
        The estimate. Its ``note`` has the mean of p/q over y, which should be 1: far from it, Q has too few rows where P has its own.

    Raises:
        ValueError: As for `entropy`, and if x and y differ in their number of columns.
        TypeError: If a setting is unknown.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(1000, 2, generator=g), torch.randn(1000, 2, generator=g) + 1  # their divergence is 1
        >>> abs(kl_divergence(x, y, folds=2).value - 1) < 0.3
        True
    """
    fits = HeldOutFits("kl_divergence", folds, seed, threads, progress, settings)
    p, q = read_sample(x, "kl_divergence: x"), read_sample(y, "kl_divergence: y")
    if p.x.shape[1] != q.x.shape[1]:
        raise ValueError(f"kl_divergence: x has {p.x.shape[1]} columns and y {q.x.shape[1]}; both must live in one space")
    for sample in (p, q):
        refuse_ties(sample)
        fits.check(sample)
    (zp, _), (zq, _) = standardized(p.x, [p, q]), standardized(q.x, [p, q])
    folds_of_q, ratio = iter(fits.deal(len(zq), "fold of y")), np.empty(len(zq))

    def score(rows: np.ndarray) -> tuple[np.ndarray, int]:
        held_out = next(folds_of_q)
        others = np.setdiff1d(np.arange(len(zq)), held_out)
        to_normal = fits.fit(zq[others], q.weights_of(others))
        flow = fits.fit(encode(to_normal, zp[rows]), p.weights_of(rows))

        def log_ratio(z: np.ndarray) -> np.ndarray:
            latent, log_q = encode(to_normal, z), safe_log_prob(to_normal, z)
            log_p = log_prob(flow, latent) - log_normal(latent) + log_prob(to_normal, z)
            return mixed(log_p, log_q) - log_q

        with np.errstate(over="ignore"):
            ratio[held_out] = np.exp(log_ratio(zq[held_out]))
        return log_ratio(zp), layers_of(flow)

    found = fits.mean(p, score, note="the misfit of both densities, which is in bias and not in the error, may have either sign")
    check = mean_estimate(torch.from_numpy(ratio), None if q.weight is None else torch.from_numpy(q.weight))
    return dataclasses.replace(
        found,
        standard_error=math.hypot(found.standard_error, check.standard_error),
        note=f"{found.note}; the mean of p/q over y is {check}, and should be 1",
    )


def negentropy(x: Any, *, folds: int = 5, seed: int = 0, threads: int | None = None, progress: bool = False, **settings: Any) -> Information:
    r"""How far a sample is from the normal distribution of its mean and covariance.

    .. math:: J(X) = H\bigl(N(\mu, \Sigma)\bigr) - H(X) = \mathbb{E} \log \frac{p(x)}{N(x; \mu, \Sigma)}

    Mean and covariance are those of the rows that p is fitted to, and do not know the held-out ones either.

    Args:
        x: Rows (n, D) or (n,), in the forms that `entropy` takes.
        folds: Each is scored by a fit to the others.
        seed: Of folds and fits.
        threads: How many work on a fit; default those of torch.
        progress: Show the fits.
        **settings: Of the fits, as for `entropy`.

    Returns:
        The estimate, mostly low.

    Raises:
        ValueError: As for `entropy`, and if columns are linear functions of others.
        TypeError: If a setting is unknown.

    Example:
        >>> x = -torch.rand(1000, generator=torch.Generator().manual_seed(0)).log()  # exponential: log(2π e)/2 − 1 = 0.419
        >>> abs(negentropy(x, folds=2).value - 0.419) < 0.1
        True
    """
    fits, sample = HeldOutFits("negentropy", folds, seed, threads, progress, settings), read_sample(x, "negentropy: x")
    refuse_ties(sample)
    fits.check(sample)
    z, _ = standardized(sample.x, [sample])

    def score(rows: np.ndarray) -> tuple[np.ndarray, int]:
        share = sample.share[rows] / sample.share[rows].sum()
        centred = z - share @ z[rows]
        spectrum, axes = np.linalg.eigh((share[:, None] * centred[rows]).T @ centred[rows])
        if not spectrum[0] > 1e-10 * spectrum[-1]:
            raise ValueError(f"{sample.where} has columns that are linear functions of others; leave them out")
        normal = log_normal(centred @ axes / np.sqrt(spectrum)) - 0.5 * np.log(spectrum).sum()
        flow = fits.fit(z[rows], sample.weights_of(rows))
        return safe_log_prob(flow, z) - normal, layers_of(flow)

    return fits.mean(sample, score, note=_LOW)


def _with_ties(note: str, *samples: Sample) -> str:
    named = [sample.names[k] for sample in samples for k in sample.tied]
    return f"{note}; equal values of column {', '.join(named)} ranked at random" if named else note
