"""Positions and meshes in any unit, with any offset: Factorwise, Similarity, and what free_form makes of them."""

import math

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial.bases import Base, Independent, Normal, UniformOn
from fluvial.bases.base import count, sample_shape
from fluvial.codecs import Chain, Factorwise, FreeForm, Similarity, Standardize, fit_codec_
from fluvial.flows import free_form
from fluvial.manifolds import Euclidean, Mesh, Product, SpecialOrthogonal, Sphere
from fluvial.nn import Residual
from fluvial.testing import check_bijection, check_flow
from fluvial.testing.contract import points_on

POSES = Product(SpecialOrthogonal(3), Euclidean(3))


@pytest.fixture(autouse=True)
def _double(double):
    pass


def octahedron(scale=1.0, shift=0.0, creases="smooth"):
    corners = np.concatenate([np.eye(3), -np.eye(3)]) * np.array([1.0, 1.5, 0.7])
    faces = [[a, b, c] for a in (0, 3) for b in (1, 4) for c in (2, 5)]
    return Mesh(corners * scale + shift, faces, creases=creases)


def ellipsoid(scale=1.0, shift=0.0):
    """Finer, so that chance has less to do with its edges."""
    mesh = octahedron().subdivide(2)
    unit = mesh.vertex_array / np.array([1.0, 1.5, 0.7])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return Mesh(unit * np.array([1.0, 1.2, 0.8]) * scale + shift, mesh.face_array)


class Tilted(Base):
    """Density (1 + z₁/2)/area on a mesh that is centred and reaches no further than 2, of which a uniform base would see no gradient."""

    has_rsample = True

    def __init__(self, manifold):
        super().__init__()
        self.manifold = manifold

    def log_prob(self, z, c=None):
        return torch.log1p(z[..., 0] / 2) - math.log(self.manifold.total_volume)

    def sample(self, n=(), c=None, *, generator=None):
        shape = sample_shape(n, c)
        z = self.manifold.random_uniform(4 * count(shape) + 100, generator=generator)
        keep = 2 * torch.rand(len(z), generator=generator) < 1 + z[:, 0] / 2
        return z[keep][: count(shape)].view(*shape, 3)


def poses(n, scale=1.0, shift=0.0, seed=0):
    """Features, and poses that depend on them."""
    draw = torch.Generator().manual_seed(seed)
    c = torch.randn(n, 2, generator=draw)
    turn = SpecialOrthogonal.from_rotation_vector(torch.cat([c, 0.3 * torch.randn(n, 1, generator=draw)], 1))
    place = turn[..., 0] + 0.3 * torch.randn(n, 3, generator=draw)
    return POSES.join(turn, place * scale + shift), c


# ------------------------------------------------------------------------------------------------------------------------- factorwise


def filled(codec):
    for part in codec.modules():
        if isinstance(part, Standardize):
            part.fit_(3.0 + 2.0 * torch.randn(20, *part.event_shape))
    return codec


@pytest.mark.parametrize(
    ("space", "codecs", "base"),
    [
        (POSES, lambda: [None, Standardize(3)], lambda: Independent([UniformOn(SpecialOrthogonal(3)), Normal(3)])),
        (Product(Euclidean((2, 2)), Sphere(1)), lambda: [Standardize((2, 2)), None], lambda: Independent([Normal((2, 2)), UniformOn(Sphere(1))])),
        (
            Product(Sphere(2), octahedron(0.1, 3.0)),
            lambda: [None, Similarity(octahedron(0.1, 3.0))],
            lambda: Independent([UniformOn(Sphere(2)), Tilted(Similarity(octahedron(0.1, 3.0)).codomain)]),
        ),
        (Product(Sphere(1), Euclidean(2)), lambda: [None, None], lambda: Independent([UniformOn(Sphere(1)), Normal(2)])),
    ],
)
def test_factorwise_is_a_bijection(space, codecs, base):
    check_bijection(lambda: filled(Factorwise(space, codecs())), lambda n: points_on(space, n), base=base)


