"""Energies: contracts, normalisation by quadrature, exact samples, derivatives in the condition."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Normal, StudentT, VonMisesFisherMixture
from fluvial.codecs import Standardize
from fluvial.config import writable
from fluvial.energies import (
    DensityEnergy,
    DoubleWell,
    Energy,
    FunctionEnergy,
    GaussianMixture,
    HasGradC,
    HasLogZ,
    HasSample,
    MultiWell,
    Tempered,
    grad_c,
)
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Sphere
from fluvial.testing import check_energy


@pytest.fixture(autouse=True)
def _double(double):
    pass


class Quadratic(nn.Module):
    """A module of a user's own: x² scaled by the condition."""

    def forward(self, x, c):
        return 0.5 * (x.square() * c).sum(-1)


MIXTURE = {"means": [[1.0, 2.0], [-2.0, 0.5], [0.0, -1.0]], "weights": [1.0, 2.0, 1.0]}
COVARIANCES = [[[0.5, 0.2], [0.2, 0.3]], [[1.0, -0.6], [-0.6, 0.8]], [[0.2, 0.0], [0.0, 2.0]]]


def temperatures(n):
    return 0.4 + 0.7 * torch.rand(n, 1)


# Adding an energy to the library means adding one line here.
ENERGIES = {
    "mixture, one scale": (lambda: GaussianMixture(MIXTURE["means"], 0.7), None),
    "mixture, scales": (lambda: GaussianMixture(MIXTURE["means"], [0.4, 0.7, 1.0], weights=MIXTURE["weights"], offset=1.5), None),
    "mixture, scale matrix": (lambda: GaussianMixture([[0.0, 1.0]], torch.tensor([[0.5, 2.0]])), None),
    "mixture, covariances": (lambda: GaussianMixture(**MIXTURE, covariances=COVARIANCES), None),
    "mixture on the line": (lambda: GaussianMixture([[-2.0], [3.0]], 0.5), None),
    "double well": (DoubleWell, None),
    "double well, tilted and hot": (lambda: DoubleWell(linear=0.5, temperature=1.5), None),
    "double well, conditional": (lambda: DoubleWell(temperature=None), temperatures),
    "multi-well": (lambda: MultiWell(2, linear=-0.3), None),
    "multi-well, mixed": (lambda: MultiWell(2, mixing=[[1.0, 0.5], [-0.2, 0.8]]), None),
    "multi-well, conditional": (lambda: MultiWell(1, temperature=None), temperatures),
    "tempered": (lambda: Tempered(GaussianMixture(MIXTURE["means"], 0.7)), temperatures),
    "tempered, inverse": (lambda: Tempered(DoubleWell(), chart="inverse"), temperatures),
    "tempered, logarithm": (lambda: Tempered(DoubleWell(), chart="log"), temperatures),
    "base": (lambda: DensityEnergy(StudentT(2, df=6.0)), None),
    "base on the sphere": (lambda: DensityEnergy(VonMisesFisherMixture(Sphere(2), components=2)), None),
    "flow": (lambda: DensityEnergy(Flow(Standardize(2), Normal(2))), None),
    "module": (lambda: FunctionEnergy(Quadratic(), 2, condition=1), temperatures),
}


@pytest.mark.parametrize(("make", "condition"), ENERGIES.values(), ids=ENERGIES.keys())
def test_energy(make, condition):
    check_energy(make, condition=condition)


def test_the_contract_sees_broken_promises():
    class Wrong(GaussianMixture):
        def log_z(self, c=None):
            return super().log_z(c) + 0.1

    with pytest.raises(AssertionError, match="integrate"):
        check_energy(lambda: Wrong([[0.0, 0.0]], 1.0))

    class Elsewhere(GaussianMixture):
        def sample(self, n=(), c=None, *, generator=None):
            return super().sample(n, c, generator=generator) + 0.2

    with pytest.raises(AssertionError, match="sample"):
        check_energy(lambda: Elsewhere([[0.0, 0.0]], 1.0))

    class Steep(Tempered):
        def grad_c(self, x, c):
            return 2 * super().grad_c(x, c)

    with pytest.raises(AssertionError, match="grad_c"):
        check_energy(lambda: Steep(DoubleWell()), condition=temperatures)


@pytest.mark.parametrize(
    ("temperature", "log_z", "mean", "variance"),
    [
        (0.4, 9.788891, -3.79009, 0.08954),
        (0.5, 7.906988, -3.73283, 0.14653),
        (0.7, 5.804502, -3.61077, 0.30850),
        (1.0, 4.293002, -3.42068, 0.62348),
        (1.1, 3.984751, -3.35917, 0.73320),
    ],
)
def test_a_well_against_the_table(temperature, log_z, mean, variance):
    well = MultiWell(1, temperature=temperature)
    assert well.log_z().item() == pytest.approx(log_z, abs=1e-6)
    assert MultiWell(5, temperature=temperature).log_z().item() == pytest.approx(5 * log_z, abs=5e-6)
    assert DoubleWell(temperature=temperature).log_z().item() == pytest.approx(log_z + 0.5 * math.log(2 * math.pi * temperature), abs=1e-6)
    u = temperature * well(well.sample(200_000, generator=torch.Generator().manual_seed(0)))
    assert u.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / 200_000))
    assert u.var().item() == pytest.approx(variance, rel=0.03)


