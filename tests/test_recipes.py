"""Recipes: each takes one step of optimisation, and what is wrong with one is said in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file

import fluvial as fl
from fluvial import recipes
from fluvial.cli import main
from fluvial.recipes.recipe import Recipe

TINY = ["--fit.max_steps", "1", "--fit.batch_size", "64", "--fit.validation_points", "64"]
NARROW = {"fluvial.flows.free_form": ["--flow.width", "8"]}
MINE = """
title: mine
flow:
  class_path: fluvial.flows.free_form
  init_args: {features: 2, width: 8, blocks: 1}
data:
  class_path: fluvial.data.moons
  init_args: {n: 500}
fit: {max_steps: 2}
"""
SPHERE = """
flow:
  class_path: fluvial.flows.free_form
  init_args:
    manifold: {class_path: fluvial.Sphere, init_args: {dim: 2}}
    base:
      class_path: fluvial.bases.VonMisesFisherMixture
      init_args: {manifold: {class_path: fluvial.Sphere, init_args: {dim: 2}}, components: 8}
data: fluvial.data.airports
objective:
  class_path: fluvial.objectives.FreeFormLikelihood
  init_args: {terms: {z_sample_reconstruction: 50.0}}
"""


def few_rows(recipe):
    """What makes a recipe's data small, where it can be."""
    data = recipe.section("data")
    if data is None or "n" not in data.get("init_args", {}):
        return []
    return ["--data.n", "1000", *(["--data.held_out", "null"] if "held_out" in data["init_args"] else [])]


@pytest.mark.parametrize("name", [name for name in recipes.names() if not Recipe.parse(name, recipes.text(name)).is_study])
def test_every_recipe_takes_a_step(name, tmp_path, request, monkeypatch, capsys):
    recipe = Recipe.parse(name, recipes.text(name))
    small = few_rows(recipe)
    if "FLUVIAL_DATA" in recipe.title:
        monkeypatch.setenv("FLUVIAL_DATA", str(request.getfixturevalue("real_data")))
        try:
            Recipe.parse(name, recipes.text(name), small).dataset()
        except FileNotFoundError as error:
            pytest.skip(str(error))
    run = tmp_path / "run"
    if recipe.gaussianize is None:
        narrow = ["--flow.blocks", "1", *NARROW.get(recipe.section("flow")["class_path"], ["--flow.hidden", "[8]"])]
    else:
        narrow = ["--gaussianize.max_layers", "1"]
    assert main(["fit", name, "-o", str(run), *TINY, *narrow, *small, "--fit.progress", "false"]) == 0
    printed = capsys.readouterr().out
    assert "stopped by max_steps after 1 steps" in printed
    assert f"fluvial evaluate {run}" in printed
    flow = fl.load(run / "model.safetensors")
    rows = Recipe.parse(name, (run / "recipe.yaml").read_text()).dataset()[:8]
    assert torch.isfinite(flow.log_prob(rows.x, rows.c)).all()
    assert flow.spec is not None
    environment = json.loads((run / "environment.json").read_text())
    assert environment["recipe"] == name
    assert environment["versions"]["torch"] == torch.__version__


