"""The flow: its densities against closed forms and quadrature, its shapes, its gradients, its refusals."""

import math
import warnings

import pytest
import torch
from torch import nn

from fluvial.bases import Base, Normal, StudentT, UniformOn, VonMisesFisherMixture
from fluvial.codecs import Bijection, Chain, FreeForm, Standardize, fit_codec_
from fluvial.conditions import as_features
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.manifolds import Euclidean, Sphere
from fluvial.nn import MLP, ConvolutionalDecoder, ConvolutionalEncoder, Flatten, Residual
from fluvial.testing import check_flow, integrate


@pytest.fixture(autouse=True)
def _double(double):
    pass


def conditions(n):
    return torch.randn(n, 2)


def several(n):
    return {"T": torch.rand(n), "field": torch.randn(n, 2, 2)}


def sequential(a, b):
    return nn.Sequential(nn.Linear(a, 8), nn.Tanh(), nn.Linear(8, b))


FLOWS = {
    "full": (lambda: free_form(2, width=8, blocks=2), None),
    "any modules": (lambda: Flow(FreeForm(sequential(2, 2), sequential(2, 2)), StudentT(2)), None),
    "bottleneck": (lambda: free_form(4, latent=2, width=8, blocks=1), None),
    "bottleneck to one dimension": (lambda: Flow(FreeForm(sequential(3, 1), sequential(1, 3)), Normal(1)), None),
    "circle": (lambda: free_form(manifold=Sphere(1), width=8, blocks=1), None),
    "sphere": (lambda: free_form(manifold=Sphere(2), base=VonMisesFisherMixture(Sphere(2), components=3), width=8, blocks=1), None),
    "conditional": (lambda: free_form(2, context=2, width=8, blocks=1), conditions),
    "conditional sphere": (lambda: free_form(manifold=Sphere(2), context=2, width=8, blocks=1), conditions),
    "context": (
        lambda: Flow(
            Chain([Standardize(2), FreeForm(MLP(2, context=3, hidden=[8]), MLP(2, context=3, hidden=[8]))]),
            Normal(2),
            context=nn.Sequential(Flatten(), nn.Linear(5, 3), nn.Tanh()),
            condition={"T": (), "field": (2, 2)},
        ),
        several,
    ),
    "images": (lambda: free_form((1, 4, 4), latent=3, channels=[2], width=8, blocks=1), None),
    "standardised on both sides": (
        lambda: Flow(Chain([Standardize(2), FreeForm(MLP(2, hidden=[8]), MLP(2, hidden=[8])), Standardize(2)]), Normal(2)),
        None,
    ),
}


@pytest.mark.parametrize(("make", "condition"), FLOWS.values(), ids=FLOWS.keys())
def test_contract(make, condition):
    check_flow(make, condition=condition)


# --------------------------------------------------------------------------------------------------------------- exact densities


def linear(matrix, shift=0.0):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0])
    layer.weight.data.copy_(matrix)
    layer.bias.data.fill_(0.0).add_(torch.as_tensor(shift))
    return layer


def affine_pair(matrix, shift):
    """x = A z + s, and its left inverse."""
    left = torch.linalg.pinv(matrix)
    return FreeForm(linear(left, -left @ shift), linear(matrix, shift))


class Moebius(nn.Module):
    """A conformal map of the sphere; that of −a is its inverse."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.as_tensor(a))

    def forward(self, x):
        return (1 - self.a.square().sum()) / (x + self.a).square().sum(-1, keepdim=True) * (x + self.a) + self.a


class Cubic(nn.Module):
    """z ↦ z + z³/3 on the line, or its inverse by Cardano's formula."""

    def __init__(self, inverse=False):
        super().__init__()
        self.inverse = inverse

    def forward(self, x):
        if not self.inverse:
            return x + x**3 / 3
        root = torch.sqrt(1 + (1.5 * x) ** 2)
        big, small = (torch.sign(y) * y.abs() ** (1 / 3) for y in (1.5 * x + root, 1.5 * x - root))
        return big + small


def sphere_flow(n, base=None):
    a = 0.6 * nn.functional.normalize(torch.randn(n + 1), dim=0)
    return Flow(FreeForm(Moebius(a), Moebius(-a)), base or UniformOn(Sphere(n)), manifold=Sphere(n))


