"""Flows of zuko as flows of ours; our flows in torch.distributions, Pyro and sbi."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributions import biject_to, constraints

import fluvial as fl
from fluvial.bases import Normal, Uniform, UniformOn, VonMisesFisherMixture
from fluvial.codecs import Bounds, Chain, Logit, Standardize
from fluvial.distribution import FlowDistribution, OnManifold
from fluvial.flow import Flow
from fluvial.manifolds import Sphere
from fluvial.testing import check_bijection

zuko = pytest.importorskip("zuko", reason="the extra fluvial[zuko] is not installed")
pyro = pytest.importorskip("pyro", reason="the extra fluvial[pyro] is not installed")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO  # noqa: E402

from fluvial.interop import pyro as for_pyro  # noqa: E402
from fluvial.interop import zuko as of_zuko  # noqa: E402

BISECTED = ("NAF", "UNAF", "SOSPF", "BPF", "GF")


def small(family):
    if family in ("NAF", "UNAF"):
        return {"transforms": 2, "hidden_features": (8,), "signal": 4, "network": {"hidden_features": (8,)}}
    return {"transforms": 2, "components": 4} if family == "GF" else {"transforms": 2, "hidden_features": (8,)}


def points(family):
    if family == "NCSF":
        return lambda n: 2 * math.pi * (torch.rand(n, 3, dtype=torch.float64) - 0.5)
    return lambda n: torch.randn(n, 3, dtype=torch.float64)


def conditions(n):
    return torch.randn(n, 2, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------------- zuko: codecs


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("family", ["NSF", "MAF", "NICE", "NCSF"])
def test_families_with_closed_inverses_keep_the_contract_of_bijections(family, context):
    base = (lambda: Uniform([-math.pi] * 3, [math.pi] * 3)) if family == "NCSF" else None
    check_bijection(
        lambda: of_zuko.ZukoCodec(3, context, family=family, options=small(family)),
        points(family),
        condition=conditions if context else None,
        base=base,
    )


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("family", BISECTED)
def test_families_inverted_by_bisection_are_exact_forwards_and_close_backwards(family, context):
    codec = of_zuko.ZukoCodec(3, context, family=family, options=small(family)).double()
    x, c = 0.5 * points(family)(4), conditions(4) if context else None

    z, ladj = codec.encode_ladj(x, c)
    back, inverse_ladj = codec.decode_ladj(z, c)
    jacobian = torch.autograd.functional.jacobian(lambda rows: codec.encode(rows, c).sum(0), x).movedim(1, 0)

    torch.testing.assert_close(codec.encode(x, c), z)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=1e-3)


def test_every_named_family_is_one_of_zuko():
    assert all(issubclass(getattr(zuko.flows, family), zuko.flows.Flow) for family in of_zuko.FAMILIES)


def test_conditions_may_be_dicts_and_unused_ones_are_ignored():
    codec = of_zuko.ZukoCodec(2, 3, family="MAF")
    x, c = torch.randn(4, 2), {"b": torch.randn(4, 1), "a": torch.randn(4, 2)}
    torch.testing.assert_close(codec.encode(x, c), codec.encode(x, torch.cat([c["a"], c["b"]], 1)))
    with pytest.raises(ValueError, match=r"ZukoCodec: expected a condition of shape \(rows, 3\), got none"):
        codec.encode(x)


def test_angles_outside_the_circle_have_no_density_and_the_rest_integrates_to_one():
    flow = of_zuko.flow(1, family="NCSF", transforms=2, bins=4).double().eval()
    side = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64).unsqueeze(1)
    density = flow.log_prob(side).exp()
    torch.testing.assert_close(torch.trapezoid(density, side[:, 0]), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(density[0], density[-1])
    outside = torch.tensor([[3.2], [-4.0]], dtype=torch.float64, requires_grad=True)
    log_p = flow.log_prob(outside)
    assert (log_p == -torch.inf).all()
    assert torch.isfinite(flow.codec.encode(outside)).all()
    x = flow.sample(1000)
    assert x.abs().max() <= math.pi
    assert torch.isfinite(flow.log_prob(x)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "os.system"}, "family must be one of NSF"),
        ({"options": {"colour": 3}}, "zuko.flows.NSF does not take the options"),
        ({"options": {"activation": "eval"}}, "activation must be one of ReLU"),
        ({"options": {"transforms": 10**9}}, "transforms must be a number from 1 to 1000"),
        ({"options": {"features": 3}}, "arguments of their own"),
        ({"context": -1}, "context not negative"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        of_zuko.ZukoCodec(2, **arguments)


def test_a_hostile_family_in_a_file_is_refused():
    config = fl.io.describe(of_zuko.ZukoCodec(2))
    config["init_args"]["family"] = "__init__"
    with pytest.raises(ValueError, match="family must be one of"):
        fl.io.build(config)


def test_a_flow_by_name_is_fitted_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1000, 2) * 3 + 5
    c = x[:, :1] + 0.1 * torch.randn(1000, 1)
    flow = of_zuko.flow(2, 1, family="NSF", transforms=2, hidden_features=[16], passes=2, activation="ELU", randperm=True)
    history = fl.fit(flow, (x, c), max_steps=60, batch_size=256, learning_rate=1e-2, progress=False)
    assert history.rows[-1]["nll"] < history.rows[0]["nll"] - 0.2
    fl.save(flow, tmp_path / "flow.safetensors")
    again = fl.load(tmp_path / "flow.safetensors")
    assert torch.equal(again.log_prob(x, c), flow.log_prob(x, c))
    seed = torch.Generator().manual_seed(3)
    assert torch.equal(again.sample(5, c[:2], generator=seed), flow.sample(5, c[:2], generator=torch.Generator().manual_seed(3)))


# ------------------------------------------------------------------------------------------------------------ zuko: existing flows


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("family", [*of_zuko.FAMILIES, "CNF"])
def test_an_existing_flow_keeps_its_density(family, context):
    theirs = getattr(zuko.flows, family)(2, context)
    ours = of_zuko.from_zuko(theirs, context)
    x, c = 2 * torch.rand(5, 2) - 1, torch.randn(5, context) if context else None
    torch.testing.assert_close(ours.log_prob(x, c), theirs(c).log_prob(x))
    torch.testing.assert_close(ours.reconstruct(x, c), x, rtol=0, atol=1e-3)
    assert ours.sample(3, c).shape == (3, *(() if c is None else (5,)), 2)


def test_an_existing_flow_is_trained_in_place():
    theirs = zuko.flows.MAF(2, hidden_features=(16,))
    x = 0.3 * torch.randn(500, 2)
    ours = of_zuko.from_zuko(theirs)
    before = theirs().log_prob(x).mean()
    with pytest.warns(UserWarning, match="can be trained but not saved as a model file: cannot write down codec .* built by code"):
        fl.fit(ours, x, max_steps=40, learning_rate=1e-2, batch_size=128, progress=False)
    assert theirs().log_prob(x).mean() > before + 0.3


def test_an_existing_flow_is_saved_under_the_name_of_its_family(tmp_path):
    theirs = zuko.flows.NCSF(2, 1, bins=5)
    with pytest.raises(ValueError, match="cannot write down codec .*from_zuko\\(flow, family="):
        fl.save(of_zuko.from_zuko(theirs, 1), tmp_path / "flow.safetensors")
    ours = of_zuko.from_zuko(theirs, 1, family="NCSF", options={"bins": 5})
    fl.save(ours, tmp_path / "flow.safetensors")
    x, c = torch.rand(5, 2), torch.rand(5, 1)
    torch.testing.assert_close(fl.load(tmp_path / "flow.safetensors").log_prob(x, c), theirs(c).log_prob(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_zuko.from_zuko(zuko.flows.MAF(2, 3)), r"cannot be called at a condition of length 0 .* give from_zuko\(flow, context\)"),
        (lambda: of_zuko.from_zuko(zuko.flows.MAF(2), 3), "cannot be called at a condition of length 3"),
        (lambda: of_zuko.from_zuko(zuko.flows.NSF(2), family="NSF", options={"bins": 4}), r"is of shape \(46, 64\), not \(22, 64\)"),
        (lambda: of_zuko.from_zuko(zuko.flows.NSF(2, slope=0.3), family="NSF"), "is another map"),
    ],
)
def test_flows_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_objects_of_zuko_are_refused():
    with pytest.raises(TypeError, match="expected a zuko.flows.Flow, got GMM"):
        of_zuko.from_zuko(zuko.mixtures.GMM(2, components=2))
    skewed = zuko.lazy.UnconditionalDistribution(dist.Gamma, torch.ones(2), torch.ones(2))
    with pytest.raises(TypeError, match="only DiagNormal and BoxUniform bases"):
        of_zuko.ZukoBase(skewed)


class Shifted(zuko.lazy.LazyDistribution):
    """A base whose mean is trained and depends on the condition."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, c=None):
        return zuko.distributions.DiagNormal(self.layer(c), torch.full((2,), 0.5).to(c).expand(*c.shape[:-1], 2))


