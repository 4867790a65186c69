"""Information measures against problems whose answer is known."""

import math

import numpy as np
import pytest
import torch

from fluvial.data import Dataset
from fluvial.gaussianization.held_out import HeldOutFits, first_layer, log_prob, safe_log_prob
from fluvial.gaussianization.information import (
    Information,
    entropy,
    kl_divergence,
    mutual_information,
    negentropy,
    total_correlation,
)
from fluvial.manifolds import Sphere
from fluvial.metrics.estimate import Estimate

NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
FAST = {"folds": 2, "threads": 1, "patience": 5}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(seed):
    return np.random.default_rng(seed)


def correlation(features, total, seed):
    """A correlation matrix of random axes whose total correlation −½ log det is as wanted."""
    axes = np.linalg.qr(random(seed).standard_normal((features, features)))[0]
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        covariance = axes @ np.diag(np.linspace(0.3, 2.2, features) ** middle) @ axes.T
        scale = np.sqrt(np.diag(covariance))
        matrix = covariance / scale / scale[:, None]
        low, high = (middle, high) if tc(matrix) < total else (low, middle)
    return matrix


def tc(matrix):
    return -0.5 * np.linalg.slogdet(matrix)[1]


def gaussian(matrix, rows, seed):
    return random(1000 + seed).standard_normal((rows, len(matrix))) @ np.linalg.cholesky(matrix).T


def near(found, truth, *, errors=3.0, biases=1.5):
    """Whether truth and estimate agree within what the estimate says of itself."""
    return abs(found.value - truth) < errors * found.standard_error + biases * abs(found.bias)


def density_entropy(density, low, high):
    x = np.linspace(low, high, 200_001)
    p = density(x)
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum() * (x[1] - x[0]))


def normal_density(x, mean, sd):
    return np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("features", "truth"), [(4, 0.223), (10, 1.189)])
def test_total_correlation_of_gaussians(features, truth):
    offsets = []
    for seed in range(3):
        x = gaussian(correlation(features, truth, seed), 5000, seed)
        found = total_correlation(x, threads=1)
        # At D = 4 the standard error is 4 % of the truth: what remains once the sample's own correlations are taken for it is the fit's.
        assert abs(found.value - tc(np.corrcoef(x.T))) < 0.05 * truth
        assert abs(found.value / truth - 1) < 0.1
        assert found.standard_error < 0.05 * truth
        assert -0.1 * truth < found.bias < 0.0 or features == 4
        offsets.append(found.value / truth - 1)
    assert abs(np.mean(offsets)) < 0.05


def test_mutual_information_of_gaussian_blocks():
    matrix = correlation(10, 1.189, 3)
    truth = tc(matrix) - tc(matrix[:4, :4]) - tc(matrix[4:, 4:])
    for seed in range(2):
        x = gaussian(matrix, 5000, seed)
        found = mutual_information(x[:, :4], x[:, 4:], folds=3, threads=1)
        assert abs(found.value / truth - 1) < 0.1
        assert near(found, truth)


def test_dependence_without_correlation():
    x, noise = random(0).standard_normal((2, 3000))
    y = x**2 + 0.5 * noise
    at = np.linspace(-8, 8, 4001)
    mass = normal_density(at, 0, 1) * (at[1] - at[0])
    grid = np.linspace(-4, 40, 4001)
    density = np.array([mass @ normal_density(v, at**2, 0.5) for v in grid])
    entropy_of_y = float(-(density * np.log(np.maximum(density, 1e-300))).sum() * (grid[1] - grid[0]))
    truth = entropy_of_y - (NORMAL_ENTROPY + math.log(0.5))  # 0.803
    found = mutual_information(x, y, folds=3, threads=1)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.1
    assert 0.8 * truth < found.value < truth
    assert near(found, truth)
    assert found.bias < -0.02
    # Two columns depend on each other by their mutual information.
    assert total_correlation(np.stack([x, y], 1), folds=3, threads=1).value == pytest.approx(found.value, abs=0.02)


