"""The convergence of Gaussianization for Gaussian input: closed forms, exact expectations, simulated layers, predictions."""

import math
import warnings

import numpy as np
import pytest
import torch

from fluvial.codecs import Chain, Hadamard, Rotation, Standardize
from fluvial.codecs.matrices import random_rotation
from fluvial.data import Dataset, digits
from fluvial.gaussianization.joint_scales import tune_jointly
from fluvial.gaussianization.predict import predict_layers
from fluvial.gaussianization.scaling import autoregressive, logarithmic_spectrum, spike, wishart
from fluvial.gaussianization.theory import (
    asymptotic_layers,
    expected_reduction,
    gaussian_loss,
    layer_covariance,
    layer_reduction,
    minimum_layers,
    reduction_series,
    simulate_losses,
    with_spectrum,
)


def geometric(features, condition):
    spectrum = torch.logspace(0, math.log10(condition), features, dtype=torch.float64)
    return spectrum / spectrum.mean()


# --- the loss and one layer


def test_loss_is_the_divergence_torch_knows():
    covariance, mean = 1.7 * wishart(5, seed=1), torch.randn(5, dtype=torch.float64)
    p = torch.distributions.MultivariateNormal(mean, covariance)
    standard = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64))
    expected = float(torch.distributions.kl_divergence(p, standard))
    assert gaussian_loss(covariance, mean) == pytest.approx(expected, rel=1e-12)
    assert gaussian_loss(covariance.numpy(), mean.numpy()) == gaussian_loss(covariance.tolist(), mean.tolist()) == gaussian_loss(covariance, mean)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-7])
def test_small_losses_keep_their_digits(size):
    """For correlation ε of two variables the loss is −½ log(1 − ε²), far below the rounding of 1."""
    loss = gaussian_loss([[1.0, size], [size, 1.0]])
    assert loss == pytest.approx(-0.5 * math.log1p(-(size**2)), rel=1e-8)


def test_reduction_is_the_difference_of_losses_and_the_marginal_divergences():
    for seed, scale in ((0, 1.0), (1, 3.0), (2, 0.2)):
        covariance, rotation = scale * wishart(6, seed=seed), random_rotation(6, seed=seed)
        after = layer_covariance(covariance, rotation)
        reduction = layer_reduction(covariance, rotation)
        torch.testing.assert_close(after.diagonal(), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-14)
        assert gaussian_loss(covariance) - gaussian_loss(after) == pytest.approx(reduction, abs=1e-12)
        marginals = (rotation @ covariance @ rotation.T).diagonal()
        assert sum(gaussian_loss([[float(variance)]]) for variance in marginals) == pytest.approx(reduction, abs=1e-12)
        # The dependence: the other part of the decomposition is what is left.
        assert gaussian_loss(after) == pytest.approx(-0.5 * float(torch.linalg.slogdet(after)[1]), abs=1e-12)


def test_principal_axes_need_one_layer():
    covariance = wishart(7, seed=3)
    axes = torch.linalg.eigh(covariance)[1].T
    assert layer_reduction(covariance, axes) == pytest.approx(gaussian_loss(covariance), abs=1e-12)
    assert gaussian_loss(layer_covariance(covariance, axes)) < 1e-25


def test_recursion_is_what_a_chain_of_codecs_does(double):
    """Rotations and affine marginals with the exact scales: the flow's own matrix and log-determinant give covariance and loss."""
    covariance = after = 2.0 * wishart(5, seed=0)
    parts, losses = [], [gaussian_loss(covariance)]
    for layer in range(20):
        rotation = Rotation(5, seed=layer)
        q = rotation.encode(torch.eye(5)).T
        variances = (q @ after @ q.T).diagonal()
        parts += [rotation, marginal_scales(variances)]
        after = layer_covariance(after, q)
        losses.append(gaussian_loss(after))
    rows, ladj = Chain(parts).encode_ladj(torch.eye(5))
    matrix = rows.T
    pushed = matrix @ covariance @ matrix.T
    assert float((pushed - after).abs().max()) < 1e-10
    divergence = 0.5 * float(pushed.trace() - 5 - torch.linalg.slogdet(covariance)[1]) - float(ladj[0])
    assert divergence == pytest.approx(losses[-1], abs=1e-10)
    assert all(later <= earlier for earlier, later in zip(losses, losses[1:]))


