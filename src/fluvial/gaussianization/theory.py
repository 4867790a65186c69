r"""How fast Gaussianization of a Gaussian converges: losses, exact expectations, layer counts.

A layer rotates and then makes every coordinate a standard normal. For Gaussian input the second step only rescales, so that covariances are all
there is to follow. With the loss :math:`L = \mathrm{KL}(p\,\|\,N(0, 1))` a layer takes away the marginal part of

.. math:: L = \mathrm{KL}\bigl(p\,\|\,\textstyle\prod_i p_i\bigr) + \sum_i \mathrm{KL}\bigl(p_i\,\|\,N(0, 1)\bigr)

and leaves the first part, the dependence of the coordinates, to the layers that follow.

References:
    Draxler, Kühmichel, Rousselot, Müller, Schnörr, Köthe (2023), "On the convergence rate of Gaussianization with random rotations",
    arXiv:2306.13520 (the method; the formulas here are derived and tested on their own).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.codecs.hadamard import Hadamard
from fluvial.codecs.matrices import random_rotation

# Nodes and step of the trapezium rule in `expected_reduction`, in the logarithm u of the Laplace variable. The integrand is analytic and bounded
# for |Im u| < π/2, so that the error is about exp(−π²/step) < 1e-17; it falls off as exp(2u) to the left, and at least as exp(−u/2) to the right.
_STEP = 0.25
_NODES = torch.arange(-40.0, 90.0, _STEP, dtype=torch.float64)


def gaussian_loss(covariance: Any, mean: Any = None) -> float:
    r"""How far a Gaussian is from the standard normal.

    .. math:: L = \mathrm{KL}\bigl(N(\mu, C)\,\|\,N(0, 1)\bigr) = \tfrac12\bigl(|\mu|^2 + \mathrm{tr}\,C - D - \log\det C\bigr)

    Args:
        covariance: C, shape (D, D), symmetric and positive definite.
        mean: μ, shape (D,), default 0.

    Returns:
        The loss in nats, accurate relative to itself also close to C = 1.

    Raises:
        ValueError: If C is not square, not finite, not symmetric or not positive definite, or the mean does not fit.

    Example:
        >>> round(gaussian_loss([[1.0, 0.8], [0.8, 1.0]]), 4)
        0.5108
    """
    _, spectrum = checked_covariance(covariance)
    loss = _excess(spectrum - 1)
    if mean is not None:
        mu = torch.as_tensor(mean, dtype=torch.float64)
        if mu.shape != spectrum.shape or not bool(torch.isfinite(mu).all()):
            raise ValueError(f"mean: expected {len(spectrum)} finite numbers, as many as the covariance has rows, got shape {tuple(mu.shape)}")
        loss += float(mu.square().sum()) / 2
    return loss


def layer_covariance(covariance: Any, rotation: Any) -> Tensor:
    r"""The covariance after one ideal layer: rotate, then rescale every coordinate to variance 1.

    .. math:: C \mapsto S^{-1/2}\, Q C Q^\top S^{-1/2}, \qquad S = \mathrm{diag}(Q C Q^\top)

    Args:
        covariance: C, shape (D, D).
        rotation: Q, shape (D, D), orthogonal; a layer maps x to Q x.

    Returns:
        The covariance (a correlation matrix), shape (D, D), float64.

    Raises:
        ValueError: As for `gaussian_loss`, and if Q is not an orthogonal matrix of that size.

    Example:
        >>> layer_covariance([[4.0, 1.0], [1.0, 1.0]], torch.eye(2)).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    c, _ = checked_covariance(covariance)
    q = _checked_rotation(rotation, len(c))
    return _rescaled(q @ c @ q.T)[0]


def layer_reduction(covariance: Any, rotation: Any) -> float:
    r"""By how much one ideal layer reduces the loss, exactly.

    .. math:: \Delta L = \tfrac12 \sum_i \bigl(s_i - 1 - \log s_i\bigr) \ge 0, \qquad s_i = q_i^\top C\, q_i

    This is the sum of the marginal divergences KL(N(0, sᵢ) ‖ N(0, 1)), and :math:`-\tfrac12\sum_i\log s_i` where tr C = D, as after any layer.

    Args:
        covariance: C, shape (D, D).
        rotation: Q with rows qᵢ, shape (D, D), orthogonal.

    Returns:
        The reduction in nats.

    Raises:
        ValueError: As for `layer_covariance`.

    Example:
        >>> round(layer_reduction([[4.0, 0.0], [0.0, 1.0]], torch.eye(2)), 4)  # axes that are principal axes: all of the loss
        0.8069
    """
    c, _ = checked_covariance(covariance)
    q = _checked_rotation(rotation, len(c))
    return _excess(((q @ c) * q).sum(1) - 1)


