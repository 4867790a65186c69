"""The page about a flow: what stands in it, that it stands alone, and that a browser draws it."""

import json
import math
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from plotly.offline import get_plotlyjs

import fluvial as fl
from fluvial import report
from fluvial.report.globe import HEIGHT, WIDTH, log_density_limits, mollweide
from fluvial.report.histograms import Histogram, most_different
from fluvial.report.learning import best_row
from fluvial.report.pictures import image_frame
from fluvial.report.plane import window
from fluvial.report.settings import settings
from fluvial.report.theme import thinned
from fluvial.runs import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT = 8_000_000  # bytes
SMALL = {"width": 16, "blocks": 1}


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture(scope="module")
def moons():
    data = fl.data.moons(600, seed=0)
    flow = seeded(lambda: fl.flows.free_form(2, **SMALL))
    history = fl.fit(flow, data[:400], max_steps=60, validate_every=10, batch_size=64, progress=False)
    return flow, data[400:], history


@pytest.fixture(scope="module")
def conditional():
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(500, 1, generator=generator)
    x = torch.randn(500, 2, generator=generator) * (0.2 + c)
    flow = seeded(lambda: fl.flows.free_form(2, context=1, **SMALL))
    return flow, fl.Dataset(x, c, names=("pt", "eta"), units=("GeV", ""), condition_names=("T",))