def test_independent_columns():
    x = random(1).exponential(size=(3000, 4))
    for found in (total_correlation(x, **FAST), mutual_information(x[:, :2], x[:, 2:], **FAST), mutual_information(x[:, 0], x[:, 1], **FAST)):
        assert near(found, 0.0)
        assert abs(found.value) < 0.02


def test_structure_within_blocks_is_no_mutual_information():
    def ring(seed):
        angle, radius = random(seed).uniform(0, 2 * math.pi, 2000), 2 + 0.2 * random(seed + 1).standard_normal(2000)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)

    found = mutual_information(ring(0), ring(2), **FAST)
    assert near(found, 0.0)
    assert abs(found.value) < 0.03


def test_maps_of_single_coordinates_change_no_dependence():
    x = gaussian(correlation(3, 0.5, 0), 1000, 0)
    mapped = np.stack([np.exp(x[:, 0]), 1e6 + 3 * x[:, 1], np.arctan(x[:, 2])], 1)
    total, mutual = total_correlation(x, **FAST), mutual_information(x[:, :2], x[:, 2], **FAST)
    assert total_correlation(mapped, **FAST).value == total.value
    assert mutual_information(mapped[:, :2], mapped[:, 2], **FAST).value == mutual.value
    mirrored = total_correlation(x * [-1, 1, -1], **FAST)
    assert mirrored.value == pytest.approx(total.value, abs=0.02)


def test_scale_and_place_of_an_entropy():
    x = random(0).standard_normal((1000, 2))
    found = entropy(x, **FAST)
    assert entropy(x * [2.0, 2.0**-10], **FAST).value == pytest.approx(found.value - 9 * math.log(2), abs=1e-12)
    # Single precision would not tell these rows apart; a last layer more or less comes from their rounding.
    assert entropy(x + [1e7, 0.0], **FAST).value == pytest.approx(found.value, abs=0.03)


def test_entropies_against_quadrature():
    g, n = random(5), 4000
    mixture = np.where(g.uniform(size=n) < 0.3, -3 + 0.5 * g.standard_normal(n), 2 + g.standard_normal(n))
    truth = density_entropy(lambda x: 0.3 * normal_density(x, -3, 0.5) + 0.7 * normal_density(x, 2, 1), -12, 12)
    cases = {
        "box": (g.uniform(-2, 2, size=(n, 2)), 2 * math.log(4)),
        "exponential": (0.5 * g.exponential(size=n), 1 + math.log(0.5)),
        "mixture": (mixture, truth),
        "normal": (gaussian(correlation(3, 0.5, 0), n, 0), 3 * NORMAL_ENTROPY - 0.5),
    }
    for name, (x, expected) in cases.items():
        found = entropy(x, folds=3, threads=1)
        assert near(found, expected, biases=2.5), name
        assert -3 * found.standard_error < found.value - expected < 0.06 + 3 * found.standard_error, name  # never far below
        assert "upper bound" in found.note


def test_divergence_of_two_gaussians():
    p = gaussian(np.array([[1.0, 0.5], [0.5, 1.0]]), 4000, 0)
    q = 1.3 * random(9).standard_normal((3000, 2)) + [0.5, 0.0]
    forward = 0.5 * ((2 + 0.25) / 1.69 - 2 + 2 * math.log(1.69) - math.log(0.75))
    inverse = np.linalg.inv(np.array([[1.0, 0.5], [0.5, 1.0]]))
    backward = 0.5 * (1.69 * np.trace(inverse) + 0.25 * inverse[0, 0] - 2 + math.log(0.75) - 2 * math.log(1.69))
    for found, truth in ((kl_divergence(p, q, folds=3, threads=1), forward), (kl_divergence(q, p, folds=3, threads=1), backward)):
        assert near(found, truth, biases=1.0)
        assert abs(found.value - truth) < 0.2 * truth
    assert "mean of p/q" in found.note
    # A change of units of both changes nothing.
    scaled = kl_divergence(1e-3 * p + 7, 1e-3 * q + 7, folds=3, threads=1)
    assert near(scaled, forward, biases=1.0)


