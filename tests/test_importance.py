"""Importance weights: exact flows, known divergences, missing modes, the shape of the tail, conditions."""

import math

import pytest
import torch

from fluvial.bases import Normal, StudentT, Uniform
from fluvial.codecs import Standardize
from fluvial.energies import DensityEnergy, DoubleWell, FunctionEnergy, GaussianMixture, MultiWell, Tempered
from fluvial.flow import Flow
from fluvial.flows import coupling, free_form, on_sphere
from fluvial.metrics import importance
from fluvial.metrics.importance import pareto_shape


def gaussian(loc=0.0, scale=1.0, features=2):
    """N(loc, scale²) in every coordinate."""
    codec = Standardize(features)
    codec.loc.fill_(loc)
    codec.scale.fill_(scale)
    return Flow(codec, Normal(features)).double()


def target(scale=1.0, offset=0.0, features=2):
    return GaussianMixture([[0.0] * features], scale, offset=offset).double()


def within(estimate, expected, *, bias=0.0):
    assert abs(estimate.value - expected) <= 5 * estimate.standard_error + bias, f"{estimate}, expected {expected}"


def test_an_exact_flow():
    found = importance(gaussian(), target(offset=3.0), 500)
    for figure in (found.ess, found.ess_forward, found.coverage):
        assert figure.value == pytest.approx(1.0, abs=1e-6)
    assert found.log_z.value == pytest.approx(3.0, abs=1e-6)
    assert found.true_log_z == 3.0
    for figure in (found.reverse_kl, found.forward_kl):
        assert figure.value == pytest.approx(0.0, abs=1e-6)
    assert found.warning == ""


def test_figures_of_two_gaussians():
    # q = N(0, s²) for p = N(0, 1): E_q[w²] = s/√(2 − 1/s²) … per coordinate, and the divergences are those of variances.
    s = 1.3
    found = importance(gaussian(scale=s), target(offset=-1.0), 40_000)
    second = (s**2 / math.sqrt(2 * s**2 - 1)) ** 2
    within(found.ess, 1 / second)
    within(found.ess_forward, 1 / second)
    within(found.log_z, -1.0)
    within(found.reverse_kl, 2 * (-math.log(s) + s**2 / 2 - 0.5))
    within(found.forward_kl, 2 * (math.log(s) + 0.5 / s**2 - 0.5))
    within(found.coverage, 1.0)
    assert found.warning == ""


def test_errors_are_those_of_repetition():
    flow, energy = gaussian(scale=1.2), target()
    several = [importance(flow, energy, 1000, seed=k) for k in range(100)]
    for name in ("ess", "log_z", "reverse_kl", "ess_forward", "forward_kl"):
        values = torch.tensor([getattr(found, name).value for found in several])
        said = sum(getattr(found, name).standard_error for found in several) / 100
        assert values.std().item() == pytest.approx(said, rel=0.35), name


def test_missing_modes_are_seen():
    two = GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 1.0, weights=[1.0, 3.0], offset=2.0).double()
    blind = importance(_at(6.0), two, 2000)
    assert blind.ess.value > 0.999  # by its own draws it looks perfect
    assert blind.log_z.value == pytest.approx(2.0 + math.log(0.75), abs=1e-3)
    assert blind.coverage.value == pytest.approx(0.75, abs=1e-3)
    assert blind.ess_forward.value < 1e-6
    assert "account for 75 % of the energy's mass: modes are missing" in blind.warning
    # The normalisation need not be known for that: exact samples see the rest of the mass.

    class Unnormalised(FunctionEnergy):
        def sample(self, n=(), c=None, *, generator=None):
            return two.sample(n, c, generator=generator)

    found = importance(_at(6.0), Unnormalised(lambda x: two(x), 2), 20_000)
    assert found.true_log_z is None
    assert found.coverage.value == pytest.approx(0.75, abs=0.02)


def _at(x):
    flow = gaussian()
    flow.codec.loc[0] = x
    return flow


def test_a_heavy_tail_is_called_one():
    cauchy = DensityEnergy(StudentT(1, df=1.0)).double()
    found = importance(gaussian(features=1), cauchy, 20_000)
    assert found.pareto_k.value > 0.7
    assert "heavy tail" in found.warning


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_the_shape_of_a_pareto_tail(k):
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert pareto_shape(-k * u.log()) == pytest.approx(k, abs=0.1)
    assert pareto_shape(-k * u.log() + 700.0) == pytest.approx(pareto_shape(-k * u.log()), abs=1e-6)