def figures_in(page):
    """The figures of every plot, by the plot's name."""
    found = re.findall(r'<script type="application/json" id="(\S+)-data">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def own_text(page):
    """The page without the plotting library."""
    start = page.index(get_plotlyjs()[:200])
    return page[:start] + page[page.index("</script>", start) :]


# ------------------------------------------------------------------------------------------------------------------------- whole pages


def test_page_of_a_plane_has_every_section_and_stands_alone(moons):
    flow, data, history = moons
    found = fl.metrics.figures(flow, data)
    check = {
        "title": "made up",
        "rows": [
            {"name": "NLL", "value": 1.25, "error": 0.1, "verdict": "good", "meaning": "m", "advice": "a"},
            {"name": "cycle", "value": None, "error": None, "verdict": "bad", "meaning": "m", "advice": "do this & that"},
        ],
    }
    page = report.page(flow, data, history=history, check=check, metrics=found, title="A <b>bold</b> title")

    assert len(page.encode()) < LIMIT
    for key in ("training", "samples", "marginals", "reconstruction", "latent", "check", "figures", "configuration"):
        assert f'<section id="{key}"' in page
    assert "<h1>A &lt;b&gt;bold&lt;/b&gt; title</h1>" in page
    assert f"<b>{found['nll']}</b>" in page
    assert "1 bad (cycle)" in page
    assert "do this &amp; that" in page
    assert [name for name in figures_in(page) if name.startswith("samples")] == [f"samples-{k}" for k in range(4)]
    assert all(len(states) == 1 for states in figures_in(page).values())


def test_page_names_no_address_that_a_browser_would_fetch(moons):
    flow, data, history = moons
    page = own_text(report.page(flow, data, history=history))
    assert not re.search(r"(?:src|href|action|srcset|poster|data)\s*=\s*[\"']?\s*(?:https?:)?//", page)
    assert not re.search(r"url\(|@import|<link|<iframe|<img|importScripts|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page
    types = {trace["type"] for states in figures_in(page).values() for figure in states for trace in figure["data"]}
    assert types <= {"scatter", "heatmap", "contour", "bar", "image"}  # no map tiles, no outlines, no WebGL


def test_what_is_missing_is_said_with_the_way_to_make_it(moons):
    flow, data, _ = moons
    page = report.page(flow, data)
    for hint in ("history=fluvial.fit(", "check=fluvial.check(", "metrics=fluvial.metrics.figures("):
        assert hint in page
    assert not any(name.startswith("training") for name in figures_in(page))


def test_page_of_the_sphere_has_maps():
    data = fl.data.airports().split().test[:300]
    flow = seeded(lambda: fl.flows.free_form(manifold=fl.Sphere(2), **SMALL))
    page = report.page(flow, data)
    maps = [figures_in(page)[f"samples-{k}"][0] for k in range(3)]
    assert [figure["data"][0]["type"] for figure in maps] == ["heatmap", "scatter", "scatter"]
    assert "longitude, degrees" in page


def test_page_of_images_shows_data_reconstructions_and_samples():
    data = fl.data.digits()[:120]
    flow = seeded(lambda: fl.flows.free_form(64, latent=4, **SMALL))
    page = report.page(flow, data)
    panels = figures_in(page)
    assert [panels[f"samples-{k}"][0]["data"][0]["type"] for k in range(3)] == ["heatmap"] * 3
    for title in ("Data", "Their reconstructions", "Samples", "The worst rows"):
        assert f"<h3>{title}</h3>" in page
    assert "64 dimensions are squeezed through 4" in page


@pytest.mark.parametrize(
    ("shape", "flow"),
    [
        ((1,), lambda: fl.flows.free_form(1, **SMALL)),
        ((5,), lambda: fl.flows.free_form(5, **SMALL)),
        ((2,), lambda: fl.flows.free_form(2, latent=1, **SMALL)),
        ((3,), lambda: fl.Flow(fl.codecs.Standardize(3), fl.bases.Normal(3))),
    ],
    ids=["line", "five columns", "curve in the plane", "bijection"],
)
def test_page_of_other_spaces(shape, flow):
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    page = report.page(seeded(flow), x)
    assert figures_in(page)["samples-0"]
    assert len(page.encode()) < LIMIT


def test_page_of_a_circle():
    turn = torch.linspace(0, 6, 200)
    data = fl.Dataset(torch.stack([turn.cos(), turn.sin()], -1), manifold=fl.Sphere(1))
    page = report.page(seeded(lambda: fl.flows.free_form(manifold=fl.Sphere(1), **SMALL)), data)
    assert [trace["name"] for trace in figures_in(page)["samples-0"][0]["data"]] == ["data", "samples", "density"]


def test_condition_is_switched_in_the_sample_panels_alone(conditional):
    page = report.page(*conditional)
    panels = figures_in(page)
    assert {name: len(states) for name, states in panels.items() if name.startswith("samples")} == {f"samples-{k}": 5 for k in range(3)}
    assert all(len(states) == 1 for name, states in panels.items() if not name.startswith("samples"))
    labels = json.loads(re.search(r'data-labels="(.*?)"', page)[1].replace("&#34;", '"'))
    assert len(labels) == 5
    assert all(re.fullmatch(r"T = 0\.\d+", label) for label in labels)
    assert "pt [GeV]" in page


def test_an_unconditional_flow_ignores_the_condition_of_the_data(conditional):
    _, data = conditional
    page = report.page(seeded(lambda: fl.flows.free_form(2, **SMALL)), data)
    assert 'class="chooser"' not in page
    assert len(report.latent(seeded(lambda: fl.flows.free_form(2, **SMALL)), data)) == 3


def test_the_same_seed_gives_the_same_page_and_the_flow_stays_as_it_was(moons):
    flow, data, _ = moons
    flow.train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    state = torch.random.get_rng_state()
    first, second = (report.page(flow, data, seed=3) for _ in range(2))
    assert figures_in(first) == figures_in(second)
    assert figures_in(first) != figures_in(report.page(flow, data, seed=4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert flow.training
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    flow.eval()


def test_a_flow_gone_wrong_still_gets_its_page():
    flow = seeded(lambda: fl.flows.free_form(2, **SMALL))
    with torch.no_grad():
        next(iter(flow.codec.parameters())).fill_(math.nan)
    page = report.page(flow, torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
    assert "no distance is finite" in page


def test_errors_say_what_is_wrong(moons, conditional):
    flow, data, _ = moons
    with pytest.raises(TypeError, match="expected a Flow, got Linear"):
        report.page(torch.nn.Linear(2, 2), data)
    with pytest.raises(ValueError, match=r"expected data of shape \(n, 2\)"):
        report.page(flow, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="conditional"):
        report.page(conditional[0], data)
    with pytest.raises(ValueError, match="conditional"):
        report.samples(conditional[0], data)
    with pytest.raises(ValueError, match="no rows"):
        report.curves([])


# --------------------------------------------------------------------------------------------------------------------------- run folders

RECIPE = """
title: Moons, briefly
published: [{figure: test NLL, value: 0.4321, source: Nobody et al. (1900)}]
flow: {class_path: fluvial.flows.free_form, init_args: {features: 2, width: 16, blocks: 1}}
data: {class_path: fluvial.data.moons, init_args: {n: 500, seed: 0}}
"""


@pytest.fixture
def run(tmp_path, moons):
    flow, _, history = moons
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    fl.save(flow, tmp_path / "model.safetensors")
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history.rows))
    return tmp_path


def test_run_folder_with_everything(run):
    metrics = {
        "figures": {"nll": {"value": 9.87, "standard_error": 0.12}},
        "references": {"uniform": {"nll": {"value": 2.53, "standard_error": 0.0}}, "truth": {"excess": {"value": 0.77, "standard_error": 0.01}}},
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "9.9.9"}, "command": ["fluvial", "fit"], "git": None}))
    rows = [{"name": "NLL", "value": 1.0, "error": None, "verdict": "doubtful", "meaning": "m", "advice": "a"}]
    (run / "check.json").write_text(json.dumps({"title": "t", "ok": True, "rows": rows}))

    path = report.write(run)

    page = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    assert "<h1>Moons, briefly</h1>" in page
    assert "50 held-out test rows" in page
    # Taken over, not computed again.
    assert "test NLL (decoder) 9.87 ± 0.12 nats" in page
    assert "uniform 2.53, published 0.432" in page
    assert "0.770 ± 0.010" in page
    assert "Nobody et al. (1900)" in page
    assert "1 doubtful (NLL)" in page
    assert "9.9.9" in page
    assert "class_path: fluvial.data.moons" in page
    assert "training-0" in figures_in(page)


