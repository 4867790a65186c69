"""The command line, called in process, and as a process where signals, limits or imports matter."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial.cli import main
from fluvial.commands.fit import take_overrides
from fluvial.outputs import Layout, column_names, write_samples
from fluvial.runs import Run

TINY = [
    *("--data.n", "600", "--flow.width", "12", "--flow.blocks", "1", "--fit.batch_size", "64"),
    *("--fit.max_steps", "12", "--fit.max_time", "null", "--fit.progress", "false"),
]
PROGRAM = [sys.executable, "-c", "import sys; from fluvial.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with two runs of moons, of other seeds, one of a sphere, and one that is conditional."""
    place = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(place)
    try:
        for seed in ("0", "1"):
            assert main(["fit", "moons", *TINY, "--fit.seed", seed]) == 0
        Path("globe.yaml").write_text(
            "flow:\n  class_path: fluvial.flows.free_form\n"
            "  init_args: {manifold: {class_path: fluvial.Sphere, init_args: {dim: 2}}, width: 8, blocks: 1}\n"
            "data: fluvial.data.airports\n"
            "fit: {max_steps: 2, batch_size: 32, validation_points: 32, progress: false}\n"
        )
        assert main(["fit", "globe.yaml"]) == 0
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(300, 3))
        Path("heat.csv").write_text("e,m,T\n" + "".join(f"{e},{m},{t}\n" for e, m, t in rows))
        Path("heat.yaml").write_text(
            "flow: {class_path: fluvial.flows.free_form, init_args: {features: 2, context: 1, width: 8, blocks: 1}}\n"
            "data: {class_path: fluvial.data.load, init_args: {path: heat.csv, condition: T}}\n"
            "fit: {max_steps: 2, batch_size: 32, progress: false}\n"
        )
        assert main(["fit", "heat.yaml"]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def at(workplace, monkeypatch):
    """The same, as working folder."""
    monkeypatch.chdir(workplace)
    return workplace


def failure(words, capsys):
    """The one line that a command which must fail says."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fluvial: error: ")
    assert said.err.count("\n") == 1
    return said.err


# ------------------------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize("name", ["recipes", "fit", "sample", "evaluate", "check", "report"])
def test_help_teaches(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Writes" in printed
    examples = printed.partition("examples:")[2]
    assert examples.count(f"fluvial {name}") >= 2


def test_version_and_bare_call(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fluvial {fl.__version__}\n"
    assert main([]) == 0
    assert "fluvial fit airports-quick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["check"], "required: RUN; see fluvial check --help"),
        (["fit", "moon"], "did you mean moons?"),
        (["fit", "moons", "--fit.max_epoch", "3"], "there is no key fit.max_epoch; did you mean max_epochs?"),
        (["fit", "moons", "--fit.batch_size", "0"], "batch_size must be a whole number of at least 1, got 0"),
        (["fit", "moons", "--fit", "3"], "fit: expected a mapping, got 3"),
        (["fit", "moons", "--resume", "--overwrite"], "give one of them"),
        (["fit", "moons", "--resume"], "there is no run of moons"),
        (["evaluate", "moons"], "there is no run 'moons'"),
        (["sample", "moons", "-n", "0", "-o", "a.csv"], "expected a positive whole number"),
        (["sample", "moons", "-n", "5", "-o", "a.root"], "come with the extra 'events', which this version does not bring yet"),
        (["sample", "moons", "-n", "5", "-o", "a.lhe"], "'events'"),
        (["sample", "moons", "-n", "5", "-o", "a.hepmc"], "'events'"),
        (["sample", "moons", "-n", "5", "-o", "a.xyz"], "'molecules'"),
        (["sample", "moons", "-n", "5", "-o", "a.pdb"], "'molecules'"),
        (["sample", "moons", "-n", "5", "-o", "a.txt"], "the ending '.txt' is not known; here are .csv, .npy, .npz, .parquet"),
        (["sample", "moons", "-n", "5", "-o", "a"], "the file needs an ending"),
        (["report", "."], "is no run folder"),
    ],
)
def test_errors_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in failure(words, capsys)
    # What failed before it began leaves no run behind.
    assert not list(tmp_path.glob("runs/*/*"))


def test_debug_shows_where(capsys):
    assert main(["--debug", "fit", "moon"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_listing_and_help_load_nothing_heavy():
    code = (
        "import sys; from fluvial.cli import main; main(['recipes']); main(['--help']); main(['fit', '--help'])\n"
        "print([name for name in ('torch', 'lightning', 'sklearn', 'jsonargparse', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------------------------------------------ fit


def test_runs_are_numbered_and_whole(at):
    assert sorted(path.name for path in (at / "runs" / "moons").iterdir()) == ["1", "2"]
    names = {path.name for path in (at / "runs" / "moons" / "1").iterdir()}
    assert {"recipe.yaml", "environment.json", "checkpoint.pt", "history.jsonl", "model.safetensors"} <= names
    environment = json.loads((at / "runs" / "moons" / "2" / "environment.json").read_text())
    assert environment["command"][:3] == ["fluvial", "fit", "moons"]
    assert environment["versions"]["fluvial"] == fl.__version__
    assert environment["cpu_count"] == os.cpu_count()
    assert Run.find("moons").path == Path("runs/moons/2")
    assert Run.find("moons/1").path == Run.find("runs/moons/1").path == Path("runs/moons/1")


def test_the_newest_run_has_the_highest_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in ("2", "10", "notes"):
        (tmp_path / "runs" / "a" / number).mkdir(parents=True)
        (tmp_path / "runs" / "a" / number / "recipe.yaml").touch()
    assert Run.find("a").path == Path("runs/a/10")
    assert Run.create("a").path == Path("runs/a/11")


def test_show_prints_the_recipe_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "moons", "--show", "--flow.width", "32"]) == 0
    printed = capsys.readouterr().out
    assert "width: 32" in printed
    assert "warmup: 200" in printed
    assert not list(tmp_path.iterdir())


def test_overrides_may_stand_anywhere():
    rest, overrides = take_overrides(["--fit.seed", "1", "moons", "-o", "x", "--data.noise=0.1", "--resume", "--objective.beta", "auto"])
    assert rest == ["moons", "-o", "x", "--resume"]
    assert overrides == ["--fit.seed", "1", "--data.noise=0.1", "--objective.beta", "auto"]


def test_a_run_is_neither_overwritten_nor_mixed_by_accident(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", "moons", "-o", str(run), *TINY]) == 0
    before = (run / "model.safetensors").read_bytes()
    (run / "metrics.json").write_text("{}")
    (run / "notes.txt").write_text("mine")
    said = failure(["fit", "moons", "-o", str(run), *TINY], capsys)
    assert "--resume" in said
    assert "--overwrite" in said
    # A recipe that is wrong costs nothing, not even with --overwrite.
    failure(["fit", "moons", "-o", str(run), "--overwrite", "--flow.width", "0"], capsys)
    assert (run / "model.safetensors").read_bytes() == before
    assert main(["fit", "moons", "-o", str(run), "--overwrite", *TINY, "--fit.seed", "5"]) == 0
    assert (run / "model.safetensors").read_bytes() != before
    assert not (run / "metrics.json").exists()
    assert (run / "notes.txt").read_text() == "mine"
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert "thesis.tex" in failure(["fit", "moons", "-o", str(other), "--overwrite", *TINY], capsys)


def test_resume_refuses_another_run(at, capsys):
    said = failure(["fit", "moons", "--resume", "--flow.width", "99"], capsys)
    assert "--flow.width cannot change a run that is resumed" in said
    assert "is a run of moons, not of rings" in failure(["fit", "rings", "-o", "runs/moons/1", "--resume"], capsys)


def test_resume_takes_the_command_that_began_the_run(at, capsys):
    capsys.readouterr()
    assert main(["fit", "moons", "--resume", *TINY]) == 0
    said = capsys.readouterr()
    assert "cannot change" not in said.err
    assert "12 steps" in said.out


@pytest.mark.filterwarnings("ignore:fit. resuming with another budget")
def test_interrupted_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "moons", *TINY, "--fit.max_steps", "4000", "--fit.validate_every", "20", "--fit.patience", ".inf"]
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        history = tmp_path / "runs" / "moons" / "1" / "history.jsonl"
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None and not (history.exists() and history.read_text().count("\n") > 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "\ninterrupted after" in out
    assert "go on: fluvial fit runs/moons/1 --resume" in out
    assert "Traceback" not in err
    steps = Run.find("moons").history()[-1]["step"]
    assert main(["fit", "moons", "--resume", "--fit.max_steps", str(steps + 40)]) == 0
    assert f"stopped by max_steps after {steps + 40} steps" in capsys.readouterr().out
    environment = Run.find("moons").environment()
    assert environment["resumed"][0]["command"][-3:] == ["--resume", "--fit.max_steps", str(steps + 40)]
    assert [path.name for path in (tmp_path / "runs" / "moons").iterdir()] == ["1"]


# --------------------------------------------------------------------------------------------------- evaluate, check and report


def test_evaluate_writes_what_it_prints(at, capsys):
    capsys.readouterr()
    assert main(["evaluate", "moons"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "test NLL (decoder)",
        "test NLL (encoder)",
        "true density",
        "kernel density",
        "its entropy is 1.0076",
        "C2ST",
        "integral of the density",
    ):
        assert part in printed
    assert "moons, synthetic on Euclidean(2): 60 test rows (480 training, 60 validation) · split seed 0 · fit seed 1" in printed
    assert "published: no verified figure" in printed
    entries = json.loads((at / "runs/moons/2/metrics.json").read_text())
    run = Run.find("moons")
    test = run.splits().test
    assert entries["figures"]["nll"]["value"] == pytest.approx(float(-run.flow().log_prob(test.x).mean()), abs=1e-5)
    truth = float(-test.truth.log_prob(test.x).mean())
    assert entries["references"]["truth"]["nll"]["value"] == pytest.approx(truth, abs=1e-5)
    assert entries["references"]["truth"]["excess"]["value"] == pytest.approx(entries["figures"]["nll"]["value"] - truth, abs=1e-5)
    assert entries["data"]["synthetic"] is True


def test_a_model_that_is_not_finite_gets_figures_that_say_so(at, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(at / "runs/moons/1", run)
    flow = Run(run).flow()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.fill_(math.nan)
    fl.save(flow, run / "model.safetensors")
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "not finite" in next(line for line in printed.splitlines() if "test NLL (decoder)," in line)
    figures = json.loads((run / "metrics.json").read_text())["figures"]
    assert figures["nll"]["value"] is figures["nll_preimage"]["value"] is None
    assert figures["nll_preimage"]["note"] == "no row has a finite density at its preimage"


def test_evaluate_over_seeds(at, capsys):
    capsys.readouterr()
    assert main(["evaluate", "moons/1", "runs/moons/2", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    values = [entries["figures"]["nll"]["value"] for entries in whole["runs"].values()]
    assert [entries["fit_seed"] for entries in whole["runs"].values()] == [0, 1]
    assert whole["together"]["nll"]["mean"] == pytest.approx(np.mean(values))
    assert whole["together"]["nll"]["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert main(["evaluate", "moons/1", "moons/2"]) == 0
    assert "mean ± standard deviation over 2 runs, fit seeds 0, 1" in capsys.readouterr().out
    # Runs of other recipes are figures of their own; runs of one recipe that learned from other data have no mean.
    assert main(["evaluate", "moons/1", "moons/2", "globe", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert list(whole["runs"]) == ["runs/moons/1", "runs/moons/2", "runs/globe/1"]
    assert list(whole["together"]) == ["moons"]
    shutil.copytree("runs/moons/1", "runs/moons/7")
    recipe = Path("runs/moons/7/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("n: 600", "n: 599"))
    assert "has another data than runs/moons/1" in failure(["evaluate", "moons/1", "moons/7"], capsys)
    shutil.rmtree("runs/moons/7")
    assert "given twice" in failure(["evaluate", "moons", "runs/moons/2"], capsys)


def test_evaluate_a_conditional_flow(at, capsys):
    capsys.readouterr()
    assert main(["evaluate", "heat", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries["references"] == {}
    assert {"nll", "c2st"} <= set(entries["figures"])


def test_check_says_and_writes(at, capsys):
    capsys.readouterr()
    code = main(["check", "moons", "--samples", "200", "--strict"])
    printed = capsys.readouterr().out
    entries = json.loads((at / "runs/moons/2/check.json").read_text())
    assert code == (0 if entries["ok"] else 1)
    assert "NLL" in printed
    assert main(["check", "moons", "--samples", "200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == entries


def test_report_says_where_it_is(at, capsys):
    capsys.readouterr()
    assert main(["report", "moons/1"]) == 0
    assert capsys.readouterr().out == f"the report is in {Path('runs/moons/1/report.html')}\n"
    assert (at / "runs/moons/1/report.html").stat().st_size > 10_000


# --------------------------------------------------------------------------------------------------------------------- sample


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npy", ".npz"])
def test_samples_are_those_of_the_flow(ending, at, tmp_path):
    file = tmp_path / f"out{ending}"
    assert main(["sample", "moons", "-n", "1_000", "-o", str(file), "--seed", "3", "--batch", "300"]) == 0
    data = fl.data.load(file)
    generator = torch.Generator().manual_seed(3)
    flow = Run.find("moons").flow()
    expected = torch.cat([flow.sample(k, generator=generator) for k in (300, 300, 300, 100)])
    torch.testing.assert_close(data.x, expected.detach(), rtol=0, atol=0)
    assert data.spec.names == (("x1", "x2") if ending != ".npy" else None)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_parquet_has_a_row_group_for_each_batch(at, tmp_path):
    from pyarrow import parquet

    assert main(["sample", "moons", "-n", "250", "-o", str(tmp_path / "a.parquet"), "--batch", "100"]) == 0
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3


def test_latitude_and_longitude(at, tmp_path, capsys):
    for words, name in (([], "xyz.csv"), (["--latlon"], "degrees.csv")):
        assert main(["sample", "globe", "-n", "20", "-o", str(tmp_path / name), *words]) == 0
    points = fl.data.load(tmp_path / "xyz.csv")
    assert points.spec.names == ("x", "y", "z")
    again = fl.data.load(tmp_path / "degrees.csv", latlon=("latitude", "longitude"))
    torch.testing.assert_close(again.x, points.x, rtol=0, atol=1e-6)
    torus = fl.flows.on_torus(2, blocks=1, hidden=[8])
    pair = fl.Ensemble([torus, fl.flows.on_torus(2, blocks=1, hidden=[8])])
    for name, flow in (("torus", torus), ("pair", pair)):
        fl.save(flow, tmp_path / f"{name}.safetensors")
        assert main(["sample", str(tmp_path / f"{name}.safetensors"), "-n", "50", "-o", str(tmp_path / "angles.npz"), "--degrees"]) == 0
        drawn = np.load(tmp_path / "angles.npz")["x"]
        assert drawn.shape == (50, 2)
        assert 90 < np.abs(drawn).max() <= 180
    assert "--degrees is for points of a Torus" in failure(["sample", "moons", "-n", "5", "-o", str(tmp_path / "a.csv"), "--degrees"], capsys)
    assert "--latlon is for points of Sphere(2)" in failure(["sample", "moons", "-n", "5", "-o", str(tmp_path / "a.csv"), "--latlon"], capsys)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npy", ".npz"])
def test_conditions_become_columns(ending, at, tmp_path):
    file = tmp_path / f"out{ending}"
    (tmp_path / "c.csv").write_text("T,other\n0.5,9\n-1.5,9\n")
    assert main(["sample", "heat", "-n", "3", "-o", str(file), "--condition", str(tmp_path / "c.csv"), "--batch", "4"]) == 0
    data = fl.data.load(file) if ending == ".npz" else fl.data.load(file, condition="T")
    assert data.c.flatten().tolist() == [0.5] * 3 + [-1.5] * 3
    assert data.spec.names == ("e", "m")
    flow, generator = Run.find("heat").flow(), torch.Generator().manual_seed(0)
    expected = torch.cat([flow.sample((), c, generator=generator) for c in data.c.split(4)])
    torch.testing.assert_close(data.x, expected.detach(), rtol=0, atol=0)


def test_wrong_conditions_are_explained(at, tmp_path, capsys):
    words = ["-n", "5", "-o", str(tmp_path / "a.csv")]
    assert "this flow is conditional; give --condition, 1 numbers (T)" in failure(["sample", "heat", *words], capsys)
    assert "a condition has 1 numbers, got 2" in failure(["sample", "heat", *words, "--condition", "1,2"], capsys)
    assert "must be numbers such as 0.5,1 or a file" in failure(["sample", "heat", *words, "--condition", "warm"], capsys)
    assert "must be finite" in failure(["sample", "heat", *words, "--condition", "nan"], capsys)
    assert "has no condition" in failure(["sample", "moons", *words, "--condition", "1"], capsys)
    assert main(["sample", "heat", *words, "--condition=-0.5"]) == 0


def test_an_interrupt_leaves_the_old_file(at, tmp_path, monkeypatch, capsys):
    file = tmp_path / "out.parquet"
    file.write_bytes(b"what was there")
    calls = []
    draw = fl.Flow.sample

    def interrupted(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, *arguments, **named)

    monkeypatch.setattr(fl.Flow, "sample", interrupted)
    capsys.readouterr()
    assert main(["sample", "moons", "-n", "1000", "-o", str(file), "--batch", "100"]) == 130
    assert capsys.readouterr().err == f"\nfluvial: interrupted; {file} is what it was before\n"
    assert file.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_the_old_file(at, tmp_path):
    files = [tmp_path / "out.parquet", tmp_path / "out.csv"]
    for file in files:
        file.write_bytes(b"what was there")
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); from fluvial.cli import main\n"
        f"for file in {[str(file) for file in files]}: print(main(['sample', 'moons', '-n', '50_000', '-o', file, '--batch', '5000']))"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2"]
    for file, line in zip(files, done.stderr.splitlines(), strict=True):
        assert line == f"fluvial: error: cannot write {file}: File too large; the previous file is untouched"
        assert file.read_bytes() == b"what was there"
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_damaged_model_is_refused(at, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "environment.json", "model.safetensors"):
        (run / name).write_bytes((at / "runs/moons/1" / name).read_bytes())
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in failure(["sample", str(run), "-n", "5", "-o", str(tmp_path / "a.csv")], capsys)
    (run / "model.safetensors").unlink()
    assert "has no model.safetensors: training has not reached a first validation" in failure(["check", str(run)], capsys)


# -------------------------------------------------------------------------------------------------------------------- writers


def test_images_are_flattened_into_named_columns(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
    layout = Layout(6, (1, 2, 2), column_names((1, 2, 2)))
    for name in ("a.csv", "a.npy", "a.npz"):
        write_samples(tmp_path / name, [(x[:4], None), (x[4:], None)], layout)
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == '"x_0_0_0","x_0_0_1","x_0_1_0","x_0_1_1"'
    assert np.array_equal(np.load(tmp_path / "a.npy"), x)
    assert np.array_equal(np.load(tmp_path / "a.npz")["x"], x)


def test_too_few_samples_make_no_file(tmp_path):
    with pytest.raises(ValueError, match="expected 10 samples in all, got 4"):
        write_samples(tmp_path / "a.npy", [(np.zeros((4, 2)), None)], Layout(10, (2,), ("a", "b")))
    assert not list(tmp_path.iterdir())


def test_columns_need_names_of_their_own():
    with pytest.raises(ValueError, match="the column name 'T' occurs more than once"):
        Layout(1, (2,), ("e", "T"), ("T",))
