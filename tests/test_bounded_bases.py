"""Uniform and truncated normal distributions: normalised, within their bounds, and accurate far in the tails."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from fluvial.bases import Base, Normal, TruncatedNormal, Uniform
from fluvial.codecs import Bounds, Chain, Inverse, Logit
from fluvial.flow import Flow
from fluvial.io import load, save
from fluvial.manifolds import Euclidean
from fluvial.objectives import MaximumLikelihood
from fluvial.testing import check_base, check_flow
from fluvial.testing.contract import check_gradients, check_module, check_seeding, check_transforms


class Unbounded(Base):
    """A base on a box, pulled back to all of space, where its density is smooth and the contract's quadrature applies."""

    def __init__(self, base, codec):
        super().__init__()
        self.base = base
        self.codec = codec
        self.manifold = Euclidean(base.manifold.event_shape)

    def log_prob(self, z, c=None):
        x, ladj = self.codec.decode_ladj(z)
        return self.base.log_prob(x, c) + ladj

    def sample(self, n=(), c=None, *, generator=None):
        return self.codec.encode(self.base.sample(n, c, generator=generator))


BASES = {
    "uniform": lambda: Uniform(0, 1),
    "uniform on a rectangle": lambda: Uniform((0.0, -math.pi), (2.0, math.pi)),
    "uniform on images": lambda: Uniform(-1.0, 0.5, event_shape=(1, 2, 2)),
    "truncated normal": lambda: TruncatedNormal(-1, 2),
    "above": lambda: TruncatedNormal(0.0, None, event_shape=2),
    "below": lambda: TruncatedNormal(None, -1.0),
    "mixed": lambda: TruncatedNormal((None, 0.5), (1.0, math.inf), loc=(0.3, -1.0), scale=(2.0, 0.7)),
    "learnable": lambda: TruncatedNormal((0.0, -1.0), (1.0, None), loc=0.4, scale=0.5, learnable=True),
    "in a tail": lambda: TruncatedNormal(8.0, 9.0, learnable=True),
    "in a far tail": lambda: TruncatedNormal(None, -50.0, learnable=True),
    "learnable images": lambda: TruncatedNormal(0.0, 1.0, learnable=True, event_shape=(1, 2, 2)),
}


def codec_of(base):
    n = math.prod(base.event_shape)
    low, high = (side if isinstance(side, tuple) else (side,) * n for side in (base.low, base.high))
    if len(base.event_shape) > 1:
        return Logit(base.event_shape, low=base.low, high=base.high)
    return Bounds(low, high)


@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
def test_contract(make):
    check_base(lambda: Unbounded(make(), codec_of(make())))


def test_without_bounds_it_is_normal(double):
    check_base(lambda: TruncatedNormal(None, None, event_shape=2))
    z = 10 * torch.randn(50, 2)
    torch.testing.assert_close(TruncatedNormal(None, math.inf, event_shape=2).log_prob(z), Normal(2).log_prob(z))
    shifted = TruncatedNormal(None, None, loc=2.0, scale=3.0, event_shape=2).log_prob(2 + 3 * z)
    torch.testing.assert_close(shifted, Normal(2).log_prob(z) - 2 * math.log(3))


@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
def test_contract_on_the_box_itself(make):
    base = make().double()
    event, c = base.event_shape, torch.randn(6, 2, dtype=torch.float64)
    for n, shape in (((), ()), (5, (5,)), ((2, 3), (2, 3)), (0, (0,))):
        assert base.sample(n).shape == (*shape, *event)
        assert base.sample(n, c).shape == (*shape, 6, *event)
    check_seeding(lambda g: base.sample(4, generator=g), "sample")
    z = base.sample(6)
    assert torch.equal(base.log_prob(z.view(2, 3, *event)).flatten(), base.log_prob(z))
    check_transforms(lambda p, _: base.log_prob(p), z.detach(), c, "log_prob")
    check_gradients(base, lambda: base.log_prob(z.detach()).square().sum(), "log_prob")
    check_gradients(base, lambda: base.sample(50).square().sum(), "sample")
    check_module(make)


@pytest.mark.parametrize("make", [lambda: Uniform(-0.3, 0.1), *[BASES[k] for k in ("truncated normal", "learnable", "below", "above")]])
def test_integrates_to_one_with_hard_edges(make):
    """Gauss–Legendre between the bounds, one coordinate at a time."""
    base = make().double()
    n = math.prod(base.event_shape)
    low, high = (side if isinstance(side, tuple) else (side,) * n for side in (base.low, base.high))
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(60 if n == 2 else 200))
    axes = []
    for a, b in zip(low, high):
        a, b = (b - 9 if b is not None else -9.0) if a is None else a, (a + 9 if a is not None else 9.0) if b is None else b
        axes.append((a + (b - a) * (nodes + 1) / 2, weights * (b - a) / 2))
    points = torch.cartesian_prod(*(x for x, _ in axes)).view(-1, n)
    volume = torch.cartesian_prod(*(w for _, w in axes)).view(-1, n).prod(-1)
    assert (volume * base.log_prob(points).exp()).sum().item() == pytest.approx(1.0, abs=1e-9)


