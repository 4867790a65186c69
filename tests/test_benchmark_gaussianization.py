"""The benchmark of Gaussianization runs, at sizes that say nothing about speed; its data and limits are what they say."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def contestants(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gaussianization_peers")


@pytest.fixture
def benchmark(contestants):
    return importlib.import_module("gaussianization")


def test_our_side_runs(benchmark, monkeypatch, tmp_path, capsys):
    size = benchmark.QUICK._replace(sizes=(400,), features=4, fit_rows=2_000, score_rows=256, moons=500, step=0.1)
    monkeypatch.setattr(benchmark, "QUICK", size)
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["gaussianization.py", "--quick", "--peers", "--output", str(output)])
    benchmark.main()
    record = json.loads(output.read_text())
    assert record["peers"] == {}
    assert record["fit"]["layers"] == size.fit_layers
    assert all(value > 0 for value in record["fit"]["M elements per CPU second"].values())
    assert set(record["scores"]) == {"pareto", "gaussian"}
    assert record["moons"]["ours"]["integral"] == pytest.approx(1, abs=0.05)
    assert "moons, ours: integral" in capsys.readouterr().out


def test_a_comparison_gives_both_the_same_rows_and_layers(benchmark, contestants):
    seen = []

    def fit_again(x, layers, seed):
        seen.append(x)
        return contestants.fit_ours(x, layers, seed)

    size = benchmark.QUICK._replace(sizes=(300, 400), features=3, rounds=1)
    ourselves = contestants.Peer("numpy", "ourselves", fit_again, "for the test")
    found = benchmark.against(ourselves, size)
    assert found["rows"] == 400
    assert len(seen[-1]) == 400
    assert found["ours"]["layers"] == found["peer"]["layers"] == size.layers
    assert found["ours"]["test log-likelihood"] == pytest.approx(found["peer"]["test log-likelihood"])


def test_a_peer_that_takes_too_long_keeps_what_it_finished(benchmark, contestants):
    def slow(x, layers, seed):
        while len(x) > 300:
            pass
        return contestants.fit_ours(x, layers, seed)

    size = benchmark.QUICK._replace(sizes=(300, 400), features=3, rounds=1, limit=0.5)
    found = benchmark.against(contestants.Peer("numpy", "slow", slow, "for the test"), size)
    assert found["rows"] == 300
    assert "400 rows: more than 0.5 CPU s" in found["ended"]


def test_what_is_missing_is_said(benchmark, contestants, monkeypatch):
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda package: None)
    assert contestants.version("rbig") is None
    record = {
        "peers": {},
        "missing": ["rbig"],
        "blocks": {"M elements per CPU second": {"encode, eager": 8.0}, "eager layer over compiled": None},
        "fit": {"M elements per CPU second": {"without the first layer": 19.0}},
        "scores": {"pareto": 8.0},
        "moons": {"ours": {"integral": 1.02}},
    }
    found = benchmark.gates(record)
    assert found["≥ 20 × faster than rbig"] == "not measured: not installed"
    assert found["layer in a fit ≥ 20 M elements/s"].startswith("MISSED")
    assert found["moons: integral 1 ± 0.01"].startswith("MISSED")
    assert found["log_prob, pareto tails, ≥ 7 M elements/s"].startswith("met")


def test_the_density_of_the_mixed_sources(contestants):
    data = contestants.Mixed(2)
    step = 0.1
    axis = np.arange(-20, 20, step)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(data.log_prob(grid))
    assert density.sum() * step**2 == pytest.approx(1, abs=1e-3)
    x = data.draw(20_000, 0)
    # Moments of the draws are those of the density.
    assert np.allclose(np.cov(x.T), (grid * density[:, None]).T @ grid * step**2, atol=0.15)
    assert -data.log_prob(x).mean() == pytest.approx(-(density * data.log_prob(grid)).sum() * step**2, abs=0.05)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rbig", "sinflow", "sinflow by direction"])
def test_a_peer_fits_so_many_layers(contestants, name):
    peer = contestants.PEERS[name]
    pytest.importorskip(peer.package, reason=f"{peer.package} is not installed: a peer of the benchmark only")
    data = contestants.Mixed(4)
    x = data.draw(300, 0)
    before = x.copy()
    fitted = peer.fit(x, 3, 0)
    assert fitted.layers == 3
    assert fitted.score(x).shape == (300,)
    assert np.isfinite(fitted.score(x)).all()
    assert np.array_equal(x, before)