CONSISTENT = {
    "line": lambda: Flow(FreeForm(Cubic(inverse=True), Cubic()), Normal(1)),
    "line, heavy tails": lambda: Flow(affine_pair(torch.tensor([[2.5]]), torch.tensor([1.0])), StudentT(1, df=3.0)),
    "plane": lambda: Flow(affine_pair(torch.tensor([[1.0, 0.4], [-0.7, 0.6]]), torch.tensor([0.3, -1.0])), Normal(2)),
    "circle": lambda: sphere_flow(1),
    "circle, mixture": lambda: sphere_flow(1, VonMisesFisherMixture(Sphere(1), components=3)),
    "sphere": lambda: sphere_flow(2),
    "sphere, mixture": lambda: sphere_flow(2, VonMisesFisherMixture(Sphere(2), components=3)),
}


@pytest.mark.parametrize("options", [{}, {"volume": "encoder"}, {"at": "preimage"}], ids=["decoder", "encoder", "preimage"])
@pytest.mark.parametrize("make", CONSISTENT.values(), ids=CONSISTENT.keys())
def test_densities_of_consistent_pairs_integrate_to_one(make, options):
    flow = make().eval()
    with warnings.catch_warnings():
        # Quadrature on the line reaches points so large that the preimage is lost to rounding; they carry no mass.
        warnings.filterwarnings("ignore", message=".*no preimage")
        total, _ = integrate(flow.manifold, lambda x: flow.log_prob(x, **options).exp().nan_to_num(0.0))
    assert total == pytest.approx(1, abs=1e-6)


def test_affine_flow_is_the_normal_distribution_it_must_be():
    matrix, shift = torch.randn(3, 3), torch.randn(3)
    flow, x = Flow(affine_pair(matrix, shift), Normal(3)).eval(), torch.randn(4, 5, 3)
    truth = torch.distributions.MultivariateNormal(shift, matrix @ matrix.T).log_prob(x)
    for options in ({}, {"volume": "encoder"}, {"at": "preimage"}):
        torch.testing.assert_close(flow.log_prob(x, **options), truth)


def test_linear_bottleneck_behind_an_anisotropic_standardisation_against_the_closed_form():
    scale, mean = torch.tensor([0.01, 3.0, 200.0]), torch.tensor([5.0, 0.0, -40.0])
    data = torch.randn(4000, 3) * scale + mean
    matrix = torch.tensor([[1.0, 0.2], [-0.5, 0.8], [0.3, 0.3]])
    flow = Flow(Chain([Standardize(3), affine_pair(matrix, torch.zeros(3))]), Normal(2)).eval()
    fit_codec_(flow.codec, data)
    sigma, mu = data.std(0, correction=0), data.mean(0)
    # x = μ + diag(σ) A z in the units of the data, whose density on the plane it spans has volume √det AᵀΣ²A.
    whole = sigma.unsqueeze(-1) * matrix
    z = torch.linalg.lstsq(matrix, ((data - mu) / sigma).T).solution.T
    truth = Normal(2).log_prob(z) - 0.5 * torch.logdet(whole.T @ whole)
    torch.testing.assert_close(flow.log_prob(data), truth)
    on_plane = mu + z @ whole.T
    torch.testing.assert_close(flow.reconstruct(data), on_plane)
    torch.testing.assert_close(flow.log_prob(on_plane, at="preimage"), truth)
    # The encoder's Gram volume only bounds it: ½ log det J_f J_fᵀ + ½ log det J_gᵀJ_g ≥ 0.
    bound = flow.log_prob(data, volume="encoder")
    assert (bound >= truth - 1e-9).all()
    left = torch.linalg.pinv(matrix) / sigma
    torch.testing.assert_close(bound, Normal(2).log_prob(z) + 0.5 * torch.logdet(left @ left.T))
    x, log_p = flow.sample_and_log_prob(50)
    torch.testing.assert_close(log_p, flow.log_prob(x))


class Conformal(Euclidean):
    """The plane with the metric e^{2φ} δ, φ = −|x|²/4: lengths shrink outwards."""

    def log_volume(self, x):
        return -0.5 * x.square().sum(-1)

    def __repr__(self):
        return f"Conformal({self.dim})"


