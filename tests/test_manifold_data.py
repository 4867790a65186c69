"""Data on rotations, hyperbolic space, meshes and poses: the densities are normalised, belong to the samples, and have the entropy they say."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fluvial import data
from fluvial.data.eigenfunctions import eigenfunctions, laplacian
from fluvial.data.hyperbolic import Bananas, OnDisc, PlaneGaussians, Squares, log_area
from fluvial.data.meshes import FaceDensity, eigenfunction_density
from fluvial.data.poses import PosesGivenFeatures
from fluvial.data.rotations import RotationMixture, RotationsGivenFeatures, log_wrapped_normal
from fluvial.data.torsions import KINDS
from fluvial.manifolds import Euclidean, PoincareBall, Product, SpecialOrthogonal, Torus
from fluvial.manifolds.mesh import Mesh
from fluvial.recipes.recipe import Recipe
from fluvial.testing.quadrature import check_expectations

ROTATIONS = SpecialOrthogonal(3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def check_entropy(entropy, log_prob):
    """The mean −log p of samples is the entropy, to four standard errors of both."""
    value, error = entropy
    log_prob = log_prob.double()
    assert torch.isfinite(log_prob).all()
    assert float(-log_prob.mean()) == pytest.approx(value, abs=4 * math.hypot(error, float(log_prob.std()) / math.sqrt(len(log_prob))))


# ------------------------------------------------------------------------------------------------------------------- rotations


@pytest.mark.parametrize("scale", [0.01, 0.1 / math.sqrt(2), 0.3, 0.6, 1.0])
def test_a_wrapped_normal_integrates_to_one_over_the_rotations(scale):
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(400))
    end = min(math.pi, 12 * scale)
    angle = (nodes + 1) * end / 2
    # The rotations by an angle θ have the content 4π (2 − 2 cos θ) dθ; all of them 8π².
    content = 4 * math.pi * (2 - 2 * angle.cos()) * weights * end / 2
    density = log_wrapped_normal((angle / 2).cos().unsqueeze(-1), torch.tensor([scale], dtype=torch.float64)).squeeze(-1).exp()
    assert float((content * density).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("double")
def test_a_mixture_of_rotations_has_the_density_of_its_samples():
    means = ROTATIONS.random_uniform(3, generator=generator(1))
    mixture = RotationMixture(means, [0.3, 0.5, 0.9], [1.0, 2.0, 3.0])
    check_expectations(ROTATIONS, mixture.sample(50_000, generator(2)), mixture.log_prob, "RotationMixture")
    check_entropy(mixture.entropy(), mixture.log_prob(mixture.sample(50_000, generator(3))))


def test_a_narrow_mode_is_a_gaussian_of_rotation_vectors():
    mixture = RotationMixture(torch.eye(3).unsqueeze(0), 0.02)
    x = mixture.sample(100_000, generator())
    vectors = SpecialOrthogonal.to_rotation_vector(x.double())
    torch.testing.assert_close(vectors.T @ vectors / len(x), 0.02**2 * torch.eye(3, dtype=torch.float64), rtol=0.03, atol=6e-6)
    gaussian = -0.5 * vectors.square().sum(-1) / 0.02**2 - 1.5 * math.log(2 * math.pi * 0.02**2)
    torch.testing.assert_close(mixture.log_prob(x.double()), gaussian, rtol=0, atol=2e-3)
    # In single precision a rotation is known to 1e-7 rad.
    torch.testing.assert_close(mixture.log_prob(x).double(), gaussian, rtol=0, atol=3e-3)


@pytest.mark.parametrize(("modes", "published"), [(16, -0.87), (32, -0.21), (64, 0.45)])
def test_so3_mixtures_are_those_of_the_benchmark(modes, published):
    ds = data.so3_mixture(modes, 20_000)
    assert ds.spec.manifold == ROTATIONS
    assert ds.synthetic
    assert ds.name == f"so3_mixture {modes}"
    ds.check()
    value, error = ds.truth.entropy()
    assert error < 2e-3
    check_entropy((value, error), ds.truth.log_prob(ds.x))
    apart = math.log(modes) + 1.5 * math.log(2 * math.pi * math.e * 0.005)
    assert value <= apart + 4 * error
    assert value == pytest.approx(published, abs=0.08)
    assert (value, error) == ds.truth.entropy()


def test_so3_mixture_arguments():
    ds = data.so3_mixture(4, 300, held_out=(100, 50))
    assert [len(part) for part in ds.split(seed=3)] == [150, 100, 50]
    torch.testing.assert_close(torch.cat([part.x for part in ds.split()]), ds.x)
    assert [len(part) for part in data.so3_mixture(4, 300).split()] == [240, 30, 30]
    # Rows and means have seeds of their own.
    assert torch.equal(data.so3_mixture(4, 50, seed=1).truth.mean, ds.truth.mean)
    assert not torch.equal(data.so3_mixture(4, 300, seed=1).x, ds.x)
    assert not torch.equal(data.so3_mixture(4, 50, mixture_seed=1).truth.mean, ds.truth.mean)
    precision = data.so3_mixture(4000, 1, spread=0.1).truth.scale ** -2 * 0.005
    assert float(precision.mean()) == pytest.approx(1, abs=0.01)
    assert float(precision.std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(ds.truth.scale, torch.full((4,), math.sqrt(0.005), dtype=torch.float64))


def test_rotations_in_blocks_and_shapes(monkeypatch):
    mixture = RotationMixture(ROTATIONS.random_uniform(5), 0.2)
    x = ROTATIONS.random_uniform(12)
    whole = mixture.log_prob(x)
    assert whole.dtype == torch.float32
    assert mixture.log_prob(x.double()).dtype == torch.float64
    monkeypatch.setattr("fluvial.data.rotations.NUMBERS", 1)
    torch.testing.assert_close(mixture.log_prob(x.view(3, 4, 3, 3)), whole.view(3, 4))
    assert mixture.log_prob(x[0]).shape == ()
    monkeypatch.setattr("fluvial.data.rotations.ROWS", 5)
    drawn = mixture.sample(12, generator())
    assert drawn.shape == (12, 3, 3)
    assert len(torch.unique(drawn, dim=0)) == 12
    assert torch.isfinite(mixture.log_prob(mixture.mean)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.so3_mixture(0), "modes and n must be at least 1"),
        (lambda: data.so3_mixture(4, noise=0.0), "noise within 0 … 1"),
        (lambda: data.so3_mixture(4, spread=-0.1), "spread within 0 … 1"),
        (lambda: data.so3_mixture(4, 100, held_out=(50, 50)), "fewer than 100 together"),
        (lambda: RotationMixture(torch.eye(3), 0.1), r"means of shape \(K, 3, 3\), got \(3, 3\)"),
        (lambda: RotationMixture(torch.eye(3).expand(2, 3, 3), [0.1, 0.0]), "one scale > 0 for each of 2"),
        (lambda: RotationMixture(torch.eye(3).expand(2, 3, 3), 0.1, [1.0, 1.0, 1.0]), "one weight > 0 for each of 2"),
        (lambda: RotationMixture(torch.eye(3).expand(2, 3, 3), 1.1), "at most 1 rad, got 1.1"),
        (lambda: RotationMixture(torch.eye(3).expand(2, 3, 3), 0.1).log_prob(torch.ones(5, 9)), r"rotations of shape .* got \(5, 9\)"),
        (lambda: RotationsGivenFeatures(noise=0.7), "noise within 0 … 0.6"),
        (lambda: PosesGivenFeatures(RotationsGivenFeatures(), position_noise=0.0), "position_noise must be positive"),
    ],
)
def test_what_rotations_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------------------------------------------------- given features


@pytest.mark.usefixtures("double")
def test_rotations_given_features_have_the_density_of_their_samples():
    truth = RotationsGivenFeatures(3, modes=3, noise=0.5)
    c = torch.tensor([0.9, -0.5, 0.3])
    samples = truth.sample(c.expand(50_000, 3), generator())
    check_expectations(ROTATIONS, samples, lambda x: truth.log_prob(x, c.expand(len(x), 3)), "RotationsGivenFeatures")


def test_the_entropy_given_features_is_known():
    ds = data.so3_given_features(30_000)
    assert ds.synthetic
    assert ds.spec.condition_names == ("c1", "c2")
    ds.check()
    entropy = ds.truth.entropy()
    assert entropy[1] < 2e-3
    log_prob = ds.truth.log_prob(ds.x, ds.c)
    check_entropy(entropy, log_prob)
    # Who does not look at the features does far worse.
    assert float(-ds.truth.log_prob(ds.x, ds.c.flip(0)).mean()) > entropy[0] + 1
    torch.testing.assert_close(ds.truth.log_prob(ds.x.view(3, -1, 3, 3), ds.c.view(3, -1, 2)), log_prob.view(3, -1))
    for wrong in (None, ds.c[:5], ds.c[:, :1]):
        with pytest.raises(ValueError, match=r"this density is conditional: expected features of shape \(30000, 2\)"):
            ds.truth.log_prob(ds.x, wrong)


def test_modes_turn_smoothly_with_the_features():
    truth = RotationsGivenFeatures()
    line = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(1).expand(201, 2)
    modes = truth.given(line)
    steps = ROTATIONS.distance(modes.mean[1:], modes.mean[:-1])
    assert float(steps.max()) < 0.05
    assert float(steps.sum(0).min()) > 0.3
    assert bool((modes.scale.amax(0) / modes.scale.amin(0) < 2.3).all())
    torch.testing.assert_close(modes.log_weight.exp().sum(-1), torch.ones(201, dtype=torch.float64))


def test_poses_have_a_known_density():
    ds = data.poses(30_000)
    assert ds.spec.manifold == Product(SpecialOrthogonal(3), Euclidean(3))
    assert ds.synthetic
    assert ds.spec.names is not None
    assert ds.spec.names[0] == "R_0_0"
    assert ds.spec.names[-3:] == ("x", "y", "z")
    ds.check()
    log_prob = ds.truth.log_prob(ds.x, ds.c)
    check_entropy(ds.truth.entropy(), log_prob)
    torch.testing.assert_close(ds.truth.log_prob(ds.x.view(2, -1, 12), ds.c.view(2, -1, 2)), log_prob.view(2, -1))
    with pytest.raises(ValueError, match="conditional: expected features"):
        ds.truth.log_prob(ds.x)
    with pytest.raises(ValueError, match=r"poses of shape \(\*batch, 12\)"):
        ds.truth.log_prob(ds.x[:, :9], ds.c)


def test_densities_of_poses_integrate_to_one():
    truth = PosesGivenFeatures(RotationsGivenFeatures(noise=0.6), position_noise=0.8)
    n = 200_000
    rotation = ROTATIONS.random_uniform(n, generator=generator(), dtype=torch.float64)
    position = 1.5 * torch.randn(n, 3, generator=generator(1), dtype=torch.float64)
    c = torch.tensor([[0.4, -0.8]], dtype=torch.float64).expand(n, 2)
    proposed = -0.5 * (position / 1.5).square().sum(-1) - 1.5 * math.log(2 * math.pi * 1.5**2) - math.log(8 * math.pi**2)
    ratio = (truth.log_prob(torch.cat([rotation.flatten(1), position], 1), c) - proposed).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / math.sqrt(n))
    assert float(ratio.std()) / math.sqrt(n) < 0.01


# ------------------------------------------------------------------------------------------------------------------ hyperbolic

DISC_SETS = {
    "hyperbolic_gaussian": (data.hyperbolic_gaussian, 2.343),
    "hyperbolic_five_gaussians": (data.hyperbolic_five_gaussians, 4.068),
    "hyperbolic_checkerboard": (data.hyperbolic_checkerboard, 3.710),
    "hyperbolic_swish": (data.hyperbolic_swish, 2.229),
}
every_disc = pytest.mark.parametrize(("make", "entropy"), DISC_SETS.values(), ids=DISC_SETS.keys())


def disc_grid(across=700, around=700):
    """Midpoints of a polar grid of the Poincaré disc, and the hyperbolic areas of its cells from the metric in the disc's own coordinates."""
    reach = 3.0  # in tangent vectors
    tangent = (torch.arange(across, dtype=torch.float64) + 0.5) / across * reach
    angle = (torch.arange(around, dtype=torch.float64) + 0.5) / around * 2 * math.pi
    radius = tangent.tanh()
    x = torch.stack([torch.outer(radius, angle.cos()), torch.outer(radius, angle.sin())], -1)
    flat = radius * (1 - radius.square()) * (reach / across) * (2 * math.pi / around)
    area = flat.unsqueeze(1) * PoincareBall(2).log_volume(x).exp()
    return x.view(-1, 2), area.flatten()


