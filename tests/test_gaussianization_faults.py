"""What layerwise fits once took amiss: sizes, weights, ties, dependent columns, interruptions, and words that say what is wrong."""

import os
import signal
import warnings

import numpy as np
import pytest
import sklearn.cluster
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from fluvial.bases import Normal
from fluvial.check import check
from fluvial.codecs import Chain, ConditionalSpline, Standardize
from fluvial.codecs.marginal_spline import LEAST_SHAPE
from fluvial.data import Dataset
from fluvial.flow import Flow
from fluvial.gaussianization import fit, numpy_flow
from fluvial.gaussianization.columns import dependent_columns, ties_of
from fluvial.gaussianization.conditional import anchors_of_kernel
from fluvial.gaussianization.course import layer_line
from fluvial.gaussianization.dask_workers import Window, portable
from fluvial.gaussianization.export import export_numpy
from fluvial.gaussianization.joint_layers import ConditionRows
from fluvial.gaussianization.layers import LayerwiseFit
from fluvial.gaussianization.shard import Plan, Shard
from fluvial.gaussianization.sources import ArrayRows, open_rows
from fluvial.gaussianization.workers import LocalWorkers, combined
from fluvial.training.progress import Lines, line

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 3))
UNIFORM = RNG.uniform(size=600)


def quickly(data, **options):
    return fit(data, **({"max_layers": 2, "progress": False, "threads": 1} | options))


def with_column(values, column=1):
    x = X.copy()
    x[:, column] = values
    return x


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# Sizes.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (1e100 * X[:, 1], r"column 1 goes from -.*e\+100 to .*e\+100, numbers beyond 1e36, .* divide by"),
        (1e300 * X[:, 1], "numbers beyond 1e36"),
        (1e-100 * X[:, 1], r"column 1 goes from .*e-100, a spread below 1e-36, .* divide by"),
        (1e-40 * X[:, 1], "a spread below 1e-36"),
        (1e12 + X[:, 1], r"column 1 goes from 1e\+12 to 1e\+12, which single precision does not resolve; subtract 1e\+12 first"),
    ],
)
def test_columns_beyond_single_precision_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        quickly(with_column(values))
    with pytest.raises(ValueError, match=f"condition {message}" if message.startswith("column") else message):
        quickly((X, with_column(values)), conditioning="kernel")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_sizes_within_it_do_not_matter(scale):
    one, other = quickly(X), quickly(scale * X)
    found = other.log_prob(torch.from_numpy(scale * X).float()) + 3 * np.log(scale)
    assert (found - one.log_prob(torch.from_numpy(X).float())).abs().median() < 0.05


# Weights.


@pytest.mark.parametrize("scale", [1e300, 1e-280])
def test_weights_of_any_size(scale):
    one, other = quickly((X, None, UNIFORM)), quickly((X, None, scale * UNIFORM))
    x = torch.from_numpy(X).float()
    assert (one.log_prob(x) - other.log_prob(x)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (1e-310 * UNIFORM, "the largest weight is .*e-310, .* multiply all weights"),
        ((np.arange(600) < 6) * 1.0, r"only \d of the training rows have a weight above 0, too few .* at least 20"),
        (np.where(np.arange(600) < 5, 1, 1e-9), r"worth \d.* rows \(Kish's effective number\), too few"),
        (np.zeros(600), "weights of the training rows sum to 0"),
        (-UNIFORM, "weight of row 0 is -"),
        (np.where(np.arange(600) == 4, np.nan, 1), "weight of row 4 is nan"),
        (X, r"weight must be one number per row, shape \(600,\), got \(600, 3\)"),
        (UNIFORM[:5], "one weight per row"),
    ],
)
def test_weights_that_are_none(weight, message):
    with pytest.raises(ValueError, match=message):
        quickly((X, None, weight))


def test_twenty_weighted_rows_are_enough():
    assert quickly((X, None, (np.arange(600) < 20) * 1.0), validation=0.0)


# Ties.


