"""Where manifolds are delicate: half turns, rims, extreme numbers, half precision, and functions that are no projections."""

import math

import pytest
import torch

import fluvial as fl
from fluvial.bases import VonMisesFisherMixture, WrappedNormal
from fluvial.data import DataSpec
from fluvial.flows import free_form
from fluvial.manifolds import Euclidean, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, from_projection
from fluvial.manifolds.manifold import tangent_dual
from fluvial.objectives import FreeFormLikelihood
from fluvial.recipes.extends import resolve


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "planes"), [(4, 1), (4, 2), (5, 2), (6, 1), (6, 3)])
def test_half_turns_in_more_than_three_dimensions(n, planes, dtype):
    space, generator = SpecialOrthogonal(n), torch.Generator().manual_seed(0)
    x, q = (space.random_uniform(50, generator=generator, dtype=dtype) for _ in range(2))
    signs = torch.ones(n, dtype=dtype)
    signs[: 2 * planes] = -1
    y = x @ q @ torch.diag(signs) @ q.mT
    # One angle of π for each plane that is turned.
    torch.testing.assert_close(space.distance(x, y), torch.full((50,), math.sqrt(planes) * math.pi, dtype=dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(space.exp(x, space.log(x, y)), y, atol=2e-5, rtol=0)
    # Along the axes too, where decompositions are exact.
    assert float(space.distance(torch.eye(n, dtype=dtype), torch.diag(signs))) == pytest.approx(math.sqrt(planes) * math.pi, abs=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_quaternions_of_extreme_length(size):
    q = torch.tensor([0.1, -0.2, 0.3, 0.9])
    torch.testing.assert_close(SpecialOrthogonal.from_quaternion(size * q), SpecialOrthogonal.from_quaternion(q))


def test_quaternions_have_the_derivatives_of_their_direction():
    q = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(SpecialOrthogonal.from_quaternion, (q,))


def test_the_projection_onto_the_ball_loses_no_dimension_beyond_the_rim():
    ball, generator = PoincareBall(2), torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(200, 2, generator=generator, dtype=torch.float64), dim=-1)
    x = x * torch.logspace(-1, 3, 200, dtype=torch.float64).unsqueeze(-1)
    y = ball.project(x)
    torch.testing.assert_close(ball.project(y), y, atol=1e-15, rtol=0)
    inside = x.norm(dim=-1) < 1 - 1e-5
    assert torch.equal(y[inside], x[inside])
    assert (y[~inside].norm(dim=-1) - (1 - 1e-5)).abs().max() < 1.01e-4
    jacobian = torch.func.vmap(torch.func.jacfwd(ball.project))(x)
    assert (torch.linalg.svdvals(jacobian)[:, -1] > 0).all()
    _, columns = tangent_dual(ball, x, torch.eye(2, dtype=torch.float64).unsqueeze(1).expand(2, 200, 2))
    torch.testing.assert_close(columns.permute(1, 2, 0), jacobian)


def test_decoding_beyond_the_ball_gives_a_finite_density():
    torch.manual_seed(0)
    flow = free_form(manifold=PoincareBall(2), width=32, blocks=2).eval()
    # A decoder that throws half of its points out of the ball.
    with torch.no_grad():
        flow.codec.decoder.last.bias.add_(torch.tensor([1.0, 0.5]))
    x, log_p = flow.sample_and_log_prob(4000, generator=torch.Generator().manual_seed(0))
    assert (x.norm(dim=-1) > 1 - 1.2e-4).float().mean() > 0.2
    assert torch.isfinite(log_p).all()


@pytest.mark.parametrize("n", [3, 4])
def test_training_on_rotations_in_half_precision(n):
    space = SpecialOrthogonal(n)
    x = torch.randn(64, n, n, generator=torch.Generator().manual_seed(0))
    half = space.project(x.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half @ half.mT, torch.eye(n).expand(64, n, n), atol=1e-5, rtol=0)
    # Computed in single precision also where autocast would take half of it.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = space.project(x)
    torch.testing.assert_close(y, space.project(x), atol=1e-6, rtol=0)
    data = fl.data.Dataset(space.random_uniform(300, generator=torch.Generator().manual_seed(1)), manifold=space)
    history = fl.fit(free_form(manifold=space, width=8, blocks=1), data, max_steps=2, batch_size=64, precision="bf16", device="cpu", progress=False)
    assert math.isfinite(history.rows[-1]["nll"])


@pytest.mark.parametrize("kappa", [1e-8, 1e-5, 1.0, 1e5])
def test_von_mises_fisher_draws_of_any_concentration(kappa):
    base = VonMisesFisherMixture(Sphere(2), components=1, concentration=kappa)
    z = base.sample(20_000, generator=torch.Generator().manual_seed(0))
    cosine = (z @ base.means[0].detach()).double()
    k = torch.tensor(kappa, dtype=torch.float64)
    mean = float(1 / torch.tanh(k) - 1 / k) if kappa > 1e-3 else kappa / 3
    assert float(cosine.mean()) == pytest.approx(mean, abs=5 * float(cosine.std()) / math.sqrt(20_000) + 1e-7)


def _in_place(x):
    x /= x.norm(dim=-1, keepdim=True)
    return x


@pytest.mark.parametrize(
    ("projection", "complaint"),
    [
        (_in_place, "writes into its argument"),
        (lambda x: x / x.norm(), "depends on the others"),
        (lambda x: x / x.norm(dim=-1, keepdim=True) * torch.ones(3, dtype=torch.float64), "float64"),
        (lambda x: torch.from_numpy(x.numpy() / x.norm(dim=-1, keepdim=True).numpy()), "cannot differentiate"),
        (lambda x: x / x.norm(dim=-1, keepdim=True) if bool(x.abs().sum() > 0) else x, "cannot differentiate"),
        (lambda x: (x / x.norm(dim=-1, keepdim=True)).detach(), "dimension 0"),
    ],
    ids=["in place", "over the batch", "other dtype", "numpy", "branch", "detached"],
)
def test_functions_that_are_no_projections(projection, complaint):
    with pytest.raises(ValueError, match=complaint):
        from_projection(projection, 2)


def test_a_projection_may_put_out_any_strides():
    def unit(x):
        return (x.mT / x.flatten(1).norm(dim=1)[:, None, None]).clone(memory_format=torch.preserve_format).mT

    space = from_projection(unit, 5, event_shape=(2, 3))
    assert space.tangent_basis(unit(torch.ones(4, 2, 3))).shape == (4, 2, 3, 5)


def test_a_file_may_have_the_name_of_the_recipe_that_it_extends():
    packaged = {"moons": "fit: {seed: 1, max_steps: 2}", "a": "extends: b", "b": "extends: a", "self": "extends: self"}
    assert "max_steps: 3" in resolve("moons", "extends: moons\nfit: {max_steps: 3}", packaged.__getitem__)
    for name in ("a", "self"):
        with pytest.raises(ValueError, match="in a circle"):
            resolve(name, packaged[name], packaged.__getitem__)


def test_a_product_comes_back_from_a_data_specification():
    spec = DataSpec(12, manifold=Product(SpecialOrthogonal(3), Euclidean(3)))
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_terms_of_weight_zero_are_no_terms():
    flow = free_form(manifold=PoincareBall(2), width=8, blocks=1)
    FreeFormLikelihood(terms={"uniform_reconstruction": 0.0, "intermediate_reconstruction": 0.0}).prepare(flow, None)
    with pytest.raises(ValueError, match="finite volume"):
        FreeFormLikelihood(terms={"uniform_reconstruction": 1.0}).prepare(flow, None)


def test_a_scale_beyond_its_bound_can_come_back():
    base = WrappedNormal(Sphere(2), learnable=True)
    with torch.no_grad():
        base.log_scales.add_(3.0)
    base.log_prob(Sphere(2).random_uniform(50)).mean().backward()
    assert base.log_scales.grad is not None
    assert base.log_scales.grad.abs().max() > 0


@pytest.mark.parametrize("make", [lambda: SpecialOrthogonal(2.5), lambda: from_projection(lambda x: x, 2.0)])
def test_dimensions_are_whole_numbers(make):
    with pytest.raises(TypeError, match="float"):
        make()


def test_vertices_without_three_numbers_or_beyond_single_precision():
    with pytest.raises(ValueError, match="three numbers"):
        Mesh([[0, 0, 0], [1, 0, 0], [0, 1]], [[0, 1, 2]])
    with pytest.raises(ValueError, match="scale them down"):
        Mesh([[0, 0, 0], [1e60, 0, 0], [0, 1e60, 0]], [[0, 1, 2]])
