"""Products of manifolds."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fluvial.manifolds.manifold import HasUniform, HasWrappedNormal, Manifold, has_uniform, has_wrapped_normal, linearize_projection, normals


class Product(Manifold):
    r"""M₁ × M₂ × …, for instance the poses of a rigid body, rotation and position.

    .. math:: d(x, y)^2 = \sum_k d_k(x_k, y_k)^2, \qquad \mathrm{vol} = \prod_k \mathrm{vol}(M_k)

    A point is one vector: the points of the factors, each flattened, one after the other. ``join`` makes it and ``split`` takes it apart.

    Args:
        factors: The manifolds, at least one.

    Raises:
        TypeError: If a factor is no manifold.
        ValueError: If there is none.

    Example:
        >>> from fluvial.manifolds import Euclidean, SpecialOrthogonal
        >>> poses = Product(SpecialOrthogonal(3), Euclidean(3))
        >>> pose = poses.join(torch.eye(3).expand(5, 3, 3), torch.zeros(5, 3))
        >>> pose.shape, [tuple(part.shape) for part in poses.split(pose)]
        (torch.Size([5, 12]), [(5, 3, 3), (5, 3)])
    """

    def __init__(self, *factors: Manifold) -> None:
        if not factors:
            raise ValueError("Product: give at least one manifold, such as Product(SpecialOrthogonal(3), Euclidean(3))")
        if odd := [factor for factor in factors if not isinstance(factor, Manifold)]:
            raise TypeError(f"Product: the factors must be manifolds, got {odd[0]!r}; give them one by one, not as a list")
        self.factors = tuple(factors)
        self.dim = sum(factor.dim for factor in factors)
        self.event_shape = (sum(math.prod(factor.event_shape) for factor in factors),)

    @property
    def total_volume(self) -> float:
        """Product of the factors' volumes.

        Raises:
            AttributeError: If one of them is not finite.
        """
        return math.prod(self._uniform(factor).total_volume for factor in self.factors)

    @property
    def wraps(self) -> bool:
        """Whether geodesics return in any factor.

        Raises:
            AttributeError: If wrapped normal densities are not known on one of them.
        """
        return sum(self._wrapped(factor).wraps for factor in self.factors) > 0  # a sum, so that every factor is asked

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        r"""Points (\*batch, size) -> the points of the factors, each (\*batch, \*event)."""
        return tuple(x[..., a:b].unflatten(-1, factor.event_shape) for factor, (a, b) in zip(self.factors, pairwise(self._ends())))

    def join(self, *points: Tensor) -> Tensor:
        r"""Points of the factors, their batches broadcast -> points (\*batch, size).

        Raises:
            ValueError: If there is not one of the right shape for every factor.
        """
        shapes = [tuple(p.shape[max(0, p.ndim - len(f.event_shape)) :]) for p, f in zip(points, self.factors)]
        if len(points) != len(self.factors) or any(s != f.event_shape for s, f in zip(shapes, self.factors)):
            raise ValueError(f"Product: join expects points of {', '.join(map(repr, self.factors))}, got shapes {[tuple(p.shape) for p in points]}")
        flat = [p.flatten(p.ndim - len(f.event_shape)) for p, f in zip(points, self.factors)]
        batch = torch.broadcast_shapes(*(p.shape[:-1] for p in flat))
        return torch.cat([p.expand(*batch, p.shape[-1]) for p in flat], -1)

    def project(self, x: Tensor) -> Tensor:
        """Factor by factor."""
        return self._each(lambda factor, p: factor.project(p), x)

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t (K, *x.shape) -> the projection and its derivatives, factor by factor."""
        y, push = self.linearize(x)
        return y, push(t)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The projection and its derivative as a map, factor by factor."""
        pairs = [linearize_projection(factor, p) for factor, p in zip(self.factors, self.split(x))]
        return self.join(*(y for y, _ in pairs)), lambda t: self.join(*(push(d) for (_, push), d in zip(pairs, self.split(t))))

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Factor by factor."""
        return self._each(lambda factor, p, v: factor.to_tangent(p, v), x, u)

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""Block by block, shape (\*batch, size, dim)."""
        blocks = [f.tangent_basis(p).flatten(p.ndim - len(f.event_shape), -2) for f, p in zip(self.factors, self.split(x))]
        columns, done = [], 0
        for block in blocks:
            rows = block.shape[-2]
            columns.append(torch.nn.functional.pad(block, (0, 0, done, self.event_shape[0] - done - rows)))
            done += rows
        return torch.cat(columns, -1)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed direction of the whole tangent space, of length √dim in the embedding."""
        gauss = self.to_tangent(x, normals(x.shape, x, generator))
        return gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(-1, keepdim=True)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Factor by factor."""
        return self._each(lambda factor, p, d: factor.exp(p, d), x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Factor by factor."""
        return self._each(lambda factor, p, q: factor.log(p, q), x, y)

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""Root of the summed squares of the factors' lengths, shape (\*batch,)."""
        return _root([factor.norm(p, d) for factor, p, d in zip(self.factors, self.split(x), self.split(v))])

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Root of the summed squares of the factors' distances, shape (\*batch,)."""
        return _root([factor.distance(p, q) for factor, p, q in zip(self.factors, self.split(x), self.split(y))])

    def log_volume(self, x: Tensor) -> Tensor:
        r"""Sum over the factors, shape (\*batch,)."""
        return torch.stack([factor.log_volume(p) for factor, p in zip(self.factors, self.split(x))]).sum(0)

    def random_uniform(
        self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Independent uniform points, shape (n, size)."""
        draws = [self._uniform(factor).random_uniform(n, generator=generator, dtype=dtype, device=device) for factor in self.factors]
        return self.join(*draws)

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The origins of the factors."""
        return self.join(*(self._wrapped(factor).origin(dtype=dtype, device=device) for factor in self.factors))

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        """Factor by factor, each with its own part of a."""
        parts = a.split([factor.dim for factor in self.factors], -1)
        return self.join(*(self._wrapped(f).isometry(p, part) for f, p, part in zip(self.factors, self.split(x), parts)))

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Sum over the factors, shape (\*batch,)."""
        pairs = zip(self.factors, self.split(x), self.split(y))
        return torch.stack([self._wrapped(f).log_wrapped_normal(p, q, scale, windings=windings) for f, p, q in pairs]).sum(0)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.factors))})"

    def _ends(self) -> list[int]:
        ends = [0]
        for factor in self.factors:
            ends.append(ends[-1] + math.prod(factor.event_shape))
        return ends

    def _each(self, fn: Callable[..., Tensor], *points: Tensor) -> Tensor:
        return self.join(*(fn(factor, *parts) for factor, *parts in zip(self.factors, *map(self.split, points))))

    def _uniform(self, factor: Manifold) -> HasUniform:
        if not has_uniform(factor):
            # Of this type, so that asking whether there is a volume says no.
            raise AttributeError(f"Product: {factor} has no finite volume")
        return factor

    def _wrapped(self, factor: Manifold) -> HasWrappedNormal:
        if not has_wrapped_normal(factor):
            # Of this type, so that asking whether they are known says no.
            raise AttributeError(f"Product: no wrapped normal densities are known on {factor}")
        return factor


def product(factors: Sequence[Manifold]) -> Product:
    """The product of a list of manifolds, for recipes, whose arguments all have names.

    Example:
        >>> from fluvial.manifolds import Sphere
        >>> product(factors=[Sphere(2), Sphere(1)])
        Product(Sphere(2), Sphere(1))
    """
    return Product(*factors)


def _root(lengths: list[Tensor]) -> Tensor:
    square = torch.stack(lengths).square().sum(0)
    nothing = square == 0
    return torch.where(nothing, 0.0, torch.sqrt(torch.where(nothing, 1.0, square)))