def test_divergence_of_two_samples_of_one_distribution():
    x = random(2).exponential(size=(4000, 2))
    found = kl_divergence(x[:2000], x[2000:], **FAST)
    assert near(found, 0.0)
    assert abs(found.value) < 0.05


def test_negentropy():
    x = random(3).exponential(size=(3000, 2))
    mixed = x @ np.array([[1.0, 2.0], [-0.5, 1.0]])
    truth = 2 * (NORMAL_ENTROPY - 1)
    for rows in (x, mixed):
        found = negentropy(rows, folds=3, threads=1)
        assert near(found, truth)
        assert abs(found.value - truth) < 0.15 * truth
    normal = negentropy(gaussian(correlation(3, 0.5, 0), 3000, 0), **FAST)
    assert near(normal, 0.0)
    assert abs(normal.value) < 0.04


def test_information_of_a_label():
    label = random(0).integers(0, 2, 3000)
    x = 2.0 * label + random(1).standard_normal(3000)
    truth = density_entropy(lambda at: 0.5 * normal_density(at, 0, 1) + 0.5 * normal_density(at, 2, 1), -8, 10) - NORMAL_ENTROPY
    found = mutual_information(x, label, folds=3, threads=1)
    # Its edges cost more than smooth dependence does.
    assert near(found, truth)
    assert 0.6 * truth < found.value < truth
    assert "equal values of column 0 ranked at random" in found.note
    assert mutual_information(random(2).standard_normal(3000), label, folds=3, threads=1).value < 0.01


def test_weights():
    g = random(4)
    x = 1.5 * g.standard_normal((4000, 2))
    weight = np.exp(-0.5 * (x**2).sum(1) * (1 - 1 / 1.5**2))  # to the standard normal distribution
    found = entropy(Dataset(x, weight=weight), folds=3, threads=1)
    assert near(found, 2 * NORMAL_ENTROPY, biases=1.0)
    assert abs(found.value - entropy(x, folds=3, threads=1).value) > 0.5
    # Rows of weight 0 count for nothing, whatever they hold.
    far = np.concatenate([x, np.full((7, 2), 1e4)])
    padded = total_correlation((far, None, np.concatenate([weight, np.zeros(7)])), **FAST)
    assert padded.n == 4000
    assert near(padded, 0.0)
    y = x[:, 0] + g.standard_normal(4000)
    truth = 0.5 * math.log(2.0)
    assert near(mutual_information((x[:, 0], None, weight), y, **FAST), truth)
    with pytest.raises(ValueError, match="different weights"):
        mutual_information((x, None, weight), (y, None, np.ones(4000)))


def test_standard_errors_are_of_the_right_size():
    matrix = np.array([[1.0, 0.6], [0.6, 1.0]])
    figures = {
        "total correlation": lambda seed: total_correlation(gaussian(matrix, 800, seed), **FAST),
        "entropy": lambda seed: entropy(random(seed).exponential(size=600), **FAST),
        "divergence": lambda seed: kl_divergence(random(seed).standard_normal(600), 1.5 * random(100 + seed).standard_normal(600) + 0.8, **FAST),
    }
    for name, figure in figures.items():
        found = [figure(seed) for seed in range(20)]
        spread = np.std([one.value for one in found], ddof=1)
        expected = np.mean([one.standard_error for one in found])
        assert 0.65 < spread / expected < 1.5, (name, spread, expected)


def test_a_row_far_from_all_others_does_not_decide():
    """Four modes in four dimensions: of thousands of rows a few lie where a fit of many layers has seen none."""
    means = 2 * random(3).standard_normal((4, 4))

    def draw(seed):
        return means[random(seed).integers(4, size=2000)] + 0.3 * random(10 + seed).standard_normal((2000, 4))

    # Without a floor under the densities these errors are 0.13 and 0.14.
    assert total_correlation(draw(0), alpha=(1.0, 0.5), **FAST).standard_error < 0.05
    assert entropy(draw(2), alpha=(0.0, 0.5), **FAST).standard_error < 0.07


