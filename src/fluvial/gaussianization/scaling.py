"""Layers against dimension for Gaussians: the experiment, its lines, and the theory line."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fluvial.gaussianization.theory import asymptotic_layers, checked_count, checked_factor, gaussian_loss, simulate_losses, with_spectrum
from fluvial.metrics.estimate import finite_or_none

Family = Callable[[int, int], Tensor]


def logarithmic_spectrum(features: int, condition: float, *, seed: int = 0) -> Tensor:
    """A covariance (D, D) about random axes, with eigenvalues in geometric progression, of mean 1 and the given largest ratio."""
    spectrum = torch.logspace(0, math.log10(condition), features, dtype=torch.float64)
    return with_spectrum(spectrum / spectrum.mean(), seed=seed)


def wishart(features: int, *, seed: int = 0) -> Tensor:
    """The covariance (D, D) of 2D + 2 standard normal vectors, scaled to mean eigenvalue 1."""
    rows = torch.randn(2 * features + 2, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    covariance = rows.T @ rows
    return covariance / covariance.diagonal().mean()


def autoregressive(features: int, correlation: float) -> Tensor:
    """The covariance ρ^|i − j| (D, D) of a stationary series whose neighbours have correlation ρ."""
    index = torch.arange(features, dtype=torch.float64)
    return correlation ** (index - index.unsqueeze(1)).abs()


def spike(features: int, floor: float, *, seed: int = 0) -> Tensor:
    """A covariance (D, D) of mean eigenvalue 1 about random axes, of which all eigenvalues but one are ε: nearly all of the variance on a line."""
    spectrum = torch.full((features,), floor, dtype=torch.float64)
    spectrum[-1] = features - (features - 1) * floor
    return with_spectrum(spectrum, seed=seed)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "condition 2": lambda features, seed: logarithmic_spectrum(features, 2.0, seed=seed),
        "condition 100": lambda features, seed: logarithmic_spectrum(features, 100.0, seed=seed),
        "Wishart, 2D + 2 samples": lambda features, seed: wishart(features, seed=seed),
        "AR(1), ρ = 0.9": lambda features, seed: autoregressive(features, 0.9),
        "one spike, ε = 0.3": lambda features, seed: spike(features, 0.3, seed=seed),
    }
)
"""Covariances by name: functions of the number of features and a seed."""


@dataclass(frozen=True)
class ScalingCurve:
    r"""Layers needed against dimension, with what is fitted to them.

    Args:
        name: Of the family of distributions.
        factor: f, by which the loss is divided.
        features: Dimensions D.
        layers: Layers needed at each D, the mean over repetitions.
        spread: Their standard deviations over repetitions; NaN for one.
        theory: The line (D + 2)/2 · ln f at each D.
        slope: Least-squares slope of the layers against D where D ≥ fitted_from; the theory line has ½ ln f. NaN for fewer than two such D.
        exponent: Least-squares slope of log layers against log D, for the same D.
        fitted_from: The smallest D that counts for slope and exponent.
    """

    name: str
    factor: float
    features: list[int]
    layers: list[float]
    spread: list[float]
    theory: list[float]
    slope: float
    exponent: float
    fitted_from: int

    @classmethod
    def of(cls, name: str, factor: float, counts: Mapping[int, Sequence[float]], *, fitted_from: int = 16) -> "ScalingCurve":
        """The curve of layers counted in repeated experiments.

        Args:
            name: Of the family.
            factor: f ≥ 1.
            counts: For each D the layers needed in each repetition.
            fitted_from: Smallest D for slope and exponent.

        Raises:
            ValueError: If there are no counts, or the factor is below 1.

        Example:
            >>> curve = ScalingCurve.of("a line", 10.0, {16: [20, 22], 32: [41], 64: [81]})
            >>> round(curve.slope, 3), round(curve.exponent, 2)
            (1.25, 0.97)
        """
        checked_factor(factor)
        if not counts or not all(len(repeats) for repeats in counts.values()):
            raise ValueError(f"counts of {name!r}: expected at least one dimension, and one count or more for each")
        features = sorted(counts)
        layers, spread = [], []
        for dimension in features:
            values = torch.tensor(counts[dimension], dtype=torch.float64)
            layers.append(float(values.mean()))
            spread.append(float(values.std()) if len(values) > 1 else math.nan)
        fitted = [(dimension, count) for dimension, count in zip(features, layers) if dimension >= fitted_from]
        slope = _slope(fitted)
        exponent = _slope([(math.log(dimension), math.log(count) if count > 0 else math.nan) for dimension, count in fitted])
        theory = [asymptotic_layers(dimension, factor) for dimension in features]
        return cls(name, float(factor), features, layers, spread, theory, slope, exponent, fitted_from)

    def to_dict(self) -> dict[str, Any]:
        """Plain entries for JSON; what is not finite becomes None."""

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(entry) for entry in value]
            return finite_or_none(value) if isinstance(value, float) else value

        return {key: plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Scaling:
    """The curves of an experiment, one for each family and factor.

    Args:
        curves: The curves.
        rotation: Kind of the random rotations.
        seed: Of the experiment.
    """

    curves: list[ScalingCurve]
    rotation: str
    seed: int

    def curve(self, name: str, factor: float) -> ScalingCurve:
        """The curve of one family and factor.

        Raises:
            KeyError: If there is none.
        """
        for curve in self.curves:
            if (curve.name, curve.factor) == (name, factor):
                return curve
        raise KeyError(f"no curve of {name!r} for factor {factor:g}; there are {[(curve.name, curve.factor) for curve in self.curves]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain entries for JSON."""
        return {"rotation": self.rotation, "seed": self.seed, "curves": [curve.to_dict() for curve in self.curves]}

    def __str__(self) -> str:
        lines = [f"{'family':<26}{'factor':>7}{'slope':>8}{'theory':>8}{'exponent':>10}   layers (at D)"]
        for curve in self.curves:
            last = f"{curve.layers[-1]:.0f} ({curve.features[-1]})"
            lines.append(f"{curve.name:<26}{curve.factor:>7g}{curve.slope:>8.3f}{math.log(curve.factor) / 2:>8.3f}{curve.exponent:>10.2f}   {last}")
        return "\n".join(lines)


