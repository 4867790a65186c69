"""Splines that lean towards the condition, and joint fits of condition and data by a block-triangular map."""

import math
import warnings

import numpy as np
import pytest
import torch

import fluvial
from fluvial.codecs import Chain, Encoded, MarginalSpline, ShearedSpline, Standardize
from fluvial.gaussianization import fit
from fluvial.gaussianization.joint_layers import best_affine, choose_lean, fit_sheared, sheared_counts, solve
from fluvial.gaussianization.kernel_histogram import BINS, grid_sums, histogram_
from fluvial.gaussianization.statistics import binned_grid
from fluvial.testing import check_codec


def perturbed():
    torch.manual_seed(0)
    codec = ShearedSpline(3, 2, 4)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return codec


def test_contract():
    check_codec(perturbed, lambda n: 2 * torch.randn(n, 3, dtype=torch.float64), condition=lambda n: torch.randn(n, 2, dtype=torch.float64))


def test_without_a_lean_it_is_a_spline(double):
    codec = perturbed()
    codec.set_lean_(torch.zeros(3, 2))
    x, u = torch.randn(50, 3), torch.randn(50, 2)
    for found, expected in zip(codec.encode_ladj(x, u), codec.spline.encode_ladj(x)):
        torch.testing.assert_close(found, expected)


