"""The torus, its angles, and the cylinder around the sphere: contracts, seams and poles."""

import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from fluvial import report
from fluvial.bases import Normal, Uniform, UniformOn, VonMisesFisherMixture
from fluvial.check import check
from fluvial.codecs import Angles, Chain, Cylinder, Inverse, Standardize
from fluvial.data import Dataset, DataSpec, Ramachandran
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Sphere, Torus
from fluvial.metrics import KernelDensity, circle_grid, kernel_density_nll, normalisation, torus_grid
from fluvial.report.ramachandran import angle_labels, degrees
from fluvial.testing import check_base, check_bijection, check_manifold, integrate
from fluvial.testing.quadrature import grid


def on_torus(k):
    return lambda n: Torus(k).random_uniform(n, dtype=torch.float64)


def on_sphere(n):
    return Sphere(2).random_uniform(n, dtype=torch.float64)


def angles_box(k):
    return lambda: Uniform(-math.pi, math.pi, event_shape=k)


def modes():
    return VonMisesFisherMixture(Sphere(2), components=3)


def cylinder_box():
    return Uniform((-math.pi, -1.0), (math.pi, 1.0))


BIJECTIONS = {
    "one angle": (lambda: Angles(1), on_torus(1), {"base": angles_box(1)}),
    "two angles": (lambda: Angles(2), on_torus(2), {"base": angles_box(2)}),
    "seven angles": (lambda: Angles(7), on_torus(7), {"base": angles_box(7)}),
    "cylinder": (lambda: Cylinder(), on_sphere, {"base": cylinder_box}),
    "cylinder about x": (lambda: Cylinder(axis=0), on_sphere, {"base": cylinder_box}),
    "from axis to axis": (lambda: Chain([Cylinder(axis=1), Inverse(Cylinder())]), on_sphere, {"base": modes}),
}


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_manifold_contract(k):
    check_manifold(Torus(k))


@pytest.mark.parametrize(("make", "points", "options"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_bijection_contract(make, points, options):
    check_bijection(make, points, **options)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_uniform_base_on_the_torus(k):
    check_base(lambda: UniformOn(Torus(k)))


# ------------------------------------------------------------------------------------------------------------------ the torus


def test_torus_in_numbers():
    assert Torus(7).total_volume == pytest.approx((2 * math.pi) ** 7, rel=1e-12)
    assert math.log(Torus(7).total_volume) == pytest.approx(12.865, abs=1e-3)
    assert Torus(2) != Torus(3)
    assert Torus(1) != Sphere(1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Torus(0)


def test_distance_and_log_take_the_short_way_round(double):
    x, y = (Torus.from_degrees(torch.tensor(at)) for at in ([[170.0, 10.0]], [[-170.0, -20.0]]))
    torch.testing.assert_close(Torus(2).distance(x, y), torch.deg2rad(torch.tensor([math.hypot(20, 30)])))
    torch.testing.assert_close(Torus.to_degrees(Torus(2).exp(x, 0.75 * Torus(2).log(x, y))), torch.tensor([[-175.0, -12.5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_of_what_has_no_direction(dtype):
    x = torch.tensor([[[0.0, 0.0], [3.0, -4.0]], [[1e-30, 0.0], [0.0, -1e-3]]], dtype=dtype, requires_grad=True)
    y = Torus(2).project(x)
    expected = torch.tensor([[[1.0, 0.0], [0.6, -0.8]], [[1.0, 0.0], [0.0, -1.0]]], dtype=dtype)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, 0] == 0).all()
    assert (gradient[1, 1] != 0).any()
    dual, pushed = Torus(2).project_dual(x.detach(), torch.ones(1, 2, 2, 2, dtype=dtype))
    torch.testing.assert_close(dual, expected)
    assert torch.isfinite(pushed).all()


# ------------------------------------------------------------------------------------------------------------------- the seam


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_at_the_axes_and_the_seam(dtype):
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, -0.0], [0.0, -1.0], [-1.0, 1e-30]], dtype=dtype, requires_grad=True)
    z = Angles(6).encode(x.unsqueeze(0))[0]
    torch.testing.assert_close(z, math.pi * torch.tensor([0.0, 0.5, -1.0, -1.0, -0.5, -1.0], dtype=dtype))
    assert (z < math.pi).all()
    (gradient,) = torch.autograd.grad(z.sum(), x)
    # ∂φ/∂(x, y) = (−y, x), on the seam as everywhere.
    torch.testing.assert_close(gradient, torch.stack([-x[:, 1], x[:, 0]], -1).detach())
    forward = torch.func.jvp(Angles(6).encode, (x.detach().unsqueeze(0),), (gradient.unsqueeze(0),))[1]
    torch.testing.assert_close(forward, torch.ones(1, 6, dtype=dtype))


def test_pi_becomes_minus_pi_and_angles_are_periodic(double):
    codec = Angles(3)
    z = torch.tensor([[math.pi, 3 * math.pi - 0.1, -7.0]])
    torch.testing.assert_close(codec.encode(codec.decode(z)), torch.tensor([[-math.pi, math.pi - 0.1, 2 * math.pi - 7.0]]))
    torch.testing.assert_close(codec.decode(z + 4 * math.pi), codec.decode(z))


def test_float32_angles_stay_on_the_circle():
    z = torch.linspace(-math.pi, math.pi, 100_001).unsqueeze(1)
    x = Angles(1).decode(z)
    assert float((x.norm(dim=-1) - 1).abs().max()) < 2e-7
    back = Angles(1).encode(x)
    assert float(back.min()) >= -math.pi - 1e-6
    assert float(back.max()) < math.pi
    turn = (back - z).abs()
    assert float(torch.minimum(turn, (turn - 2 * math.pi).abs()).max()) < 5e-7


# ------------------------------------------------------------------------------------------------------------------- the poles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cylinder_at_poles_and_seam(dtype, axis):
    codec = Cylinder(axis=axis)
    z = torch.tensor([[0.3, 1.0], [-2.0, -1.0], [0.0, 1.0 - 6e-8], [math.pi, 0.0], [-math.pi, 0.5], [1.0, 2.0]], dtype=dtype, requires_grad=True)
    x = codec.decode(z)
    assert float((x.detach().norm(dim=-1) - 1).abs().max()) < 1e-6
    torch.testing.assert_close(x[[0, 1, 5], axis].detach(), torch.tensor([1.0, -1.0, 1.0], dtype=dtype))
    assert torch.isfinite(torch.autograd.grad(x.square().sum() + x.sum(), z)[0]).all()
    at = x.detach().requires_grad_()
    back, ladj = codec.encode_ladj(at)
    assert (ladj == 0).all()
    assert torch.isfinite(torch.autograd.grad(back.sum(), at)[0]).all()
    expected = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0 - 6e-8], [-math.pi, 0.0], [-math.pi, 0.5], [0.0, 1.0]], dtype=dtype)
    # The single-precision number next to −π is beyond it, on the other side of the seam.
    difference = back.detach() - expected
    difference[:, 0] -= 2 * math.pi * torch.round(difference[:, 0] / (2 * math.pi))
    assert float(difference.abs().max()) < (1e-6 if dtype == torch.float32 else 1e-12)
    assert (back[:, 0] < math.pi).all()


