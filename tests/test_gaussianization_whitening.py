"""Layers after a linear map to variance 1."""

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial.codecs import Whiten
from fluvial.gaussianization import fit


def mixed(n, seed):
    """Four independent sources, mixed by a matrix, and their log-densities."""
    generator = np.random.default_rng(seed)
    matrix = np.random.default_rng(0).normal(size=(4, 4))
    sources = generator.laplace(size=(n, 4))
    log_prob = (-np.abs(sources) - np.log(2)).sum(1) - np.linalg.slogdet(matrix)[1]
    return torch.from_numpy((sources @ matrix.T).astype(np.float32)), log_prob


def figure(x, rows, **settings):
    flow = fit(x, max_layers=2, alpha=0.0, progress=False, **settings)
    return flow, flow.log_prob(rows).double().mean().item()


def test_independent_sources_are_found_in_two_layers():
    x, (rows, truth) = mixed(20_000, 1)[0], mixed(10_000, 2)
    flow, whitened = figure(x, rows, rotation="ica", whiten=True)
    assert whitened == pytest.approx(truth.mean(), abs=0.1)
    assert whitened > figure(x, rows, rotation="ica")[1] + 0.1
    assert any(isinstance(part, Whiten) for part in flow.codec.modules())


def test_the_density_integrates_to_one(tmp_path):
    flow = fit(fl.data.moons(3000).x, whiten=True, max_layers=10, progress=False)
    assert fl.metrics.normalisation(flow, x=fl.data.moons(500, seed=1).x).value == pytest.approx(1, abs=0.01)
    fl.save(flow, tmp_path / "flow.safetensors")
    again = fl.load(tmp_path / "flow.safetensors")
    x = fl.data.moons(100, seed=2).x
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


@pytest.mark.filterwarnings("ignore:fit. columns 0, 1, 4 are linear combinations")
def test_dependent_columns_are_refused():
    x = mixed(1000, 3)[0]
    with pytest.raises(ValueError, match="Whiten"):
        fit(torch.cat([x, x[:, :1] + x[:, 1:2]], 1), whiten=True, progress=False)


def test_columns_of_steps_are_whitened_with_their_noise():
    steps = torch.randint(0, 5, (2000, 2), generator=torch.Generator().manual_seed(0)).float()
    with pytest.warns(UserWarning, match="ties"):
        flow = fit(torch.cat([steps, torch.randn(2000, 1)], 1), whiten=True, max_layers=3, progress=False)
    assert flow.spec is not None
    assert torch.isfinite(flow.log_prob(flow.sample(100))).all()
