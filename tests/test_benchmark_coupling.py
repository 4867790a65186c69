"""The benchmark of spline couplings runs, at sizes that say nothing about speed."""

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("coupling_models")


@pytest.fixture
def benchmark(models):
    return importlib.import_module("coupling")


@pytest.fixture
def tiny(models):
    return models.Size(4, 3, blocks=2, widths=(8, 8), context=2, batch=32)


@pytest.fixture
def names(models):
    missing = models.absent()
    return ["fluvial", *(name for name, (package, _) in models.PEERS.items() if package not in missing)]


@pytest.mark.filterwarnings("ignore")
def test_every_operation_of_every_installed_package(benchmark, tiny, names):
    figures = benchmark.measure(tiny, names, rounds=2, with_memory=True)
    for name in names:
        for operation in benchmark.OPERATIONS:
            assert figures[operation][name]["median"] > 0
        assert figures["memory"][name] > 1
        assert figures["round trip"][name] < 1e-3
    table = benchmark.table({str(tiny): figures})
    assert all(f"| {name} |" in table for name in names)


@pytest.mark.filterwarnings("ignore")
def test_all_models_have_the_networks_of_the_limit(models, tiny, names):
    def weights(module):
        return sorted(tuple(p.shape) for p in module.parameters() if p.ndim == 2)

    limit = weights(models.Limit(tiny))
    for name, model in models.contestants(tiny, [name for name in names if name != "zuko NSF"]).items():
        assert weights(model.module) == limit, name


def test_packages_that_are_missing_are_said_so(models, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    missing = models.absent()
    assert missing["nflows"] == missing["zuko"] == "not installed"
    assert "no spline couplings" in missing["FrEIA"]


def test_a_model_that_does_not_come_back_is_refused(models, tiny):
    model = models.fluvial(tiny)
    x, c = torch.randn(tiny.batch, tiny.features), torch.randn(tiny.batch, tiny.context)
    assert models.check("ours", model, x, c) < 1e-3
    with pytest.raises(RuntimeError, match="round trip"):
        models.check("broken", model._replace(round_trip=lambda x, c: x + 1), x, c)
    with pytest.raises(RuntimeError, match="not finite"):
        models.check("broken", model._replace(log_prob=lambda x, c: x[:, 0] / 0), x, c)


def test_goals_are_judged_by_the_medians(benchmark):
    def figures(ours, peer):
        values = {"fluvial": {"median": ours}, "zuko coupling": {"median": peer}}
        return dict.fromkeys(benchmark.OPERATIONS, values)

    verdicts = benchmark.gates({"d=8, 8 bins": figures(1.5, 3.0), "d=32, 16 bins": figures(2.1, 2.5)})
    assert verdicts["d=8: training ≤ 1.8 × limit"] == "PASS (1.50)"
    assert verdicts["d=32: training ≤ 2.0 × limit"] == "MISS (2.10)"
    assert verdicts["d=32: best peer's training ≥ 1.4 × ours"] == "MISS (1.19)"


def test_saved_bytes_counts_every_storage_once(benchmark):
    x = torch.randn(100, requires_grad=True)
    assert benchmark.saved_bytes(lambda: (x.view(10, 10) * x.view(10, 10)).sum()) == 400
    assert benchmark.saved_bytes(lambda: (x.exp() * 2.0).sum()) == 400


def test_the_limit_trains_every_network_and_keeps_no_output(benchmark, models, tiny):
    module = models.Limit(tiny)
    x = torch.randn(tiny.batch, tiny.features // 2 + tiny.context, requires_grad=True)
    gradient = torch.randn(tiny.batch, tiny.features // 2 * (3 * tiny.bins - 1))
    sum(benchmark._Pull.apply(network(x), gradient) for network in module.networks).backward()
    found = [x.grad, *(p.grad for p in module.parameters())]
    x.grad = None
    module.zero_grad()
    torch.autograd.backward([network(x) for network in module.networks], [gradient] * tiny.blocks)
    torch.testing.assert_close(found, [x.grad, *(p.grad for p in module.parameters())])
