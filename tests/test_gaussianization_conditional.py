"""Splines whose knots follow the condition, and fits that use them."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

import fluvial
from fluvial.codecs import AnchorWeights, ConditionalSpline, MarginalSpline
from fluvial.codecs.marginal_spline import Knots
from fluvial.gaussianization import fit
from fluvial.testing import check_codec


def perturbed(tail, *, features=2, sets=3):
    torch.manual_seed(0)
    codec = ConditionalSpline(features, 4, AnchorWeights(torch.randn(sets, 2), bandwidth=0.7), sets, tail=tail)
    with torch.no_grad():
        codec.table.add_(0.5 * torch.randn_like(codec.table))
    return codec


@pytest.mark.parametrize("tail", ["straight", "pareto"])
def test_contract(tail):
    check_codec(lambda: perturbed(tail), lambda n: 2 * torch.randn(n, 2), condition=lambda n: torch.randn(n, 2, dtype=torch.float64))


def test_an_average_of_equal_sets_is_that_spline(double):
    one = MarginalSpline(2, 4)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    many = ConditionalSpline(2, 4, AnchorWeights([[0.0], [1.0], [5.0]], bandwidth=2.0), 3)
    many.set_([one.knots] * 3)
    x, c = 2 * torch.randn(50, 2), 3 * torch.randn(50, 1)
    for found, expected in zip(many.encode_ladj(x, c), one.encode_ladj(x)):
        torch.testing.assert_close(found, expected)


def test_every_class_has_its_own_spline(double):
    line = torch.linspace(-1, 1, 5).expand(1, 5)
    codec = ConditionalSpline(1, 4, AnchorWeights([[0.0], [1.0]]), 2)
    codec.set_([Knots(line, line, torch.ones(1, 5)), Knots(line, 2 * line, 2 * torch.ones(1, 5))])
    z, ladj = codec.encode_ladj(torch.tensor([[0.3], [0.3]]), torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(z, torch.tensor([[0.3], [0.6]]))
    torch.testing.assert_close(ladj, torch.tensor([0.0, math.log(2)]))


def test_rows_of_classes_by_themselves_are_rows_with_knots_of_their_own(double):
    codec = ConditionalSpline(2, 4, AnchorWeights([[0.0], [1.0], [2.0]]), 3)
    with torch.no_grad():
        codec.table.add_(0.3 * torch.randn_like(codec.table))
    x, c = 2 * torch.randn(30, 2), torch.randint(3, (30, 1)).double()
    z, ladj = codec.encode_ladj(x, c)
    for found, expected in zip((z, ladj), torch.func.vmap(lambda row, of: codec.encode_ladj(row[None], of[None]))(x, c)):
        torch.testing.assert_close(found, expected.squeeze(1))
    torch.testing.assert_close(codec.decode(z, c), x)
    torch.autograd.gradcheck(lambda t: codec.encode_ladj(t, c[:4]), x[:4].requires_grad_())


def test_errors_of_the_codecs():
    with pytest.raises(ValueError, match="finite"):
        AnchorWeights([1.0, 2.0])
    with pytest.raises(ValueError, match="positive scales"):
        AnchorWeights([[1.0, 2.0]], scale=[1.0])
    with pytest.raises(ValueError, match="sets must be positive"):
        ConditionalSpline(2, 4, AnchorWeights([[0.0]]), 0)
    with pytest.raises(ValueError, match="none was given"):
        perturbed("straight").encode(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="3 sets, got 1"):
        perturbed("straight").set_([MarginalSpline(2, 4).knots])


def moons(n, seed):
    x, label = make_moons(n, noise=0.1, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(label, dtype=torch.float32).unsqueeze(-1)


def log_density_of_moon(x, label):
    """Of one moon: its half circle blurred by the noise, by quadrature."""
    angle = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    circle = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    lower = torch.stack([1 - torch.cos(angle), 0.5 - torch.sin(angle)], -1)
    value = torch.empty(len(x), dtype=torch.float64)
    for moon, centres in enumerate((circle, lower)):
        rows = label[:, 0] == moon
        square = torch.cdist(x[rows].double(), centres).square()
        value[rows] = torch.logsumexp(-square / (2 * 0.1**2), -1) - math.log(len(angle)) - math.log(2 * math.pi * 0.1**2)
    return value


def integral(flow, c, low, high, steps=160):
    axes = [torch.linspace(a, b, steps) for a, b in zip(low, high)]
    points = torch.cartesian_prod(*axes).view(-1, len(axes))
    with torch.no_grad():
        p = flow.log_prob(points, torch.tensor(c).expand(len(points), -1)).exp()
    return float(p.sum()) * math.prod(float(axis[1] - axis[0]) for axis in axes)


def test_moons_given_the_class():
    x, label = moons(20_000, 0)
    flow = fit((x, label), max_layers=40, progress=False)
    test, of = moons(4000, 1)
    with torch.no_grad():
        gap = (log_density_of_moon(test, of) - flow.log_prob(test, of)).mean()
    assert 0 < float(gap) < 0.1
    for moon in (0.0, 1.0):
        assert integral(flow, [moon], (-3, -3), (4, 4)) == pytest.approx(1, abs=0.01)
    drawn = flow.sample((), of)
    assert drawn.shape == (4000, 2)
    # Samples of a class are of its own moon.
    nearer = log_density_of_moon(drawn, of) > log_density_of_moon(drawn, 1 - of)
    assert float(nearer.double().mean()) > 0.97


@pytest.mark.parametrize("conditioning", ["auto", "network"])
def test_a_normal_whose_mean_and_spread_follow_the_condition(conditioning):
    rng = np.random.default_rng(0)

    def rows(n):
        c = rng.uniform(-2, 2, (n, 1))
        mean, spread = np.sin(2 * c), 0.3 * np.exp(0.6 * c)
        x = mean + spread * rng.standard_normal((n, 1))
        log_p = (-0.5 * ((x - mean) / spread) ** 2 - np.log(spread) - 0.5 * math.log(2 * math.pi))[:, 0]
        return x.astype(np.float32), c.astype(np.float32), log_p

    x, c, _ = rows(20_000)
    layers = 12 if conditioning == "auto" else 3
    flow = fit((x, c), conditioning=conditioning, max_layers=layers, progress=False)
    x, c, log_p = rows(4000)
    with torch.no_grad():
        gap = log_p.mean() - float(flow.log_prob(torch.from_numpy(x), torch.from_numpy(c)).mean())
    assert -0.01 < gap < 0.1
    for at in (-1.5, 0.2, 1.9):
        assert integral(flow, [at], (-8,), (8,), steps=4001) == pytest.approx(1, abs=0.01)


def test_saved_and_loaded(tmp_path):
    x, label = moons(2000, 0)
    flow = fit((x, label), max_layers=3, progress=False)
    fluvial.save(flow, tmp_path / "moons.safetensors")
    again = fluvial.load(tmp_path / "moons.safetensors")
    assert torch.equal(flow.log_prob(x[:50], label[:50]), again.log_prob(x[:50], label[:50]))


def test_errors_of_conditional_fits():
    x, label = moons(2000, 0)
    with pytest.raises(ValueError, match="conditioning is one of"):
        fit((x, label), conditioning="kernels", progress=False)
    with pytest.raises(ValueError, match="more than 64 different conditions"):
        fit((x, x[:, :1]), conditioning="classes", progress=False)
    rare = label.clone()
    rare[:3] = 2.0
    with pytest.raises(ValueError, match=r"class \[2.0\] has 3 training rows"):
        fit((x, rare), validation=0.0, max_layers=3, progress=False)
