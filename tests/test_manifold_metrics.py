"""Kernel estimates, integrals of densities and `fluvial.check` on manifolds."""

import math

import pytest
import torch
from torch import nn

from fluvial.bases import Independent, Normal, UniformByProjection, UniformOn, VonMisesFisherMixture, WrappedNormal
from fluvial.check import check
from fluvial.codecs import FreeForm
from fluvial.data import Dataset
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.manifolds import (
    Euclidean,
    Hyperboloid,
    Mesh,
    PoincareBall,
    Product,
    SpecialOrthogonal,
    Sphere,
    Torus,
    from_projection,
    has_uniform,
)
from fluvial.metrics import KernelDensity, hyperbolic_grid, integral_by_sampling, kernel_density_nll, normalisation
from fluvial.metrics.kernels import has_kernel
from fluvial.metrics.plainest import plainest
from fluvial.metrics.quadrature import lorentz_boost
from fluvial.metrics.truth import true_log_prob

CORNERS = [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.0, 1.5]]
PYRAMID = Mesh(CORNERS, [[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4], [0, 2, 1], [0, 3, 2]], creases="smooth")
ROTATIONS = SpecialOrthogonal(3)
POSES = Product(ROTATIONS, Euclidean(3))

# A narrow and a wide bandwidth for each space.
KERNELS = {
    "circle": (Sphere(1), 20.0, 5.0),
    "sphere": (Sphere(2), 20.0, 5.0),
    "S4": (Sphere(4), 20.0, 5.0),
    "torus": (Torus(3), 10.0, 3.0),
    "SO(2)": (SpecialOrthogonal(2), 20.0, 5.0),
    "SO(3)": (ROTATIONS, 20.0, 5.0),
    "line of negative curvature": (Hyperboloid(1), 20.0, 5.0),
    "disc": (PoincareBall(2), 20.0, 5.0),
    "ball": (PoincareBall(3), 20.0, 5.0),
    "hyperboloid": (Hyperboloid(3), 20.0, 5.0),
    "flat": (Euclidean(2), 0.5, 1.0),
    "mesh": (PYRAMID, 0.1, 0.2),
    "poses": (POSES, 0.4, 0.6),
    "finite product": (Product(Sphere(2), Torus(1)), 0.4, 0.6),
    "disc and line": (Product(PoincareBall(2), Euclidean(1)), 0.4, 0.6),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points_on(manifold, n, seed=0):
    """Points in float64: uniform where there is a finite volume, else spread by about 1."""
    if has_uniform(manifold):
        return manifold.random_uniform(n, generator=generator(seed), dtype=torch.float64)
    if isinstance(manifold, Product):
        return manifold.join(*(points_on(factor, n, seed + k) for k, factor in enumerate(manifold.factors)))
    return WrappedNormal(manifold, scale=0.7).double().sample(n, generator=generator(seed)).detach()


def identity_flow(base, **arguments):
    return Flow(FreeForm(nn.Identity(), nn.Identity()), base, manifold=base.manifold, **arguments)


# ------------------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize(("manifold", "narrow", "wide"), KERNELS.values(), ids=KERNELS.keys())
def test_kernels_describe_their_samples(manifold, narrow, wide):
    density = KernelDensity(points_on(manifold, 6), wide, manifold)
    x = density.sample(20_000, generator=generator(1))
    assert x.shape == (20_000, *manifold.event_shape)
    torch.testing.assert_close(manifold.project(x), x, atol=1e-9, rtol=0)
    # ∫ p = 1 for the narrow kernels as well, by draws from the wide ones.
    ratio = (density.log_probs(x, [narrow, wide])[0] - density.log_prob(x)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=4.5 * float(ratio.std()) / math.sqrt(len(x)))
    # And it is another density: the mean of a function that is no ratio of the two.
    other = density.sample(20_000, bandwidth=narrow, generator=generator(2))
    logs = [density.log_prob(part) for part in (other, x)]
    error = math.hypot(float(logs[0].std()), float((ratio * logs[1]).std())) / math.sqrt(len(x))
    assert float(logs[0].mean()) == pytest.approx(float((ratio * logs[1]).mean()), abs=4.5 * error)


@pytest.mark.parametrize("name", ["circle", "sphere", "S4", "torus", "SO(2)", "SO(3)", "mesh", "finite product"])
def test_kernels_integrate_to_one_where_the_volume_is_finite(name):
    manifold, narrow, wide = KERNELS[name]
    density = KernelDensity(points_on(manifold, 6), wide, manifold)
    x = manifold.random_uniform(40_000, generator=generator(3), dtype=torch.float64)
    for bandwidth in (narrow, wide):
        mass = density.log_probs(x, [bandwidth])[0].exp() * manifold.total_volume
        assert float(mass.mean()) == pytest.approx(1, abs=4.5 * float(mass.std()) / math.sqrt(len(x)))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_hyperbolic_kernels_have_the_right_height(n):
    # ∫ exp(−κ (cosh r − 1)) sinhⁿ⁻¹ r dr times the content of the sphere of directions.
    for kappa in (0.5, 7.0, 1e4):
        r = torch.linspace(0, math.acosh(1 + 60 / kappa), 200_001, dtype=torch.float64)
        sphere = 2.0 if n == 1 else Sphere(n - 1).total_volume
        total = sphere * torch.trapezoid((-kappa * (torch.cosh(r) - 1)).exp() * torch.sinh(r) ** (n - 1), r)
        apex = Hyperboloid(n).from_ball(torch.zeros(1, n, dtype=torch.float64))
        assert float(KernelDensity(apex, kappa, Hyperboloid(n)).log_prob(apex)) == pytest.approx(-math.log(float(total)), abs=1e-6)


def test_kernels_of_rotations_have_the_right_height():
    for kappa in (0.3, 10.0, 1e4):
        angle = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
        # The density of the angle of uniform rotations is (1 − cos θ)/π.
        total = 8 * math.pi**2 * torch.trapezoid((kappa * (angle.cos() - 1)).exp() * (1 - angle.cos()) / math.pi, angle)
        one = torch.eye(3, dtype=torch.float64).unsqueeze(0)
        turned = ROTATIONS.from_rotation_vector(torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64) * 0.1)
        density = KernelDensity(one, kappa, ROTATIONS)
        assert float(density.log_prob(one)) == pytest.approx(-math.log(float(total)), abs=1e-6)
        assert float(density.log_prob(turned) - density.log_prob(one)) == pytest.approx(kappa * (math.cos(0.1) - 1), rel=1e-6)