def gaussian_scaling(
    features: Sequence[int] = (2, 4, 8, 16, 32, 64, 128, 256),
    *,
    families: Mapping[str, Family] = FAMILIES,
    factors: Sequence[float] = (2.0, 10.0),
    repeats: int | None = None,
    rotation: str = "haar",
    seed: int = 0,
) -> Scaling:
    r"""Count the layers with random rotations that divide the loss of Gaussians by given factors, against their dimension.

    Covariances are followed, without samples (`simulate_losses`), so that nothing is due to fitting. The count n is the first layer after which the
    loss is not above L₀/f. For small losses :math:`n \approx \tfrac{D + 2}{2}\ln f`, see `asymptotic_layers`.

    Args:
        features: Dimensions D.
        families: Covariances: functions of D and a seed, by name.
        factors: Factors f > 1, all read off the same simulation.
        repeats: Repetitions with other rotations (and covariances, where these are random); by default 8 up to D = 32, 3 up to 128, 1 above.
        rotation: "haar" or "hadamard".
        seed: Of everything.

    Returns:
        The curves, in the order of the families.

    Raises:
        ValueError: If there is nothing to do, a dimension is below 2, a factor not above 1, or repeats below 1.

    Example:
        >>> result = gaussian_scaling([16, 32], families={"AR(1)": FAMILIES["AR(1), ρ = 0.9"]}, factors=[10.0], repeats=1)
        >>> 1.0 < result.curve("AR(1)", 10.0).slope < 1.6
        True
    """
    dimensions = sorted(set(features))
    if not (dimensions and families and factors):
        raise ValueError("gaussian_scaling: expected at least one dimension, family and factor")
    if dimensions[0] < 2:
        raise ValueError(f"features: expected dimensions of at least 2, where there is something to rotate, got {dimensions[0]}")
    if not min(map(checked_factor, factors)) > 1:
        raise ValueError(f"factors: expected numbers above 1, got {min(factors)}")
    if repeats is not None:
        checked_count("repeats", repeats)
    curves = []
    for name, family in families.items():
        counts = {factor: {dimension: [] for dimension in dimensions} for factor in factors}
        for dimension in dimensions:
            for repeat in range(repeats or (8 if dimension <= 32 else 3 if dimension <= 128 else 1)):
                # Far apart, so that no two experiments share a rotation or a covariance.
                key = seed * 1_000_003 + dimension * 1009 + repeat
                needed = layers_needed(family(dimension, key), factors, seed=key, rotation=rotation)
                for factor, count in needed.items():
                    counts[factor][dimension].append(count)
        curves += [ScalingCurve.of(name, factor, counts[factor]) for factor in factors]
    return Scaling(curves, rotation, seed)


def layers_needed(covariance: Tensor, factors: Sequence[float], *, seed: int, rotation: str) -> dict[float, float]:
    """The number of the first layer whose loss is not above 1/f of the first, for each f."""
    start = gaussian_loss(covariance)
    largest = max(factors)
    # Twenty times the asymptotic number: what is not there by then (a single tiny eigenvalue) counts as infinite.
    limit = math.ceil(20 * asymptotic_layers(len(covariance), largest)) + 20
    losses = simulate_losses(covariance, limit, seed=seed, rotation=rotation, until=start / largest)
    return {factor: next((layer for layer, loss in enumerate(losses) if loss <= start / factor), math.inf) for factor in factors}


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope through points, NaN for fewer than two."""
    if len(points) < 2:
        return math.nan
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
