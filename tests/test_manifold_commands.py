"""The command line on curved spaces: products in recipes, rotations in files, and what is said of runs, results and pages."""

import math
import os
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

import fluvial as fl
from fluvial import recipes
from fluvial.cli import main
from fluvial.commands.results import table
from fluvial.commands.rotation_columns import rotation_names, rotations
from fluvial.commands.sample import QUATERNION, ROTATION_VECTOR
from fluvial.manifolds import Euclidean, Product, SpecialOrthogonal, Sphere, from_projection
from fluvial.recipes.recipe import Recipe
from fluvial.recipes.spelling import with_named_factors
from fluvial.report import sections
from fluvial.report.html import summary, tiles
from fluvial.report.material import Material

SO3 = SpecialOrthogonal(3)
POSES = Product(SO3, Euclidean(3))
FACTORS = "[{class_path: fluvial.SpecialOrthogonal, init_args: {n: 3}}, {class_path: fluvial.Euclidean, init_args: {event_shape: 3}}]"


def of_poses(product):
    return (
        "flow:\n  class_path: fluvial.flows.free_form\n"
        f"  init_args: {{width: 8, blocks: 1, context: 2, manifold: {{class_path: {product}, init_args: {{factors: {FACTORS}}}}}}}\n"
        "data: {class_path: fluvial.data.poses, init_args: {n: 300}}\n"
        "fit: {max_steps: 4, learning_rate: 1e-3, batch_size: 32, validation_points: 32}\n"
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a run of poses."""
    place = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(place)
    try:
        Path("mine.yaml").write_text(of_poses("fluvial.Product"))
        assert main(["fit", "mine.yaml"]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def at(workplace, monkeypatch):
    """The same, as working folder."""
    monkeypatch.chdir(workplace)
    return workplace


# --------------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("product", ["fluvial.Product", "fluvial.manifolds.Product", "'fluvial.Product'", "fluvial.manifolds.product"])
def test_products_in_recipes_take_a_list_of_factors(product):
    assert Recipe.parse("mine", of_poses(product)).flow().manifold == POSES


def test_products_of_products_and_of_the_latent_are_found():
    inner = "{class_path: fluvial.Product, init_args: {factors: [&a {class_path: fluvial.Sphere, init_args: {dim: 2}}, *a]}}"
    text = f"# a comment\nm: {{class_path: fluvial.Product, init_args: {{factors: [{inner}]}}}}\nn:\n- {inner.replace('&a', '&b')}\n"
    assert with_named_factors(text) == text.replace("fluvial.Product", "fluvial.manifolds.product")


def test_what_is_no_product_of_a_list_stays():
    text = "flow: {class_path: fluvial.Product, init_args: {factor: []}}\ntitle: fluvial.Product\n"
    assert with_named_factors(text) == text


def test_another_argument_of_a_product_is_answered_with_the_one_to_use():
    with pytest.raises(ValueError, match=r"fluvial\.manifolds\.product takes them as init_args: \{factors: "):
        Recipe.parse("mine", of_poses("fluvial.Product").replace("factors:", "factor:"))


def test_the_suggestion_stands_before_the_list():
    said = recipes.unknown("floodz")
    assert said.index("did you mean floods?") < said.index("airports")


# ------------------------------------------------------------------------------------------------------------------- rotations


def test_rotations_in_a_product_as_quaternions_and_vectors():
    vectors = torch.tensor([[0.3, -0.2, 0.1], [0.0, 2.0, 0.0]], dtype=torch.float64)
    positions = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    x = POSES.join(SO3.from_rotation_vector(vectors), positions).numpy()
    assert torch.tensor(rotations(x, POSES, form=ROTATION_VECTOR)).allclose(torch.cat([vectors, positions], 1))
    turned = torch.tensor(rotations(x, POSES, form=QUATERNION))
    assert turned[1].allclose(torch.tensor([0.0, math.sin(1.0), 0.0, math.cos(1.0), 3.0, 4.0, 5.0], dtype=torch.float64))


def test_several_rotations_are_numbered_and_nested_products_taken_apart():
    manifold = Product(SO3, Product(Sphere(2), SO3))
    names = tuple(f"x{k}" for k in range(21))
    assert rotation_names(names, manifold, form=ROTATION_VECTOR) == ("rx_0", "ry_0", "rz_0", "x9", "x10", "x11", "rx_1", "ry_1", "rz_1")


def test_sample_writes_quaternions_and_rotation_vectors(at, capsys):
    words = ["sample", "mine", "-n", "20", "--condition", "-0.5,0.5"]
    for option, file in (("--quaternion", "q.parquet"), ("--rotation-vector", "r.parquet")):
        assert main([*words, option, "-o", file]) == 0
    assert main([*words, "-o", "x.npy"]) == 0
    q, r = (pyarrow.parquet.read_table(file).to_pandas() for file in ("q.parquet", "r.parquet"))
    assert list(q.columns[:4]) == list(QUATERNION)
    assert list(r.columns[:3]) == list(ROTATION_VECTOR)
    assert list(q.columns[4:]) == list(r.columns[3:])
    first = SO3.from_quaternion(q.to_numpy(copy=True)[:, :4])
    assert SO3.distance(first, SO3.from_rotation_vector(r.to_numpy(copy=True)[:, :3])).max() < 1e-6
    assert (q.to_numpy()[:, -2:] == [-0.5, 0.5]).all()


def test_sample_writes_rotations_alone(tmp_path):
    fl.save(fl.flows.free_form(manifold=SO3, width=8, blocks=1).eval(), tmp_path / "model.safetensors")
    assert main(["sample", str(tmp_path / "model.safetensors"), "-n", "5", "--quaternion", "-o", str(tmp_path / "q.csv")]) == 0
    found = pyarrow.csv.read_csv(tmp_path / "q.csv").to_pandas()
    assert list(found.columns) == list(QUATERNION)
    assert torch.tensor(found.to_numpy()).norm(dim=1).allclose(torch.ones(5, dtype=torch.float64))


def test_other_spaces_have_no_quaternions(tmp_path, capsys):
    fl.save(fl.flows.free_form(manifold=Sphere(2), width=8, blocks=1).eval(), tmp_path / "model.safetensors")
    words = ["sample", str(tmp_path / "model.safetensors"), "-n", "5", "-o", str(tmp_path / "q.csv")]
    assert main([*words, "--rotation-vector"]) == 2
    assert "--rotation-vector is for SpecialOrthogonal(3), alone or in a Product" in capsys.readouterr().err
    assert main([*words, "--rotation-vector", "--quaternion"]) == 2
    assert "not allowed with" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- progress and evaluation


def test_short_runs_tell_their_loss(capsys):
    flow = fl.flows.free_form(2, width=8, blocks=1)
    history = fl.fit(flow, fl.data.moons(200, seed=0), max_steps=3, batch_size=32)
    said = capsys.readouterr().err
    assert "loss nan" not in said
    assert f"step 3 · loss {history.rows[-1]['loss']:.4g}" in said


def test_runs_that_depart_say_so_in_place_of_the_note(at, capsys):
    few = ["--data.n", "600", "--fit.batch_size", "64", "--fit.max_steps", "3", "--fit.progress", "false"]
    assert main(["fit", "so3-16-quick", *few, "--flow.width", "8", "--flow.blocks", "1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "so3-16-quick"]) == 0
    said = capsys.readouterr().out
    assert "not as packaged: " in said
    assert "note: " not in said
    assert main(["recipes", "--results", "runs"]) == 0
    told = next(line for line in said.splitlines() if "not as packaged" in line).strip()
    assert told in " ".join(capsys.readouterr().out.split())


# --------------------------------------------------------------------------------------------------------------------- results


def test_what_the_data_lack_is_said_once(monkeypatch):
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    text = table([])
    assert text.count("FLUVIAL_DATA") == 1
    assert text.count("earth/earthquake.csv") == 1
    assert len(max(text.splitlines(), key=len)) < 120


def test_another_reason_is_given_once_for_all_it_concerns(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUVIAL_DATA", str(tmp_path))
    text = " ".join(table([]).split())
    assert "not run (floods, floods-quick" in text


# ------------------------------------------------------------------------------------------------------------------------ pages


def material_on(manifold, **more):
    x = manifold.project(0.3 * torch.randn(40, *manifold.event_shape, generator=torch.Generator().manual_seed(0)))
    flow = fl.flows.free_form(manifold=manifold, width=8, blocks=1, **more).eval()
    return Material.of(flow, fl.Dataset(x, manifold=manifold), metrics={"figures": {"reconstruction": {"value": 0.5, "standard_error": 0.1}}})


def axis(material):
    return sections.reconstruction(material).panels[0].figures[0].layout.xaxis.title.text


def test_both_reconstruction_errors_say_what_they_are():
    material = material_on(SO3)
    assert "reconstruction (chord)" in [name for name, _, _ in tiles(material)]
    assert "reconstruction error (chord)" in summary(material)
    assert axis(material) == "geodesic distance between a row and its reconstruction (radians)"


def test_flat_space_needs_no_such_words():
    material = material_on(Euclidean(2))
    assert "reconstruction" in [name for name, _, _ in tiles(material)]
    assert axis(material) == "distance between a row and its reconstruction"


def test_units_only_where_there_is_one():
    assert axis(material_on(POSES)) == "geodesic distance between a row and its reconstruction"
    projected = from_projection(lambda x: x / x.norm(dim=-1, keepdim=True), 1, event_shape=(2,))
    assert (
        axis(material_on(projected, base=fl.bases.UniformByProjection(projected, low=-2.0, high=2.0, reach=0.5, points=2000)))
        == "straight-line distance (chord) between a row and its reconstruction"
    )
