"""Every base keeps the contract; a new one is a line in the table."""

import math

import pytest
import torch
from scipy.special import ive
from torch import nn

from fluvial.bases import Base, Categorical, Normal, StudentT, UniformOn, VonMisesFisherMixture
from fluvial.bases.von_mises_fisher import log_normaliser
from fluvial.conditions import as_features
from fluvial.manifolds import Euclidean, Sphere
from fluvial.testing import check_base

BASES = {
    "normal": lambda: Normal(2),
    "normal on a line": lambda: Normal(1),
    "normal on images": lambda: Normal((1, 2, 2)),
    "student": lambda: StudentT(1, df=3.0),
    "learnable student": lambda: StudentT(2, df=4.0, learnable=True),
    "uniform on the circle": lambda: UniformOn(Sphere(1)),
    "uniform on the sphere": lambda: UniformOn(Sphere(2)),
    "vMF mixture on the circle": lambda: VonMisesFisherMixture(Sphere(1), components=3),
    "vMF mixture": lambda: VonMisesFisherMixture(Sphere(2), components=5),
    "narrow fixed vMF": lambda: VonMisesFisherMixture(Sphere(2), components=2, concentration=50.0, learnable=False),
    "vMF mixture on the three-sphere": lambda: VonMisesFisherMixture(Sphere(3), components=2, concentration=5.0),
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
def test_contract(make):
    check_base(make)


class Shifted(Base):
    """A normal distribution about a linear function of the condition."""

    def __init__(self, context=2):
        super().__init__()
        self.manifold = Euclidean(1)
        self.context = context
        self.mean = nn.Linear(context, 1)

    def log_prob(self, z, c=None):
        return Normal(1).log_prob(z - self.mean(as_features(c)))

    def sample(self, n=(), c=None, *, generator=None):
        mean = self.mean(as_features(c))
        shape = (*((n,) if isinstance(n, int) else n), *mean.shape)
        return mean + torch.randn(shape, generator=generator, dtype=mean.dtype)


def test_contract_holds_for_a_conditional_base():
    check_base(Shifted, condition=lambda n: torch.randn(n, 2, dtype=torch.float64))


class Unnormalised(Normal):
    """A normal without its constant."""

    def log_prob(self, z, c=None):
        return super().log_prob(z, c) + 0.01


class Narrow(Normal):
    """Samples 5 % too narrow."""

    def sample(self, n=(), c=None, *, generator=None):
        return 0.95 * super().sample(n, c, generator=generator)


@pytest.mark.parametrize(("broken", "message"), [(Unnormalised, "integrates to 1.01"), (Narrow, "the samples' mean")])
def test_contract_finds_what_is_broken(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_base(lambda: broken(1))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 100, 200])
@pytest.mark.parametrize("kappa", [0.01, 0.7, 30.0, 150.0, 2000.0])
def test_von_mises_fisher_normaliser_against_bessel_functions(n, kappa):
    order = (n + 1) / 2 - 1
    if kappa < 0.1:  # the Bessel function underflows: I_ν(κ) = (κ/2)^ν / Γ(ν + 1) (1 + κ²/4(ν + 1) + …)
        log_bessel = order * math.log(kappa / 2) - math.lgamma(order + 1) + math.log1p(kappa**2 / 4 / (order + 1)) - kappa
    else:
        log_bessel = math.log(ive(order, kappa))
    expected = order * math.log(kappa) - (order + 1) * math.log(2 * math.pi) - log_bessel
    found = log_normaliser(torch.tensor([kappa], dtype=torch.float64), n).item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_von_mises_fisher_normaliser_has_the_right_slope(n, double):
    kappa = torch.tensor([0.5, 3.0, 80.0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: log_normaliser(k, n), (kappa,), rtol=1e-6)


def test_vmf_draws_never_reach_the_antipode_of_a_narrow_bump():
    base = VonMisesFisherMixture(Sphere(2), components=1, concentration=100.0)
    z = base.sample(1_000_000)
    cosine = z @ base.manifold.project(base.means).T
    assert cosine.min() > 0.5


def test_refusals():
    with pytest.raises(TypeError, match="must be a Sphere"):
        VonMisesFisherMixture(Euclidean(2))
    with pytest.raises(ValueError, match="positive"):
        VonMisesFisherMixture(Sphere(2), concentration=0.0)
    with pytest.raises(ValueError, match="no finite volume"):
        UniformOn(Euclidean(2))
    with pytest.raises(ValueError, match="df must be positive"):
        StudentT(2, df=0.0)
    with pytest.raises(ValueError, match="classes"):
        Categorical(0)


def test_student_becomes_normal_and_its_samples_pass_gradients_to_df(double):
    z = torch.linspace(-3, 3, 7).unsqueeze(-1)
    torch.testing.assert_close(StudentT(1, df=1e6).log_prob(z), Normal(1).log_prob(z), rtol=1e-4, atol=1e-5)
    base = StudentT(1, df=5.0, learnable=True)
    base.sample(50).square().mean().backward()
    assert base.log_df.grad.abs().sum() > 0


def test_categorical_is_normalised_conditional_and_minus_infinity_outside(double):
    base = Categorical(3, network=nn.Linear(2, 3))
    c = torch.randn(4, 2)
    total = torch.stack([base.log_prob(torch.full((4,), k), c).exp() for k in range(3)]).sum(0)
    torch.testing.assert_close(total, torch.ones(4))
    assert base.log_prob(torch.tensor([3, -1, 0, 1]), c).isinf().tolist() == [True, True, False, False]
    draws = base.sample(20_000, c)
    assert draws.shape == (20_000, 4)
    frequency = torch.stack([(draws == k).double().mean(0) for k in range(3)], -1)
    expected = torch.stack([base.log_prob(torch.full((4,), k), c).exp() for k in range(3)], -1)
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / 20_000).sqrt()).all()