def test_trained_and_conditional_bases_are_taken_over():
    flow = of_zuko.from_zuko(zuko.flows.Flow(zuko.flows.MAF(2, 3).transform, Shifted()), 3)
    c = torch.randn(4, 3)
    x, log_p = flow.sample_and_log_prob(6, c, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(x, c), log_p, rtol=0, atol=1e-4)
    flow.train().log_prob(x, c).sum().backward()
    assert flow.base.base.layer.weight.grad.abs().sum() > 0


def test_a_box_of_zuko_is_uniform_within_its_bounds():
    box = zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]), buffer=True)
    base = of_zuko.ZukoBase(box)
    x = base.sample(1000)
    assert (x >= torch.tensor([-1.0, 0.0])).all()
    assert (x <= torch.tensor([1.0, 3.0])).all()
    torch.testing.assert_close(base.log_prob(x), torch.full((1000,), -math.log(6)))
    assert base.log_prob(torch.tensor([[0.0, -0.1]])) == -torch.inf


# ------------------------------------------------------------------------------------------------- torch.distributions: the object


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


# ----------------------------------------------------------------------------------------------------------------------------- pyro


@pytest.fixture
def fresh_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


MATRIX = torch.tensor([[1.0, 0.5], [0.3, 1.0], [1.0, -1.0]])
SEEN = torch.tensor([1.0, 0.5, -0.2])
COVARIANCE = torch.linalg.inv(torch.eye(2) + MATRIX.T @ MATRIX / 0.25)
MEAN = COVARIANCE @ MATRIX.T @ SEEN / 0.25


