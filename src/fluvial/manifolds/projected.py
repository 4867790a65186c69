"""A manifold that is known by its projection only."""

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from fluvial.manifolds.manifold import Manifold, length, normals


class Projected(Manifold):
    r"""The image of a projection, with the metric of the embedding; subclass it and write ``project``, nothing else.

    Tangent spaces are the images of the projection's derivative, for which it needs a derivative that is right on the manifold, in torch and
    in forward mode too; `from_projection` says what else it must obey, and `fluvial.testing.check_manifold` tries it out.
    There are no geodesics: ``exp``, ``log`` and ``distance`` raise; ``retract(x, v)`` = project(x + v) leaves x with velocity v.

    A class in a module of yours that keeps its arguments can be saved: ``fl.save(flow, path)`` and ``fl.load(path, allow=["my_module"])``.

    Args:
        dim: Intrinsic dimension n.
        event_shape: Shape of one point; a number k for (k,).

    Raises:
        ValueError: If points of this shape have less than `dim` entries, or dim < 1.

    Example:
        >>> class Ring(Projected):
        ...     def __init__(self, radius: float = 2.0) -> None:
        ...         super().__init__(dim=2, event_shape=3)
        ...         self.radius = radius
        ...
        ...     def project(self, x: Tensor) -> Tensor:
        ...         flat = torch.cat([x[..., :2], torch.zeros_like(x[..., 2:])], -1)
        ...         core = self.radius * torch.nn.functional.normalize(flat, dim=-1)
        ...         return core + torch.nn.functional.normalize(x - core, dim=-1)
        >>> ring = Ring()
        >>> ring, ring == Ring(2.0), ring.tangent_basis(ring.project(torch.ones(5, 3))).shape
        (Ring(dim=2), True, torch.Size([5, 3, 2]))
    """

    def __init__(self, dim: int, event_shape: int | tuple[int, ...]) -> None:
        self.dim = operator.index(dim)
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if not 1 <= self.dim <= math.prod(self.event_shape):
            raise ValueError(f"{type(self).__name__}: no image in space of shape {self.event_shape} has dimension {dim}")

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Q Qᵀ u of the tangent basis Q."""
        q = self.tangent_basis(x).flatten(x.ndim - len(self.event_shape), -2)
        flat = u.flatten(u.ndim - len(self.event_shape)).unsqueeze(-1)
        return (q @ (q.transpose(-1, -2) @ flat)).squeeze(-1).unflatten(-1, self.event_shape)

    def tangent_basis(self, x: Tensor) -> Tensor:
        r"""An orthonormal basis of the image of the projection's derivative at x, shape (\*batch, \*event, n)."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        size = math.prod(self.event_shape)
        rows = x.reshape(-1, size)

        def one(point: Tensor) -> Tensor:
            return self.project(point.view(1, *self.event_shape)).reshape(size)

        jacobian = torch.func.vmap(torch.func.jacfwd(one))(rows)
        # The frame itself is chosen without graph: its derivative need not exist, and its derivative's image, which has one, is what counts.
        frame = torch.linalg.svd(jacobian.detach())[0][..., : self.dim]
        return torch.linalg.qr(jacobian @ frame)[0].view(*batch, *self.event_shape, self.dim)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly distributed tangent direction of length √n."""
        axes = tuple(range(-len(self.event_shape), 0))
        gauss = self.to_tangent(x, normals(x.shape, x, generator))
        return gauss * (math.sqrt(self.dim) * torch.rsqrt(gauss.square().sum(axes, keepdim=True)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self} has no geodesics; use retract(x, v) in place of exp")

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self} has no geodesics, so no log; to_tangent(x, y - x) agrees with it to first order")

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        r"""The length of v in the embedding, shape (\*batch,)."""
        return length(v, len(self.event_shape))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self} has no geodesics, so no distance; leave geodesic=False, which takes straight lines")

    def log_volume(self, x: Tensor) -> Tensor:
        r"""0: the metric is that of the embedding. Shape (\*batch,)."""
        return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim})"


class OfFunction(Projected):
    """What `from_projection` makes: the function is held, and so has no written form."""

    unwritable = (
        "its projection is a function, which has no written form; to save the flow, write a subclass of fluvial.manifolds.Projected with the "
        'function as its method project(self, x) in a module of yours, and load with allow=["my_module"]'
    )

    def __init__(self, projection: Callable[[Tensor], Tensor], dim: int, event_shape: int | tuple[int, ...]) -> None:
        super().__init__(dim, event_shape)
        self.projection = projection

    def project(self, x: Tensor) -> Tensor:
        """The function it was made of."""
        return self.projection(x)

    def __repr__(self) -> str:
        return f"from_projection({getattr(self.projection, '__name__', 'projection')}, {self.dim})"


def from_projection(projection: Callable[[Tensor], Tensor], dim: int, *, event_shape: int | tuple[int, ...] | None = None) -> Projected:
    r"""A manifold of your own, given by the function that takes any point of the surrounding space to a point of the manifold.

    The function must leave points of the manifold where they are, take batches, (B, \*event) to (B, \*event), and be differentiable
    by torch, in forward mode too; it need not give the nearest point. What it promises is tried out at once.

    Args:
        projection: The function.
        dim: Intrinsic dimension n of its image.
        event_shape: Shape of one point; default (n + 1,), a hypersurface.

    Returns:
        A manifold for `Flow` and ``flows.free_form``; to save these, write a subclass of `Projected` instead. For a base with a known density
        on it see `fluvial.bases.UniformByProjection`.

    Raises:
        TypeError: If projection is no function.
        ValueError: If the function changes shapes, moves its own images, or its image has another dimension.

    Example:
        >>> ellipsoid = from_projection(lambda x: x / (x / torch.tensor([1.0, 1.0, 2.0])).norm(dim=-1, keepdim=True), 2)
        >>> ellipsoid.tangent_basis(ellipsoid.project(torch.ones(5, 3))).shape
        torch.Size([5, 3, 2])
    """
    if not callable(projection):
        raise TypeError(f"from_projection: expected a function of points, got {type(projection).__name__}")
    dim = operator.index(dim)
    shape = (dim + 1,) if event_shape is None else (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if not 1 <= dim <= math.prod(shape):
        raise ValueError(f"from_projection: no image in space of shape {shape} has dimension {dim}")
    manifold = OfFunction(projection, dim, shape)
    trial = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    given = trial.clone()
    image = manifold.project(given)
    if not torch.equal(given, trial):
        raise ValueError("from_projection: the function writes into its argument; let it return a new tensor, x / n rather than x /= n")
    if not isinstance(image, Tensor) or image.shape != trial.shape:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"from_projection: the function maps points of shape {tuple(trial.shape)} to {got}; it must keep the shape (B, *event)")
    if image.dtype != trial.dtype:
        raise ValueError(f"from_projection: the function makes {image.dtype} of {trial.dtype}; make its constants as torch.tensor(…).to(x)")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("from_projection: the function is not finite at random normal points")
    alone = torch.cat([manifold.project(row.clone()) for row in trial.split(1)])
    if not torch.allclose(alone, image, rtol=1e-3, atol=1e-4):
        raise ValueError("from_projection: the image of a point depends on the others in the batch; reduce over the last axes only, as norm(dim=-1)")
    moved = float((manifold.project(image) - image).abs().max())
    if moved > 1e-3 * max(1.0, float(image.abs().max())):
        raise ValueError(f"from_projection: the function moves its own images by up to {moved:.2g}; a projection leaves them where they are")
    try:
        jacobian = torch.func.vmap(torch.func.jacfwd(lambda p: manifold.project(p.unsqueeze(0)).flatten()))(image).flatten(2)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"from_projection: torch.func cannot differentiate the function ({reason}); use torch throughout, no numpy, no float(…) of a tensor, and "
            "torch.where in place of branches on values"
        ) from error
    ranks = torch.linalg.matrix_rank(jacobian, rtol=1e-3)
    if not bool((ranks == dim).all()):
        raise ValueError(f"from_projection: the image has dimension {int(ranks.max())} where tried, not {dim}")
    return manifold