def test_the_list_names_targets_and_where_they_are_printed(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for name in recipes.names():
        assert f"\n{name} " in printed
    assert "test NLL 0.51 (Sorrenson et al. 2023, arXiv:2312.09852)" in printed
    assert "test NLL -2.25 (Sorrenson et al. 2023, arXiv:2312.09852)" in printed
    unpublished = [name for name in recipes.names() if not Recipe.parse(name, recipes.text(name)).published]
    assert printed.count(recipes.NOT_PUBLISHED) == len(unpublished) >= 5
    assert main(["recipes", "moons"]) == 0
    assert capsys.readouterr().out == recipes.text("moons")


@pytest.mark.parametrize("name", recipes.names())
def test_published_figures_have_a_source(name):
    for entry in Recipe.parse(name, recipes.text(name)).published:
        assert entry["source"]
        assert "arXiv:" in entry["url"]


def test_a_resolved_recipe_is_whole_and_parses_to_itself():
    recipe = Recipe.parse("mine", MINE, ["--fit.max_epochs", "20", "--flow.init_args.width", "16", "--data.init_args.noise=0.2"])
    written = recipe.to_yaml()
    again = Recipe.parse("mine", written)
    assert again.to_yaml() == written
    assert again.fit["max_epochs"] == 20
    assert again.fit["learning_rate"] == 1e-3  # a default, written out
    assert sum(p.numel() for p in again.flow().parameters()) > sum(p.numel() for p in Recipe.parse("mine", MINE).flow().parameters())
    assert again.dataset().truth.noise == 0.2


def test_weights_at_the_start_follow_the_seed_and_nothing_else():
    def weights(*overrides):
        return Recipe.parse("mine", MINE, overrides).flow().state_dict()

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = weights()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = weights(), weights("--fit.seed", "1")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_objective_is_built_and_overridden():
    assert Recipe.parse("mine", MINE).objective() is None
    objective = Recipe.parse("sphere", SPHERE, ["--objective.beta", "10", "--objective.terms.x_sample_reconstruction", "3"]).objective()
    assert objective.beta == 10
    assert objective.terms == {"z_sample_reconstruction": 50.0, "x_sample_reconstruction": 3.0}
    named = Recipe.parse("mine", MINE, ["--objective", "fluvial.objectives.FreeFormLikelihood", "--objective.beta=10"]).objective()
    assert named.beta == 10


def test_splits_are_those_of_the_recipe():
    splits = Recipe.parse("mine", MINE, ["--split.fractions", "[0.5, 0.3, 0.2]", "--split.seed", "7"]).splits()
    assert [len(part) for part in splits] == [250, 150, 100]
    expected = fl.data.moons(500).split((0.5, 0.3, 0.2), 7)
    assert torch.equal(splits.test.x, expected.test.x)
    with pytest.raises(ValueError, match="leave no validation rows"):
        Recipe.parse("mine", MINE, ["--split.fractions", "[1, 0, 0]"]).splits()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--fit.max_epochs", "abc"], "fit.max_epochs: expected a number or null, got abc"),
        (["--fit.seed", "1.5"], "fit.seed: expected a whole number, got 1.5"),
        (["--fit.schedule", "cos"], "fit.schedule: expected one of 'cosine', 'one-cycle', 'constant', got cos"),
        (["--fit.max_epoch", "3"], "there is no key fit.max_epoch; did you mean max_epochs?"),
        (["--fit.zzz", "3"], "there is no key fit.zzz; fit has max_epochs"),
        (["--fit.max_epochs"], "fit.max_epochs: a value is missing"),
        (["--flow.init_args.widht", "3"], "flow.init_args: fluvial.flows.free_form has no argument 'widht'; did you mean width?"),
        (["--flow.width", "x"], "flow.init_args.width: expected a whole number, got x"),
        (["--flow.base.components", "x"], "flow.init_args.base.init_args.components: expected a whole number, got x"),
        (["--flow.class_path", "math.sqrt"], "flow.class_path: math.sqrt is neither a Flow nor a function declared to return one"),
        (["--flow.class_path", "fluvial.flows.nothing"], "flow.class_path: module 'fluvial.flows' has no attribute 'nothing'"),
        (["--data.class_path", "nomodule.data"], "data.class_path: No module named 'nomodule'"),
        (["--data.class_path", "fluvial.data.load"], "data.init_args: fluvial.data.load needs path"),
        (["--objective.beta", "x"], "objective.init_args.beta: expected a number or 'auto', got x"),
        (["--objective.terms.z_reconstruction", "a"], "objective.init_args.terms: expected a number, got a"),
        (["--split.fractions", "[0.1,0.2]"], "split.fractions: expected a tuple with 3 elements or null"),
        (["--published", "[{figure: NLL}]"], "published: it needs value, source"),
    ],
)
def test_a_wrong_override_is_named_in_one_line(overrides, message):
    with pytest.raises(ValueError, match="recipe sphere: ") as caught:
        Recipe.parse("sphere", SPHERE, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with the keys title, note, published, flow, gaussianize, study, data, objective, fit, split, got nothing"),
        ("- flow", "got list"),
        ("flow: [\n", "no valid YAML in line 2"),
        ("title: x", "missing: flow, data"),
        (MINE + "epochs: 3", "there is no key 'epochs'; a recipe has title, note, published, flow"),
        (MINE.replace("max_steps", "max_step"), "fit: there is no key 'max_step'; did you mean max_steps?"),
        (SPHERE.replace("components", "component"), "flow.init_args.base.init_args: fluvial.bases.VonMisesFisherMixture has no argument 'component'"),
        (SPHERE.replace("terms: {z_sample_reconstruction: 50.0}", "beta: [1]"), "objective.init_args.beta: expected a number or 'auto'"),
    ],
)
def test_a_wrong_file_is_explained_in_one_line(text, message):
    with pytest.raises(ValueError, match="recipe mine: ") as caught:
        Recipe.parse("mine", text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "section", "message"),
    [
        (SPHERE.replace("components: 8", "components: 0"), "flow", "components and concentration must be positive, got 0"),
        (SPHERE.replace("dim: 2}}\n    base", "dim: 0}}\n    base"), "flow", "Sphere: dim must be at least 1, got 0"),
        (SPHERE.replace("terms: {z_sample_reconstruction: 50.0}", "beta: -1.0"), "objective", "beta must be a positive number or 'auto', got -1.0"),
    ],
)
def test_what_a_class_refuses_is_said_as_it_says_it(text, section, message):
    with pytest.raises(ValueError, match=f"recipe sphere: {section}: ") as caught:
        getattr(Recipe.parse("sphere", text), section)()
    assert message in str(caught.value)
    assert "Namespace" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_abstract_class_asks_for_one():
    with pytest.raises(ValueError, match="objective.class_path: missing; say which class is meant"):
        Recipe.parse("mine", MINE, ["--objective.beta", "10"])


