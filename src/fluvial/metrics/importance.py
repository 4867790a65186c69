"""How well a flow stands in for an energy, by importance weights."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, batch_shape, transform
from fluvial.energies import Energy, HasLogZ, HasSample
from fluvial.energies.energy import energies_at
from fluvial.metrics.estimate import Estimate
from fluvial.metrics.likelihood import evaluating, float_of

ROWS_AT_A_TIME = 8192
TRUSTED_SHAPE = 0.7
COVERED = 0.95


class Importance(NamedTuple):
    r"""A flow as proposal for the density of an energy, w = e^{−E}/p_θ. Figures that need what the energy does not know are None.

    Attributes:
        ess: Share of effective samples, (Σw)²/(n Σw²) of the flow's own draws; 1 for an exact flow, and blind to modes it has no points in.
        log_z: log Z estimated from the same draws.
        reverse_kl: KL(p_θ‖p), with the true log Z where it is known, else with the estimate.
        pareto_k: Shape of the tail of the weights: from 0.7 the other figures are not to be trusted.
        ess_forward: The effective share by exact samples of the energy, 1/(E_p[w] E_p[1/w]), which does see missing modes.
        forward_kl: KL(p‖p_θ) by the same.
        coverage: Share of the energy's mass that the flow's own draws account for, e^{log_z}/Z.
        true_log_z: log Z where the energy knows it.
        warning: One sentence where a figure should not be trusted, else empty.
    """

    ess: Estimate
    log_z: Estimate
    reverse_kl: Estimate
    pareto_k: Estimate
    ess_forward: Estimate | None
    forward_kl: Estimate | None
    coverage: Estimate | None
    true_log_z: float | None
    warning: str


def importance(
    flow: nn.Module, energy: Energy, n: int = 10_000, c: Condition = None, *, generator: torch.Generator | None = None, seed: int = 0
) -> Importance:
    r"""Weigh the flow's draws by the energy.

    Args:
        flow: A `Flow` whose density is exact.
        energy: The target, on the manifold of the flow; one of another precision is copied into that of the flow.
        n: Number of draws, of the flow and where possible of the energy.
        c: One condition, leaves of shape (\*condition event) or (1, \*condition event), or None.
        generator: Source of randomness, on the flow's device; default one seeded with `seed`.
        seed: Of that generator.

    Returns:
        The figures with their standard errors.

    Raises:
        TypeError: If the density of the flow is not exact.
        ValueError: If there are fewer than 20 draws or several conditions, or flow and energy live on different manifolds.

    References:
        Kish (1965) for the effective share; Nicoli et al. (2023), arXiv:2302.14082, for both directions and mode dropping; Vehtari et al. (2024),
        Pareto smoothed importance sampling, JMLR 25, arXiv:1507.02646, for the shape.

    Example:
        >>> from fluvial.bases import Normal
        >>> from fluvial.codecs import Standardize
        >>> from fluvial.energies import GaussianMixture
        >>> from fluvial.flow import Flow
        >>> found = importance(Flow(Standardize(2), Normal(2)), GaussianMixture([[0.0, 0.0]], scales=1.0, offset=3.0), 1000)
        >>> round(found.ess.value, 4), round(found.log_z.value, 4)
        (1.0, 3.0)
    """
    if n < 20:
        raise ValueError(f"importance: expected at least 20 draws, got {n}")
    _check_fit(flow, energy)
    energy = at_precision(energy, float_of(flow))
    c = _single(c, getattr(flow, "condition", None), energy)
    c = transform(c, lambda leaf: leaf.to(float_of(flow)) if leaf.is_floating_point() else leaf)
    source = generator if generator is not None else torch.Generator(float_of(flow).device).manual_seed(seed)
    with evaluating(flow), evaluating(energy):
        log_w = torch.cat([_own(flow, energy, size, c, source) for size in _blocks(n)])
        true = float(energy.log_z(c).reshape(())) if isinstance(energy, HasLogZ) else None
        forward = torch.cat([_exact(flow, energy, size, c, source) for size in _blocks(n)]) if isinstance(energy, HasSample) else None
    ess, log_z = _moments(log_w)
    reverse_kl = _mean_of(-log_w, log_z.value if true is None else true)
    shape = pareto_shape(log_w)
    coverage = _coverage(log_z, true, forward)
    return Importance(
        ess=ess,
        log_z=log_z,
        reverse_kl=reverse_kl,
        pareto_k=Estimate(shape, n=n),
        ess_forward=None if forward is None else _forward_share(forward),
        forward_kl=None if forward is None else _mean_of(forward, -(_harmonic(forward) if true is None else true)),
        coverage=coverage,
        true_log_z=true,
        warning=_warning(log_w, shape, coverage),
    )


def at_precision(energy: Energy, like: Tensor) -> Energy:
    """The energy in the floating type and on the device of `like`: itself if it is there already, else a copy."""
    own = [t for t in (*energy.parameters(), *energy.buffers()) if t.is_floating_point()]
    if all(t.dtype == like.dtype and t.device == like.device for t in own):
        return energy
    return copy.deepcopy(energy).to(like)


def pareto_shape(log_w: Tensor) -> float:
    r"""Shape k of the generalised Pareto distribution fitted to the largest weights: below ½ they have a variance, below 1 a mean.

    Args:
        log_w: Log-weights, shape (n,).

    Returns:
        k by the estimate of Zhang and Stephens (2009) with the weak prior of Vehtari et al.; −∞ where the largest weights are all equal.

    Example:
        >>> u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> round(pareto_shape(-0.5 * u.log()), 1)
        0.5
    """
    ordered = torch.sort(log_w.detach().double().cpu()[torch.isfinite(log_w.detach().cpu())]).values
    count = math.ceil(min(0.2 * len(ordered), 3 * math.sqrt(len(ordered))))
    if count < 5:
        return math.nan
    top = (ordered[-count:] - ordered[-1]).exp()
    x = top - (ordered[-count - 1] - ordered[-1]).exp()
    if float(x[-1]) <= 1e-10 * float(top[-1]):
        return -math.inf
    m = 30 + int(math.sqrt(count))
    steps = torch.arange(1, m + 1, dtype=torch.float64)
    theta = 1 / x[-1] + (1 - (m / (steps - 0.5)).sqrt()) / (3 * x[int(count / 4 + 0.5) - 1])
    k = torch.log1p(-theta.unsqueeze(1) * x).mean(1)
    likelihood = count * (torch.log(-theta / k) - k - 1)
    mean = float((torch.softmax(likelihood, 0) * theta).sum())
    shape = float(torch.log1p(-mean * x).mean())
    return (count * shape + 10 * 0.5) / (count + 10)


def _check_fit(flow: nn.Module, energy: Energy) -> None:
    if not isinstance(energy, Energy):
        raise TypeError(f"importance: energy must be a fluvial Energy, got {type(energy).__name__}; importance(flow, energy) is the order")
    if not getattr(flow, "is_bijective", False) or not hasattr(flow, "manifold"):
        raise TypeError(
            f"importance: weights need a Flow whose density is exact, and this {type(flow).__name__} is none; build one as flows.coupling"
        )
    if flow.manifold != energy.manifold:
        raise ValueError(
            f"importance: the energy lives on {energy.manifold}, the flow on {flow.manifold}; densities on different spaces do not compare"
        )


def _single(c: Condition, declared: object, energy: Energy) -> Condition:
    """One condition, with a batch of no axes."""
    if c is None:
        return None
    batch = batch_shape(c, declared if declared is not None else energy.condition)  # pyright: ignore[reportArgumentType]
    if math.prod(batch) != 1:
        raise ValueError(f"importance: weights belong to one condition, got a batch of {tuple(batch)}; call it once for each")
    return transform(c, lambda leaf: leaf.reshape(leaf.shape[len(batch) :]))


def _blocks(n: int) -> list[int]:
    return [min(ROWS_AT_A_TIME, n - start) for start in range(0, n, ROWS_AT_A_TIME)]


def _own(flow: nn.Module, energy: Energy, n: int, c: Condition, source: torch.Generator) -> Tensor:
    x, log_q = flow.sample_and_log_prob(n, c, generator=source)
    return (-energies_at(energy, x, c) - log_q).double().cpu()


def _exact(flow: nn.Module, energy: Energy, n: int, c: Condition, source: torch.Generator) -> Tensor:
    like = float_of(flow)
    x = energy.sample(n, c, generator=source).to(like)  # pyright: ignore[reportCallIssue]
    return (-energies_at(energy, x, c) - flow.log_prob(x, c)).double().cpu()


def _moments(log_w: Tensor) -> tuple[Estimate, Estimate]:
    """Effective share and log Z, with errors to first order in the means of w and w²."""
    n, used = len(log_w), _usable(log_w)
    bad = int((torch.isnan(log_w) | (log_w == math.inf)).sum())
    note = f"{bad} of {n} weights are not numbers and count as 0" if bad else ""
    if not bool((used > -math.inf).any()):
        return Estimate(0.0, math.nan, n, bad, note), Estimate(-math.inf, math.nan, n, bad, note)
    w = (used - used.amax()).exp()
    first, second = w.mean(), w.square().mean()
    share = first.square() / second
    # d ln(share) = 2 dw̄/w̄ − d(w²)‾/(w²)‾, and d ln Z = dw̄/w̄.
    error = share * (2 * (w / first - 1) - (w.square() / second - 1)).std() / math.sqrt(n)
    log_z = torch.logsumexp(used, 0) - math.log(n)
    return (
        Estimate(float(share), float(error), n, bad, note),
        Estimate(float(log_z), float((w / first - 1).std() / math.sqrt(n)), n, bad, note),
    )


def _usable(log_w: Tensor) -> Tensor:
    """Log-weights in which what is no number counts for nothing."""
    return torch.where(torch.isnan(log_w) | (log_w == math.inf), -math.inf, log_w)


def _mean_of(values: Tensor, shift: float) -> Estimate:
    """The mean plus a constant; infinite where a value is."""
    error = float(values.std() / math.sqrt(len(values))) if bool(torch.isfinite(values).all()) else math.nan
    mean = float(values.mean())
    return Estimate(mean + shift if math.isfinite(mean) else mean, error, len(values))


def _harmonic(log_w: Tensor) -> float:
    """Log Z from exact samples: E_p[1/w] = 1/Z wherever the flow has points."""
    return math.log(len(log_w)) - float(torch.logsumexp(-log_w, 0))


def _forward_share(log_w: Tensor) -> Estimate:
    """1/(E_p[w] E_p[1/w])."""
    n = len(log_w)
    if not bool(torch.isfinite(log_w).all()):
        return Estimate(0.0, math.nan, n, note="the flow has no density at some samples of the energy")
    centred = log_w - log_w.mean()
    w, inverse = centred.exp(), (-centred).exp()
    share = 1 / (w.mean() * inverse.mean())
    error = share * (w / w.mean() + inverse / inverse.mean()).std() / math.sqrt(n)
    return Estimate(float(share), float(error), n)


def _coverage(log_z: Estimate, true: float | None, forward: Tensor | None) -> Estimate | None:
    reference = true if true is not None else None if forward is None else _harmonic(forward)
    if reference is None:
        return None
    # Beyond e⁷⁰⁰ there is no number.
    share = math.exp(min(log_z.value - reference, 700.0))
    return Estimate(share, share * log_z.standard_error, log_z.n)


def _warning(log_w: Tensor, shape: float, coverage: Estimate | None) -> str:
    parts, n, used = [], len(log_w), _usable(log_w)
    bad, positive = int((torch.isnan(log_w) | (log_w == math.inf)).sum()), int((used > -math.inf).sum())
    if bad:
        parts.append(f"the weights of {bad} of {n} draws are not numbers and count as 0")
    if positive == 0:
        parts.append(f"none of {n} draws has a weight: the flow has no points in the support of the energy")
        return "; ".join(parts)
    if math.isnan(shape):
        parts.append(f"only {positive} of {n} draws have a weight, too few to tell whether the figures are to be trusted")
    # The shape knows no scale: a long tail of weights that are all nearly equal harms nobody.
    largest = float((used.amax() - torch.logsumexp(used, 0)).exp())
    if shape > TRUSTED_SHAPE and largest * math.sqrt(n) > 1:
        parts.append(f"the weights have a heavy tail (k = {shape:.2f} > {TRUSTED_SHAPE}): effective share and log Z are not to be trusted")
    if coverage is not None and coverage.value + 3 * coverage.standard_error < COVERED:
        parts.append(f"the flow's draws account for {100 * coverage.value:.0f} % of the energy's mass: modes are missing")
    return "; ".join(parts)