def test_factorwise_is_fitted_on_weighted_rows_of_each_factor():
    x, _ = poses(50, 1000.0, 5000.0)
    weight = torch.rand(50)
    codec = Factorwise(POSES, [None, Chain([Standardize(3), Standardize(3)])])
    alone = Standardize(3)
    alone.fit_(POSES.split(x)[1], weight=weight)
    assert not bool(codec.is_fitted)
    fit_codec_(Chain([codec, FreeForm(Residual(12), Residual(12))]), x, None, weight)
    assert bool(codec.is_fitted)
    inner = codec.codecs[1].parts
    torch.testing.assert_close(inner[0].loc, alone.loc, rtol=0, atol=0)
    torch.testing.assert_close(inner[0].scale, alone.scale, rtol=0, atol=0)
    torch.testing.assert_close(inner[1].scale, torch.ones(3))
    fit_codec_(codec, x * 2)
    torch.testing.assert_close(inner[0].loc, alone.loc, rtol=0, atol=0)


def test_factorwise_says_what_does_not_fit():
    with pytest.raises(TypeError, match=r"must be a Product, got Euclidean"):
        Factorwise(Euclidean(3), [None])
    with pytest.raises(ValueError, match=r"expected 2 codecs"):
        Factorwise(POSES, [None])
    with pytest.raises(TypeError, match=r"codec 0 must be a Bijection or None, got FreeForm"):
        Factorwise(POSES, [FreeForm(Residual(3), Residual(3)), None])
    with pytest.raises(ValueError, match=r"codec 1 starts on Euclidean\(2\)"):
        Factorwise(POSES, [None, Standardize(2)])
    with pytest.raises(ValueError, match=r"shape \(n, 12\), got \(5, 3\)"):
        Factorwise(POSES, [None, Standardize(3)]).fit_(torch.zeros(5, 3))


def trained(make, x, c=None, steps=40):
    torch.manual_seed(0)
    flow = make()
    fl.fit(flow, x if c is None else (x, c), max_steps=steps, validate_every=steps, batch_size=128, learning_rate=3e-3, warmup=5, progress=False)
    return flow


@pytest.mark.parametrize("context", [0, 2])
def test_poses_in_millimetres_train_like_those_in_metres(context, tmp_path):
    nll, make = [], lambda: free_form(manifold=POSES, context=context, width=32, blocks=2)
    for scale, shift in ((1.0, 0.0), (1000.0, 5000.0)):
        x, c = poses(1000, scale, shift)
        flow = trained(make, x, c if context else None)
        y, d = poses(200, scale, shift, seed=1)
        d = d if context else None
        nll.append(-float(flow.log_prob(y, d).mean()))
        assert flow.sample(() if context else 200, d)[:, 9:].mean() == pytest.approx(float(y[:, 9:].mean()), abs=0.3 * scale)
    assert nll[1] - nll[0] == pytest.approx(3 * math.log(1000), abs=0.05)
    fl.save(flow, tmp_path / "poses.safetensors")
    again = fl.load(tmp_path / "poses.safetensors").eval()
    assert torch.equal(again.log_prob(y, d), flow.eval().log_prob(y, d))
    assert again.codec.parts[0].codecs[0] is None


# ------------------------------------------------------------------------------------------------------------------------- similarity


@pytest.mark.parametrize("creases", ["smooth", "sharp"])
def test_similarity_is_a_bijection(creases):
    mesh = octahedron(0.01, 50.0, creases)
    assert Similarity(mesh).codomain.creases == creases
    check_bijection(lambda: Similarity(mesh), lambda n: points_on(mesh, n), base=lambda: Tilted(Similarity(mesh).codomain))
    flow = fl.Flow(Similarity(mesh), Tilted(Similarity(mesh).codomain))
    density = mesh.total_volume * flow.log_prob(mesh.random_uniform(20_000, generator=torch.Generator().manual_seed(0))).exp()
    assert density.std() > 0.1
    assert density.mean() == pytest.approx(1, abs=0.01)


