"""Bridges whose other end is not installed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("module", "extra"), [("zuko", "zuko"), ("pyro", "pyro"), ("sbi", "sbi")])
def test_a_missing_extra_is_named_in_one_line(module, extra):
    program = f"import sys\nsys.modules[{module!r}] = None\nimport fluvial.interop.{module}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].endswith(f"pip install 'fluvial[{extra}]'")
