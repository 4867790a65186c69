"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

# One thread for each test process: small networks gain nothing from more, and processes of pytest-xdist would fight for the cores.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Leave the long tests and benchmarks out unless -m asks for them."""
    if not config.option.markexpr and not any("::" in argument for argument in config.args):
        left_out = [item for item in items if item.get_closest_marker("long") or item.get_closest_marker("benchmark")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def double():
    """Float64 as the default inside the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def real_data():
    """The folder of real data sets."""
    folder = Path(os.environ.get("FLUVIAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; set FLUVIAL_DATA")
    return folder