@every_disc
def test_hyperbolic_toys(make, entropy):
    ds = make(50_000, seed=1)
    assert ds.spec.manifold == PoincareBall(2)
    assert ds.synthetic
    ds.check()
    x, area = disc_grid()
    mass = area * ds.truth.log_prob(x).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    value, error = ds.truth.entropy()
    assert (value, error) == (pytest.approx(entropy, abs=6e-4), pytest.approx(0, abs=1e-4))
    check_entropy((value, 1e-4), ds.truth.log_prob(ds.x))
    by_grid = -float((mass * torch.where(mass > 0, ds.truth.log_prob(x), 0.0)).sum())
    assert by_grid == pytest.approx(value, abs=5e-3)
    # Where the samples are: waves have the means that the density says.
    for wave in torch.randn(6, 2, generator=generator(4), dtype=torch.float64) * 4:
        found = torch.cos(ds.x.double() @ wave + 1)
        assert float(found.mean()) == pytest.approx(float((mass * torch.cos(x @ wave + 1)).sum()), abs=1e-3 + 4 * float(found.std()) / 50_000**0.5)
    assert torch.equal(make(100, seed=1).x, make(100, seed=1).x)
    assert not torch.equal(make(100, seed=1).x, make(100, seed=2).x)


def test_the_area_of_the_exponential_map():
    disc = PoincareBall(2)
    v = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    v[0], v[1] = 0.0, torch.tensor([1e-6, 0.0])
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda u: disc.exp(torch.zeros_like(u), u)))(v[1:])
    x = disc.exp(torch.zeros_like(v), v)
    expected = torch.linalg.slogdet(jacobian)[1] + disc.log_volume(x[1:])
    torch.testing.assert_close(log_area(v[1:].norm(dim=-1)), expected, rtol=0, atol=1e-9)
    assert float(log_area(v[0].norm())) == pytest.approx(math.log(4))


