"""The contract of a manifold."""

import copy
import math

import torch
from torch import Tensor

from fluvial.config import build, describe
from fluvial.manifolds import Manifold, has_uniform, random_tangent, tangent_dual
from fluvial.testing.contract import STANDARD_ERRORS, check_seeding, close, contract, points_on, refuses
from fluvial.testing.quadrature import check_expectations, integrate


@contract
def check_manifold(manifold: Manifold, *, draws: int = 20_000) -> None:
    r"""The contract of a manifold.

    Projection is idempotent, tangent bases are orthonormal and tangent, random tangents have E[v vᵀ] = projector and \|v\|² = n, exp and log
    are inverse, distances are lengths of logs and have finite gradients at coincident points, the metric is the second derivative of squared
    distances and the square of its root determinant the volume, uniform points are uniform. A manifold may refuse geodesics with
    NotImplementedError.

    Args:
        manifold: What to check.
        draws: How many random tangents the Monte Carlo estimate of E[v vᵀ] takes; it may miss by 5 standard errors.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.manifolds import Sphere
        >>> check_manifold(Sphere(2), draws=2000)
    """
    n = manifold.dim
    x = points_on(manifold, 6)
    assert manifold.project(x).dtype == x.dtype, "project changes the dtype"
    assert manifold.project(x.float()).dtype == torch.float32, "project changes the dtype of float32 points"
    close(manifold.project(x), x, text="project moves points of the manifold")
    ambient = x + 0.3 * torch.randn_like(x)
    t = torch.randn(2, *x.shape, dtype=x.dtype)
    y, pushed = tangent_dual(manifold, ambient, t)
    close(y, manifold.project(ambient), text="project_dual has another value than project")
    for k in range(2):
        derivative = torch.func.jvp(manifold.project, (ambient,), (t[k],))[1]
        close(pushed[k], derivative, text="project_dual has another derivative than project")
    close(torch.func.vmap(manifold.project)(ambient), y, text="project is not vmap-safe")

    basis = manifold.tangent_basis(x)
    assert basis.shape == (*x.shape, n), f"tangent_basis has shape {tuple(basis.shape)}, expected {(*x.shape, n)}"
    flat = basis.flatten(1, -2)
    close(flat.transpose(1, 2) @ flat, torch.eye(n, dtype=x.dtype).expand(len(x), n, n), text="tangent_basis is not orthonormal")
    for k in range(n):
        along = torch.func.jvp(manifold.project, (x,), (basis[..., k].contiguous(),))[1]
        close(along, basis[..., k], text="tangent_basis is not tangent: project moves its vectors")
    u = torch.randn_like(x)
    projected = (flat @ (flat.transpose(1, 2) @ u.flatten(1).unsqueeze(-1))).view_as(x)
    close(manifold.to_tangent(x, u), projected, text="to_tangent is not the projection onto the span of tangent_basis")
    close(torch.func.vmap(manifold.tangent_basis)(x), basis, text="tangent_basis is not vmap-safe")

    _check_random_tangents(manifold, x, flat, draws)
    _check_metric(manifold, x, flat)
    if _has_geodesics(manifold, x):
        _check_geodesics(manifold, x)
    else:
        v = 1e-4 * manifold.random_tangent(x)
        close(manifold.retract(x, v), x + v, rtol=0, atol=1e-6, text="retract does not agree with x + v to first order")
    if has_uniform(manifold):
        total, error = integrate(manifold, lambda p: p.new_ones(len(p)))
        assert abs(total - manifold.total_volume) <= error + 1e-8 * total, f"total_volume is {manifold.total_volume}, quadrature gives {total}"
        check_seeding(lambda g: manifold.random_uniform(5, generator=g, dtype=torch.float64), "random_uniform")
        check_expectations(manifold, points_on(manifold, 20_000), lambda p: -math.log(total) * p.new_ones(len(p)), "random_uniform")
    assert manifold == copy.deepcopy(manifold), "equality: a copy is not equal"
    assert hash(manifold) == hash(copy.deepcopy(manifold)), "hash: a copy has another hash"
    if not hasattr(manifold, "unwritable"):
        assert build(describe(manifold), allow=[type(manifold).__module__]) == manifold, "describe and build do not give the manifold back"


