"""Recipes whose flow is fitted layer by layer, and trained further or not."""

import json

import pytest
import torch

from fluvial import load
from fluvial.cli import main
from fluvial.recipes.recipe import Recipe
from fluvial.runs import Run

MINE = """
gaussianize: {max_layers: 4, rotation: haar}
data:
  class_path: fluvial.data.moons
  init_args: {n: 2000}
fit: {progress: false}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The recipe in a file, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(MINE)
    return "mine.yaml"


def lines(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_layers_are_fitted_evaluated_and_reported(mine, tmp_path, capsys):
    assert main(["fit", mine, "-o", "run"]) == 0
    printed = capsys.readouterr().out
    assert "layer by layer" in printed
    assert "stopped by max_layers after 4 layers" in printed
    assert [row["layer"] for row in lines(tmp_path / "run")] == [1, 2, 3, 4]
    flow = load(tmp_path / "run" / "model.safetensors")
    rows = Run(tmp_path / "run").splits().validation
    best = min(row["nll"] for row in lines(tmp_path / "run"))
    assert -flow.log_prob(rows.x).mean().item() == pytest.approx(best, abs=1e-4)
    assert main(["evaluate", "run", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["normalisation"]["value"] == pytest.approx(1, abs=0.01)
    assert main(["report", "run"]) == 0
    assert "layer (dotted: best" in (tmp_path / "run" / "report.html").read_text()


def test_an_interrupted_fit_goes_on_to_the_same_layers(mine, tmp_path):
    assert main(["fit", mine, "-o", "whole"]) == 0
    assert main(["fit", mine, "-o", "parts", "--gaussianize.max_layers", "2"]) == 0
    assert main(["fit", "parts", "--resume", "--gaussianize.max_layers", "4"]) == 0
    whole, parts = (load(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.filterwarnings("default:fit. resuming with another budget")
def test_layers_are_trained_where_the_recipe_says_how_long(mine, tmp_path, capsys):
    changes = ["--fit.max_steps", "60", "--fit.validate_every", "20", "--fit.learning_rate", "0.005"]
    assert main(["fit", mine, "-o", "run", *changes]) == 0
    assert "layer by layer, then trained" in capsys.readouterr().out
    layers, steps = lines(tmp_path / "run" / "layers"), lines(tmp_path / "run")
    assert len(layers) == 4
    assert steps[-1]["step"] == 60
    assert min(row["nll"] for row in steps) < min(row["nll"] for row in layers)
    # Going on leaves the layers alone.
    before = (tmp_path / "run" / "layers" / "model.safetensors").read_bytes()
    assert main(["fit", "run", "--resume", "--fit.max_steps", "80"]) == 0
    assert "max_steps 60 → 80" in capsys.readouterr().err
    assert (tmp_path / "run" / "layers" / "model.safetensors").read_bytes() == before
    assert lines(tmp_path / "run")[-1]["step"] == 80
    assert main(["fit", mine, "-o", "run", "--overwrite"]) == 0
    assert not (tmp_path / "run" / "layers").exists()


def test_the_seed_of_the_run_is_that_of_the_rotations(mine, tmp_path):
    for seed in (0, 1):
        assert main(["fit", mine, "-o", f"run{seed}", "--fit.seed", str(seed)]) == 0
    first, second = (load(tmp_path / f"run{seed}" / "model.safetensors").state_dict() for seed in (0, 1))
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_a_recipe_with_layers_is_whole_and_parses_to_itself():
    recipe = Recipe.parse("mine", MINE, ["--gaussianize.alpha", "[0.1, 0.5]"])
    again = Recipe.parse("mine", recipe.to_yaml())
    assert again.to_yaml() == recipe.to_yaml()
    assert again.gaussianize["alpha"] == (0.1, 0.5)
    assert again.gaussianize["patience"] == 15  # a default, written out
    assert not again.is_trained
    assert Recipe.parse("mine", MINE, ["--fit.max_time", "5"]).is_trained


def test_an_option_alone_asks_for_layers():
    recipe = Recipe.parse("mine", "data: fluvial.data.moons", ["--gaussianize.rotation", "pca"])
    assert recipe.gaussianize["rotation"] == "pca"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE + "flow: {class_path: fluvial.flows.free_form, init_args: {features: 2}}\n", "recipe mine: gaussianize makes the flow; leave out flow"),
        ("gaussianize: {max_layers: 3}\n", "recipe mine: missing: data"),
        (MINE.replace("rotation: haar", "rotations: haar"), "rotations"),
        (MINE.replace("max_layers: 4", "max_layers: many"), "max_layers"),
        (MINE.replace("rotation: haar", "seed: 3"), "seed"),
    ],
)
def test_a_wrong_section_is_explained_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.parse("mine", text)
    assert "\n" not in str(caught.value)


def test_a_resumed_fit_stays_what_it_is(mine, capsys):
    assert main(["fit", mine, "-o", "run", "--gaussianize.max_layers", "1"]) == 0
    assert main(["fit", "run", "--resume", "--gaussianize.rotation", "pca"]) != 0
    assert "--gaussianize.rotation cannot change a run that is resumed, only --fit.max_epochs" in capsys.readouterr().err
