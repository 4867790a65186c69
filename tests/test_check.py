"""`fluvial.check` on flows that are right, and on flows broken in one way each."""

import json
import math

import pytest
import torch
from torch import nn

import fluvial.check
from fluvial.bases import Normal, UniformOn
from fluvial.check import THRESHOLDS, Report, Row, check
from fluvial.codecs import FreeForm, Standardize
from fluvial.data import Dataset, as_dataset
from fluvial.flow import Flow
from fluvial.manifolds import Sphere

NAMES = [
    "NLL",
    "rows without density",
    "reconstruction",
    "cycle",
    "encoder/decoder gap",
    "smallest singular value",
    "condition number",
    "latent marginals",
    "latents against base",
    "normalisation",
    "samples against data",
]
MIX = torch.tensor([[2.0, 0.0], [1.0, 0.5]])


def gaussian(n, d, *, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def linear(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer


def linear_flow(decoder, encoder=None):
    return Flow(FreeForm(linear(torch.linalg.pinv(decoder) if encoder is None else encoder), linear(decoder)), Normal(decoder.shape[1]))


def verdicts(report):
    return {row.name: row.verdict for row in report.rows}


@pytest.fixture(scope="module")
def exact():
    """The true flow of its data: a linear pair that inverts itself."""
    return check(linear_flow(MIX), gaussian(600, 2, seed=1) @ MIX.T, samples=1000)


@pytest.fixture(scope="module")
def broken():
    """The decoder shrinks what it should give back to a quarter."""
    return check(linear_flow(MIX / 4, torch.linalg.inv(MIX)), gaussian(600, 2, seed=1) @ MIX.T, samples=1000)


def test_a_true_flow_is_good_throughout(exact):
    assert verdicts(exact) == dict.fromkeys(NAMES, "good")
    assert exact.ok
    assert "Nothing here speaks against it." in str(exact)
    # Entropy of N(0, M Mᵀ): 1 + log 2π + log|det M|.
    assert exact["NLL"].value == pytest.approx(1 + math.log(2 * math.pi), abs=4 * exact["NLL"].error)
    assert exact["normalisation"].value == pytest.approx(1, abs=2e-3)
    values = torch.linalg.svdvals(MIX)
    assert exact["smallest singular value"].value == pytest.approx(float(values[1]), rel=1e-5)
    assert exact["condition number"].value == pytest.approx(float(values[0] / values[1]), rel=1e-5)


def test_a_broken_decoder_is_bad_and_says_what_to_do(broken):
    found = verdicts(broken)
    for name in ("reconstruction", "cycle", "encoder/decoder gap", "normalisation", "samples against data"):
        assert found[name] == "bad", name
    assert found["latent marginals"] == "good", "the encoder is right"
    assert not broken.ok
    assert broken["reconstruction"].value == pytest.approx(0.75, abs=0.01)
    assert broken["encoder/decoder gap"].value == pytest.approx(2 * math.log(4), abs=1e-3)
    assert broken["normalisation"].value == pytest.approx(16, rel=0.01)
    for name in ("reconstruction", "cycle", "encoder/decoder gap", "normalisation"):
        assert "raise beta" in broken[name].advice
        assert broken[name].advice in str(broken)


def test_an_encoder_that_misses_the_base_is_found():
    # Encoder and decoder are inverses, but of a distribution three times as wide as the data's.
    report = check(linear_flow(3 * MIX), gaussian(400, 2, seed=1) @ MIX.T, samples=400)
    found = verdicts(report)
    assert found["reconstruction"] == found["cycle"] == found["encoder/decoder gap"] == found["normalisation"] == "good"
    assert found["latent marginals"] == found["samples against data"] == "bad"
    assert found["NLL"] == "bad"
    assert "train longer" in report["latent marginals"].advice


def test_a_decoder_that_flattens_space_is_found():
    flat = torch.diag(torch.tensor([1.0, 1e-9]))
    report = check(linear_flow(flat), gaussian(200, 2, seed=1) * torch.tensor([1.0, 1e-9]), samples=200)
    assert verdicts(report)["smallest singular value"] == verdicts(report)["condition number"] == "bad"
    assert "noise" in report["smallest singular value"].advice


def test_a_uniform_flow_on_the_sphere():
    x = Sphere(2).random_uniform(400, generator=torch.Generator().manual_seed(1))
    report = check(Flow(FreeForm(nn.Identity(), nn.Identity()), UniformOn(Sphere(2)), manifold=Sphere(2)), x, samples=1000)
    assert verdicts(report) == dict.fromkeys(NAMES, "good")
    assert report["NLL"].value == pytest.approx(math.log(4 * math.pi), abs=1e-5)
    assert "chord" in report["reconstruction"].meaning
    with pytest.raises(ValueError, match=r"away from Sphere\(2\)"):
        check(Flow(FreeForm(nn.Identity(), nn.Identity()), UniformOn(Sphere(2)), manifold=Sphere(2)), 2 * x)


def test_a_bijection_has_no_gap():
    x = gaussian(400, 3, seed=1) * 4 + 7
    codec = Standardize(3)
    codec.fit_(x)
    report = check(Flow(codec, Normal(3)), x, samples=400)
    assert verdicts(report) == dict.fromkeys(NAMES, "good") | {"encoder/decoder gap": "not applicable", "normalisation": "not applicable"}
    assert report.ok


def test_a_bottleneck_is_judged_on_its_image():
    plane = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    x = gaussian(500, 2, seed=1) @ plane.T + 0.3 * gaussian(500, 3, seed=2)
    codec = FreeForm(linear(torch.linalg.pinv(plane)), linear(plane))
    report = check(Flow(codec, Normal(2)), x, samples=500)
    found = verdicts(report)
    assert list(found) == [*NAMES, "samples against reconstructions"]
    assert found["NLL"] == found["normalisation"] == "not applicable"
    assert "decoder's image" in report["NLL"].meaning
    # As good as principal components, and no classifier tells samples from reconstructions, although it tells them from data.
    assert found["reconstruction"] == found["samples against reconstructions"] == "good"
    assert "principal components" in report["reconstruction"].detail
    assert found["samples against data"] == "doubtful"
    assert report.ok

    wrong = FreeForm(linear(torch.linalg.pinv(plane)[[0, 0]]), linear(plane[:, [0, 0]] / 2 + 0.01 * plane))
    assert verdicts(check(Flow(wrong, Normal(2)), x[:100], samples=100))["reconstruction"] == "bad"


class Shift(nn.Module):
    """x + s c: its inverse is itself with −s."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x, c):
        return x + self.sign * c


@pytest.mark.parametrize(("slope", "verdict"), [(1.0, "good"), (0.0, "bad")])
def test_conditions_are_part_of_every_comparison(slope, verdict):
    # The marginal of x is the same either way; only with its condition can a wrong dependence be seen.
    c = 2 * gaussian(500, 1, seed=1)
    x = gaussian(500, 1, seed=2) + (c if slope else c[torch.randperm(500, generator=torch.Generator().manual_seed(3))])
    report = check(Flow(FreeForm(Shift(-1.0), Shift(1.0)), Normal(1), condition=1), (x, c))
    assert report["samples against data"].verdict == verdict
    assert report["normalisation"].verdict == "good"
    assert "3 conditions" in report["normalisation"].detail


def test_weights_are_part_of_every_comparison():
    # Rows drawn twice as wide as they should be, and weighted back.
    x = 2 * gaussian(1500, 1, seed=1)
    weight = torch.exp(-x.square() * (1 / 2 - 1 / 8)).flatten()
    flow = linear_flow(torch.ones(1, 1))
    assert not check(flow, x, samples=400).ok
    report = check(flow, (x, None, weight), samples=1500)
    assert report.ok
    assert report["NLL"].value == pytest.approx(0.5 + math.log(2 * math.pi) / 2, abs=4 * report["NLL"].error)


def test_rows_without_density_are_counted():
    class Bounded(Normal):
        def log_prob(self, z, c=None):
            return torch.where(z.squeeze(-1).abs() < 2.5, super().log_prob(z, c), -torch.inf)

    x = gaussian(500, 1, seed=1)
    report = check(Flow(Standardize(1), Bounded(1)), x, samples=500)
    assert report["rows without density"].value == int((x.abs() >= 2.5).sum()) > 0
    assert report["rows without density"].verdict == "bad"
    assert report["NLL"].verdict == "doubtful"
    assert "the others give" in report["NLL"].detail


def test_discrete_data_are_dequantised_as_in_training():
    x = torch.randint(0, 4, (400, 1), generator=torch.Generator().manual_seed(0)).float()
    data = as_dataset(x, dequantize=1.0)

    class Uniform(Normal):
        def sample(self, n=(), c=None, *, generator=None):
            return 4 * torch.rand(n, 1, generator=generator)

        def log_prob(self, z, c=None):
            return torch.where((z >= 0) & (z < 4), -math.log(4), -math.inf).squeeze(-1)

    flow = Flow(Standardize(1), Uniform(1))
    assert check(flow, data, samples=400)["samples against data"].verdict == "good"
    assert check(flow, x, samples=400)["samples against data"].verdict == "bad"


def test_the_true_density_is_the_measure_where_it_is_known():
    x = gaussian(400, 1, seed=1)

    class Truth:
        def log_prob(self, x):
            return torch.distributions.Normal(0.0, 1.0).log_prob(x).squeeze(-1)

    # Wide by a factor s, a Gaussian loses log s − ½(1 − s⁻²) nats: less than a fitted Gaussian's margin, but it is seen.
    report = check(linear_flow(1.4 * torch.ones(1, 1)), Dataset(x, truth=Truth()), samples=400)
    assert report["NLL"].verdict == "doubtful"
    assert "the true density gives" in report["NLL"].detail
    assert check(linear_flow(torch.ones(1, 1)), Dataset(x, truth=Truth()), samples=400)["NLL"].verdict == "good"


def test_report_as_text_and_json(broken):
    text = str(broken)
    lines = text.splitlines()
    assert "600 rows of data, 1000 samples" in lines[0]
    table = lines[1 : 1 + len(NAMES)]
    assert [line[2:].split("  ")[0] for line in table] == NAMES
    assert len({line.index(row.verdict + " ") for line, row in zip(table, broken.rows)}) == 1, "the verdicts stand in one column"
    entries = json.loads(json.dumps(broken.to_dict(), allow_nan=False))
    assert entries["ok"] is False
    assert [row["name"] for row in entries["rows"]] == NAMES
    assert set(entries["rows"][0]) == {"name", "value", "error", "verdict", "meaning", "advice", "detail"}
    with pytest.raises(KeyError, match="this report has"):
        broken["beauty"]


def test_not_finite_figures_are_bad_and_survive_json():
    row = Row("x", math.inf, math.nan, THRESHOLDS["cycle"].verdict(math.nan), "m", "a")
    report = Report((row,), "t")
    assert row.verdict == "bad"
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]["value"] is None
    assert "inf" in str(report)


def test_an_exploding_decoder_gets_a_report():
    report = check(linear_flow(torch.full((2, 2), torch.nan), torch.eye(2)), gaussian(100, 2), samples=100)
    assert not report.ok
    assert verdicts(report)["cycle"] == verdicts(report)["smallest singular value"] == verdicts(report)["samples against data"] == "bad"


def test_the_same_seed_gives_the_same_report_and_leaves_the_world_alone():
    flow, x = linear_flow(MIX), gaussian(200, 2, seed=1)
    flow.codec.encoder.eval()
    state = torch.get_rng_state()
    report = str(check(flow, x, samples=150))
    assert report == str(check(flow, x, samples=150))
    assert torch.equal(state, torch.get_rng_state())
    assert flow.training
    assert not flow.codec.encoder.training
    assert "150 rows of data" in report


def test_what_cannot_be_checked_is_refused():
    flow = linear_flow(MIX)
    with pytest.raises(TypeError, match="expected a Flow, got Linear"):
        check(nn.Linear(2, 2), gaussian(50, 2))
    with pytest.raises(ValueError, match=r"shape \(n, 2\), got \(50, 3\)"):
        check(flow, gaussian(50, 3))
    with pytest.raises(ValueError, match="at least 20 rows"):
        check(flow, gaussian(10, 2))
    x = gaussian(50, 2)
    x[7, 1] = torch.nan
    with pytest.raises(ValueError, match="row 7"):
        check(flow, x)


def test_the_name_in_the_package_is_the_function_even_after_the_module_was_imported():
    assert fluvial.check(linear_flow(MIX), gaussian(50, 2) @ MIX.T, samples=50).rows