# -------------------------------------------------------------------------------------------------------------------- support


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.7), (1000.1, 1000.3), (-math.pi, math.pi), (-7, -6), (-1e37, 1e37)])
@pytest.mark.parametrize("cls", [Uniform, TruncatedNormal])
def test_samples_are_within_the_bounds_and_have_a_density(cls, low, high, dtype):
    base = cls(low, high, event_shape=3).to(dtype)
    z = base.sample(50_000)
    assert z.dtype == dtype
    assert (z.double() >= low).all()
    assert (z.double() <= high).all()
    assert torch.isfinite(base.log_prob(z)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", [Uniform(0.1, 0.7), TruncatedNormal(0.1, 0.7), TruncatedNormal(0.1, 0.7, loc=300.0, learnable=True)])
def test_bounds_belong_to_the_support_and_nothing_beyond(base, dtype):
    base = base.to(dtype)
    edge = torch.tensor([0.1, 0.7], dtype=dtype)
    beyond = torch.cat([torch.nextafter(edge, torch.tensor([-1.0, 1.0], dtype=dtype)), torch.tensor([-1e30, 1e30, math.inf, -math.inf], dtype=dtype)])
    z = torch.cat([edge, beyond]).unsqueeze(-1).requires_grad_()
    log_p = base.log_prob(z)
    assert torch.isfinite(log_p[:2]).all()
    assert (log_p[2:] == -math.inf).all()
    slope = torch.autograd.grad(log_p[:2].sum(), [z, *base.parameters()], retain_graph=True)
    assert all(torch.isfinite(s).all() for s in slope)
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), z)[0]).all()


@pytest.mark.parametrize("base", [Uniform(0.0, 1.0, event_shape=2), TruncatedNormal(0.0, None, event_shape=2)])
def test_nan_is_not_hidden(base):
    z = torch.tensor([[math.nan, 0.5], [math.nan, -1.0], [0.5, 0.5], [-1.0, 0.5]])
    assert base.log_prob(z).isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0, 1e30])
@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
def test_single_precision_far_outside(make, factor):
    base = make()
    z = (factor * base.sample(200)).detach().requires_grad_()
    log_p = base.log_prob(z)
    assert log_p.dtype == torch.float32
    assert not log_p.isnan().any()
    (slope,) = torch.autograd.grad(log_p[log_p.isfinite()].sum() + 0 * z.sum(), z, retain_graph=True)
    assert torch.isfinite(slope).all()
    for parameter in base.parameters():
        (gradient,) = torch.autograd.grad(log_p[log_p.isfinite()].sum(), parameter, retain_graph=True)
        assert torch.isfinite(gradient).all()


def test_uniform_draws_fill_the_box():
    z = Uniform((-2.0, 5.0), (2.0, 5.5)).sample(20_000)
    for k, (low, width) in enumerate([(-2.0, 4.0), (5.0, 0.5)]):
        assert stats.kstest(z[:, k].numpy(), stats.uniform(low, width).cdf).pvalue > 1e-3


# ---------------------------------------------------------------------------------------------------------------------- tails

CUTS = [
    (-1.0, 2.0),
    (0.5, 0.6),
    (3.0, math.inf),
    (-math.inf, -7.0),
    (5.0, 6.0),
    (-1e-3, 1e-3),
    (20.0, 21.0),
    (-40.0, -30.0),
    (-3.0, math.inf),
    (-20.0, 30.0),
]