def test_errors_of_the_codecs():
    with pytest.raises(ValueError, match="condition_features must be positive"):
        ShearedSpline(2, 0)
    with pytest.raises(ValueError, match=r"finite slopes of shape \(2, 1\)"):
        ShearedSpline(2, 1).set_lean_(torch.zeros(2))
    with pytest.raises(ValueError, match="none was given"):
        ShearedSpline(2, 1).encode(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="expected a codec"):
        Encoded(torch.nn.Linear(1, 1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="none was given"):
        Encoded(Standardize(1))(None)


def counted(x, u, lean):
    """Rows x (D, n) along lines: coordinates and shifts as a fit counts them."""
    cosine = 1 / np.sqrt(1 + (lean**2).sum(1))
    shift = (cosine[:, None] * lean) @ u
    w = np.ascontiguousarray(cosine[:, None] * x + shift, np.float32)
    counts = np.zeros((len(w), BINS + 2), np.int64)
    histogram_(w, counts)
    return binned_grid(counts, w.min(1), w.max(1)), grid_sums(w, shift), cosine, w, shift


def test_splines_solve_the_convex_problem():
    """The likelihood of the rows themselves, by a general minimiser over the values at the knots, is not above that of the solution."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    u = rng.standard_normal((1, 4000))
    x = np.sin(2 * u) + np.exp(0.5 * u) * rng.standard_normal((1, 4000))
    coordinates, shift, cosine, w, s = counted(x / x.std(), u, np.array([[1.2]]))
    sums = sheared_counts(coordinates, shift, cosine)
    knots = np.quantile(w, np.linspace(0.01, 0.99, 8), axis=1).T
    found = solve(sums, knots, prior=1e-9)[0]
    slope = best_affine(sums)[0][0]

    def loss(f):
        if np.diff(f).min() <= 0:
            return math.inf
        below, above = np.minimum(w[0] - knots[0, 0], 0), np.maximum(w[0] - knots[0, -1], 0)
        value = np.interp(w[0], knots[0], f) + slope * (below + above)
        place = np.searchsorted(knots[0], w[0]) - 1
        rise = np.diff(f) / np.diff(knots[0])
        log_slope = np.where((place < 0) | (place > 6), math.log(slope), np.log(rise[place.clip(0, 6)]))
        return (0.5 * ((value - s[0]) / cosine[0]) ** 2 - log_slope).mean()

    best = minimize(loss, found + 0.01 * knots[0], method="Nelder-Mead", options={"maxiter": 6000, "maxfev": 6000, "xatol": 1e-5, "fatol": 1e-9})
    assert loss(found) == pytest.approx(best.fun, abs=2e-4)
    np.testing.assert_allclose(best.x, found, atol=0.05)


def test_a_correlated_normal_is_solved_by_one_layer():
    """The line has tan θ = −ρ/(1 − √(1 − ρ²)), and the affine map along it takes the mean and the spread off at once."""
    rng, rho = np.random.default_rng(1), 0.8
    u = rng.standard_normal((1, 20_000))
    x = rho * u + math.sqrt(1 - rho**2) * rng.standard_normal((1, 20_000))
    lean = choose_lean(x, u, 0)
    assert lean[0, 0] == pytest.approx(-rho / (1 - math.sqrt(1 - rho**2)), rel=0.15)
    coordinates, shift, *_ = counted(x, u, lean)
    codec = fit_sheared(coordinates, shift, lean, rows=20_000, bins=1, alpha=1.0)
    z, ladj = codec.encode_ladj(torch.from_numpy(x.T).float(), torch.from_numpy(u.T).float())
    assert abs(float(np.corrcoef(z[:, 0].detach(), u[0])[0, 1])) < 0.1
    assert float(z.std().detach()) == pytest.approx(1, abs=0.02)
    gain = float((ladj - 0.5 * z[:, 0] ** 2).mean().detach()) + 0.5
    assert gain == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.02)


def test_without_a_lean_the_solution_is_the_quantile_map():
    from scipy.special import ndtri

    rng = np.random.default_rng(2)
    x = np.ascontiguousarray(rng.logistic(size=(1, 50_000)) / 1.8)
    coordinates, shift, cosine, *_ = counted(x, np.zeros((1, 50_000)), np.zeros((1, 1)))
    p = np.linspace(0.02, 0.98, 25)
    knots = coordinates[0].quantile(p)[None]
    np.testing.assert_allclose(solve(sheared_counts(coordinates, shift, cosine), knots, prior=1e-9)[0], ndtri(p), atol=0.03)


def heteroscedastic(n, seed):
    rng = np.random.default_rng(seed)
    c = rng.uniform(-2, 2, (n, 1))
    mean, spread = np.sin(2 * c), 0.3 * np.exp(0.6 * c)
    x = mean + spread * rng.standard_normal((n, 1))
    log_p = (-0.5 * ((x - mean) / spread) ** 2 - np.log(spread) - 0.5 * math.log(2 * math.pi))[:, 0]
    return torch.from_numpy(x).float(), torch.from_numpy(c).float(), log_p


def many_conditions(n, seed):
    """Means and spreads of two correlated coordinates, which depend on four conditions."""
    rng = np.random.default_rng(seed)
    c = rng.standard_normal((n, 4))
    c[:, 1] = 0.6 * c[:, 0] + 0.8 * c[:, 1]
    mean = np.stack([np.sin(c[:, 0]) + 0.5 * c[:, 1], np.cos(c[:, 1] + c[:, 3])], 1)
    spread = 0.4 * np.exp(0.4 * c[:, [2, 0]])
    noise = rng.standard_normal((n, 2))
    log_p = -0.5 * (noise**2).sum(1) - np.log(spread).sum(1) - 0.5 * math.log(0.51) - math.log(2 * math.pi)
    noise[:, 1] = 0.7 * noise[:, 0] + math.sqrt(0.51) * noise[:, 1]
    return torch.from_numpy(mean + spread * noise).float(), torch.from_numpy(c).float(), log_p


def moons_by_angle(n, seed):
    """Both moons, and a noisy look at the angle."""
    rng = np.random.default_rng(seed)
    angle, lower = rng.uniform(0, math.pi, n), rng.integers(0, 2, (n, 1))
    x = _moons(angle, lower) + 0.1 * rng.standard_normal((n, 2))
    c = (angle + 0.3 * rng.standard_normal(n))[:, None]
    grid = np.linspace(0, math.pi, 401)
    log_share = -0.5 * ((c - grid) / 0.3) ** 2
    log_share -= np.log(np.exp(log_share).sum(1, keepdims=True))
    square = [((x[:, None] - _moons(grid, moon)) ** 2).sum(-1) for moon in (0, 1)]
    p = sum(0.5 * np.exp(log_share - part / (2 * 0.1**2)).sum(1) for part in square) / (2 * math.pi * 0.1**2)
    return torch.from_numpy(x).float(), torch.from_numpy(c).float(), np.log(p)


def _moons(angle, lower):
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.where(lower == 0, upper, np.array([1, 0.5]) - upper)


def gap(flow, data):
    x, c, log_p = data
    with torch.no_grad():
        return float(log_p.mean() - flow.log_prob(x, c).double().mean())


def integral(flow, c, low, high, steps):
    axes = [torch.linspace(a, b, steps) for a, b in zip(low, high)]
    points = torch.cartesian_prod(*axes).view(-1, len(axes))
    with torch.no_grad():
        p = flow.log_prob(points, torch.tensor(c).expand(len(points), -1)).exp()
    return float(p.sum()) * math.prod(float(axis[1] - axis[0]) for axis in axes)


def test_a_normal_whose_mean_and_spread_follow_the_condition(tmp_path):
    x, c, _ = heteroscedastic(20_000, 0)
    flow = fit((x, c), conditioning="joint", max_layers=40, progress=False)
    assert -0.01 < gap(flow, heteroscedastic(4000, 1)) < 0.1
    for at in (-1.5, 0.2, 1.9):
        assert integral(flow, [at], (-8,), (8,), 4001) == pytest.approx(1, abs=0.01)
    drawn = flow.sample(4000, torch.tensor([1.0]))
    assert float(drawn.mean()) == pytest.approx(math.sin(2), abs=0.06)
    assert float(drawn.std()) == pytest.approx(0.3 * math.exp(0.6), rel=0.1)
    fluvial.save(flow, tmp_path / "flow.safetensors")
    again = fluvial.load(tmp_path / "flow.safetensors")
    assert torch.equal(flow.log_prob(x[:50], c[:50]), again.log_prob(x[:50], c[:50]))
    # What Gaussianizes the conditions is there once, and its result near to normal.
    assert sum(isinstance(module, Encoded) for module in flow.modules()) == 1
    assert isinstance(flow.context, Encoded)
    u = flow.context(c).detach()
    assert (float(u.mean()), float(u.std())) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.05))


def test_many_conditions():
    """Anchors do not fill four dimensions: a kernel stays half a nat away."""
    x, c, _ = many_conditions(10_000, 0)
    flow = fit((x, c), conditioning="joint", max_layers=40, progress=False)
    assert -0.01 < gap(flow, many_conditions(4000, 1)) < 0.3


def test_moons_given_an_angle():
    x, c, _ = moons_by_angle(10_000, 0)
    flow = fit((x, c), conditioning="joint", max_layers=40, progress=False)
    # Without the angle it would be above 1.
    assert 0 < gap(flow, moons_by_angle(1000, 1)) < 0.5
    for at in (0.3, 2.0):
        assert integral(flow, [at], (-3, -3), (4, 4), 160) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("features", [1, 2])
def test_nothing_is_gained_where_there_is_nothing(features):
    rng = np.random.default_rng(3)
    x, c, test, of = (
        torch.from_numpy(rng.standard_normal((n, d))).float() for n, d in ((20_000, features), (20_000, 1), (20_000, features), (20_000, 1))
    )
    flow = fit((x, c), conditioning="joint", max_layers=20, progress=False)
    log_p = (-0.5 * test.square().sum(-1) - 0.5 * features * math.log(2 * math.pi)).double()
    assert -0.002 < gap(flow, (test, of, log_p.numpy())) < 0.01


def test_tied_conditions_are_spread_without_a_word():
    x, c, _ = heteroscedastic(4000, 0)
    classes = (c > 0).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow = fit((x, classes), conditioning="joint", max_layers=10, progress=False)
    assert isinstance(flow.context, Encoded)
    u = flow.context(torch.tensor([[0.0], [1.0]])).detach()
    # Quartiles, in the middles of their halves.
    assert u[:, 0].tolist() == [pytest.approx(-0.67, abs=0.1), pytest.approx(0.67, abs=0.1)]
    with torch.no_grad():
        assert flow.log_prob(x, classes).mean() > fit(x, max_layers=10, progress=False).log_prob(x).mean() + 0.1


@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_for_any_number_of_threads(weighted):
    x, c, _ = many_conditions(20_000, 0)
    data = (x, c, torch.from_numpy(np.random.default_rng(0).uniform(0.5, 2, len(x)))) if weighted else (x, c)
    one, two = (fit(data, conditioning="joint", max_layers=3, threads=threads, progress=False).state_dict() for threads in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_the_same_from_a_folder_of_files_cut_anyhow(tmp_path):
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").table
    x, c, _ = many_conditions(12_000, 0)
    names = ["a", "b", "c1", "c2", "c3", "c4"]
    whole = table(dict(zip(names, torch.cat([x, c], 1).numpy().T)))
    for number, (start, stop) in enumerate(((0, 1), (1, 8190), (8190, 8200), (8200, 12_000))):
        parquet.write_table(whole.slice(start, stop - start), tmp_path / f"{number}.parquet", row_group_size=777)
    arrays = fit((x, c), conditioning="joint", max_layers=3, progress=False).state_dict()
    folder = fit(tmp_path, columns=names[:2], condition=names[2:], conditioning="joint", max_layers=3, progress=False).state_dict()
    for name, value in arrays.items():
        assert torch.equal(value, folder[name]), name


def test_resumed_it_ends_as_if_unbroken(tmp_path):
    x, c, _ = heteroscedastic(4000, 0)
    unbroken = fit((x, c), conditioning="joint", max_layers=6, progress=False)
    fit((x, c), conditioning="joint", max_layers=3, directory=tmp_path, progress=False)
    resumed = fit((x, c), conditioning="joint", max_layers=6, directory=tmp_path, resume=True, progress=False)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_errors_of_joint_fits():
    x, c, _ = heteroscedastic(1000, 0)
    with pytest.raises(ValueError, match="the data have no condition"):
        fit(x, conditioning="joint", progress=False)
    with pytest.raises(ValueError, match="take marginal='spline'"):
        fit((x, c), conditioning="joint", marginal="kde", progress=False)


def test_a_flow_is_trained_on():
    x, c, _ = heteroscedastic(2000, 0)
    flow = fit((x, c), conditioning="joint", max_layers=3, progress=False)
    before = gap(flow, heteroscedastic(2000, 1))
    fluvial.fit(flow, (x, c), max_steps=40, batch_size=256, learning_rate=3e-3, warmup=5, progress=False)
    assert gap(flow, heteroscedastic(2000, 1)) < before - 0.02
    assert isinstance(flow.codec, Chain)
    assert isinstance(flow.codec.parts[1], MarginalSpline)
