"""How many layers a data set will need, before anything is fitted."""

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fluvial.codecs.moments import checked_rows, mean_and_covariance
from fluvial.data import as_dataset
from fluvial.gaussianization.theory import (
    asymptotic_layers,
    checked_count,
    checked_factor,
    checked_spectrum,
    expected_reduction,
    gaussian_loss,
    is_singular,
    simulate_losses,
    with_spectrum,
)
from fluvial.metrics.estimate import finite_or_none

_WORK = 6e9  # what all simulated layers of one seed may cost, in units of D³: a few seconds
_HAAR = 256  # above so many features rotations are simulated as Hadamard's, which need as many layers and O(D² log D) operations


@dataclass(frozen=True)
class LayerPrediction:
    """What `predict_layers` says.

    Args:
        features: D, constant columns left out.
        factor: f, by which the loss is to be divided.
        loss: Gaussian loss in nats that the first layer leaves: the total correlation of a Gaussian with the data's correlations. It may be infinite.
        layers: Layers with random rotations, after the first, that divide it by f: the mean over seeds.
        spread: Standard deviation of that over seeds; NaN for one seed.
        theory: The line (D + 2)/2 · ln f, see `asymptotic_layers`.
        first_reduction: Expected reduction of the loss by the first of these layers, in nats.
        extrapolated: Whether the layers were simulated in part only, and the rest continued at the asymptotic rate. Then they are rather too few.
        hopeless: Whether more layers are needed than will be fitted.
        advice: One sentence.
    """

    features: int
    factor: float
    loss: float
    layers: float
    spread: float
    theory: float
    first_reduction: float
    extrapolated: bool
    hopeless: bool
    advice: str

    def __str__(self) -> str:
        return self.advice

    def to_dict(self) -> dict[str, Any]:
        """Plain entries for JSON; what is not finite becomes None."""
        return {key: finite_or_none(value) if isinstance(value, float) else value for key, value in asdict(self).items()}


def predict_layers(
    data: Any, *, factor: float = 10.0, max_layers: int = 200, repeats: int = 3, rotation: str = "auto", seed: int = 0
) -> LayerPrediction:
    r"""Predict how many random-rotation layers divide the loss by a factor, from the covariance of the data alone.

    The first layer standardises every column, and what it leaves is the correlation matrix. Its loss under further layers is simulated without
    samples (`simulate_losses`). **This is the linear part only**: the count holds for a Gaussian with these correlations. Data that are not
    Gaussian have more to lose, which may take more layers or fewer, and correlations other than linear are not seen at all.

    A warning is given where the layers exceed ``max_layers``. Correlations that independent columns of so many rows would show by chance are not
    counted as a reason for one.

    Args:
        data: Rows of shape (n, \*event) in whatever form `fluvial.data.as_dataset` takes, with weights or without; or a vector of D eigenvalues of a
            correlation matrix (scaled to mean 1 here), whose axes are then taken to be arbitrary.
        factor: f ≥ 1, by which the loss is to be divided.
        max_layers: The most layers that will be fitted.
        repeats: Number of seeds.
        rotation: "haar", "hadamard", or "auto": the first up to 256 features, the second above.
        seed: Of the rotations.

    Returns:
        The prediction; ``str`` of it is the advice.

    Raises:
        ValueError: If the rows are fewer than two or not finite, if no column varies, the eigenvalues are not positive, or a number is out of range.

    Example:
        >>> prediction = predict_layers(torch.logspace(0, 1, 16))
        >>> round(prediction.layers), round(prediction.theory), prediction.hopeless
        (23, 21, False)
    """
    checked_factor(factor)
    checked_count("max_layers", max_layers)
    checked_count("repeats", repeats)
    covariance, noise = _correlations(data, seed=seed)
    features = len(covariance)
    spectrum = torch.linalg.eigvalsh(covariance)
    theory = asymptotic_layers(features, factor)
    if is_singular(spectrum):
        rank = int((spectrum > features * torch.finfo(torch.float64).eps * spectrum[-1]).sum())
        advice = (
            f"the {features} columns depend linearly on each other (rank {rank}), so that no number of random rotations fits them: "
            "leave columns out, add noise, or reduce the dimension first"
        )
        warnings.warn(advice, stacklevel=2)
        return LayerPrediction(
            features=features,
            factor=factor,
            loss=math.inf,
            layers=math.inf,
            spread=math.nan,
            theory=theory,
            first_reduction=math.nan,
            extrapolated=False,
            hopeless=True,
            advice=advice,
        )
    loss = gaussian_loss(covariance)
    if rotation == "auto":
        rotation = "haar" if features <= _HAAR else "hadamard"
    counts, extrapolated = [], False
    for repeat in range(repeats):
        layers, exact = _count(covariance, factor, max_layers, rotation=rotation, seed=seed + repeat)
        counts.append(layers)
        extrapolated |= not exact
    mean, spread = sum(counts) / repeats, math.nan
    if repeats > 1:
        spread = math.sqrt(sum((count - mean) ** 2 for count in counts) / (repeats - 1))
    need = f"about {mean:.0f} layers with random rotations divide the linear part of the loss, {loss:.3g} nats, by {factor:g}"
    by_chance = loss <= noise
    hopeless = mean > max_layers and not by_chance
    if by_chance:
        advice = f"the columns are uncorrelated within sampling error ({loss:.3g} nats): there is no linear part to fit after the first layer"
    elif hopeless:
        advice = f'{need}, more than max_layers = {max_layers}: use rotation="pca", or fit fewer layers and fine-tune them together'
    else:
        advice = need
    if hopeless:
        warnings.warn(f"{features} features: {advice}", stacklevel=2)
    return LayerPrediction(features, factor, loss, mean, spread, theory, expected_reduction(spectrum), extrapolated, hopeless, advice)


