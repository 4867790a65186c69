"""Energies as targets: what flows and energies must be for it, and what the monitors make of points outside."""

import math

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Normal, StudentT, TruncatedNormal, Uniform, VonMisesFisherMixture
from fluvial.codecs import ActNorm, Angles, Bijection, Chain, Coupling, Cylinder, Permutation, RationalQuadratic, Standardize
from fluvial.energies import DensityEnergy, DoubleWell, FunctionEnergy, GaussianMixture, Tempered
from fluvial.flow import Flow
from fluvial.flows import circular, coupling, free_form, on_sphere, on_torus
from fluvial.manifolds import Euclidean, Sphere, Torus
from fluvial.objectives import (
    AlphaDivergence,
    Batch,
    EachMember,
    LogVariance,
    MaximumLikelihood,
    MaximumMeanDiscrepancy,
    Progress,
    ReverseKL,
)


@pytest.fixture(autouse=True)
def _double(double):
    pass


class ShiftScale(Bijection):
    """x = m + e^s z, whose divergences from a Gaussian are known."""

    def __init__(self, loc, scale):
        super().__init__()
        self.domain = self.codomain = Euclidean(len(loc))
        self.loc, self.scale = tuple(loc), tuple(scale)
        self.m = nn.Parameter(torch.tensor(self.loc))
        self.s = nn.Parameter(torch.tensor(self.scale).log())

    def encode(self, x, c=None):
        return (x - self.m) * torch.exp(-self.s)

    def decode(self, z, c=None):
        return self.m + z * torch.exp(self.s)

    def encode_ladj(self, x, c=None):
        return self.encode(x), -self.s.sum().expand(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z), self.s.sum().expand(len(z))


TARGET, SIGMA = torch.tensor([0.5, -1.0]), torch.tensor([0.8, 1.5])
ENERGY = {"means": [[0.5, -1.0]], "scales": [[0.8, 1.5]], "offset": 3.0}


def gaussian(loc=(0.9, -0.6), scale=(0.7, 1.2)):
    return Flow(ShiftScale(loc, scale), Normal(2))


def energy():
    return GaussianMixture(**ENERGY)


def empty(n, c=None):
    return Batch(torch.empty(n, 0), c)


def at(fraction=1.0, seed=0):
    return Progress(fraction=fraction, generator=torch.Generator().manual_seed(seed))


def moved(flow):
    """Away from the identity, at which networks start."""
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow.double()


def tiny(features=2, **arguments):
    return moved(coupling(features, blocks=2, bins=4, hidden=[8], **arguments))


def hot():
    return Tempered(DoubleWell())


def spline(boundary, low=-1.0, high=1.0):
    return RationalQuadratic(4, low=low, high=high, boundary=boundary)


MOVING = {
    "scaled": lambda: Flow(ActNorm(1), Uniform([-1.0], [1.0])),
    "scaled half-line": lambda: Flow(ActNorm(1), TruncatedNormal(0.0, None, event_shape=1)),
    "linear tails": lambda: Flow(Coupling(2, spline("linear"), hidden=[4]), Uniform([-2.0] * 2, [2.0] * 2)),
    "another box": lambda: Flow(Coupling(2, spline("circular"), hidden=[4]), Uniform([-2.0] * 2, [2.0] * 2)),
    "after a fixed shift": lambda: Flow(Chain([Coupling(2, spline("interval"), hidden=[4]), Standardize(2)]), Uniform([-1.0] * 2, [1.0] * 2)),
}
FIXED = {
    "circular": lambda: (circular(2, blocks=2, hidden=[4]), 2),
    "torus": lambda: (on_torus(2, blocks=2, hidden=[4]), Torus(2)),
    "interval": lambda: (
        Flow(Chain([Standardize(2), Coupling(2, spline("interval"), hidden=[4]), Permutation([1, 0])]), Uniform([-1.0] * 2, [1.0] * 2)),
        2,
    ),
    "bounded beside unbounded": lambda: (
        Flow(Chain([Coupling(2, spline("linear"), hidden=[4]), Permutation([1, 0])]), TruncatedNormal([None, -1.0], [None, 1.0])),
        2,
    ),
    "no bounds": lambda: (Flow(ActNorm(1), TruncatedNormal(None, None, event_shape=1)), 1),
    "all of the circle": lambda: (Flow(Angles(1), Uniform([-math.pi], [math.pi])), Torus(1)),
    "nothing trained": lambda: (Flow(Standardize(1), Uniform([-1.0], [1.0])), 1),
}


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING.keys())
def test_the_path_gradient_is_refused_where_it_is_biased(make):
    flow = make().double()
    bowl = FunctionEnergy(lambda x: x.square().sum(-1) / 2, flow.manifold)
    with pytest.raises(ValueError, match="path gradient is biased; give path_gradient=False"):
        ReverseKL(bowl).prepare(flow, None)
    ReverseKL(bowl, path_gradient=False).prepare(flow, None)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())
