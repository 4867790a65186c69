"""Chains of rotations and splines through compiled loops: the same numbers as in torch, and only where nobody asks for more than numbers."""

import subprocess
import sys
import warnings

import pytest
import torch

from fluvial.bases import Normal
from fluvial.codecs import (
    Chain,
    ConditionalSpline,
    FreeForm,
    Hadamard,
    MarginalSpline,
    Permutation,
    PrincipalAxes,
    Rotation,
    Standardize,
    TrainableRotation,
    blocks,
    spline_loops,
)
from fluvial.flow import Flow
from fluvial.nn import Residual

needs_numba = pytest.mark.skipif(not spline_loops.has_numba(), reason="numba is not installed")
FEATURES, ROWS = 5, 6000
SIDES = ["encode", "decode", "encode_ladj", "decode_ladj"]


@pytest.fixture(autouse=True)
def ready():
    """The loops are loaded, as after a large batch."""
    if spline_loops.has_numba():
        spline_loops.compiled("spline")
    torch.manual_seed(0)


@pytest.fixture
def sent(monkeypatch):
    """Counts the calls that went through the loops."""
    calls, original = [], blocks._sent

    def counted(x, maps, *, ladj):
        calls.append(len(maps))
        return original(x, maps, ladj=ladj)

    monkeypatch.setattr(blocks, "_sent", counted)
    return calls


def spline(bins=16, tail="straight", features=FEATURES):
    codec = MarginalSpline(features, bins, tail=tail)
    with torch.no_grad():
        for p in codec.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return codec


def chain(tail="straight"):
    standardize = Standardize(FEATURES)
    standardize.fit_(3 + 2 * torch.randn(100, FEATURES))
    axes = PrincipalAxes(FEATURES)
    axes.fit_(1 + torch.randn(100, FEATURES) * torch.arange(1.0, 6))
    rotations = [Rotation(FEATURES, seed=1), Hadamard(FEATURES), TrainableRotation(FEATURES, start="random"), Permutation([3, 0, 4, 1, 2]), axes]
    parts = [part for rotation in rotations for part in (rotation, spline(8, tail))]
    return Chain([Chain([standardize]), spline(1, tail), *parts])


def points(rows=ROWS):
    """Within the knots, far beyond them, and no numbers at all."""
    x = 3 * torch.randn(rows, FEATURES)
    x[3, 2], x[4, 0], x[5, 1] = torch.nan, torch.inf, -torch.inf
    return x


def eager(function, *args):
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(blocks, "LEAST", 10**12)
        return function(*args)


@needs_numba
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("tail", ["straight", "pareto"])
@pytest.mark.parametrize("bins", [1, 7, 300])
def test_one_spline_is_that_of_torch(side, tail, bins, sent):
    function, x = getattr(spline(bins, tail), side), points()
    with torch.no_grad():
        found = function(x)
    expected = eager(function, x)
    assert sent == [1]
    z, z_expected = (found[0], expected[0]) if "ladj" in side else (found, expected)
    # The kernel's bins are ratios in double precision, those of torch in single.
    torch.testing.assert_close(z, z_expected, rtol=3e-6, atol=3e-6, equal_nan=True)
    assert z.is_contiguous()
    if "ladj" in side:
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-4, equal_nan=True)


@needs_numba
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("tail", ["straight", "pareto"])
def test_a_chain_is_as_exact_as_in_torch(side, tail, sent):
    # Of twelve inverses of heavy tails in a row nothing but the middle stays finite.
    codec, x = chain(tail), points() / (4 if "decode" in side else 1)
    function = getattr(codec, side)
    with torch.no_grad():
        found = function(x)
    assert sent == [12]
    ordinary = eager(function, x)
    exact = eager(getattr(codec.double(), side), x.double())
    if "ladj" not in side:
        found, ordinary, exact = [found], [ordinary], [exact]
    for ours, theirs, value in zip(found, ordinary, exact):
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float32
        assert torch.equal(ours.isnan(), theirs.isnan())
        here = ours.isfinite() & theirs.isfinite() & (value.abs() < 1e4)
        assert here.sum() > 0.7 * here.numel()
        errors = [((t - value).abs() / (1 + value.abs()))[here] for t in (ours, theirs)]
        assert errors[0].mean() < 1.5 * errors[1].mean() + 1e-7


@needs_numba
def test_any_number_of_threads_and_cut_gives_the_same(monkeypatch):
    codec, x = chain(), points()
    before = torch.get_num_threads()
    with torch.no_grad():
        expected = codec.encode_ladj(x)
        monkeypatch.setattr(blocks, "ELEMENTS", 512 * FEATURES)
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found = codec.encode_ladj(x)
                assert torch.get_num_threads() == threads
                for a, b in zip(found, expected):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5, equal_nan=True)  # products of matrices round by their size
        finally:
            torch.set_num_threads(before)
    with torch.inference_mode():
        torch.testing.assert_close(codec.encode(x), expected[0], rtol=1e-6, atol=1e-5, equal_nan=True)