class Unfold(Bijection):
    """The identity from the conformal to the flat plane."""

    def __init__(self):
        super().__init__()
        self.domain, self.codomain = Conformal(2), Euclidean(2)

    def encode(self, x, c=None):
        return x

    def decode(self, z, c=None):
        return z

    def encode_ladj(self, x, c=None):
        return x, -self.domain.log_volume(x)

    def decode_ladj(self, z, c=None):
        return z, self.domain.log_volume(z)


def curved_flows():
    pair = affine_pair(torch.tensor([[1.0, 0.4], [-0.3, 0.6]]), torch.tensor([0.3, -0.2]))
    return {
        "networks": Flow(pair, Normal(2), manifold=Conformal(2)),
        "bijection before": Flow(Chain([Unfold(), pair]), Normal(2), manifold=Conformal(2)),
    }


@pytest.mark.parametrize("name", ["networks", "bijection before"])
def test_densities_refer_to_riemannian_volume(name):
    flow = curved_flows()[name].eval()
    flat = Flow(curved_flows()["networks"].codec, Normal(2)).eval()
    x = torch.randn(20, 2)
    # p dV is one measure: the density with respect to dV = e^{log_volume} dx is smaller by just that factor.
    truth = flat.log_prob(x) - Conformal(2).log_volume(x)
    for options in ({}, {"volume": "encoder"}, {"at": "preimage"}):
        torch.testing.assert_close(flow.log_prob(x, **options), truth)
    total, _ = integrate(Euclidean(2), lambda x: (flow.log_prob(x) + Conformal(2).log_volume(x)).exp().nan_to_num(0.0))
    assert total == pytest.approx(1, abs=1e-6)
    y, log_p = flow.sample_and_log_prob(10)
    torch.testing.assert_close(log_p, flow.log_prob(y))


class Wrapped(Base):
    """A normal distribution on the conformal plane, its density with respect to the curved volume."""

    def __init__(self):
        super().__init__()
        self.manifold = Conformal(2)

    def log_prob(self, z, c=None):
        return Normal(2).log_prob(z) - self.manifold.log_volume(z)

    def sample(self, n=(), c=None, *, generator=None):
        return Normal(2).double().sample(n, c, generator=generator)


def test_the_metric_of_the_latent_side_counts_too():
    pair = affine_pair(torch.tensor([[1.0, 0.4], [-0.3, 0.6]]), torch.zeros(2))
    x = torch.randn(20, 2)
    flow = Flow(pair, Wrapped(), manifold=Euclidean(2)).eval()
    for options in ({}, {"volume": "encoder"}):
        torch.testing.assert_close(flow.log_prob(x, **options), Flow(pair, Normal(2)).eval().log_prob(x))


# --------------------------------------------------------------------------------------------------- encoders that are wrong


def test_preimage_does_not_need_a_right_encoder():
    matrix, shift = torch.tensor([[1.0, 0.4], [-0.7, 0.6]]), torch.tensor([0.3, -1.0])
    codec = FreeForm(linear(0.1 * torch.eye(2), 0.4), linear(matrix, shift))
    flow, x = Flow(codec, Normal(2)).eval(), torch.randn(30, 2)
    truth = torch.distributions.MultivariateNormal(shift, matrix @ matrix.T).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x, at="preimage"), truth)
    assert not torch.allclose(flow.log_prob(x), truth)
    bent = Flow(FreeForm(linear(torch.eye(1)), Cubic()), Normal(1)).eval()
    x = torch.linspace(-20, 20, 41).unsqueeze(-1)
    torch.testing.assert_close(bent.log_prob(x, at="preimage"), CONSISTENT["line"]().log_prob(x).detach())


def test_preimage_on_the_sphere_with_a_wrong_encoder():
    truth = sphere_flow(2)
    a = truth.codec.decoder.a
    flow = Flow(FreeForm(linear(torch.eye(3)), Moebius(a.detach())), UniformOn(Sphere(2)), manifold=Sphere(2)).eval()
    x = Sphere(2).random_uniform(40)
    torch.testing.assert_close(flow.log_prob(x, at="preimage"), truth.eval().log_prob(x))


