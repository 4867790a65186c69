"""Bases with densities per Riemannian volume: each keeps the contract, and agrees with formulas and integrals it was not written from."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from scipy.integrate import dblquad, quad
from torch import nn

import fluvial
from fluvial import flows
from fluvial.bases import Independent, MatrixFisher, Normal, UniformByProjection, VonMises, WrappedNormal
from fluvial.bases.matrix_fisher import log_scaled_normaliser
from fluvial.bases.uniform_by_projection import _check_offsets
from fluvial.bases.von_mises import _sample_angle
from fluvial.manifolds import (
    Euclidean,
    Hyperboloid,
    PoincareBall,
    Product,
    Projected,
    SpecialOrthogonal,
    Sphere,
    Torus,
    from_projection,
)
from fluvial.manifolds.projected import OfFunction
from fluvial.testing import check_base, integrate
from fluvial.testing.quadrature import grid

SKEWED = [[5.0, 1.0, 0.0], [-1.0, 2.0, 0.5], [0.3, 0.0, -1.5]]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


AXES = (1.0, 1.5, 2.0)


def radial(x):
    """The ellipsoid with the half-axes AXES, along rays."""
    return x / (x / torch.tensor(AXES, dtype=x.dtype)).norm(dim=-1, keepdim=True)


def ring(x):
    """The nearest point of a torus of revolution with radii 1 and 0.4."""
    across = x[..., :2].norm(dim=-1, keepdim=True)
    core = torch.cat([x[..., :2] / across, torch.zeros_like(across)], -1)
    return core + 0.4 * unit(x - core)


def sheared_circle(x):
    """A circle in space, by a projection with oblique and curved fibres."""
    plane = torch.cat([x[..., :1] + 0.3 * x[..., 2:], x[..., 1:2] + 0.2 * x[..., 2:].square()], -1)
    return torch.cat([unit(plane), torch.zeros_like(x[..., 2:])], -1)


class Ellipsoid(Projected):
    """A manifold of the user's own."""

    def __init__(self):
        super().__init__(2, 3)

    def project(self, x):
        return radial(x)