def test_wells_have_their_minima_where_they_should():
    x = torch.tensor([[2**0.5, 0.0], [-(2**0.5), 0.0]], requires_grad=True)
    energy = DoubleWell()(x)
    torch.testing.assert_close(energy, torch.tensor([-4.0, -4.0]))
    torch.testing.assert_close(torch.autograd.grad(energy.sum(), x)[0], torch.zeros(2, 2), rtol=0, atol=1e-12)
    corner = torch.tensor([[2**0.5, -(2**0.5), 2**0.5]])
    assert MultiWell(3)(corner).item() == pytest.approx(-12.0)
    # Each well of a symmetric coordinate holds half of the mass.
    d = MultiWell(3).sample(20_000, generator=torch.Generator().manual_seed(1))
    assert ((d > 0).double().mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)


def test_a_conditional_well_is_a_well_at_each_temperature():
    T = torch.tensor([[0.5], [1.0]])
    x = torch.randn(7, 1, 2)
    hot = DoubleWell(temperature=None)
    torch.testing.assert_close(hot(x, T), torch.cat([DoubleWell(temperature=0.5)(x), DoubleWell()(x)], 1))
    torch.testing.assert_close(hot.log_z(T), torch.stack([DoubleWell(temperature=0.5).log_z(), DoubleWell().log_z()]))
    with pytest.raises(ValueError, match="temperature is the condition"):
        hot(x)


def test_a_mixture_is_that_of_torch():
    energy = GaussianMixture(**MIXTURE, covariances=COVARIANCES, offset=2.0)
    parts = torch.distributions.MultivariateNormal(torch.tensor(MIXTURE["means"]), torch.tensor(COVARIANCES))
    reference = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.tensor(MIXTURE["weights"])), parts)
    x = 3 * torch.randn(4, 5, 2)
    torch.testing.assert_close(energy(x), -reference.log_prob(x) - 2.0)
    assert energy.log_z().item() == 2.0


def test_derivatives_in_the_condition():
    x, T = torch.randn(5, 2), torch.tensor([[0.5]])
    expected = -(DoubleWell()(x) / 0.25).unsqueeze(-1)
    torch.testing.assert_close(grad_c(Tempered(DoubleWell()), x, T), expected)
    torch.testing.assert_close(grad_c(DoubleWell(temperature=None), x, T), expected)
    by_hand = FunctionEnergy(lambda x, c: DoubleWell()(x) / c[..., 0], 2, condition=1)
    assert not isinstance(by_hand, HasGradC)
    torch.testing.assert_close(grad_c(by_hand, x, T), expected)
    # Where somebody asks, it is differentiable again.
    T.requires_grad_()
    (again,) = torch.autograd.grad(grad_c(by_hand, x, T).sum(), T)
    torch.testing.assert_close(again, (2 * DoubleWell()(x) / 0.125).sum().view(1, 1))
    entries = grad_c(FunctionEnergy(lambda x, c: x[..., 0] * c["a"][..., 0], 2, condition={"a": 1, "b": 1}), x, {"a": T.detach(), "b": T.detach()})
    torch.testing.assert_close(entries["a"], x[:, :1])
    torch.testing.assert_close(entries["b"], torch.zeros(5, 1))
    with pytest.raises(ValueError, match="no condition"):
        grad_c(DoubleWell(), x, None)


def test_what_an_energy_knows_is_asked_by_protocol():
    assert isinstance(GaussianMixture([[0.0]], 1.0), HasSample)
    assert isinstance(GaussianMixture([[0.0]], 1.0), HasLogZ)
    own = FunctionEnergy(lambda x: x.square().sum(-1), 2)
    assert not isinstance(own, HasSample)
    assert not isinstance(own, HasLogZ)
    assert isinstance(own, Energy)


def test_a_function_of_ones_own():
    energy = FunctionEnergy(lambda x: x.square().sum(-1), Sphere(2))
    assert energy.manifold == Sphere(2)
    assert energy(torch.zeros(3, 4, 3), torch.zeros(4, 1)).shape == (3, 4)
    assert "function" in (writable(energy) or "")
    assert writable(FunctionEnergy(Quadratic(), 2, condition=1)) is None
    with pytest.raises(ValueError, match=r"one energy for each point, shape \(3,\), got \(3, 2\)"):
        FunctionEnergy(torch.square, 2)(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="callable"):
        FunctionEnergy(3.0, 2)