def test_the_path_gradient_is_kept_where_the_support_stays(make):
    flow, manifold = make()
    manifold = Euclidean(manifold) if isinstance(manifold, int) else manifold
    axes = tuple(range(-len(manifold.event_shape), 0))
    ReverseKL(FunctionEnergy(lambda x: x.square().sum(axes) / 2, manifold)).prepare(flow.double(), None)


def test_a_sphere_over_a_box_is_whole():
    parts = [ShiftScaleOnNothing(), Cylinder()]
    flow = Flow(Chain(parts), Uniform([-math.pi, -1.0], [math.pi, 1.0])).double()
    ReverseKL(FunctionEnergy(lambda x: x[..., 2], Sphere(2))).prepare(flow, None)


class ShiftScaleOnNothing(Bijection):
    """The identity of the sphere, with a parameter."""

    def __init__(self):
        super().__init__()
        self.domain = self.codomain = Sphere(2)
        self.weight = nn.Parameter(torch.zeros(()))

    def encode(self, x, c=None):
        return x

    def decode(self, z, c=None):
        return z

    def encode_ladj(self, x, c=None):
        return x, x.new_zeros(len(x))

    def decode_ladj(self, z, c=None):
        return z, z.new_zeros(len(z))


def test_the_whole_gradient_of_a_moving_box_is_right():
    # x = e^s u with u on [−1, 1]: L = −log 2 − s + e^{2s}/6, whose slope at s = 0 is −2/3.
    flow = Flow(ActNorm(1), Uniform([-1.0], [1.0])).double()
    objective = ReverseKL(FunctionEnergy(lambda x: x.square().sum(-1) / 2, 1), path_gradient=False)
    objective(flow, empty(50_000), at())["loss"].backward()
    assert abs(flow.codec.log_scale.grad.item()) == pytest.approx(2 / 3, abs=0.01)


def test_bases_out_of_reach_of_their_samples_are_refused():
    def on(base):
        return on_sphere(blocks=1, bins=4, hidden=[4], base=base).double()

    bumps = VonMisesFisherMixture(Sphere(2), components=2)
    target = DensityEnergy(VonMisesFisherMixture(Sphere(2), components=3))
    for options in ({}, {"path_gradient": False}):
        with pytest.raises(ValueError, match="VonMisesFisherMixture carry no gradient .* use AlphaDivergence or LogVariance"):
            ReverseKL(target, **options).prepare(on(bumps), None)
    with pytest.raises(ValueError, match="use MaximumLikelihood"):
        MaximumMeanDiscrepancy().prepare(on(bumps), None)
    for make in (AlphaDivergence, LogVariance):
        make(target).prepare(on(bumps), None)
    ReverseKL(target).prepare(on(VonMisesFisherMixture(Sphere(2), learnable=False)), None)
    ReverseKL(DoubleWell()).prepare(Flow(ShiftScale((0.0, 0.0), (1.0, 1.0)), StudentT(2, learnable=True)), None)


@pytest.mark.parametrize("make", [lambda: StudentT(2, learnable=True), lambda: TruncatedNormal([-1.0] * 2, [2.0] * 2, learnable=True)])
def test_samples_follow_the_parameters_where_a_base_says_so(make):
    base = make().double()
    assert base.has_rsample
    gradients = torch.autograd.grad(base.sample(8).square().sum(), list(base.parameters()))
    assert all((g != 0).all() for g in gradients)