def _count(covariance: Tensor, factor: float, max_layers: int, *, rotation: str, seed: int) -> tuple[float, bool]:
    """The layers needed, and whether all of them were simulated."""
    features = len(covariance)
    losses = [gaussian_loss(covariance)]
    target = losses[0] / factor
    if losses[0] <= target or losses[0] == 0:
        return 0.0, True
    affordable = min(4 * max_layers, int(_WORK / features**3))
    if affordable:
        losses = simulate_losses(covariance, affordable, seed=seed, rotation=rotation, until=target)
    if losses[-1] <= target:
        return float(len(losses) - 1), True
    return len(losses) - 1 + asymptotic_layers(features, losses[-1] / target), False


def _correlations(data: Any, *, seed: int) -> tuple[Tensor, float]:
    """The correlation matrix, and the loss up to which it may be due to chance."""
    # A list of numbers is a vector, too; a tuple is (x, c) and a path is a file.
    vector = torch.as_tensor(data, dtype=torch.float64) if isinstance(data, list) else data
    if getattr(vector, "ndim", None) == 1:
        try:
            values = checked_spectrum(vector)
        except ValueError as error:
            raise ValueError(f"{error} (an array of one axis is taken for the eigenvalues of a covariance; rows have the shape (n, D))") from None
        return with_spectrum(values / values.mean(), seed=seed), 0.0
    dataset = as_dataset(vector)
    if len(dataset) < 2:
        raise ValueError(f"data: expected at least 2 rows, got {len(dataset)}")
    rows, share = checked_rows("data", dataset.x, tuple(dataset.x.shape[1:]), dataset.weight)
    _, covariance = mean_and_covariance(rows, share)
    variances = covariance.diagonal()
    kept = variances > 0
    if not bool(kept.any()):
        raise ValueError(f"data: none of the {len(variances)} columns varies; there is nothing to fit")
    covariance, variances = covariance[kept][:, kept], variances[kept]
    correlation = covariance * variances.rsqrt() * variances.rsqrt().unsqueeze(1)
    return correlation.fill_diagonal_(1.0), _noise(len(variances), 1 / float(share.square().sum()))


def _noise(features: int, rows: float) -> float:
    r"""The largest loss −½ log det R to be expected of independent Gaussian columns: mean and four standard deviations.

    det R is a product of independent variables, distributed as Beta((n − i)/2, (i − 1)/2) for i = 2 … D.
    """
    if rows <= features + 1:
        return 0.0
    index = torch.arange(2, features + 1, dtype=torch.float64)
    top = torch.tensor((rows - 1) / 2, dtype=torch.float64)
    mean = (torch.digamma(top) - torch.digamma((rows - index) / 2)).sum() / 2
    variance = (torch.polygamma(1, (rows - index) / 2) - torch.polygamma(1, top)).sum() / 4
    return float(mean + 4 * variance.sqrt())