def test_the_ball_and_the_hyperboloid_are_one_space():
    points, x = points_on(PoincareBall(3), 20), points_on(PoincareBall(3), 50, seed=1)
    lift = Hyperboloid.from_ball
    ball, sheet = KernelDensity(points, 30.0, PoincareBall(3)), KernelDensity(lift(points), 30.0, Hyperboloid(3))
    torch.testing.assert_close(ball.log_prob(x), sheet.log_prob(lift(x)))


def test_boosts_are_isometries():
    space = Hyperboloid(3)
    x, y, z = (space.from_ball(points_on(PoincareBall(3), 40, seed=seed)) for seed in range(3))
    torch.testing.assert_close(space.distance(lorentz_boost(x, y), lorentz_boost(x, z)), space.distance(y, z))
    apex = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(lorentz_boost(x, apex.expand_as(x)), x)


def test_mesh_kernels_end_at_the_boundary():
    square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    at = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    for h in (0.02, 0.05):
        height = KernelDensity(at, h, square)._kernel.log_height(h**-2, at)
        # Inside the plane's Gaussian, at an edge twice and at a corner four times as high.
        torch.testing.assert_close(height.exp() * 2 * math.pi * h**2, torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), rtol=2e-3, atol=0)
    # Narrow and many: the same by the search for near cells.
    many = square.random_uniform(3000, generator=generator(), dtype=torch.float64)
    few = KernelDensity(many, 0.006, square)._kernel
    torch.testing.assert_close(few.log_height(0.006**-2, many)[:50], few.log_height(0.006**-2, many[:50]), rtol=0, atol=1e-6)


def test_products_have_one_relative_width():
    parts = points_on(ROTATIONS, 200), 100 * torch.randn(200, 3, generator=generator(), dtype=torch.float64)
    tight, loose = POSES.join(parts[0], parts[1] / 1e4), POSES.join(*parts)
    shift = KernelDensity(loose, 0.5, POSES).log_prob(loose) - KernelDensity(tight, 0.5, POSES).log_prob(tight)
    torch.testing.assert_close(shift, torch.full_like(shift, -3 * math.log(1e4)))
    with pytest.raises(ValueError, match=r"same part on Euclidean\(3\)|constant"):
        KernelDensity(POSES.join(parts[0], torch.zeros(200, 3, dtype=torch.float64)), 0.5, POSES)


def test_no_kernels_where_there_are_none():
    with pytest.raises(TypeError, match=r"kernels exist .* got SpecialOrthogonal\(4\)"):
        KernelDensity(points_on(SpecialOrthogonal(4), 5), 10.0, SpecialOrthogonal(4))
    assert not has_kernel(Product(Sphere(2), SpecialOrthogonal(5)))


@pytest.mark.parametrize("manifold", [ROTATIONS, PoincareBall(2), Hyperboloid(2)], ids=str)
def test_the_best_kernels_come_near_the_entropy(manifold):
    truth = WrappedNormal(manifold, scale=0.15).double()
    x = truth.sample(4000, generator=generator()).detach()
    estimate, kappa = kernel_density_nll(x[:3000], x[3000:3500], x[3500:], manifold)
    assert 30 <= kappa <= 1000
    assert float(-truth.log_prob(x[3500:]).mean()) - 0.05 < estimate.value < float(-truth.log_prob(x[3500:]).mean()) + 0.15


def test_the_best_kernels_on_a_mesh_and_a_product():
    uniform = PYRAMID.random_uniform(3000, generator=generator())
    estimate, width = kernel_density_nll(uniform[:2000], uniform[2000:2500], uniform[2500:], PYRAMID)
    assert width >= 0.1
    assert estimate.value == pytest.approx(math.log(PYRAMID.total_volume), abs=0.1)
    truth = Independent([WrappedNormal(ROTATIONS, scale=0.3), Normal(3)]).double()
    x = truth.sample(3500, generator=generator()).detach()
    estimate, width = kernel_density_nll(x[:2500], x[2500:3000], x[3000:], POSES)
    assert 0.1 < width < 0.9
    assert estimate.value - float(-truth.log_prob(x[3000:]).mean()) == pytest.approx(0.45, abs=0.35)


# ------------------------------------------------------------------------------------------------------------- normalisation


class Raised(nn.Module):
    """The flow of a base whose density is too high by a factor."""

    is_bottleneck = is_bijective = False

    def __init__(self, base, factor=1.0):
        super().__init__()
        self.base, self.factor, self.manifold, self.condition, self.context = base, factor, base.manifold, None, None

    def log_prob(self, x, c=None):
        return self.base.log_prob(x) + math.log(self.factor)

    def sample(self, n, c=None, *, generator=None):
        return self.base.sample(n, generator=generator)


SHARP = {
    "SO(3)": lambda: WrappedNormal(ROTATIONS, scale=0.2, components=4),
    "torus": lambda: WrappedNormal(Torus(4), scale=0.3, components=3),
    "S3": lambda: VonMisesFisherMixture(Sphere(3), components=3, concentration=40.0),
    "ball": lambda: WrappedNormal(PoincareBall(3), scale=0.5, components=3),
    "poses": lambda: Independent([WrappedNormal(ROTATIONS, scale=0.2), Normal(3)]),
    "mesh": lambda: UniformOn(PYRAMID),
    "SO(4)": lambda: UniformOn(SpecialOrthogonal(4)),
    "disc": lambda: WrappedNormal(PoincareBall(2), scale=0.4, components=3),
    "disc far out": lambda: WrappedNormal(PoincareBall(2), scale=0.2, means=[[0.95, 0.0]]),
    "hyperboloid": lambda: WrappedNormal(Hyperboloid(2), scale=0.4, components=3),
    "line": lambda: WrappedNormal(PoincareBall(1), scale=0.8, components=2),
    "line of the hyperboloid": lambda: WrappedNormal(Hyperboloid(1), scale=0.8, components=2),
}


@pytest.mark.parametrize("name", SHARP)
def test_densities_integrate_to_what_they_are(name):
    # A density that is too high by 1.3 shows, far beyond the error.
    base = SHARP[name]()
    found = normalisation(Raised(base, 1.3))
    sampled = not name.startswith(("disc", "line", "hyperboloid"))
    assert (found.n is not None) == sampled
    assert found.standard_error < 0.02
    assert found.value == pytest.approx(1.3, abs=4 * found.standard_error + 1e-5 if sampled else 3e-3)
    if name == "disc":
        other = integral_by_sampling(Raised(base))
        assert other.value == pytest.approx(1, abs=4 * other.standard_error)


def test_grids_of_the_hyperbolic_plane_and_line():
    points, weights = hyperbolic_grid(20, 3.0)
    torch.testing.assert_close(Hyperboloid(2).project(points), points)
    assert float(weights.sum()) == pytest.approx(2 * math.pi * (math.cosh(3.0) - 1))
    points, weights = hyperbolic_grid(20, 3.0, 1)
    assert float((weights * points[:, 1] ** 2).sum()) == pytest.approx(math.sinh(6.0) / 2 - 3.0)


def test_the_error_of_a_sampled_integral_is_its_scatter():
    base = WrappedNormal(ROTATIONS, scale=0.3, components=2)
    found = [normalisation(Raised(base), seed=seed, max_points=512) for seed in range(12)]
    scores = torch.tensor([(estimate.value - 1) / estimate.standard_error for estimate in found])
    assert 0.4 < float(scores.square().mean().sqrt()) < 1.6


def test_a_grid_that_sees_no_peak_gives_way_to_a_sample():
    needles = Raised(VonMisesFisherMixture(Sphere(2), components=3, concentration=3e5))
    found = normalisation(needles, max_points=10_000)
    assert found.n is not None
    assert found.value == pytest.approx(1, abs=4 * found.standard_error)


def test_unseen_peaks_widen_the_error():
    # Uniform draws on SO(4) hardly meet a needle; the flow's own samples tell how much is missing.
    class Needle(Raised):
        def __init__(self):
            super().__init__(UniformOn(SpecialOrthogonal(4)))

        def log_prob(self, x, c=None):
            return torch.where((x - torch.eye(4)).flatten(1).norm(dim=1) < 0.3, 12.0, -math.inf)

        def sample(self, n, c=None, *, generator=None):
            return torch.eye(4).expand(n, 4, 4)

    found = normalisation(Needle(), max_points=4096)
    assert found.standard_error > 1


def test_projections_are_integrated_by_their_base():
    ellipsoid = from_projection(lambda x: x / (x / x.new_tensor([1.0, 1.0, 2.0])).norm(dim=-1, keepdim=True), 2)
    flow = identity_flow(UniformByProjection(ellipsoid, low=-2.5, high=2.5, reach=0.3, points=50_000))
    found = normalisation(flow)
    assert "the base" in found.note
    assert found.value == pytest.approx(1, abs=1e-5)
    wrong = normalisation(Raised(flow.base, 1.3))
    assert wrong.value == pytest.approx(1.3, abs=1e-4)


def test_one_condition_at_a_time_on_a_manifold():
    torch.manual_seed(0)
    flow = free_form(manifold=Torus(3), context=2, width=8, blocks=1)
    found = normalisation(flow, torch.tensor([1.0, 0.0]))
    assert found.n >= 4096
    assert abs(found.value - 1) < 0.2


def test_points_that_are_not_finite_are_named():
    class Broken(Raised):
        def log_prob(self, x, c=None):
            return torch.where(x[:, 0] > 0.9, torch.nan, super().log_prob(x))

    found = normalisation(Broken(UniformOn(Sphere(3))))
    assert math.isnan(found.value)
    assert found.bad_rows > 0
    assert "the others give" in found.note