def test_rows_without_a_preimage_are_minus_infinity_and_counted_once():
    flow = Flow(FreeForm(linear(torch.eye(1)), nn.Tanh()), Normal(1)).eval()
    x = torch.tensor([[0.5], [2.0], [-0.3], [-1.5]])
    with pytest.warns(UserWarning, match="2 of 4 rows have no preimage and get −inf") as caught:
        log_p = flow.log_prob(x, at="preimage")
    assert len(caught) == 1
    assert log_p.isinf().tolist() == [False, True, False, True]
    z = torch.atanh(x[::2, 0])
    torch.testing.assert_close(log_p[::2], Normal(1).log_prob(z.unsqueeze(-1)) - torch.log(1 - z.tanh() ** 2))


def test_points_off_a_bottleneck_have_no_preimage():
    flow = Flow(affine_pair(torch.tensor([[1.0], [2.0]]), torch.zeros(2)), Normal(1)).eval()
    on, off = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.5, 1.1]])
    assert torch.isfinite(flow.log_prob(on, at="preimage")).all()
    with pytest.warns(UserWarning, match="1 of 1"):
        assert flow.log_prob(off, at="preimage").isinf().all()


def test_preimage_of_random_networks_in_single_precision():
    torch.set_default_dtype(torch.float32)
    for flow in (free_form(4, width=32), free_form(manifold=Sphere(2), width=32), free_form(6, latent=2, width=32)):
        flow.eval()
        x, log_p = flow.sample_and_log_prob(500)
        torch.testing.assert_close(flow.log_prob(x, at="preimage"), log_p, rtol=1e-3, atol=1e-2)


def test_preimage_keeps_its_digits_far_from_zero_and_under_anisotropic_scales():
    torch.set_default_dtype(torch.float32)
    data = torch.randn(200, 3) * torch.tensor([0.01, 0.1, 100.0]) + torch.tensor([1.0, 100.0, 1e4])
    flow = free_form(3, width=16, blocks=1)
    fit_codec_(flow.codec, data)
    x, log_p = flow.eval().sample_and_log_prob(200)
    torch.testing.assert_close(flow.log_prob(x, at="preimage"), log_p, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["full", "sphere", "bottleneck", "standardised on both sides"])
def test_preimage_has_the_derivatives_of_the_implicit_function(name):
    flow = FLOWS[name][0]()
    fit_codec_(flow.codec, 2 * torch.randn(50, *flow.manifold.event_shape) + 1)
    with torch.no_grad():
        z = flow.base.sample(3)
    parameters = [p for p in flow.codec.parameters() if p.requires_grad]

    x = flow.decode(z).detach().requires_grad_()
    log_p = flow.log_prob(x, at="preimage").sum()
    slopes = torch.autograd.grad(log_p, [x, *parameters], allow_unused=True)
    # x moves along the image of the decoder, where a bottleneck has a density.
    moved = [flow.decode(z + by * torch.ones_like(z) * 1e-5).detach() for by in (1, -1)]
    difference = (flow.log_prob(moved[0], at="preimage") - flow.log_prob(moved[1], at="preimage")).sum()
    torch.testing.assert_close((slopes[0] * (moved[0] - moved[1])).sum(), difference.detach(), rtol=1e-4, atol=1e-9)
    if name == "full":
        p, slope = parameters[-1], slopes[-1]
        values = []
        for by in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[0] += by
            values.append(flow.log_prob(x, at="preimage").sum().item())
            with torch.no_grad():
                p.view(-1)[0] -= by
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope.view(-1)[0].item(), rel=1e-4)


def test_preimage_has_second_derivatives():
    flow = free_form(2, width=8, blocks=1).eval()
    x = flow.sample(2).detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y: flow.log_prob(y, at="preimage"), (x,), rtol=1e-4, atol=1e-5)