def _check_random_tangents(manifold: Manifold, x: Tensor, flat: Tensor, draws: int) -> None:
    n = manifold.dim
    v = manifold.random_tangent(x)
    assert v.shape == x.shape, f"random_tangent has shape {tuple(v.shape)}, expected {tuple(x.shape)}"
    close(manifold.to_tangent(x, v), v, text="random_tangent is not tangent")
    close(v.flatten(1).square().sum(-1), torch.full((len(x),), float(n), dtype=x.dtype), text="random_tangent has not |v|² = n")
    many = manifold.random_tangent(x[:1].expand(draws, *manifold.event_shape)).flatten(1)
    projector = flat[0] @ flat[0].T
    outer = many.unsqueeze(-1) * many.unsqueeze(-2)
    error = outer.std(0) / math.sqrt(draws)
    excess = (outer.mean(0) - projector).abs() - STANDARD_ERRORS * error - 1e-9
    assert bool((excess <= 0).all()), f"random_tangent: E[v vᵀ] misses the tangent projector by {excess.max():.3g} beyond {STANDARD_ERRORS} s.e."
    frame = random_tangent(manifold, x, n).flatten(2).movedim(0, -1)
    exact = n * flat @ flat.transpose(1, 2)
    close(frame @ frame.transpose(1, 2), exact, text="random_tangent(count=n): Σ v vᵀ is not n times the projector")
    check_seeding(lambda g: random_tangent(manifold, x, 1, generator=g), "random_tangent")
    for count in (0, n + 1):
        assert refuses(lambda: random_tangent(manifold, x, count)), f"random_tangent accepts count={count} in dimension {n}"  # noqa: B023


def _has_geodesics(manifold: Manifold, x: Tensor) -> bool:
    try:
        manifold.exp(x, torch.zeros_like(x))
    except NotImplementedError:
        for refused in (manifold.log, manifold.distance):
            try:
                refused(x, x)
            except NotImplementedError:
                continue
            raise AssertionError(f"exp is refused, but {refused.__name__} is not") from None
        return False
    return True


def _check_metric(manifold: Manifold, x: Tensor, flat: Tensor) -> None:
    """½ log|G| of the metric that norm defines, by polarisation in the tangent basis."""
    n, shape = manifold.dim, x.shape
    volume = manifold.log_volume(x.view(2, 3, *manifold.event_shape))
    assert volume.shape == (2, 3), f"log_volume has shape {tuple(volume.shape)} for points of batch (2, 3)"
    columns = [flat[..., k].view(shape) for k in range(n)]
    squares = torch.stack(
        [torch.stack([manifold.norm(x, a + b).square() - manifold.norm(x, a - b).square() for a in columns], -1) for b in columns], -1
    )
    close(manifold.log_volume(x), 0.5 * torch.linalg.slogdet(squares / 4)[1], text="log_volume is not ½ log|G| of the metric that norm measures with")


def _check_geodesics(manifold: Manifold, x: Tensor) -> None:
    v = 0.4 * manifold.random_tangent(x) / math.sqrt(manifold.dim)
    y = manifold.exp(x, v)
    close(manifold.project(y), y, text="exp leaves the manifold")
    close(manifold.exp(x, torch.zeros_like(v)), x, text="exp(x, 0) is not x")
    start = torch.func.jvp(lambda t: manifold.exp(x, t * v), (torch.zeros((), dtype=x.dtype),), (torch.ones((), dtype=x.dtype),))[1]
    close(start, v, text="exp does not leave x with velocity v")
    close(manifold.log(x, y), v, rtol=1e-6, atol=1e-9, text="log(x, exp(x, v)) is not v")
    close(manifold.distance(x, y), manifold.norm(x, v), rtol=1e-6, atol=1e-9, text="exp(x, v) is not |v| away from x")
    other = points_on(manifold, len(x))
    close(manifold.exp(x, manifold.log(x, other)), other, rtol=1e-6, atol=1e-7, text="exp(x, log(x, y)) is not y")
    close(manifold.distance(x, other), manifold.distance(other, x), text="distance is not symmetric")
    assert manifold.distance(x, other).shape == (len(x),), "distance has not the batch shape"
    close(manifold.distance(x, other), manifold.norm(x, manifold.log(x, other)), rtol=1e-6, atol=1e-8, text="distance is not |log|")
    half = manifold.exp(x, manifold.log(x, other) / 2)
    close(2 * manifold.distance(half, other), manifold.distance(x, other), rtol=1e-6, atol=1e-8, text="the middle of a geodesic is not half way")
    here = x.clone().requires_grad_()
    for name, value in (("distance", manifold.distance(here, x)), ("log", manifold.log(here, x)), ("distance²", manifold.distance(here, x).square())):
        close(value, torch.zeros_like(value), rtol=0, atol=1e-7, text=f"{name} of coincident points is not 0")
        (gradient,) = torch.autograd.grad(value.sum(), here)
        assert bool(torch.isfinite(gradient).all()), f"{name} has a gradient that is not finite at coincident points"
