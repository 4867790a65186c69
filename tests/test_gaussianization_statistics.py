"""What a layer is fitted to, and from: counts, quantiles, marginal maps and rotations, against NumPy and against distributions that are known."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from fluvial.bases import Normal
from fluvial.codecs import Hadamard, MarginalSpline, Rotation, TrainableRotation
from fluvial.codecs.marginal_spline import Knots
from fluvial.flow import Flow
from fluvial.gaussianization.kernel_histogram import histogram_
from fluvial.gaussianization.marginals import automatic_bins, fit_marginals, knot_heights, probabilities
from fluvial.gaussianization.raw_counts import raw_coordinates
from fluvial.gaussianization.rotations import codec_of, kind_of, matrix_of
from fluvial.gaussianization.shard import Plan
from fluvial.gaussianization.sources import ArrayRows
from fluvial.gaussianization.statistics import Binned, binned_grid
from fluvial.gaussianization.workers import LocalWorkers

RNG = np.random.default_rng(0)


def columns(n, seed=0):
    """Columns of every nasty kind, n rows, float64."""
    rng = np.random.default_rng(seed)
    z, sign = rng.standard_normal(n), rng.choice([-1.0, 1.0], n)
    outlier = z.copy()
    outlier[0] = 1e8
    return {
        "normal": z,
        "offset": z + 1e3,
        "large offset": z + 1e6,
        "tiny": 1e-30 * z,
        "huge": 1e30 * z,
        "cauchy": rng.standard_cauchy(n),
        "cubed cauchy": rng.standard_cauchy(n) ** 3,
        "spikes": sign + 1e-4 * z,
        "narrowest spikes": sign + 1e-7 * z,
        "outlier": outlier,
        "integers": rng.integers(0, 5, n).astype(float),
        "two values": (np.arange(n) % 3 == 0).astype(float),
        "many zeros": np.where(np.arange(n) % 2, 0.0, rng.exponential(size=n)),
        "skew": np.exp(4 * z),
        "all magnitudes": 10.0 ** rng.uniform(-30, 30, n),
        "uniform": rng.random(n),
    }


def raw(rows, p, weight=None, threads=1):
    """Counts of a column as the first layer takes them."""
    x = np.asarray(rows, np.float32)[:, None]
    workers = LocalWorkers(Plan(ArrayRows(x, weight=weight), len(x), 0.0, 0, "eager"), threads=threads)
    try:
        workers.call("load", None, np.zeros(1), 1.0)
        return raw_coordinates(workers, 1, p)[0]
    finally:
        workers.close()


def gridded(rows):
    """Counts of a column as later layers take them."""
    x = np.ascontiguousarray(np.asarray(rows, np.float32)[None])
    counts = np.zeros((1, 4098), np.int64)
    histogram_(x, counts, engine="eager")
    return binned_grid(counts, x.min(1).astype(float), x.max(1).astype(float))[0]


def splines(knots):
    codec = MarginalSpline(len(knots.x), knots.x.shape[-1] - 1, tail="straight" if knots.shape is None else "pareto")
    codec.set_(*knots)
    return codec


@pytest.mark.parametrize("name", columns(2))
@pytest.mark.parametrize("n", [20, 2000])
def test_raw_quantiles_are_those_of_the_rows(name, n):
    rows = columns(n)[name].astype(np.float32).astype(float)
    p = np.concatenate([[0.0], probabilities(n, automatic_bins(n), "spline"), [1.0]])
    found, expected = raw(rows, p).quantile(p), np.quantile(rows, p, method="hazen")
    # Cells in which quantiles lie are cut into parts of 2^−15 of the number.
    ordered, between = np.abs(np.sort(rows)), np.clip(p * n - 0.5, 0, n - 1)
    scale = np.maximum(ordered[np.floor(between).astype(int)], ordered[np.ceil(between).astype(int)])
    assert (np.abs(found - expected) <= 2.0**-15 * scale + 1e-40).all(), f"quantiles of {name}: {found} for {expected}"


@pytest.mark.parametrize("name", ["normal", "cauchy", "two modes"])
def test_grid_quantiles_are_those_of_the_rows(name):
    rng = np.random.default_rng(1)
    rows = {"normal": rng.standard_normal(5000), "cauchy": rng.standard_cauchy(5000), "two modes": rng.choice([-2, 2], 300) + 0.1}[name]
    p = norm.cdf(knot_heights(len(rows), 32))
    found, expected = gridded(rows).quantile(p), np.quantile(rows.astype(np.float32), p, method="hazen")
    within = np.abs(expected) < 8
    assert (np.abs(found - expected)[within] <= 1 / 256).all()
    # Beyond the grid rows count as evenly spread: right where they begin and end.
    assert found.min() >= min(rows.min(), -8 - 1e-3) - 1e-6 and found.max() <= max(rows.max(), 8 + 1e-3) + 1e-6  # noqa: PT018 (one interval)


def test_quantiles_of_a_gap_lie_in_its_middle():
    """Half of the rows in either of two bins, far apart: as many below the middle as above."""
    binned = Binned(np.array([-1.1, -1.0, 1.0, 1.1]), np.array([50, 0, 50]))
    assert binned.quantile(np.array([0.5])) == pytest.approx(0.0, abs=1e-12)
    # Counts that are sums of weights: 100 to a row.
    heavy = Binned(binned.edges, 100 * binned.counts)
    p = np.linspace(0, 1, 41)
    np.testing.assert_allclose(heavy.quantile(p, unit=100.0), binned.quantile(p), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["normal", "offset", "tiny", "huge", "spikes", "outlier", "integers", "uniform", "cauchy"])
def test_moments_are_those_of_the_rows(name):
    rows = columns(2000)[name].astype(np.float32).astype(float)
    mean, sd = raw(rows, norm.cdf(knot_heights(2000, 22))).moments()
    # Cells without quantiles are 0.8 % of the number wide.
    assert abs(mean - rows.mean()) < 4e-3 * np.abs(rows).mean() + 0.02 * rows.std()
    assert abs(sd / rows.std() - 1) < 0.01 + 4e-3 * np.abs(rows).mean() / rows.std()


def test_grid_moments_and_excess():
    rows = np.random.default_rng(2).standard_t(4, 20_000)
    rows = rows[np.abs(rows) < 7]
    binned, low, high = gridded(rows), -1.5, 2.0
    assert binned.moments() == pytest.approx((rows.mean(), rows.std()), abs=2e-3)
    for found, beyond in zip(binned.excess(low, high), (low - rows[rows < low], rows[rows > high] - high)):
        beyond = np.sort(beyond)
        farther = 1 - (np.arange(len(beyond)) + 0.5) / len(beyond)
        np.testing.assert_allclose(found, [len(beyond), beyond.mean(), (beyond * farther).mean()], rtol=2e-3)
    assert (binned.excess(-20.0, 20.0) == 0).all(), "no rows beyond"


def test_rows_beyond_the_grid_count_as_far_as_they_go():
    binned = gridded(np.concatenate([np.random.default_rng(2).standard_normal(1000), [30.0, -10.0]]))
    assert binned.quantile(np.array([0.0, 1.0])) == pytest.approx([-9, 19], abs=0.1), "the middles of the outermost bins"
    assert binned.excess(-8.0, 8.0)[:, :2] == pytest.approx(np.array([[1, 1], [1, 11]]), abs=0.1)


def test_weights_are_repeated_rows():
    rows, weight = columns(3000)["cauchy"], np.random.default_rng(3).integers(0, 4, 3000).astype(float)
    p = norm.cdf(knot_heights(3000, 30))
    one, other = raw(rows, p, weight), raw(np.repeat(rows, weight.astype(int)), p)
    np.testing.assert_array_equal(one.edges, other.edges)
    np.testing.assert_array_equal(one.counts, other.counts)


def test_counts_do_not_depend_on_threads():
    rows, p = np.random.default_rng(4).standard_cauchy(40_000), norm.cdf(knot_heights(40_000, 64))
    one, three = raw(rows, p), raw(rows, p, threads=3)
    np.testing.assert_array_equal(one.edges, three.edges)
    np.testing.assert_array_equal(one.counts, three.counts)


@pytest.mark.parametrize("name", columns(2))
@pytest.mark.parametrize("n", [20, 1000])
def test_knots_increase_in_single_precision(name, n):
    """Whatever the column, and however strong the shrinkage: what is stored is a spline, and finite at every row."""
    rows = columns(n)[name].astype(np.float32)
    for marginal, bins in (("spline", 2), ("spline", 16), ("spline", 64), ("kde", 40), ("mixture", 40), ("affine", 1)):
        binned = raw(rows, probabilities(n, bins, marginal))
        for alpha in (0.0, 0.3, 0.999, 0.999999, 1.0) if marginal == "spline" else (0.0,):
            for tail in ("pareto", "gaussian"):
                codec = splines(fit_marginals([binned], rows=n, bins=bins, marginal=marginal, tail=tail, alpha=alpha))
                knots, case = codec.knots, (marginal, bins, alpha, tail)
                assert (knots.x.diff() > 0).all(), case
                assert (knots.y.diff() > 0).all(), case
                z, ladj = codec.encode_ladj(torch.from_numpy(rows).unsqueeze(-1))
                assert torch.isfinite(z).all(), case
                assert torch.isfinite(ladj).all(), case


DENSITIES = {
    "normal": (lambda rng, n: rng.standard_normal(n), -1.4189),
    "uniform": (lambda rng, n: rng.random(n), 0.0),
    "cauchy": (lambda rng, n: rng.standard_cauchy(n), -np.log(4 * np.pi)),
    "two modes": (lambda rng, n: rng.choice([-3, 3], n) + 0.5 * rng.standard_normal(n), -1.4189 - np.log(0.5) - np.log(2)),
    "spikes": (lambda rng, n: rng.choice([-1, 1], n) + 1e-4 * rng.standard_normal(n), -1.4189 - np.log(1e-4) - np.log(2)),
    "exponential": (lambda rng, n: rng.exponential(size=n), -1.0),
}


@pytest.mark.parametrize(
    ("marginal", "name", "gap"),
    [
        *(("spline", name, 0.1 if name == "two modes" else 0.06) for name in DENSITIES),
        ("kde", "normal", 0.03),
        ("kde", "two modes", 0.15),
        ("kde", "exponential", 0.1),
        ("mixture", "normal", 0.03),
        ("mixture", "two modes", 0.08),
        ("mixture", "uniform", 0.1),
        ("affine", "normal", 0.01),
    ],
)
def test_marginals_come_close_to_the_truth(marginal, name, gap):
    """Mean log-likelihood of new rows, against minus the entropy."""
    draw, truth = DENSITIES[name]
    rng = np.random.default_rng(5)
    rows, new = draw(rng, 10_000), torch.from_numpy(draw(rng, 10_000)).float().unsqueeze(-1)
    bins = 1 if marginal == "affine" else 50
    codec = splines(fit_marginals([raw(rows, probabilities(10_000, bins, marginal))], rows=10_000, bins=bins, marginal=marginal))
    found = Flow(codec, Normal(1)).log_prob(new)
    error = found.std().item() / 100
    assert truth - gap - 3 * error < found.mean().item() < truth + 3 * error + 0.02


def test_shrinkage_goes_from_quantiles_to_the_affine_map():
    rows = columns(5000)["skew"] ** 0.1
    binned = raw(rows, probabilities(5000, 32, "spline"))
    mean, sd = binned.moments()
    x = torch.from_numpy(rows).unsqueeze(-1)
    straight = fit_marginals([binned], rows=5000, bins=32, tail="gaussian", alpha=1.0)
    torch.testing.assert_close(splines(straight).double().encode(x), (x - mean) / sd, rtol=1e-5, atol=1e-5)
    heavy = splines(fit_marginals([binned], rows=5000, bins=32, alpha=1.0)).double()
    within = ((x - mean) / sd).abs() < 8
    torch.testing.assert_close(heavy.encode(x)[within], ((x - mean) / sd)[within], rtol=1e-5, atol=1e-5)
    none, half = (fit_marginals([binned], rows=5000, bins=32, alpha=alpha) for alpha in (0.0, 0.5))
    torch.testing.assert_close(none.y[0], torch.from_numpy(knot_heights(5000, 32)))
    torch.testing.assert_close(none.x, half.x)
    torch.testing.assert_close(half.y, 0.5 * none.y + 0.5 * (none.x - mean) / sd)
    torch.testing.assert_close(half.slope, 0.5 * none.slope + 0.5 / sd)


@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.standard_cauchy, np.random.Generator.random])
def test_knots_lie_at_quantiles(draw):
    rows = draw(np.random.default_rng(6), 20_000)
    y = knot_heights(20_000, 40)
    knots = fit_marginals([raw(rows, norm.cdf(y))], rows=20_000, bins=40)
    np.testing.assert_allclose(norm.cdf(knots.y[0]), (rows[:, None] < knots.x[0].numpy()).mean(0), atol=2e-4)


@pytest.mark.parametrize(("name", "shape"), [("pareto", 0.5), ("cauchy", 1.0), ("normal", 0.0), ("uniform", 0.0), ("exponential", 0.0)])
def test_tails_are_as_heavy_as_the_data(name, shape):
    rng = np.random.default_rng(7)
    rows = {
        "pareto": rng.pareto(2.0, 20_000) * rng.choice([-1, 1], 20_000),
        "cauchy": rng.standard_cauchy(20_000),
        "normal": rng.standard_normal(20_000),
        "uniform": rng.random(20_000),
        "exponential": rng.exponential(size=20_000) * rng.choice([-1, 1], 20_000),
    }[name]
    found = fit_marginals([raw(rows, norm.cdf(knot_heights(20_000, 40)))], rows=20_000, bins=40).shape.numpy()
    # Very heavy ones are held below 1, and light ones above 0.
    np.testing.assert_allclose(found, min(shape, 0.95), atol=0.15)
    assert ((found >= 1e-3) & (found <= 0.95)).all()


def test_few_rows_have_the_tail_expected():
    found = fit_marginals([raw(np.random.default_rng(0).standard_cauchy(20), norm.cdf(knot_heights(20, 8)))], rows=20, bins=8).shape.numpy()
    assert ((found > 0.0) & (found < 0.3)).all()


def test_tail_probabilities_of_heavy_tails():
    """How often a sample is beyond what one row in 10 000 is."""
    rows = np.random.default_rng(9).standard_t(2, 20_000)
    codec = splines(fit_marginals([raw(rows, norm.cdf(knot_heights(20_000, 64)))], rows=20_000, bins=64)).double()
    far = torch.from_numpy(t(2).isf([1e-4, 1e-5, 1e-6])).unsqueeze(-1)
    for side in (-1, 1):
        found = norm.logsf(side * codec.encode(side * far)[:, 0].detach().numpy())
        np.testing.assert_allclose(found, np.log([1e-4, 1e-5, 1e-6]), atol=2.0)


def test_knots_without_pareto_tails_have_no_shape():
    assert isinstance(fit_marginals([gridded(RNG.standard_normal(100))], rows=100, bins=8, tail="gaussian"), Knots)
    assert fit_marginals([gridded(RNG.standard_normal(100))], rows=100, bins=8, tail="gaussian").shape is None
    with pytest.raises(ValueError, match="'spline', 'kde', 'mixture', 'affine', got 'logistic'"):
        fit_marginals([], rows=100, bins=8, marginal="logistic")


KINDS = ["haar", "hadamard", "pca", "ica", "max_kswd", "learned"]


def unmixed(features, n=4000, seed=0):
    """Independent Laplace coordinates, rotated, and the rotation."""
    rng = np.random.default_rng(seed)
    turn = matrix_of("haar", features, seed=99)
    return turn @ (rng.laplace(size=(features, n)) / np.sqrt(2)), turn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [2, 5])
def test_rotations_are_rotations(kind, features):
    x = unmixed(features, 1000)[0].astype(np.float32)
    given = {"covariance": np.cov(x), "sample": x}
    matrix = matrix_of(kind, features, seed=3, **given)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(features), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(-1 if kind == "hadamard" and np.linalg.det(matrix) < 0 else 1)
    np.testing.assert_array_equal(matrix, matrix_of(kind, features, seed=3, **given))
    if kind in ("haar", "hadamard") and features > 2:
        assert not np.allclose(matrix, matrix_of(kind, features, seed=4))
    rows = torch.from_numpy(x.T)
    for trainable, other in ((False, Hadamard if kind == "hadamard" else Rotation), (True, TrainableRotation)):
        codec = codec_of(kind, matrix, seed=3, trainable=trainable)
        assert isinstance(codec, other)
        torch.testing.assert_close(codec.encode(rows), torch.from_numpy(x.T @ matrix.T.astype(np.float32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ica", "max_kswd", "learned"])
def test_independent_axes_are_found(kind):
    x, turn = unmixed(3)
    overlap = np.abs(matrix_of(kind, 3, seed=0, sample=x) @ turn)
    assert (overlap.max(1) > 0.98).all(), overlap
    assert (overlap.max(0) > 0.98).all(), "every axis by one row"


@pytest.mark.parametrize("kind", ["max_kswd", "learned"])
@pytest.mark.parametrize("features", [2, 10])
def test_the_one_direction_that_is_not_normal_is_found(kind, features):
    """Also where it is one of ten, and all covariances are those of a standard normal."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((features, 5000))
    x[0] = 0.9 * rng.choice([-1, 1], 5000) + np.sqrt(1 - 0.81) * x[0]
    turn = matrix_of("haar", features, seed=1)
    assert np.abs(matrix_of(kind, features, seed=0, sample=turn @ x) @ turn[:, 0]).max() > 0.97