def expected_reduction(spectrum: Any) -> float:
    r"""The expectation of `layer_reduction` over uniform (Haar) rotations, exactly.

    With eigenvalues λ of mean 1, and :math:`w = 2e^u/(1 + 2e^u)`, the expected logarithm of :math:`q^\top C q` is a one-dimensional integral:

    .. math:: \mathrm{E}\,\Delta L = \frac D2 \int_{-\infty}^{\infty} (1 + 2 e^u)^{-D/2}
              \Bigl[\prod_j \bigl(1 + w(\lambda_j - 1)\bigr)^{-1/2} - 1\Bigr]\, du

    For eigenvalues of any other mean m the scale adds :math:`\tfrac D2 (m - 1 - \log m)` to the result for λ/m.

    Args:
        spectrum: Eigenvalues λ of the covariance, shape (D,), positive.

    Returns:
        The expected reduction in nats, to about 1e-12.

    Raises:
        ValueError: If the eigenvalues are not finite and positive numbers in a vector.

    Example:
        >>> rho = 0.8  # for D = 2 and correlation ρ it is −log((1 + √(1 − ρ²))/2)
        >>> round(expected_reduction([1 + rho, 1 - rho]), 10) == round(-math.log((1 + math.sqrt(1 - rho**2)) / 2), 10)
        True
    """
    values = checked_spectrum(spectrum)
    features, scale = len(values), float(values.mean())
    values = values / scale
    # Both products by logarithms, the first being the larger: no overflow for any condition number.
    product = -0.5 * sum(torch.log1p(2 * _NODES.exp() * value) for value in values.tolist())
    weight = torch.sigmoid(_NODES + math.log(2))
    # ln of the quotient of both, by the differences λ − 1: nothing cancels close to the identity.
    quotient = 0.5 * sum(torch.log1p(weight * (value - 1)) for value in values.tolist())
    integral = -float((product.exp() * torch.expm1(quotient)).sum()) * _STEP
    return features / 2 * integral + features * _excess(torch.tensor([scale - 1.0], dtype=torch.float64))


def reduction_series(spectrum: Any) -> float:
    r"""The first two terms of `expected_reduction` close to the identity, C = 1 + E.

    .. math:: \mathrm{E}\,\Delta L \approx \frac{\mathrm{tr}E^2}{2(D+2)} - \frac{4\,\mathrm{tr}E^3}{3(D+2)(D+4)} \qquad (\mathrm{tr}E = 0)

    As :math:`L \approx \tfrac14 \mathrm{tr}E^2`, a layer takes away the share 2/(D + 2) of a small loss. This is no bound for a large one: a single
    small eigenvalue gives far less, a single large one more.

    Args:
        spectrum: Eigenvalues of C, shape (D,), positive. Where their mean is not 1, the terms in tr E are part of the result.

    Returns:
        The two terms in nats, with an error of the order of tr E⁴.

    Raises:
        ValueError: As for `expected_reduction`.

    Example:
        >>> spectrum = [1.1, 1.0, 0.9]
        >>> round(reduction_series(spectrum), 5), round(expected_reduction(spectrum), 5)
        (0.002, 0.00201)
    """
    e = checked_spectrum(spectrum) - 1
    features = len(e)
    first, second, third = (float(e.pow(power).sum()) for power in (1, 2, 3))
    quadratic = (first**2 + 2 * second) / (4 * (features + 2))
    cubic = (first**3 + 6 * first * second + 8 * third) / (6 * (features + 2) * (features + 4))
    return quadratic - cubic


def asymptotic_layers(features: int, factor: float) -> float:
    r"""The layers that divide a small loss by a factor: (D + 2)/2 · ln f, for uniform random rotations.

    Close to the end a layer leaves the share D/(D + 2) of the loss, in expectation; the logarithm of that share is −2/(D + 2) up to terms of second
    order in 1/D. Large losses of generic covariances follow the line within some 30 %, in proportion to D.

    Args:
        features: D.
        factor: f ≥ 1, by which the loss is to be divided.

    Returns:
        The number of layers, not rounded.

    Raises:
        ValueError: If D < 1 or f < 1.

    Example:
        >>> round(asymptotic_layers(256, 10.0))
        297
    """
    checked_count("features", features)
    return (features + 2) / 2 * math.log(checked_factor(factor))


def minimum_layers(features: int) -> int:
    r"""The fewest layers with given rotations whose scales, all chosen together, can make a generic Gaussian standard normal: ⌈D/2⌉ + 1.

    n layers have nD scales. Of these n − 1 are idle, because a common factor may move from one layer to another, and a covariance has D(D + 1)/2
    entries: :math:`nD - (n - 1) \ge D(D + 1)/2`, that is :math:`n \ge D/2 + 1` for D > 1. For even D this is the ⌈(D + 1)/2⌉ of counting without
    the idle ones, for odd D one more. It is a necessary number. For odd D, where scales are left over, it was sufficient in all numerical
    experiments; for even D there are exactly as many equations as scales, and one draw of the rotations in ten, or in four, has no real solution
    (`tune_jointly` then tries others); one layer more was always sufficient. Layers fitted one after the other never finish: their loss decays.

    Args:
        features: D.

    Returns:
        The number of layers.

    Raises:
        ValueError: If D < 1.

    Example:
        >>> [minimum_layers(features) for features in (1, 2, 3, 4, 8)]
        [1, 2, 3, 3, 5]
    """
    checked_count("features", features)
    return 1 if features == 1 else (features + 1) // 2 + 1


def simulate_losses(covariance: Any, layers: int, *, seed: int = 0, rotation: str = "haar", until: float = 0.0) -> list[float]:
    """The losses of a Gaussian under layers fitted one after the other with random rotations; no samples are drawn.

    Args:
        covariance: C, shape (D, D).
        layers: Number n of layers.
        seed: Of the rotations.
        rotation: "haar" (uniform) or "hadamard" (see `fluvial.codecs.Hadamard`). Hadamard's equal weights see nothing in a diagonal
            covariance of D = 2ᵏ: there the first layer only evens out the scale.
        until: Stop after the first layer whose loss is not above this; the list is then shorter.

    Returns:
        L₀, …, Lₙ in nats, accurate relative to themselves down to about 1e-30.

    Raises:
        ValueError: As for `gaussian_loss`, and if layers < 1 or the rotation is unknown.

    Example:
        >>> [round(loss, 3) for loss in simulate_losses([[1.0, 0.8], [0.8, 1.0]], 4)]
        [0.511, 0.47, 0.002, 0.0, 0.0]
    """
    c, spectrum = checked_covariance(covariance)
    checked_count("layers", layers)
    turn = _turning(rotation, len(c))
    generator = torch.Generator().manual_seed(seed)
    start = left = _excess(spectrum - 1)
    reductions: list[float] = []
    while len(reductions) < layers and (left > until or not reductions):
        c, variances = _rescaled(turn(c, int(torch.randint(2**31 - 1, (), generator=generator))))
        reductions.append(_excess(variances - 1))
        left -= reductions[-1]
    # Summed from the end, where they are small: every loss has its own digits, and not those that the first leaves over.
    losses = [_excess(torch.linalg.eigvalsh(c) - 1)]
    for reduction in reversed(reductions[1:]):
        losses.append(losses[-1] + reduction)
    return [start, *reversed(losses)]


def with_spectrum(spectrum: Any, *, seed: int = 0) -> Tensor:
    """A covariance (D, D) with given eigenvalues (D,), about axes drawn uniformly.

    Example:
        >>> torch.linalg.eigvalsh(with_spectrum([0.5, 1.5])).round(decimals=12).tolist()
        [0.5, 1.5]
    """
    values = checked_spectrum(spectrum)
    axes = random_rotation(len(values), seed=seed)
    return (axes * values) @ axes.T


