"""Layers against dimension for Gaussians."""

import json
import math

import pytest
import torch

from fluvial.gaussianization.scaling import FAMILIES, ScalingCurve, autoregressive, gaussian_scaling, logarithmic_spectrum, spike, wishart
from fluvial.gaussianization.theory import gaussian_loss, simulate_losses, with_spectrum

GENERIC = ["condition 2", "condition 100", "Wishart, 2D + 2 samples", "AR(1), ρ = 0.9"]


@pytest.fixture(scope="module")
def experiment():
    return gaussian_scaling((8, 16, 32, 64), repeats=3)


@pytest.mark.parametrize("name", GENERIC)
def test_layers_grow_in_proportion_to_dimension(experiment, name):
    curve = experiment.curve(name, 10.0)
    assert 1.0 < curve.slope < 1.6
    assert 0.85 < curve.exponent < 1.1
    assert curve.theory == pytest.approx([(features + 2) / 2 * math.log(10) for features in (8, 16, 32, 64)])


def test_mild_spectra_follow_the_theory_line(experiment):
    for factor in (2.0, 10.0):
        curve = experiment.curve("condition 2", factor)
        assert curve.slope == pytest.approx(math.log(factor) / 2, rel=0.1)
        assert curve.layers[-1] == pytest.approx(curve.theory[-1], rel=0.1)


def test_a_spike_is_halved_by_a_few_layers_in_any_dimension(experiment):
    curve = experiment.curve("one spike, ε = 0.3", 2.0)
    assert curve.slope < 0.15
    assert curve.layers[-1] < 0.4 * curve.theory[-1]


def test_counts_are_read_off_the_simulation():
    family = FAMILIES["AR(1), ρ = 0.9"]
    result = gaussian_scaling([16], families={"series": family}, factors=[2.0, 10.0], repeats=1, seed=3)
    covariance = family(16, 0)
    losses = simulate_losses(covariance, 200, seed=3 * 1_000_003 + 16 * 1009)
    for factor in (2.0, 10.0):
        (count,) = result.curve("series", factor).layers
        assert losses[int(count)] <= losses[0] / factor < losses[int(count) - 1]


def test_same_seed_same_counts():
    arguments = {"families": {"Wishart": FAMILIES["Wishart, 2D + 2 samples"]}, "repeats": 2}
    first, again, other = (gaussian_scaling((4, 16, 32), seed=seed, **arguments).to_dict()["curves"] for seed in (0, 0, 1))
    assert first == again != other


def test_json_has_plain_numbers(experiment):
    content = json.loads(json.dumps(experiment.to_dict(), allow_nan=False))
    assert len(content["curves"]) == 2 * len(FAMILIES)
    single = gaussian_scaling([4], factors=[10.0], repeats=1).to_dict()["curves"][0]
    assert single["slope"] is single["spread"][0] is None
    assert single["features"] == [4]
    assert "AR(1)" in str(experiment)
    with pytest.raises(KeyError, match="condition 2"):
        experiment.curve("banana", 10.0)


def test_curve_of_any_counts():
    curve = ScalingCurve.of("squares", 10.0, {32: [1024.0], 4: [16.0, 18.0], 16: [256.0], 64: [4096.0]})
    assert curve.features == [4, 16, 32, 64]
    assert curve.layers == [17.0, 256.0, 1024.0, 4096.0]
    assert curve.exponent == pytest.approx(2.0)
    assert curve.spread[0] == pytest.approx(math.sqrt(2))
    assert math.isnan(curve.spread[1])


def test_a_tiny_eigenvalue_is_seen_late():
    """One eigenvalue of 1e-12: the first layers see next to nothing of it, and (D + 2)/2 · ln f is far off."""
    tiny = torch.ones(64, dtype=torch.float64)
    tiny[0] = 1e-12
    covariance = with_spectrum(tiny / tiny.mean())
    curve = gaussian_scaling([64], families={"tiny": lambda features, seed: covariance}, factors=[1.01, 2.0], repeats=1).curves
    assert curve[0].layers[0] > 5 * curve[0].theory[0]
    singular = torch.ones(4, 4)
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_scaling([4], families={"singular": lambda features, seed: singular})


def test_families():
    assert gaussian_loss(logarithmic_spectrum(8, 100.0)) == pytest.approx(3.791, abs=5e-4)
    assert gaussian_loss(spike(64, 0.3)) == pytest.approx(36.02, abs=5e-3)
    assert gaussian_loss(autoregressive(6, 0.9)) == pytest.approx(-2.5 * math.log(1 - 0.81))
    for name, family in FAMILIES.items():
        assert float(family(12, 1).trace()) == pytest.approx(12), name
    assert not torch.equal(wishart(4, seed=0), wishart(4, seed=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_scaling([]), "at least one"),
        (lambda: gaussian_scaling([1, 2]), "at least 2"),
        (lambda: gaussian_scaling([4], factors=[1.0]), "above 1"),
        (lambda: gaussian_scaling([4], factors=[0.5]), "factor"),
        (lambda: gaussian_scaling([4], repeats=0), "repeats"),
        (lambda: gaussian_scaling([4], rotation="none"), "rotation"),
        (lambda: ScalingCurve.of("empty", 10.0, {}), "empty"),
        (lambda: ScalingCurve.of("empty", 10.0, {4: []}), "empty"),
    ],
)
def test_wrong_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.long
def test_default_experiment():
    result = gaussian_scaling()
    for name in GENERIC:
        assert 1.0 < result.curve(name, 10.0).slope < 1.6, name
        assert 0.9 < result.curve(name, 10.0).exponent < 1.05, name
