"""Our flows in torch.distributions."""

import pytest
import torch
from torch.distributions import biject_to, constraints

import fluvial as fl
from fluvial.bases import Normal, UniformOn, VonMisesFisherMixture
from fluvial.codecs import Bounds, Chain, Logit, Standardize
from fluvial.distribution import FlowDistribution, OnManifold
from fluvial.flow import Flow
from fluvial.manifolds import Sphere

pytest.importorskip("zuko", reason="the extra fluvial[zuko] is not installed")

from fluvial.interop import zuko as of_zuko  # noqa: E402


def conditional():
    torch.manual_seed(1)
    return of_zuko.flow(2, 3, family="MAF", transforms=1, hidden_features=(8,)).eval()


def plain(codec=None):
    return Flow(codec or Standardize(2), Normal(2)).eval()


def test_an_unconditional_flow_expands_to_independent_copies():
    d = plain().distribution().expand((3,)).expand((4, 3))
    x = d.sample((5,))
    assert (tuple(d.batch_shape), tuple(d.event_shape), tuple(x.shape)) == ((4, 3), (2,), (5, 4, 3, 2))
    assert len(x.flatten(0, 2).unique(dim=0)) == 60
    assert d.log_prob(x).shape == (5, 4, 3)
    assert d.log_prob(torch.zeros(2)).shape == (4, 3)
    with pytest.raises(ValueError, match=r"batch shape \(4, 3\) cannot be expanded to \(2, 3\)"):
        d.expand((2, 3))


def test_a_conditional_flow_expands_its_conditions():
    flow, c = conditional(), torch.randn(3, 3)
    d = flow.distribution(c).expand((4, 3))
    x = d.rsample((5,))
    assert x.shape == (5, 4, 3, 2)
    torch.testing.assert_close(d.log_prob(x), flow.log_prob(x, c))
    assert len(x.flatten(0, 2).unique(dim=0)) == 60
    with pytest.raises(ValueError, match="this flow is conditional"):
        flow.distribution()


def test_dicts_of_conditions_expand():
    flow = Flow(of_zuko.ZukoCodec(2, 3, family="MAF"), Normal(2), condition={"a": 1, "b": 2}).eval()
    d = flow.distribution({"a": torch.zeros(4, 1, 1), "b": torch.ones(3, 2)})
    assert d.batch_shape == (4, 3)
    assert d.expand((2, 4, 3)).sample().shape == (2, 4, 3, 2)


def test_what_is_not_known_is_refused_rather_than_guessed():
    d = plain().distribution()
    for call in (lambda: d.mean, lambda: d.variance, lambda: d.stddev, lambda: d.mode, d.entropy, lambda: d.cdf(torch.zeros(2)), lambda: d.icdf(0.5)):
        with pytest.raises(NotImplementedError, match="FlowDistribution: the .* of a flow is not known in closed form"):
            call()


def test_support_of_flat_space_bounds_and_manifolds():
    box = plain(Bounds((0.0, None), (1.0, None))).distribution().support
    torch.testing.assert_close(biject_to(box)(torch.tensor([0.0, 7.0])), torch.tensor([0.5, 7.0]))
    unit = plain(Chain([Logit(2), Standardize(2)])).distribution().support
    assert unit.check(torch.tensor([[0.5, 0.5], [0.5, 1.5]])).tolist() == [True, False]
    one_sided = plain(Bounds((0.0, None), (None, 2.0))).distribution().support
    torch.testing.assert_close(biject_to(one_sided)(torch.zeros(2)), torch.tensor([1.0, 1.0]))
    assert isinstance(plain().distribution().support, type(constraints.real_vector))
    on_the_bounds = torch.tensor([0.0, 2.0])
    d = FlowDistribution(plain(Bounds((0.0, None), (None, 2.0))), validate_args=True)
    assert d.log_prob(on_the_bounds).isfinite()
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.tensor([0.0, 2.1]))
    period = fl.flows.circular(2, blocks=1, hidden=[4]).distribution()
    assert period.support.check(torch.tensor([[3.0, 3.0], [3.0, 3.3]])).tolist() == [True, False]
    assert period.support.check(period.sample((100,))).all()
    assert of_zuko.flow(2, family="NCSF").distribution().support.check(torch.tensor([[3.0, 3.0], [3.0, 3.3]])).tolist() == [True, False]
    sphere = Sphere(2)
    d = fl.flows.free_form(manifold=sphere, width=8).distribution()
    assert d.support.check(d.sample((4,))).all()
    assert d.support.event_dim == 1
    assert repr(d.support) == "OnManifold(Sphere(2))"
    assert not OnManifold(sphere).check(torch.tensor([0.0, 0.0, 1.1]))


def test_values_outside_the_support_are_improbable_or_refused():
    flow = plain(Bounds((0.0, 0.0), (1.0, 1.0)))
    outside = torch.tensor([0.5, 1.5])
    assert flow.distribution().log_prob(outside) == -torch.inf
    with pytest.raises(ValueError, match="within the support"):
        FlowDistribution(flow, validate_args=True).log_prob(outside)


def test_samples_are_differentiated_only_where_they_can_be():
    assert plain().distribution().has_rsample
    assert fl.flows.free_form(manifold=Sphere(2), width=8).distribution().has_rsample
    mixture = Flow(fl.FreeForm(fl.nn.Residual(3), fl.nn.Residual(3)), VonMisesFisherMixture(Sphere(2)), manifold=Sphere(2)).distribution()
    assert not mixture.has_rsample
    assert not mixture.sample((4,)).requires_grad
    with pytest.raises(NotImplementedError, match="samples carry no gradient"):
        mixture.rsample()
    assert Flow(fl.FreeForm(fl.nn.Residual(3), fl.nn.Residual(3)), UniformOn(Sphere(2)), manifold=Sphere(2)).distribution().has_rsample