def test_the_floor_is_a_density():
    """What is held out is scored by densities that integrate to 1, floor and all."""
    x = random(0).standard_normal((1000, 2)) ** 3
    fits = HeldOutFits("test", 2, 0, 1, progress=False)
    flow = fits.fit(x, None, max_layers=5)
    u, step = np.linspace(-12, 12, 1201, retstep=True)
    grid, jacobian = np.sinh(u), np.cosh(u)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    density = np.exp(safe_log_prob(flow, np.stack([a.ravel(), b.ravel()], 1))).reshape(a.shape) * jacobian[:, None] * jacobian
    assert density.sum() * step**2 == pytest.approx(1.0, abs=0.01)
    far = np.array([[100.0, -100.0], [1e4, 1e4]])
    assert (safe_log_prob(flow, far) >= log_prob(first_layer(flow), far) + math.log(0.0029)).all()


def test_what_is_returned():
    x = gaussian(correlation(3, 0.5, 0), 600, 0)
    found = total_correlation(torch.from_numpy(x).float(), folds=3, seed=1, threads=1)
    assert isinstance(found, Information)
    assert isinstance(found, Estimate)
    assert found.n == 600
    assert len(found.layers) == 3
    assert math.isfinite(found.bias)
    assert found.to_dict()["value"] == found.value
    again = total_correlation(torch.from_numpy(x).float(), folds=3, seed=1, threads=2)
    assert again == found
    assert total_correlation(x, folds=3, seed=2, threads=1).value != found.value


def test_settings_reach_the_fits():
    x = gaussian(correlation(3, 0.5, 0), 400, 0)
    assert max(total_correlation(x, max_layers=1, **FAST).layers) <= 1
    axes = total_correlation(x, rotation="pca", **FAST).value
    assert axes != total_correlation(x, rotation="haar", **FAST).value
    with pytest.raises(TypeError, match=r"rotation, marginal.*got directory"):
        entropy(x, directory="somewhere")
    with pytest.raises(ValueError, match="rotation is one of"):
        entropy(x, rotation="sideways")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mutual_information(x, x[:-1]), "x has 300 rows and y 299"),
        (lambda x: kl_divergence(x, x[:, :2]), "x has 3 columns and y 2"),
        (lambda x: entropy(np.where(np.arange(3) == 1, 4.0, x)), "column 1 holds one value only"),
        (lambda x: kl_divergence(x, np.where(np.arange(3) == 1, 4.0, x)), "y: column 1 holds one value only"),
        (lambda x: total_correlation(Dataset(np.where(np.arange(3) == 2, 4.0, x), names=("a", "b", "c"))), "column 'c'"),
        (lambda x: entropy(x[:20]), "20 rows are too few for 5 folds; at least 28"),
        (lambda x: entropy(np.where(np.arange(300)[:, None] == 17, np.nan, x)), "row 17, column 0 is nan"),
        (lambda x: mutual_information(x, np.where(np.arange(300) == 5, np.inf, x[:, 0])), "y: row 5, column 0 is inf"),
        (lambda x: entropy(np.round(x)), "has no density; add uniform noise"),
        (lambda x: negentropy(np.concatenate([x, x[:, :1] - x[:, 1:2]], 1)), "linear functions"),
        (lambda x: total_correlation(x[:, :1]), "one column"),
        (lambda x: entropy((x, x)), "has a condition"),
        (lambda x: entropy((x, None, -np.ones(300))), "weight of row 0 is negative"),
        (lambda x: entropy(x, folds=1), "folds must be a whole number from 2 on"),
        (lambda x: entropy(x, tail="bounded"), "tail is 'pareto' or 'gaussian'"),
        (lambda x: entropy(Dataset(x / np.linalg.norm(x, axis=1, keepdims=True), manifold=Sphere(2))), "flat space"),
    ],
)
def test_what_has_no_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(random(0).standard_normal((300, 3)))