def test_similarity_centres_and_scales_by_area():
    # A box corner has no symmetry; uniform points on it are the judge.
    mesh = Mesh(np.array([[0, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]]) * 100.0 + 7.0, [[0, 1, 2], [0, 1, 3], [0, 2, 3]])
    z = Similarity(mesh).codomain.random_uniform(200_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=0.01)
    assert z.square().sum(-1).mean() == pytest.approx(1, abs=0.01)


def test_similarity_is_exact_in_both_precisions():
    mesh = octahedron(0.01, 50.0)
    torch.set_default_dtype(torch.float32)
    single = Similarity(mesh)
    torch.set_default_dtype(torch.float64)
    z = single.codomain.random_uniform(100)
    x = single.double().decode(z)
    torch.testing.assert_close(mesh.project(x), x, rtol=0, atol=1e-13)
    assert single.codomain == Similarity(mesh).codomain


def test_similarity_wants_a_mesh():
    with pytest.raises(TypeError, match=r"expected a Mesh, got Sphere\(2\)"):
        Similarity(Sphere(2))


def test_meshes_of_any_size_and_place_train_alike(tmp_path):
    nll, objective = [], fl.FreeFormLikelihood(terms={"x_projection": 1.0, "z_projection": 1.0})
    whole = ellipsoid()
    share = whole.areas * (1 + 0.8 * whole.vertex_array[whole.face_array].mean(1)[:, 0])
    z = whole.random_on_faces(share, 1000, generator=torch.Generator().manual_seed(0))
    for scale, shift in ((1.0, 0.0), (0.01, 50.0)):
        mesh = ellipsoid(scale, shift)
        torch.manual_seed(0)
        flow = free_form(manifold=mesh, width=32, blocks=2)
        x = mesh.project(z * scale + shift)
        fl.fit(flow, x, objective, max_steps=60, validate_every=60, batch_size=128, learning_rate=3e-3, warmup=5, progress=False)
        nll.append(-float(flow.log_prob(x).mean()))
    assert nll[1] - nll[0] == pytest.approx(2 * math.log(0.01), abs=0.05)
    assert flow.base.manifold == flow.codec.parts[0].codomain
    fl.save(flow, tmp_path / "mesh.safetensors")
    assert not [name for name in flow.state_dict() if name.startswith("codec.parts.0")]
    again = fl.load(tmp_path / "mesh.safetensors").eval()
    assert torch.equal(again.log_prob(x[:20]), flow.eval().log_prob(x[:20]))


def test_density_of_a_flow_near_the_identity_integrates_to_one():
    mesh = ellipsoid(0.01, 50.0)
    torch.manual_seed(0)
    flow = free_form(manifold=mesh, width=32, blocks=2, output_scale=0.01).eval()
    x = mesh.random_uniform(4000)
    assert mesh.total_volume * flow.log_prob(x).exp().mean() == pytest.approx(1, abs=0.02)


def test_a_base_on_the_mesh_itself_is_kept():
    mesh = octahedron(0.5, 1.0)
    flow = free_form(manifold=mesh, base=UniformOn(mesh), width=8, blocks=1)
    assert isinstance(flow.codec, FreeForm)
    assert flow.latent_manifold == mesh
    assert isinstance(free_form(manifold=mesh, standardize=False, width=8, blocks=1).codec, FreeForm)


def test_flows_on_products_with_meshes_keep_the_contract():
    space = Product(octahedron(0.1, 3.0), Product(Euclidean(2), Sphere(1)))
    flow = free_form(manifold=space, width=8, blocks=1)
    outer = flow.codec.parts[0].codecs
    assert isinstance(outer[0], Similarity)
    assert isinstance(outer[1].codecs[0], Standardize)
    check_flow(lambda: free_form(manifold=space, width=8, blocks=1, activation="tanh"))


def test_a_product_without_flat_factors_needs_no_scaling():
    assert isinstance(free_form(manifold=Product(Sphere(2), Sphere(1)), width=8, blocks=1).codec, FreeForm)