def test_run_folder_without_figures_says_which_command_makes_them(run, tmp_path):
    (run / "history.jsonl").unlink()
    path = report.write(str(run), output=tmp_path / "elsewhere.html")
    page = path.read_text(encoding="utf-8")
    assert path.name == "elsewhere.html"
    assert not (run / "report.html").exists()
    for command in ("fluvial evaluate", "fluvial check", "no history.jsonl"):
        assert command in page


@pytest.mark.parametrize(
    "content",
    [b"[1]", b"3", b'{"figures": {"nll": {"val', b"\xff\xfe\x00", b"", b"[" * 100_000, b'{"figures": [1], "rows": [1], "versions": 1}'],
)
def test_broken_side_files_count_as_missing_and_are_named(run, content):
    for name in ("metrics.json", "check.json", "environment.json"):
        (run / name).write_bytes(content)
    page = report.write(run).read_text(encoding="utf-8")
    for name in ("metrics.json", "check.json", "environment.json"):
        assert f"{name} counts as missing, because " in page
    assert "run fluvial evaluate" in page


@pytest.mark.parametrize("entry", ['{"value": [1]}', '{"value": "1"}', '{"value": 1, "standard_error": {}}', "true", "[1]"])
def test_figures_of_the_wrong_kind_count_as_missing(run, entry):
    (run / "metrics.json").write_text(f'{{"figures": {{"nll": {entry}}}}}')
    assert "metrics.json counts as missing" in report.write(run).read_text(encoding="utf-8")


def test_broken_lines_of_the_history_are_left_out_with_one_note(run):
    whole = (run / "history.jsonl").read_bytes()
    (run / "history.jsonl").write_bytes(b'[1]\n\xff\n{"loss": 1}\n' + whole + whole.split(b"\n")[0][:-9])
    page = report.write(run).read_text(encoding="utf-8")
    assert "training-0" in figures_in(page)
    assert page.count("lines 1, 2, 3, 10 of it left out") == 1
    (run / "history.jsonl").write_bytes(b'{"step": 1')
    page = report.write(run).read_text(encoding="utf-8")
    assert "line 1 of it left out" in page
    with pytest.warns(UserWarning, match="line 1 of it left out"):
        assert Run(run).history() == []


