"""Our flows in sbi."""

import pytest
import torch
from torch import nn

import fluvial as fl

pytest.importorskip("zuko", reason="the extra fluvial[zuko] is not installed")

from fluvial.interop import zuko as of_zuko  # noqa: E402

# A linear model with normal noise of width ½, whose posterior is known.
MATRIX = torch.tensor([[1.0, 0.5], [0.3, 1.0], [1.0, -1.0]])
SEEN = torch.tensor([1.0, 0.5, -0.2])
COVARIANCE = torch.linalg.inv(torch.eye(2) + MATRIX.T @ MATRIX / 0.25)
MEAN = COVARIANCE @ MATRIX.T @ SEEN / 0.25


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