def checked_covariance(covariance: Any) -> tuple[Tensor, Tensor]:
    """The covariance in float64 and its eigenvalues, or an error that says why it is none."""
    c = torch.as_tensor(covariance, dtype=torch.float64).detach().cpu()
    if c.ndim != 2 or c.shape[0] != c.shape[1] or len(c) == 0:
        raise ValueError(f"covariance: expected a square matrix, got shape {tuple(c.shape)}")
    bad = (~torch.isfinite(c)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"covariance: entry ({row}, {column}) is {c[row, column].item()}; leave out rows that are not finite before taking covariances"
        )
    off = float((c - c.T).abs().max())
    if off > 1e-6 * float(c.abs().max()):
        raise ValueError(f"covariance: expected a symmetric matrix, but C − Cᵀ has entries up to {off:.3g}; use (C + Cᵀ)/2 if that is rounding")
    c = (c + c.T) / 2
    spectrum = torch.linalg.eigvalsh(c)
    if is_singular(spectrum):
        raise ValueError(
            f"covariance: expected a positive definite matrix, got eigenvalues from {float(spectrum[0]):.3g} to {float(spectrum[-1]):.3g}; "
            "leave out columns that depend linearly on others, or add a little noise"
        )
    return c, spectrum


def is_singular(spectrum: Tensor) -> bool:
    """Whether the smallest of the sorted eigenvalues cannot be told from 0 in float64."""
    return not float(spectrum[0]) > len(spectrum) * torch.finfo(torch.float64).eps * float(spectrum[-1])


def checked_spectrum(spectrum: Any) -> Tensor:
    """Eigenvalues in float64, or an error that says why they are none."""
    values = torch.as_tensor(spectrum, dtype=torch.float64).detach().cpu()
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"spectrum: expected a vector of eigenvalues, got shape {tuple(values.shape)}; take torch.linalg.eigvalsh of a covariance")
    bad = (~(torch.isfinite(values) & (values > 0))).nonzero()
    if len(bad):
        raise ValueError(f"spectrum: expected finite positive eigenvalues, but number {int(bad[0])} is {values[bad[0]].item():g}")
    return values


def checked_count(name: str, count: int) -> None:
    """Raise an error for a number below 1."""
    if count < 1:
        raise ValueError(f"{name}: expected at least 1, got {count}")


def checked_factor(factor: float) -> float:
    """A factor by which a loss can be divided, or an error."""
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"factor: expected the number ≥ 1 by which the loss is to be divided, got {factor}")
    return factor


def _checked_rotation(rotation: Any, features: int) -> Tensor:
    q = torch.as_tensor(rotation, dtype=torch.float64).detach().cpu()
    if q.shape != (features, features):
        raise ValueError(f"rotation: expected shape ({features}, {features}) as the covariance has, got {tuple(q.shape)}")
    off = float((q @ q.T - torch.eye(features, dtype=torch.float64)).abs().max())
    if not off < 1e-5:
        raise ValueError(f"rotation: expected an orthogonal matrix, but Q Qᵀ differs from 1 by up to {off:.3g}")
    return q


def _excess(e: Tensor) -> float:
    """½ Σ (e − log(1 + e)): the divergence of variances 1 + e."""
    # Below 1e-3 by its series: the difference would lose the digits that both have in common.
    series = e.square() * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5 - e * (1 / 6 - e / 7)))))
    return float(torch.where(e.abs() < 1e-3, series, e - torch.log1p(e)).sum()) / 2


def _rescaled(c: Tensor) -> tuple[Tensor, Tensor]:
    """The correlation matrix of a covariance, and the variances."""
    variances = c.diagonal().clone()
    scale = variances.rsqrt()
    correlation = (c + c.T) / 2 * scale * scale.unsqueeze(1)
    correlation.fill_diagonal_(1.0)
    return correlation, variances


def _turning(rotation: str, features: int) -> Callable[[Tensor, int], Tensor]:
    """Q C Qᵀ for the random Q of a seed."""

    def haar(c: Tensor, seed: int) -> Tensor:
        q = random_rotation(features, seed=seed)
        return q @ c @ q.T

    def hadamard(c: Tensor, seed: int) -> Tensor:
        codec = Hadamard(features, seed=seed).double()
        return codec.encode(codec.encode(c).T)

    kinds = {"haar": haar, "hadamard": hadamard}
    if rotation not in kinds:
        raise ValueError(f'rotation: expected "haar" or "hadamard", got {rotation!r}')
    return kinds[rotation]
