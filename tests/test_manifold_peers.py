"""Manifolds against other libraries, against known volumes, and where formulas lose their digits."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus
from fluvial.testing.contract import points_on
from fluvial.testing.quadrature import grid


@pytest.fixture(scope="module")
def geoopt():
    return pytest.importorskip("geoopt", reason="geoopt is not installed")


def theirs(geoopt, manifold):
    return {PoincareBall: geoopt.PoincareBall, Hyperboloid: geoopt.Lorentz, Sphere: geoopt.Sphere}[type(manifold)]().double()


@pytest.mark.parametrize(
    "manifold", [PoincareBall(1), PoincareBall(2), PoincareBall(5), Hyperboloid(2), Hyperboloid(4), Sphere(2), Sphere(4)], ids=repr
)
def test_geodesics_agree_with_geoopt(geoopt, manifold, double):
    peer = theirs(geoopt, manifold)
    x, y = points_on(manifold, 50), points_on(manifold, 50)
    v = 0.7 * manifold.random_tangent(x) / manifold.norm(x, manifold.random_tangent(x)).unsqueeze(-1)
    torch.testing.assert_close(manifold.distance(x, y), peer.dist(x, y), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(manifold.exp(x, v), peer.expmap(x, v), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(manifold.log(x, y), peer.logmap(x, y), rtol=1e-6, atol=1e-8)
    lengths = peer.norm(v) if isinstance(manifold, Hyperboloid) else peer.norm(x, v)
    torch.testing.assert_close(manifold.norm(x, v), lengths.reshape(50), rtol=1e-7, atol=1e-9)


def test_ball_and_hyperboloid_are_related_as_in_geoopt(geoopt, double):
    x = points_on(PoincareBall(3), 20)
    sheet = Hyperboloid.from_ball(x)
    torch.testing.assert_close(geoopt.manifolds.lorentz.math.poincare_to_lorentz(x, k=torch.ones(())), sheet, rtol=1e-5, atol=0)
    torch.testing.assert_close(Hyperboloid.to_ball(sheet), x)


def test_rotations_agree_with_scipy(double):
    known = Rotation.random(200, random_state=0)
    half_turns = Rotation.from_rotvec(np.pi * np.eye(3))
    small = Rotation.from_rotvec(1e-7 * np.eye(3))
    known = Rotation.concatenate([known, half_turns, small, Rotation.identity(1)])
    x = torch.as_tensor(known.as_matrix())
    q = torch.as_tensor(known.as_quat())
    torch.testing.assert_close(SpecialOrthogonal.from_quaternion(q), x)
    torch.testing.assert_close(SpecialOrthogonal.from_quaternion(q.roll(1, -1), scalar_first=True), x)
    torch.testing.assert_close(SpecialOrthogonal.from_rotation_vector(known.as_rotvec()), x)
    same_sign = (SpecialOrthogonal.to_quaternion(x) * q).sum(-1).abs()
    torch.testing.assert_close(same_sign, torch.ones(len(x)))
    turned = Rotation.from_rotvec(SpecialOrthogonal.to_rotation_vector(x).numpy())
    assert (turned * known.inv()).magnitude().max() < 1e-7
    assert SpecialOrthogonal.to_rotation_vector(x).norm(dim=-1).max() < math.pi + 1e-12


def test_rotation_angles_and_geodesics_agree_with_scipy(double):
    a, b = (Rotation.random(100, random_state=seed) for seed in (1, 2))
    x, y = (torch.as_tensor(r.as_matrix()) for r in (a, b))
    space = SpecialOrthogonal(3)
    torch.testing.assert_close(space.distance(x, y), torch.as_tensor((a.inv() * b).magnitude()))
    half = Rotation.from_matrix(space.exp(x, 0.5 * space.log(x, y)).numpy())
    expected = a * Rotation.from_rotvec(0.5 * (a.inv() * b).as_rotvec())
    assert (half.inv() * expected).magnitude().max() < 1e-7


def test_projection_onto_rotations_solves_wahbas_problem(double):
    space = SpecialOrthogonal(3)
    for k in range(5):
        arrows = torch.randn(6, 3)
        x = space.random_uniform(1)[0]
        seen = arrows @ x.T + 0.1 * torch.randn(6, 3)
        known, _ = Rotation.align_vectors(seen.numpy(), arrows.numpy())
        torch.testing.assert_close(space.project(seen.T @ arrows), torch.as_tensor(known.as_matrix()), msg=f"case {k}")


def test_volume_of_the_rotations_through_quaternions(double):
    q, weights = grid(Sphere(3), 2000)
    space, cover = SpecialOrthogonal(3), Sphere(3)

    def rotation(p):
        return space.from_quaternion(p)

    basis = cover.tangent_basis(q)
    moved = torch.stack([torch.func.jvp(rotation, (q,), (basis[..., k].contiguous(),))[1] for k in range(3)], -1).flatten(1, 2)
    x = rotation(q)
    frame = space.tangent_basis(x).flatten(1, 2)
    stretch = torch.linalg.det(frame.transpose(1, 2) @ moved).abs() * space.log_volume(x).exp()
    # Two quaternions for every rotation.
    assert float((weights * stretch).sum() / 2) == pytest.approx(8 * math.pi**2, rel=1e-9)
    assert space.total_volume == pytest.approx(8 * math.pi**2, rel=1e-12)


@pytest.mark.parametrize("radius", [0.1, 1.0, 4.0])
def test_area_of_hyperbolic_discs(radius, double):
    nodes, gauss = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(200))
    expected = 4 * math.pi * math.sinh(radius / 2) ** 2

    def over_disc(edge, density):
        r = edge * (nodes + 1) / 2
        return float((2 * math.pi * r * density(torch.stack([r, torch.zeros_like(r)], -1)) * gauss * edge / 2).sum())

    assert over_disc(math.tanh(radius / 2), lambda x: PoincareBall(2).log_volume(x).exp()) == pytest.approx(expected, rel=1e-8)

    def surface(s):
        x = Hyperboloid(2).project(torch.cat([torch.zeros_like(s[:, :1]), s], -1))
        slope = s.square().sum(-1) / x[:, 0].square()  # of the time coordinate over the plane, squared
        return (1 + slope).sqrt() * Hyperboloid(2).log_volume(x).exp()

    assert over_disc(math.sinh(radius), surface) == pytest.approx(expected, rel=1e-8)


SPACES = [
    Euclidean(2),
    Sphere(1),
    Sphere(2),
    Sphere(4),
    Torus(2),
    SpecialOrthogonal(2),
    SpecialOrthogonal(3),
    SpecialOrthogonal(4),
    PoincareBall(1),
    PoincareBall(2),
    Hyperboloid(1),
    Hyperboloid(3),
    Product(SpecialOrthogonal(3), Euclidean(3)),
    Product(Sphere(2), PoincareBall(2)),
]


def hard_pairs(manifold: Manifold, x: torch.Tensor):
    """Pairs of points that coincide, nearly do, are opposite, or far out."""
    yield "the same point", x, x
    for step in (1e-7, 1e-4):
        yield f"{step} apart", x, manifold.project(x + step * torch.randn_like(x))
    if isinstance(manifold, Sphere | Torus):
        yield "opposite", x, -x
        yield "nearly opposite", x, manifold.project(-x + 1e-6 * torch.randn_like(x))
    if isinstance(manifold, SpecialOrthogonal):
        turn = torch.ones(manifold.n, dtype=x.dtype)
        turn[:2] = -1
        yield "a half turn apart", x, x * turn
        yield "nearly a half turn apart", x, manifold.project(x * turn + 1e-6 * torch.randn_like(x))
    if isinstance(manifold, PoincareBall):
        edge = torch.nn.functional.normalize(torch.randn_like(x), dim=-1)
        yield "at the edge", x, manifold.project(edge)
        yield "opposite at the edge", manifold.project(edge), manifold.project(-edge)
        yield "on the edge, not projected", manifold.project(x), edge
        yield "both on the edge", edge, edge
    if isinstance(manifold, Hyperboloid):
        for radius in (5.0, 20.0):
            out = manifold.project(x * math.exp(radius))
            yield f"{radius} away", x, out
            yield f"twice {radius} away", out, manifold.project(-out)
            yield f"the same point {radius} out", out, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("manifold", SPACES, ids=repr)
def test_values_and_gradients_are_finite_between_hard_pairs(manifold, dtype):
    x = manifold.project(points_on(manifold, 6).to(dtype))
    functions = {"distance": manifold.distance, "log": manifold.log, "norm": lambda p, q: manifold.norm(p, manifold.to_tangent(p, q - p))}
    if hasattr(manifold, "wraps"):
        functions["log_wrapped_normal"] = lambda p, q: manifold.log_wrapped_normal(p, q, 0.7, windings=2)
    for case, a, b in hard_pairs(manifold, x):
        for name, fn in functions.items():
            p, q = a.clone().requires_grad_(), b.clone().requires_grad_()
            value = fn(p, q)
            slopes = torch.autograd.grad(value.sum(), (p, q), allow_unused=True)
            assert torch.isfinite(value).all(), f"{name}, {case}: value"
            assert all(s is None or torch.isfinite(s).all() for s in slopes), f"{name}, {case}: gradient"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("manifold", SPACES, ids=repr)
def test_projection_from_far_off_is_on_the_manifold_with_a_finite_gradient(manifold, dtype):
    x = manifold.project(points_on(manifold, 6).to(dtype))
    for scale in (0.0, 1e-8, 1e-3, 1.0, 1e3, 1e6, 1e10):
        for point in (scale * x, scale * torch.randn_like(x)):
            u = point.clone().requires_grad_()
            y = manifold.project(u)
            (slope,) = torch.autograd.grad(y.sum(), u)
            assert torch.isfinite(y).all(), f"scale {scale}: value"
            assert torch.isfinite(slope).all(), f"scale {scale}: gradient"
            if scale > 0:
                torch.testing.assert_close(manifold.project(y), y, rtol=1e-4, atol=1e-5, msg=f"scale {scale}: not on the manifold")