def test_run_folder_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recipe\.yaml"):
        report.write(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        report.write(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------------- figures


def test_mollweide_keeps_areas_and_is_undone_by_the_grid_of_the_map():
    assert math.pi * WIDTH * HEIGHT == pytest.approx(4 * math.pi)
    asked = []

    def log_prob(x):
        asked.append(x)
        return x[:, 2] + 0.1 * x[:, 1]

    trace = report.world_map(log_prob, like=torch.zeros((), dtype=torch.float64)).data[0]
    points = asked[0].numpy()
    assert np.allclose(np.linalg.norm(points, axis=1), 1)
    x, y = mollweide(np.arctan2(points[:, 1], points[:, 0]), np.arcsin(points[:, 2]))
    inside = ~np.isnan(trace.z)
    grid_x, grid_y = np.meshgrid(trace.x, trace.y)
    assert np.allclose(x, grid_x[inside], atol=1e-5)
    assert np.allclose(y, grid_y[inside], atol=1e-5)
    # Equal areas: the mean over the map is the mean over the sphere.
    assert abs(points.mean(0)).max() < 2e-3
    assert (points[:, 2] ** 2).mean() == pytest.approx(1 / 3, abs=3e-3)
    # North is up, east is right.
    assert np.nanmean(trace.z[-10:]) > np.nanmean(trace.z[:10])
    assert np.nanmean(trace.z[50, 150:]) > np.nanmean(trace.z[50, :50])


def test_map_of_points_puts_them_where_they_are():
    poles_and_equator = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    trace = report.world_map(poles_and_equator).data[0]
    assert np.allclose(np.stack([trace.x, trace.y], 1), [[0, HEIGHT], [0, -HEIGHT], [0, 0], [WIDTH / 2, 0]], atol=1e-4)


def test_colours_of_a_flat_density_are_not_stretched():
    low, high = log_density_limits(np.full(10, -2.53) + 1e-4 * np.arange(10))
    assert high - low == pytest.approx(1)
    assert log_density_limits(np.array([-np.inf, -50.0, 1.0])) == (-9.0, 1.0)
    assert log_density_limits(np.array([np.nan])) == (-1.0, 0.0)


def test_density_over_the_plane_is_the_density():
    normal = torch.distributions.Normal(torch.tensor([1.0, 0.0]), torch.tensor([0.3, 0.6]))
    trace = report.density(lambda x: normal.log_prob(x).sum(-1), ((-2, 4), (-3, 3))).data[0]
    cell = (6 / 140) ** 2
    assert trace.z.sum() * cell == pytest.approx(1, abs=1e-4)
    # The first column runs to the right.
    assert (trace.z.sum(0) * trace.x).sum() * cell == pytest.approx(1, abs=1e-3)
    assert (trace.z.sum(1) * trace.y).sum() * cell == pytest.approx(0, abs=1e-3)


def test_scatter_is_thinned_by_weight():
    assert len(thinned(10)) == 10
    assert len(thinned(10_000)) == 3000
    weight = torch.zeros(10_000)
    weight[:2] = torch.tensor([3.0, 1.0])
    chosen = thinned(10_000, weight)
    assert set(chosen) == {0, 1}
    assert (chosen == 0).mean() == pytest.approx(0.75, abs=0.05)
    assert len(thinned(3, torch.zeros(3))) == 0


def test_window_holds_the_bulk_and_survives_bad_rows():
    cloud = np.array([[0.0, 0.0], [1.0, 2.0], [np.nan, 5.0]])
    (x_low, x_high), (y_low, y_high) = window(cloud)
    assert x_low < 0.01 < 0.99 < x_high < 1.2
    assert y_low < 0.01 < 1.99 < y_high < 2.4
    assert window(np.full((2, 2), np.nan)) == ((-1.16, 1.16), (-1.16, 1.16))


def test_histogram_is_normalised_by_all_weight_and_has_poisson_errors():
    found = Histogram.of(np.array([0.5, 0.5, 1.5, 9.0]), np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0, 4.0]))
    assert found.density.tolist() == [3 / 8, 1 / 8]
    assert found.error.tolist() == pytest.approx([math.sqrt(5) / 8, 1 / 8])


