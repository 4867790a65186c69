"""Free-form flows on every manifold: the volume gradient, exact densities, and flows of one call."""

import contextlib
import math

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Independent, Normal, UniformOn, WrappedNormal
from fluvial.codecs import FreeForm
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.manifolds import Euclidean, Hyperboloid, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus, from_projection
from fluvial.nn import Residual
from fluvial.objectives import Batch, FreeFormLikelihood
from fluvial.testing import check_flow, check_objective, integrate
from fluvial.testing.contract import points_on
from fluvial.volume import split, surrogate


@pytest.fixture(autouse=True)
def _double(double):
    pass


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def octahedron():
    corners = torch.cat([torch.eye(3), -torch.eye(3)])
    faces = [[a, b, c] for a in (0, 3) for b in (1, 4) for c in (2, 5)]
    return Mesh(corners, faces)


SPACES = {
    "sphere": lambda: Sphere(2),
    "torus": lambda: Torus(2),
    "rotations": lambda: SpecialOrthogonal(3),
    "disc": lambda: PoincareBall(2),
    "hyperboloid": lambda: Hyperboloid(2),
    "mesh": octahedron,
    "poses": lambda: Product(SpecialOrthogonal(3), Euclidean(3)),
    "own": lambda: from_projection(unit, 2),
}


def random_pair(space):
    """Networks that are nowhere near inverses of each other."""
    shape = space.event_shape if len(space.event_shape) > 1 else space.event_shape[0]
    return FreeForm(*(Residual(shape, width=16, blocks=2, activation="tanh", output_scale=1.0) for _ in range(2)))


def inside(space, n):
    """Points that a network with an output of order one does not throw out of the ball."""
    return 0.5 * points_on(space, n) if isinstance(space, PoincareBall) else points_on(space, n)


# ------------------------------------------------------------------------------------------------------------- volume gradient


@pytest.mark.parametrize("plan", ["data", "latent", "latent_vjp"])
@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES.keys())
def test_single_probes_have_slope_one_and_the_published_scale_its_bias(make, plan):
    space = make()
    codec = random_pair(space)
    if isinstance(space, PoincareBall):
        for net in (codec.encoder, codec.decoder):
            net.last.weight.data.mul_(0.1)
    parts = split(codec, space, space)
    x = inside(space, 8)
    exact = gradients(surrogate(parts, x, probe=plan, probes=space.dim).value.mean(), codec)
    trace = tangent_trace(codec, space, x)
    if plan != "data":  # whose probe is tangent at x where the decoder ends at x̂: another direction, the same for consistent networks
        torch.testing.assert_close(exact, gradients(trace.mean(), codec), rtol=1e-6, atol=1e-9)
    many = x.repeat(2000, *(1,) * len(space.event_shape))
    for scale, expected in (("intrinsic", 1.0), ("embedding", math.prod(space.event_shape) / space.dim)):
        found = gradients(surrogate(parts, many, probe=plan, scale=scale, generator=torch.Generator().manual_seed(0)).value.mean(), codec)
        slope = (found @ exact / exact.square().sum()).item()
        assert slope == pytest.approx(expected, abs=0.02 * expected)


def gradients(value, codec):
    found = torch.autograd.grad(value, list(codec.encoder.parameters()), allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(codec.encoder.parameters(), found)])


def tangent_trace(codec, space, x):
    """tr(R_zᵀ J_f R_x SG(R_xᵀ J_g R_z)) by automatic differentiation, row by row."""
    size = math.prod(space.event_shape)
    traces = []
    for one in x.split(1):
        z = space.project(codec.encode(one)).detach()
        r_x, r_z = (space.tangent_basis(p).view(size, space.dim) for p in (one, z))
        j_f = torch.autograd.functional.jacobian(lambda y: space.project(codec.encode(y)), one, create_graph=True).view(size, size)
        j_g = torch.autograd.functional.jacobian(lambda y: space.project(codec.decode(y)), z).view(size, size)
        traces.append((r_z.T @ j_f @ r_x @ (r_x.T @ j_g @ r_z).detach()).trace())
    return torch.stack(traces)


# ------------------------------------------------------------------------------------------------------------------- densities


class Stretch(nn.Module):
    """exp₀(A log₀ x): a map of hyperbolic space with a known inverse."""

    def __init__(self, space, matrix):
        super().__init__()
        self.space, self.matrix = space, nn.Parameter(matrix)

    def forward(self, x):
        origin = torch.zeros_like(x)
        return self.space.exp(origin, self.space.log(origin, x) @ self.matrix.T)


def test_density_in_the_disc_integrates_to_one_through_the_metric():
    disc, matrix = PoincareBall(2), torch.tensor([[1.5, 0.3], [0.0, 0.8]])
    codec = FreeForm(Stretch(disc, torch.linalg.inv(matrix)), Stretch(disc, matrix))
    flow = Flow(codec, WrappedNormal(disc, scale=0.5).double(), manifold=disc).eval()
    x = flow.sample(200)
    decoder, encoder = flow.log_prob(x), flow.log_prob(x, volume="encoder")
    torch.testing.assert_close(decoder, encoder)
    # In the tangent plane at the centre it is a normal distribution of covariance A Aᵀ/4, divided by the volume change of exp₀.
    origin = torch.zeros_like(x)
    v = 2 * disc.log(origin, x)  # in units of the metric, which is 4 at the centre
    radius = v.norm(dim=-1)
    plane = torch.distributions.MultivariateNormal(torch.zeros(2), 0.25 * matrix @ matrix.T)
    torch.testing.assert_close(decoder, plane.log_prob(v) - torch.log(torch.sinh(radius) / radius))
    with torch.no_grad():
        total, _ = integrate(disc, lambda p: flow.log_prob(p).exp())
    assert total == pytest.approx(1, abs=1e-4)


