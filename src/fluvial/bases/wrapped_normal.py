"""Normal distributions wrapped around a manifold."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.bases.base import Base, count, sample_shape
from fluvial.conditions import Condition, as_features
from fluvial.manifolds import Manifold, has_uniform
from fluvial.manifolds.manifold import HasWrappedNormal, has_wrapped_normal

_MOST_WINDINGS = 32
_GROWTH = 4.0  # a learnable scale on a manifold with windings may grow to so many times the largest one at the start


class WrappedNormal(Base):
    r"""A mixture of normal distributions of tangent spaces, laid onto the manifold by its exponential map.

    .. math:: z = \exp_{\mu_k}(v), \quad v \sim N(0, \sigma_k^2 1) \text{ in } T_{\mu_k}M, \qquad
              p(z) = \sum_k \pi_k \sum_{v:\ \exp_{\mu_k}(v) = z} N(v; 0, \sigma_k^2 1)\, |\det D \exp_{\mu_k}(v)|^{-1}

    Lengths are those of the metric. The inner sum runs over all tangent vectors that lead to z: one in flat and hyperbolic space; on spheres,
    tori and rotations as many windings as the scale needs to lose less than 10⁻⁸ of the mass.

    Args:
        manifold: Euclidean, Sphere, Torus, SpecialOrthogonal(2 or 3), PoincareBall, Hyperboloid, or a Product of such.
        scale: σ, one for all components or one for each, in the manifold's unit of length.
        components: Number of components.
        means: Their centres μ, shape (components, \*event); default the origin for one component, otherwise random points: uniform, or where
            the volume is not finite from a wrapped normal of scale 1.
        weights: Positive numbers proportional to π; default all equal.
        learnable: Train means, scales and weights together with the flow. On manifolds with windings scales end at 4 times the largest given.
        seed: Of random means.
        network: Optional module h from conditions (batch, features) to (batch, components): π(c) = softmax(log π + h(c)). A flow is a continuous
            map, which carries mass from mode to mode only over what lies between them; where the condition decides how likely the modes are,
            the weights say it better.

    Raises:
        TypeError: If the manifold has no known wrapped normal densities.
        ValueError: If numbers are not positive, their counts disagree, means are not on the manifold, or a scale would take more than 32 windings.

    References:
        Nagano, Yamaguchi, Fujita, Koyama (2019), "A wrapped normal distribution on hyperbolic space for gradient-based learning",
        arXiv:1902.02992; Falorsi, de Haan, Davidson, Forré (2019), "Reparameterizing distributions on Lie groups", arXiv:1903.02958 (the sum).

    Example:
        >>> from fluvial.manifolds import PoincareBall
        >>> base = WrappedNormal(PoincareBall(2), scale=0.5)
        >>> base.sample(3).shape, round(float(base.log_prob(torch.zeros(2))), 4) == round(-math.log(2 * math.pi * 0.25), 4)
        (torch.Size([3, 2]), True)
    """

    def __init__(
        self,
        manifold: Manifold,
        *,
        scale: float | Sequence[float] = 1.0,
        components: int | None = None,
        means: Any = None,
        weights: Sequence[float] | None = None,
        learnable: bool = False,
        seed: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not has_wrapped_normal(manifold):
            mend = "UniformOn" if has_uniform(manifold) else "UniformByProjection"
            raise TypeError(f"WrappedNormal: no wrapped normal densities are known on {manifold}; use bases.{mend}(manifold, …)")
        given = None if means is None else _points(manifold, means)
        if given is not None and components not in (None, len(given)):
            raise ValueError(f"WrappedNormal: {len(given)} means do not fit components={components}; leave components out")
        components = len(given) if given is not None else 1 if components is None else components
        if components < 1:
            raise ValueError(f"WrappedNormal: components must be positive, got {components}")
        if network is not None and components == 1:
            raise ValueError("WrappedNormal: a network gives the components their weights, and there is but one; ask for more components")
        self.manifold = manifold
        self.components = components
        self.scale = _numbers("scale", scale, components)
        self.means = None if given is None else _tuples(given.tolist())
        self.weights = None if weights is None else _numbers("weights", weights, components)
        if isinstance(self.weights, float):
            raise ValueError(f"WrappedNormal: weights must be a sequence of {components} numbers, got {weights}")
        self.learnable = learnable
        self.seed = seed
        self.network = network
        # Drawing chooses a component, which has no derivative; where there is but one, draws follow it.
        self.has_rsample = components == 1 or not (learnable or network is not None)
        scales = torch.tensor(self.scale if isinstance(self.scale, tuple) else [self.scale] * components, dtype=torch.float64)
        self.largest = _GROWTH * float(scales.max()) if learnable and manifold.wraps else math.inf
        self.windings = _windings(manifold, float(scales.max()), learnable=learnable) if manifold.wraps else 0
        if given is None:
            given = _random_means(manifold, components, torch.Generator().manual_seed(seed))
        dtype = torch.get_default_dtype()
        proportions = torch.ones(components, dtype=torch.float64) if self.weights is None else torch.tensor(self.weights, dtype=torch.float64)
        # What they project to counts.
        self.centres = nn.Parameter(given.to(dtype), requires_grad=learnable)
        self.log_scales = nn.Parameter(scales.log().to(dtype), requires_grad=learnable)
        self.logits = nn.Parameter((proportions / proportions.sum()).log().to(dtype), requires_grad=learnable and components > 1)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of points z (\*batch, \*event), shape (\*batch,)."""
        mean, scale = self._components()
        log_p = self._space.log_wrapped_normal(mean, z.unsqueeze(-1 - len(self.manifold.event_shape)), scale, windings=self.windings)
        return torch.logsumexp(torch.log_softmax(self._logits(c), -1) + log_p, -1)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event); of a learnable mixture without gradient."""
        shape = sample_shape(n, c)
        total = count(shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.has_rsample):
            mean, scale = self._components()
            if self.components > 1 and total:
                if self.network is None:
                    k = torch.multinomial(self.logits.softmax(0), total, replacement=True, generator=generator)
                else:
                    weights = self._logits(c).softmax(-1).expand(*shape, self.components)
                    k = torch.multinomial(weights.reshape(total, -1), 1, generator=generator).squeeze(-1)
                mean, scale = mean[k], scale[k]
            else:
                mean, scale = mean[:1].expand(total, *mean.shape[1:]), scale[:1]
            a = torch.randn(total, self.manifold.dim, generator=generator, dtype=mean.dtype, device=mean.device)
            v = self._space.isometry(mean, a * scale.unsqueeze(-1))
            return self.manifold.exp(mean, v).reshape(*shape, *self.manifold.event_shape)

    def extra_repr(self) -> str:
        """Manifold, number of components and scale, for repr."""
        many = "" if self.components == 1 else f", components={self.components}"
        return f"{self.manifold}{many}, scale={self.scale}{', learnable' if self.learnable else ''}"

    def _logits(self, c: Condition) -> Tensor:
        if self.network is None:
            return self.logits
        features = as_features(c)
        if features is None:
            raise ValueError("WrappedNormal: its weights depend on a condition, and none was given")
        return self.logits + self.network(features)

    @property
    def _space(self) -> HasWrappedNormal:
        space = self.manifold
        if not has_wrapped_normal(space):
            raise TypeError(f"WrappedNormal: no wrapped normal densities are known on {space}")
        return space

    def _components(self) -> tuple[Tensor, Tensor]:
        scales = self.log_scales.exp()
        # Bounded in value, but not in gradient: a scale that went too far can come back.
        return self.manifold.project(self.centres), scales + (scales.clamp_max(self.largest) - scales).detach()


def _points(manifold: Manifold, means: Any) -> Tensor:
    points = torch.as_tensor(means).detach().cpu().double()
    event = manifold.event_shape
    points = points.unsqueeze(0) if points.shape == event else points
    if points.ndim != 1 + len(event) or points.shape[1:] != event or not len(points):
        raise ValueError(f"WrappedNormal: means must have the shape (components, {', '.join(map(str, event))}), got {tuple(points.shape)}")
    apart = (manifold.project(points) - points).abs().flatten(1).amax(-1)
    if not bool((apart < 1e-2).all()):
        k = int((~(apart < 1e-2)).nonzero()[0])
        raise ValueError(f"WrappedNormal: means[{k}] is not a point of {manifold}; pass manifold.project(means) if that is meant")
    return points


def _random_means(manifold: HasWrappedNormal, components: int, generator: torch.Generator) -> Tensor:
    if components > 1 and has_uniform(manifold):
        return manifold.random_uniform(components, generator=generator, dtype=torch.float64)
    origin = manifold.origin(dtype=torch.float64).expand(components, *manifold.event_shape)
    if components == 1:
        return origin
    return manifold.exp(origin, manifold.isometry(origin, torch.randn(components, manifold.dim, generator=generator, dtype=torch.float64)))


def _windings(manifold: Manifold, scale: float, *, learnable: bool) -> int:
    # Beyond √n + 6.5 standard deviations lies less than 1e-9 of the mass; one more winding makes the density good there too.
    reach = (math.sqrt(manifold.dim) + 6.5) * scale * (_GROWTH if learnable else 1.0)
    windings = 1 + max(0, math.ceil((reach / math.pi - 1) / 2))
    if windings > _MOST_WINDINGS:
        most = (2 * _MOST_WINDINGS - 1) * math.pi / reach * scale
        raise ValueError(
            f"WrappedNormal: scale {scale:g} on {manifold} would wind more than {_MOST_WINDINGS} times; take one below {most:.3g}, or bases.UniformOn"
        )
    return windings


def _numbers(name: str, value: float | Sequence[float], components: int) -> float | tuple[float, ...]:
    numbers = torch.as_tensor(value, dtype=torch.float64)
    if not bool(((numbers > 0) & (numbers < math.inf)).all()):
        raise ValueError(f"WrappedNormal: {name} must be positive and finite, got {value}")
    if numbers.shape not in ((), (components,)):
        raise ValueError(f"WrappedNormal: expected {name} for {components} components, got shape {tuple(numbers.shape)}")
    return tuple(numbers.tolist()) if numbers.ndim else float(numbers)


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested
