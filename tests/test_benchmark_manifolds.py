"""The baseline of the benchmark of manifold flows is right: its path, its densities, its steps; and the benchmark runs."""

import copy
import functools
import importlib
import math
from pathlib import Path

import pytest
import torch

from fluvial.data import Dataset
from fluvial.flows import free_form
from fluvial.manifolds import SpecialOrthogonal, Sphere, Torus
from fluvial.nn import Residual
from fluvial.testing.quadrature import integrate

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MANIFOLDS = {"sphere": Sphere(2), "torus": Torus(2), "rotations": SpecialOrthogonal(3)}


@pytest.fixture
def matching(monkeypatch):
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed; pip install '.[benchmark]'")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("riemannian_flow_matching")


@pytest.fixture
def steps(matching):
    return importlib.import_module("fixed_steps")


@pytest.fixture(params=MANIFOLDS)
def manifold(request):
    return MANIFOLDS[request.param]


def points(manifold, n, seed=0):
    return manifold.random_uniform(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bump(manifold, n, seed=0):
    """Points about one place."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.5 * torch.randn(n, *manifold.event_shape, generator=generator, dtype=torch.float64)
    return manifold.project(points(manifold, 1, 7) + noise)


@functools.cache
def trained(manifold):
    """A field that does something: once for all tests of a manifold."""
    matching = importlib.import_module("riemannian_flow_matching")
    torch.manual_seed(1)
    net = Residual(math.prod(manifold.event_shape), context=1, width=32, blocks=2, activation="sin", input_scale=2.0)
    field = matching.VelocityField(manifold, net)
    data = Dataset(bump(manifold, 2048).float(), manifold=manifold)
    course = matching.train(field, data, data.x[:64], seconds=0, steps=100, longest=0, validate_every=100, learning_rate=1e-2, tell=str)
    assert (course.steps, course.ended) == (150, "limit")
    return field.double()


@pytest.fixture
def field(matching, manifold):
    return trained(manifold)


def volume_points(manifold, n):
    """Uniform rotations without the clumps of random ones: unit quaternions by Shoemake's formula."""
    u = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(n, dtype=torch.float64)
    a, b, c = u[:, 0], 2 * math.pi * u[:, 1], 2 * math.pi * u[:, 2]
    return manifold.from_quaternion(torch.stack([(1 - a).sqrt() * b.sin(), (1 - a).sqrt() * b.cos(), a.sqrt() * c.sin(), a.sqrt() * c.cos()], 1))


def test_velocity_of_the_path_is_its_derivative(matching, manifold):
    x0, x1 = points(manifold, 200, 1), points(manifold, 200, 2)
    t = torch.linspace(0, 1, 200, dtype=torch.float64).view(-1, *[1] * len(manifold.event_shape))
    # Inside the interval, so that both neighbours belong to the path.
    t = 1e-4 + (1 - 2e-4) * t
    _, velocity = matching.geodesic(manifold, x0, x1, t)
    ahead, behind = (matching.geodesic(manifold, x0, x1, t + h)[0] for h in (1e-5, -1e-5))
    torch.testing.assert_close(velocity, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(manifold.norm(x0, velocity), manifold.distance(x0, x1), rtol=1e-6, atol=1e-6)
    for end, x in ((0.0, x0), (1.0, x1)):
        torch.testing.assert_close(matching.geodesic(manifold, x0, x1, torch.full_like(t, end))[0], x, rtol=0, atol=1e-6)


def test_training_lowers_nll_below_that_of_the_uniform_density(matching, manifold, field):
    nll = -matching.log_prob_ode(field, bump(manifold, 200, 3)).mean()
    assert nll < math.log(manifold.total_volume) - 0.3


def test_divergence_is_that_of_a_known_field(matching):
    # v(x) = to_tangent(x, a) is the gradient of ⟨a, x⟩, whose Laplacian on S² is −2⟨a, x⟩.
    a = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    class Constant(torch.nn.Module):
        def forward(self, x, t):
            return a.expand(len(x), 3)

    x = points(Sphere(2), 50)
    v, div = matching.divergence(matching.VelocityField(Sphere(2), Constant()), x, torch.tensor(0.5))
    torch.testing.assert_close(v, a - x * (x @ a).unsqueeze(1))
    torch.testing.assert_close(div, -2 * (x @ a))


def test_density_of_the_ode_integrates_to_one(matching, manifold, field):
    def density(x):
        return matching.log_prob_ode(field, x, 1e-4).exp()

    if isinstance(manifold, SpecialOrthogonal):
        total = float(density(volume_points(manifold, 4096)).mean()) * manifold.total_volume
    else:
        total, _ = integrate(manifold, density, points=2000)
    assert total == pytest.approx(1, abs=0.02)


def test_samples_of_the_ode_have_its_density(matching, manifold, field):
    # The density transported forward along with the samples equals that found backward from them.
    x0 = points(manifold, 50, 4)
    x1, calls = matching.sample_ode(field, x0, 1e-7)
    assert calls > 6

    def forward(t, state):
        v, div = matching.divergence(field, manifold.project(state[0]), t)
        return v, -div

    _, change = matching.odeint(forward, (x0, x0.new_zeros(len(x0))), (0.0, 1.0), 1e-7)
    torch.testing.assert_close(matching.log_prob_ode(field, x1, 1e-7), change - math.log(manifold.total_volume), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["euler", "projected euler", "midpoint", "rk4"])
def test_log_det_of_composed_steps_is_that_of_autograd(steps, manifold, field, name):
    step, _ = steps.STEPS[name]
    n = 4
    x0 = points(manifold, 4, 5)
    x = steps.sample_steps(field, x0, step, n)
    density = steps.log_prob_steps(field, x, step, n)
    assert bool(density.solved.all())
    assert bool(density.upright.all())

    def composed(x):
        for t in steps.starts(n, x):
            x = step(field, x.unsqueeze(0), t, 1 / n).squeeze(0)
        return x

    rows, columns = manifold.tangent_basis(x).flatten(1, -2), manifold.tangent_basis(x0).flatten(1, -2)
    ambient = rows.shape[1]
    full = torch.stack([torch.autograd.functional.jacobian(composed, one).reshape(ambient, ambient) for one in x0])
    expected = -torch.linalg.slogdet(rows.transpose(1, 2) @ full @ columns)[1] - math.log(manifold.total_volume)
    torch.testing.assert_close(density.log_prob, expected, rtol=0, atol=1e-6)


def test_steps_converge_to_the_ode_with_their_order(matching, steps, manifold, field):
    x = bump(manifold, 8, 6)
    truth = matching.log_prob_ode(field, x, 1e-7)

    def error(name, n):
        return float((steps.log_prob_steps(field, x, steps.STEPS[name][0], n).log_prob - truth).square().mean().sqrt())

    for name, n, order in (("euler", 10, 1), ("projected euler", 10, 1), ("midpoint", 6, 2), ("rk4", 6, 4)):
        assert math.log2(error(name, n) / error(name, 2 * n)) == pytest.approx(order, abs=0.5), name


def test_folds_are_seen(matching, steps):
    # A step of −2h∇ of the height about the pole sends a tangent e to (1 − 2h) e: inside out in one dimension, turned by 180 degrees in two.
    class Pull(torch.nn.Module):
        def __init__(self, axes):
            super().__init__()
            self.axes = torch.tensor(axes, dtype=torch.float64)
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x, t):
            return self.axes * x

    near = Sphere(2).project(torch.tensor([[0.01, 0.02, 1.0], [-0.01, 0.01, 1.0]], dtype=torch.float64))
    for pull, expected in (((-0.5, -0.5, 0.0), False), ((-2.0, 0.0, 0.0), True), ((-2.0, -2.0, 0.0), False)):
        field = matching.VelocityField(Sphere(2), Pull(pull))
        for place in (near, -near):  # tangent bases change orientation between the two
            assert steps.folds(field, place, steps.euler, 1).tolist() == [expected] * 2, (pull, place)
    fold = matching.VelocityField(Sphere(2), Pull((-2.0, 0.0, 0.0)))
    density = steps.log_prob_steps(fold, steps.sample_steps(fold, near, steps.euler, 1), steps.euler, 1)
    assert not bool((density.solved & density.upright).any())


def test_orientation_is_kept_however_far(steps):
    for manifold in MANIFOLDS.values():
        x, y = points(manifold, 50, 8), points(manifold, 50, 9)
        eye = torch.eye(manifold.dim, dtype=torch.float64).expand(50, -1, -1)
        kept = steps.keeps_orientation(manifold, x, y, eye)
        if isinstance(manifold, Sphere):
            # By hand: det of (x, basis) is the orientation.
            sign = [torch.linalg.det(torch.cat([p.unsqueeze(2), manifold.tangent_basis(p)], 2)).sign() for p in (x, y)]
            assert torch.equal(kept, sign[0] == sign[1])
        else:
            assert bool(kept.all())


@pytest.fixture
def benchmark(matching):
    return importlib.import_module("manifold_sampling")


@pytest.mark.parametrize("manifold", [MANIFOLDS["rotations"]])
def test_every_figure_of_a_trained_pair(benchmark, matching, manifold):
    flow = free_form(manifold=manifold, width=16, blocks=1).eval()
    splits = Dataset(bump(manifold, 300).float(), manifold=manifold).split()
    field = matching.VelocityField(manifold, copy.deepcopy(trained(manifold)).float().net)
    record = benchmark.measure(benchmark.Rivals("pair", flow, field, splits, {}), rounds=2, batches=(10,), ladder=(1, 3, 9), samples=200)
    assert set(record["fewest"]) == set(benchmark.STEPS)
    for rows in record["fewest"].values():
        assert all(not row["reached"] for row in rows[:-1])
    # The flow is hardly trained, so that one of the solvers reaches it.
    found = record["honest ratio"][10]
    assert found["ratio"] > 0
    assert found["solver"] in record["against"][10]
    assert record["quality"]["flow matching, ODE"]["value"] < record["quality"]["flow, at reconstruction"]["value"]
    assert len(benchmark.gates(record)) == 4
    assert found["solver"] in benchmark.table(record)


def test_an_untrained_pair_has_speeds_only(benchmark):
    record = benchmark.measure(benchmark.fresh(Sphere(2), None, None), rounds=2, batches=(10,))
    assert record["quality"] is None
    assert "Not trained" in benchmark.table(record)
    assert set(benchmark.gates(record)) == {
        "batch 10: decode ≤ 1.15 × bare",
        "batch 10: sample less base ≤ 1.15 × bare",
        "batch 10: sample less base alone ≤ 1.15 × bare",
        "batch 10: Euler-100 ≥ 80 × sample",
    }


def test_a_baseline_comes_back_from_its_folder(matching, tmp_path):
    decoder = free_form(manifold=Torus(2), width=16, blocks=1).codec.decoder
    field = matching.field_like(decoder, Torus(2))
    assert (field.net.width, field.net.blocks, field.net.activation, field.net.input_scale) == (16, 1, decoder.activation, decoder.input_scale)
    course = matching.Course([{"step": 1.0, "nll": 2.0}], "plateau", 1, 0.5, 2.0)
    matching.store(field, course, {"test NLL": 2.0}, tmp_path)
    again, training = matching.restore(decoder, Torus(2), tmp_path)
    x = Torus(2).random_uniform(5)
    assert torch.equal(field(x, torch.tensor(0.3)), again(x, torch.tensor(0.3)))
    assert training["ended by"] == "plateau"


def test_training_waits_for_its_plateau(matching):
    data = Dataset(bump(Sphere(2), 256).float(), manifold=Sphere(2))

    def course(**options):
        net = Residual(3, context=1, width=8, blocks=1)
        return matching.train(matching.VelocityField(Sphere(2), net), data, data.x[:32], validate_every=10, patience=2, tell=str, **options)

    # Nothing less than 100 nats counts as falling: the plateau is there after three validations.
    assert course(seconds=0, longest=60, least=100.0).ended == "plateau"
    late = course(seconds=0, steps=50, longest=60, least=100.0)
    assert (late.ended, late.steps) == ("time", 75)
