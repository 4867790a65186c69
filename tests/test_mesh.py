"""The mesh: nearest points against brute force, derivatives, sampling."""

import copy
import pickle

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial.config import build, describe
from fluvial.manifolds import Mesh, tangent_dual
from fluvial.testing import check_manifold

TETRAHEDRON = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]
SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]]


def tetrahedron():
    return Mesh(*TETRAHEDRON, creases="sharp")


def square():
    return Mesh(*SQUARE, creases="sharp")


def ball(times):
    """The unit sphere as an ever finer octahedron."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    faces = [[a, b, c] if (a < 3) ^ (b < 3) ^ (c < 3) else [a, c, b] for a in (0, 3) for b in (1, 4) for c in (2, 5)]
    mesh = Mesh(axes, faces, creases="sharp")
    for _ in range(times):
        finer = mesh.subdivide()
        mesh = Mesh(finer.vertex_array / np.linalg.norm(finer.vertex_array, axis=1, keepdims=True), finer.face_array, creases="sharp")
    return mesh


def hill(n=12):
    """A patch with a rim."""
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij"), -1).reshape(-1, 2)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate([np.stack([corner, corner + n, corner + 1], 1), np.stack([corner + 1, corner + n, corner + n + 1], 1)])
    return Mesh(np.column_stack([grid, np.exp(-2 * (grid**2).sum(1))]), faces, creases="sharp")


def bunny(folder):
    with np.load(folder / "meshes" / "bunny.npz") as file:
        return Mesh(file["vertices"] / 250, file["faces"])


MESHES = {
    "one face": lambda: Mesh([[0, 0, 0], [1, 0, 0], [0, 2, 0.5]], [[0, 1, 2]]),
    "square": square,
    "tetrahedron": tetrahedron,
    "ball": lambda: ball(3),
    "hill": hill,
    "two pieces": lambda: Mesh(
        np.concatenate([TETRAHEDRON[0], np.add(TETRAHEDRON[0], 5)]), np.concatenate([TETRAHEDRON[1], np.add(TETRAHEDRON[1], 4)])
    ),
}


def brute_force(mesh, x):
    """Every point against every face, in float64: the foot in its plane where that lies in the triangle, else the best foot on an edge."""
    a, b, c = (torch.as_tensor(mesh.vertex_array[mesh.face_array[:, k]]) for k in range(3))
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    nearest = []
    for points in x.double().split(1 + 200_000 // len(a)):
        p = points.unsqueeze(1)
        foot = p - normal * ((p - a) * normal).sum(-1, keepdim=True)
        inside = torch.ones(foot.shape[:2], dtype=torch.bool)
        best, square = foot, torch.full(foot.shape[:2], torch.inf, dtype=torch.float64)
        for s, e in ((a, b), (b, c), (c, a)):
            inside &= (torch.linalg.cross((e - s).expand_as(foot), foot - s) * normal).sum(-1) >= 0
            on_edge = s + (((p - s) * (e - s)).sum(-1, keepdim=True) / (e - s).square().sum(-1, keepdim=True)).clamp(0, 1) * (e - s)
            own = (on_edge - p).square().sum(-1)
            best, square = torch.where((own < square).unsqueeze(-1), on_edge, best), torch.minimum(own, square)
        best = torch.where(inside.unsqueeze(-1), foot, best)
        square = (best - p).square().sum(-1)
        nearest.append(best.gather(1, square.argmin(1)[:, None, None].expand(-1, 1, 3)).squeeze(1))
    return torch.cat(nearest)


def points_around(mesh, n):
    """On faces, edges and vertices, near, within, outside and very far away."""
    size = float(np.linalg.norm(np.ptp(mesh.vertex_array, axis=0)))
    centre = torch.as_tensor(mesh.vertex_array.mean(0))
    on = mesh.random_uniform(n, dtype=torch.float64)
    noise = torch.randn(n, 3, dtype=torch.float64)
    corners = torch.as_tensor(mesh.vertex_array[mesh.face_array[torch.randint(len(mesh.face_array), (n,)).numpy()]])
    share = torch.rand(n, 1, dtype=torch.float64)
    sets = {
        "on faces": on,
        "on edges": corners[:, 0] * share + corners[:, 1] * (1 - share),
        "on vertices": corners[:, 0],
        "near": on + 1e-3 * size * noise,
        "off": on + 0.1 * size * noise,
        "around the centre": centre + 0.01 * size * noise,
        "outside": centre + 2 * size * noise,
        "far": centre + 1e4 * size * noise,
    }
    return {name: each[: n // len(sets) + 1] for name, each in sets.items()}


def check_nearest(mesh, points, tolerance=1e-6):
    for name, x in points.items():
        y, expected = mesh.project(x), brute_force(mesh, x)
        near, best = ((each - x).norm(dim=-1) for each in (y, expected))
        scale = best.clamp_min(1.0)
        assert ((near - best).abs() / scale).max() < 1e-12, name
        # Where two nearest points are equally far, either will do.
        apart = (y - expected).norm(dim=-1)
        assert (brute_force(mesh, y[:20]) - y[:20]).norm(dim=-1).max() < 1e-9, f"{name}: not on the surface"
        assert (apart > tolerance).double().mean() < 0.02 or name == "on edges", f"{name}: {apart.max()}"


@pytest.mark.parametrize("make", MESHES.values(), ids=MESHES.keys())
def test_contract(make):
    check_manifold(make())


@pytest.mark.parametrize("make", MESHES.values(), ids=MESHES.keys())
def test_nearest_points_are_those_of_brute_force(make):
    mesh = make()
    check_nearest(mesh, points_around(mesh, 800))


def test_nearest_points_on_the_bunny(real_data):
    mesh = bunny(real_data)
    assert len(mesh.face_array) == 5000
    points = points_around(mesh, 1200)
    check_nearest(mesh, points)
    # In float32 the search is still in double precision: only the result is rounded.
    x = points["off"].float()
    torch.testing.assert_close(mesh.project(x), mesh.project(x.double()).float(), rtol=0, atol=0)


@pytest.mark.long
def test_a_hundred_thousand_points_on_the_bunny(real_data):
    mesh = bunny(real_data)
    check_nearest(mesh, points_around(mesh, 100_000))


def test_points_as_far_from_everything_as_from_anything():
    mesh = ball(4)
    x = 1e-9 * torch.randn(400, 3, dtype=torch.float64)
    assert len(mesh.face_array) * len(x) > 2**18
    y = mesh.project(x)
    assert ((y - x).norm(dim=-1) - (brute_force(mesh, x) - x).norm(dim=-1)).abs().max() < 1e-14


def test_the_batch_does_not_matter(double):
    mesh = ball(3)
    x = torch.randn(6, 500, 3)
    whole = mesh.project(x)
    assert whole.shape == x.shape
    assert torch.equal(mesh.project(x.flatten(0, 1)).view_as(x), whole)
    assert torch.equal(mesh.project(x[2, 77]), whole[2, 77])
    assert mesh.project(x[:0]).shape == (0, 500, 3)
    assert torch.equal(mesh.project(x.transpose(0, 1)), whole.transpose(0, 1))


def test_extremes_are_finite_or_nan():
    mesh = tetrahedron()
    x = torch.tensor([[1e30, 0.0, 0.0], [-1e38, 2e38, -1e38], [torch.nan, 0.0, 0.0], [torch.inf, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    y = mesh.project(x)
    assert y.isfinite().all(1).tolist() == [True, True, False, False, True]
    torch.testing.assert_close(mesh.project(y[[0, 1, 4]]), y[[0, 1, 4]])
    torch.testing.assert_close(y[1], torch.tensor([-1.0, 1.0, -1.0]))
    y[[0, 1, 4]].sum().backward()
    assert x.grad.isfinite().all()
    assert mesh.project(torch.tensor([1e300, 1e300, 1e300], dtype=torch.float64)).tolist() == pytest.approx([1, 1, 1])


# ----------------------------------------------------------------------------------------------------------------- derivatives


def test_derivative_inside_a_face_along_an_edge_and_at_a_corner(double):
    mesh = square()
    x = torch.tensor([[0.7, 0.2, 0.5], [0.5, -1.0, 0.5], [-1.0, -1.0, 0.5], [0.4, 0.4, 0.5]])
    jacobian = torch.func.vmap(torch.func.jacrev(mesh.project))(x)
    plane = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    # The last lies above the diagonal, where both faces have the same plane.
    torch.testing.assert_close(jacobian, torch.stack([plane, torch.diag(torch.tensor([1.0, 0.0, 0.0])), torch.zeros(3, 3), plane]))


@pytest.mark.parametrize("make", [tetrahedron, hill, lambda: ball(2)])
def test_derivative_is_that_of_finite_differences(make, double):
    mesh = make()
    x = mesh.random_uniform(300) + 0.2 * torch.randn(300, 3)
    t, step = torch.randn(2, 300, 3), 1e-6
    numerical = (mesh.project(x + step * t) - mesh.project(x - step * t)) / (2 * step)
    y, pushed = mesh.project_dual(x, t)
    # Some of the points lie within a step of where the nearest part changes.
    assert ((numerical - pushed).norm(dim=-1) > 1e-6).double().mean() < 0.01
    assert torch.equal(y, mesh.project(x))


def test_all_ways_to_differentiate_agree(double):
    mesh = ball(2)
    x, t = 1.2 * torch.randn(20, 3), torch.randn(20, 3)
    pushed = mesh.project_dual(x, t.unsqueeze(0))[1][0]
    torch.testing.assert_close(torch.func.jvp(mesh.project, (x,), (t,))[1], pushed)
    # The derivative is a projector, and so its own transpose.
    torch.testing.assert_close(torch.func.vjp(mesh.project, x)[1](t)[0], pushed)
    torch.testing.assert_close((torch.func.vmap(torch.func.jacfwd(mesh.project))(x) @ t.unsqueeze(-1)).squeeze(-1), pushed)
    torch.testing.assert_close((torch.func.vmap(torch.func.jacrev(mesh.project))(x) @ t.unsqueeze(-1)).squeeze(-1), pushed)
    torch.testing.assert_close(torch.func.vmap(lambda one: torch.func.jvp(mesh.project, (x,), (one,))[1])(t.unsqueeze(0))[0], pushed)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(mesh.project(leaf), leaf, t)[0], pushed)
    with torch.autograd.forward_ad.dual_level():
        dual = mesh.project(torch.autograd.forward_ad.make_dual(x, t))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, pushed)
    assert torch.autograd.gradcheck(lambda p: tangent_dual(mesh, p, t.unsqueeze(0))[1], leaf)
    assert torch.equal(torch.func.vmap(mesh.project, in_dims=1, out_dims=1)(x.view(4, 5, 3)).reshape(20, 3), mesh.project(x))


def test_smooth_creases_keep_both_dimensions(double):
    sharp, smooth = tetrahedron(), Mesh(*TETRAHEDRON, creases="smooth")
    assert sharp != smooth
    check_manifold(smooth)
    x = 3 * torch.randn(200, 3)
    assert torch.equal(sharp.project(x), smooth.project(x))
    rank = torch.linalg.matrix_rank(torch.func.vmap(torch.func.jacrev(smooth.project))(x))
    assert (rank == 2).all()
    assert set(torch.linalg.matrix_rank(torch.func.vmap(torch.func.jacrev(sharp.project))(x)).tolist()) == {0, 1, 2}
    inside = sharp.random_uniform(50)
    torch.testing.assert_close(smooth.project_dual(inside, x[None, :50])[1], sharp.project_dual(inside, x[None, :50])[1])


def test_compiled_projection():
    mesh = ball(2)
    x = torch.randn(30, 3)
    compiled = torch.compile(lambda p: torch.func.vjp(mesh.project, p)[1](torch.ones_like(p))[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.func.vjp(mesh.project, x)[1](torch.ones_like(x))[0])


# -------------------------------------------------------------------------------------------------------- tangents and measures


def test_ties_go_to_the_first_face(double):
    mesh = ball(1)
    pairs = mesh.vertex_array[mesh.face_array[:, :2]].mean(1)
    x = torch.as_tensor(np.concatenate([mesh.vertex_array, pairs]))
    single = [Mesh(mesh.vertex_array, mesh.face_array[k : k + 1]) for k in range(len(mesh.face_array))]
    distance = torch.stack([(one.project(x) - x).norm(dim=-1) for one in single])
    first = (distance < 1e-12).double().argmax(0)
    assert torch.equal(mesh.face_of(x)[0], first)
    assert torch.equal(mesh.face_of(1.5 * x)[0], first)


def test_face_and_weights_say_where_a_point_is(double):
    mesh = hill()
    x = mesh.random_uniform(500)
    face, weights = mesh.face_of(x)
    corners = torch.as_tensor(mesh.vertex_array[mesh.face_array[face.numpy()]])
    torch.testing.assert_close((weights.unsqueeze(-1) * corners).sum(1), x)
    assert (weights >= 0).all()
    away = mesh.face_of(torch.randn(4, 5, 3))[1]
    torch.testing.assert_close(away.sum(-1), torch.ones(4, 5))
    basis = mesh.tangent_basis(x)
    edge = corners[:, 1] - corners[:, 0]
    torch.testing.assert_close(mesh.to_tangent(x, edge), edge)
    torch.testing.assert_close(
        (basis.transpose(1, 2) @ (corners[:, 2] - corners[:, 0]).unsqueeze(-1)).norm(dim=(1, 2)), (corners[:, 2] - corners[:, 0]).norm(dim=1)
    )


def test_area_and_uniform_points():
    mesh = hill(6)
    cross = np.cross(*(mesh.vertex_array[mesh.face_array[:, k]] - mesh.vertex_array[mesh.face_array[:, 0]] for k in (1, 2)))
    np.testing.assert_allclose(mesh.areas, np.linalg.norm(cross, axis=1) / 2)
    assert mesh.total_volume == pytest.approx(mesh.areas.sum())
    assert 4 * np.pi * 0.98 < ball(4).total_volume < 4 * np.pi
    n = 40_000
    counts = np.bincount(mesh.face_of(mesh.random_uniform(n, dtype=torch.float64))[0], minlength=50)
    expected = n * mesh.areas / mesh.areas.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(98)


def test_points_by_face_weights():
    mesh = tetrahedron()
    weights = [0.0, 3.0, 0.0, 1.0]
    x = mesh.random_on_faces(weights, 20_000, dtype=torch.float64)
    face, barycentric = mesh.face_of(x)
    counts = np.bincount(face, minlength=4)
    assert counts[0] == counts[2] == 0
    assert abs(counts[1] - 15_000) < 5 * np.sqrt(20_000 * 3 / 16)
    # Uniform in a triangle, a weight has mean 1/3 and variance 1/18.
    assert (barycentric.mean(0) - 1 / 3).abs().max() < 5 / np.sqrt(18 * 20_000)
    assert (barycentric.var(0) - 1 / 18).abs().max() < 0.002
    assert torch.equal(*(mesh.random_on_faces(weights, 5, generator=torch.Generator().manual_seed(3)) for _ in range(2)))
    for wrong, message in (([1.0], r"4 faces, got shape \(1,\)"), ([1, 1, -1, 1], "face 2 has weight -1"), ([0] * 4, "all weights are 0")):
        with pytest.raises(ValueError, match=message):
            mesh.random_on_faces(wrong, 5)


def test_subdivision_is_the_same_surface(double):
    mesh = hill()
    finer = mesh.subdivide(2)
    assert len(finer.face_array) == 16 * len(mesh.face_array)
    assert finer.total_volume == pytest.approx(mesh.total_volume, rel=1e-12)
    x = torch.randn(200, 3)
    torch.testing.assert_close(finer.project(x), mesh.project(x), rtol=0, atol=1e-12)
    # Middles of edges are shared: Euler's number stays that of a disc.
    for each in (mesh, finer):
        edges = np.unique(np.sort(each.face_array[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1), axis=0)
        assert len(each.vertex_array) - len(edges) + len(each.face_array) == 1
    normals = [np.cross(*(m.vertex_array[m.face_array[:, k]] - m.vertex_array[m.face_array[:, 0]] for k in (1, 2)))[:, 2] for m in (mesh, finer)]
    assert (normals[0] > 0).all()
    assert (normals[1] > 0).all()
    assert mesh.subdivide(0) == mesh
    with pytest.raises(ValueError, match="-1"):
        mesh.subdivide(-1)


def test_no_geodesics_but_a_retraction():
    mesh = tetrahedron()
    x = mesh.random_uniform(3)
    for refused in (lambda: mesh.exp(x, x), lambda: mesh.log(x, x), lambda: mesh.distance(x, x)):
        with pytest.raises(NotImplementedError, match="retract"):
            refused()
    v = 1e-3 * mesh.random_tangent(x)
    torch.testing.assert_close(mesh.retract(x, v) - x, v, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(mesh.norm(x, v), v.norm(dim=-1))


# -------------------------------------------------------------------------------------------------------- equality and saving


def test_equal_by_content_and_light_to_copy():
    mesh = hill()
    twin = Mesh(torch.as_tensor(mesh.vertex_array), torch.as_tensor(mesh.face_array).long(), creases=mesh.creases)
    assert mesh == twin
    assert hash(mesh) == hash(twin)
    assert mesh != Mesh(mesh.vertex_array + 1e-15, mesh.face_array)
    assert mesh != Mesh(mesh.vertex_array, mesh.face_array[::-1])
    for again in (
        copy.deepcopy(mesh),
        pickle.loads(pickle.dumps(mesh)),
        Mesh(mesh.vertices, mesh.faces, creases=mesh.creases),
        build(describe(mesh)),
    ):
        assert again == mesh
        assert np.array_equal(again.vertex_array, mesh.vertex_array)
        assert np.array_equal(again.face_array, mesh.face_array)
    assert repr(mesh) == "Mesh(144 vertices, 242 faces)"


def test_a_flow_on_a_large_mesh_is_saved_with_it(tmp_path, real_data):
    mesh = bunny(real_data).subdivide()
    flow = fl.Flow(fl.FreeForm(fl.nn.MLP(3), fl.nn.MLP(3)), fl.bases.UniformOn(mesh), manifold=mesh)
    flow.spec = fl.DataSpec(3, manifold=mesh)
    fl.save(flow, tmp_path / "flow.safetensors")
    again = fl.load(tmp_path / "flow.safetensors")
    assert again.manifold == again.latent_manifold == again.spec.manifold == mesh
    assert np.array_equal(again.manifold.vertex_array, mesh.vertex_array)
    x = mesh.random_uniform(5)
    assert torch.equal(again.decode(again.encode(x)), flow.decode(flow.encode(x)))


def test_a_flow_on_a_mesh_trains_and_has_a_density(double):
    mesh = Mesh(*(getattr(ball(2), name) for name in ("vertices", "faces")), creases="smooth")
    flow = fl.Flow(fl.FreeForm(fl.nn.Residual(3), fl.nn.Residual(3)), fl.bases.UniformOn(mesh), manifold=mesh)
    x = mesh.random_uniform(64)
    loss = fl.FreeFormLikelihood()(flow, fl.Batch(x), fl.Progress())["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    assert flow.log_prob(x).isfinite().all()


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (SQUARE[0], [[0, 1, 2], [0, 2, 4]], r"face 1 names vertices \(0, 2, 4\), but there are 4"),
        (SQUARE[0], [[1, 2, 3], [1, 3, 4]], "subtract 1"),
        (SQUARE[0], [[0, 1, -1]], "face 0"),
        (SQUARE[0], [], "at least one face"),
        (SQUARE[0], [[0, 1, 2, 3]], "triangles"),
        (SQUARE[0], [[0.0, 1.0, 2.0]], "whole numbers"),
        ([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]], r"\(n, 3\), got \(3, 2\)"),
        ([[0, 0, 0], [1, 0, 0], [0, float("nan"), 0]], [[0, 1, 2]], "vertex 2 is not finite"),
        (SQUARE[0], [[0, 1, 2], [3, 3, 1]], r"face 1 \(vertices \(3, 3, 1\)\) has no area.*cleaned"),
        ([[0, 0, 0], [1, 1, 1], [2, 2, 2]], [[0, 1, 2]], "no area"),
        (SQUARE[0], [[0, 1, 2], [2, 0, 1]], "face 1 has the same corners as face 0"),
        ("float64[2,3]:AAAA", SQUARE[1], "48 bytes expected, got 3"),
        ("float64[1,3]:A!", SQUARE[1], "damaged"),
        ("bunny.obj", SQUARE[1], "Mesh.read"),
    ],
)
def test_wrong_meshes_are_named(vertices, faces, message):
    with pytest.raises(ValueError, match=message):
        Mesh(vertices, faces)


def test_creases_are_sharp_or_smooth():
    with pytest.raises(ValueError, match="round"):
        Mesh(*SQUARE, creases="round")


def test_cleaned_leaves_out_what_is_no_surface():
    mesh = Mesh.cleaned([*SQUARE[0], [9, 9, 9]], [[0, 1, 2], [1, 1, 3], [2, 0, 1], [0, 2, 3]], creases="sharp")
    assert mesh == square()
    with pytest.raises(ValueError, match="none of the 1 faces"):
        Mesh.cleaned(SQUARE[0], [[0, 0, 1]])


def test_needles_keep_their_digits(double):
    mesh = Mesh([[0, 0, 0], [1e-7, 0, 0], [0.3, 1, 0.2]], [[0, 1, 2]])
    x = torch.randn(200, 3)
    assert ((mesh.project(x) - brute_force(mesh, x)).norm(dim=-1)).max() < 1e-9