BASES = {
    "wrapped normal in the plane": lambda: WrappedNormal(Euclidean(2), scale=0.7),
    "on the circle": lambda: WrappedNormal(Sphere(1), scale=1.5),
    "on the sphere": lambda: WrappedNormal(Sphere(2), scale=0.6),
    "wide on the sphere": lambda: WrappedNormal(Sphere(2), scale=1.5),
    "mixture on the sphere": lambda: WrappedNormal(Sphere(2), scale=[0.3, 0.5, 0.4], components=3, weights=[1, 2, 3], learnable=True),
    "on the three-sphere": lambda: WrappedNormal(Sphere(3), scale=0.5, learnable=True),
    "on the torus": lambda: WrappedNormal(Torus(2), scale=2.5),
    "mixture on the torus": lambda: WrappedNormal(Torus(2), scale=0.5, components=4, learnable=True),
    "on rotations of the plane": lambda: WrappedNormal(SpecialOrthogonal(2), scale=2.0),
    "on rotations": lambda: WrappedNormal(SpecialOrthogonal(3), scale=0.6),
    "mixture on rotations": lambda: WrappedNormal(SpecialOrthogonal(3), scale=0.4, components=3, learnable=True),
    "on the hyperbolic line": lambda: WrappedNormal(PoincareBall(1), scale=0.5),
    "on the disc": lambda: WrappedNormal(PoincareBall(2), scale=1.2),
    "mixture on the disc": lambda: WrappedNormal(PoincareBall(2), scale=[0.3, 0.5], means=[[-0.6, 0.6], [0.2, 0.0]], learnable=True),
    "on the hyperboloid": lambda: WrappedNormal(Hyperboloid(2), scale=0.8),
    "mixture on the hyperboloid": lambda: WrappedNormal(Hyperboloid(2), scale=0.5, components=3, learnable=True),
    "on poses": lambda: WrappedNormal(Product(SpecialOrthogonal(3), Euclidean(3)), scale=0.5),
    "mixture on a product": lambda: WrappedNormal(Product(Sphere(2), Torus(1)), scale=0.7, components=2, learnable=True),
    "independent": lambda: Independent([WrappedNormal(SpecialOrthogonal(3), scale=0.5), Normal(1)]),
    "uniform matrix Fisher": lambda: MatrixFisher(0.0),
    "isotropic matrix Fisher": lambda: MatrixFisher(2.0, learnable=True),
    "matrix Fisher": lambda: MatrixFisher(SKEWED, learnable=True),
    "matrix Fisher of negative determinant": lambda: MatrixFisher(-1.0),
    "matrix Fisher along a great circle": lambda: MatrixFisher([[4.0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    "von Mises on the circle": lambda: VonMises(Torus(1)),
    "von Mises mixture": lambda: VonMises(Torus(2), components=5),
    "narrow fixed von Mises": lambda: VonMises(Torus(2), components=2, concentration=50.0, learnable=False),
    "uniform on an ellipsoid": lambda: UniformByProjection(Ellipsoid(), low=-2.6, high=2.6, reach=0.4, points=5000),
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
def test_contract(make):
    check_base(make)


def test_contract_of_weights_that_depend_on_a_condition():
    def make():
        torch.manual_seed(0)
        return WrappedNormal(SpecialOrthogonal(3), scale=0.4, components=3, learnable=True, network=nn.Linear(2, 3))

    check_base(make, condition=lambda n: torch.ones(n, 2, dtype=torch.float64))


def test_weights_follow_the_condition(double):
    base = WrappedNormal(Torus(1), scale=0.1, components=3, network=nn.Linear(2, 3), seed=2)
    c = 2 * torch.randn(4, 2)
    expected = (base.logits + base.network(c)).softmax(-1)
    means = base.manifold.project(base.centres)
    for k in range(4):
        mixture = WrappedNormal(Torus(1), scale=0.1, means=means.detach(), weights=expected[k].tolist())
        x = mixture.sample(50)
        torch.testing.assert_close(base.log_prob(x, c[k].expand(50, 2)), mixture.log_prob(x))
    nearest = base.manifold.distance(base.sample(20_000, c).unsqueeze(2), means).argmin(-1)
    frequency = torch.stack([(nearest == k).double().mean(0) for k in range(3)], -1)
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / 20_000).sqrt() + 1e-3).all()
    assert not base.has_rsample
    with pytest.raises(ValueError, match="depend on a condition"):
        base.log_prob(x)
    with pytest.raises(ValueError, match="there is but one"):
        WrappedNormal(Torus(1), network=nn.Linear(2, 1))


def at_angles(manifold, angles):
    """Points at given distances from the origin, along one geodesic."""
    x = manifold.origin(dtype=torch.float64)
    a = torch.zeros(len(angles), manifold.dim, dtype=torch.float64)
    a[:, 0] = torch.as_tensor(angles)
    return manifold.exp(x.expand(len(a), *x.shape), manifold.isometry(x.expand(len(a), *x.shape), a))


SHELLS = {  # content of the sphere of geodesic radius r
    "circle": (Sphere(1), lambda r: 2.0),
    "sphere": (Sphere(2), lambda r: 2 * math.pi * math.sin(r)),
    "four-sphere": (Sphere(4), lambda r: 2 * math.pi**2 * math.sin(r) ** 3),
    "rotations": (SpecialOrthogonal(3), lambda r: 8 * math.pi * (1 - math.cos(r))),
    "hyperbolic space": (Hyperboloid(3), lambda r: 4 * math.pi * math.sinh(r) ** 2),
    "ball of four dimensions": (PoincareBall(4), lambda r: 2 * math.pi**2 * math.sinh(r) ** 3),
}


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.5, 3.0])
@pytest.mark.parametrize(("manifold", "shell"), SHELLS.values(), ids=SHELLS.keys())
def test_wrapped_normal_integrates_to_one_over_shells(manifold, shell, scale):
    scale = scale if manifold.wraps else min(scale, 0.8)  # the mass of a wide one lies beyond where points of the ball are resolved
    base = WrappedNormal(manifold, scale=scale).double()
    end = math.pi if manifold.wraps else 10 * scale + (manifold.dim - 1) * scale**2
    nodes, weights = np.polynomial.legendre.leggauss(400)
    radii = (nodes + 1) * end / 2
    density = base.log_prob(at_angles(manifold, radii)).detach().exp().numpy()
    total = float((weights * end / 2 * density * np.array([shell(r) for r in radii])).sum())
    assert total == pytest.approx(1, abs=2e-6)


