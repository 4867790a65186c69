"""`fluvial evaluate` on manifolds, by class, on fresh rows, and beside published figures."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fluvial.cli import main
from fluvial.commands import results
from fluvial.commands.evaluate import table
from fluvial.commands.figures import figures, fresh_rows
from fluvial.commands.references import classes_of
from fluvial.data import Dataset, moons, so3_given_features
from fluvial.recipes import names
from fluvial.recipes.recipe import Recipe
from fluvial.runs import Run

TYPES = ("ALA", "GLY")
# A module in the working folder, whose data recipes can name.
DATA = """
import math
import torch
from fluvial.bases import UniformOn, WrappedNormal
from fluvial.data import Dataset
from fluvial.manifolds import PoincareBall, Product, SpecialOrthogonal, Sphere, Torus, Euclidean


def torsions(n=800) -> Dataset:
    g = torch.Generator().manual_seed(0)
    kind = torch.arange(n) % 2
    angle = 1.5 * kind.unsqueeze(1) + 0.3 * torch.randn(n, 2, generator=g)
    return Dataset(Torus.from_angles(angle), torch.eye(2)[kind], manifold=Torus(2), condition_names=("ALA", "GLY"), name="torsions")


def rotations(n=300) -> Dataset:
    return Dataset(SpecialOrthogonal(3).random_uniform(n, generator=torch.Generator().manual_seed(0)), manifold=SpecialOrthogonal(3), synthetic=True)


def disc(n=300) -> Dataset:
    x = WrappedNormal(PoincareBall(2), scale=0.5, learnable=False).sample(n, generator=torch.Generator().manual_seed(0))
    return Dataset(x, manifold=PoincareBall(2))


def poses(n=300) -> Dataset:
    g = torch.Generator().manual_seed(0)
    space = Product(SpecialOrthogonal(3), Euclidean(3))
    return Dataset(space.join(SpecialOrthogonal(3).random_uniform(n, generator=g), torch.randn(n, 3, generator=g)), manifold=space)


def absent(n=300) -> Dataset:
    raise FileNotFoundError("absent: no such file in the folder of data")
"""
FIT = "{max_steps: 2, batch_size: 32, validation_points: 32, progress: false}"
MANIFOLDS = {
    "torsions": ("{class_path: fluvial.Torus, init_args: {dim: 2}}", ", context: 2"),
    "rotations": ("{class_path: fluvial.SpecialOrthogonal, init_args: {n: 3}}", ""),
    "disc": ("{class_path: fluvial.PoincareBall, init_args: {dim: 2}}", ""),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with one run on each manifold, one of moons, and one whose data have gone since."""
    place, before = tmp_path_factory.mktemp("work"), Path.cwd()
    os.chdir(place)
    try:
        Path("our_data.py").write_text(DATA)
        for name, (manifold, more) in MANIFOLDS.items():
            flow = f"{{class_path: fluvial.flows.free_form, init_args: {{manifold: {manifold}, width: 8, blocks: 1{more}}}}}"
            Path(f"{name}.yaml").write_text(f"flow: {flow}\ndata: our_data.{name}\nfit: {FIT}\n")
            assert main(["fit", f"{name}.yaml"]) == 0
        tiny = ["--data.n", "300", "--flow.width", "8", "--flow.blocks", "1", "--fit.max_steps", "2", "--fit.max_time", "null"]
        assert main(["fit", "moons", *tiny, "--fit.batch_size", "32", "--fit.progress", "false"]) == 0
        shutil.copytree("runs/rotations/1", "runs/absent/1")
        recipe = Path("runs/absent/1/recipe.yaml")
        recipe.write_text(recipe.read_text().replace("our_data.rotations", "our_data.absent"))
        environment = Path("runs/absent/1/environment.json")
        environment.write_text(environment.read_text().replace('"recipe": "rotations"', '"recipe": "absent"'))
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def at(workplace, monkeypatch, capsys):
    """The same, as working folder."""
    monkeypatch.chdir(workplace)
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    capsys.readouterr()
    return workplace


@pytest.mark.parametrize("name", ["rotations", "disc"])
def test_figures_on_manifolds_stand_beside_kernels(at, name):
    found = figures(Run.find(name))
    # An untrained decoder leaves the disc here and there, where its density is infinite.
    assert found["figures"]["normalisation"]["value"] is not None or "not finite" in found["figures"]["normalisation"]["note"]
    assert found["references"]["kernel_density"]["nll"]["note"].startswith("κ = ")
    assert ("uniform" in found["references"]) == (name == "rotations")
    assert found["by_class"] == {}
    text = table(found)
    assert "integral of the density" in text
    assert "kernel density" in text
    assert ("synthetic" in text) == (name == "rotations")
    if name == "rotations":
        assert found["references"]["uniform"]["nll"]["value"] == pytest.approx(math.log(8 * math.pi**2))
        # Uniform rows: kernels come near the uniform density.
        assert found["references"]["kernel_density"]["nll"]["value"] == pytest.approx(math.log(8 * math.pi**2), abs=0.3)