# ---------------------------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("manifold", "context"),
    [(ROTATIONS, 0), (ROTATIONS, 2), (Torus(7), 0), (PoincareBall(2), 0), (Hyperboloid(2), 2), (PYRAMID, 0), (POSES, 0)],
    ids=str,
)
def test_check_says_something_about_untrained_flows(manifold, context):
    torch.manual_seed(0)
    flow = free_form(manifold=manifold, context=context, width=8, blocks=1)
    x = points_on(manifold, 40).float()
    c = torch.eye(2)[torch.arange(40) % 2] if context else None
    report = check(flow, Dataset(x, c, manifold=manifold), samples=40)
    row = report["normalisation"]
    assert row.verdict in ("good", "doubtful", "bad")
    assert ("3 conditions" in row.detail) == bool(context)
    assert "chord" in report["reconstruction"].meaning
    assert report["encoder/decoder gap"].value is not None


def test_check_believes_an_integral_within_its_error():
    x = ROTATIONS.random_uniform(200, generator=generator(1))
    report = check(identity_flow(UniformOn(ROTATIONS)), x, samples=200)
    assert report.ok
    assert report["normalisation"].verdict == "good"
    assert report["normalisation"].error is not None
    assert report["NLL"].value == pytest.approx(math.log(8 * math.pi**2), abs=1e-4)


def test_check_uses_a_conditional_truth():
    class Truth:
        def log_prob(self, x, c):
            return -0.5 * (x - c).square().sum(-1) - 0.5 * math.log(2 * math.pi)

    class Shift(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x, c):
            return x + self.sign * c

    c = torch.randn(200, 1, generator=generator(1))
    x = c + torch.randn(200, 1, generator=generator(2))
    report = check(Flow(FreeForm(Shift(-1), Shift(1)), Normal(1), condition=1), Dataset(x, c, truth=Truth()), samples=200)
    assert "above it" in report["NLL"].detail
    assert report["NLL"].verdict == "good"


@pytest.mark.parametrize(
    ("manifold", "x", "message"),
    [
        (ROTATIONS, torch.randn(30, 4), "SpecialOrthogonal.from_quaternion"),
        (ROTATIONS, torch.randn(30, 3), "SpecialOrthogonal.from_rotation_vector"),
        (Torus(3), torch.randn(30, 3), "Torus.from_degrees"),
        (Sphere(2), torch.randn(30, 2), "latlon"),
        (ROTATIONS, 1.1 * torch.eye(3).expand(30, 3, 3), r"away from SpecialOrthogonal\(3\)"),
        (Torus(2), 90 * torch.ones(30, 2, 2), r"away from Torus\(2\)"),
        (PoincareBall(2), torch.tensor([0.9, 0.9]).expand(30, 2), r"away from PoincareBall\(2\)"),
        (PYRAMID, torch.tensor([1.0, 1.0, 3.0]).expand(30, 3), "away from Mesh"),
    ],
    ids=["quaternions", "rotation vectors", "angles", "latitudes", "stretched", "degrees", "outside the ball", "off the mesh"],
)
def test_check_says_how_to_mend_wrong_points(manifold, x, message):
    with pytest.raises(ValueError, match=message):
        check(identity_flow(UniformOn(manifold) if has_uniform(manifold) else WrappedNormal(manifold)), x)


# ------------------------------------------------------------------------------------------------------------ truth, plainest


def test_truths_take_conditions_if_they_say_so():
    class Plain:
        def log_prob(self, x):
            return x.sum(-1)

    class Given:
        def log_prob(self, x, c=None):
            return x.sum(-1) if c is None else (x * c).sum(-1)

    x, c = torch.ones(3, 2), torch.full((3, 2), 2.0)
    assert true_log_prob(None, x) is None
    assert true_log_prob(Plain(), x).tolist() == [2.0] * 3
    assert true_log_prob(Plain(), x, c) is None
    assert true_log_prob(Given(), x, c).tolist() == [4.0] * 3


def test_the_plainest_model():
    assert plainest(PoincareBall(2), torch.zeros(50, 2)) is None
    assert plainest(PYRAMID, torch.zeros(50, 3)).nll == pytest.approx(math.log(PYRAMID.total_volume))
    x = 3 * torch.randn(4000, 1, generator=generator(), dtype=torch.float64)
    assert plainest(Euclidean(1), x).nll == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi) + math.log(3), abs=0.05)
    # The variance that a linear dependence on the condition explains is not left to the Gaussian.
    assert plainest(Euclidean(1), x + torch.randn_like(x), x).nll < 1.5
    assert plainest(Euclidean(2), torch.zeros(50, 2)) is None