def test_points_a_little_off_the_sphere_have_heights_within_bounds():
    x = torch.tensor([[1e-9, 0.0, 1.0000001], [0.0, -1e-9, -1.0000002]])
    assert Cylinder().encode(x)[:, 1].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta", [1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0])
def test_round_trip_near_the_poles_is_as_exact_as_stated(dtype, theta):
    turn, polar = 2 * math.pi * torch.rand(2000, dtype=torch.float64), theta * (1 + 0.2 * torch.rand(2000, dtype=torch.float64))
    exact = torch.stack([polar.sin() * turn.cos(), polar.sin() * turn.sin(), polar.cos()], -1)
    back = Cylinder().decode(Cylinder().encode(exact.to(dtype)))
    epsilon = torch.finfo(dtype).eps
    assert float((back.double() - exact).norm(dim=-1).max()) < min(math.sqrt(epsilon), epsilon / theta) + 3 * epsilon


def test_cylinder_keeps_areas():
    flow = Flow(Cylinder(), cylinder_box()).double()
    value, _ = integrate(Sphere(2), lambda p: flow.log_prob(p).exp())
    assert value == pytest.approx(1, abs=1e-8)
    points = flow.sample(40_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(points.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=5 / math.sqrt(3 * 40_000))
    torch.testing.assert_close(points.square().mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, got 3"):
        Cylinder(axis=3)


# ------------------------------------------------------------------------------------------------------------------ quadrature


class Wrapped:
    """The wrapped normal distribution of k angles, by its Fourier series."""

    def __init__(self, mean, sigma):
        self.mean, self.sigma = torch.tensor(mean, dtype=torch.float64), sigma

    def log_prob(self, x):
        n = torch.arange(1, 60, dtype=torch.float64)
        angle = Torus.to_angles(x.double()) - self.mean
        waves = torch.cos(angle.unsqueeze(-1) * n) * torch.exp(-0.5 * (n * self.sigma) ** 2)
        return torch.log((1 + 2 * waves.sum(-1)).clamp_min(1e-300) / (2 * math.pi)).sum(-1)


@pytest.mark.parametrize("mean", [[math.pi - 0.1], [math.pi, -3.0], [0.0, math.pi, 1.0]])
def test_wrapped_densities_integrate_to_one(mean):
    density = Wrapped(mean, 0.4)
    value, error = integrate(Torus(len(mean)), lambda p: density.log_prob(p).exp())
    assert value == pytest.approx(1, abs=1e-6 if len(mean) < 3 else 1e-3)
    assert error <= 1e-8


def test_grids_of_the_torus():
    for k in (1, 2, 3):
        points, weights = torus_grid(8, k)
        assert points.shape == (8**k, k, 2)
        assert float(weights.sum()) == pytest.approx(Torus(k).total_volume, rel=1e-12)
    assert grid(Torus(4)) is None
    turned = torus_grid(12, 1)[0][:, 0].roll(-6, 0)
    torch.testing.assert_close(turned, circle_grid(12)[0])
    # The first angle runs slowest.
    assert Torus.to_angles(torus_grid(4)[0]).view(4, 4, 2)[:, 0, 0].diff().min() > 1
    integral, error = integrate(Torus(5), lambda p: p[:, 0, 0].square())
    assert abs(integral - Torus(5).total_volume / 2) < error


@pytest.mark.parametrize("k", [1, 2])
def test_normalisation_on_the_torus(k):
    flow = Flow(Angles(k), Uniform(-math.pi, math.pi, event_shape=k))
    assert normalisation(flow).value == pytest.approx(1, abs=1e-5)
    # The latent space of an unbounded base is wound up; what lies beyond ±π is lost.
    half = normalisation(Flow(Chain([Angles(k), fitted(k, math.pi)]), Normal(k)))
    assert half.value == pytest.approx(math.erf(1 / math.sqrt(2)) ** k, abs=2e-3 if k == 1 else 1e-2)
    assert f"T{'¹²'[k - 1]}" in half.note
    # No grid in three dimensions: by sampling, with a standard error.
    sampled = normalisation(Flow(Angles(3), Uniform(-math.pi, math.pi, event_shape=3)))
    assert sampled.value == pytest.approx(1, abs=4 * sampled.standard_error)
    assert sampled.n is not None


def fitted(k, scale):
    codec = Standardize(k)
    codec.scale.fill_(scale)
    codec.is_fitted.fill_(1)
    return codec


# -------------------------------------------------------------------------------------------------------------- kernel density


@pytest.mark.parametrize(("k", "kappa"), [(1, 3.0), (1, 1e3), (2, 30.0)])
def test_kernels_on_the_torus_integrate_to_one(k, kappa):
    density = KernelDensity(Torus(k).random_uniform(20, dtype=torch.float64), kappa, Torus(k))
    assert integrate(Torus(k), lambda p: density.log_prob(p).exp())[0] == pytest.approx(1, abs=1e-8)


def test_kernels_on_the_torus_agree_with_scipy():
    from scipy.stats import vonmises

    points, at = Torus(3).random_uniform(6, dtype=torch.float64), Torus(3).random_uniform(9, dtype=torch.float64)
    turn = (Torus.to_angles(at)[:, None] - Torus.to_angles(points)[None]).numpy()
    expected = np.log(np.exp(vonmises(20.0).logpdf(turn).sum(-1)).mean(1))
    np.testing.assert_allclose(KernelDensity(points, 20.0, Torus(3)).log_prob(at).numpy(), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="expected points of shape"):
        KernelDensity(points, 20.0, Torus(2))


def test_bandwidth_on_the_torus_suits_the_data():
    turn = torch.remainder(3.0 + 0.1 * torch.randn(1500, 2, dtype=torch.float64) + math.pi, 2 * math.pi) - math.pi
    x = Torus.from_angles(turn)
    estimate, kappa = kernel_density_nll(x[:1000], x[1000:1200], x[1200:], Torus(2))
    assert 100 <= kappa <= 3000
    entropy = 2 * (0.5 + 0.5 * math.log(2 * math.pi) + math.log(0.1))
    assert estimate.value == pytest.approx(entropy, abs=0.15)


# ------------------------------------------------------------------------------------------------- description, check and report


def test_the_description_keeps_the_torus():
    spec = DataSpec((3, 2), manifold=Torus(3), noise=0.01)
    assert DataSpec.from_dict(spec.to_dict()) == spec
    x = Torus(3).random_uniform(50)
    noisy = spec.perturb(x)
    torch.testing.assert_close(noisy.norm(dim=-1), torch.ones(50, 3))
    assert 0.01 < float((noisy - x).norm(dim=(1, 2)).square().mean().sqrt()) < 0.03


def test_check_of_a_flow_on_the_torus():
    flow = Flow(Angles(2), Uniform(-math.pi, math.pi, event_shape=2))
    found = check(flow, Dataset(Torus(2).random_uniform(400), manifold=Torus(2)))
    assert found.ok, str(found)


def uniform_flow(k):
    return Flow(Angles(k), Uniform(-math.pi, math.pi, event_shape=k))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_pages_of_tori(k):
    data = Dataset(Torus(k).random_uniform(300), manifold=Torus(k))
    page = report.page(uniform_flow(k), data, title="Angles")
    wanted = {1: "density per radian", 2: "ψ, degrees", 4: "φ₄, degrees"}[k]
    assert wanted in page
    assert len(page.encode()) < 8_000_000


def test_maps_of_two_angles_with_a_known_density():
    truth = Ramachandran(torch.arange(1.0, 17.0).view(4, 4))
    data = Dataset(truth.sample(500), manifold=Torus(2), truth=truth)
    found = report.samples(uniform_flow(2), data)
    assert list(found) == ["Log-density of the angles", "True log-density of the angles", "Data", "Samples"]
    ours, true, points, _ = found.values()
    assert (ours.data[0].zmin, ours.data[0].zmax) == (true.data[0].zmin, true.data[0].zmax)
    np.testing.assert_allclose(ours.data[0].z, -2 * math.log(2 * math.pi), rtol=1e-5)
    # φ to the right, ψ upwards: the density grows by 4 from cell to cell along φ.
    heat = np.exp(np.asarray(true.data[0].z, np.float64))
    assert heat[0, -1] / heat[0, 0] == pytest.approx(13, rel=1e-4)
    assert heat[-1, 0] / heat[0, 0] == pytest.approx(4, rel=1e-4)
    assert tuple(points.layout.xaxis.range) == tuple(points.layout.yaxis.range) == (-180, 180)
    np.testing.assert_allclose(np.stack([points.data[0].x, points.data[0].y], -1), degrees(data.x), atol=1e-3)


def test_pairs_of_angles_join_at_the_seam():
    turn = 180 + 25 * torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    x = Torus.from_degrees(turn)
    figure = report.samples(uniform_flow(3), Dataset(x, manifold=Torus(3)))["Pairs of angles"]
    contours = [trace for trace in figure.data if isinstance(trace, go.Contour)]
    mass = np.asarray(contours[0].z)
    # A cluster on the corner of the map is as dense on its four sides.
    assert max(mass[0, 0], mass[0, -1], mass[-1, 0], mass[-1, -1]) < 0.3
    assert mass[len(mass) // 2, len(mass) // 2] > 0.99
    assert tuple(figure.layout.xaxis.range) == (-180, 180)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_latent_angles_beside_the_base(k):
    flow = Flow(Chain([Angles(k), Inverse(Angles(k))]), UniformOn(Torus(k)))
    found = report.latent(flow, Dataset(Torus(k).random_uniform(200), manifold=Torus(k)))
    assert len(found) == k
    assert Euclidean(k) != flow.latent_manifold


def test_names_of_angles():
    assert angle_labels(("phi", "psi", "chi1"), 3) == ["phi", "psi", "chi1"]
    assert angle_labels(None, 2) == ["φ", "ψ"]
    assert angle_labels(None, 12)[10:] == ["φ₁₁", "φ₁₂"]


def test_angles_have_names_and_are_checked_as_angles():
    turn = torch.cat([180 + torch.randn(4000, 1), 90 * torch.randn(4000, 1)], 1)
    data = Dataset(Torus.from_degrees(turn), manifold=Torus(2), names=("omega", "psi"))
    data.check()  # though hundreds of cosines are −1
    assert DataSpec.from_dict(data.spec.to_dict()) == data.spec
    assert [data.spec.column(k) for k in range(4)] == ["'omega'", "'omega'", "'psi'", "'psi'"]
    with pytest.raises(ValueError, match="columns 'omega', 'psi' are discrete"):
        Dataset(Torus.from_degrees(turn.mul(torch.tensor([1.0, 0.01])).round(decimals=1)), manifold=Torus(2), names=("omega", "psi")).check()
    data.x[5, 1, 0] = math.nan
    with pytest.raises(ValueError, match="row 5, column 'psi' is nan"):
        data.check()
    with pytest.raises(ValueError, match="one entry of names per column"):
        DataSpec((2, 2), manifold=Torus(2), names=("a", "b", "c", "d"))
    assert "omega, degrees" in report.page(uniform_flow(2), Dataset(Torus.from_degrees(turn), manifold=Torus(2), names=("omega", "psi")))
