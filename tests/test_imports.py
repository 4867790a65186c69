"""What importing fluvial loads, and which way its rooms import each other."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fluvial

ROOT = Path(__file__).parents[1]
HEAVY = {"lightning", "sklearn", "matplotlib", "plotly", "pandas", "pyarrow", "scipy", "jinja2", "jsonargparse", "torchmetrics"}


def loaded_by(code):
    """Names of the top-level packages that a fresh interpreter loads, and the import times it reports."""
    program = f"{code}\nimport sys\nprint('loaded:', *sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True, timeout=120)
    names = set(run.stdout.partition("loaded:")[2].split())
    timed = {match.partition(".")[0] for match in re.findall(r"^import time:.*\|\s+(\S+)$", run.stderr, flags=re.MULTILINE)}
    assert "fluvial" in names & timed
    return names | timed


def test_import_loads_neither_torch_nor_anything_heavy():
    assert not loaded_by("import fluvial") & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize(
    "use",
    [
        "fluvial.flows.free_form(2).log_prob(fluvial.flows.free_form(2).sample(3))",
        "fluvial.FreeFormLikelihood(); fluvial.save; fluvial.load",
    ],
)
def test_models_and_objectives_load_nothing_heavy(use):
    assert not loaded_by(f"import fluvial; {use}") & (HEAVY - {"scipy"})


def test_every_public_name_exists_and_is_listed():
    for name in fluvial.__all__:
        assert getattr(fluvial, name) is not None
        assert name in dir(fluvial)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fluvial.nonsense  # noqa: B018


@pytest.fixture
def lint():
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists() and shutil.which("lint-imports") is None:
        pytest.skip("import-linter is not installed")
    program = str(program) if program.exists() else "lint-imports"
    return lambda config: subprocess.run([program, "--no-cache", "--config", config], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_rooms_import_one_way(lint):
    run = lint(str(ROOT / ".importlinter"))
    assert run.returncode == 0, run.stdout


def test_the_direction_is_really_checked(lint, tmp_path):
    rules = (ROOT / ".importlinter").read_text()
    wrong = rules.replace("    joint\n    flow\n", "    flow\n    joint\n")
    assert wrong != rules
    (tmp_path / "rules.ini").write_text(wrong)
    run = lint(str(tmp_path / "rules.ini"))
    assert run.returncode == 1
    assert "fluvial.joint -> fluvial.flow" in run.stdout