def test_shapes_without_a_tail():
    assert pareto_shape(torch.zeros(1000)) == -math.inf
    assert pareto_shape(torch.rand(1000)) < 0.3
    assert math.isnan(pareto_shape(torch.zeros(10)))


def test_an_energy_that_knows_nothing_more():
    found = importance(gaussian(), FunctionEnergy(lambda x: x.square().sum(-1) / 2, 2), 1000)
    assert found.ess_forward is found.forward_kl is found.coverage is found.true_log_z is None
    assert found.log_z.value == pytest.approx(math.log(2 * math.pi), abs=1e-6)
    assert found.reverse_kl.value == pytest.approx(0.0, abs=1e-6)


def test_points_without_density_count_as_nothing():
    half = FunctionEnergy(lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1) / 2, math.inf), 2)
    found = importance(gaussian(), half, 20_000)
    within(found.ess, 0.5)
    within(found.log_z, math.log(math.pi))
    assert found.reverse_kl.value == math.inf
    odd = FunctionEnergy(lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1) / 2, math.nan), 2)
    assert "are not numbers" in importance(gaussian(), odd, 1000).ess.note


def test_under_one_condition():
    flow = coupling(2, context=1, blocks=2, bins=4, hidden=[8]).double()
    hot = DoubleWell(temperature=None).double()
    found = importance(flow, hot, 1000, torch.tensor([[0.5]], dtype=torch.float64))
    again = importance(flow, hot, 1000, torch.tensor([0.5], dtype=torch.float64))
    assert found.ess == again.ess
    assert found.true_log_z == pytest.approx(DoubleWell(temperature=0.5).double().log_z().item())
    assert importance(flow, Tempered(DoubleWell()).double(), 100, torch.ones(1, dtype=torch.float64)).true_log_z is None
    with pytest.raises(ValueError, match="one condition, got a batch of"):
        importance(flow, hot, 1000, torch.ones(2, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 20 draws"):
        importance(flow, hot, 10, torch.ones(1))


def test_the_generator_is_the_only_randomness():
    flow, energy = gaussian(features=3), MultiWell(3).double()
    flow.train()
    first, again = (importance(flow, energy, 300, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.ess == again.ess
    assert first.forward_kl == again.forward_kl
    assert flow.training


def test_flows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"energy lives on Euclidean\(3\), the flow on Sphere\(2\)"):
        importance(on_sphere(blocks=1, hidden=[4]), MultiWell(3), 100)
    with pytest.raises(TypeError, match="density is exact, and this Flow is none"):
        importance(free_form(2, width=8, blocks=1), DoubleWell(), 100)
    with pytest.raises(TypeError, match="energy must be a fluvial Energy"):
        importance(gaussian(), lambda x: x, 100)
    with pytest.raises(ValueError, match="one energy for each point"):
        importance(gaussian(), FunctionEnergy(lambda x: x.square().sum(-1, keepdim=True), 2), 100)


def test_what_cannot_be_trusted_is_said():
    nowhere = FunctionEnergy(lambda x: x.sum(-1) + math.inf, 2)
    found = importance(gaussian(), nowhere, 100)
    assert (found.ess.value, found.log_z.value, found.reverse_kl.value) == (0.0, -math.inf, math.inf)
    assert "none of 100 draws has a weight" in found.warning
    nan = FunctionEnergy(lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1) / 2, math.nan), 2)
    assert "draws are not numbers and count as 0" in importance(gaussian(), nan, 1000).warning
    few = FunctionEnergy(lambda x: torch.where(x[..., 0] > 3.0, x.square().sum(-1) / 2, math.inf), 2)
    assert "too few to tell" in importance(gaussian(), few, 1000).warning
    # A box far from the target: no draw has weight, and exact samples no density.
    box = Flow(Standardize(2), Uniform([1e3] * 2, [1e3 + 1] * 2)).double()
    edge = importance(box, DensityEnergy(Uniform([0.0] * 2, [1.0] * 2)).double(), 100)
    assert edge.coverage.value == 0.0
    assert "modes are missing" in edge.warning or "none of 100 draws" in edge.warning


def test_an_energy_of_another_precision_is_copied():
    single = GaussianMixture([[0.0, 0.0]], 1.0, offset=2.0)
    found = importance(gaussian(), single, 100)
    assert found.log_z.value == pytest.approx(2.0, abs=1e-6)
    assert {buffer.dtype for buffer in single.buffers()} == {torch.float32}
