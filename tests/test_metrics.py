"""Metrics against closed forms, other libraries, and flows whose density is known."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fluvial.bases import Categorical, Normal, UniformOn
from fluvial.codecs import FreeForm, Standardize
from fluvial.data import as_dataset
from fluvial.flow import Flow
from fluvial.joint import Joint
from fluvial.manifolds import Sphere
from fluvial.metrics import (
    Estimate,
    KernelDensity,
    box_grid,
    c2st,
    circle_grid,
    encoder_decoder_gap,
    figures,
    kernel_density_nll,
    mean_estimate,
    nll,
    normalisation,
    pca_gaussian,
    reconstruction,
    sphere_grid,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(n, d, *, seed=0):
    return torch.randn(n, d, generator=generator(seed))


def linear_flow(matrix, inverse):
    """x = matrix @ z with a Gaussian z, as a free-form flow whose encoder is `inverse`."""
    encoder, decoder = nn.Linear(*reversed(inverse.shape), bias=False), nn.Linear(*reversed(matrix.shape), bias=False)
    with torch.no_grad():
        encoder.weight.copy_(inverse)
        decoder.weight.copy_(matrix)
    return Flow(FreeForm(encoder, decoder), Normal(matrix.shape[1]))


# ------------------------------------------------------------------------------------------------------------------ estimates


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.51234, 0.0129, "0.512 ± 0.013"),
        (-0.51234, 0.0996, "-0.51 ± 0.10"),
        (1234.5, 67.0, "1234 ± 67"),
        (0.5, 0.0, "0.5 ± 0"),
        (1.00000004, 1.7e-9, "1 ± 2e-09"),
        (2e-9, 3e-10, "2.00e-09 ± 3.0e-10"),
        (1.0, 3.0, "1.0 ± 3.0"),
        (2.5, math.nan, "2.5"),
        (math.inf, math.nan, "inf"),
    ],
)
def test_estimates_print_two_digits_of_their_error(value, error, text):
    assert str(Estimate(value, error)) == text


def test_mean_and_its_error_with_weights():
    values, counts = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 1, 3])
    repeated = mean_estimate(values.repeat_interleave(counts))
    weighted = mean_estimate(values, counts.float())
    assert weighted.value == pytest.approx(repeated.value)
    assert mean_estimate(values, torch.full((3,), 7.0)).standard_error == pytest.approx(float(values.std()) / math.sqrt(3))
    assert mean_estimate(values, torch.tensor([1.0, 2.0, -0.5])).value == pytest.approx((1 + 4 - 2) / 2.5)
    with pytest.raises(ValueError, match="positive sum"):
        mean_estimate(values, torch.tensor([1.0, -1.0, -1.0]))


def test_standard_error_is_the_scatter_of_the_mean():
    means = [mean_estimate(gaussian(200, 1, seed=seed).flatten()) for seed in range(200)]
    assert np.std([m.value for m in means]) == pytest.approx(np.mean([m.standard_error for m in means]), rel=0.15)


# ----------------------------------------------------------------------------------------------------------------- likelihood


def test_nll_of_a_standardised_gaussian_is_exact():
    x = gaussian(500, 2) * torch.tensor([2.0, 0.5]) + 3
    codec = Standardize(2)
    codec.fit_(x)
    flow = Flow(codec, Normal(2))
    expected = -torch.distributions.Normal(codec.loc, codec.scale).log_prob(x).sum(-1)
    found = nll(flow, x)
    assert found.value == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.standard_error == pytest.approx(float(expected.std()) / math.sqrt(500), rel=1e-4)
    weight = torch.rand(500, generator=generator())
    assert nll(flow, x, weight=weight).value == pytest.approx(float((weight * expected).sum() / weight.sum()), abs=1e-5)


def test_rows_of_density_zero_are_counted_and_named():
    flow = Flow(Standardize(2), Normal(2))
    x = gaussian(20, 2)
    x[[3, 7]] = torch.inf
    found = nll(flow, x)
    assert found.value == math.inf
    assert found.bad_rows == 2
    assert "2 of 20 rows are not finite (rows 3, 7)" in found.note
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["value"] is None


def test_reconstruction_and_gap_of_linear_maps():
    # x̂ = ½ x: |x − x̂| = ½|x|, and the two volumes differ by log|det J_g J_f| = 2 log ½.
    flow = linear_flow(0.5 * torch.eye(2), torch.eye(2))
    x = gaussian(4000, 2)
    rms, mean = reconstruction(flow, x)
    assert rms.value == pytest.approx(float(x.square().sum(1).mean().sqrt()) / 2, rel=1e-5)
    assert mean.value == pytest.approx(float(x.norm(dim=1).mean()) / 2, rel=1e-5)
    assert abs(rms.value - math.sqrt(2) / 2) < 4 * rms.standard_error
    gap = encoder_decoder_gap(flow, x)
    assert gap.signed.value == pytest.approx(-2 * math.log(0.5), abs=1e-5)
    assert gap.absolute.value == pytest.approx(2 * math.log(2), abs=1e-5)


def test_nll_of_a_joint():
    joint = Joint({"n": Categorical(2), "x": Flow(Standardize(3), Normal(3))}, present={"x": {"n": [1]}})
    x = joint.sample(400, generator=generator())
    counts = x["n"].bincount() / 400
    expected = math.log(2) + float(counts[1]) * (x["x"][x["n"] == 1].square().sum(1).mean() + 3 * math.log(2 * math.pi)) / 2
    assert nll(joint, x).value == pytest.approx(float(expected), abs=1e-4)


def test_metrics_leave_mode_and_gradients_alone():
    flow = linear_flow(torch.eye(2), torch.eye(2))
    flow.codec.encoder.eval()
    x = gaussian(10, 2).requires_grad_()
    nll(flow, x)
    assert flow.training
    assert not flow.codec.encoder.training
    assert x.grad is None


def test_conditions_need_one_entry_per_row():
    flow = Flow(Standardize(2), Normal(2), condition=1)
    with pytest.raises(ValueError, match="one entry per row of x, 10 in all, got 1"):
        nll(flow, gaussian(10, 2), torch.zeros(1, 1))


def test_figures_of_a_data_set():
    found = figures(linear_flow(2 * torch.eye(2), torch.eye(2) / 2), as_dataset(2 * gaussian(300, 2)))
    assert list(found) == ["nll", "nll_encoder", "gap", "gap_rows", "reconstruction", "n"]
    assert found["n"].value == 300
    assert found["gap"].value == pytest.approx(0, abs=1e-5)
    assert abs(found["nll"].value - (1 + math.log(2 * math.pi) + 2 * math.log(2))) < 4 * found["nll"].standard_error


# ----------------------------------------------------------------------------------------------------------------------- C2ST


def test_c2st_cannot_tell_equals_apart():
    score = c2st(gaussian(1000, 3, seed=1), gaussian(1300, 3, seed=2))
    assert abs(score.accuracy.value - 0.5) < 4 * score.accuracy.standard_error
    assert abs(score.auc.value - 0.5) < 4 * score.auc.standard_error
    # √(¼/2000), and half as much again for the folds' common training rows.
    assert score.accuracy.standard_error == pytest.approx(1.5 * 0.5 / math.sqrt(2000), rel=0.05)


@pytest.mark.parametrize(
    "change", [lambda x: x + 0.6, lambda x: torch.stack([x[:, 0], 0.9 * x[:, 0] + 0.44 * x[:, 1]], -1)], ids=["shift", "correlation"]
)
def test_c2st_sees_differences(change):
    score = c2st(change(gaussian(1000, 2, seed=1)), gaussian(1000, 2, seed=2))
    assert score.accuracy.value > 0.6
    assert score.auc.value > score.accuracy.value


def test_c2st_compares_conditional_distributions():
    c = gaussian(800, 1)
    joint, shuffled = c + 0.1 * gaussian(800, 1, seed=1), gaussian(800, 1, seed=2)
    assert c2st(joint, shuffled).accuracy.value < 0.56
    assert c2st(joint, shuffled, c=c, reference_c=c).accuracy.value > 0.8


def test_c2st_pairs_do_not_mislead_it():
    c = gaussian(500, 1)
    score = c2st(c + gaussian(500, 1, seed=1), c + gaussian(500, 1, seed=2), c=c, reference_c=c)
    assert abs(score.accuracy.value - 0.5) < 4 * score.accuracy.standard_error


def test_c2st_takes_weights():
    x, reference = 2 * gaussian(1500, 1, seed=1), gaussian(1500, 1, seed=2)
    weight = torch.exp(-x.square() * (1 / 2 - 1 / 8)).flatten()
    assert c2st(x, reference).accuracy.value > 0.6
    score = c2st(x, reference, weight=weight)
    assert abs(score.accuracy.value - 0.5) < 4 * score.accuracy.standard_error
    with pytest.raises(ValueError, match="≥ 0"):
        c2st(x, reference, weight=-weight)


def test_auc_and_its_error_agree_with_scikit_learn_and_its_scatter():
    from sklearn.metrics import roc_auc_score

    from fluvial.metrics.c2st import _auc

    rng = np.random.default_rng(0)
    score, label, w = rng.normal(size=400).round(1), rng.integers(2, size=400), rng.random(400)
    assert _auc(score, label, w)[0] == pytest.approx(roc_auc_score(label, score, sample_weight=w))
    draws = [_auc(rng.normal(size=200), np.repeat([0, 1], 100), np.ones(200)) for _ in range(300)]
    assert np.std([value for value, _ in draws]) == pytest.approx(np.mean([variance**0.5 for _, variance in draws]), rel=0.12)


def test_c2st_refuses_what_it_cannot_compare():
    x = gaussian(50, 2)
    with pytest.raises(ValueError, match="one event shape"):
        c2st(x, gaussian(50, 3))
    with pytest.raises(ValueError, match="at least 10 rows"):
        c2st(x[:5], x)
    with pytest.raises(ValueError, match="row 4 of samples"):
        c2st(torch.where(torch.arange(50)[:, None] == 4, torch.nan, x), x)
    with pytest.raises(ValueError, match="give both"):
        c2st(x, x, c=x)


# ------------------------------------------------------------------------------------------------------------- kernel density


def test_gaussian_kernels_agree_with_scikit_learn():
    from sklearn.neighbors import KernelDensity as Reference

    x, y = gaussian(200, 2).double(), gaussian(50, 2, seed=1).double()
    x = x / x.std(0, correction=0)
    expected = Reference(bandwidth=0.3).fit(x.numpy()).score_samples(y.numpy())
    np.testing.assert_allclose(KernelDensity(x, 0.3).log_prob(y).numpy(), expected, rtol=1e-9)


def test_kernel_density_is_in_the_units_of_the_data():
    x, y, scale = gaussian(200, 2), gaussian(50, 2, seed=1), torch.tensor([10.0, 0.01])
    difference = KernelDensity(x, 0.3).log_prob(y) - KernelDensity(scale * x, 0.3).log_prob(scale * y)
    torch.testing.assert_close(difference, scale.log().sum().double().expand(50), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("n", "kappa"), [(1, 0.5), (1, 300.0), (2, 0.5), (2, 200.0)])
def test_spherical_kernels_integrate_to_one(n, kappa):
    points, weights = circle_grid(1000) if n == 1 else sphere_grid(150)
    density = KernelDensity(Sphere(n).random_uniform(3, generator=generator()), kappa, Sphere(n))
    assert float((weights * density.log_prob(points).exp()).sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("n", "kappa"), [(3, 20.0), (7, 1e5), (2, 1e5)])
def test_spherical_kernels_agree_with_scipy(n, kappa):
    from scipy.stats import vonmises_fisher

    mean = np.eye(n + 1)[0]
    x = vonmises_fisher(mean, kappa).rvs(5, random_state=0)
    found = KernelDensity(torch.from_numpy(mean[None]), kappa, Sphere(n)).log_prob(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), vonmises_fisher(mean, kappa).logpdf(x), atol=1e-5)


def test_weights_of_kernels_are_repetitions():
    x, y = gaussian(30, 3), gaussian(10, 3, seed=1)
    x, y, counts = Sphere(2).project(x), Sphere(2).project(y), torch.arange(30) % 3
    weighted = KernelDensity(x, 10.0, Sphere(2), weight=counts.float()).log_prob(y)
    torch.testing.assert_close(weighted, KernelDensity(x.repeat_interleave(counts, 0), 10.0, Sphere(2)).log_prob(y))


def test_constant_columns_have_no_kernel():
    with pytest.raises(ValueError, match="column 1 is constant"):
        KernelDensity(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), 0.1)


def earth(lat, lon):
    lat, lon = np.radians(lat), np.radians(lon)
    return torch.from_numpy(np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1))


def torch_split(x):
    order = torch.randperm(len(x), generator=generator())
    a, b = int(0.8 * len(x)), int(0.9 * len(x))
    return x[order[:a]], x[order[a:b]], x[order[b:]]


def test_kernel_density_of_the_floods():
    folder = Path(os.environ.get("FLUVIAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "earth" / "flood.csv").exists():
        pytest.skip("flood.csv is not here; set FLUVIAL_DATA to the folder that holds earth/flood.csv")
    lat, lon = np.loadtxt(folder / "earth" / "flood.csv", delimiter=",", skiprows=1).T
    found, kappa = kernel_density_nll(*torch_split(earth(lat, lon)), Sphere(2))
    assert kappa == 3000
    assert found.value == pytest.approx(0.521, abs=0.002)


def test_kernel_density_of_the_airports():
    import airportsdata

    airports = airportsdata.load().values()
    x = earth([a["lat"] for a in airports], [a["lon"] for a in airports])
    if len(x) != 28298:
        pytest.skip(f"the figure belongs to the 28298 airports of 20260905, this version of airportsdata has {len(x)}")
    found, kappa = kernel_density_nll(*torch_split(x), Sphere(2), bandwidths=(3000.0,))
    assert kappa == 3000
    assert found.value == pytest.approx(0.364, abs=0.002)


# ------------------------------------------------------------------------------------------------------------------------ PCA


def test_pca_agrees_with_scikit_learn():
    from sklearn.decomposition import PCA

    x = gaussian(300, 6) @ gaussian(6, 6, seed=1)
    y = gaussian(100, 6, seed=2)
    reference = PCA(3).fit(x.numpy())
    expected = reference.inverse_transform(reference.transform(y.numpy()))
    model = pca_gaussian(x, 3)
    np.testing.assert_allclose(model.reconstruct(y).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(model.deviations.numpy(), np.sqrt(reference.explained_variance_ * 299 / 300), rtol=1e-4)


def test_pca_samples_have_the_moments_of_the_data():
    x = (gaussian(300, 4) @ gaussian(4, 4, seed=1)).view(300, 2, 2) + 5
    drawn = pca_gaussian(x, 4).sample(50_000, generator=generator())
    assert drawn.shape == (50_000, 2, 2)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.flatten(1).T), torch.cov(x.flatten(1).T, correction=0), rtol=0.05, atol=0.1)


# ----------------------------------------------------------------------------------------------------------------- quadrature


def test_grids_integrate_polynomials_exactly():
    points, weights = sphere_grid(10)
    assert float(weights.sum()) == pytest.approx(4 * math.pi)
    # ∫ x⁴ z² over S² = 4π · 3/105.
    assert float((weights * points[:, 0] ** 4 * points[:, 2] ** 2).sum()) == pytest.approx(4 * math.pi * 3 / 105)
    points, weights = box_grid(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0]), 7)
    assert float((weights * (1 + points[:, 0] * points[:, 1])).sum()) == pytest.approx(4)
    assert points.view(7, 7, 2)[0, :, 0].unique().numel() == 1
    with pytest.raises(ValueError, match="low < high"):
        box_grid(torch.tensor([0.0]), torch.tensor([0.0]), 3)


@pytest.mark.parametrize("d", [1, 2])
def test_a_gaussian_is_normalised_wherever_it_lies(d):
    codec = Standardize(d)
    codec.fit_(50 + 0.01 * gaussian(100, d))
    found = normalisation(Flow(codec, Normal(d)).double())
    assert found.value == pytest.approx(1, abs=2e-3)
    assert found.standard_error < 2e-3
    assert "box" in found.note


def test_encoder_and_decoder_that_disagree_are_not_normalised():
    # log_prob(x) = log N(x; 0, 1) − 2 log ½: twice twice too much.
    assert normalisation(linear_flow(0.5 * torch.eye(2), torch.eye(2))).value == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("n", [1, 2])
def test_uniform_density_on_spheres(n):
    flow = Flow(FreeForm(nn.Identity(), nn.Identity()), UniformOn(Sphere(n)), manifold=Sphere(n))
    assert normalisation(flow).value == pytest.approx(1, abs=1e-5)


def test_sharp_peaks_are_resolved():
    from fluvial.metrics.normalisation import _refine

    class Peaks(nn.Module):
        density = KernelDensity(Sphere(2).random_uniform(5, generator=generator()), 2000.0, Sphere(2))

        def log_prob(self, x, c=None):
            return self.density.log_prob(x)

    found = _refine(Peaks(), None, sphere_grid, Sphere(2), first=32, where="S²", tolerance=2e-3, max_points=150_000)
    assert found.value == pytest.approx(1, abs=2e-3)
    assert found.standard_error < 2e-3


def test_one_condition_at_a_time():
    flow = Flow(Standardize(1), Normal(1), condition=2)
    assert normalisation(flow, torch.zeros(2)).value == pytest.approx(1, abs=1e-3)


def test_no_quadrature_in_many_dimensions_or_on_surfaces():
    assert normalisation(Flow(Standardize(3), Normal(3))) is None
    assert normalisation(linear_flow(torch.ones(2, 1), torch.ones(1, 2))) is None