@needs_numba
def test_batch_axes_and_order_in_memory(sent):
    codec, x = chain(), torch.randn(20, 300, FEATURES)
    with torch.no_grad():
        z, ladj = codec.encode_ladj(x)
        flat, flat_ladj = codec.encode_ladj(x.view(-1, FEATURES))
        turned, _ = codec.encode_ladj(x.view(-1, FEATURES).mT.contiguous().mT)
    assert len(sent) == 3
    assert torch.equal(z.view(-1, FEATURES), flat)
    assert torch.equal(ladj.view(-1), flat_ladj)
    assert torch.equal(turned, flat)


@needs_numba
def test_changes_of_parameters_are_seen(sent):
    codec, x = chain(), points()
    with torch.no_grad():
        before = codec.encode(x)
        codec.parts[1].bottom.add_(1)
        codec.parts[3].log_slopes.data.add_(0.5)
        codec.parts[2].matrix.copy_(torch.eye(FEATURES))
        after = codec.encode(x)
    assert len(sent) == 2
    assert not torch.allclose(before, after, equal_nan=True)
    torch.testing.assert_close(after, eager(codec.encode, x), rtol=1e-3, atol=1e-3, equal_nan=True)


@needs_numba
def test_gradients_go_the_ordinary_way(sent):
    codec, x = chain(), torch.randn(ROWS, FEATURES)
    z, ladj = codec.encode_ladj(x)  # of the parameters
    assert z.requires_grad
    assert ladj.requires_grad
    codec.requires_grad_(requires_grad=False)
    for one in (codec, codec.parts[1]):
        z, ladj = one.encode_ladj(x.clone().requires_grad_())
        assert z.requires_grad
        assert ladj.requires_grad
    torch.func.vmap(codec.encode)(x.view(2, -1, FEATURES))
    torch.func.jvp(codec.encode, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        z = codec.encode(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.autograd.forward_ad.unpack_dual(z).tangent is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is old
        torch.jit.trace(lambda x: codec.encode(x), x, check_trace=False)
    torch._dynamo.reset()
    torch.compile(codec.encode, backend="eager", fullgraph=True)(x)
    with torch.autocast("cpu"):
        codec.encode(x)
    assert sent == []
    codec.encode(x)
    assert len(sent) == 1


@needs_numba
def test_other_precisions_and_small_batches_go_the_ordinary_way(sent):
    codec, x = chain(), torch.randn(ROWS, FEATURES)
    with torch.no_grad():
        assert codec.encode(x.double()).dtype == torch.float64
        codec.encode(x[:100])
        codec.encode(x[0])
        codec.encode(x[:0])
        codec.double()
        codec.encode(x)
    assert sent == []


@needs_numba
def test_splines_that_the_kernel_does_not_take(sent):
    """Bins without a width, as training may leave them."""
    codec, x = Chain([Rotation(FEATURES), spline(), Rotation(FEATURES), spline()]), torch.randn(ROWS, FEATURES)
    with torch.no_grad():
        codec.parts[1].log_widths[2, 4] = -80
        found = codec.encode(x)
    assert sent == [1]  # the other spline
    torch.testing.assert_close(found, eager(codec.encode, x), rtol=1e-5, atol=1e-5)


@needs_numba
def test_parts_that_know_no_blocks_stay_as_they_are(sent):
    network = FreeForm(Residual(FEATURES, FEATURES, context=1), Residual(FEATURES, FEATURES, context=1))
    c = torch.rand(ROWS, 1)
    conditional = ConditionalSpline(FEATURES, 4, torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Softmax(-1)), 3)
    codec = Chain([Rotation(FEATURES), spline(), conditional, spline(), network, Rotation(FEATURES), spline()])
    x = torch.randn(ROWS, FEATURES)
    with torch.no_grad():
        z, back = codec.encode(x, c), codec.decode(x, c)
    assert sent == [2, 1, 2, 2, 1, 2]
    torch.testing.assert_close(z, eager(codec.encode, x, c), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, eager(codec.decode, x, c), rtol=1e-4, atol=1e-4)


@needs_numba
def test_flows_score_and_draw_by_blocks(sent):
    flow = Flow(chain(), Normal(FEATURES)).eval()
    x = 3 * torch.randn(ROWS, FEATURES)
    log_p = flow.log_prob(x)
    generator = torch.Generator().manual_seed(3)
    y, log_q = flow.sample_and_log_prob(ROWS, generator=generator)
    assert len(sent) == 2
    torch.testing.assert_close(log_p, eager(flow.log_prob, x), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(log_q, flow.log_prob(y), rtol=1e-3, atol=1e-2)


def test_works_without_numba(monkeypatch, sent):
    monkeypatch.setattr(spline_loops, "has_numba", lambda: False)
    codec, x = chain(), points()
    with torch.no_grad():
        found = codec.encode_ladj(x)
    assert sent == []
    torch.testing.assert_close(found, eager(codec.encode_ladj, x), rtol=0, atol=0, equal_nan=True)


@needs_numba
def test_numba_is_loaded_when_it_is_repaid():
    code = """if True:
        import sys, torch
        from fluvial.codecs import MarginalSpline, spline_loops
        codec, x = MarginalSpline(4), torch.zeros(2**13, 4)
        with torch.no_grad():
            codec.encode(x[:10])
            codec.encode(x)
            assert "numba" not in sys.modules
            spline_loops.WORTH_LOADING = 2**16 + 1
            codec.encode(x)
            assert "numba" in sys.modules or spline_loops._waited < spline_loops.WORTH_LOADING
            codec.encode(x)
            assert "numba" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
