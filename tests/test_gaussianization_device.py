"""Layerwise fits whose rows live on a torch device: the same counts as on the processor, exactly, and the same layers to rounding."""

import contextlib
import math
import os

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

import fluvial
from fluvial.cli import main
from fluvial.codecs import AnchorWeights, ConditionalSpline, MarginalSpline, Rotation, Standardize
from fluvial.codecs.marginal_spline import Knots
from fluvial.data import moons
from fluvial.gaussianization import device_store, fit
from fluvial.gaussianization.device_shard import DeviceShard, grid_cells, keys
from fluvial.gaussianization.device_store import DeviceStore, choose_device, exact_products
from fluvial.gaussianization.kernel_histogram import BINS, histogram_, to_keys
from fluvial.gaussianization.shard import Layer, Plan, Shard
from fluvial.gaussianization.sources import BLOCK, ArrayRows
from fluvial.gaussianization.tree import merge
from fluvial.gaussianization.workers import LocalWorkers

ROWS = 3 * BLOCK + 1000
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here"))
DEVICES = ["cpu", CUDA]


def table(features=3, rows=ROWS):
    """Correlated rows, one column of them skewed."""
    rng = np.random.default_rng(features)
    x = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features))
    x[:, 0] += x[:, -1] ** 2
    return x.astype(np.float32)


def classes(x):
    return np.digitize(x[:, 1:2], [-1.0, 0.5]).astype(np.float32)


def turn(features=3):
    return Rotation(features, seed=1).matrix.numpy()


def pair(device, *, weighted, held_out=0.1, condition=None, features=3):
    """A shard on the processor, and one on the device, of the same rows."""
    x = table(features)
    weight = (1 + np.arange(len(x)) % 3).astype(np.float64) if weighted else None
    shards = []
    for place in (None, device):
        plan = Plan(ArrayRows(x, condition, weight), len(x) - 500, held_out, 0, "eager", device=place)
        shards.append((Shard if place is None else DeviceShard)(plan, range(plan.source.blocks)))
        standardize = Standardize(features).double()
        standardize.fit_(torch.from_numpy(x.astype(np.float64)))
        shards[-1].load(standardize, np.zeros(features), 1.0)
    return shards


def knots(bins=8, features=3, tail="straight"):
    """Of splines that bend."""
    codec = MarginalSpline(features, bins, tail=tail)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return Knots(*(None if part is None else part.detach().contiguous() for part in codec.knots))