def test_conditions_that_are_classes_get_figures_of_their_own(at, capsys):
    assert main(["evaluate", "torsions"]) == 0
    printed = capsys.readouterr().out
    entries = json.loads((at / "runs/torsions/1/metrics.json").read_text())
    assert list(entries["by_class"]) == list(TYPES)
    for name in TYPES:
        assert {"rows", "nll", "c2st", "c2st_auc"} <= set(entries["by_class"][name])
        assert name in printed
    assert "by class" in printed
    assert "uniform" in entries["references"]
    # The classes together are all rows.
    sizes = [entries["by_class"][name]["rows"]["value"] for name in TYPES]
    mean = sum(n * entries["by_class"][name]["nll"]["value"] for n, name in zip(sizes, TYPES)) / sum(sizes)
    assert mean == pytest.approx(entries["figures"]["nll"]["value"], abs=1e-6)
    # 80 validation rows are too few for two kernel estimates.
    assert "kernel_density" not in entries["references"]


def test_one_kernel_estimate_for_each_class(at):
    from fluvial.commands.references import references

    run = Run.find("torsions")
    train = run.splits().train
    splits = run.splits()._replace(train=train[:400], validation=train[400:])
    found, log_p = references(run.flow(), splits, 0, [classes_of(part.c) for part in splits])
    estimate = found["kernel_density"]["nll"]
    # Each class is a normal of s.d. 0.3 in both angles, whose entropy is 0.43; one estimate for both would lie log 2 higher.
    assert estimate.value == pytest.approx(0.43, abs=0.3)
    assert estimate.value == pytest.approx(-float(log_p.mean()))
    assert "each class" in estimate.note


def test_what_counts_as_classes():
    assert classes_of(torch.eye(3)).tolist() == [0, 1, 2]
    for c in (None, {"a": torch.eye(3)}, torch.rand(4, 3), torch.ones(4, 2), torch.ones(4, 1), torch.eye(40)):
        assert classes_of(c) is None


# ----------------------------------------------------------------------------------------------------------------- fresh rows


def test_fresh_rows_of_the_truth(at, capsys):
    assert main(["evaluate", "moons", "--fresh", "200"]) == 0
    printed = capsys.readouterr().out
    assert "200 fresh rows of the true density" in printed
    assert "its entropy is" in printed
    entries = json.loads((at / "runs/moons/1/metrics.json").read_text())
    assert entries["data"]["fresh"] is True
    assert entries["data"]["rows"]["test"] == 200
    assert entries["figures"]["nll"]["n"] == entries["references"]["kernel_density"]["nll"]["n"] == 200
    assert main(["evaluate", "rotations", "--fresh", "200"]) == 2
    assert "whose true density can be sampled" in capsys.readouterr().err


def test_fresh_rows_are_new_and_seeded():
    data = moons(500, seed=0)
    rows = fresh_rows(data, 500)
    assert torch.equal(rows.x, fresh_rows(data, 500).x)
    assert not torch.equal(rows.x, fresh_rows(data, 500, seed=1).x)
    assert not set(map(tuple, rows.x.tolist())) & set(map(tuple, data.x.tolist()))
    assert rows.synthetic
    given = fresh_rows(so3_given_features(50), 400)
    assert given.x.shape == (400, 3, 3)
    assert given.c.shape == (400, 2)
    # The mean of −log p over rows of the conditional truth is its conditional entropy.
    entropy, error = given.truth.entropy()
    log_p = given.truth.log_prob(given.x, given.c)
    assert -float(log_p.mean()) == pytest.approx(entropy, abs=4 * (float(log_p.std()) / 20 + error))
    with pytest.raises(ValueError, match="is not known"):
        fresh_rows(Dataset(np.random.default_rng(0).normal(size=(30, 2))), 10)


# -------------------------------------------------------------------------------------------------------------------- not run


