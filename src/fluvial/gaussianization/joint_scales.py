"""All scales of several layers tuned together: what layers fitted one after the other leave undone."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fluvial.codecs.matrices import random_rotation
from fluvial.gaussianization.theory import checked_count, checked_covariance

_SOLVED = 1e-14  # nats; Newton's method goes from here to the end of float64 in one step


def tune_jointly(covariance: Any, layers: int, *, seed: int = 0, draws: int = 6, restarts: int = 6) -> float:
    r"""The smallest loss of a Gaussian after layers with random rotations whose scales are all optimised together.

    .. math:: \min_\theta\ \mathrm{KL}\bigl(N(0, A C A^\top)\,\|\,N(0, 1)\bigr), \qquad
              A = e^{\theta_n} Q_n \cdots e^{\theta_1} Q_1, \qquad \theta_l\ \text{diagonal}

    From `minimum_layers` on the loss vanishes, while layers fitted one after the other only reduce it by a factor each. The optimum is found by
    Newton's method with the exact Hessian, damped, and with its negative curvatures turned positive.

    Args:
        covariance: C, shape (D, D). Time and memory per step grow as (n D)³ and (n D)²: meant for D up to about 24.
        layers: Number n of layers.
        seed: Of rotations and starting points.
        draws: How many sets of rotations are tried until one solves the problem. With the minimum number of layers at even D there are as many
            equations as scales, and one set in ten, or in four, has no solution.
        restarts: Starting points for each set of rotations, of which the first is θ = 0.

    Returns:
        The smallest loss found, in nats.

    Raises:
        ValueError: If C is not a covariance, or one of the counts is below 1.

    Example:
        >>> covariance = torch.eye(4) + 0.5
        >>> tune_jointly(covariance, 3) < 1e-12 < 1e-4 < tune_jointly(covariance, 2)
        True
    """
    c, _ = checked_covariance(covariance)
    for name, count in (("layers", layers), ("draws", draws), ("restarts", restarts)):
        checked_count(name, count)
    values, axes = torch.linalg.eigh(c)
    root = axes * values.sqrt()
    generator = torch.Generator().manual_seed(seed)
    best = math.inf
    for _ in range(draws):
        seeds = torch.randint(2**31 - 1, (layers,), generator=generator).tolist()
        rotations = [random_rotation(len(c), seed=layer_seed) for layer_seed in seeds]
        for restart in range(restarts):
            # Starts nearer and farther from equal scales: the loss has local minima.
            width = (0.0, 0.25, 0.5, 1.0)[restart if restart < 4 else 1 + restart % 3]
            start = width * torch.randn(layers, len(c), dtype=torch.float64, generator=generator)
            best = min(best, _newton(root, rotations, start))
            if best < _SOLVED:
                return best
    return best


def _newton(root: Tensor, rotations: Sequence[Tensor], theta: Tensor, *, steps: int = 200) -> float:
    """The loss at the local minimum near θ, for a covariance root · rootᵀ."""
    loss, gradient, hessian = _derivatives(root, rotations, theta)
    damping = 1e-2
    for _ in range(steps):
        curvatures, directions = torch.linalg.eigh(hessian)
        slopes = directions.T @ gradient
        while True:
            step = -directions @ (slopes / (curvatures.abs() + damping))
            step = step / step.abs().max().clamp(min=1.0)  # no scale by more than a factor e at a time
            trial = theta + step.view_as(theta)
            trial_loss, trial_gradient, trial_hessian = _derivatives(root, rotations, trial)
            if trial_loss < loss:
                break
            damping *= 4
            if damping > 1e6:
                return loss
        settled = loss - trial_loss < 1e-9 * trial_loss
        theta, loss, gradient, hessian = trial, trial_loss, trial_gradient, trial_hessian
        damping = max(damping / 5, 1e-12)
        if settled or loss < _SOLVED:
            break
    return loss


def _derivatives(root: Tensor, rotations: Sequence[Tensor], theta: Tensor) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient (n D,) and Hessian (n D, n D) in the logarithms θ (n, D) of all scales."""
    layers, features = theta.shape
    scales = theta.exp()
    # between[m, :, l, :] is the matrix of layers l + 1 … m; a change of θ[l, i] enters as between[n, :, l, i] times row i of what layer l gives.
    between = theta.new_zeros(layers, features, layers, features)
    outputs, x = [], root
    for layer in range(layers):
        x = scales[layer].unsqueeze(1) * (rotations[layer] @ x)
        outputs.append(x)
        piece = torch.eye(features, dtype=theta.dtype)
        between[layer, :, layer] = piece
        for later in range(layer + 1, layers):
            piece = scales[later].unsqueeze(1) * (rotations[later] @ piece)
            between[later, :, layer] = piece
    rows = torch.cat(outputs)
    last = between[-1].reshape(features, layers * features)
    moved = (last.T @ x) @ rows.T
    twice = between.reshape(layers * features, layers * features) * moved
    hessian = (last.T @ last) * (rows @ rows.T) + twice + twice.T - torch.diag(twice.diagonal())
    gradient = moved.diagonal() - 1
    excess = torch.linalg.svdvals(x).square() - 1
    return float((excess - torch.log1p(excess)).sum()) / 2, gradient, hessian