def test_principal_axes():
    covariance = np.array([[2.0, 0.9], [0.9, 1.0]])
    matrix = matrix_of("pca", 2, seed=0, covariance=covariance)
    turned = matrix @ covariance @ matrix.T
    assert abs(turned[0, 1]) < 1e-12
    assert turned[0, 0] > turned[1, 1]


def test_which_rotation_comes_when():
    assert [kind_of("auto", layer, 8) for layer in range(5)] == ["none", "pca", "haar", "pca", "haar"]
    assert [kind_of("auto", layer, 200) for layer in range(3)] == ["none", "pca", "hadamard"]
    assert [kind_of("ica", layer, 8) for layer in range(3)] == ["none", "ica", "ica"]
    assert kind_of("auto", 3, 1) == kind_of("none", 3, 8) == "none"
    with pytest.raises(ValueError, match="'haar', .* got 'random'"):
        kind_of("random", 0, 2)
    with pytest.raises(ValueError, match="found from rows"):
        matrix_of("ica", 3, seed=0)


@pytest.mark.parametrize("make", [Rotation, lambda n: TrainableRotation(n, start="random")])
def test_rotations_can_be_set(make):
    codec = make(3)
    matrix = torch.from_numpy(matrix_of("haar", 3, seed=7))
    codec.set_(matrix)
    x = torch.randn(5, 3)
    torch.testing.assert_close(codec.encode(x), x @ matrix.float().T)
    torch.testing.assert_close(codec.decode(codec.encode(x)), x)
    with pytest.raises(ValueError, match="not orthogonal: .* differ from 0 and 1 by up to 3"):
        codec.set_(2 * torch.eye(3))
    with pytest.raises(ValueError, match="not orthogonal"):
        codec.set_(torch.full((3, 3), float("nan")))
    with pytest.raises(ValueError, match=r"shape \(3, 3\), got \(2, 2\)"):
        codec.set_(torch.eye(2))
    torch.testing.assert_close(codec.encode(x), x @ matrix.float().T)


def test_a_rotation_that_keeps_no_matrix_cannot_be_set():
    with pytest.raises(ValueError, match="only method='exponential' with start='random'"):
        TrainableRotation(3).set_(torch.eye(3))
    with pytest.raises(ValueError, match="only method='exponential'"):
        TrainableRotation(4, method="householder", start="random").set_(torch.eye(4))
