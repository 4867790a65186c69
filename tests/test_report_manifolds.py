"""Figures of curved spaces: what they show is where the points are, and every page stands whatever the points are."""

import base64
import json
import math
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial import report
from fluvial.manifolds import Euclidean, Hyperboloid, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus, from_projection
from fluvial.report import sections
from fluvial.report.coordinates import coordinates, factor_columns, factor_names
from fluvial.report.globe import world_map
from fluvial.report.material import Material
from fluvial.report.mesh_plot import Shape, counted, surface
from fluvial.report.poincare_disc import CELLS
from fluvial.report.rotations import direction_density, rotation_at, seen
from fluvial.report.spaces import Clouds, compared, compared_latents, principal

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT = 8_000_000  # bytes
SMALL = {"width": 16, "blocks": 1}
ROTATIONS = SpecialOrthogonal(3)
POSES = Product(ROTATIONS, Euclidean(3))


def round_towards_sphere(x):
    return x / x.norm(dim=-1, keepdim=True)


def two_squares(side=4):
    """Two flat squares one above the other, very close and not connected."""
    grid = np.arange(side + 1) / side
    flat = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    i, j = (a.reshape(-1) for a in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    a, b, c, d = (side + 1) * i + j, (side + 1) * (i + 1) + j, (side + 1) * (i + 1) + j + 1, (side + 1) * i + j + 1
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    low, high = (np.concatenate([flat, np.full((len(flat), 1), z)], 1) for z in (0.0, 0.001))
    return Mesh(np.concatenate([low, high]), np.concatenate([faces, faces + len(flat)]))


SQUARES = two_squares()
SPACES = {
    "SO(3)": ROTATIONS,
    "SO(2)": SpecialOrthogonal(2),
    "SO(4)": SpecialOrthogonal(4),
    "disc": PoincareBall(2),
    "hyperbolic plane": Hyperboloid(2),
    "ball": PoincareBall(3),
    "hyperbolic line": PoincareBall(1),
    "hyperbolic space": Hyperboloid(3),
    "mesh": SQUARES,
    "poses": POSES,
    "sphere": Sphere(2),
    "S3": Sphere(3),
    "T7": Torus(7),
    "circles and lines": Product(Torus(1), Sphere(1), Euclidean(1), Torus(1)),
}
named = pytest.mark.parametrize("manifold", list(SPACES.values()), ids=list(SPACES))


def flow_on(manifold, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fl.flows.free_form(manifold=manifold, **SMALL, **more).eval()


def points_on(manifold, n=60, seed=0):
    return manifold.project(0.3 * torch.randn(n, *manifold.event_shape, generator=torch.Generator().manual_seed(seed)))


def figures_in(page):
    found = re.findall(r'<script type="application/json" id="(\S+)-data">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def headings(page):
    return re.findall(r"<h3>(.*?)</h3>", page)


def array(entry):
    """Numbers as plotly writes them."""
    return np.frombuffer(base64.b64decode(entry["bdata"]), entry["dtype"]) if isinstance(entry, dict) else np.asarray(entry)


# ------------------------------------------------------------------------------------------------------------------------- whole pages


@named
def test_every_space_has_its_page(manifold):
    page = report.page(flow_on(manifold), fl.Dataset(points_on(manifold), manifold=manifold))
    assert len(page.encode()) < LIMIT
    panels = figures_in(page)
    assert panels["samples-0"]
    assert panels["latent-0"]
    assert panels["reconstruction-0"]


@named
def test_one_row_is_enough(manifold):
    found = compared(manifold, Clouds(points_on(manifold, 1), points_on(manifold, 1, seed=1)))
    assert all(figure.data for figure in found.values())
    assert compared_latents(manifold, points_on(manifold, 1), points_on(manifold, 1, seed=1), None)


@named
def test_points_that_are_not_finite_are_left_out(manifold):
    good, half, bad = points_on(manifold), points_on(manifold).clone(), torch.full_like(points_on(manifold), math.nan)
    half[:30] = math.nan
    nothing = lambda x: torch.full((len(x),), math.nan)  # noqa: E731
    for data, drawn, left in ((half, good, 30), (good, bad, 60), (bad, half, 0)):
        found = compared(manifold, Clouds(data, drawn, density=nothing, truth=nothing))
        for title, figure in found.items():
            if title.split(" · ")[-1].startswith("Data") and figure.data[0].mode == "markers":
                assert np.isfinite(figure.data[0].x).sum() == left
    assert compared_latents(manifold, half, bad, None)


@named
def test_infinite_densities_are_a_colour_and_no_hole(manifold):
    half = lambda x: torch.where(torch.arange(len(x)) % 2 == 0, -math.inf, math.inf)  # noqa: E731
    assert compared(manifold, Clouds(points_on(manifold), points_on(manifold), density=half))


def test_a_flow_gone_wrong_still_gets_its_page():
    flow = flow_on(Hyperboloid(2))
    with torch.no_grad():
        for parameter in flow.codec.parameters():
            parameter.fill_(math.nan)
    page = report.page(flow, fl.Dataset(points_on(Hyperboloid(2)), manifold=Hyperboloid(2)))
    assert "no distance is finite" in page


def test_titles_say_what_is_seen():
    truth = SimpleNamespace(log_prob=lambda x: torch.zeros(len(x)))
    expected = {
        ROTATIONS: ["Log-density of the direction", "True log-density of the direction", "Data, coloured by tilt", "Samples, coloured by tilt"],
        PoincareBall(2): ["Log-density on the disc", "True log-density on the disc", "Data", "Samples"],
        SQUARES: ["Density on the surface", "True density on the surface", "Density of the data", "Density of the samples"],
        Sphere(2): ["Log-density of the flow", "True log-density", "Data", "Samples"],
    }
    for manifold, titles in expected.items():
        data = fl.Dataset(points_on(manifold), manifold=manifold, truth=truth)
        section = sections.samples(Material.of(flow_on(manifold), data))
        assert [panel.title for panel in section.panels] == titles
        assert all(panel.caption for panel in section.panels)
        flow_field, true_field = (panel.figures[0].data[0] for panel in section.panels[:2])
        ends = ("cmin", "cmax") if manifold is SQUARES else ("zmin", "zmax")
        assert [flow_field[end] for end in ends] == [true_field[end] for end in ends]


def test_a_product_is_shown_factor_by_factor():
    names = [*(f"r{k}" for k in range(9)), "east", "north", "up"]
    units = [*[""] * 9, "m", "m", "m"]
    data = fl.Dataset(points_on(POSES), manifold=POSES, names=names, units=units)
    page = report.page(flow_on(POSES), data)
    titles = headings(page)
    assert titles[:3] == [
        "SpecialOrthogonal(3) · Data, coloured by tilt",
        "SpecialOrthogonal(3) · Samples, coloured by tilt",
        "Euclidean(3) · Pairs of columns",
    ]
    assert "Euclidean(3) · Latent 0" in titles
    assert "SpecialOrthogonal(3) · Base" in titles
    for label in ("rotation angle [°]", "rotation x [°]", "east [m]", "up [m]"):
        assert label in page
    # Across the factors: three of the rotation, three of the place.
    corner = figures_in(page)[f"marginals-{len([k for k in figures_in(page) if k.startswith('marginals')]) - 1}"][0]
    assert len([trace for trace in corner["data"] if trace["type"] == "contour"]) == 2 * 15


def test_seven_angles_are_all_there():
    manifold = Torus(7)
    page = report.page(flow_on(manifold), fl.Dataset(points_on(manifold), manifold=manifold, names=list("abcdefg")))
    panels = figures_in(page)
    assert len([name for name in panels if name.startswith("marginals")]) == 7
    contours = [trace for trace in panels["samples-0"][0]["data"] if trace["type"] == "contour"]
    assert len(contours) == 2 * 21


def test_a_space_without_distances_takes_straight_lines():
    manifold = from_projection(round_towards_sphere, 2, event_shape=3)
    flow = flow_on(manifold, base=fl.bases.UniformOn(Sphere(2)))
    x = points_on(manifold)
    material = Material.of(flow, fl.Dataset(x, manifold=manifold))
    assert torch.allclose(material.distance, (x - material.rebuilt).norm(dim=1))
    assert math.isfinite(material.spread)
    assert "samples-1" in figures_in(report.page(flow, fl.Dataset(x, manifold=manifold)))


def test_spread_is_in_the_distance_of_the_space():
    # Two rows at the distance d of each other: half of all pairs are apart, so that the spread is d/2.
    ball = PoincareBall(2)
    x = torch.tensor([[0.9, 0.0], [-0.9, 0.0]]).repeat(2000, 1)
    material = Material.of(flow_on(ball), fl.Dataset(x, manifold=ball))
    assert material.spread == pytest.approx(float(ball.distance(x[0], x[1])) / 2, rel=0.03)
    weighted = Material.of(flow_on(ball), fl.Dataset(x, weight=torch.tensor([1.0, 0.0]).repeat(2000), manifold=ball))
    assert weighted.spread == 0


# ----------------------------------------------------------------------------------------------------------------------------- rotations


def test_direction_and_tilt_are_longitude_latitude_and_roll():
    longitude, latitude, tilt = torch.tensor([[0.3, -2.0, 3.0], [0.5, -1.2, 0.1], [1.0, -2.5, 3.1]], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    turn = ROTATIONS.from_rotation_vector
    by_hand = turn(torch.stack([zero, zero, longitude], 1)) @ turn(torch.stack([zero, -latitude, zero], 1)) @ turn(torch.stack([tilt, zero, zero], 1))
    direction, told = seen(by_hand.numpy())
    assert np.allclose(told, tilt)
    assert np.allclose(direction[:, 2], latitude.sin())
    assert torch.allclose(rotation_at(torch.as_tensor(direction), tilt), by_hand)


def test_rotations_are_found_again_at_the_poles_too():
    x = ROTATIONS.random_uniform(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction, tilt = seen(x.numpy())
    assert torch.allclose(rotation_at(torch.as_tensor(direction), torch.as_tensor(tilt)), x)
    pole = rotation_at(torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, 1.0]))
    assert torch.allclose(pole @ pole.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(pole), torch.ones(2))


def test_density_of_the_direction_is_that_of_the_first_column():
    uniform = -math.log(8 * math.pi**2)

    def log_prob(x):
        # Of the direction and the tilt together, so that both have to be right.
        return uniform + torch.log1p(0.5 * x[:, 0, 0] + 0.3 * x[:, 2, 1])

    u = round_towards_sphere(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(direction_density(log_prob)(u), torch.log1p(0.5 * u[:, 0]) - math.log(4 * math.pi), atol=1e-5)


def test_the_coarse_map_is_the_fine_map():
    log_prob = lambda x: 2 * x[:, 2] + x[:, 1]  # noqa: E731
    like = torch.zeros((), dtype=torch.float64)
    fine, coarse = (world_map(log_prob, like=like, cells=cells).data[0] for cells in ((200, 100), (88, 44)))
    assert np.array_equal(np.isnan(fine.z), np.isnan(coarse.z))
    assert np.nanmax(abs(fine.z - coarse.z)) < 0.15
    assert np.nanmean(abs(fine.z - coarse.z)) < 0.01


def test_markers_of_rotations_tell_their_rotation_vectors():
    vectors = torch.tensor([[0.0, 0.0, math.pi / 2], [0.3, 0.0, 0.0]])
    markers = report.rotation_map(ROTATIONS.from_rotation_vector(vectors)).data[0]
    assert np.allclose(markers.customdata[:, :3], np.degrees(vectors.numpy()), atol=1e-3)
    assert np.allclose(markers.customdata[:, 3], [90, math.degrees(0.3)], atol=1e-3)
    assert np.allclose(markers.marker.color, [0, math.degrees(0.3)], atol=1e-3)
    # A quarter turn about z brings the x axis to 90° of longitude.
    assert np.allclose([markers.x[0], markers.y[0]], [math.sqrt(2), 0], atol=1e-4)


def test_rotations_are_thinned_by_weight():
    x = ROTATIONS.random_uniform(4000, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(4000)
    weight[0] = 1
    markers = report.rotation_map(x, weight=weight).data[0]
    assert len(set(markers.x.tolist())) == 1
    assert len(report.rotation_map(x).data[0].x) == 3000


# ----------------------------------------------------------------------------------------------------------------------- hyperbolic plane


def test_disc_shows_the_density_where_it_is():
    ball = PoincareBall(2)

    def log_prob(x):
        # Uniform in the flat area of the disc with a slope to the right, per hyperbolic area.
        return torch.log1p(0.9 * x[:, 0]) - math.log(math.pi) - ball.log_volume(x)

    field = report.disc(log_prob, limits=(-60, 0)).data[0]
    x, y = np.meshgrid(field.x, field.y)
    cell = (2 / CELLS) ** 2
    flat = np.exp(field.z) * (2 / (1 - x**2 - y**2)) ** 2 * cell
    assert np.nansum(flat) == pytest.approx(1, abs=0.02)
    assert np.nansum(flat * x) == pytest.approx(0.9 / 4, abs=0.02)
    assert np.nansum(flat * y) == pytest.approx(0, abs=0.01)
    assert np.isnan(field.z[x**2 + y**2 >= 1]).all()


def test_disc_tells_the_distance_from_the_centre():
    ball = PoincareBall(2)
    x = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, -0.9]])
    markers = report.disc(x).data[0]
    assert np.allclose(markers.customdata, ball.distance(torch.zeros(3, 2), x), atol=1e-4)
    circles = report.disc(x).data[1]
    radius = np.hypot(*(np.array([v for v in line if v is not None], float) for line in (circles.x, circles.y)))
    assert np.allclose(np.unique(radius.round(4)), np.tanh(np.arange(1, 5) / 2), atol=1e-3)


def test_both_models_of_the_hyperbolic_plane_look_alike():
    data, drawn = points_on(PoincareBall(2)), points_on(PoincareBall(2), seed=1)
    ball = compared(PoincareBall(2), Clouds(data, drawn, density=lambda x: -x[:, 0]))
    lift = Hyperboloid.from_ball
    sheet = compared(Hyperboloid(2), Clouds(lift(data), lift(drawn), density=lambda x: -Hyperboloid.to_ball(x)[:, 0]))
    assert list(ball) == list(sheet)
    assert np.allclose(ball["Data"].data[0].x, sheet["Data"].data[0].x, atol=1e-5)
    assert np.allclose(ball["Log-density on the disc"].data[0].z, sheet["Log-density on the disc"].data[0].z, atol=1e-3, equal_nan=True)


# --------------------------------------------------------------------------------------------------------------------------------- meshes


def test_counting_loses_nothing_and_stays_on_its_sheet():
    x = torch.tensor([[0.1, 0.2, 0.0], [0.6, 0.9, 0.0], [0.3, 0.3, 0.001], [math.nan, 0.0, 0.0]])
    density = counted(SQUARES, x, torch.tensor([1.0, 2.0, 3.0, 2.0]))
    upper = SQUARES.vertex_array[SQUARES.face_array][:, :, 2].max(1) > 0
    mass = density * SQUARES.areas
    assert mass[~upper].sum() == pytest.approx(3 / 8)
    assert mass[upper].sum() == pytest.approx(3 / 8)
    assert density.min() >= 0


def test_counting_spreads_to_the_neighbours_as_far_as_told():
    fine = two_squares(20)
    x = torch.tensor([[0.52, 0.51, 0.0]])
    centres = fine.vertex_array[fine.face_array].mean(1)
    sizes = []
    for rows in (2000, 500):
        mass = counted(fine, x, rows=rows) * fine.areas
        away = np.square(centres[:, :2] - x[0, :2].numpy()).sum(1)
        sizes.append(float((mass * away).sum()))
        # Of a Gaussian spot that covers the area 4πσ² of 20 rows, in two directions.
        assert sizes[-1] == pytest.approx(2 * fine.total_volume * 20 / rows / (4 * math.pi), rel=0.35)
    assert sizes[1] > 3 * sizes[0]


def test_uniform_points_count_as_a_uniform_density():
    x = SQUARES.random_uniform(20_000, generator=torch.Generator().manual_seed(0))
    density = counted(SQUARES, x)
    assert density == pytest.approx(np.full(len(density), 1 / SQUARES.total_volume), rel=0.25)
    assert np.average(density, weights=SQUARES.areas) == pytest.approx(1 / SQUARES.total_volume)


def test_faces_have_the_density_that_they_are_asked_for():
    shape = Shape.of(SQUARES)
    assert np.array_equal(shape.faces, SQUARES.face_array)
    figures = report.surfaces(
        SQUARES, {"points": (SQUARES.random_uniform(100, generator=torch.Generator().manual_seed(0)), None)}, {"slope": lambda x: torch.log(x[:, 0])}
    )
    assert list(figures) == ["slope", "points"]
    trace = figures["slope"].data[0]
    assert np.allclose(trace.intensity, shape.centres[:, 0], atol=1e-6)
    assert trace.cmax == figures["points"].data[0].cmax
    assert trace.i.dtype == np.uint16
    assert figures["slope"].layout.scene.camera == figures["points"].layout.scene.camera


def test_a_single_spike_does_not_darken_the_rest():
    values = np.ones(len(SQUARES.face_array))
    values[0] = math.inf
    trace = surface(Shape.of(SQUARES), values, top=2.0).data[0]
    assert np.isfinite(trace.intensity).all()
    assert trace.intensity[0] >= trace.cmax == 2


def test_large_meshes_are_made_smaller():
    large = two_squares(40)
    small = Shape.of(large, most=800)
    assert 200 < len(small.faces) <= 800
    # Every face stands for one near by.
    whole = Shape.of(large)
    away = np.linalg.norm(small.centres - whole.centres[small.source], axis=1)
    assert away.max() < 0.12
    assert np.ptp(small.vertices[:, 0]) > 0.9


def test_page_of_twenty_thousand_faces_stays_small():
    mesh = two_squares(71)
    assert len(mesh.face_array) > 20_000
    flow = flow_on(mesh)
    page = report.page(flow, fl.Dataset(points_on(mesh), manifold=mesh))
    assert len(page.encode()) < LIMIT
    trace = figures_in(page)["samples-0"][0]["data"][0]
    assert len(array(trace["intensity"])) == len(array(trace["i"])) <= 20_000


def test_surfaces_for_many_conditions_are_coarser():
    mesh = two_squares(60)
    clouds = Clouds(points_on(mesh), points_on(mesh), quick=True)
    assert all(1000 < len(figure.data[0].i) <= 5000 for figure in compared(mesh, clouds).values())


# ---------------------------------------------------------------------------------------------------------------------------- coordinates


def test_coordinates_are_in_the_numbers_of_their_space():
    rotation = coordinates(ROTATIONS, ROTATIONS.from_rotation_vector([[0.0, math.pi / 4, 0.0]]))
    assert np.allclose(rotation.values, [[45, 0, 45, 0]], atol=1e-3)
    assert rotation.independent == [1, 2, 3]
    turned = coordinates(SpecialOrthogonal(2), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
    assert np.allclose(turned.values, 90)
    far = coordinates(Hyperboloid(3), Hyperboloid.from_ball(torch.tensor([[0.5, 0.0, 0.0]])))
    assert np.allclose(far.values, [[2 * math.atanh(0.5), 0.5, 0, 0]], atol=1e-6)
    line = coordinates(PoincareBall(1), torch.tensor([[-0.5]]))
    assert np.allclose(line.values, -2 * math.atanh(0.5), atol=1e-6)


def test_coordinates_of_a_product_are_those_of_its_factors():
    twice = Product(Torus(1), Torus(1), Euclidean(2))
    found = coordinates(
        twice,
        twice.join(Torus.from_angles(torch.tensor([[0.5]])), Torus.from_angles(torch.tensor([[-0.5]])), torch.tensor([[3.0, 4.0]])),
        names=["a", "b", "c", "d", "east", "north"],
        units=["", "", "", "", "km", ""],
    )
    assert np.allclose(found.values, [[math.degrees(0.5), -math.degrees(0.5), 3, 4]], atol=1e-4)
    assert found.labels == ["1: φ₁, degrees", "2: φ₁, degrees", "east [km]", "north"]
    assert [bins is None for bins in found.edges] == [False, False, True, True]
    assert factor_names(twice) == ["Torus(1), number 1", "Torus(1), number 2", "Euclidean(2)"]
    assert factor_columns(twice, ["too", "few"]) == [None, None, None]


def test_principal_directions_survive_bad_rows():
    rows = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1, 1e-3]
    rows[3] = np.nan
    flat, others = principal(rows, rows)
    assert np.isnan(flat[3]).all()
    assert np.isfinite(np.delete(flat, 3, 0)).all()
    assert np.array_equal(flat, others, equal_nan=True)
    assert principal(np.full((4, 3), np.nan), np.zeros((4, 3)))[0].shape == (4, 2)


def test_rotation_matrices_are_no_images():
    manifold = SpecialOrthogonal(4)
    assert list(compared(manifold, Clouds(points_on(manifold), points_on(manifold)))) == ["Data", "Samples"]
    page = report.page(flow_on(manifold), fl.Dataset(points_on(manifold), manifold=manifold))
    assert "Their reconstructions" not in page


# ------------------------------------------------------------------------------------------------------------------------------ conditions


def test_angles_given_a_class_have_a_map_for_every_class():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(240) % 3
    centre = torch.tensor([-1.0, 0.0, 1.5])[label].unsqueeze(1)
    x = Torus.from_angles(centre + 0.1 * torch.randn(240, 2, generator=generator))
    data = fl.Dataset(x, torch.eye(3)[label], manifold=Torus(2), names=("phi", "psi"), condition_names=("general", "glycine", "proline"))
    page = report.page(flow_on(Torus(2), context=3), data)

    panels = [states for name, states in figures_in(page).items() if name.startswith("samples")]
    assert [len(states) for states in panels] == [3, 3, 3, 1]
    assert "All conditions at once" in headings(page)
    grid = panels[-1][0]
    titles = [note["text"] for note in grid["layout"]["annotations"]]
    assert titles == [f"{name}: {of}" for name in ("general", "glycine", "proline") for of in ("data", "samples")]
    assert len(grid["data"]) == 6
    for k, wanted in enumerate((-1.0, 0.0, 1.5)):
        assert array(grid["data"][2 * k]["x"]).mean() == pytest.approx(math.degrees(wanted), abs=5)


def test_a_condition_that_is_a_number_has_no_map_for_every_value():
    c = torch.rand(80, 1, generator=torch.Generator().manual_seed(0))
    data = fl.Dataset(points_on(Torus(2), 80), c, manifold=Torus(2))
    assert "All conditions at once" not in report.page(flow_on(Torus(2), context=1), data)


def test_class_maps_are_thinned():
    x = Torus.from_angles(torch.zeros(2500, 2))
    figure = report.class_maps({"a": (report.torus_map(x), report.torus_map(x))}, most=500)
    assert all(len(trace.x) <= 500 for trace in figure.data)


def test_rotations_given_a_condition_are_shown_at_every_setting():
    c = torch.eye(2)[torch.arange(40) % 2]
    data = fl.Dataset(points_on(ROTATIONS, 40), c, manifold=ROTATIONS)
    panels = figures_in(report.page(flow_on(ROTATIONS, context=2), data))
    assert [len(panels[f"samples-{k}"]) for k in range(3)] == [2, 2, 2]


# --------------------------------------------------------------------------------------------------------------------------------- browser

PROBE = """<script>
(function wait() {
  if (!document.documentElement.dataset.drawn) return setTimeout(wait, 50);
  const scenes = [...document.querySelectorAll('.plot[data-section="samples"]')].filter(plot => plot.layout.scene);
  const eye = { x: 0.1, y: 0.2, z: 2 };
  Plotly.relayout(scenes[0], { "scene.camera": { eye } }).then(() => setTimeout(() => {
    const empty = [...document.querySelectorAll(".plot")].filter(plot => !plot.querySelector(".main-svg")).length;
    console.log("PROBE " + JSON.stringify([scenes.length, empty, ...scenes.map(plot => plot.layout.scene.camera.eye.z)]));
  }, 500));
})();
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed, so the page is not opened")
def test_a_browser_draws_surfaces_and_turns_them_together(tmp_path):
    page = report.page(flow_on(SQUARES), fl.Dataset(points_on(SQUARES), manifold=SQUARES))
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    switches = (
        "--headless --no-sandbox --enable-unsafe-swiftshader --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --hide-scrollbars --enable-logging=stderr --v=0 --virtual-time-budget=20000 --window-size=1000,1600"
    )
    paths = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run([CHROMIUM, *switches.split(), *paths], capture_output=True, text=True, timeout=120)
    probes = [line for line in done.stderr.splitlines() if "PROBE" in line]
    assert len(probes) == 1, done.stderr[-2000:]
    assert json.loads(re.search(r"PROBE (\[.*?\])", probes[0])[1]) == [3, 0, 2, 2, 2]
    assert "Content Security Policy" not in done.stderr