def total(nodes):
    return merge([nodes], -(-ROWS // BLOCK))


def equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def few(monkeypatch):
    """Pieces of two blocks, the last one of which is short, and parts of blocks for splines."""
    monkeypatch.setitem(device_store.ELEMENTS, "cpu", 2 * BLOCK * 3 + 5)


# ---- single passes over the rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("weighted", "held_out"), [(False, 0.0), (True, 0.1)])
def test_counts_are_the_same_whole_numbers(few, device, weighted, held_out):
    host, there = pair(device, weighted=weighted, held_out=held_out)
    for columns in (slice(0, 3), slice(1, 2)):
        coarse = host.count_keys(columns)
        np.testing.assert_array_equal(there.count_keys(columns), coarse)
        selected = np.full(coarse.shape, -1, np.int32)
        for row, count in zip(selected, coarse):
            used = np.flatnonzero(count)[::50]
            row[used] = np.arange(len(used))
        slots = int(selected.max()) + 1
        fine = host.count_fine(columns, selected, slots)
        assert 0 < fine.sum() < coarse.sum()
        np.testing.assert_array_equal(there.count_fine(columns, selected, slots), fine)
    equal(there.count_grid(None), host.count_grid(None))
    # A permutation rotates without rounding.
    exact = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    equal(there.count_grid(exact), host.count_grid(exact))


@pytest.mark.parametrize("device", DEVICES)
def test_a_rotation_moves_few_rows_over_an_edge(device):
    host, there = pair(device, weighted=False)
    found, expected = there.count_grid(turn()), host.count_grid(turn())
    assert found[0].sum() == expected[0].sum()
    assert np.abs(found[0] - expected[0]).sum() < 1e-3 * expected[0].sum()
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bandwidth", [0.0, 0.7])
def test_counts_of_sets(few, device, weighted, bandwidth):
    x = table()
    host, there = pair(device, weighted=weighted, condition=classes(x) if bandwidth == 0 else x[:, 1:] + 0.5)
    anchors = np.arange(3.0)[:, None] if bandwidth == 0 else np.random.default_rng(0).normal(size=(4, 2))
    weights = AnchorWeights(anchors, bandwidth=bandwidth)
    expected, found = (one.count_conditional(None, weights, len(anchors)) for one in (host, there))
    # In units of 2⁻¹⁶ rows; weights from a kernel are rounded on the way.
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=0 if bandwidth == 0 else 20)
    assert expected[0].sum() > 1000 * 2**16
    equal(found[1:3], expected[1:3])
    np.testing.assert_allclose(total(found[3]), total(expected[3]), rtol=1e-12 if bandwidth == 0 else 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tail", ["straight", "pareto"])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_layer_sends_the_rows_to_the_same_places(few, device, weighted, tail, rotated):
    host, there = pair(device, weighted=weighted)
    layer = Layer(turn() if rotated else None, knots(tail=tail))
    assert bool((torch.from_numpy(host.rows(np.arange(ROWS))[1]) > layer.splines.x[:, -1:]).any(1).all()), "the tails are used"
    for sums in (lambda shard: shard.look(covariance=True), lambda shard: shard.apply(layer, covariance=True)):
        expected, found = total(sums(host)), total(sums(there))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=2e-6 * np.abs(value).max())
    everyone = np.arange(ROWS)
    np.testing.assert_allclose(there.rows(everyone)[1], host.rows(everyone)[1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["classes", "kernel", "network"])
def test_a_layer_that_follows_the_condition(few, device, kind):
    x = table()
    host, there = pair(device, weighted=True, condition=classes(x))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 3), nn.Softmax(-1))
    weights = network if kind == "network" else AnchorWeights([[0.0], [1.0], [2.0]], bandwidth=0.7 if kind == "kernel" else 0.0)
    splines = ConditionalSpline(3, 8, weights, 3)
    with torch.no_grad():
        splines.table.add_(0.2 * torch.randn(splines.table.shape, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in splines.state_dict().items()}
    expected, found = (total(shard.apply(Layer(turn(), splines), covariance=False)) for shard in (host, there))
    np.testing.assert_allclose(found["nll"], expected["nll"], rtol=2e-6)
    np.testing.assert_allclose(there.rows(np.arange(ROWS))[1], host.rows(np.arange(ROWS))[1], rtol=1e-5, atol=2e-5)
    assert all(value.device.type == "cpu" and torch.equal(value, before[name]) for name, value in splines.state_dict().items()), "as it was given"


@pytest.mark.parametrize("device", DEVICES)
def test_rows_and_conditions_come_back(few, device):
    x = table()
    host, there = pair(device, weighted=False, condition=classes(x))
    numbers = np.array([0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 7, ROWS - 1])
    equal(there.rows(numbers), host.rows(numbers))
    np.testing.assert_array_equal(there.conditions(5), host.conditions(5))
    assert there.conditions(2) is None
    assert len(there.rows(np.empty(0, np.int64))[0]) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_parts_of_the_blocks_add_up_and_may_be_empty(device):
    plan = Plan(ArrayRows(table()), ROWS, 0.1, 0, "eager", device=device)
    blocks = plan.source.blocks
    parts = [DeviceShard(plan, part) for part in (range(0), range(2), range(2, blocks))]
    whole = DeviceShard(plan, range(blocks))
    for shard in (whole, *parts):
        standardize = Standardize(3).double()
        standardize.fit_(torch.from_numpy(table().astype(np.float64)))
        shard.load(standardize, np.zeros(3), 1.0)
    counts = [shard.count_grid(None) for shard in parts]
    np.testing.assert_array_equal(sum(one[0] for one in counts), whole.count_grid(None)[0])
    assert np.isinf(counts[0][1]).all(), "an extreme of no rows"
    nodes = [shard.apply(Layer(turn(), knots()), covariance=True) for shard in parts]
    found, expected = merge(nodes, blocks), total(whole.apply(Layer(turn(), knots()), covariance=True))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_no_number_is_counted_nowhere(device):
    x = np.array([[-np.inf, -9, -8, -0.0, 0.0, 1 / 256, 7.9999995, 8, np.inf, np.nan, 1e-42, -3e38]], np.float32)
    expected = np.zeros((1, BINS + 2), np.int64)
    histogram_(x, expected, engine="eager")
    cells = grid_cells(torch.from_numpy(x).to(device)).cpu().numpy().ravel()
    counts = np.bincount(cells, minlength=BINS + 3)
    np.testing.assert_array_equal(counts[:-1], expected[0])
    assert counts[-1] == 1
    number = ~np.isnan(x)
    np.testing.assert_array_equal(keys(torch.from_numpy(x).to(device)).cpu().numpy()[number] + 2**31, to_keys(x)[number])


# ---- whole fits


def both(data, device, **options):
    """Flows and histories of a fit on the processor, and of the same on a device."""
    found = []
    for place in (None, device):
        history = []
        flow = fit(data, **({"max_layers": 4, "progress": False, "threads": 1} | options), device=place, on_layer=history.append)
        found.append((flow, history))
    return found


def alike(one, other, *, data, c=None):
    """Whether two fits are the same to rounding, which moves a row over the edge of a bin here and there."""
    (flow, history), (on_device, there) = one, other
    assert [(row["layer"], row["rotation"]) for row in there] == [(row["layer"], row["rotation"]) for row in history]
    for name in ("nll", "train_nll"):
        np.testing.assert_allclose([row[name] for row in there], [row[name] for row in history], atol=1e-4)
    assert flow.state_dict().keys() == on_device.state_dict().keys()
    assert all(value.device.type == "cpu" for value in on_device.state_dict().values())
    rows = [torch.from_numpy(part[:2000]) if part is not None else None for part in (data, c)]
    with torch.no_grad():
        torch.testing.assert_close(on_device.log_prob(*rows).mean(), flow.log_prob(*rows).mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation": "hadamard", "tail": "gaussian"},
        {"rotation": "pca", "marginal": "affine"},
        {"rotation": "haar", "marginal": "mixture", "max_layers": 3},
        {"rotation": "none", "tail": "bounded", "validation": 0.3},
        {"threads": 3},
    ],
    ids=lambda options: ", ".join(f"{name} {value}" for name, value in options.items()) or "default",
)
def test_fits_are_the_same_to_rounding(device, options):
    x = table()
    alike(*both(x, device, **options), data=x)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_layer_is_the_same_to_the_last_bit(device):
    (flow, _), (on_device, _) = both(table(), device, max_layers=1)
    expected = flow.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in on_device.state_dict().items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["classes", "kernel"])