def test_a_trained_flow_is_an_energy():
    flow = fl.flows.coupling(2, blocks=2, hidden=[8]).double()
    energy = DensityEnergy(flow)
    x = torch.randn(6, 2)
    torch.testing.assert_close(energy(x), -flow.log_prob(x))
    assert energy.manifold == Euclidean(2)
    assert energy.sample(3).shape == (3, 2)
    with pytest.raises(TypeError, match="no log_prob, sample, manifold"):
        DensityEnergy(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="free-form flow's density is not normalised"):
        DensityEnergy(fl.flows.free_form(2, width=8))
    conditional = DensityEnergy(fl.flows.coupling(2, 1, blocks=1, hidden=[4]))
    assert conditional.log_z(torch.zeros(3, 1)).shape == (3,)
    with pytest.raises(ValueError, match=r"conditional; give c of event shape \(1,\)"):
        conditional.log_z()


@pytest.mark.parametrize("arguments", [{"temperature": 1e-7}, {"linear": 1e5}, {"quadratic": -4000.0}, {"linear": 1e-6, "temperature": 1e-6}])
def test_stiff_wells_against_their_expansion_to_second_order(arguments):
    a, b, T = arguments.get("linear", 0.0), arguments.get("quadratic", -4.0), arguments.get("temperature", 1.0)
    roots = np.roots([4.0, 0.0, 2 * b, a])
    minima = torch.tensor([d.real for d in roots if abs(d.imag) < 1e-9 and 2 * b + 12 * d.real**2 > 0])
    variances, floors = T / (2 * b + 12 * minima**2), a * minima + b * minima**2 + minima**4
    well = MultiWell(1, **arguments)
    laplace = torch.logsumexp(-floors / T + 0.5 * torch.log(2 * math.pi * variances), 0)
    assert well.log_z().item() == pytest.approx(laplace.item(), abs=1e-4)
    d = well.sample(20_000, generator=torch.Generator().manual_seed(0))
    near = (d - minima).abs().argmin(1, keepdim=True)
    z = (d - minima[near]) / variances[near].sqrt()
    assert z.mean().abs() < 5 / math.sqrt(20_000)
    assert z.var().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 20_000))
    shares = torch.nn.functional.one_hot(near.squeeze(1), len(minima)).double().mean(0)
    expected = torch.softmax(-floors / T + 0.5 * torch.log(variances), 0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=5 * 0.5 / math.sqrt(20_000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture([0.0, 1.0], 1.0), r"means must have shape \(components, dimensions\)"),
        (lambda: GaussianMixture([[0.0, 1.0]]), "either scales or covariances"),
        (lambda: GaussianMixture([[0.0, 1.0]], 0.0), "scales must be positive"),
        (lambda: GaussianMixture([[0.0, 1.0]], [1.0, 1.0]), r"shape \(1,\) or \(1, 2\)"),
        (lambda: GaussianMixture([[0.0]], 1.0, weights=[1.0, 1.0]), "1 positive numbers"),
        (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[[1.0, 2.0], [2.0, 1.0]]]), "covariance 0 is not positive definite"),
        (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[[1.0, 2.0], [0.0, 1.0]]]), "symmetric matrices 2 × 2"),
        (lambda: MultiWell(0), "at least 1"),
        (lambda: MultiWell(2, quartic=-1.0), "quartic must be positive"),
        (lambda: DoubleWell(temperature=0.0), "temperature must be positive"),
        (lambda: MultiWell(2, mixing=[[1.0, 1.0], [1.0, 1.0]]), "invertible"),
        (lambda: GaussianMixture([[math.nan, 0.0]], 1.0), "means must be finite"),
        (lambda: GaussianMixture([[1e300, 0.0]], 1.0), "means must be finite in single precision"),
        (lambda: GaussianMixture([[0.0]], math.inf), "scales must be finite"),
        (lambda: GaussianMixture([[0.0]], 1e-300), "single precision"),
        (lambda: GaussianMixture([[0.0]], 1e300), "single precision"),
        (lambda: GaussianMixture([[0.0]], covariances=[[[math.nan]]]), "covariances must be finite"),
        (lambda: GaussianMixture([[0.0]], 1.0, weights=[math.inf]), "weights must be finite"),
        (lambda: GaussianMixture([[0.0]], 1.0, offset=math.nan), "offset must be a finite number"),
        (lambda: MultiWell(1, linear=math.inf), "linear must be a finite number"),
        (lambda: DoubleWell(quadratic=math.nan), "quadratic must be a finite number"),
        (lambda: DoubleWell(quartic=math.inf), "quartic must be a finite number"),
        (lambda: DoubleWell(quartic=1e-300), "quartic is too small"),
        (lambda: MultiWell(1, temperature=math.inf), "temperature must be a finite number"),
        (lambda: MultiWell(1, temperature=1e-20), "narrower than single precision resolves"),
        (lambda: MultiWell(1, mixing=[[math.nan]]), "mixing must be an invertible matrix 1 × 1 of finite numbers"),
        (lambda: MultiWell(1, mixing=[[1e-300]]), "mixing must be an invertible"),
        (lambda: Tempered(DoubleWell(), chart="beta"), "'temperature', 'inverse' or 'log'"),
        (lambda: Tempered(DoubleWell(temperature=None)), "needs none"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