def test_hyperbolic_shapes_and_the_edge_of_the_disc():
    truth = OnDisc(PlaneGaussians([(0.0, 0.0)], 0.3))
    x = truth.sample(12, generator())
    assert truth.log_prob(x).dtype == torch.float32
    torch.testing.assert_close(truth.log_prob(x.view(3, 4, 2)), truth.log_prob(x).view(3, 4))
    edge = truth.log_prob(torch.tensor([[0.0, 0.0], [0.99999, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    assert torch.isfinite(edge[:2]).all()
    assert edge[2:].tolist() == [-math.inf, -math.inf]
    # The board has all of its samples inside its squares, after rounding too.
    board = OnDisc(Squares(0.75))
    assert torch.isfinite(board.log_prob(board.sample(300_000, generator()))).all()
    with pytest.raises(ValueError, match="points of the plane"):
        truth.log_prob(torch.zeros(4, 3))


def test_bananas_follow_their_energy():
    toy = Bananas()
    a, b = torch.tensor([[0.3, 0.2], [-0.5, 0.1], [0.9, 0.7]], dtype=torch.float64).T
    # The second ridge starts at (0, 0.6) and is turned by −36 degrees.
    turn = torch.tensor(-math.pi / 5)
    place = torch.stack([a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos() + 0.6], -1)
    alone = -((b - a**2) ** 2 + 0.08 * b**2) / 0.01
    log_p = toy.log_prob(place)
    torch.testing.assert_close(log_p - log_p[0], alone - alone[0], rtol=0.05, atol=0.05)


# ---------------------------------------------------------------------------------------------------------------------- meshes


@pytest.fixture
def meshes(real_data):
    if not (real_data / "meshes" / "bunny.npz").is_file():
        pytest.skip(f"no meshes: {real_data}/meshes does not exist; set FLUVIAL_DATA")
    return real_data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ball():
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    faces = [[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]]
    fine = Mesh(corners, faces).subdivide(4)
    return Mesh(fine.vertex_array / np.linalg.norm(fine.vertex_array, axis=1, keepdims=True), fine.face_array)


def test_eigenfunctions_of_the_sphere_are_harmonics(ball):
    values, functions = eigenfunctions(ball, 9)
    assert values.tolist() == pytest.approx([0, 2, 2, 2, 6, 6, 6, 6, 6], rel=0.02, abs=1e-9)
    stiffness, mass = laplacian(ball)
    np.testing.assert_allclose(functions.T @ (mass[:, None] * functions), np.eye(9), atol=1e-9)
    np.testing.assert_allclose(stiffness @ functions, mass[:, None] * functions * values, atol=1e-9)
    assert (mass @ functions**3 > -1e-9).all()
    # The three of the lowest rank are the coordinates.
    coordinates = ball.vertex_array * math.sqrt(3 / (4 * math.pi))
    overlap = functions[:, 1:4].T @ (mass[:, None] * coordinates)
    np.testing.assert_allclose(overlap @ overlap.T, np.eye(3), atol=0.02)
    assert mass.sum() == pytest.approx(ball.total_volume)


def test_eigenfunctions_are_kept_on_request(ball, tmp_path, monkeypatch):
    found = eigenfunctions(ball, 4, cache=tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    monkeypatch.setattr("fluvial.data.eigenfunctions._solve", lambda *_: pytest.fail("solved again"))
    again = eigenfunctions(ball, 4, cache=tmp_path / "kept")
    np.testing.assert_array_equal(again.functions, found.functions)
    np.testing.assert_array_equal(again.values, found.values)
    # Of another mesh, it would be another file.
    with pytest.raises(pytest.fail.Exception, match="solved again"):
        eigenfunctions(Mesh(ball.vertex_array * 2, ball.face_array), 4, cache=tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == [file]


@pytest.mark.parametrize("weighting", ["area", "published"])
def test_densities_on_a_mesh(ball, weighting):
    truth = eigenfunction_density(ball, 5, weighting=weighting)
    centres = torch.from_numpy(ball.vertex_array[ball.face_array].mean(1))
    density = truth.log_prob(centres).exp().numpy()
    assert float(ball.areas @ density) == pytest.approx(1, abs=1e-12)
    values = eigenfunctions(ball, 5).functions[:, -1][ball.face_array].mean(1).clip(min=0)
    expected = values / (values @ ball.areas) if weighting == "area" else values / values.sum() / ball.areas
    np.testing.assert_allclose(density, expected, rtol=1e-9, atol=1e-12)
    x = truth.sample(20_000, generator())
    check_entropy(truth.entropy(), truth.log_prob(x))
    face, _ = ball.face_of(x.double())
    # In groups of neighbouring faces, as many points as the density says.
    share = np.bincount(face.numpy() // 64, minlength=len(ball.areas) // 64) / len(x)
    should = truth.probability.reshape(-1, 64).sum(1)
    assert (np.abs(share - should) <= 5 * np.sqrt(should / len(x)) + 1e-12).all()
    torch.testing.assert_close(ball.project(x), x, rtol=0, atol=1e-6)


def test_points_within_a_face_are_uniform():
    square = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    truth = FaceDensity(square, [1.0, 1.0])
    x = truth.sample(40_000, generator())
    assert x.dtype == torch.float32
    counts = torch.bincount((x[:, 0] * 8).long() * 8 + (x[:, 1] * 8).long(), minlength=64)
    assert float((counts - 625).abs().max()) < 5 * 25
    assert truth.entropy() == (pytest.approx(0, abs=1e-12), 0.0)
    for wrong in ([1.0], [1.0, -1.0], [0.0, 0.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="FaceDensity: expected a probability for each of 2 faces"):
            FaceDensity(square, wrong)
    with pytest.raises(ValueError, match="points in space"):
        truth.log_prob(torch.zeros(4, 2))
    lonely = FaceDensity(square, [1.0, 0.0])
    assert lonely.log_prob(torch.tensor([[0.7, 0.2, 0.0], [0.2, 0.7, 0.0]])).tolist() == [pytest.approx(math.log(2)), -math.inf]
    assert lonely.entropy()[0] == pytest.approx(-math.log(2))


@pytest.mark.parametrize(("k", "published", "area"), [(10, 1.084, 1.162), (50, 1.193, 1.270), (100, 1.162, 1.243)])
def test_bunny(meshes, cache, k, published, area):
    ds = data.bunny(k, 5000, weighting="published", root=meshes, cache=cache)
    assert isinstance(ds.spec.manifold, Mesh)
    assert ds.spec.manifold.total_volume == pytest.approx(9.467, abs=1e-3)
    assert len(ds.spec.manifold.face_array) == 5000
    assert ds.synthetic
    ds.check()
    assert ds.truth.entropy() == (pytest.approx(published, abs=6e-4), 0.0)
    check_entropy(ds.truth.entropy(), ds.truth.log_prob(ds.x))
    assert data.bunny(k, 5, root=meshes, cache=cache).truth.entropy()[0] == pytest.approx(area, abs=6e-4)


def test_bunny_vibrates_as_its_table_says(meshes, cache):
    path = meshes / "meshes" / "bunny_eig.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    table = np.load(path)
    values, functions = eigenfunctions(data.mesh("bunny", root=meshes).subdivide(), 100, cache=cache)
    np.testing.assert_allclose(values, table["eigenvalues"], rtol=1e-6, atol=1e-9)
    for k in (10, 50, 100):
        np.testing.assert_allclose(np.abs(functions[:, k - 1]), np.abs(table[f"eigvec_k{k}"]), atol=1e-5)


def test_a_mesh_of_the_user(tmp_path, meshes, monkeypatch):
    bunny = data.mesh(root=meshes)
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in (bunny.vertex_array * 250).tolist()]
    (tmp_path / "bunny_simp.obj").write_text("\n".join(lines + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in bunny.face_array.tolist()]))
    np.testing.assert_allclose(data.mesh(root=tmp_path).vertex_array, bunny.vertex_array, rtol=0, atol=1e-12)
    monkeypatch.setenv("FLUVIAL_DATA", str(meshes))
    assert data.mesh(creases="smooth").creases == "smooth"


def test_meshes_that_are_none(tmp_path, monkeypatch, ball):
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    with pytest.raises(ValueError, match="one of bunny, spot, got 'teapot'"):
        data.mesh("teapot")
    with pytest.raises(
        FileNotFoundError, match=r"bunny: set the environment variable FLUVIAL_DATA .* meshes/bunny.npz or .*2502 vertices, 5000 faces"
    ):
        data.bunny()
    with pytest.raises(FileNotFoundError, match="spot: no such file in .* given by root: expected spot.npz"):
        data.spot(root=tmp_path)
    np.savez(tmp_path / "spot.npz", vertices=ball.vertex_array, faces=ball.face_array)
    with pytest.raises(ValueError, match="expected 2930 vertices and 5856 faces, got 1026 and 2048; fetch it again from https://github.com"):
        data.spot(root=tmp_path)
    with pytest.raises(ValueError, match="k must be from 1, the constant eigenfunction, to 1025, got 0"):
        eigenfunction_density(ball, 0)
    with pytest.raises(ValueError, match="'area' or 'published', got 'value'"):
        eigenfunction_density(ball, 2, weighting="value")
    with pytest.raises(ValueError, match="count must be from 1 to 1025"):
        eigenfunctions(ball, 1026)
    with pytest.raises(ValueError, match=r"vertex 3 is of no face; make the mesh with Mesh.cleaned"):
        eigenfunctions(Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2]]), 2)


# -------------------------------------------------------------------------------------------------------------------- torsions


@pytest.mark.parametrize("spelling", ["Pre-Pro", "PRE-PRO", "PrePro", "prepro "])
def test_subtypes_in_the_spellings_of_published_tables(tmp_path, spelling):
    rows = KINDS["PrePro"]
    text = "".join(f"1abc A {row}\t{row % 360 - 179}.0\t{row % 90}\t{spelling}\n" for row in range(rows)) + "1abc A 0\t1\t2\tGENERAL\n"
    (tmp_path / "protein.tsv").write_text(text)
    assert len(data.protein_torsions("PrePro", root=tmp_path)) == rows
    with pytest.raises(ValueError, match="expected 138208 rows of subtype General, got 1"):
        data.protein_torsions("General", root=tmp_path)


def test_fresh_rows_of_the_ramachandran_density(real_data):
    if not (real_data / "torus" / "rama_density_grids.npz").is_file():
        pytest.skip(f"no density grids in {real_data}/torus; set FLUVIAL_DATA")
    ds = data.ramachandran("Glycine", 1000, root=real_data)
    fresh = ds.truth.sample(50_000, generator(99))
    assert fresh.shape == (50_000, 2, 2)
    check_entropy(ds.truth.entropy(), ds.truth.log_prob(fresh))
    assert not torch.equal(ds.truth.sample(1000, generator(1)), ds.x)
    assert "synthetic" in repr(ds)
    assert data.Dataset(fresh, manifold=Torus(2)).spec.manifold == ds.spec.manifold


# --------------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("section", "manifold"),
    [
        ("{class_path: fluvial.data.so3_mixture, init_args: {modes: 16, n: 400, spread: 0.1, held_out: [30, 50]}}", "SpecialOrthogonal(3)"),
        ("{class_path: fluvial.data.so3_given_features, init_args: {n: 400, features: 3}}", "SpecialOrthogonal(3)"),
        ("{class_path: fluvial.data.poses, init_args: {n: 400}}", "Product(SpecialOrthogonal(3), Euclidean(3))"),
        ("{class_path: fluvial.data.hyperbolic_swish, init_args: {n: 400}}", "PoincareBall(2)"),
        ("{class_path: fluvial.data.bunny, init_args: {n: 400, k: 10, creases: smooth, root: FOLDER}}", "Mesh(2502 vertices, 5000 faces)"),
    ],
)
def test_data_of_recipes(section, manifold, meshes):
    flow = "flow: {class_path: fluvial.flows.free_form, init_args: {features: 2}}\n"
    recipe = Recipe.parse("mine", f"{flow}data: {section.replace('FOLDER', str(Path(meshes)))}")
    ds = recipe.dataset()
    assert len(ds) == 400
    assert str(ds.spec.manifold) == manifold