def test_fits_of_conditional_densities(device, kind):
    x = table(rows=9000)
    c = classes(x) if kind == "classes" else x[:, 1:] + 0.5
    alike(*both((x, c), device, conditioning=kind, max_layers=3 if kind == "classes" else 2, bins=16), data=x, c=c)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_trained_and_applied(device):
    x = table(2, rows=2500)
    history = []
    flow = fit((x, x[:, 1:] + 0.5), device=device, conditioning="network", max_layers=2, bins=8, progress=False, on_layer=history.append)
    assert history[1]["train_nll"] < history[0]["train_nll"] - 0.05
    log_prob = flow.log_prob(torch.from_numpy(x), torch.from_numpy(x[:, 1:] + 0.5))
    assert -log_prob.mean().item() == pytest.approx(0.9 * history[-1]["train_nll"] + 0.1 * history[-1]["nll"], abs=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_count_as_repeated_rows_and_fractions_are_fine(device):
    x = table(rows=6000)
    repeats = 1 + np.arange(len(x)) % 3
    options = {"validation": 0, "max_layers": 3, "bins": 16, "rotation": "haar", "alpha": 0.5}
    weighted, repeated = [], []
    fit((x, None, repeats.astype(np.float64)), device=device, progress=False, on_layer=weighted.append, **options)
    fit(np.repeat(x, repeats, axis=0), device=device, progress=False, on_layer=repeated.append, **options)
    np.testing.assert_allclose([row["train_nll"] for row in weighted], [row["train_nll"] for row in repeated], atol=1e-4)
    fractions = np.random.default_rng(0).uniform(0.1, 2.0, len(x))
    alike(*both((x, None, fractions), device, max_layers=3), data=x)


@pytest.mark.parametrize("device", DEVICES)
def test_the_density_is_exact_and_integrates_to_one(device):
    flow = fit(moons(4000, seed=0).x, device=device, max_layers=6, progress=False)
    axes = [low + (high - low) * (torch.arange(300) + 0.5) / 300 for low, high in ((-2.5, 3.5), (-2.5, 3.0))]
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(*axes)).double().exp().sum().item() * (6 / 300) * (5.5 / 300)
    assert mass == pytest.approx(1.0, abs=0.01)