def marginal_scales(variances):
    codec = Standardize(len(variances))
    codec.scale.copy_(variances.sqrt())
    return codec


# --- expectations


@pytest.mark.parametrize("rho", [1e-6, 0.1, 0.8, 0.999, 1 - 1e-8])
def test_expected_reduction_of_two_variables(rho):
    expected = -math.log((1 + math.sqrt((1 - rho) * (1 + rho))) / 2)
    assert expected_reduction([1 + rho, 1 - rho]) == pytest.approx(expected, abs=1e-14, rel=1e-9)


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        # D = 4 in pairs: q² of a pair is uniform, −2 E log(b + (a − b) t) by hand.
        ([1.5, 1.5, 0.5, 0.5], -2 * ((1.5 * math.log(1.5) - 0.5 * math.log(0.5)) / 1.0 - 1)),
        ([1.0] * 9, 0.0),
        ([3.0], (3 - 1 - math.log(3)) / 2),
        ([3.0] * 4, 2 * (3 - 1 - math.log(3))),
    ],
)
def test_expected_reduction_in_closed_form(spectrum, expected):
    assert expected_reduction(spectrum) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("condition", [2.0, 1e4, 1e8])
@pytest.mark.parametrize("features", [3, 40, 1000])
def test_expected_reduction_by_other_quadrature(features, condition):
    """Adaptive quadrature of the Laplace integral as it stands in textbooks: ∫(e^−t − E e^−tX) dt/t, with ψ(D/2)."""
    integrate = pytest.importorskip("scipy.integrate")
    special = pytest.importorskip("scipy.special")
    spectrum = geometric(features, condition).numpy()

    def integrand(u):
        return math.exp(-math.exp(u)) - math.exp(-0.5 * np.log1p(2 * math.exp(u) * spectrum).sum())

    edges = [-45.0, -30, -20, -15, -10, -8, -6, -4, -2, 0, 2, 5]
    mean_log = sum(integrate.quad(integrand, a, b, epsabs=1e-13, epsrel=1e-13)[0] for a, b in zip(edges, edges[1:]))
    mean_log += sum(integrate.quad(lambda u: -math.exp(-0.5 * np.log1p(2 * math.exp(u) * spectrum).sum()), a, a + 5)[0] for a in range(5, 60, 5))
    expected = -features / 2 * (mean_log - special.digamma(features / 2) - math.log(2))
    assert expected_reduction(spectrum) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    "covariance",
    [wishart(8, seed=0), 0.5 * autoregressive(8, 0.9), logarithmic_spectrum(64, 100.0), spike(64, 0.3)],
    ids=["Wishart", "not of mean 1", "condition 100", "spike"],
)
def test_expected_reduction_against_monte_carlo(covariance):
    features, count = len(covariance), 4000
    spectrum = torch.linalg.eigvalsh(covariance)
    gauss = torch.randn(count, features, features, dtype=torch.float64)
    rotations = torch.linalg.qr(gauss[: 4000 * 8 // features])[0].mT
    variances = (rotations.square() * spectrum).sum(-1)
    reductions = (variances - 1 - variances.log()).sum(-1) / 2
    error = float(reductions.std()) / math.sqrt(len(reductions))
    assert 0 < error < 0.05 * float(reductions.mean())
    assert abs(expected_reduction(spectrum) - float(reductions.mean())) < 4 * error


@pytest.mark.parametrize("trace", [0.0, 1.0], ids=["mean 1", "any mean"])
def test_series_is_the_limit_close_to_the_identity(trace):
    e = torch.tensor([2.0, 0.3, -0.4, -0.9, -1.0], dtype=torch.float64) + trace
    differences = []
    for size in (2e-2, 1e-2):
        exact = expected_reduction(1 + size * e)
        differences.append(abs(reduction_series(1 + size * e) - exact))
        assert differences[-1] < 1e-2 * exact
    # What is left out is of fourth order.
    assert differences[0] / differences[1] == pytest.approx(16, rel=0.15)


def test_rate_close_to_the_identity_and_no_bound_far_from_it():
    for features in (2, 32, 256):
        near = 1 + 1e-4 * torch.linspace(-1, 1, features, dtype=torch.float64)
        share = expected_reduction(near) / gaussian_loss(torch.diag(near))
        assert share == pytest.approx(2 / (features + 2), rel=1e-3)
    tiny = torch.ones(64, dtype=torch.float64)
    tiny[0] = 1e-6
    tiny /= tiny.mean()
    large = torch.linalg.eigvalsh(spike(64, 0.3))
    assert expected_reduction(tiny) / gaussian_loss(torch.diag(tiny)) < 0.05 * 2 / 66
    assert expected_reduction(large) / gaussian_loss(torch.diag(large)) > 8 * 2 / 66


def test_layer_counts():
    assert asymptotic_layers(2, math.e) == pytest.approx(2.0)
    assert asymptotic_layers(256, 10.0) == pytest.approx(129 * math.log(10))
    assert asymptotic_layers(5, 1.0) == 0.0
    # ⌈(D + 1)/2⌉ for even D; one more for odd D > 1, where scales that move between layers make the difference.
    assert [minimum_layers(features) for features in (1, 2, 3, 4, 5, 6, 7, 8, 12)] == [1, 2, 3, 3, 4, 4, 5, 5, 7]


# --- layers after layers


def test_simulation_follows_the_covariance_layer_by_layer():
    covariance = 1.5 * wishart(6, seed=2)
    losses = simulate_losses(covariance, 30, seed=5)
    generator = torch.Generator().manual_seed(5)
    expected, after = [gaussian_loss(covariance)], covariance
    for _ in range(30):
        after = layer_covariance(after, random_rotation(6, seed=int(torch.randint(2**31 - 1, (), generator=generator))))
        expected.append(gaussian_loss(after))
    assert losses == pytest.approx(expected, rel=1e-9, abs=1e-30)
    assert simulate_losses(covariance, 30, seed=5) == losses != simulate_losses(covariance, 30, seed=6)


def test_simulation_stops_where_it_is_told():
    covariance = wishart(16, seed=0)
    losses = simulate_losses(covariance, 200)
    short = simulate_losses(covariance, 200, until=losses[0] / 10)
    assert short[-1] <= losses[0] / 10 < short[-2]
    assert short == pytest.approx(losses[: len(short)], rel=1e-10)


def test_losses_keep_their_digits_to_the_end():
    losses = simulate_losses(wishart(4, seed=0), 150)
    assert losses[-1] < 1e-20
    assert all(0 <= later <= earlier for earlier, later in zip(losses, losses[1:]))


def test_tail_has_the_theoretical_rate():
    """D = 64 from a factor 10 to a factor 1000 below the start: (D + 2)/2 layers for each factor e, within 10 %."""
    losses = simulate_losses(logarithmic_spectrum(64, 2.0), 300)
    first, last = (next(layer for layer, loss in enumerate(losses) if loss < losses[0] / factor) for factor in (10, 1000))
    assert last - first == pytest.approx(asymptotic_layers(64, 100.0), rel=0.1)


def test_hadamard_needs_as_many_layers_as_haar():
    covariance = logarithmic_spectrum(64, 100.0)

    def layers(rotation):
        return np.mean([len(simulate_losses(covariance, 400, seed=s, rotation=rotation, until=gaussian_loss(covariance) / 10)) - 1 for s in range(4)])

    assert layers("hadamard") == pytest.approx(layers("haar"), rel=0.1)


@pytest.mark.parametrize("features", [6, 64])
def test_hadamard_layers_are_those_of_the_codec(features):
    covariance = wishart(features, seed=1)
    generator = torch.Generator().manual_seed(0)
    codec = Hadamard(features, seed=int(torch.randint(2**31 - 1, (), generator=generator))).double()
    matrix = codec.encode(torch.eye(features, dtype=torch.float64)).T
    expected = gaussian_loss(layer_covariance(covariance, matrix))
    assert simulate_losses(covariance, 1, rotation="hadamard")[1] == pytest.approx(expected, rel=1e-10)


def test_hadamard_sees_nothing_in_a_diagonal_covariance():
    losses = simulate_losses(torch.diag(geometric(8, 10.0)), 2, rotation="hadamard")
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[2] < 0.95 * losses[1]


# --- all scales at once


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("features", [3, 4, 8])
def test_joint_scales_finish_at_the_minimum_number_of_layers_and_not_before(features, seed):
    covariance, layers = wishart(features, seed=seed), minimum_layers(features)
    assert tune_jointly(covariance, layers, seed=seed) < 1e-12
    assert tune_jointly(covariance, layers - 1, seed=seed, draws=2) > (1e-3 if features == 8 else 1e-6)


def test_greedy_layers_do_not_finish_there():
    covariance = wishart(8, seed=0)
    assert simulate_losses(covariance, 5)[-1] > 0.05
    assert tune_jointly(covariance, 5) < 1e-9


def test_joint_scales_are_never_worse_than_rescaling():
    """One layer has one optimum, which is known."""
    covariance = wishart(5, seed=1)
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotation(5, seed=int(torch.randint(2**31 - 1, (1,), generator=generator)))
    expected = gaussian_loss(covariance) - layer_reduction(covariance, rotation)
    assert tune_jointly(covariance, 1, draws=1, restarts=2) == pytest.approx(expected, rel=1e-9)
    assert tune_jointly([[4.0]], 1) < 1e-12


# --- predictions


def test_prediction_counts_simulated_layers_of_the_correlation_matrix():
    scales = torch.logspace(-3, 3, 12)
    rows = torch.randn(4000, 12) @ torch.linalg.cholesky(wishart(12, seed=0)).T.float() * scales + 100 * scales
    correlation = np.corrcoef(rows.double().numpy().T)
    expected = [len(simulate_losses(correlation, 400, seed=seed, until=gaussian_loss(correlation) / 10)) - 1 for seed in (0, 1, 2)]
    prediction = predict_layers(rows)
    assert prediction.layers == pytest.approx(np.mean(expected))
    assert prediction.spread == pytest.approx(np.std(expected, ddof=1))
    assert prediction.loss == pytest.approx(gaussian_loss(correlation), rel=1e-6)
    assert prediction.first_reduction == pytest.approx(expected_reduction(np.linalg.eigvalsh(correlation)), rel=1e-6)
    assert (prediction.features, prediction.theory, prediction.hopeless) == (12, asymptotic_layers(12, 10.0), False)
    assert not prediction.extrapolated
    assert prediction == predict_layers(rows.numpy()) == predict_layers(Dataset(rows))
    assert str(prediction) == prediction.advice


def test_prediction_warns_in_one_line_where_random_rotations_are_hopeless():
    with pytest.warns(UserWarning, match="more than max_layers = 20.*pca.*fine-tune") as caught:
        prediction = predict_layers(geometric(64, 100.0), max_layers=20)
    assert prediction.hopeless
    assert prediction.extrapolated == (prediction.layers > 80)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__


def test_prediction_of_many_features_is_continued_by_the_theory():
    with pytest.warns(UserWarning, match="max_layers"):
        prediction = predict_layers(geometric(600, 3.0), repeats=1)
    assert prediction.extrapolated
    assert math.isnan(prediction.spread)
    assert prediction.to_dict()["spread"] is None
    assert prediction.layers == pytest.approx(prediction.theory, rel=0.15)


def test_prediction_for_weights_constant_columns_and_images():
    rows = torch.randn(500, 3)
    rows[:, 1] += rows[:, 0]
    weight = torch.randint(1, 4, (500,))
    repeated = rows.repeat_interleave(weight, 0)
    assert predict_layers((rows, None, weight.float())).loss == pytest.approx(predict_layers(repeated).loss, rel=1e-6)
    with_constant = torch.cat([rows, torch.full((500, 1), 7.0)], 1)
    assert predict_layers(with_constant) == predict_layers(rows)
    assert predict_layers(with_constant.view(500, 2, 2)) == predict_layers(rows)


def test_prediction_for_digits():
    prediction = predict_layers(digits(), repeats=1)
    assert 50 < prediction.features <= 64
    assert 5 < prediction.loss < 60
    assert 0.5 * prediction.theory < prediction.layers < 3 * prediction.theory


def test_prediction_does_not_warn_of_correlations_by_chance():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = predict_layers(torch.randn(300, 40), max_layers=10)
    assert "within sampling error" in prediction.advice
    with pytest.warns(UserWarning, match="max_layers"):
        predict_layers(torch.randn(300, 40) + 0.5 * torch.randn(300, 1), max_layers=10)


def test_prediction_for_one_column_and_for_dependent_columns():
    assert predict_layers(torch.randn(100, 1)).layers == 0
    rows = torch.randn(100, 3, dtype=torch.float64)
    dependent = torch.cat([rows, rows.sum(1, keepdim=True)], 1)
    with pytest.warns(UserWarning, match="rank 3"):
        prediction = predict_layers(dependent)
    assert prediction.hopeless
    assert prediction.to_dict()["layers"] is None


# --- errors


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.ones(2, 3), "square"),
        (torch.ones(3), "square"),
        ([[1.0, 0.5], [0.0, 1.0]], "symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "positive definite"),
        ([[1.0, 1.0], [1.0, 1.0]], "positive definite"),
        ([[1.0, math.nan], [math.nan, 1.0]], r"entry \(0, 1\)"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance, message):
    for function in (gaussian_loss, lambda c: layer_covariance(c, torch.eye(2)), lambda c: simulate_losses(c, 3), lambda c: tune_jointly(c, 3)):
        with pytest.raises(ValueError, match=message):
            function(covariance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_loss(torch.eye(2), [1.0]), "mean: expected 2"),
        (lambda: layer_covariance(torch.eye(2), torch.eye(3)), "rotation"),
        (lambda: layer_reduction(torch.eye(2), 2 * torch.eye(2)), "orthogonal"),
        (lambda: expected_reduction([1.0, -1.0]), "number 1 is -1"),
        (lambda: expected_reduction([1.0, math.inf]), "number 1 is inf"),
        (lambda: reduction_series(torch.eye(2)), "vector"),
        (lambda: with_spectrum([]), "vector"),
        (lambda: asymptotic_layers(0, 10.0), "features"),
        (lambda: asymptotic_layers(4, 0.5), "factor"),
        (lambda: minimum_layers(0), "features"),
        (lambda: simulate_losses(torch.eye(2), 0), "layers"),
        (lambda: simulate_losses(torch.eye(2), 1, rotation="pca"), "\"hadamard\", got 'pca'"),
        (lambda: tune_jointly(torch.eye(2), 0), "layers"),
        (lambda: tune_jointly(torch.eye(2), 1, draws=0), "draws"),
        (lambda: predict_layers(torch.ones(5, 2)), "varies"),
        (lambda: predict_layers(torch.ones(1, 2)), "2 rows"),
        (lambda: predict_layers(torch.tensor([[1.0, 2.0], [math.nan, 1.0]])), "row 1"),
        (lambda: predict_layers(torch.ones(4), factor=0.1), "factor"),
        (lambda: predict_layers(torch.ones(4), max_layers=0), "max_layers"),
        (lambda: predict_layers(torch.randn(50, 4), rotation="pca"), "rotation"),
    ],
)
def test_wrong_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