@pytest.mark.parametrize(("low", "high"), CUTS)
def test_density_against_scipy(low, high):
    inner = np.linspace(max(low, -60.0 if high > 0 else high - 1.0), min(high, low + 1.0 if low > 0 else 60.0), 7)
    expected = torch.as_tensor(stats.truncnorm(low, high).logpdf(inner))
    z = torch.as_tensor(inner).unsqueeze(-1)
    base = TruncatedNormal(low, high)
    found = base.log_prob(z.float().clamp(base.low, base.high)).double()
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(base.double().log_prob(z), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("loc", "scale", "low", "high"), [(0.0, 1.0, 1e4, 1e4 + 0.05), (2e4, 2.0, None, 0.0), (0.5, 1e7, 0.0, 1.0), (-1e6, 1.0, 0.0, 1.0)]
)
def test_single_precision_ten_thousand_deviations_out(loc, scale, low, high):
    base = TruncatedNormal(low, high, loc=loc, scale=scale, learnable=True)
    z = base.sample(20_000).detach()
    edge = low if loc <= (low if low is not None else math.inf) and low is not None else high
    # In units of the decay length of the tail, the density is an exponential cut at the other bound, to first order in the length.
    rate = abs(loc - edge) / scale**2
    if rate * scale > 100:
        distance = (z.double() - edge).abs() * rate
        cut = math.inf if low is None or high is None else (high - low) * rate
        log_p = base.log_prob(z).double() - math.log(rate)
        expected = -distance - 0.5 * (distance / rate / scale).square() - math.log(-math.expm1(-cut))
        torch.testing.assert_close(log_p.flatten(), expected.flatten(), rtol=1e-4, atol=2e-4)
        assert z.unique().numel() > (100 if abs(edge) < 1 else 1)
        mean = 1 - cut * math.exp(-cut) / -math.expm1(-cut) if cut < math.inf else 1.0
        if abs(edge) < 1:
            assert distance.mean().item() == pytest.approx(mean, abs=5 * distance.std().item() / 140)
    else:
        torch.testing.assert_close(base.log_prob(z), torch.zeros(len(z)), rtol=0, atol=1e-6)
        assert stats.kstest(z.flatten().numpy(), "uniform").pvalue > 1e-3
    found = base.log_prob(z)
    gradients = torch.autograd.grad(found.mean(), list(base.parameters()))
    # Measured: at most 1.5e-6.
    torch.testing.assert_close(found.double(), base.double().log_prob(z.double()), rtol=0, atol=5e-6)
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(("low", "high"), CUTS)
def test_samples_follow_the_density(low, high):
    z = TruncatedNormal(low, high, loc=0.0).sample(20_000).flatten().double().numpy()
    assert stats.kstest(z, stats.truncnorm(low, high).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("low", "high"), [*CUTS, (-math.inf, math.inf), (-math.inf, -60.0), (55.0, 56.0)])
def test_sampling_inverts_the_distribution_function(low, high, monkeypatch):
    """Quantiles at given probabilities; 30 digits by mpmath are not needed where the logarithm of Φ has 15."""
    u = torch.tensor([0.0, 1e-12, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: u.expand(shape).clone() if shape[-1] == len(u) else u.view(shape))
    z = TruncatedNormal(low, high, event_shape=1).double().sample(len(u)).flatten()
    sign = -1.0 if math.isfinite(low) and low + high > 0 else 1.0
    a, b, p = (low, high, u) if sign > 0 else (-high, -low, u)
    a, b = torch.special.log_ndtr(torch.tensor([a, b], dtype=torch.float64))
    expected = torch.logaddexp(a + torch.log1p(-p), b + torch.log(p.clamp_min(2.0**-54)))
    found = torch.special.log_ndtr(sign * z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.3, None), (None, -4.0), (40.0, 40.5), (None, None)])
def test_samples_pass_gradients_to_loc_and_scale(low, high):
    """Against the derivative of quantiles by finite differences, with the same random numbers."""

    def quantiles(loc, scale):
        base = TruncatedNormal(low, high, loc=loc, scale=scale, learnable=True).double()
        with torch.no_grad():
            base.mean.fill_(loc)
            base.log_scale.fill_(math.log(scale))
        return base, base.sample(200, generator=torch.Generator().manual_seed(0)).sum()

    base, total = quantiles(0.2, 1.3)
    by_loc, by_log_scale = torch.autograd.grad(total, [base.mean, base.log_scale])
    h = 1e-5
    difference = (quantiles(0.2 + h, 1.3)[1] - quantiles(0.2 - h, 1.3)[1]) / (2 * h)
    assert by_loc.item() == pytest.approx(difference.item(), rel=1e-5)
    difference = (quantiles(0.2, 1.3 * math.exp(h))[1] - quantiles(0.2, 1.3 * math.exp(-h))[1]) / (2 * h)
    assert by_log_scale.item() == pytest.approx(difference.item(), rel=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.3, None), (None, -4.0), (12.0, 12.5), (None, None)])
def test_log_prob_has_right_derivatives(low, high):
    base = TruncatedNormal(low, high, loc=0.2, scale=1.3, learnable=True).double()
    z = base.sample(5).detach()

    def fn(mean, log_scale, z):
        return torch.func.functional_call(base, {"mean": mean, "log_scale": log_scale}, (z,))

    base.forward = base.log_prob
    inputs = (*(p.detach().clone().requires_grad_() for p in base.parameters()), z.requires_grad_())
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


# --------------------------------------------------------------------------------------------------------------------- in use


