"""Integrals of densities by importance sampling, where no grid reaches."""

import math

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, as_rows, expand_flat
from fluvial.manifolds import Manifold, has_uniform
from fluvial.metrics.estimate import Estimate, mean_estimate
from fluvial.metrics.kernel_density import KernelDensity, default_bandwidths
from fluvial.metrics.kernels import has_kernel
from fluvial.metrics.likelihood import evaluating, float_of

# The proposal: kernels on two thirds of so many samples of the flow, of widths that together describe the others best, and a safe share of what
# reaches everywhere. Widths of less than the least share are left out.
SAMPLES = 1536
SAFE_SHARE, LEAST_SHARE = 0.2, 2e-3
ROUNDS = 100
STANDARD_ERROR = 5e-3
LEAST, MOST = 2**12, 2**15
POINTS_AT_A_TIME = 2**13


def integral_by_sampling(flow: nn.Module, c: Condition = None, *, max_points: int = MOST, seed: int = 0) -> Estimate | None:
    r"""The integral of a flow's density by importance sampling.

    .. math:: \int_M p\, \mathrm{d}V = \mathbb{E}_{x \sim q}\left[\frac{p(x)}{q(x)}\right], \qquad
              q = \frac\alpha{\mathrm{vol}(M)} + (1 - \alpha) \sum_k \beta_k\, \mathrm{KDE}_{h_k}

    q are kernels of several widths h around samples of the flow, in the proportions β that describe other samples best; at least a fifth of q is
    uniform, so that the weights are bounded, or where the volume is not finite made of the widest kernels. Of a manifold without kernels,
    such as SO(4), q is uniform; of one that is known by a projection only, q is the flow's base, if that covers it. All of them have known
    densities, so that the mean of the weights has no bias.

    Args:
        flow: A `Flow` without a bottleneck.
        c: One condition, leaves of shape (\*condition event), or None.
        max_points: How many points at most, never more than 2¹⁵. As many are taken as bring the standard error to 5 · 10⁻³.
        seed: Of all samples.

    Returns:
        Mean, standard error and number of points. The error is the larger one of the scatter of the weights and of what the flow's own samples
        say about it, which also see peaks that q seldom meets. None where there is no q.
    """
    generator = torch.Generator().manual_seed(seed)
    with evaluating(flow):
        drawn = flow.sample(SAMPLES, c, generator=torch.Generator(float_of(flow).device).manual_seed(seed)).double().cpu()
    drawn = drawn[torch.isfinite(drawn).flatten(1).all(1)]
    own, held_out = drawn.split([len(drawn) - len(drawn) // 3, len(drawn) // 3])
    proposal = _proposal(flow, own, held_out, c)
    if proposal is None:
        return None
    # E_p[p/q] = E_q[(p/q)²] where the samples follow p.
    second = _weights(flow, proposal, held_out, c).mean().item()
    n = math.ceil((second - 1) / STANDARD_ERROR**2) if math.isfinite(second) else MOST
    n = min(max(n, LEAST), MOST, max_points)
    found = mean_estimate(_weights(flow, proposal, proposal.sample(n, generator), c))
    # Of a density that integrates to less, the samples say less than they should; this errs on the safe side.
    variance = max(found.value, 1.0) * second - found.value**2
    error = max(found.standard_error, math.sqrt(variance / n)) if math.isfinite(variance) and variance > 0 else found.standard_error
    # Kernels on samples do not reach what lies far from all of them, where there is no uniform part.
    far = "" if has_uniform(flow.manifold) else "mass far from all samples of the flow is not seen"
    return Estimate(found.value, error, n, found.bad_rows, "; ".join(filter(None, (f"{n} {proposal.name}", far, found.note))))


class _Mixture:
    """The uniform density, where the volume is finite, and kernels of several widths, or one of the two."""

    def __init__(self, manifold: Manifold, kernels: KernelDensity | None = None, held_out: Tensor | None = None) -> None:
        self.manifold, self.kernels = manifold, kernels
        self.bandwidths: tuple[float, ...] = () if kernels is None else default_bandwidths(manifold)
        parts = (["a uniform density"] if has_uniform(manifold) else []) + ([] if kernels is None else ["kernels on samples of the flow"])
        self.name = "points of " + " and of ".join(parts)
        count = has_uniform(manifold) + len(self.bandwidths)
        self.shares = torch.full((count,), 1 / count, dtype=torch.float64)
        if kernels is None or held_out is None:
            return
        logs = self._logs(held_out)
        for _ in range(ROUNDS):
            # Expectation and maximisation for the shares of fixed densities.
            self.shares = torch.softmax(logs + self.shares.clamp_min(1e-12).log().unsqueeze(1), 0).mean(1)
        widest = 0 if has_uniform(manifold) or not kernels.is_relative else count - 1
        self.shares = (1 - SAFE_SHARE) * torch.where(self.shares < LEAST_SHARE, 0.0, self.shares)
        self.shares[widest] += SAFE_SHARE
        self.shares = self.shares / self.shares.sum()
        used = self.shares[has_uniform(manifold) :] > 0
        self.bandwidths = tuple(width for width, keep in zip(self.bandwidths, used.tolist()) if keep)
        self.shares = self.shares[self.shares > 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points in float64, shape (n,)."""
        return torch.logsumexp(self._logs(x) + self.shares.log().unsqueeze(1), 0)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """N independent points in float64."""
        chosen = torch.multinomial(self.shares, n, replacement=True, generator=generator)
        counts = chosen.bincount(minlength=len(self.shares)).tolist()
        parts = [self.manifold.random_uniform(counts.pop(0), generator=generator, dtype=torch.float64)] if has_uniform(self.manifold) else []
        if self.kernels is not None:
            parts += [self.kernels.sample(count, bandwidth=width, generator=generator) for width, count in zip(self.bandwidths, counts)]
        return torch.cat(parts)

    def _logs(self, x: Tensor) -> Tensor:
        """Log-densities of the parts, shape (parts, n)."""
        parts = []
        if has_uniform(self.manifold):
            parts.append(torch.full((1, len(x)), -math.log(self.manifold.total_volume), dtype=torch.float64))
        if self.kernels is not None:
            parts.append(self.kernels.log_probs(x, self.bandwidths))
        return torch.cat(parts)


class _Base:
    """The latent distribution of a flow whose latents lie where the data do."""

    name = "points of the base"

    def __init__(self, flow: nn.Module, c: Condition) -> None:
        self.flow, self.c = flow, c

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points in float64, shape (n,)."""
        with evaluating(self.flow):
            return self.flow.base.log_prob(x.to(float_of(self.flow)), self._rows(len(x))).double().cpu()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """N independent points in float64."""
        own = torch.Generator(float_of(self.flow).device).manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        with evaluating(self.flow):
            c = self._rows(n)
            return (self.flow.base.sample(n, generator=own) if c is None else self.flow.base.sample((), c, generator=own)).double().cpu()

    def _rows(self, n: int) -> Condition:
        if self.c is None:
            return None
        c = expand_flat(self.c, (n,), self.flow.condition)
        return as_rows(c if self.flow.context is None else self.flow.context(c))


def _proposal(flow: nn.Module, own: Tensor, held_out: Tensor, c: Condition) -> _Mixture | _Base | None:
    manifold: Manifold = flow.manifold
    if has_kernel(manifold) and min(len(own), len(held_out)) > 1:
        return _Mixture(manifold, KernelDensity(own, default_bandwidths(manifold)[0], manifold), held_out)
    if has_uniform(manifold):
        return _Mixture(manifold)
    return _Base(flow, c) if flow.base.manifold == manifold else None


def _weights(flow: nn.Module, proposal: _Mixture | _Base, x: Tensor, c: Condition) -> Tensor:
    """p/q at points in float64, shape (n,)."""
    like = float_of(flow)
    with evaluating(flow):
        log_p = [flow.log_prob(flow.manifold.project(rows.to(like)), c).double().cpu() for rows in x.split(POINTS_AT_A_TIME)]
    return (torch.cat(log_p) - proposal.log_prob(x)).exp() if log_p else torch.zeros(0, dtype=torch.float64)