def column_of(kind, rows=2000):
    rng = np.random.default_rng(1)
    normal, uniform = rng.normal(size=rows), rng.uniform(size=rows)
    return {
        "continuous": normal,
        "single precision": normal.astype(np.float32),
        "heavy": np.exp(3 * normal),
        "integers": rng.poisson(5, rows).astype(float),
        "many integers": np.floor(np.exp(3 * normal)),
        "zero-inflated integers": np.where(uniform < 0.6, 0.0, rng.poisson(5, rows)),
        "two digits": np.round(normal, 2),
        "two digits, single precision": np.round(normal, 2).astype(np.float32),
        "steps of 0.7": 0.7 * np.round(normal / 0.7),
        "Boolean": uniform < 0.3,
        "uneven levels": np.array([0, 1, 2.5, 7, 10])[rng.integers(0, 5, rows)],
        "60 % zeros": np.where(uniform < 0.6, 0.0, rng.exponential(size=rows)),
        "10 % zeros": np.where(uniform < 0.1, 0.0, normal),
        "two atoms": np.where(uniform < 0.4, 0.0, np.where(uniform < 0.7, 1.0, normal)),
        "censored": np.minimum(normal, 0.2),
        "repeated": np.repeat(normal[: rows // 4], 4),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "expected", "width"),
    [
        ("continuous", "none", 0),
        ("single precision", "none", 0),
        ("heavy", "none", 0),
        ("integers", "steps", 1),
        ("many integers", "steps", 1),
        ("zero-inflated integers", "steps", 1),
        ("two digits", "steps", 0.01),
        ("two digits, single precision", "steps", 0.01),
        ("steps of 0.7", "steps", 0.7),
        ("Boolean", "steps", 1),
        ("uneven levels", "steps", 1),
        ("60 % zeros", "atoms", 0.0085),
        ("10 % zeros", "atoms", 0.01),
        ("two atoms", "atoms", 0.01),
        ("censored", "atoms", 0.006),
        ("repeated", "repeated", 0),
    ],
)
@pytest.mark.parametrize("rows", [400, 20_000])
def test_kinds_of_ties(kind, expected, width, rows):
    # Fewer rows of two digits hardly meet.
    found = ties_of(column_of(kind, max(rows, 2000) if "digits" in kind else rows).astype(np.float64))
    assert found.kind == expected
    assert found.width == pytest.approx(width, rel=0.25 if expected == "atoms" else 1e-12)


def test_an_atom_is_named_and_spread():
    z = column_of("60 % zeros")
    with pytest.warns(UserWarning, match=r"columns with atoms, where a density is a spike.*1 \(0\.\d+ of its rows are 0; width 0\.00\d+\)"):
        flow = quickly(np.stack([column_of("continuous"), z], 1))
    width = flow.spec.dequantize[1]
    assert width > 1e-3
    samples = flow.sample(4000, generator=torch.Generator().manual_seed(0))[:, 1]
    assert ((samples >= -width / 10) & (samples < 1.1 * width)).double().mean() == pytest.approx((z == 0).mean(), abs=0.1)


def test_one_hot_columns_are_steps_and_not_dependent():
    hot = np.eye(3)[RNG.integers(0, 3, 600)]
    with pytest.warns(UserWarning, match=r"3 \(steps of 1\), 4 \(steps of 1\), 5 \(steps of 1\)") as caught:
        quickly(np.concatenate([X, hot], 1))
    assert len(caught) == 1


def test_repeated_rows_are_not_spread_over_a_tiny_step():
    with pytest.warns(UserWarning, match="ties on no common step are left as they are: 0, 1, 2; if rows are repeated, give them weights"):
        flow = quickly(np.repeat(X[:300], 4, 0))
    assert flow.spec.dequantize is None


# Columns that depend on each other.


def test_dependent_columns_are_named():
    x = np.stack([X[:, 0], X[:, 1], X[:, 2], 2 * X[:, 0] - X[:, 2] + 5], 1)
    for rows in (x, x.astype(np.float32), x * [1e-20, 1, 1e5, 1]):
        with pytest.warns(UserWarning, match="columns 0, 2, 3 are linear combinations of each other.* in 4 dimensions; leave one of them out"):
            flow = quickly(rows, max_layers=1)
        assert torch.isfinite(flow.log_prob(torch.from_numpy(rows[:5]).float())).all()


def test_check_says_so_too():
    for last, verdict in ((X[:, 0] + X[:, 1], "bad"), (X[:, 2], "good")):
        row = check(Flow(Standardize(3), Normal(3)), with_column(last, 2)[:40].astype(np.float32), samples=40)["NLL"]
        assert row.verdict == verdict
        assert ("linear combinations" in row.advice) == (verdict == "bad")


def test_no_false_alarm_of_dependence():
    near = X.copy()
    near[:, 2] = near[:, 0] + near[:, 1] + 1e-3 * near[:, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quickly(near)
        quickly(X[:25], validation=0.0)
    wide = np.random.default_rng(0).normal(size=(100, 90))
    assert dependent_columns(wide, np.zeros(90)) == []
    assert dependent_columns(X @ np.ones((3, 3)), np.ones(3)) == [], "with noise they do not"


# Words.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": (0.1,)}, r"alpha must be a number within 0 and 1, or two, .* got \(0.1,\)"),
        ({"alpha": (0.1, 0.2, 0.3)}, "or two, for the first layer and for the others"),
        ({"alpha": "a"}, "alpha must be a number"),
        ({"alpha": None}, "alpha must be a number"),
        ({"alpha": True}, "alpha must be a number"),
        ({"alpha": float("nan")}, "alpha must lie within 0 and 1, got nan"),
        ({"dither": [0.1, 0.1]}, "one or one for each of 3 columns, got"),
        ({"dither": [[0.1, 0.1, 0.1]]}, "one or one for each of 3 columns"),
        ({"dither": "much"}, "dither must be 'auto', None, or widths .* got 'much'"),
        ({"validation": None}, r"validation must be a share .* \(0 for none\), or rows, got None"),
        ({"validation": "0.1"}, "got the text '0.1'; leave out the quotation marks"),
        ({"validation": True}, "or rows, got True"),
        ({"validation": float("nan")}, "validation must be a share"),
        ({"validation": 0.99}, "600 rows less a share of 0.99 that is held out .* are too few .* at least 20"),
        ({"validation": X[:50, :2]}, "both need the same columns"),
        ({"validation": X[:0]}, "there are no rows"),
        ({"bins": 70_000}, "a whole number, from 2 to 4096, got 70000"),
        ({"bins": 2.5}, "bins must be 'auto' or a whole number"),
        ({"bins": True}, "bins must be 'auto' or a whole number"),
        ({"max_layers": 2.5}, "max_layers must be a whole number, at least 1, got 2.5"),
        ({"patience": "a"}, "patience must be a whole number"),
        ({"threads": 0}, "threads must be a whole number, at least 1, got 0"),
        ({"threads": 1.5}, "threads must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, from 0 to 9223372036854775807, got -1"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"min_gain": float("nan")}, "min_gain must be a number of nats"),
        ({"bounds": 3}, r"bounds of 3 columns, a pair \(lower, upper\) for each"),
        ({"bounds": [(0, 1, 2)] * 3}, r"got \(0, 1, 2\) for column 0"),
        ({"bounds": [("a", "b")] * 3}, r"got \('a', 'b'\) for column 0"),
        ({"bounds": [(None, None), (5, -5), (None, None)]}, "bounds of column 1 must increase, got 5 and -5"),
        ({"memory": "lots"}, "memory: expected a number of bytes .* got 'lots'"),
        ({"rotation": "foo"}, "rotation is one of .* got 'foo'"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quickly(X, **options)


@pytest.mark.parametrize(
    "options", [{"bins": np.int64(16)}, {"validation": np.float32(0.1)}, {"alpha": np.array([0.1, 0.5])}, {"seed": np.int32(3)}], ids=str
)
def test_numbers_of_numpy_are_numbers(options):
    plain = {name: value.tolist() if value.ndim else value.item() for name, value in options.items()}
    assert same(quickly(X, **options), quickly(X, **plain))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.where(np.arange(1800).reshape(600, 3) == 53, np.nan, X), "row 17, column 2 is nan"),
        ((X, np.where(np.arange(600) == 17, np.inf, X[:, 0])), "row 17, condition column 0 is inf"),
        (X.reshape(-1, 2, 3), r"shape \(n, features\), got \(300, 2, 3\)"),
        (np.array([["a", "b"]] * 50), "expected numbers, got an array of dtype"),
        (X + 1j, "expected .*numbers, got .*complex128"),
        (X[:0], "there are no rows"),
        (X[:, :0], r"got \(600, 0\)"),
        ((X, X[:10]), r"one condition per row of x \(600\)"),
        (X[:21], "21 rows less a share of 0.1 that is held out"),
        (with_column(3.0), "column 1 holds one value only; leave it out"),
        (with_column(np.full((600, 2), 3.0), slice(0, 2)), "columns 0, 1 hold one value only; leave them out"),
        ((X, np.ones(600)), r"the condition is the same in all rows \(1\), so that nothing depends on it; leave it out"),
        ((X, (np.arange(600) < 5) * 1.0), r"the class \[1.0\] has \d training rows, at least 20 are needed; leave it out, or take conditioning"),
    ],
)
def test_data_that_make_no_sense_are_named(data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quickly(data)


def test_rows_of_parquet_files_are_named(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": X[:, 0], "y": X[:, 1], "c": X[:, 2], "w": UNIFORM})
    for name, what in (("x", "column 'x'"), ("c", "column 'c'"), ("w", "column 'w'")):
        bad = frame.copy()
        bad.loc[17, name] = np.inf
        bad.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=f"{what}, row 17: .*inf"):
            quickly(tmp_path / "rows.parquet", condition="c", weight="w")


def test_a_constant_column_of_the_condition_is_named_in_a_joint_fit():
    with pytest.raises(ValueError, match="condition column 0 holds one value only; leave it out"):
        quickly((X, np.stack([np.ones(600), UNIFORM], 1)), conditioning="joint")


def test_one_column_by_itself():
    assert torch.equal(quickly(X[:, 0]).sample(3, generator=torch.Generator().manual_seed(0)).isfinite(), torch.ones(3, 1, dtype=torch.bool))


# How it is done.


def test_rows_are_surveyed_once(monkeypatch):
    calls = []
    survey = Shard.survey
    monkeypatch.setattr(Shard, "survey", lambda self, *given: calls.append(1) or survey(self, *given))
    quickly(X)
    quickly(X, tail="bounded")
    assert len(calls) == 2


@pytest.mark.parametrize("threads", [2, 4])
def test_clusters_of_conditions_do_not_depend_on_threads(threads, monkeypatch):
    conditions, seen, kmeans = RNG.normal(size=(4000, 2)).astype(np.float32), [], sklearn.cluster.KMeans

    def observed(*given, **options):
        seen.append([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"])
        return kmeans(*given, **options)

    monkeypatch.setattr(sklearn.cluster, "KMeans", observed)
    with threadpool_limits(threads):
        many = anchors_of_kernel(conditions, 20_000, 3)
    with threadpool_limits(1):
        one = anchors_of_kernel(conditions, 20_000, 3)
    assert torch.equal(one.places, many.places)
    assert one.bandwidth == many.bandwidth
    assert seen[0]
    assert set(seen[0]) == {1}


def test_counts_of_several_shards_are_summed():
    plan = Plan(ArrayRows(X.astype(np.float32).repeat(30, 0)), 18_000, 0.0, 0, "eager")
    for threads in (1, 3):
        workers = LocalWorkers(plan, threads=threads)
        try:
            standardize = Standardize(3).double()
            standardize.is_fitted.fill_(1)
            workers.call("load", Chain([standardize]), np.zeros(3), 1.0)
            found = workers.counted("count_grid", None)
            assert found.counts.sum(1).tolist() == [18_000] * 3
            np.testing.assert_allclose(found.high, X.max(0), rtol=1e-6)
            assert all(np.array_equal(one, other) for one, other in zip(found[:3], combined(workers.call("count_grid", None))[:3]))
        finally:
            workers.close()


def test_the_line_of_layers(capsys):
    text = layer_line(20, 1.1, {"nll": 1.1923, "nll_error": 0.0151}, {"monitor": 1.187, "step": 18})
    assert text == "layer 20 · nll 1.192 ± 0.015 · best 1.187 at 18"
    assert layer_line(20, 1.1, {}, {"monitor": 1.1, "step": 20}) == "layer 20 · train nll 1.1"
    quickly(X, progress=True)
    shown = capsys.readouterr().err
    assert "layer 2 · nll" in shown
    assert "loss" not in shown
    assert "step" not in shown
    Lines(0.0, line).update(3, 1.0, 1.5, {}, None)
    assert "step 3 · loss 1.5" in capsys.readouterr().err


def test_ctrl_c_while_the_condition_is_fitted(monkeypatch, tmp_path, capsys):
    c = UNIFORM + 0.1 * X[:, 0]
    kept = quickly((X, c), conditioning="joint", directory=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    add, pressed = LayerwiseFit.add_layer, []

    def pressing(self):
        if isinstance(self.plan.source, ConditionRows) and not pressed:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        add(self)

    monkeypatch.setattr(LayerwiseFit, "add_layer", pressing)
    history = []
    flow = quickly((X, c), conditioning="joint", directory=tmp_path, on_end=history.append, progress=True)
    assert history[0].stopped == "interrupted"
    assert history[0].rows == []
    assert "interrupted while the flow of the condition was fitted" in capsys.readouterr().out
    assert torch.isfinite(flow.log_prob(torch.from_numpy(X).float())).all()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert same(quickly((X, c), conditioning="joint", directory=tmp_path, resume=True), kept)


def test_conditions_on_disk_are_not_sent(tmp_path):
    np.save(tmp_path / "x.npy", X)
    source = ConditionRows(open_rows(tmp_path / "x.npy", columns=["x0", "x1"], condition="x2"))
    assert portable(source, range(1)) is source
    assert isinstance(portable(ConditionRows(ArrayRows(X, X)), range(1)), Window)


# NumPy.


@pytest.mark.parametrize("conditioning", ["classes", "kernel", "joint"])
def test_conditional_flows_in_numpy(conditioning, tmp_path):
    c = np.stack([np.round(2 * UNIFORM) if conditioning == "classes" else UNIFORM, X[:, 0] > 0 if conditioning == "classes" else X[:, 0]], 1)
    flow = quickly((X + c[:, :1] ** 2, c), conditioning=conditioning, max_layers=3)
    export_numpy(flow, tmp_path / "flow.npz")
    there, here = numpy_flow.load(tmp_path / "flow.npz"), flow.double()
    conditions = torch.from_numpy(c[:200].astype(np.float32)).double()
    z = 2 * torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = here.decode(z, conditions)
        np.testing.assert_allclose(there.decode(z.numpy(), conditions.numpy()), x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(there.encode(x.numpy(), conditions.numpy()), here.encode(x, conditions), rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(there.log_prob(x.numpy(), conditions.numpy()), here.log_prob(x, conditions), rtol=1e-7, atol=1e-7)
    one = there.sample(4000, c[0], seed=0)
    assert one.shape == (4000, 3)
    many = here.sample(4000, conditions[0]).detach().numpy()
    np.testing.assert_allclose(one.mean(0), many.mean(0), atol=0.12)
    assert there.sample(200, c[:200], seed=0).shape == (200, 3)
    assert there.log_prob(x.view(10, 20, 3).numpy(), conditions.view(10, 20, 2).numpy()).shape == (10, 20)
    for wrong in (None, c[:7], c[0, :1]):
        with pytest.raises(ValueError, match="condition"):
            there.log_prob(x.numpy(), wrong)


def test_what_numpy_cannot_do_is_named(tmp_path):
    weights = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Softmax(-1))
    flow = Flow(ConditionalSpline(3, 4, weights, 2), Normal(3), condition=1)
    with pytest.raises(ValueError, match="ConditionalSpline of Sequential, which the NumPy reader does not know"):
        export_numpy(flow, tmp_path / "flow.npz")
    with pytest.raises(ValueError, match="expected no condition"):
        numpy_flow.NumpyFlow(1, [("affine", {"loc": np.zeros(1), "scale": np.ones(1)})]).log_prob(np.zeros((2, 1)), np.zeros(1))
    with pytest.raises(ValueError, match="unknown kind 'sheared'"):
        numpy_flow.NumpyFlow(1, [("sheared", {})])
    table = {"anchors": np.zeros((2, 1)), "scale": np.ones(1), "bandwidth": np.array(1.0), "table": np.zeros((2, 1, 7))}
    with pytest.raises(ValueError, match="table has the shape"):
        numpy_flow.NumpyFlow(1, [("anchored", table)], condition=1)
    assert numpy_flow.LEAST_SHAPE == LEAST_SHAPE


def test_a_data_set_with_noise_does_not_depend():
    x = np.stack([X[:, 0], X[:, 1], X[:, 0] + X[:, 1]], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quickly(Dataset(x, noise=0.1))