def linear_model():
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w @ MATRIX.T, 0.5).to_event(1), obs=SEEN)


def test_a_flow_in_eval_mode_as_guide_finds_the_posterior_and_the_evidence(fresh_store):
    flow = of_zuko.flow(2, family="MAF", transforms=1, hidden_features=(8,)).eval()

    def guide():
        pyro.module("flow", flow)
        pyro.sample("w", for_pyro.distribution(flow))

    svi = SVI(linear_model, guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0))
    for _ in range(250):
        svi.step()
    bound = -sum(svi.evaluate_loss() for _ in range(20)) / 20
    evidence = dist.MultivariateNormal(torch.zeros(3), MATRIX @ MATRIX.T + 0.25 * torch.eye(3)).log_prob(SEEN)
    assert evidence - 0.06 < bound < evidence + 0.03
    torch.testing.assert_close(flow.sample(20_000).mean(0), MEAN, rtol=0, atol=0.06)
    assert not flow.training
    assert not any(part.training for part in flow.modules())


def test_a_free_form_flow_as_guide_gets_gradients(fresh_store):
    flow = fl.flows.free_form(2, width=8, blocks=1).eval()

    def guide():
        pyro.module("flow", flow)
        pyro.sample("w", for_pyro.distribution(flow))

    before = copy.deepcopy(flow.state_dict())
    SVI(linear_model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step()
    assert any(not torch.equal(before[name], value) for name, value in flow.state_dict().items())


def test_an_ensemble_as_guide_is_scored(fresh_store):
    ensemble = fl.Ensemble([of_zuko.flow(2, family="MAF", transforms=1, hidden_features=(8,)) for _ in range(2)]).eval()

    def guide():
        pyro.module("flow", ensemble)
        pyro.sample("w", for_pyro.distribution(ensemble))

    before = copy.deepcopy(ensemble.state_dict())
    SVI(linear_model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step()
    moved = [name for name, value in ensemble.state_dict().items() if not torch.equal(before[name], value)]
    assert any(name.startswith("flows.0") for name in moved)
    assert any(name.startswith("flows.1") for name in moved)


def test_the_density_of_a_draw_is_that_of_its_own_latent_until_weights_change(fresh_store):
    flow = of_zuko.flow(2, family="MAF", hidden_features=(8,)).eval()
    d = for_pyro.distribution(flow)
    with torch.no_grad():
        x = d.rsample((5,))
        assert not d.log_prob(x).requires_grad
    assert d.log_prob(x).requires_grad
    x = d.rsample((5,))
    torch.testing.assert_close(d.log_prob(x), flow.log_prob(x.detach()), rtol=0, atol=1e-4)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    torch.testing.assert_close(d.log_prob(x), flow.log_prob(x), rtol=0, atol=1e-6)


def test_the_density_of_a_draw_follows_whatever_it_depends_on(fresh_store):
    flow, c = conditional(), torch.randn(3)
    flow = Flow(Chain([Standardize(2), flow.codec]), flow.base, context=flow.context, condition=flow.condition).eval()
    d = for_pyro.distribution(flow, c)
    changes = (lambda x: x.add_(1.0), lambda x: c.mul_(2.0), lambda x: flow.codec.parts[0].scale.fill_(3.0))  # the value, the condition, a buffer
    for change in changes:
        with torch.no_grad():
            x = d.rsample((5,))
            before = d.log_prob(x).clone()
            change(x)
            after = d.log_prob(x)
            assert (after - before).abs().max() > 1e-3
            torch.testing.assert_close(after, flow.log_prob(x, c), rtol=0, atol=1e-5)
    with torch.inference_mode():
        x = d.rsample((5,))
        torch.testing.assert_close(d.log_prob(x.add_(1.0)), flow.log_prob(x, c))


def test_plates_masks_and_to_event(fresh_store):
    flow, c = conditional(), torch.randn(7, 3)
    x = flow.sample((), c)

    def model(observed=None):
        with pyro.plate("rows", 7):
            a = pyro.sample("a", for_pyro.distribution(plain()))
            b = pyro.sample("b", for_pyro.distribution(flow, c).mask(torch.arange(7) < 3), obs=observed)
        whole = pyro.sample("whole", for_pyro.distribution(flow, c).to_event(1))
        return a, b, whole

    trace = pyro.poutine.trace(model).get_trace(observed=x)
    trace.compute_log_prob()
    assert trace.nodes["a"]["value"].shape == (7, 2)
    assert trace.nodes["a"]["log_prob"].shape == (7,)
    torch.testing.assert_close(trace.nodes["b"]["log_prob"], torch.where(torch.arange(7) < 3, flow.log_prob(x, c), 0.0))
    assert trace.nodes["whole"]["log_prob"].shape == ()
    drawn = Predictive(model, num_samples=4, parallel=True)()
    assert drawn["b"].shape == (4, 7, 2)


def test_a_bounded_flow_as_prior_under_nuts(fresh_store):
    flow = plain(Bounds((0.0, None), (1.0, 0.0)))

    def model():
        return pyro.sample("w", for_pyro.distribution(flow))

    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(model), num_samples=150, warmup_steps=50, disable_progbar=True)
    chain.run()
    w = chain.get_samples()["w"]
    assert ((w[:, 0] > 0) & (w[:, 0] < 1) & (w[:, 1] < 0)).all()
    assert abs(w[:, 0].mean() - 0.5) < 0.1


def test_validation_follows_pyro(fresh_store):
    d = for_pyro.distribution(plain(Bounds((0.0, 0.0), (1.0, 1.0))), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.tensor([2.0, 0.5]))


# ------------------------------------------------------------------------------------------------------------------------------ sbi


@pytest.fixture
def for_sbi(monkeypatch, tmp_path):
    pytest.importorskip("sbi", reason="the extra fluvial[sbi] is not installed")
    monkeypatch.chdir(tmp_path)  # sbi writes its log into the working directory
    from fluvial.interop import sbi

    return sbi


def maf(features, context):
    return of_zuko.flow(features, context, family="MAF", transforms=2, hidden_features=(32,))


def linear_task(n=1500):
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((n,))
    return prior, theta, theta @ MATRIX.T + 0.5 * torch.randn(n, 3)


@pytest.mark.filterwarnings("ignore")
def test_npe_finds_the_posterior(for_sbi):
    from sbi.inference import NPE

    prior, theta, x = linear_task()
    inference = NPE(prior, density_estimator=for_sbi.estimator(maf), show_progress_bars=False)
    trained = inference.append_simulations(theta, x).train(max_num_epochs=25, training_batch_size=200, learning_rate=1e-2)
    posterior = inference.build_posterior(trained)
    samples = posterior.sample((4000,), x=SEEN, show_progress_bars=False)
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.15)
    torch.testing.assert_close(samples.std(0), COVARIANCE.diagonal().sqrt(), rtol=0.25, atol=0)
    truth = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(MEAN)
    assert abs(posterior.log_prob(MEAN.unsqueeze(0), x=SEEN)[0] - truth) < 0.5
    # The flow stands alone, in the units of the data.
    torch.testing.assert_close(trained.net.log_prob(MEAN, SEEN), trained.log_prob(MEAN.view(1, 1, 2), SEEN.view(1, 3))[0, 0])