def test_marginal_ratio_follows_weights_and_leaves_the_panel_as_triangles():
    data, edges = np.repeat([0.5, 1.5], 100), np.array([0.0, 1.0, 2.0])
    same = report.marginal(data, data, edges=edges).data[-1]
    assert same.y.tolist() == [1, 1]
    weighted = report.marginal(data, data, weight=torch.tensor([3.0] * 100 + [1.0] * 100), edges=edges).data[-1]
    assert weighted.customdata.tolist() == pytest.approx([2 / 3, 2])
    assert list(weighted.marker.symbol) == ["circle", "triangle-up"]
    assert np.isnan(weighted.error_y.array[1])


def test_corner_takes_the_columns_that_differ():
    rows = torch.randn(400, 9, generator=torch.Generator().manual_seed(0))
    other = rows.clone()
    other[:, 7] += 1
    assert 7 in most_different(rows.numpy(), other.numpy(), most=3)
    figure = report.corner(rows, other, names=[f"column {k}" for k in range(9)], most=3)
    assert len([trace for trace in figure.data if trace.type == "contour"]) == 6
    assert any(axis.title.text == "column 7" for axis in figure.select_xaxes())


def test_contours_of_the_corner_hold_their_share():
    rows = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    contour = next(trace for trace in report.corner(rows, rows).data if trace.type == "contour")
    x, y = np.meshgrid(contour.x, contour.y)
    inside = (contour.z < 0.5) & np.isfinite(contour.z)
    radius = math.sqrt(-2 * math.log(0.5))  # of the disc that holds half of a standard normal
    area = inside.sum() * (contour.x[1] - contour.x[0]) * (contour.y[1] - contour.y[0])
    assert area == pytest.approx(math.pi * radius**2, rel=0.15)
    assert np.hypot(x, y)[inside].max() < 1.35 * radius


def test_curves_mark_the_best_step_and_live_with_gaps():
    rows = [
        {"step": 10, "loss": 3.0, "nll": None, "monitor": None, "reconstruction": 0.1, "beta": 10.0, "learning_rate": 1e-3},
        {"step": 20, "loss": 2.0, "nll": 1.0, "nll_error": 0.1, "monitor": 1.0, "reconstruction": 0.0, "surrogate": 1.0, "seconds": 700.0},
        {"step": 30, "loss": 1.0, "nll": 2.0, "nll_error": 0.1, "monitor": 2.0, "reconstruction": 0.1, "surrogate": 1.0},
    ]
    figure = report.curves(rows)
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["NLL (decoder)", "loss", "surrogate", "validation, root mean square", "β", "learning rate"]
    assert best_row(rows) == rows[1]
    assert {shape.x0 for shape in figure.layout.shapes} == {20}
    assert len(figure.layout.shapes) == 5
    nll = next(trace for trace in figure.data if trace.name == "NLL (decoder)")
    assert list(nll.x) == [20, 30]
    assert nll.customdata[0] == "11.7 min"
    assert "no figures" in report.curves([{"step": 1}]).layout.annotations[0].text


def test_distances_take_weights_and_exact_rows():
    heavy = report.distances(np.array([0.01] * 9 + [1.0]), weight=torch.tensor([0.1] * 9 + [99.1])).layout.annotations
    assert "median 1" in heavy[0].text
    assert "exactly" in report.distances(np.zeros(5)).layout.annotations[0].text


def test_image_frames():
    assert image_frame((8, 8)).shape == (1, 8, 8)
    assert image_frame((3, 4, 5)).shape == (3, 4, 5)
    assert image_frame((64,)) is None
    assert image_frame((2,), ("pt", "pixel_1_1")) is None
    digits = fl.data.digits(drop_constant=True)
    frame = image_frame(digits.spec.event_shape, digits.spec.names)
    whole = fl.data.digits().x[:5].reshape(5, 1, 8, 8)
    assert np.array_equal(frame.fill(digits.x[:5].numpy()), whole.numpy())
    colour = report.images(torch.rand(2, 3, 4, 4), image_frame((3, 4, 4))).data[0]
    assert isinstance(colour, go.Image)


