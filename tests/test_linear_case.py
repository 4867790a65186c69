"""Linear autoencoders, where everything is known: the free-form rule keeps the right direction where exact log-determinants lose it.

z = aᵀx, x̂ = b z, x ~ N(0, diag σ²). The right answer is the axis of largest variance: a = e₁/σ₁, b = σ₁ e₁.
"""

import pytest
import torch
from torch import nn

from fluvial.bases import Normal
from fluvial.codecs import FreeForm
from fluvial.flow import Flow
from fluvial.objectives import Batch, FreeFormLikelihood, Progress


@pytest.fixture(autouse=True)
def _double(double):
    pass


def data(sigma):
    """Four points whose covariance is exactly diag σ²."""
    axes = torch.diag(torch.tensor(sigma)) * 2**0.5
    return torch.cat([axes, -axes])


def descend(parameters, loss, steps, learning_rate=0.02):
    # Short memory, because the balance of the two maps turns slowly and swings; then a long decay.
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / (0.4 * steps)))
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def trained(sigma, beta, *, steps=2000, probe="latent"):
    """|encoder|, |decoder| and the squared reconstruction error after training from the diagonal."""
    flow = Flow(FreeForm(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False)), Normal(1))
    for weight in flow.parameters():
        nn.init.constant_(weight, 0.5**0.5)
    x = data(sigma)
    objective = FreeFormLikelihood(beta=beta, probe=probe)
    descend(flow.parameters(), lambda: objective(flow, Batch(x), Progress())["loss"], steps)
    error = (x - flow.reconstruct(x)).square().sum(-1).mean().item()
    return flow.codec.encoder.weight.detach()[0].abs(), flow.codec.decoder.weight.detach()[:, 0].abs(), error


@pytest.mark.parametrize("beta", [0.05, 1.0, 10.0])
def test_the_free_form_rule_finds_the_axis_of_largest_variance(beta):
    _, decoder, error = trained((1.0, 0.2), beta)
    torch.testing.assert_close(decoder / decoder.norm(), torch.tensor([1.0, 0.0]), rtol=0, atol=0.005)
    assert error == pytest.approx(0.040, abs=0.001)


def exact(beta, log_volume, steps=2000):
    """The same model trained on an exact log-determinant instead."""
    a, b = (torch.full((2,), 0.5**0.5, requires_grad=True) for _ in range(2))
    x = data((1.0, 0.2))

    def loss():
        z = x @ a
        return (beta * (x - z.unsqueeze(-1) * b).square().sum(-1) + 0.5 * z.square()).mean() + log_volume(a, b)

    descend([a, b], loss, steps)
    error = (x - (x @ a).unsqueeze(-1) * b).square().sum(-1).mean().item()
    return a.detach(), b.detach(), error


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_the_exact_loss_through_the_decoder_collapses(beta):
    _, b, error = exact(beta, lambda a, b: b.norm().log())
    assert b.norm() < 0.2
    assert error > 0.9


def test_the_exact_loss_through_the_encoder_takes_the_axis_of_least_variance():
    _, b, error = exact(0.05, lambda a, b: -a.norm().log())
    assert (b.abs() / b.norm())[1] > 0.99
    assert error == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("probe", ["latent", "latent_vjp"])
def test_linear_injective_flow_converges_to_the_truth(probe):
    encoder, decoder, _ = trained((1.0, 2.0), 10.0, probe=probe)
    torch.testing.assert_close(encoder, torch.tensor([0.0, 0.5]), rtol=0, atol=0.01)
    torch.testing.assert_close(decoder, torch.tensor([0.0, 2.0]), rtol=0, atol=0.01)


def test_encoder_and_decoder_likelihood_meet_the_truth_on_a_gaussian():
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float32)
    from fluvial.nn import Residual

    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.5]])
    truth = torch.distributions.MultivariateNormal(torch.zeros(2), scale_tril=mixing)
    flow = Flow(FreeForm(Residual(2, width=32, blocks=2), Residual(2, width=32, blocks=2)), Normal(2))
    objective = FreeFormLikelihood(beta=30.0)
    descend(flow.parameters(), lambda: objective(flow, Batch(truth.sample((256,))), Progress())["loss"], 500, 5e-3)
    x = truth.sample((20_000,))
    flow.eval()
    gaps = [(flow.log_prob(x, volume=volume) - truth.log_prob(x)).mean().item() for volume in ("decoder", "encoder")]
    assert gaps[0] == pytest.approx(0, abs=0.02)
    assert gaps[1] == pytest.approx(gaps[0], abs=0.01)
