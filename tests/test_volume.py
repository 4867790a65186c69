"""The change of volume: the surrogate's gradient against the exact one, its plans against each other, and exact Jacobians."""

import math

import pytest
import torch
from torch import nn

from fluvial.codecs import Bijection, Chain, FreeForm, Inverse, Standardize
from fluvial.linearize import linearize
from fluvial.manifolds import Euclidean, Sphere
from fluvial.nn import MLP, Residual
from fluvial.volume import decoder_jacobian, encoder_jacobian, log_abs_det, rows_per_chunk, split, surrogate

PLANS = ("data", "latent", "latent_vjp")


@pytest.fixture(autouse=True)
def _double(double):
    pass


class Bent(nn.Module):
    """x ↦ A asinh(x), or its inverse z ↦ sinh(A⁻¹ z): a nonlinear pair that is exactly consistent."""

    def __init__(self, matrix, inverse=False):
        super().__init__()
        self.matrix = nn.Parameter(torch.linalg.inv(matrix) if inverse else matrix.clone())
        self.inverse = inverse

    def forward(self, x):
        return torch.sinh(x @ self.matrix.T) if self.inverse else torch.asinh(x) @ self.matrix.T


class Moebius(nn.Module):
    """A conformal map of the sphere with its pole at the parameter; that of −a is its inverse."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a.clone())

    def forward(self, x):
        return (1 - self.a.square().sum()) / (x + self.a).square().sum(-1, keepdim=True) * (x + self.a) + self.a


def linear(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data.copy_(matrix)
    return layer


def consistent(kind):
    """A codec whose halves are exact inverses, its spaces, and data."""
    if kind == "bent":
        matrix = torch.randn(3, 3) + 2 * torch.eye(3)
        return FreeForm(Bent(matrix), Bent(matrix, inverse=True)), Euclidean(3), Euclidean(3), torch.randn(7, 3)
    if kind == "injective linear":
        matrix = torch.randn(2, 5)
        return FreeForm(linear(matrix), linear(torch.linalg.pinv(matrix))), Euclidean(5), Euclidean(2), torch.randn(7, 5)
    n = {"circle": 1, "sphere": 2, "three-sphere": 3}[kind]
    a = 0.5 * torch.nn.functional.normalize(torch.randn(n + 1), dim=0)
    return FreeForm(Moebius(a), Moebius(-a)), Sphere(n), Sphere(n), Sphere(n).random_uniform(7)


CONSISTENT = ("bent", "injective linear", "circle", "sphere", "three-sphere")


def gradients(value, codec):
    found = torch.autograd.grad(value, list(codec.encoder.parameters()), allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(codec.encoder.parameters(), found)])


def random_pair(manifold=None, *, dim=3, latent=3):
    """Networks that are nowhere near inverses of each other, and data."""
    codec = FreeForm(MLP(dim, latent, hidden=[16], activation="tanh"), MLP(latent, dim, hidden=[16], activation="tanh"))
    if manifold is not None:
        return codec, manifold, manifold, manifold.random_uniform(16)
    return codec, Euclidean(dim), Euclidean(latent), torch.randn(16, dim)


# ------------------------------------------------------------------------------------------------------------------- surrogate


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", CONSISTENT)
def test_with_all_probes_the_gradient_is_that_of_the_log_determinant(kind, plan):
    codec, space, latent, x = consistent(kind)
    count = space.dim if plan == "data" else latent.dim
    s = surrogate(split(codec, space, latent), x, probe=plan, probes=count)
    exact = log_abs_det(encoder_jacobian(codec, space, latent, x)[1])
    torch.testing.assert_close(gradients(s.value.sum(), codec), gradients(exact.sum(), codec), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(s.value, torch.full_like(s.value, latent.dim))
    torch.testing.assert_close(s.z, latent.project(codec.encode(x)))
    torch.testing.assert_close(s.x, space.project(codec.decode(s.z)))
    torch.testing.assert_close((s.z_raw, s.x_raw), (codec.encode(x), codec.decode(s.z)))


@pytest.mark.parametrize(("dim", "latent"), [(3, 3), (5, 2)])
def test_plans_agree_for_any_flat_pair(dim, latent):
    codec, space, low, x = random_pair(dim=dim, latent=latent)
    found = []
    for plan in PLANS:
        s = surrogate(split(codec, space, low), x, probe=plan, probes=dim if plan == "data" else latent)
        found.append((s.value, gradients(s.value.sum(), codec)))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


@pytest.mark.parametrize("plan", PLANS)
def test_single_probes_are_unbiased(plan):
    codec, space, latent, x = random_pair(dim=5, latent=2)
    many = x.repeat(4000, 1)
    exact = gradients(surrogate(split(codec, space, latent), x, probe="latent", probes=2).value.mean(), codec)
    found = gradients(surrogate(split(codec, space, latent), many, probe=plan).value.mean(), codec)
    slope = (found @ exact / exact.square().sum()).item()
    assert slope == pytest.approx(1, abs=0.05 if plan == "data" else 0.02)
    assert (found - exact).norm() < (0.15 if plan == "data" else 0.05) * exact.norm()


@pytest.mark.parametrize("plan", PLANS)
def test_on_the_sphere_single_probes_have_slope_one_and_the_published_scale_one_and_a_half(plan):
    codec, space, latent, x = consistent("sphere") if plan == "data" else random_pair(Sphere(2))
    parts = split(codec, space, latent)
    exact = gradients(_tangent_trace(codec, space, latent, x).mean(), codec)
    many = x.repeat(16_000, 1) if plan == "data" else x.repeat(8000, 1)
    for scale, expected in (("intrinsic", 1.0), ("embedding", 1.5)):
        found = gradients(surrogate(parts, many, probe=plan, scale=scale).value.mean(), codec)
        slope = (found @ exact / exact.square().sum()).item()
        assert slope == pytest.approx(expected, abs=0.02 * expected)


def _tangent_trace(codec, space, latent, x):
    """tr(R_zᵀ J_f R_x SG(R_xᵀ J_g R_z)) by automatic differentiation, row by row."""
    traces = []
    for one in x:
        z = latent.project(codec.encode(one))
        r_x, r_z = space.tangent_basis(one.unsqueeze(0))[0], latent.tangent_basis(z.detach().unsqueeze(0))[0]
        j_f = torch.autograd.functional.jacobian(lambda y: latent.project(codec.encode(y)), one, create_graph=True)
        j_g = torch.autograd.functional.jacobian(lambda y: space.project(codec.decode(y)), z.detach())
        traces.append((r_z.T @ j_f @ r_x @ (r_x.T @ j_g @ r_z).detach()).trace())
    return torch.stack(traces)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("manifold", [None, Sphere(2)])
def test_no_volume_gradient_reaches_the_decoder_and_the_caller_is_left_alone(plan, manifold):
    codec, space, latent, x = random_pair(manifold)
    s = surrogate(split(codec, space, latent), x, probe=plan)
    assert all(g is None for g in torch.autograd.grad(s.value.sum(), list(codec.decoder.parameters()), allow_unused=True))
    assert not x.requires_grad
    assert x.grad is None
    assert all(g is not None for g in torch.autograd.grad(s.x.sum(), list(codec.decoder.parameters())))


@pytest.mark.parametrize("plan", PLANS)
def test_gradients_flow_back_into_trainable_parts_before_the_networks(plan):
    codec, space, latent, _ = random_pair()
    scale = torch.ones(3, requires_grad=True)
    x = torch.randn(6, 3)
    s = surrogate(split(codec, space, latent), x * scale, probe=plan, probes=3)
    (found,) = torch.autograd.grad(s.value.sum() + s.z.sum() + s.x.square().sum(), scale)
    trace = torch.func.vmap(lambda one: _flat_trace(codec, one))
    z = codec.encode(x * scale)
    (exact,) = torch.autograd.grad(trace(x * scale).sum() + z.sum() + codec.decode(z).square().sum(), scale)
    torch.testing.assert_close(found, exact)


def _flat_trace(codec, x):
    j_g = torch.func.jacrev(codec.decode)(codec.encode(x).detach()).detach()
    return (torch.func.jacrev(codec.encode)(x) @ j_g).trace()


@pytest.mark.parametrize("plan", PLANS)
def test_a_fraction_of_the_batch_counts_for_all_of_it(plan):
    codec, space, latent, x = random_pair()
    parts = split(codec, space, latent)
    whole = surrogate(parts, x, probe=plan, probes=3)
    part = surrogate(parts, x, probe=plan, probes=3, fraction=0.25)
    torch.testing.assert_close(part.value, torch.cat([4 * whole.value[:4], torch.zeros(12)]))
    torch.testing.assert_close(part[:2], whole[:2])
    torch.testing.assert_close(part[3:], whole[3:])


def test_auto_takes_the_data_plan_for_square_flows_and_the_latent_plan_for_narrow_ones():
    for dim, latent, plan in ((4, 4, "data"), (4, 2, "data"), (5, 2, "latent")):
        codec, space, low, x = random_pair(dim=dim, latent=latent)
        values = [
            surrogate(split(codec, space, low), x, probe=p, generator=torch.Generator().manual_seed(3)).value for p in ("auto", plan)
        ]  # fmt: skip
        torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def test_fused_networks_and_any_other_modules_give_the_same():
    fused = MLP(3, 2, hidden=[8, 8]), MLP(2, 3, hidden=[8, 8])
    plain = [nn.Sequential(*(m for layer in net.layers for m in (layer, nn.SiLU())))[:-1] for net in fused]
    x = torch.randn(6, 3)
    for plan in PLANS:
        found = []
        for pair in (fused, plain):
            parts = split(FreeForm(*pair), Euclidean(3), Euclidean(2))
            s = surrogate(parts, x, probe=plan, probes=2, generator=torch.Generator().manual_seed(1))
            found.append((s.value, *torch.autograd.grad(s.value.sum(), list(pair[0].parameters())[:-1])))
        torch.testing.assert_close(found[0], found[1])


def test_refusals():
    codec, space, latent, x = random_pair()
    with pytest.raises(ValueError, match="4 orthogonal probes do not exist in dimension 3"):
        surrogate(split(codec, space, latent), x, probes=4)
    with pytest.raises(TypeError, match="MaximumLikelihood"):
        surrogate(split(Standardize(3), space, space), x)


# ------------------------------------------------------------------------------------------------------------------- linearize

CODECS = {
    "networks": lambda: FreeForm(Residual(3, 2, width=8, blocks=2), Residual(2, 3, width=8, blocks=2)),
    "modules": lambda: FreeForm(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), nn.Linear(2, 3)),
    "chain": lambda: Chain([Standardize(3), FreeForm(MLP(3, 4, hidden=[8]), nn.Linear(4, 3)), FreeForm(nn.Linear(4, 2), MLP(2, 4, hidden=[8]))]),
    "inverse": lambda: Inverse(Chain([FreeForm(nn.Linear(2, 3), MLP(3, 2, hidden=[8])), Standardize(3)])),
}


@pytest.mark.parametrize("make", CODECS.values(), ids=CODECS.keys())
@pytest.mark.parametrize(("side", "n"), [("encode", 3), ("decode", 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_linearize_is_the_map_and_its_derivative(make, side, n, count):
    codec = make()
    x, t = torch.randn(5, n), torch.randn(count, 5, n)
    value, raw, push = linearize(codec, side, x)
    fn = getattr(codec, side)
    torch.testing.assert_close(value, fn(x))
    assert raw is value
    torch.testing.assert_close(push(t), torch.stack([torch.func.jvp(fn, (x,), (one,))[1] for one in t]))


def test_linearize_projects():
    codec = CODECS["networks"]()
    x, t = torch.randn(5, 3), torch.randn(2, 5, 3)
    value, raw, push = linearize(codec, "encode", x, manifold=Sphere(1))
    torch.testing.assert_close(raw, codec.encode(x))
    torch.testing.assert_close(value, Sphere(1).project(raw))
    torch.testing.assert_close(push(t)[1], torch.func.jvp(lambda y: Sphere(1).project(codec.encode(y)), (x,), (t[1],))[1])


@pytest.mark.parametrize("count", [1, 3])
def test_dropout_of_the_derivative_is_that_of_the_value(count):
    codec = FreeForm(nn.Sequential(nn.Linear(3, 64, bias=False), nn.Dropout(0.5), nn.Linear(64, 3, bias=False)), nn.Linear(3, 3))
    x = torch.randn(5, 3)
    before = torch.get_rng_state()
    value, _, push = linearize(codec, "encode", x)
    after = torch.get_rng_state()
    # Once its mask is drawn, this network is linear.
    torch.testing.assert_close(push(x.expand(count, 5, 3).clone()), value.expand(count, 5, 3))
    assert not torch.equal(before, after)
    assert torch.equal(after, torch.get_rng_state())


# ----------------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("kind", CONSISTENT)
def test_exact_volumes_of_inverse_maps_are_opposite(kind):
    codec, space, latent, x = consistent(kind)
    if kind == "injective linear":
        x = codec.decode(codec.encode(x))
    z, jacobian = encoder_jacobian(codec, space, latent, x)
    x_again, inverse = decoder_jacobian(codec, space, latent, z)
    torch.testing.assert_close(x_again, x)
    torch.testing.assert_close(log_abs_det(jacobian), -log_abs_det(inverse))


@pytest.mark.parametrize(("dim", "latent"), [(3, 3), (5, 2), (4, 1)])
def test_exact_jacobians_equal_those_by_automatic_differentiation(dim, latent):
    codec, space, low, x = random_pair(dim=dim, latent=latent)
    z, jacobian = encoder_jacobian(codec, space, low, x)
    reference = torch.func.vmap(torch.func.jacrev(codec.encode))(x)
    torch.testing.assert_close((z, jacobian), (codec.encode(x), reference))
    torch.testing.assert_close(log_abs_det(jacobian), 0.5 * torch.linalg.slogdet(reference @ reference.mT)[1])
    x_again, jacobian = decoder_jacobian(codec, space, low, z)
    reference = torch.func.vmap(torch.func.jacrev(codec.decode))(z)
    torch.testing.assert_close((x_again, jacobian), (codec.decode(z), reference))
    torch.testing.assert_close(log_abs_det(jacobian), 0.5 * torch.linalg.slogdet(reference.mT @ reference)[1])


def test_volume_of_ill_conditioned_jacobians_keeps_its_digits_in_single_precision():
    u, v = torch.linalg.qr(torch.randn(6, 3))[0], torch.linalg.qr(torch.randn(3, 3))[0]
    jacobian = (u * torch.tensor([1.0, 1e-2, 1e-5])) @ v.T
    truth = math.log(1e-7)
    found = log_abs_det(jacobian.float().unsqueeze(0)).item()
    gram = 0.5 * torch.linalg.slogdet(jacobian.float().T @ jacobian.float())[1].item()
    assert found == pytest.approx(truth, abs=0.02)
    assert not abs(gram - truth) < 0.02  # what is avoided


def test_split_cuts_a_chain_around_its_free_form_parts():
    free, other = FreeForm(nn.Linear(3, 2), nn.Linear(2, 3)), FreeForm(nn.Linear(2, 2), nn.Linear(2, 2))
    before, middle, after = Standardize(3), Standardize(2), Standardize(2)
    parts = split(Chain([before, free, middle, other, after]), Euclidean(3), Euclidean(2))
    assert isinstance(parts.before, Bijection)
    assert list(parts.before.parts) == [before]
    assert list(parts.core.parts) == [free, middle, other]
    assert list(parts.after.parts) == [after]
    assert split(free, Euclidean(3), Euclidean(2)) == (None, free, None, Euclidean(3), Euclidean(2))
    assert split(before, Euclidean(3), Euclidean(3)).core is None


def test_chunks_shrink_with_the_network_and_the_dimension_and_leave_the_mode_alone():
    def rows(width, dim, memory=2**20):
        codec = FreeForm(nn.Linear(dim, dim), nn.Sequential(nn.Linear(dim, width), nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, dim)))
        codec.decoder[1].eval()
        state, modes = torch.get_rng_state(), [m.training for m in codec.modules()]
        found = rows_per_chunk(codec, Euclidean(dim), Euclidean(dim), torch.zeros(3, dim), None, memory=memory)
        assert torch.equal(state, torch.get_rng_state())
        assert modes == [m.training for m in codec.modules()]
        return found

    assert rows(8, 2) > rows(64, 2) > rows(64, 16) >= 1
    assert rows(64, 16, memory=1) == 1