def test_runs_without_data_are_named(at, capsys):
    assert main(["evaluate", "rotations", "absent", "nothing"]) == 0
    printed = capsys.readouterr().out
    assert "runs/absent/1\n  not run: recipe absent: data: absent: no such file" in printed
    assert "nothing\n  not run: there is no run 'nothing'" in printed
    assert "runs/rotations/1\nrotations" in printed
    assert main(["evaluate", "rotations", "absent", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert list(whole["runs"]) == ["runs/rotations/1"]
    assert "no such file" in whole["not_run"]["runs/absent/1"]
    # Alone it is an error, and so is a list of nothing but such.
    assert main(["evaluate", "absent"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["evaluate", "absent", "nothing"]) == 2


def test_missing_data_have_a_reason(monkeypatch, tmp_path):
    from fluvial.recipes import locate

    recipe = Recipe.parse(*locate("floods"))
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    assert "FLUVIAL_DATA" in recipe.missing_data()
    monkeypatch.setenv("FLUVIAL_DATA", str(tmp_path))
    assert str(tmp_path) in recipe.missing_data()
    assert Recipe.parse(*locate("moons")).missing_data() is None
    with pytest.raises(FileNotFoundError, match="recipe floods: data: floods"):
        recipe.dataset()


# -------------------------------------------------------------------------------------------------------------------- results


def make_run(folder, recipe, seed, nll, *, kernels=None, settings=None, published=(), fresh=False):
    """A run folder with what `collect` reads."""
    folder.mkdir(parents=True)
    references = {} if kernels is None else {"kernel_density": {"nll": {"value": kernels, "standard_error": 0.01}}}
    entries = {
        "recipe": recipe,
        "fit_seed": seed,
        "data": {"synthetic": False, "fresh": fresh},
        "figures": {"nll": {"value": nll, "standard_error": 0.05}},
        "references": references,
        "published": list(published),
    }
    (folder / "metrics.json").write_text(json.dumps(entries))
    whole = Recipe.parse(recipe, results.locate(recipe)[1], settings or []).to_yaml() if recipe in names() else "fit: {seed: 0}\n"
    (folder / "recipe.yaml").write_text(whole)


def line_of(text, recipe):
    return next(line for line in text.splitlines() if line.startswith(recipe + " "))


def test_published_figures_beside_ours(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    for seed, nll in enumerate((0.50, 0.52, 0.54)):
        make_run(runs / "floods" / str(seed + 1), "floods", seed, nll, kernels=0.55)
    # A later run of the same seed takes the place of an earlier one, and that of a second folder does not.
    make_run(runs / "floods" / "10", "floods", 0, 0.48, kernels=0.55)
    make_run(kept / "floods-seed0", "floods", 0, 9.0, kernels=9.0)
    make_run(kept / "volcanoes-seed0", "volcanoes", 0, -2.0)
    text = results.table([runs, kept])
    assert line_of(text, "recipe").split() == ["recipe", "figure", "published", "ours", "kernel", "density", "truth"]
    assert line_of(text, "floods").split("  ")[0] == "floods"
    assert "0.51 " in line_of(text, "floods")
    assert "0.513 ± 0.031 (3 runs)" in line_of(text, "floods")
    assert "0.55" in line_of(text, "floods")
    assert "-2.000 ± 0.050 (1 run)" in line_of(text, "volcanoes")
    assert "not run" in line_of(text, "earthquakes")
    assert "FLUVIAL_DATA" in text[text.index("earthquakes") :]


def test_other_settings_are_other_results(tmp_path):
    make_run(tmp_path / "a" / "1", "floods", 0, 0.5)
    make_run(tmp_path / "b" / "1", "floods", 0, 0.6, settings=["--fit.max_time", "60", "--fit.progress", "false"])
    make_run(tmp_path / "c" / "1", "floods", 0, 0.7, fresh=True)
    found = results.collect([tmp_path])
    assert [(result.recipe, len(result.runs)) for result in found] == [("floods", 1)] * 3
    assert {result.differences for result in found} == {(), ("fit.max_time 60.0",), ("fresh rows",)}
    text = results.table([tmp_path])
    assert "not as packaged: fit.max_time 60" in text
    assert "not as packaged: fresh rows" in text


def test_recipes_of_ones_own_have_their_row(tmp_path):
    make_run(tmp_path / "1", "mine", 0, 1.0, published=[{"figure": "test NLL", "value": 0.9, "source": "somebody"}])
    make_run(tmp_path / "2", "mine", 1, math.nan, published=[])
    (tmp_path / "1" / "metrics.json").write_text((tmp_path / "1" / "metrics.json").read_text().replace("NaN", "null"))
    (tmp_path / "2" / "metrics.json").write_text((tmp_path / "2" / "metrics.json").read_text().replace("NaN", "null"))
    assert "not finite (2 runs)" in line_of(results.table([tmp_path]), "mine")


def test_the_command_prints_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    make_run(tmp_path / "runs" / "floods" / "1", "floods", 0, 0.5)
    assert main(["recipes", "--results"]) == 0
    assert "0.500 ± 0.050 (1 run)" in line_of(capsys.readouterr().out, "floods")
    assert main(["recipes", "--results", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