def test_unknown_recipes_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe 'moon'; did you mean moons\? the packaged ones are airports, "):
        recipes.locate("moon")
    with pytest.raises(FileNotFoundError, match="no such file"):
        recipes.locate(str(tmp_path / "mine.yaml"))


def test_data_files_are_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "table.csv").write_text("a,b\n" + "".join(f"{k},{k**2}.5\n" for k in range(40)))
    monkeypatch.chdir(tmp_path)
    text = MINE.replace("fluvial.data.moons", "fluvial.data.load").replace("{n: 500}", "{path: table.csv}")
    written = Recipe.parse("mine", text).to_yaml()
    monkeypatch.chdir("/")
    assert Recipe.parse("mine", written).dataset().x.shape == (40, 2)


def test_networks_of_ones_own_are_named_by_their_class_path(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_networks.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width: int = 8):\n"
        "        super().__init__()\n"
        "        self.width = width\n"
        "        self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.SiLU(), torch.nn.Linear(width, 2))\n"
        "    def forward(self, x, c=None):\n"
        "        return x + self.layers(x)\n"
    )
    (tmp_path / "own.yaml").write_text(
        "flow:\n  class_path: fluvial.Flow\n  init_args:\n"
        "    codec:\n      class_path: fluvial.FreeForm\n      init_args:\n"
        "        encoder: {class_path: own_networks.Net, init_args: {width: 16}}\n        decoder: own_networks.Net\n"
        "    base: {class_path: fluvial.bases.Normal, init_args: {event_shape: 2}}\n"
        "data: {class_path: fluvial.data.moons, init_args: {n: 400}}\n"
        "fit: {max_steps: 2, batch_size: 32, progress: false}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "own.yaml"]) == 0
    assert main(["sample", "own", "-n", "5", "-o", "out.npy"]) == 0
    assert (tmp_path / "runs" / "own" / "1" / "model.safetensors").is_file()
    weights = load_file(tmp_path / "runs" / "own" / "1" / "model.safetensors")
    assert weights["codec.encoder.layers.0.weight"].shape == (16, 2)
    # The file alone is not trusted with code.
    capsys.readouterr()
    assert main(["sample", "runs/own/1/model.safetensors", "-n", "5", "-o", "out.npy"]) == 2
    assert "own_networks" in capsys.readouterr().err