def test_in_a_flow_from_box_to_space():
    """A bounded base behind the inverse of a bijection onto space: the flow of a spline on a box has this form."""
    check_flow(lambda: Flow(Chain([Bounds((0.0, 0.0), (1.0, None)), Inverse(Logit(2))]), Uniform(0.0, 1.0, event_shape=2)))
    check_flow(lambda: Flow(Chain([Logit(1), Inverse(Logit(1, low=-1))]), TruncatedNormal(-1.0, 1.0, learnable=True)))


def test_learns_loc_and_scale():
    generator = torch.Generator().manual_seed(1)
    data = TruncatedNormal(0.0, None, loc=-1.0, scale=2.0).sample(20_000, generator=generator)
    base = TruncatedNormal(0.0, None, learnable=True)
    optimiser = torch.optim.LBFGS(base.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -base.log_prob(data).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    truth = TruncatedNormal(0.0, None, loc=-1.0, scale=2.0)
    assert 0 <= (base.log_prob(data) - truth.log_prob(data)).mean().item() < 5e-4


def test_entropy_by_quadrature():
    base = TruncatedNormal(-0.5, 3.0, loc=1.0, scale=0.7).double()
    value, _ = integrate.quad(lambda t: -math.exp(base.log_prob(torch.tensor([[t]], dtype=torch.float64)).item()) * t, -0.5, 3.0)
    z = base.sample(100_000)
    assert z.mean().item() == pytest.approx(-value, abs=5 * z.std().item() / math.sqrt(1e5))


@pytest.mark.parametrize("base", [Uniform(0.1, (0.7, 2.0)), TruncatedNormal((0.1, None), (0.7, 5.0), scale=(1.0, 0.1), learnable=True)])
def test_save_and_load(base, tmp_path):
    flow = Flow(Chain([Bounds((None, None), (None, None))]), base)
    save(flow, tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    z = torch.cat([flow.sample(20).detach(), torch.tensor([[0.1, 0.2]])])
    assert torch.equal(again.log_prob(z), flow.log_prob(z))
    assert torch.equal(base.double().log_prob(z.double()), again.double().base.log_prob(z.double()))


@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
def test_traces_without_a_break(make):
    torch.compiler.reset()
    base = make()
    compiled = torch.compile(lambda z: base.log_prob(z), backend="eager", fullgraph=True)
    z = base.sample(5).detach()
    torch.testing.assert_close(compiled(z), base.log_prob(z))
    torch.compile(lambda: base.sample(3), backend="eager", fullgraph=True)()


def test_shapes_and_canonical_arguments():
    assert Uniform(0, 1).event_shape == (1,)
    assert Uniform(0, [1, 2]).event_shape == (2,)
    assert Uniform(0.0, 1.0, event_shape=(2, 3)).sample(4).shape == (4, 2, 3)
    base = Uniform(np.array([0, 1]), torch.tensor([1.0, 2.0]))
    assert (base.low, base.high) == ((0.0, 1.0), (1.0, 2.0))
    base = TruncatedNormal([None, -math.inf], 3)
    assert (base.low, base.high, base.event_shape) == ((None, None), 3.0, (2,))
    assert "low=(None, None), high=3.0" in repr(base)
    assert not isinstance(base.mean, nn.Parameter)
    assert isinstance(MaximumLikelihood(), nn.Module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(1.0, 1.0), "coordinate 0 has the bounds 1.0 and 1.0; give low < high"),
        (lambda: Uniform((0.0, 2.0), (1.0, 1.0)), "coordinate 1"),
        (lambda: Uniform(0.0, math.inf), "both must be finite"),
        (lambda: Uniform(None, 1.0), "both must be finite"),
        (lambda: Uniform(math.nan, 1.0), "low < high"),
        (lambda: Uniform((0.0, 0.0), (1.0, 1.0, 1.0)), "got 2 and 3"),
        (lambda: Uniform((0.0, 0.0), 1.0, event_shape=3), r"2 bounds do not fit samples of shape \(3,\)"),
        (lambda: Uniform(0.0, 1.0, event_shape=0), "event_shape must be positive"),
        (lambda: TruncatedNormal(2, 1), "coordinate 0"),
        (lambda: TruncatedNormal(0, 1, scale=0.0), "scale must be positive"),
        (lambda: TruncatedNormal(0, 1, scale=math.nan), "scale must be finite"),
        (lambda: TruncatedNormal(0, 1, loc=math.inf), "loc must be finite"),
        (lambda: TruncatedNormal(0, 1, loc=(1.0, 2.0)), "expected one loc"),
        (lambda: TruncatedNormal(0, 1e39), "beyond what single precision holds"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_points_of_another_shape():
    with pytest.raises(RuntimeError):
        Uniform((0.0, 0.0), 1.0).log_prob(torch.zeros(4, 3))
