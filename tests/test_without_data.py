"""The command line on recipes that learn from an energy: fit, evaluate, check, report, and what they say where something is not known."""

import json

import pytest
import torch

import fluvial as fl
from fluvial import recipes
from fluvial.cli import main
from fluvial.commands.weighed import of_energy
from fluvial.recipes.recipe import Recipe
from fluvial.runs import Run

FLOW = "flow: {class_path: fluvial.flows.coupling, init_args: {features: 2, blocks: 2, bins: 4, hidden: [8], standardize: false}}\n"
CONDITIONAL = FLOW.replace("features: 2", "features: 2, context: 1")
FIT = "fit: {max_steps: 3, batch_size: 64, progress: false}\n"
WELL = "class_path: fluvial.energies.DoubleWell"
OWN = "class_path: fluvial.energies.FunctionEnergy\n      init_args: {function: own_energy.bowl, manifold: 2}"


def recipe(energy, flow=FLOW, objective="ReverseKL", more=""):
    return f"{flow}objective:\n  class_path: fluvial.objectives.{objective}\n  init_args:\n    energy:\n      {energy}\n{more}{FIT}"


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_energy.py").write_text("def bowl(x):\n    return x.square().sum(-1) / 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def failure(words, capsys):
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fluvial: error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.filterwarnings("ignore:fit. resuming with another budget")
def test_a_run_without_data(at, capsys):
    (at / "well.yaml").write_text(recipe(WELL))
    assert main(["fit", "well.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "no data: learns from DoubleWell by ReverseKL" in printed
    assert "best validation: effective samples" in printed
    run = Run.find("well")
    assert run.flow().spec.event_shape == (2,)
    assert main(["fit", "well.yaml", "--resume", "--fit.max_steps", "4"]) == 0

    capsys.readouterr()
    assert main(["evaluate", "well"]) == 0
    printed = capsys.readouterr().out
    assert "trained without data on Euclidean(2); beside 10000 exact samples of DoubleWell" in printed
    for text in ("effective samples, share", "log Z", "exact 5.2119", "KL(flow ‖ energy)", "true density", "C2ST"):
        assert text in printed
    entries = json.loads((run.path / "metrics.json").read_text())
    assert entries["references"]["exact"]["log_z"]["value"] == pytest.approx(5.2119, abs=1e-3)
    assert entries["data"]["rows"] == {"train": 0, "validation": 0, "test": 10_000}
    assert set(entries["references"]) == {"exact", "truth"}

    assert main(["check", "well", "--samples", "500"]) == 0
    assert main(["report", "well"]) == 0
    page = (run.path / "report.html").read_text()
    assert "exact samples of the energy" in page
    assert "effective samples" in page
    assert main(["sample", "well", "-n", "10", "-o", "out.npy"]) == 0


def test_what_is_not_available_is_said_in_one_line(at, capsys):
    (at / "own.yaml").write_text(recipe(OWN))
    assert main(["fit", "own.yaml"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "own"]) == 0
    printed = capsys.readouterr().out
    assert "cannot be sampled exactly, so no NLL and no C2ST" in printed
    assert "log Z" in printed
    for command in ("check", "report"):
        said = failure([command, "own"], capsys)
        assert "recipe own has no data, and its energy cannot be sampled exactly" in said
        assert "fluvial evaluate gives effective sample size and log Z all the same" in said


def test_a_conditional_energy(at, capsys):
    text = recipe(f"{WELL}\n      init_args: {{temperature: null}}", CONDITIONAL, "LogVariance", "    condition: [[0.5], [1.0]]\n")
    (at / "hot.yaml").write_text(text)
    assert main(["fit", "hot.yaml"]) == 0
    rows = Run.find("hot").test()
    assert rows.x.shape == (10_000, 2)
    assert sorted(set(rows.c.flatten().tolist())) == [0.5, 1.0]
    capsys.readouterr()
    assert main(["evaluate", "hot"]) == 0
    assert "|log Z − exact|, mean over conditions" in capsys.readouterr().out
    assert main(["check", "hot", "--samples", "200"]) == 0
    said = failure(["fit", "hot.yaml", "--objective.condition", "null"], capsys)
    assert "say which with condition=" in said


def test_fewer_test_rows_than_conditions():
    flow = fl.flows.coupling(2, context=1, blocks=2, bins=4, hidden=[8])
    found = of_energy(flow, fl.energies.DoubleWell(temperature=None), torch.tensor([[0.5], [1.0], [2.0]]), None)
    assert found.figures["ess"].n == 3 * (50_000 // 3)
    with pytest.raises(ValueError, match="neither test rows with one nor a source"):
        of_energy(flow, fl.energies.DoubleWell(temperature=None), None, None)


def test_an_energy_beside_data(at, capsys):
    part = "{class_path: fluvial.objectives.ReverseKL, init_args: {energy: {class_path: fluvial.energies.DoubleWell}}}"
    (at / "both.yaml").write_text(
        f"{FLOW}data: {{class_path: fluvial.data.moons, init_args: {{n: 600}}}}\nobjective:\n  class_path: fluvial.objectives.WeightedSum\n"
        f"  init_args: {{objectives: {{data: fluvial.objectives.MaximumLikelihood, energy: {part}}}}}\n{FIT}"
    )
    assert main(["fit", "both.yaml"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "both"]) == 0
    printed = capsys.readouterr().out
    assert "60 test rows (480 training, 60 validation)" in printed
    assert "effective samples" in printed


def test_recipes_that_lack_something(capsys):
    with pytest.raises(ValueError, match="missing: data; only an objective with an energy"):
        Recipe.parse("mine", f"{FLOW}objective: fluvial.objectives.MaximumLikelihood\n")
    with pytest.raises(ValueError, match="missing: data$"):
        Recipe.parse("mine", FLOW)
    found = Recipe.parse("mine", recipe(WELL))
    assert found.without_data
    assert Recipe.parse("mine", found.to_yaml()).to_yaml() == found.to_yaml()
    with pytest.raises(ValueError, match="has no data to split"):
        found.splits()
    first, again = found.test(), found.dataset()
    assert torch.equal(first.x, again.x)
    torch.testing.assert_close(first.truth.log_prob(first.x), -fl.energies.DoubleWell()(first.x) - fl.energies.DoubleWell().log_z())


@pytest.mark.parametrize("name", [name for name in recipes.names() if Recipe.parse(name, recipes.text(name)).without_data])
def test_packaged_recipes_without_data_take_a_step(name, at, capsys):
    small = ["--fit.max_steps", "1", "--fit.batch_size", "64", "--flow.blocks", "2", "--flow.hidden", "[8]", "--objective.validation_samples", "64"]
    assert main(["fit", name, *small, "--fit.progress", "false"]) == 0
    assert "stopped by max_steps after 1 steps" in capsys.readouterr().out
    found = Recipe.parse(name, recipes.text(name))
    x = found.test().x[:8]
    assert torch.isfinite(Run.find(name).flow().log_prob(x)).all()
    assert torch.isfinite(found.objective().energy(x)).all()