def test_settings_take_values_where_they_are_few_and_quantiles_where_not():
    one_hot = settings(torch.eye(3)[torch.tensor([2, 0, 2, 1])], 4)
    assert [setting.label for setting in one_hot] == ["class 0", "class 1", "class 2"]
    assert [setting.rows.tolist() for setting in one_hot] == [[1], [3], [0, 2]]

    c = torch.arange(1000.0).unsqueeze(1)
    many = settings(c, 1000, names=["T"])
    assert [setting.label for setting in many] == ["T = 50", "T = 250", "T = 500", "T = 749", "T = 949"]
    middle = many[2].rows
    assert len(middle) == 100
    assert abs(c[middle, 0] - 500).max() <= 50
    assert not many[2].exact

    entries = settings({"a": torch.zeros(4, 1), "b": torch.tensor([[1.0], [2.0], [1.0], [2.0]])}, 4)
    assert [setting.label for setting in entries] == ["a = 0, b = 1", "a = 0, b = 2"]
    assert entries[0].repeated(7)["b"].shape == (7, 1)
    assert settings(None, 5)[0].rows.tolist() == [0, 1, 2, 3, 4]


def test_figures_on_their_own(moons):
    flow, data, _ = moons
    assert list(report.samples(flow, data)) == ["Density of the flow", "True density", "Data", "Samples"]
    assert list(report.samples(flow, replace_truth(data))) == ["Density of the flow", "Data", "Samples"]
    assert list(report.latent(flow, data)) == ["Encoded data over the base", "Latent 0", "Latent 1"]
    assert all(isinstance(figure, go.Figure) for figure in report.latent(flow, data).values())


def replace_truth(data):
    return fl.Dataset(data.x, spec=replace(data.spec))


def test_importing_the_room_loads_nothing_heavy():
    heavy = "plotly jinja2 scipy pandas matplotlib lightning sklearn"
    code = f"import sys, fluvial.report as r; r.write; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------------------------- browser

PROBE = """<script>
(function wait() {
  const drawn = document.documentElement.dataset.drawn;
  if (!drawn) return setTimeout(wait, 50);
  const input = document.querySelector(".chooser input");
  if (input) { input.value = input.max; input.dispatchEvent(new Event("input")); }
  const empty = [...document.querySelectorAll(".plot")].filter(plot => !plot.querySelector(".main-svg")).length;
  const wide = document.documentElement.scrollWidth > innerWidth;
  console.log("PROBE " + JSON.stringify([Number(drawn), empty, wide, document.querySelector(".chooser output")?.textContent ?? ""]));
})();
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed, so the page is not opened")
def test_a_browser_draws_the_page_without_complaint(conditional, tmp_path):
    page = report.page(*conditional, history=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --hide-scrollbars --enable-logging=stderr --v=0 --virtual-time-budget=20000 --window-size=1000,1600"
    )
    paths = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run([CHROMIUM, *switches.split(), *paths], capture_output=True, text=True, timeout=120)

    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    probes = [line for line in console if "PROBE" in line]
    assert len(probes) == 1, done.stderr
    assert console == probes
    drawn, empty, too_wide, label = json.loads(re.search(r"PROBE (\[.*?\])", probes[0].replace('\\"', '"'))[1])
    assert drawn == len(figures_in(page))
    assert empty == 0
    assert not too_wide
    assert label.startswith("T = 0.")
    assert len(colours_of(tmp_path / "page.png")) > 40


def colours_of(path: Path) -> set[int]:
    """The bytes that occur in the filtered rows of a PNG file: a blank page has very few."""
    content, at, packed = path.read_bytes(), 8, b""
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            packed += content[at + 8 : at + 8 + length]
        at += length + 12
    return set(zlib.decompress(packed))