def test_isometry_is_isometric_everywhere(double):
    for manifold in (Euclidean(3), Sphere(3), Torus(3), SpecialOrthogonal(3), PoincareBall(3), Hyperboloid(3), Product(Hyperboloid(2), Sphere(1))):
        spread = WrappedNormal(manifold, scale=1.2, components=2).sample(20)
        a = torch.randn(20, manifold.dim)
        v = manifold.isometry(spread, a)
        torch.testing.assert_close(manifold.to_tangent(spread, v), v)
        torch.testing.assert_close(manifold.norm(spread, v), a.norm(dim=-1))


def test_both_models_of_hyperbolic_space_give_one_density(double):
    means = torch.tensor([[0.5, -0.3, 0.2], [-0.8, 0.0, 0.1]])
    ball = WrappedNormal(PoincareBall(3), scale=[0.4, 0.9], means=means)
    sheet = WrappedNormal(Hyperboloid(3), scale=[0.4, 0.9], means=Hyperboloid.from_ball(means))
    z = ball.sample(50)
    torch.testing.assert_close(sheet.log_prob(Hyperboloid.from_ball(z)), ball.log_prob(z))


def test_wide_wrapped_normals_become_uniform(double):
    for manifold, scale in ((Torus(3), 6.0), (Sphere(1), 6.0), (SpecialOrthogonal(2), 6.0)):
        log_p = WrappedNormal(manifold, scale=scale).log_prob(manifold.random_uniform(20))
        torch.testing.assert_close(log_p, torch.full((20,), -math.log(manifold.total_volume)), rtol=0, atol=1e-6)


def test_wrapped_normal_on_the_circle_against_its_fourier_series(double):
    angles = torch.linspace(-3.1, 3.1, 9)
    found = WrappedNormal(Torus(1), scale=1.3).log_prob(Torus.from_angles(angles.unsqueeze(-1)))
    waves = torch.arange(1, 30)
    series = 1 + 2 * (torch.exp(-0.5 * (1.3 * waves) ** 2) * torch.cos(waves * angles.unsqueeze(-1))).sum(-1)
    torch.testing.assert_close(found, torch.log(series / (2 * math.pi)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("manifold", [Sphere(1), Sphere(2), Sphere(5), Torus(2), SpecialOrthogonal(2), SpecialOrthogonal(3)], ids=repr)
def test_wrapped_density_is_finite_at_the_mean_and_opposite_to_it(manifold, scale, dtype):
    base = WrappedNormal(manifold, scale=scale, learnable=True).to(dtype)
    x = manifold.origin(dtype=dtype)
    half_turn = torch.eye(3, dtype=dtype) - 2 * torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=dtype))
    opposite = half_turn if manifold == SpecialOrthogonal(3) else -x
    z = torch.stack([x, opposite, manifold.project(x + 1e-5), manifold.project(opposite + 1e-5)]).requires_grad_()
    log_p = base.log_prob(z)
    found = torch.autograd.grad(log_p.sum(), [z, base.centres, base.log_scales])
    assert torch.isfinite(log_p).all()
    assert all(torch.isfinite(gradient).all() for gradient in found)


def test_a_learnable_scale_that_grows_keeps_the_density_normalised(double):
    base = WrappedNormal(Torus(1), scale=0.7, learnable=True)
    with torch.no_grad():
        base.log_scales.fill_(5.0)
    assert integrate(Torus(1), lambda p: base.log_prob(p).exp().detach())[0] == pytest.approx(1, abs=1e-8)