def test_a_fit_goes_on_on_another_device(tmp_path):
    x = table(rows=9000)
    options = {"progress": False, "threads": 1}
    whole = fit(x, device="cpu", max_layers=4, **options)
    for name, first in (("same", "cpu"), ("other", None)):
        fit(x, device=first, max_layers=2, directory=tmp_path / name, **options)
        flow = fit(x, device="cpu", max_layers=4, directory=tmp_path / name, resume=True, **options)
        assert flow.state_dict().keys() == whole.state_dict().keys()
        if name == "same":
            assert all(torch.equal(value, whole.state_dict()[key]) for key, value in flow.state_dict().items())
        rows = torch.from_numpy(x)
        assert flow.log_prob(rows).mean().item() == pytest.approx(whole.log_prob(rows).mean().item(), abs=1e-4)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_a_process_of_a_group_has_a_device(tmp_path, monkeypatch):
    x = table(rows=9000)
    expected = fit(x, device="cpu", max_layers=2, progress=False, threads=1).state_dict()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        found = fit(x, device="cpu", max_layers=2, progress=False, threads=1).state_dict()
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        for rank in ("0", "1"):
            monkeypatch.setenv("LOCAL_RANK", rank)
            assert choose_device("cuda") == f"cuda:{rank}"
            assert choose_device("cuda:1") == "cuda:1"
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(ValueError, match="process 2 of this machine has no CUDA card of its own, as there are 2"):
            choose_device("cuda")
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_recipe_names_the_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["--gaussianize.device", "cpu", "--gaussianize.max_layers", "2", "--data.init_args.n", "2000"]
    assert main(["fit", "moons-gaussianization", "-o", "run", *changes, "--fit.progress", "false"]) == 0
    assert "device: cpu" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert len(fluvial.load(tmp_path / "run" / "model.safetensors").codec.parts) > 1
    # On a machine without that device it goes on with another one.
    assert main(["fit", "run", "--resume", "--gaussianize.max_layers", "3", "--gaussianize.device", "null"]) == 0


# ---- devices


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got 'gpu'"):
        fit(table(rows=100), device="gpu")
    with pytest.raises(ValueError, match="device 'cuda:99' does not exist"):
        fit(table(rows=100), device="cuda:99")
    assert choose_device("auto") == (None if not torch.cuda.is_available() else f"cuda:{torch.cuda.current_device()}")


def test_what_is_not_done_on_a_device_is_refused():
    with pytest.raises(ValueError, match="device='cpu' is not for the workers of Dask"):
        fit(table(rows=100), device="cpu", client="local")
    x = table(rows=100)
    with pytest.raises(ValueError, match="conditioning='joint' is not done on a device, got device='auto'"):
        fit((x, x[:, :1]), device="auto", conditioning="joint")


def test_a_device_that_is_too_small_says_how_much_is_needed():
    with pytest.raises(ValueError, match=r"32768 rows of 3 columns take 720,896 bytes on the device 'cpu', and .* but 100,000 are free") as caught:
        DeviceStore(range(4), ROWS, 3, device=torch.device("cpu"), memory=100_000)
    assert "\n" not in str(caught.value)


def test_a_store_on_a_device_keeps_what_it_is_given():
    store = DeviceStore(range(3, 4), ROWS, 2, device=torch.device("cpu"), condition_features=1, has_weight=True)
    x = np.arange(2000, dtype=np.float32).reshape(2, 1000)
    for part, values in (("x", x), ("ladj", x[0] / 3), ("weight", np.arange(1000)), ("condition", x[:1])):
        values.setflags(write=False)
        store.write(3, values, part)
        np.testing.assert_array_equal(store.read(3, part), values)
    assert store.tensor("x")[:, 1000:].unique(dim=1).squeeze(1).tolist() == x[:, -1].tolist(), "the last row fills the block"
    with pytest.raises(ValueError, match="no block 0 here"):
        store.read(0)


