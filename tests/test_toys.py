"""Toys: their densities are normalised, belong to their samples, and have the entropy they say."""

import math

import numpy as np
import pytest
import torch

from fluvial import data
from fluvial.data.toys import Checkerboard, EightGaussians, Moons, Pinwheel, Rings, TwoSpirals

TOYS = {
    "moons": Moons,
    "moons, little noise": lambda: Moons(noise=0.03),
    "moons, much noise": lambda: Moons(noise=0.5),
    "rings": Rings,
    "eight gaussians": EightGaussians,
    "checkerboard": Checkerboard,
    "pinwheel": Pinwheel,
    "two spirals": TwoSpirals,
}
SETS = {
    "moons": (data.moons, 1.0076),
    "rings": (data.rings, 2.6232),
    "eight_gaussians": (data.eight_gaussians, 0.3121),
    "checkerboard": (data.checkerboard, math.log(32)),
    "pinwheel": (data.pinwheel, 2.3206),
    "two_spirals": (data.two_spirals, 2.5406),
}
every_toy = pytest.mark.parametrize("make", TOYS.values(), ids=TOYS.keys())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@every_toy
def test_density_integrates_to_one(make):
    toy = make()
    steps = [(high - low) / 300 for low, high in toy.box]
    axes = [low + step * (torch.arange(300, dtype=torch.float64) + 0.5) for (low, _), step in zip(toy.box, steps)]
    mass = toy.log_prob(torch.cartesian_prod(*axes)).exp().sum() * steps[0] * steps[1]
    assert mass.item() == pytest.approx(1, abs=1e-3)


@every_toy
def test_samples_have_the_density(make):
    toy = make()
    value, error = toy.entropy()
    log_prob = toy.log_prob(toy.sample(100_000, generator(3)))
    assert error < 1e-5
    assert abs(-log_prob.mean() - value) <= 4 * log_prob.std() / math.sqrt(len(log_prob)) + 1e-6


@every_toy
def test_samples_fill_every_cell_as_the_density_says(make):
    # Agreement of the mean log-density alone would not see a mirrored or a missing part of equal density.
    toy = make()
    n, fine, cells = 50_000, 240, 12
    (a, b), (c, d) = toy.box
    axes = [low + (high - low) / fine * (torch.arange(fine, dtype=torch.float64) + 0.5) for low, high in toy.box]
    p = toy.log_prob(torch.cartesian_prod(*axes)).exp() * (b - a) * (d - c) / fine**2
    expected = n * p.view(cells, fine // cells, cells, fine // cells).sum((1, 3))
    x = toy.sample(n, generator(5)).double()
    index = [((x[:, k] - low) / (high - low) * cells).long().clamp(0, cells - 1) for k, (low, high) in enumerate(toy.box)]
    counts = torch.bincount(index[0] * cells + index[1], minlength=cells**2).view(cells, cells)
    filled = expected > 20
    # The grid is coarse for the finest toys: 3 % of the expectation is granted to it.
    pull = (counts - expected)[filled].abs() / (expected.sqrt() + 0.03 * expected)[filled]
    assert pull.max() < 4.5
    assert counts[~filled].sum() < 0.01 * n


@every_toy
def test_log_prob_shapes_dtypes_and_blocks(make, monkeypatch):
    toy = make()
    x = toy.sample(60, generator())
    assert x.dtype == torch.float32
    log_prob = toy.log_prob(x)
    assert log_prob.dtype == torch.float32
    assert toy.log_prob(x.double()).dtype == torch.float64
    monkeypatch.setattr("fluvial.data.toy.BLOCK", 1)
    torch.testing.assert_close(toy.log_prob(x.view(3, 20, 2)), log_prob.view(3, 20))
    assert toy.log_prob(x[0]).shape == ()
    with pytest.raises(ValueError, match="points of the plane"):
        toy.log_prob(torch.zeros(5, 3))


def brute_force(points, curve, mass, noise):
    """Log-density of points on a curve that carries the given masses, blurred by noise."""
    square = torch.cdist(points, curve, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (mass.log() - 0.5 * square / noise**2).logsumexp(-1) - math.log(2 * math.pi * noise**2)


def fine_nodes(stretches):
    """Nodes and weights on [0, 1], so many that any rule would do."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(16))
    return ((torch.arange(stretches).unsqueeze(1) + (nodes + 1) / 2) / stretches).flatten(), weights.repeat(stretches) / (2 * stretches)


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.4])
def test_moons_quadrature_against_brute_force(noise):
    grid = torch.cartesian_prod(torch.linspace(-3, 4, 15, dtype=torch.float64), torch.linspace(-3, 3, 13, dtype=torch.float64))
    special = torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [30.0, -20.0]], dtype=torch.float64)
    points = torch.cat([grid, special])
    s, weights = fine_nodes(200)
    t = math.pi * s
    arcs = torch.cat([torch.stack([t.cos(), t.sin()], -1), torch.stack([1 - t.cos(), 0.5 - t.sin()], -1)])
    torch.testing.assert_close(Moons(noise).log_prob(points), brute_force(points, arcs, weights.repeat(2) / 2, noise), rtol=1e-9, atol=1e-8)


def test_spiral_quadrature_against_brute_force():
    toy = TwoSpirals(0.1)
    points = torch.cartesian_prod(*[torch.linspace(-3.8, 3.8, 15, dtype=torch.float64)] * 2)
    s, weights = fine_nodes(400)
    arm = math.pi * torch.stack([s * (3 * math.pi * s).cos(), s * (3 * math.pi * s).sin()], -1)
    expected = brute_force(points, torch.cat([arm, -arm]), (s * weights).repeat(2), 0.1)
    torch.testing.assert_close(toy.log_prob(points), expected, rtol=0, atol=1e-6)


def test_moons_have_the_geometry_of_scikit_learn():
    from sklearn.datasets import make_moons

    theirs = torch.from_numpy(make_moons(20_000, noise=0.1, random_state=0)[0])
    log_prob = Moons(0.1).log_prob(theirs)
    # Evenly spaced angles make their sample a little more regular than a random one, not different.
    assert abs(-log_prob.mean() - Moons(0.1).entropy()[0]) < 4 * log_prob.std() / math.sqrt(20_000)


def test_far_away_stays_finite_and_nothing_is_outside_the_plane():
    far = torch.tensor([[1e3, -1e3]])
    for make in (Moons, Rings, EightGaussians, TwoSpirals):
        assert torch.isfinite(make().log_prob(far)).all()
    board = Checkerboard().log_prob(torch.tensor([[-3.0, -3.0], [-1.0, -3.0], [5.0, 5.0], [3.0, 3.0]]))
    assert board.tolist() == pytest.approx([-math.log(32), -math.inf, -math.inf, -math.log(32)])


@pytest.mark.parametrize("name", SETS)
def test_data_sets(name):
    make, entropy = SETS[name]
    ds = make(2000, seed=1)
    assert ds.name == name
    assert ds.synthetic
    assert ds.x.shape == (2000, 2)
    assert ds.truth.entropy()[0] == pytest.approx(entropy, abs=6e-5)
    torch.testing.assert_close(make(2000, seed=1).x, ds.x, rtol=0, atol=0)
    assert not torch.equal(make(2000, seed=2).x, ds.x)
    ds.check()
    assert ds.split().test.truth is ds.truth


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan])
def test_noise_must_be_positive(noise):
    with pytest.raises(ValueError, match="moons: noise must be positive"):
        data.moons(10, noise=noise)
    with pytest.raises(ValueError, match="too fine"):
        Moons(1e-4).entropy()