def test_draws_of_one_learnable_component_follow_its_parameters(double):
    base = WrappedNormal(Hyperboloid(2), scale=0.5, learnable=True)
    far = base.manifold.distance(base.manifold.origin(), base.sample(500)).mean()
    slope = torch.autograd.grad(far, base.log_scales)[0].item()
    assert slope == pytest.approx(far.item(), rel=0.1)  # the mean distance is proportional to σ while it is small
    assert base.has_rsample
    mixture = WrappedNormal(Hyperboloid(2), components=2, learnable=True)
    assert not mixture.has_rsample
    assert not mixture.sample(3).requires_grad


def test_given_means_are_kept_and_checked():
    base = WrappedNormal(Sphere(2), means=np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]), scale=0.2)
    assert base.components == 2
    assert base.means == ((0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
    assert WrappedNormal(SpecialOrthogonal(3), means=torch.eye(3)).components == 1
    assert WrappedNormal(PoincareBall(2), components=4).centres.norm(dim=-1).max() < 1
    for means, message in (([1.0, 2.0], "shape"), ([[0.0, 0.0, 2.0]], r"means\[0\] is not a point"), ([[0.0, 0.0, math.nan]], "not a point")):
        with pytest.raises(ValueError, match=message):
            WrappedNormal(Sphere(2), means=means)


def test_refusals_of_the_wrapped_normal():
    mesh_like = from_projection(unit, 2)
    with pytest.raises(TypeError, match="UniformByProjection"):
        WrappedNormal(mesh_like)
    with pytest.raises(TypeError, match="UniformOn"):
        WrappedNormal(SpecialOrthogonal(4))
    with pytest.raises(TypeError, match="no wrapped normal"):
        WrappedNormal(Product(Euclidean(1), SpecialOrthogonal(5)))
    with pytest.raises(TypeError, match="n = 2 and 3"):
        SpecialOrthogonal(4).log_wrapped_normal(torch.eye(4), torch.eye(4), 1.0)
    for kwargs, message in (
        ({"scale": 0.0}, "positive"),
        ({"scale": [1.0, 2.0]}, "1 components"),
        ({"scale": 1000.0}, "wind"),
        ({"components": 0}, "components"),
        ({"components": 2, "weights": [1.0]}, "weights"),
        ({"components": 2, "weights": [1.0, -1.0]}, "positive"),
        ({"means": [[0.0, 0.0, 1.0]], "components": 2}, "do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            WrappedNormal(Sphere(2), **kwargs)
    WrappedNormal(Euclidean(2), scale=1000.0)


def test_free_form_flow_in_hyperbolic_space_has_one_and_is_saved_with_it(tmp_path):
    flow = flows.free_form(manifold=PoincareBall(2), width=8, blocks=1)
    assert isinstance(flow.base, WrappedNormal)
    fluvial.save(flow, tmp_path / "flow.safetensors")
    z = torch.tensor([[0.1, 0.2]])
    assert torch.equal(fluvial.load(tmp_path / "flow.safetensors").base.log_prob(z), flow.base.log_prob(z))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 10.0, 100.0, 1e4])
def test_isotropic_matrix_fisher_normaliser_against_bessel_functions(kappa):
    s = torch.full((3,), kappa, dtype=torch.float64)
    expected = math.log(scipy.special.ive(0, 2 * kappa) - scipy.special.ive(1, 2 * kappa))
    assert log_scaled_normaliser(s).item() == pytest.approx(expected, abs=1e-10)
    assert log_scaled_normaliser(s.float()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("s", [(0.0, 0.0, 0.0), (1.0, 0.5, -0.2), (3.0, 2.0, -2.0), (20.0, 0.0, 0.0), (8.0, 8.0, -8.0), (30.0, 20.0, 10.0)])
def test_matrix_fisher_normaliser_against_quadrature_over_quaternions(s):
    s = torch.tensor(s, dtype=torch.float64)
    q, weights = grid(Sphere(3), 500_000)
    trace = (SpecialOrthogonal.from_quaternion(q).diagonal(dim1=-2, dim2=-1) * s).sum(-1)
    expected = ((weights * torch.exp(trace - s.sum())).sum() / (2 * math.pi**2)).log()
    torch.testing.assert_close(log_scaled_normaliser(s), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("s", [(100.0, 60.0, 30.0), (500.0, 100.0, -60.0)])
def test_strong_matrix_fisher_normaliser_against_quadrature_about_the_mode(s):
    a = 2 * torch.tensor([s[1] + s[2], s[0] + s[2], s[0] + s[1]], dtype=torch.float64)
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(60))
    reach = (7 * torch.rsqrt(2 * a)).clamp_max(1.0)
    v = torch.cartesian_prod(*(nodes * r for r in reach))
    w = torch.cartesian_prod(*(weights * r for r in reach)).prod(-1)
    inside = v.square().sum(-1) < 1
    mass = torch.exp(-(a * v.square()).sum(-1)) / (1 - v.square().sum(-1)).clamp_min(1e-9).sqrt()
    expected = ((w * mass)[inside].sum() / math.pi**2).log()  # both signs of the quaternion, over 2π²
    torch.testing.assert_close(log_scaled_normaliser(torch.tensor(s, dtype=torch.float64)), expected, rtol=0, atol=1e-7)


def test_matrix_fisher_normaliser_has_the_right_slope(double):
    s = torch.tensor([[4.0, 2.0, -1.0], [80.0, 80.0, 80.0]], requires_grad=True)
    assert torch.autograd.gradcheck(log_scaled_normaliser, (s,), rtol=1e-6)


@pytest.mark.parametrize("f", [2.0, -1.5, SKEWED, [[100.0, 0, 0], [0, 90.0, 0], [0, 0, -80.0]], [[3.0, 0, 0], [0, 0, 0], [0, 0, 0]]], ids=str)
def test_matrix_fisher_mean_is_the_derivative_of_its_normaliser(f, double):
    base = MatrixFisher(f, learnable=True)
    samples = base.sample(40_000)
    # ∂ log p/∂F = R − E[R].
    (slope,) = torch.autograd.grad(base.log_prob(samples).mean(), base.matrix)
    error = samples.std(0) / 200
    assert bool((slope.abs() < 5 * error + 1e-9).all()), slope


def test_matrix_fisher_mode_and_spread():
    base = MatrixFisher(torch.tensor(SKEWED) * 200)
    z = base.sample(20_000)
    assert (base.log_prob(base.mode) >= base.log_prob(z)).all()
    turns = SpecialOrthogonal.to_rotation_vector(z @ base.mode.T)
    u, s, vh = torch.linalg.svd(base.matrix)
    sign = torch.linalg.det(u @ vh)
    s = s * torch.stack([torch.ones(()), torch.ones(()), sign])
    variance = (turns @ u).var(0)
    expected = 1 / torch.stack([s[1] + s[2], s[0] + s[2], s[0] + s[1]])
    torch.testing.assert_close(variance, expected, rtol=0.06, atol=0)


def test_matrix_fisher_is_finite_at_extremes():
    for scale in (1e-20, 1.0, 1e3, 1e6):
        base = MatrixFisher(torch.tensor(SKEWED) * scale, learnable=True)
        z = torch.cat([base.sample(5), SpecialOrthogonal(3).random_uniform(5)])
        log_p = base.log_prob(z)
        (slope,) = torch.autograd.grad(log_p.sum(), base.matrix)
        assert torch.isfinite(log_p).all()
        assert torch.isfinite(slope).all()
    for f in ([1.0, 2.0], math.inf, [[1.0]]):
        with pytest.raises(ValueError, match="3 × 3"):
            MatrixFisher(f)


@pytest.mark.parametrize("kappa", [1e-3, 0.8, 30.0, 1e4])
def test_von_mises_against_scipy(kappa, double):
    base = VonMises(Torus(2), concentration=kappa, learnable=False)
    mean = Torus.to_angles(base.manifold.project(base.means))[0].numpy()
    angles = mean + np.random.default_rng(0).vonmises(0, kappa, (50, 2))
    expected = scipy.stats.vonmises.logpdf(angles, kappa, loc=mean).sum(-1)
    found = base.log_prob(Torus.from_angles(torch.as_tensor(angles)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    draws = Torus.to_angles(base.sample(5000)).numpy()
    assert min(scipy.stats.kstest((draws[:, k] - mean[k] + 3 * np.pi) % (2 * np.pi) - np.pi, "vonmises", args=(kappa,)).pvalue for k in (0, 1)) > 1e-4


def test_narrow_von_mises_draws_keep_their_spread_in_single_precision():
    turns = _sample_angle(torch.full((20_000,), 1e8), None)
    assert turns.std().item() == pytest.approx(1e-4, rel=0.03)
    assert len(turns.abs().unique()) > 15_000


def test_von_mises_refusals_and_extremes():
    with pytest.raises(TypeError, match="must be a Torus"):
        VonMises(Sphere(2))
    with pytest.raises(ValueError, match="positive"):
        VonMises(Torus(1), concentration=-1.0)
    base = VonMises(Torus(2), concentration=1e6)
    z = torch.cat([base.manifold.project(base.means), -base.manifold.project(base.means)])
    log_p = base.log_prob(z)
    found = torch.autograd.grad(log_p.sum(), [p for p in base.parameters() if p.requires_grad])
    assert torch.isfinite(log_p).all()
    assert all(torch.isfinite(g).all() for g in found)
    assert base.sample(0).shape == (0, 2, 2)


def over_ellipsoid(fn):
    """∫ fn(x, y, z) dA over the ellipsoid."""
    a, b, c = AXES

    def integrand(t, p):
        n = (math.sin(t) * math.cos(p), math.sin(t) * math.sin(p), math.cos(t))
        area = math.sin(t) * math.hypot(b * c * n[0], a * c * n[1], a * b * n[2])
        return area * fn(a * n[0], b * n[1], c * n[2])

    return dblquad(integrand, 0, 2 * math.pi, 0, math.pi, epsabs=1e-8)[0]


VOLUMES = {
    "sphere": (lambda: from_projection(unit, 2), {"low": -1.6, "high": 1.6, "reach": 0.5}, lambda: 4 * math.pi),
    "ellipsoid": (
        lambda: from_projection(radial, 2),
        {"low": (-1.6, -2.1, -2.6), "high": (1.6, 2.1, 2.6), "reach": 0.5},
        lambda: over_ellipsoid(lambda x, y, z: 1),
    ),
    "ring": (lambda: from_projection(ring, 2), {"low": (-2, -2, -0.8), "high": (2, 2, 0.8), "reach": 0.35}, lambda: 4 * math.pi**2 * 0.4),
    "oblique": (
        lambda: from_projection(sheared_circle, 1, event_shape=3),
        {"low": (-1.6, -1.6, -0.6), "high": (1.6, 1.6, 0.6), "reach": 0.4},
        lambda: 2 * math.pi,
    ),
    "torus in four dimensions": (lambda: Torus(2), {"low": -1.5, "high": 1.5, "reach": 0.4}, lambda: 4 * math.pi**2),
    "rotations of the plane, whose metric is not the embedding's": (
        lambda: SpecialOrthogonal(2),
        {"low": -1.5, "high": 1.5, "reach": 0.45},
        lambda: 2 * math.pi,
    ),
}


@pytest.mark.parametrize(("make", "kwargs", "volume"), VOLUMES.values(), ids=VOLUMES.keys())
def test_volume_by_projection(make, kwargs, volume, double):
    base = UniformByProjection(make(), **kwargs, points=100_000)
    assert 0 < base.log_volume_error < 0.02
    assert abs(base.log_volume.item() - math.log(volume())) < 4 * base.log_volume_error.item()
    assert "±" in repr(base)


def test_error_bar_of_the_volume_is_honest():
    manifold = from_projection(unit, 2)
    bases = [UniformByProjection(manifold, low=-1.5, high=1.5, reach=0.4, points=2000, seed=k) for k in range(25)]
    pulls = torch.stack([(base.log_volume - math.log(4 * math.pi)) / base.log_volume_error for base in bases])
    assert 0.6 < pulls.square().mean().sqrt() < 1.4


def test_draws_by_projection_are_uniform(double):
    base = UniformByProjection(from_projection(radial, 2), low=-2.6, high=2.6, reach=0.4, points=20_000)
    z = base.sample(20_000)
    area = over_ellipsoid(lambda x, y, z: 1)
    for k, fn in enumerate((lambda x, y, z: x * x, lambda x, y, z: y * y, lambda x, y, z: z * z)):
        expected = over_ellipsoid(fn) / area
        values = z[:, k].square()
        assert abs(values.mean().item() - expected) < 5 * values.std().item() / math.sqrt(len(z))


def test_volume_by_projection_goes_with_the_module(tmp_path):
    base = UniformByProjection(Ellipsoid(), low=-2.6, high=2.6, reach=0.4, points=5000, seed=1)
    twin = UniformByProjection(Ellipsoid(), low=-2.6, high=2.6, reach=0.4, points=5000, seed=2)
    twin.load_state_dict(base.state_dict())
    assert torch.equal(twin.log_prob(torch.ones(3)), base.log_prob(torch.ones(3)))
    assert base.double().sample(2).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (lambda: from_projection(unit, 2), {"low": -1.2, "high": 1.2, "reach": 0.4}, "out of the box"),
        (lambda: from_projection(unit, 2), {"low": (-1.5, -1.5, 0.0), "high": (1.5,) * 3, "reach": 0.3}, "coordinate 2"),
        (lambda: from_projection(ring, 2), {"low": -3.0, "high": 3.0, "reach": 0.8}, "lower the reach"),
        (lambda: from_projection(radial, 2), {"low": -5.0, "high": 5.0, "reach": 2.0}, "is not projected back"),
        (lambda: from_projection(unit, 2), {"low": -3.0, "high": 3.0, "reach": 1.05}, "is not projected back"),
        (lambda: from_projection(unit, 2), {"low": 1.5, "high": -1.5, "reach": 0.3}, "low < high"),
        (lambda: from_projection(unit, 2), {"low": -1.5, "high": 1.5, "reach": 0.0}, "reach must be positive"),
        (lambda: from_projection(unit, 2), {"low": -1.5, "high": 1.5, "reach": 1e-9}, "enlarge reach"),
        (lambda: Euclidean(2), {"low": -1.5, "high": 1.5, "reach": 0.1}, "fills its space"),
    ],
)
def test_refusals_of_uniform_by_projection(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        UniformByProjection(make(), **kwargs, points=20_000)


def test_a_manifold_with_an_edge_has_the_area_within(double):
    def disc(x):
        """The unit disc in space; what lies beyond its edge goes to the edge."""
        return torch.cat([x[..., :2] / x[..., :2].norm(dim=-1, keepdim=True).clamp_min(1), torch.zeros_like(x[..., 2:])], -1)

    base = UniformByProjection(OfFunction(disc, 2, 3), low=(-1.8, -1.8, -0.8), high=(1.8, 1.8, 0.8), reach=0.6, points=50_000)
    assert abs(base.log_volume.item() - math.log(math.pi)) < 4 * base.log_volume_error.item()
    assert base.sample(5000)[:, :2].square().sum(-1).mean().item() == pytest.approx(0.5, abs=0.03)


def test_two_sheets_of_fibres_are_noticed():
    x = Sphere(2).random_uniform(20_000)
    offset = x * (0.5 * torch.rand(20_000, 1))  # outside only
    with pytest.raises(ValueError, match="their directions"):
        _check_offsets(x, torch.ones(20_000), offset, 0.5, 1)


def test_hyperbolic_quadrature_knows_areas(double):
    for manifold in (PoincareBall(2), Hyperboloid(2)):
        x = manifold.origin()
        area = integrate(manifold, lambda p, m=manifold, x=x: torch.exp(-(m.distance(x, p) ** 2)), points=5000)[0]
        expected = quad(lambda r: 2 * math.pi * math.sinh(r) * math.exp(-(r**2)), 0, 12)[0]
        assert area == pytest.approx(expected, rel=1e-9)
    width = integrate(PoincareBall(1), lambda p: torch.exp(-(PoincareBall(1).distance(torch.zeros(1), p) ** 2)))[0]
    assert width == pytest.approx(math.sqrt(math.pi), rel=1e-9)