def test_an_energy_that_is_never_finite():
    flow, nan = gaussian(), FunctionEnergy(lambda x: x.sum(-1) * math.nan, 2)
    found = LogVariance(nan)(flow, empty(16), at())
    assert torch.isnan(found["loss"])
    with torch.no_grad():
        assert not LogVariance(nan).validate(flow.eval(), empty(8), at())["monitor"] <= 0
        found = ReverseKL(nan).validate(flow, empty(8), at())
    assert (found["monitor"].item(), found["dropped"].item(), found["ess"].item()) == (math.inf, 1.0, 0.0)
    for make in (ReverseKL, AlphaDivergence, LogVariance):
        with pytest.raises(ValueError, match="not finite at any of 256 draws of the flow"):
            make(nan).prepare(flow, None)
    far = FunctionEnergy(lambda x: torch.where(x[..., 0] > 50, x.sum(-1), math.inf), 2)
    LogVariance(far, proposal=StudentT(2, df=0.5)).prepare(flow, None)


def test_one_condition_without_points_does_not_spoil_the_others():
    half = FunctionEnergy(lambda x, c: torch.where(c[..., 0] > 0, x.square().sum(-1) / 2, math.nan), 2, condition=1)
    flow = tiny(context=1)
    batch = empty(32, torch.tensor([[1.0], [-1.0]]).repeat(16, 1))
    loss = LogVariance(half, per_condition=8)(flow, batch, at())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [ReverseKL, LogVariance, AlphaDivergence])
def test_the_monitor_prefers_the_flow_inside_the_support(make):
    half = FunctionEnergy(lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1) / 2, math.inf), 2)
    # Of the one 99.4 % lie outside, and the rest is close to the target; the other covers it whole.
    outside, inside = gaussian((-2.5, 0.0), (1.0, 1.0)).eval(), gaussian((1.0, 0.0), (0.6, 1.0)).eval()
    with torch.no_grad():
        bad, good = (make(half).validate(flow, empty(8), at()) for flow in (outside, inside))
    assert bad["dropped"].item() == pytest.approx(0.994, abs=0.003)
    assert good["dropped"].item() < 0.08
    assert good["monitor"] < bad["monitor"]


@pytest.mark.parametrize("function", [lambda x: x.square().sum(-1, keepdim=True), lambda x: x.square().sum()], ids=["column", "scalar"])
def test_energies_of_another_shape_are_refused(function):
    class Own(DoubleWell):
        def forward(self, x, c=None):
            return function(x)

    flow = tiny()
    for make in (ReverseKL, AlphaDivergence, LogVariance):
        for energy in (Own(), FunctionEnergy(function, 2)):
            with pytest.raises(ValueError, match=r"expected one energy for each point, shape \(16,\)"):
                make(energy)(flow, empty(16), at())
            with pytest.raises(ValueError, match="expected one energy for each point"):
                make(energy).validate(flow, empty(16), at())
    with pytest.raises(ValueError, match="expected one energy for each point"):
        fl.energies.grad_c(FunctionEnergy(lambda x, c: x * c, 2, condition=1), torch.zeros(3, 2), torch.ones(3, 1))


def test_conditions_that_only_the_energy_takes_are_refused():
    with pytest.raises(ValueError, match=r"takes a condition of shape \(1,\), the flow none"):
        ReverseKL(hot(), condition=[[1.0]]).prepare(tiny(), None)


def test_proposals_that_cannot_be_compared_are_refused():
    for make in (AlphaDivergence, LogVariance):
        with pytest.raises(ValueError, match=r"proposal takes a condition of shape \(1,\)"):
            make(DoubleWell(), proposal=tiny(context=1)).prepare(tiny(), None)
        with pytest.raises(TypeError, match="proposal is a free-form flow"):
            make(DoubleWell(), proposal=free_form(2, width=8, blocks=1)).prepare(tiny(), None)


@pytest.mark.parametrize("make", [MaximumLikelihood, MaximumMeanDiscrepancy])
def test_objectives_that_need_data_say_so(make):
    with pytest.raises(ValueError, match=f"{make.__name__}: needs data"):
        fl.fit(tiny(), None, make(), max_steps=2, progress=False)


def test_an_ensemble_is_referred_to_its_members():
    ensemble = fl.Ensemble([tiny(), tiny()])
    with pytest.raises(TypeError, match=r"EachMember\(\[ReverseKL"):
        ReverseKL(DoubleWell()).prepare(ensemble, None)
    EachMember([ReverseKL(DoubleWell()), ReverseKL(DoubleWell())]).prepare(ensemble, None)
