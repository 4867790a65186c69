"""What a manifold must say about itself."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor


class Manifold(ABC):
    r"""A Riemannian manifold of intrinsic dimension n, given by points embedded in an array of shape ``event_shape``.

    Points are tensors of shape (\*batch, \*event); tangent vectors have the shape of points.

    Two inner products meet here. Bases, projections and random tangents are orthonormal in that of the embedding, the sum of squares of the
    array, whatever the metric G; lengths (``norm``, ``distance``), geodesics and volumes are those of G, and ``log_volume`` = ½ log|G| in an
    orthonormal basis of the embedding connects the two. It is 0 wherever the embedding is isometric. All densities are per Riemannian volume.

    A manifold holds no tensors and no state; device and dtype follow the points it is given.

    Attributes:
        dim: Intrinsic dimension n.
        event_shape: Shape of one embedded point.
    """

    dim: int
    event_shape: tuple[int, ...]

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Ambient points -> the nearest points of the manifold, same shape."""

    @abstractmethod
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection of ambient vectors u onto the tangent spaces at x, same shape as u."""

    @abstractmethod
    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""Orthonormal bases of the tangent spaces at x, shape (\*batch, \*event, n): the last axis counts the vectors."""

    @abstractmethod
    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One random tangent vector v at each x with E[v vᵀ] = the tangent projector and |v|² = n, same shape as x."""

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Follow the geodesic that leaves x with velocity v for unit time."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector at x whose exp is y."""

    @abstractmethod
    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""Riemannian length of the tangent vectors v at x, shape (\*batch,)."""

    @abstractmethod
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Geodesic distance, shape (\*batch,)."""

    @abstractmethod
    def log_volume(self, x: Tensor) -> Tensor:
        r"""½ log|G(x)| in an orthonormal tangent basis of the embedding, shape (\*batch,)."""

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """project(x + v): leaves x with velocity v, and agrees with exp to first order."""
        return self.project(x + v)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items())))


class HasUniform(Protocol):
    """A manifold of finite volume, on which a uniform density exists."""

    total_volume: float

    def random_uniform(
        self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        r"""N independent points, uniform in Riemannian volume, shape (n, \*event)."""
        ...


def has_uniform(manifold: Manifold) -> TypeGuard[HasUniform]:
    """Whether a manifold has a finite volume; a product asks its factors, so that the class alone does not tell."""
    return hasattr(manifold, "total_volume")


@runtime_checkable
class HasProjectDual(Protocol):
    """A manifold that knows the derivative of its projection in closed form."""

    def project_dual(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ambient x and directions t of shape (K, *x.shape) -> project(x) and the K directional derivatives."""
        ...


class HasWrappedNormal(Protocol):
    """A manifold on which the density of exp(x, v) is known for normal tangent vectors v.

    Attributes:
        wraps: Whether geodesics return, so that several tangent vectors lead to one point.
    """

    wraps: bool

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The point to start from, of shape event_shape."""
        ...

    def isometry(self, x: Tensor, a: Tensor) -> Tensor:
        r"""Vectors a (\*batch, n) -> tangent vectors at x with Riemannian length |a|, linear in a, shape (\*batch, \*event)."""
        ...

    def log_wrapped_normal(self, x: Tensor, y: Tensor, scale: Tensor | float, *, windings: int = 1) -> Tensor:
        r"""Log-density at y, per Riemannian volume, of exp(x, v), v normal with the standard deviation `scale` in every direction.

        .. math:: \log \sum_{v:\ \exp_x v = y} N(v; 0, \sigma^2 1)\, |\det D \exp_x(v)|^{-1}

        Args:
            x: Centres, shape (\*batch, \*event).
            y: Points, their batch broadcast against that of the centres.
            scale: σ, broadcast against the batch.
            windings: How many times round, either way, the sum follows geodesics that return.
        """
        ...


def has_wrapped_normal(manifold: Manifold) -> TypeGuard[HasWrappedNormal]:
    """Whether wrapped normal densities are known; a product asks its factors, so that the class alone does not tell."""
    return hasattr(manifold, "wraps")


def normals(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers of a given shape, on the device and in the dtype of `like`."""
    if generator is None:
        # The compiler traces randn only without the argument.
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype, device=like.device)


def length(v: Tensor, axes: int) -> Tensor:
    r"""Root of the sum of squares over the last `axes` axes, shape (\*batch,), with gradient 0 rather than NaN at 0."""
    square = v.flatten(v.ndim - axes).square().sum(-1)
    nothing = square < 1e-60 if v.dtype == torch.float64 else square < 1e-36
    return torch.where(nothing, 0.0, torch.sqrt(torch.where(nothing, 1.0, square)))


@runtime_checkable
class HasLinearize(Protocol):
    """A manifold whose projection is so dear that its derivative must not compute it again."""

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """project(x), and the map of directions (K, *x.shape) to the directional derivatives."""
        ...


def linearize_projection(manifold: Manifold, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """project(x), and the map of directions (K, *x.shape) to its derivatives along them."""
    if isinstance(manifold, HasLinearize):
        return manifold.linearize(x)
    return manifold.project(x), lambda t: tangent_dual(manifold, x, t)[1]


def tangent_dual(manifold: Manifold, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """project(x) and its derivatives along t (K, *x.shape): in closed form where the manifold has one, else by forward differentiation."""
    if isinstance(manifold, HasProjectDual):
        return manifold.project_dual(x, t)
    directions = torch.func.vmap(lambda one: torch.func.jvp(manifold.project, (x,), (one,))[1])(t)
    return manifold.project(x), directions


def random_tangent(manifold: Manifold, x: Tensor, count: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
    r"""`count` random tangent vectors at each x, mutually orthogonal, each with |v|² = n and E[v vᵀ] = tangent projector.

    Because they are orthogonal, `count` = n vectors turn a trace estimate into the exact trace.

    Args:
        manifold: Where x lives.
        x: Points, shape (\*batch, \*event).
        count: Number of vectors, at most the intrinsic dimension n.
        generator: Source of randomness; default the global one of x's device.

    Returns:
        Shape (count, \*batch, \*event).

    Raises:
        ValueError: If count is not within 1 … n.
    """
    n = manifold.dim
    if not 1 <= count <= n:
        raise ValueError(f"random_tangent: {count} orthogonal probes do not exist in dimension {n}; ask for 1 to {n}")
    if count == 1:
        return manifold.random_tangent(x, generator=generator).unsqueeze(0)
    batch = x.shape[: x.ndim - len(manifold.event_shape)]
    gauss = normals((*batch, n, count), x, generator)
    frame = torch.linalg.qr(gauss)[0] * math.sqrt(n)
    # Q of a QR is Haar only up to column signs; the sign does not matter to v vᵀ.
    vectors = manifold.tangent_basis(x).flatten(len(batch), -2) @ frame
    return vectors.movedim(-1, 0).unflatten(-1, manifold.event_shape) if manifold.event_shape else vectors.movedim(-1, 0).squeeze(-1)
