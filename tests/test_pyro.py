"""Our flows in Pyro."""

import copy

import pytest
import torch

import fluvial as fl
from fluvial.bases import Normal
from fluvial.codecs import Bounds, Chain, Standardize
from fluvial.flow import Flow

pytest.importorskip("zuko", reason="the extra fluvial[zuko] is not installed")
pyro = pytest.importorskip("pyro", reason="the extra fluvial[pyro] is not installed")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO  # noqa: E402

from fluvial.interop import pyro as for_pyro  # noqa: E402
from fluvial.interop import zuko as of_zuko  # noqa: E402


def conditional():
    torch.manual_seed(1)
    return of_zuko.flow(2, 3, family="MAF", transforms=1, hidden_features=(8,)).eval()


def plain(codec=None):
    return Flow(codec or Standardize(2), Normal(2)).eval()


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
