"""Figures of densities at rows that these have not seen, and what is known of their errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fluvial.codecs import Chain, MarginalSpline
from fluvial.flow import Flow
from fluvial.gaussianization import keyed
from fluvial.gaussianization.fit import fit
from fluvial.gaussianization.samples import Sample
from fluvial.metrics.estimate import Estimate, mean_estimate

_SETTINGS = ("rotation", "marginal", "bins", "alpha", "tail", "max_layers", "patience", "min_gain", "validation", "memory", "scratch")
_FEWEST = 20  # rows that a fit trains on
_CHUNK = 2**16  # rows scored at once
_SAFE = 0.003  # share of the first layer in a density; measured: as large as costs nothing, and small enough to leave good fits alone


@dataclass(frozen=True)
class Information(Estimate):
    """A figure in nats from held-out log-densities: its statistical error, and apart from it the size of its bias.

    ``standard_error`` is how much other samples of this size would change the figure. Misfit of the densities has a direction instead, which
    ``note`` names. ``bias`` says about how large it is: ``value`` minus the same figure at the rows that the fits were trained on. These
    flatter a fit about as much as held-out rows fault it, so that the truth mostly lies between ``value`` and ``value − bias``. The bias is not
    subtracted: that would have no direction any more, and structure that no layer has found is missing at both kinds of rows.

    Args:
        bias: About E[value] − truth, in nats.
        layers: Of the fit for every fold; of the joint one, where a fold needs several.
    """

    bias: float = math.nan
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class HeldOutFits:
    """The fits that one figure needs, each to the rows outside of one fold.

    Args:
        where: Name of the figure, for messages.
        folds: Number of folds.
        seed: Of folds and fits.
        threads: How many work on a fit.
        progress: Show the fits.
        settings: Further ones, of `fit`.

    Raises:
        ValueError: If there are fewer than two folds, or tails end at the outermost training rows.
        TypeError: If a setting is unknown.
    """

    where: str
    folds: int
    seed: int
    threads: int | None
    progress: bool
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.settings) - set(_SETTINGS))
        if unknown:
            raise TypeError(f"{self.where}: settings of the fits are {', '.join(_SETTINGS)}; got {', '.join(unknown)}")
        if not isinstance(self.folds, int) or self.folds < 2:
            raise ValueError(f"{self.where}: folds must be a whole number from 2 on, as rows are scored by fits to the others; got {self.folds!r}")
        share = self.settings.get("validation", 0.1)
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"{self.where}: validation must be a share of the rows within 0 and 1, got {share!r}")
        if self.settings.get("tail") == "bounded":
            raise ValueError(f"{self.where}: with tail='bounded' a held-out row beyond the others has no density; tail is 'pareto' or 'gaussian'")

    def check(self, sample: Sample) -> None:
        """Refuse samples that leave too few rows to fit to.

        Raises:
            ValueError: If there are too few.
        """
        share = (1 - 1 / self.folds) * (1 - self.settings.get("validation", 0.1))
        needed = math.ceil(_FEWEST / share)
        if len(sample.x) < needed:
            raise ValueError(f"{sample.where}: {len(sample.x)} rows are too few for {self.folds} folds; at least {needed} are needed")

    def fit(self, x: np.ndarray, weight: np.ndarray | None, **defaults: Any) -> Flow:
        """A flow fitted to all of these rows; defaults are those of this fit."""
        rows = torch.from_numpy(x.astype(np.float32))
        settings = {**defaults, **self.settings, "seed": self.seed, "threads": self.threads, "progress": self.progress}
        # Ties are none of the fit's business here: they are refused, or ranked at random.
        return fit(rows if weight is None else (rows, None, weight), dither=None, **settings)

    def deal(self, rows: int, purpose: str = "fold") -> list[np.ndarray]:
        """The row numbers of every fold, increasing."""
        order = np.argsort(keyed.uniform(self.seed, np.arange(rows), 0, purpose), kind="stable")
        return [np.sort(part) for part in np.array_split(order, self.folds)]

    def mean(self, sample: Sample, score: Callable[[np.ndarray], tuple[np.ndarray, int]], *, note: str) -> Information:
        """The mean score of all rows, each scored by the fit that has not seen it.

        Args:
            sample: The rows.
            score: Fits to the rows of these numbers, and gives the score of every row and how many layers the fit has.
            note: What to say of the figure.
        """
        held_out, seen, layers = np.empty(len(sample.x)), [], []
        for fold in self.deal(len(sample.x)):
            others = np.setdiff1d(np.arange(len(sample.x)), fold)
            scores, depth = score(others)
            held_out[fold] = scores[fold]
            share = sample.share[others]
            seen.append(float(share @ scores[others] / share.sum()))
            layers.append(depth)
        found = mean_estimate(torch.from_numpy(held_out), None if sample.weight is None else torch.from_numpy(sample.weight))
        note = f"{found.note}; {note}" if found.note else note
        return Information(
            found.value, found.standard_error, found.n, found.bad_rows, note, bias=found.value - float(np.mean(seen)), layers=tuple(layers)
        )


def log_prob(flow: Flow, z: np.ndarray) -> np.ndarray:
    """Log-density of rows (n, D), shape (n,), float64."""
    with torch.no_grad():
        parts = [flow.log_prob(torch.from_numpy(z[start : start + _CHUNK].astype(np.float32))) for start in range(0, len(z), _CHUNK)]
    return torch.cat(parts).double().numpy()


def safe_log_prob(flow: Flow, z: np.ndarray) -> np.ndarray:
    r"""Log-density of a fit with a floor under it.

    .. math:: (1 - \varepsilon)\,q(z) + \varepsilon\,q_1(z), \qquad \varepsilon = 0.003

    with q₁ the first layer alone, which takes the columns for independent and has tails as heavy as theirs. A row where the fit has seen none
    may be thrown far out by a hundred layers, each of which stretches its tails a little, and a single one of them would decide a mean.

    Args:
        flow: A layerwise fit.
        z: Rows (n, D).

    Returns:
        Shape (n,), float64.

    References:
        Hesterberg (1995), "Weighted average importance sampling and defensive mixture distributions".
    """
    return mixed(log_prob(flow, z), log_prob(first_layer(flow), z))


def mixed(log_p: np.ndarray, log_safe: np.ndarray) -> np.ndarray:
    """Logarithm of the mixture in which the safe density has a share of ε."""
    # What was thrown to infinity has no density left.
    return np.logaddexp(math.log1p(-_SAFE) + np.where(np.isnan(log_p), -np.inf, log_p), math.log(_SAFE) + log_safe)


def first_layer(flow: Flow) -> Flow:
    """The flow of the first layer of a fit and the maps before it."""
    parts = list(flow.codec.parts) if isinstance(flow.codec, Chain) else [flow.codec]
    ends = [k for k, part in enumerate(parts) if isinstance(part, MarginalSpline)]
    return Flow(Chain(parts[: ends[0] + 1]), flow.base).eval() if ends else flow


def encode(flow: Flow, z: np.ndarray) -> np.ndarray:
    """What the flow makes of rows (n, D), shape (n, D), float64."""
    with torch.no_grad():
        parts = [flow.encode(torch.from_numpy(z[start : start + _CHUNK].astype(np.float32))) for start in range(0, len(z), _CHUNK)]
    return torch.cat(parts).double().numpy()


def log_normal(z: np.ndarray) -> np.ndarray:
    """Log-density of the standard normal distribution at rows (n, D), shape (n,)."""
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)


def layers_of(flow: Flow) -> int:
    """How many layers a fit has kept."""
    return sum(isinstance(part, MarginalSpline) for part in flow.codec.parts) if isinstance(flow.codec, Chain) else 0
