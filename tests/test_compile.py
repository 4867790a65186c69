"""The objective under torch.compile, whole graph, inductor: same gradients as eager, for networks deep enough to show what breaks."""

import warnings

import pytest
import torch
from torch import nn

from fluvial.bases import Normal
from fluvial.codecs import FreeForm
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.nn import Residual
from fluvial.objectives import Batch, FreeFormLikelihood, Progress


def modules(a, b):
    """Four hidden layers: what a forward derivative cannot be compiled through shows from the first hidden-to-hidden layer on."""
    return nn.Sequential(nn.Linear(a, 16), nn.SiLU(), *(m for _ in range(3) for m in (nn.Linear(16, 16), nn.SiLU())), nn.Linear(16, b))


def networks(a, b):
    return Residual(a, b, width=16, blocks=3)


def check(flow, batch, **options):
    """Loss and gradients, compiled and eager, from the same random numbers."""
    objective = FreeFormLikelihood(beta=10.0, **options).double()
    found = []
    torch._dynamo.reset()
    with torch._inductor.config.patch(fallback_random=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own advice
        # A training step has a generator of its own, which the compiler cannot trace: it draws from the default one.
        steps = (objective, Progress()), (torch.compile(objective, fullgraph=True), Progress(generator=torch.Generator()))
        for step, progress in steps:
            torch.manual_seed(0)
            flow.zero_grad()
            loss = step(flow, batch, progress)["loss"]
            loss.backward()
            found.append((loss.detach(), *(p.grad.clone() for p in flow.parameters())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def build(make, dim, latent):
    torch.manual_seed(0)
    return Flow(FreeForm(make(dim, latent), make(latent, dim)), Normal(latent)).double(), Batch(torch.randn(8, dim, dtype=torch.float64))


def test_any_modules():
    check(*build(modules, 8, 8), probe="data")


@pytest.mark.long
@pytest.mark.parametrize("probe", ["data", "latent", "latent_vjp"])
@pytest.mark.parametrize("make", [networks, modules])
@pytest.mark.parametrize(("dim", "latent"), [(8, 8), (16, 4)])
def test_every_plan(make, dim, latent, probe):
    check(*build(make, dim, latent), probe=probe)


@pytest.mark.long
@pytest.mark.parametrize("probe", ["data", "latent", "latent_vjp"])
def test_sphere(probe):
    from fluvial.manifolds import Sphere

    torch.manual_seed(0)
    flow = free_form(manifold=Sphere(2), width=16, blocks=3).double()
    terms = {"z_projection": 1.0, "x_projection": 1.0, "z_sample_reconstruction": 1.0, "x_sample_reconstruction": 1.0}
    check(flow, Batch(Sphere(2).random_uniform(8, dtype=torch.float64)), probe=probe, terms=terms)


@pytest.mark.long
@pytest.mark.parametrize("probe", ["data", "latent", "latent_vjp"])
def test_conditions_standardisation_probes_and_fraction(probe):
    torch.manual_seed(0)
    flow = free_form(4, context=2, width=16, blocks=3).double()
    batch = Batch(torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64), torch.rand(8, dtype=torch.float64))
    check(flow, batch, probe=probe, probes=2, fraction=0.5)
