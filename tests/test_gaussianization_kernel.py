"""Splines and histograms of blocks: compiled and eager agree, invert, and count exactly."""

import errno
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from fluvial.codecs import spline_loops
from fluvial.codecs.spline_kernel import Tables, decode_, decode_eager, encode_, encode_eager, prepare, rotate
from fluvial.gaussianization.kernel_histogram import edges, from_keys, histogram_, key_histogram_, refine_histogram_, to_keys

needs_numba = pytest.mark.skipif(not spline_loops.has_numba(), reason="numba is not installed")
ENGINES = [pytest.param("compiled", marks=needs_numba), "eager"]
AWKWARD = np.float32(
    [-np.inf, np.inf, -3e38, 3e38, -8, 8, -8.000001, 7.9999995, -0.0, 0.0, 1e-42, -1e-42, -1e-10, 1 / 256, -1 / 256, 0.00390624, 1e6, -1e6]
)


def smooth(features=5, knots=32, seed=0):
    """What a fit gives: images equally spaced, slopes that fit the knots."""
    generator = np.random.default_rng(seed)
    y = np.broadcast_to(np.linspace(-3.5, 3.5, knots), (features, knots))
    x = y * generator.uniform(0.5, 2, (features, 1)) + 0.1 * np.sin(2 * y + generator.normal(size=(features, 1)))
    return Tables(*(np.float32(t) for t in (x, y, np.gradient(y, axis=1) / np.gradient(x, axis=1))))


def heavy(features=5, knots=32):
    """Heavy tails: many knots close together in the middle, where the guide gives way to bisection."""
    y = np.broadcast_to(np.linspace(-3.5, 3.5, knots), (features, knots))
    x = np.sinh(1.8 * y) * np.linspace(0.5, 1, features)[:, None]
    return Tables(*(np.float32(t) for t in (x, y, np.gradient(y, axis=1) / np.gradient(x, axis=1))))


def rough(features=5, knots=32, seed=0, spread=1.15):
    """Widths, heights and slopes that differ at random, by factors of up to e^(2 spread)."""
    generator = np.random.default_rng(seed)
    x, y = (np.cumsum(np.exp(generator.uniform(-spread, spread, (features, knots))), axis=1) for _ in range(2))
    x, y = x / x[:, -1:] * 12 - 6, y / y[:, -1:] * 12 - 6
    return Tables(*(np.float32(t) for t in (x, y, np.exp(generator.uniform(-spread / 1.6, spread / 1.6, (features, knots))))))


def line():
    """Two knots, one bin."""
    return Tables(x=np.float32([[-1, 2]] * 5), y=np.float32([[0, 1]] * 5), slope=np.float32([[0.1, 3]] * 5))


TABLES = {"smooth": smooth, "heavy": heavy, "rough": rough, "line": line}


@pytest.fixture(params=TABLES.values(), ids=TABLES.keys())
def tables(request):
    return request.param()


def block(features=5, rows=1000, seed=1):
    x = np.random.default_rng(seed).normal(size=(features, rows)).astype(np.float32) * 3
    x[:, :4] = [-300, 300, 0, -0.0]
    return x


def apply(function, x, tables, engine):
    out, ladj = x.copy(), np.zeros(x.shape[1])
    function(out, tables, ladj, engine=engine)
    return out, ladj