def test_products_are_exact_meanwhile_and_as_before_afterwards():
    def settings():
        return torch.get_float32_matmul_precision(), *(one.fp32_precision for one in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul))

    start = settings()
    try:
        torch.set_float32_matmul_precision("medium")
        before = settings()
        plan = Plan(ArrayRows(table(rows=100)), 100, 0.0, 0, "eager", device="cpu")
        with contextlib.closing(LocalWorkers(plan)):
            assert settings() == ("highest", "ieee", "ieee")
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision(start[0])
        for one, precision in zip((torch.backends.cuda.matmul, torch.backends.mkldnn.matmul), start[1:]):
            one.fp32_precision = precision
    with exact_products():
        assert settings() == ("highest", "ieee", "ieee")
    assert settings() == start


def test_passes_ask_the_device_for_nothing_but_their_results(few, monkeypatch):
    """On a device without numbers: all tensors are made there, and what is fetched does not grow with the rows."""
    monkeypatch.setattr(device_store, "_free", lambda device, memory: 10**9)
    fetched = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: fetched.append(self.device.type) or torch.zeros(self.shape, dtype=self.dtype))
    x = table()
    layers = [Layer(turn(), knots()), Layer(None, knots()), Layer(turn(), ConditionalSpline(3, 8, AnchorWeights([[0.0], [1.0]], bandwidth=0.5), 2))]
    asked = {}
    for rows in (BLOCK, ROWS):
        plan = Plan(ArrayRows(x[:rows], classes(x[:rows]), np.ones(rows)), rows, 0.1, 0, "eager", device="meta")
        shard = DeviceShard(plan, range(plan.source.blocks))
        shard.load(Standardize(3).double(), np.zeros(3), 1.0)
        passes = {
            "keys": lambda shard: shard.count_keys(slice(0, 3)),
            "fine": lambda shard: shard.count_fine(slice(0, 3), np.full((3, 2**16), -1, np.int32), 4),
            "grid": lambda shard: shard.count_grid(turn()),
            "classes": lambda shard: shard.count_conditional(turn(), AnchorWeights([[0.0], [1.0]]), 2),
            "kernel": lambda shard: shard.count_conditional(turn(), AnchorWeights([[0.0], [1.0]], bandwidth=0.5), 2),
            "look": lambda shard: shard.look(covariance=True),
            **{f"apply {k}": lambda shard, layer=layer: shard.apply(layer, covariance=False) for k, layer in enumerate(layers)},
        }
        for name, run in passes.items():
            fetched.clear()
            run(shard)
            assert set(fetched) == {"meta"}
            asked.setdefault(name, []).append(len(fetched))
    assert asked == {
        **{"keys": [1, 1], "fine": [1, 1], "grid": [3, 3], "classes": [4, 4], "kernel": [4, 4], "look": [4, 4]},
        **{f"apply {k}": [2, 2] for k in range(len(layers))},
    }


@pytest.mark.parametrize("place", ["meta", *DEVICES])
def test_a_fitted_flow_moves_to_a_device(place):
    """Large batches too, which on the processor alone go through compiled loops."""
    # Products ask what a device does in mixed precision, and that without numbers does not know.
    flow = fit(table(rows=2000), max_layers=3, progress=False, rotation="none" if place == "meta" else "auto")
    expected = flow.log_prob(torch.from_numpy(table(rows=9000))) if place != "meta" else None
    assert {type(part) for part in flow.codec.modules()} >= {Standardize, MarginalSpline, *([] if place == "meta" else [Rotation])}
    flow.to(place)
    x = torch.from_numpy(table(rows=9000)).to(place)
    with torch.no_grad():
        log_prob = flow.log_prob(x)
        assert (log_prob.shape, log_prob.device.type) == ((9000,), place)
        z = flow.encode(x)
        back = flow.decode(z)
        assert (back.shape, back.device.type) == (x.shape, place)
        if place == "meta":
            return
        torch.testing.assert_close(log_prob.cpu(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
        samples, of = flow.sample_and_log_prob(9000, generator=torch.Generator(place).manual_seed(0))
        assert samples.device.type == of.device.type == place
        assert math.isfinite(of.mean().item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")
def test_a_card_computes_no_product_with_fewer_digits(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    x = table(64, 9000)
    alike(*both(x, "cuda", rotation="haar"), data=x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA cards here")
def test_a_card_is_named():
    alike(*both(table(), "cuda:1"), data=table())
    assert os.environ.get("LOCAL_RANK") is None
    assert choose_device("cuda:1") == "cuda:1"