@pytest.mark.filterwarnings("ignore")
def test_nle_finds_the_posterior(for_sbi):
    from sbi.inference import NLE

    prior, theta, x = linear_task()
    inference = NLE(prior, density_estimator=for_sbi.estimator(maf, of="likelihood"), show_progress_bars=False)
    inference.append_simulations(theta, x).train(max_num_epochs=20, training_batch_size=200, learning_rate=1e-2)
    potential = inference.build_posterior().potential_fn
    potential.set_x(SEEN.unsqueeze(0))
    grid = torch.cartesian_prod(torch.linspace(-1.5, 2.5, 60), torch.linspace(-1.5, 2.5, 60))
    with torch.no_grad():
        weight = potential(grid).softmax(0)
    torch.testing.assert_close(weight @ grid, MEAN, rtol=0, atol=0.15)


def test_the_estimator_has_the_shapes_that_sbi_asks_for(for_sbi):
    theta, x = torch.randn(50, 2), 300 + 20 * torch.randn(50, 3)
    made = for_sbi.estimator(maf)(theta, x)
    assert (made.input_shape, made.condition_shape, made.embedding_net) == ((2,), (3,), None)
    assert made.loss(theta, x).shape == (50,)
    assert made.log_prob(theta.expand(4, 50, 2), x).shape == (4, 50)
    assert made.log_prob(theta.expand(4, 50, 2), x[:1]).shape == (4, 50)
    assert made.log_prob(theta[:1], x.expand(4, 50, 3)).shape == (4, 50)
    assert made.sample(torch.Size([6]), x[:5]).shape == (6, 5, 2)
    drawn, log_p = made.sample_and_log_prob(torch.Size([6]), x[:5])
    torch.testing.assert_close(made.log_prob(drawn, x[:5]), log_p, rtol=0, atol=1e-4)
    torch.testing.assert_close(made.net.context(x).mean(0), torch.zeros(3), rtol=0, atol=1e-4)