def test_rows_without_a_preimage_do_not_spoil_gradients():
    flow = Flow(FreeForm(linear(torch.eye(1)), nn.Sequential(linear(torch.eye(1)), nn.Tanh())), Normal(1))
    x = torch.tensor([[0.5], [2.0]])
    with pytest.warns(UserWarning, match="1 of 2"):
        log_p = flow.log_prob(x, at="preimage")
    gradients = torch.autograd.grad(log_p[0], list(flow.codec.decoder.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)


# ---------------------------------------------------------------------------------------------------------- shapes, conditions


def test_chunks_do_not_change_anything(monkeypatch):
    flow = free_form(3, context=2, width=8, blocks=1).eval()
    x, c = torch.randn(11, 3), torch.randn(11, 2)
    whole = [flow.log_prob(x, c), flow.log_prob(x, c, volume="encoder"), flow.sample_and_log_prob((), c, generator=torch.Generator().manual_seed(0))]
    monkeypatch.setattr("fluvial.flow.rows_per_chunk", lambda *args, **kwargs: 3)
    parts = [flow.log_prob(x, c), flow.log_prob(x, c, volume="encoder"), flow.sample_and_log_prob((), c, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(parts, whole)


def test_batches_of_points_and_conditions_broadcast():
    flow = free_form(2, context=2, width=8, blocks=1).eval()
    x, c = torch.randn(5, 1, 2), torch.randn(3, 2)
    log_p = flow.log_prob(x, c)
    assert log_p.shape == (5, 3)
    torch.testing.assert_close(log_p[2, 1], flow.log_prob(x[2, 0], c[1]))
    assert flow.encode(x, c).shape == flow.reconstruct(x, c).shape == flow.decode(x, c).shape == (5, 3, 2)
    torch.testing.assert_close(flow.reconstruct(x, c), flow.decode(flow.encode(x, c), c))
    assert flow.sample((), c).shape == (3, 2)
    assert flow.sample(4, c).shape == (4, 3, 2)
    assert flow.sample((4, 6), c[0]).shape == (4, 6, 2)
    assert flow.log_prob(torch.randn(0, 2), c[0]).shape == (0,)
    assert flow.sample(0, c).shape == (0, 3, 2)


def test_unconditional_shapes():
    flow = free_form(2, width=8, blocks=1).eval()
    assert flow.sample().shape == (2,)
    assert flow.sample(3).shape == (3, 2)
    assert flow.sample((3, 4)).shape == (3, 4, 2)
    x, log_p = flow.sample_and_log_prob(())
    assert (x.shape, log_p.shape, flow.log_prob(x).shape) == ((2,), (), ())
    assert [t.shape for t in flow.sample_and_log_prob(0)] == [(0, 2), (0,)]
    torch.testing.assert_close(flow(x), flow.log_prob(x))


class Reader(nn.Module):
    """A network of (x, c) for conditions of any structure."""

    def __init__(self, features, out):
        super().__init__()
        self.features, self.out = features, out
        self.net = nn.Linear(features + 5, out)

    def forward(self, x, c):
        return self.net(torch.cat([x, as_features({"T": c["T"].unsqueeze(-1), "field": c["field"].flatten(-2)})], -1))


def test_dict_conditions_of_declared_shapes_without_a_context():
    flow = Flow(FreeForm(Reader(2, 2), Reader(2, 2)), Normal(2), condition={"T": (), "field": (2, 2)}).eval()
    c = several(4)
    x = flow.sample(3, c)
    assert x.shape == (3, 4, 2)
    assert flow.log_prob(x, c).shape == (3, 4)
    mixed = {"T": torch.rand(5, 1), "field": torch.randn(4, 2, 2)}
    assert flow.sample((), mixed).shape == (5, 4, 2)
    torch.testing.assert_close(flow.log_prob(x[0, 0], mixed)[3, 2], flow.log_prob(x[0, 0], {"T": mixed["T"][3, 0], "field": mixed["field"][2]}))


class Counting(nn.Module):
    """A context that counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.net = nn.Linear(2, 2)

    def forward(self, c):
        self.calls += 1
        return self.net(c)


@pytest.mark.parametrize("name", ["log_prob", "encode", "decode", "reconstruct"])
def test_context_runs_once_per_call_and_passes_gradients(name, monkeypatch):
    monkeypatch.setattr("fluvial.flow.rows_per_chunk", lambda *args, **kwargs: 2)
    context = Counting()
    flow = Flow(FreeForm(MLP(2, context=2, hidden=[8]), MLP(2, context=2, hidden=[8])), Normal(2), context=context, condition=2)
    context.calls = 0
    c = torch.randn(7, 2, requires_grad=True)
    value = getattr(flow, name)(torch.randn(7, 2), c)
    assert context.calls == 1
    gradients = torch.autograd.grad(value.square().sum(), [c, *context.parameters()])
    assert all((g != 0).any() for g in gradients)
    context.calls = 0
    flow.sample(2, c)
    flow.sample_and_log_prob(2, c)
    assert context.calls == 2


def test_one_condition_for_samples_and_densities_agrees_with_its_own_flow():
    flow = free_form(2, context=2, width=8, blocks=1).eval()
    c = torch.randn(3, 2)
    x = flow.sample(5, c)
    for k in range(3):
        torch.testing.assert_close(flow.log_prob(x[:, k], c[k]), flow.log_prob(x, c)[:, k])


# ------------------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", ["full", "any modules", "bottleneck", "sphere", "circle", "standardised on both sides"])
@pytest.mark.parametrize("volume", ["decoder", "encoder"])
def test_gradients_in_parameters_and_points_against_finite_differences(name, volume):
    flow = FLOWS[name][0]().double()
    x = flow.sample(4).detach()
    parameters = [p for p in flow.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in parameters]

    def value():
        return flow.log_prob(x, volume=volume).sum()

    found = torch.autograd.grad(value(), parameters, allow_unused=True)
    exact = sum((d * g).sum() for d, g in zip(directions, found) if g is not None).item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions):
                p.add_(d, alpha=sign * 1e-5)
            values.append(value().item())
            for p, d in zip(parameters, directions):
                p.sub_(d, alpha=sign * 1e-5)
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(exact, rel=1e-5, abs=1e-6)
    assert torch.autograd.gradcheck(lambda y: flow.log_prob(y, volume=volume), (x[:2].clone().requires_grad_(),), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["full", "any modules", "bottleneck", "sphere"])
@pytest.mark.parametrize("volume", ["decoder", "encoder"])
def test_function_transforms_of_log_prob_in_eval_mode(name, volume):
    flow = FLOWS[name][0]().double().eval()
    x = flow.sample(3).detach()

    def density(y):
        return flow.log_prob(y, volume=volume)

    given = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(density(given).sum(), given)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(density))(x), slope)
    torch.testing.assert_close(torch.func.jvp(density, (x,), (torch.ones_like(x),))[1], slope.flatten(1).sum(-1))


def test_a_graph_is_kept_only_where_a_gradient_is_asked():
    flow = free_form(2, context=2, width=8, blocks=1)
    x, c = torch.randn(3, 2), torch.randn(3, 2)
    assert flow.train().log_prob(x, c).requires_grad
    flow.eval()
    assert not flow.log_prob(x, c).requires_grad
    values = [flow.encode(x, c), flow.decode(x, c), flow.reconstruct(x, c), flow.sample((), c), *flow.sample_and_log_prob((), c)]
    assert not any(value.requires_grad for value in values)
    assert flow.decode(x.clone().requires_grad_(), c).requires_grad
    assert flow.sample((), c.clone().requires_grad_()).requires_grad
    assert flow.log_prob(x.clone().requires_grad_(), c).requires_grad
    assert flow.log_prob(x, c.clone().requires_grad_()).requires_grad
    with torch.no_grad():
        assert not flow.train().log_prob(x.clone().requires_grad_(), c).requires_grad


# -------------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0])
def test_single_precision_stays_finite_far_out_and_rows_do_not_infect_each_other(name, factor):
    torch.set_default_dtype(torch.float32)
    make, condition = FLOWS[name]
    flow = make().float()
    c = None if condition is None else condition(5)
    x = flow.sample(() if c is not None else 5, c).detach()
    x = (factor * x if isinstance(flow.manifold, Euclidean) else x).requires_grad_()
    log_p = flow.log_prob(x, c)
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(slope).all()
    spoilt = x.detach().clone()
    spoilt[1] = torch.nan
    with torch.no_grad():
        found = flow.log_prob(spoilt, c)
    assert found.isnan().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(found[2:], log_p[2:].detach(), rtol=1e-4, atol=1e-3)


def test_train_mode_with_batch_norm_and_dropout_does_not_fail_on_the_size_of_a_chunk():
    codec = FreeForm(nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))
    assert torch.isfinite(Flow(codec, Normal(2)).log_prob(torch.randn(20, 2))).all()


# -------------------------------------------------------------------------------------------------------------------- refusals


def pair(a, b, **options):
    return FreeForm(MLP(a, b, hidden=[4], **options), MLP(b, a, hidden=[4], **options))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Flow(nn.Linear(2, 2), Normal(2)), TypeError, r"codec must be a Codec, got Linear; wrap two networks as FreeForm"),
        (lambda: Flow(pair(2, 2), torch.distributions.Normal(0, 1)), TypeError, "base must be a fluvial base"),
        (lambda: Flow(pair(2, 3), Normal(3)), ValueError, "more dimensions than the data"),
        (lambda: Flow(pair(3, 3), UniformOn(Sphere(2)), manifold=Sphere(3)), ValueError, "has points of shape|more dimensions|shape"),
        (lambda: Flow(pair(4, 2), Normal(2), manifold=Euclidean(3)), ValueError, r"decode maps Euclidean\(2\) to shape \(4,\)"),
        (lambda: Flow(Standardize(2), Normal(3)), ValueError, "more dimensions than the data"),
        (lambda: Flow(Standardize(3), UniformOn(Sphere(2))), ValueError, r"codomain Euclidean\(3\) is not the latent manifold Sphere\(2\)"),
        (lambda: Flow(Standardize(2), Normal(2), manifold=Euclidean(3)), ValueError, r"domain Euclidean\(2\) is not the manifold"),
        (lambda: Flow(pair(3, 3), Normal(3), latent_manifold=Euclidean(2)), ValueError, "does not fit the base"),
        (lambda: Flow(pair(3, 3), Normal(3), latent_manifold=Sphere(2)), ValueError, "does not fit the base"),
        (lambda: Flow(FreeForm(Reader(2, 2), Reader(2, 2)), Normal(2)), ValueError, "give condition=… or manifold=…"),
        (lambda: Flow(Chain([Standardize(3), pair(3, 3)]), UniformOn(Sphere(2)), manifold=Sphere(2)), ValueError, "domain Euclidean.3. is not the"),
        (lambda: Flow(Chain([pair(3, 3), Standardize(3)]), UniformOn(Sphere(2)), manifold=Sphere(2)), ValueError, "codomain Euclidean.3. is not the"),
        (lambda: free_form(), ValueError, "say what the data are"),
        (lambda: free_form(3, manifold=Sphere(1)), ValueError, "contradict"),
        (lambda: free_form(manifold=Sphere(2), latent=2), ValueError, "flat space only"),
        (lambda: free_form((1, 8, 8)), ValueError, "channels="),
        (lambda: free_form(3, latent=2, base=Normal(3)), ValueError, "latent=2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.log_prob(torch.zeros(5, 3)), ValueError, r"expected x of shape \(\*batch, 2\) on Euclidean\(2\), got \(5, 3\)"),
        (lambda f: f.log_prob(torch.tensor(1.0)), ValueError, "expected x of shape"),
        (lambda f: f.decode(torch.zeros(3)), ValueError, "expected z of shape"),
        (lambda f: f.log_prob([[0.0, 0.0]]), TypeError, "must be a torch.Tensor, got list"),
        (lambda f: f.log_prob(torch.zeros(5, 2, dtype=torch.float32)), TypeError, "float32.*float64"),
        (lambda f: f.log_prob(torch.zeros(5, 2), volume="both"), ValueError, "'both'"),
        (lambda f: f.log_prob(torch.zeros(5, 2), volume="encoder", at="preimage"), ValueError, "belongs to volume='decoder'"),
        (lambda f: f.log_prob(torch.zeros(5, 2), torch.zeros(5, 1)), ValueError, "condition"),
    ],
)
def test_wrong_inputs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(free_form(2, width=8, blocks=1))


@pytest.mark.parametrize(
    ("c", "error", "message"),
    [
        (None, ValueError, "this flow is conditional; give c"),
        (torch.zeros(5, 3), ValueError, r"expected shape \(\*batch, 2\), got \(5, 3\)"),
        (torch.zeros(4, 2), ValueError, r"batch \(5,\) of x does not broadcast with the batch \(4,\)"),
        ({"a": torch.zeros(5, 2)}, ValueError, r"expected one tensor of shape \(\*batch, 2\), got the entries \['a'\]"),
        ([0.0, 1.0], TypeError, "expected a torch.Tensor, got list"),
    ],
)
def test_wrong_conditions_are_named(c, error, message):
    with pytest.raises(error, match=message):
        free_form(2, context=2, width=8, blocks=1).log_prob(torch.zeros(5, 2), c)


@pytest.mark.parametrize(
    ("c", "message"),
    [
        ({"T": torch.rand(3)}, r"expected the entries \['T', 'field'\], got \['T'\]"),
        (torch.rand(3, 5), r"expected the entries \['T', 'field'\], got one tensor"),
        ({"T": torch.rand(3), "field": torch.rand(3, 4)}, r"condition 'field': expected shape \(\*batch, 2, 2\)"),
        ({"T": torch.rand(3), "field": torch.rand(4, 2, 2)}, "do not broadcast"),
    ],
)
def test_wrong_dict_conditions_are_named(c, message):
    with pytest.raises(ValueError, match=message):
        FLOWS["context"][0]().sample((), c)


class Careless(Normal):
    """A base that forgets the batch of its condition."""

    def sample(self, n=(), c=None, *, generator=None):
        return super().sample(n, generator=generator)


def test_a_base_that_ignores_the_batch_of_its_condition_is_named():
    flow = Flow(pair(2, 2, context=1), Careless(2), condition=1)
    with pytest.raises(ValueError, match=r"must return \(\*n, \*batch\(c\), \*event\)"):
        flow.sample((), torch.zeros(3, 1))


def test_the_space_of_the_data_is_inferred():
    assert Flow(pair(3, 2), Normal(2)).manifold == Euclidean(3)
    assert Flow(pair(3, 2, context=4), Normal(2), condition=4).manifold == Euclidean(3)
    assert Flow(pair(3, 2, context=4), Normal(2)).manifold == Euclidean(3)
    assert Flow(Chain([Unfold(), pair(2, 2)]), Normal(2)).manifold == Conformal(2)
    assert Flow(Standardize((1, 2, 2)), Normal((1, 2, 2))).manifold == Euclidean((1, 2, 2))
    image = FreeForm(ConvolutionalEncoder((1, 4, 4), 2, channels=[2], width=4), ConvolutionalDecoder(2, (1, 4, 4), channels=[2], width=4))
    flow = Flow(image, Normal(2))
    assert flow.manifold == Euclidean((1, 4, 4))
    assert (flow.is_bottleneck, flow.is_bijective, flow.dim) == (True, False, 2)


# -------------------------------------------------------------------------------------------------------- torch.distributions


def test_distribution_of_torch():
    flow = free_form(2, context=2, width=8, blocks=1).eval()
    c = torch.randn(3, 2)
    distribution = flow.distribution(c)
    assert (distribution.batch_shape, distribution.event_shape) == ((3,), (2,))
    x = distribution.sample((4,))
    assert x.shape == (4, 3, 2)
    assert not x.requires_grad
    assert flow.train().distribution(c).rsample((4,)).requires_grad
    flow.eval()
    torch.testing.assert_close(distribution.log_prob(x), flow.log_prob(x, c))
    larger = distribution.expand((5, 3))
    assert (larger.batch_shape, larger.sample().shape, larger.log_prob(x[:, None]).shape) == ((5, 3), (5, 3, 2), (4, 5, 3))
    torch.testing.assert_close(larger.log_prob(x[:, None])[:, 2], distribution.log_prob(x))
    independent = torch.distributions.Independent(distribution, 1)
    assert independent.log_prob(x).shape == (4,)
    assert distribution.support.check(x).shape == (4, 3)
    assert "FlowDistribution" in repr(distribution)


def test_distribution_without_a_condition():
    distribution = free_form(2, width=8, blocks=1).eval().distribution()
    assert (distribution.batch_shape, distribution.sample((3,)).shape) == ((), (3, 2))
    assert distribution.expand(()) is distribution
    assert distribution.expand((2,)).sample((3,)).shape == (3, 2, 2)


def test_residual_flow_is_math_not_magic():
    """One number by hand: x = 2z on the line at x = 1."""
    flow = Flow(affine_pair(torch.tensor([[2.0]]), torch.zeros(1)), Normal(1)).eval()
    assert flow.log_prob(torch.ones(1)).item() == pytest.approx(-0.5 * 0.25 - 0.5 * math.log(2 * math.pi) - math.log(2))
    assert isinstance(free_form(2).codec.parts[1].encoder, Residual)