@pytest.mark.parametrize("engine", ENGINES)
def test_agrees_with_double_precision(tables, engine):
    x = block()
    z, _ = apply(encode_, x, tables, engine)
    exact, _ = encode_eager(torch.from_numpy(x).double(), tables)
    np.testing.assert_allclose(z, exact, rtol=1e-6, atol=1e-6)
    for d in range(5):  # alone: errors are those of one element
        single = Tables(*(t[d : d + 1] for t in tables))
        _, ladj = apply(encode_, x[d : d + 1], single, engine)
        _, exact = encode_eager(torch.from_numpy(x[d : d + 1]).double(), single)
        np.testing.assert_allclose(ladj, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_bins_of_extreme_shape_cost_digits_and_no_more(engine):
    tables = rough(spread=2.3)  # slopes up to 200 times the mean slope of their bin
    x = block()
    z, ladj = apply(encode_, x, tables, engine)
    exact, exact_ladj = encode_eager(torch.from_numpy(x).double(), tables)
    np.testing.assert_allclose(z, exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ladj, exact_ladj, rtol=1e-4, atol=1e-4)
    back, _ = apply(decode_, z, tables, engine)
    exact_back, _ = decode_eager(torch.from_numpy(z).double(), tables)
    np.testing.assert_allclose(back, exact_back, rtol=1e-6, atol=1e-4)


@needs_numba
@pytest.mark.parametrize("function", [encode_, decode_])
def test_compiled_and_eager_agree(tables, function):
    x = block()
    (z, ladj), (expected, expected_ladj) = (apply(function, x, tables, engine) for engine in ("compiled", "eager"))
    np.testing.assert_allclose(z, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ladj, expected_ladj, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("function", [encode_eager, decode_eager])
def test_log_determinant_is_that_of_autograd(tables, function):
    x = torch.from_numpy(block()).double().requires_grad_()
    out, ladj = function(x, tables)
    (slope,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(ladj, slope.log().sum(0))
    assert torch.autograd.gradcheck(lambda x: function(x, tables), x[:, 4:8].detach().requires_grad_())


def test_eager_inverts_in_double_precision(tables):
    x = torch.from_numpy(block()).double()
    z, ladj = encode_eager(x, tables)
    back, inverse_ladj = decode_eager(z, tables)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_inverts(tables, engine):
    x = block()
    z, ladj = apply(encode_, x, prepare(tables), engine)
    back, inverse_ladj = apply(decode_, z, prepare(tables), engine)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(inverse_ladj, -ladj, rtol=0, atol=1e-4)  # it is taken at a rounded z
    again = z.copy()
    decode_(again, tables, engine=engine)
    np.testing.assert_array_equal(again, back)


def test_guide_and_bisection_are_both_tested():
    assert (prepare(heavy()).forward.scans == -1).all()
    assert (prepare(smooth()).forward.scans >= 1).all()
    assert (prepare(line()).forward.scans == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [encode_, decode_])
def test_the_cut_does_not_matter(engine, function):
    tables, x = prepare(rough(9)), block(9, 8192)
    whole, ladj = apply(function, x, tables, engine)
    for first, last in pairwise([0, 1, 8, 520, 8191, 8192]):
        part, part_ladj = apply(function, np.ascontiguousarray(x[:, first:last]), tables, engine)
        np.testing.assert_array_equal(part, whole[:, first:last])
        np.testing.assert_array_equal(part_ladj, ladj[first:last])
    part, part_ladj = apply(function, np.ascontiguousarray(x[:, :8191]), tables, engine)
    np.testing.assert_array_equal(part, whole[:, :8191])
    np.testing.assert_array_equal(part_ladj, ladj[:8191])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [encode_, decode_])
def test_what_is_not_a_number_stays_so(tables, engine, function):
    x = np.repeat(np.float32([[np.nan, -np.inf, np.inf, 0]]), 5, axis=0)
    z, ladj = apply(function, x, tables, engine)
    assert np.isnan(z[:, 0]).all()
    assert np.isnan(ladj[0])
    np.testing.assert_array_equal(z[:, 1:3], x[:, 1:3])
    tails = np.log(tables.slope[:, [0, -1]].astype(float)).sum(0)
    np.testing.assert_allclose(ladj[1:3], tails if function is encode_ else -tails, rtol=1e-6)
    assert np.isfinite(z[:, 3]).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_knots_are_met_and_the_map_increases(tables, engine):
    z, _ = apply(encode_, tables.x, tables, engine)
    np.testing.assert_allclose(z, tables.y, rtol=1e-6, atol=1e-6)
    back, _ = apply(decode_, tables.y, tables, engine)
    np.testing.assert_allclose(back, tables.x, rtol=1e-6, atol=1e-6)
    z, _ = apply(encode_, np.sort(block(5, 5000), axis=1), tables, engine)
    assert (np.diff(z) > -1e-6 * (1 + np.abs(z[:, 1:]))).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_do_not_pile_up_over_100_layers(engine):
    generator = np.random.default_rng(2)
    features, rows = 8, 500
    x, out = block(features, rows) / 3, np.empty((features, rows), np.float32)
    ladj, exact = np.zeros(rows), np.zeros(rows)
    for layer in range(100):
        tables = smooth(features, seed=layer)
        rotate(np.linalg.qr(generator.normal(size=(features, features)))[0], x, out)
        x, out = out, x
        exact += encode_eager(torch.from_numpy(x).double(), tables)[1].numpy()
        encode_(x, tables, ladj, engine=engine)
    assert np.abs(ladj - exact).max() < 3e-5
    assert np.abs(ladj - exact).mean() < 6e-6


def test_tables_may_be_tensors_on_the_graph():
    tables = smooth()
    tensors = Tables(*(torch.from_numpy(t).requires_grad_() for t in tables))
    x = block()
    expected, actual = (apply(encode_, x, t, "eager") for t in (tables, tensors))
    np.testing.assert_array_equal(actual[0], expected[0])
    encode_eager(torch.from_numpy(x), tensors)[1].sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_empty_blocks_and_absent_sums():
    x = np.zeros((5, 0), np.float32)
    encode_(x, smooth(), np.zeros(0))
    a, b = block(), block()
    encode_(a, smooth(), None)
    encode_(b, smooth(), np.zeros(1000))
    np.testing.assert_array_equal(a, b)


def bad(**changes):
    tables = smooth()
    for name, (index, value) in changes.items():
        getattr(tables, name)[index] = value
    return tables


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (bad(x=((1, 3), 9.0)), "x must increase.*coordinate 1 .* at knots 3, 4"),
        (bad(y=((2, 0), np.nan)), "y must increase.*coordinate 2"),
        (bad(slope=((0, 5), 0.0)), "coordinate 0 has 0 at knot 5"),
        (smooth(4), "4 coordinates"),
        (Tables(*(t[:, :1] for t in smooth())), "from 2 to 65536"),
    ],
)
def test_wrong_tables_are_named(tables, message):
    with pytest.raises(ValueError, match=message):
        encode_(block(), tables, None)