def test_an_embedding_is_standardised_and_trained(for_sbi):
    theta, x = torch.randn(50, 2), 5 + torch.randn(50, 1, 6, 6)
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    made = for_sbi.estimator(maf, embedding=embedding)(theta, x)
    assert made.embedding_net is embedding
    made.train().loss(theta, x).mean().backward()
    assert embedding[1].weight.grad.abs().sum() > 0
    assert made.sample((3,), x[:2]).shape == (3, 2, 2)


def test_flows_that_do_not_fit_sbi_are_refused(for_sbi):
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    with pytest.raises(TypeError, match="train free-form flows by fluvial.fit"):
        for_sbi.estimator(lambda features, context: fl.flows.free_form(features, context=context))(theta, x)
    with pytest.raises(ValueError, match="expected samples of shape"):
        for_sbi.estimator(lambda features, context: maf(features + 1, context))(theta, x)
    with pytest.raises(ValueError, match="'posterior'"):
        for_sbi.estimator(of="evidence")


# ------------------------------------------------------------------------------------------------------------------- missing extras


@pytest.mark.parametrize(("module", "extra"), [("zuko", "zuko"), ("pyro", "pyro"), ("sbi", "sbi")])
def test_a_missing_extra_is_named_in_one_line(module, extra):
    program = f"import sys\nsys.modules[{module!r}] = None\nimport fluvial.interop.{module}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].endswith(f"pip install 'fluvial[{extra}]'")