class Turn(nn.Module):
    """x ↦ the rotation whose quaternion is q stretched by a matrix: a map of SO(3) with a known inverse."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x):
        return SpecialOrthogonal.from_quaternion(SpecialOrthogonal.to_quaternion(x) @ self.matrix.T)


def test_density_on_rotations_is_an_angular_central_gaussian_and_integrates_to_one():
    rotations = SpecialOrthogonal(3)
    a = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    flow = Flow(FreeForm(Turn(torch.linalg.inv(a)), Turn(a)), UniformOn(rotations), manifold=rotations).eval()
    x = flow.sample(100)
    q = rotations.to_quaternion(x)
    # Of the direction of a Gaussian quaternion with covariance A Aᵀ, both signs together, on SO(3) of volume 8π²: the sphere's is 2π².
    spread = torch.linalg.inv(a @ a.T)
    expected = -torch.log(torch.linalg.det(a).abs()) - 2 * torch.log((q @ spread * q).sum(-1)) - math.log(8 * math.pi**2)
    for volume in ("decoder", "encoder"):
        torch.testing.assert_close(flow.log_prob(x, volume=volume), expected)


@pytest.mark.parametrize("name", [name for name in SPACES if name != "own"])
def test_flow_of_one_call_keeps_the_contract_of_flows(name):
    space = SPACES[name]()
    check_flow(lambda: free_form(manifold=space, width=8, blocks=1, context=2), condition=lambda n: torch.randn(n, 2))


@pytest.mark.parametrize("name", SPACES)
def test_log_prob_is_the_density_of_what_sample_draws(name):
    space = SPACES[name]()
    base = UniformOn(Sphere(2)) if name == "own" else None
    flow = free_form(manifold=space, width=8, blocks=1, base=base).eval()
    x, log_p = flow.sample_and_log_prob(64)
    torch.testing.assert_close(space.project(x), x)
    # Nearly the identity at the start, so that Newton's method finds the latents that these were drawn from.
    found = flow.log_prob(x, at="preimage")
    same = torch.isfinite(found)
    assert same.float().mean() > 0.9
    equal = torch.isclose(found[same], log_p[same], rtol=1e-5, atol=1e-5)
    # At the edges of an octahedron several latents are decoded to one point.
    assert equal.float().mean() > 0.9 if name == "mesh" else equal.all()


TERMS = {"z_sample_reconstruction": 1.0, "x_sample_reconstruction": 1.0, "z_projection": 1.0, "x_projection": 1.0, "z_reconstruction": 1.0}


@pytest.mark.parametrize("name", SPACES)
def test_objective_with_all_terms_and_probes_trains_on(name):
    space = SPACES[name]()
    base = UniformOn(Sphere(2)) if name == "own" else None
    flow = free_form(manifold=space, width=16, blocks=1, base=base).float()
    x = inside(space, 256).float()
    objective = FreeFormLikelihood(20.0, terms=TERMS, probes=2)
    with pytest.warns(UserWarning, match=r"subclass of fluvial\.manifolds") if name == "own" else contextlib.nullcontext():
        history = fl.fit(flow, x, objective, max_steps=20, batch_size=64, warmup=5, progress=False)
    assert all(math.isfinite(row["loss"]) for row in history.rows)
    assert not any(row["skipped"] for row in history.rows)


def test_metric_term_reaches_the_encoder():
    disc = PoincareBall(2)
    flow = free_form(manifold=disc, width=8, blocks=1)
    x = inside(disc, 32)
    parts = flow.parts
    plain = surrogate(parts, x, probes=2)
    with_metric = plain.value + disc.log_volume(plain.z) - disc.log_volume(x)
    exact = flow.train().log_prob(x, volume="encoder") - flow.base.log_prob(plain.z)
    found, expected = (torch.autograd.grad(v.sum(), flow.codec.encoder.last.weight, retain_graph=True)[0] for v in (with_metric, exact))
    # For a decoder that inverts the encoder they agree; at the start both are nearly the identity.
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.98


def test_geodesic_reconstruction_is_refused_where_there_are_no_geodesics():
    space = octahedron()
    flow = free_form(manifold=space, width=8, blocks=1)
    with pytest.raises(ValueError, match="geodesic"):
        fl.fit(flow.float(), space.random_uniform(64).float(), FreeFormLikelihood(1.0, geodesic=True), max_steps=1, progress=False)


def test_objective_contract_on_rotations():
    check_objective(
        lambda: FreeFormLikelihood(10.0, terms=TERMS),
        lambda: free_form(manifold=SpecialOrthogonal(3), width=8, blocks=1),
        Batch(SpecialOrthogonal(3).random_uniform(8), None, None, torch.arange(8)),
    )


def test_independent_bases_need_bases():
    with pytest.raises(ValueError, match="at least one"):
        Independent([])
    with pytest.raises(TypeError, match="Linear"):
        Independent([Normal(2), nn.Linear(2, 2)])