def test_wrong_blocks_are_named():
    for x in (block().astype(np.float64), block().T, block()[0], [[1.0]]):
        with pytest.raises(TypeError, match="expected a block"):
            encode_(x, smooth(), None)
    frozen = block()
    frozen.setflags(write=False)
    with pytest.raises(TypeError, match="read-only"):
        encode_(frozen, smooth(), None)
    with pytest.raises(TypeError, match="float64"):
        encode_(block(), smooth(), np.zeros(1000, np.float32))
    with pytest.raises(ValueError, match="one entry per row"):
        encode_(block(), smooth(), np.zeros(999))
    with pytest.raises(ValueError, match="engine"):
        encode_(block(), smooth(), None, engine="fast")


def test_rotates():
    x = block()
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    out = np.empty_like(x)
    assert rotate(q, x, out) is out
    np.testing.assert_allclose(out, q @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rotate(q.astype(np.float32), x, np.empty_like(x)), out)
    with pytest.raises(ValueError, match="overlaps"):
        rotate(q, x, x)
    with pytest.raises(ValueError, match="expected q"):
        rotate(q[:4], x, out)


def grid_counts(x, weight=None):
    return np.stack(
        [np.histogram(row[~np.isnan(row)], edges(), weights=None if weight is None else weight[~np.isnan(row)])[0] for row in x.astype(float)]
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_histogram_is_numpy_s(engine):
    on_edges = edges()[1:-1].astype(np.float32)
    x = np.stack([np.resize(AWKWARD, 5000), np.resize(on_edges, 5000), np.resize(np.nextafter(on_edges, np.float32(-9)), 5000), *block(2, 5000)])
    x[3, 7] = np.nan
    weight = np.random.default_rng(0).integers(0, 2**40, 5000)
    for w in (None, weight):
        counts = np.ones((5, 4098), np.int64)
        frozen = x.copy()
        frozen.setflags(write=False)
        histogram_(frozen, counts, w, engine=engine)
        np.testing.assert_array_equal(counts - 1, grid_counts(x, w))


@pytest.mark.parametrize("engine", ENGINES)
def test_histograms_add_up_for_any_cut(engine):
    x, weight = block(3, 3000), np.random.default_rng(0).integers(0, 9, 3000)
    selected = np.full((3, 2**16), -1, np.int32)
    selected[:, 49000:49200] = np.arange(200)
    functions = {
        4098: histogram_,
        2**16: key_histogram_,
        (200, 256): lambda x, counts, weight, engine: refine_histogram_(x, selected, counts, weight, engine=engine),
    }
    for shape, function in functions.items():
        whole, parts = (np.zeros((3, *(shape if isinstance(shape, tuple) else (shape,))), np.int64) for _ in range(2))
        function(x, whole, weight, engine=engine)
        for first, last in pairwise([0, 7, 1000, 2999, 3000]):
            function(np.ascontiguousarray(x[:, first:last]), parts, weight[first:last].copy(), engine=engine)
        np.testing.assert_array_equal(parts, whole)
        repeated = np.zeros_like(whole)
        function(np.repeat(x, weight, axis=1), repeated, None, engine=engine)
        np.testing.assert_array_equal(repeated, whole)


def patterns(count=100_000):
    """Floats of all bit patterns but NaN."""
    x = np.random.default_rng(3).integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    return np.concatenate([x[~np.isnan(x)], AWKWARD])


def test_keys_keep_the_order():
    x = patterns()
    keys = to_keys(x)
    other = np.random.default_rng(4).permutation(len(x))
    np.testing.assert_array_equal(keys < keys[other], x < x[other])
    np.testing.assert_array_equal(keys == keys[other], x == x[other])
    np.testing.assert_array_equal(from_keys(keys), x)
    assert to_keys(np.float32([-0.0])) == to_keys(np.float32([0.0]))
    assert not np.signbit(from_keys(to_keys(np.float32([-0.0]))))[0]
    ordered = np.sort(x)
    assert (np.diff(to_keys(ordered).astype(np.int64)) >= 0).all()
    assert to_keys(np.float32(2.0)).shape == ()


@pytest.mark.parametrize("engine", ENGINES)
def test_keys_are_counted_exactly(engine):
    x = np.stack([patterns()[-20_000:], np.resize(block(1), 20_000)])
    x[1, :3] = np.uint32([0x7FC00000, 0xFFC00000, 0x7F800001]).view(np.float32)  # NaN of both signs
    keys = to_keys(x[1, 3:]).astype(np.int64)
    for shift in (16, 20):
        counts = np.zeros((2, 2 ** (32 - shift)), np.int64)
        key_histogram_(x, counts, shift=shift, engine=engine)
        assert counts.sum(1).tolist() == [20_000, 19_997]
        np.testing.assert_array_equal(counts[1], np.bincount(keys >> shift, minlength=counts.shape[1]))

    counts = np.zeros((2, 2**16), np.int64)
    key_histogram_(x, counts, engine=engine)
    selected = np.full((2, 2**16), -1, np.int32)
    cells = np.unique(np.linspace(0, 19_996, 20).astype(int))
    cells = np.unique(np.sort(keys)[cells] >> 16)
    selected[1, cells] = np.arange(len(cells))[::-1]
    for bits in (0, 8, 16):
        fine = np.zeros((2, len(cells), 2**bits), np.int64)
        refine_histogram_(x, selected, fine, engine=engine)
        np.testing.assert_array_equal(fine[1].sum(-1)[::-1], counts[1, cells])
        assert fine[0].sum() == 0
    # All bits: order statistics come back exactly.
    slot = selected[1, keys >> 16]
    expected = np.sort(x[1, 3:][slot == 2])
    found = from_keys(np.uint32((cells[len(cells) - 3] << 16) + np.repeat(np.arange(2**16), fine[1, 2])))
    np.testing.assert_array_equal(found, expected)


def test_wrong_histograms_are_named():
    x, counts = block(2, 10), np.zeros((2, 4098), np.int64)
    with pytest.raises(TypeError, match="counts"):
        histogram_(x, counts.astype(float))
    with pytest.raises(ValueError, match="counts"):
        histogram_(x, counts[:, :-1].copy())
    with pytest.raises(TypeError, match="weight"):
        histogram_(x, counts, np.ones(10))
    with pytest.raises(ValueError, match="one entry per row"):
        histogram_(x, counts, np.ones(9, np.int64))
    with pytest.raises(ValueError, match="shift"):
        key_histogram_(x, np.zeros((2, 2**31), np.int8), shift=1)
    selected = np.zeros((2, 2**16), np.int32)
    with pytest.raises(ValueError, match="power of 2"):
        refine_histogram_(x, selected, np.zeros((2, 1, 100), np.int64))
    with pytest.raises(ValueError, match="slots below 1"):
        refine_histogram_(x, selected + 1, np.zeros((2, 1, 256), np.int64))
    with pytest.raises(TypeError, match="float32"):
        to_keys(np.zeros(3))


def test_small_data_do_not_wait_for_the_compiler(monkeypatch):
    assert spline_loops.choose_engine(20_000, 2) == "eager"
    assert spline_loops.choose_engine(200_000, 32) == ("compiled" if spline_loops.has_numba() else "eager")
    monkeypatch.setattr(spline_loops, "has_numba", lambda: False)
    assert spline_loops.choose_engine(200_000, 32) == "eager"
    assert spline_loops.resolve_engine(None) == "eager"
    with pytest.raises(ModuleNotFoundError, match="numba"):
        encode_(block(), smooth(), None, engine="compiled")
    x = block()
    encode_(x, smooth(), None)
    np.testing.assert_array_equal(x, apply(encode_, block(), smooth(), "eager")[0])


def test_importing_loads_no_numba():
    code = "import sys, fluvial.codecs.spline_kernel, fluvial.gaussianization.kernel_histogram; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_numba
@pytest.mark.parametrize("trouble", ["read-only", "full"])
def test_compiles_where_nothing_can_be_written(monkeypatch, tmp_path, trouble):
    from numba.core import caching, config

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if trouble == "full":
        monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    else:
        monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
        monkeypatch.setattr(caching.CompileResultCacheImpl.__mro__[1], "_locator_classes", [])
    loop = spline_loops.compiled.__wrapped__("histogram")
    counts = np.zeros((5, 4098), np.int64)
    loop(block(), counts, np.empty(0, np.int64))
    np.testing.assert_array_equal(counts, grid_counts(block()))
    assert type(loop._cache).__name__ == "NullCache"
