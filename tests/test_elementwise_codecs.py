"""Bijections of one coordinate at a time: contracts, bounds kept exactly, extremes of single precision."""

import math

import pytest
import torch

from fluvial.bases import Normal
from fluvial.codecs import Arcsinh, Bounds, Chain, Log, Logit, Softplus, Standardize
from fluvial.flow import Flow
from fluvial.io import load, save
from fluvial.testing import check_bijection

MIXED_LOW = (0.0, 2.0, None, None, -0.3)
MIXED_HIGH = (1.0, None, -1.0, None, 0.1)


def between(low, high, *event):
    return lambda n: low + (high - low) * torch.rand(n, *event, dtype=torch.float64)


def positive(low, *event):
    return lambda n: low + torch.exp(2 * torch.randn(n, *event, dtype=torch.float64))


def mixed(n):
    unit, line = torch.rand(n, 2, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)
    return torch.stack([unit[:, 0], 2 + line[:, 0].exp(), -1 - line[:, 1].exp(), line[:, 2], -0.3 + 0.4 * unit[:, 1]], -1)


BIJECTIONS = {
    "logit": (lambda: Logit(3), between(0, 1, 3)),
    "logit on images": (lambda: Logit((1, 2, 2), low=-1, high=16), between(-1, 16, 1, 2, 2)),
    "softplus": (lambda: Softplus(3), positive(0, 3)),
    "softplus above a bound": (lambda: Softplus((2, 2), low=-3), positive(-3, 2, 2)),
    "log": (lambda: Log(3), positive(0, 3)),
    "log above a bound": (lambda: Log(1, low=5), positive(5, 1)),
    "arcsinh": (lambda: Arcsinh(3, scale=0.3), lambda n: 3 * torch.randn(n, 3, dtype=torch.float64)),
    "arcsinh on images": (lambda: Arcsinh((1, 2, 2)), lambda n: torch.randn(n, 1, 2, 2, dtype=torch.float64)),
    "bounds": (lambda: Bounds(MIXED_LOW, MIXED_HIGH), mixed),
    "bounds by logarithm": (lambda: Bounds(MIXED_LOW, MIXED_HIGH, one_sided="log"), mixed),
    "bounds on both sides": (lambda: Bounds([0, -1], [1, 1]), between(0, 1, 2)),
    "bounds below": (lambda: Bounds((0.0, 1.0), (None, math.inf)), positive(1, 2)),
    "bounds above": (lambda: Bounds((None, None), (0.0, -1.0)), lambda n: -positive(1, 2)(n)),
    "no bounds": (lambda: Bounds((None,), (None,)), lambda n: torch.randn(n, 1, dtype=torch.float64)),
    "chain": (lambda: Chain([Bounds(MIXED_LOW, MIXED_HIGH), Standardize(5)]), mixed),
}

BOUNDED = {name: entry for name, entry in BIJECTIONS.items() if not name.startswith(("arcsinh", "chain"))}


@pytest.mark.parametrize(("make", "points"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_contract(make, points):
    check_bijection(make, points)


@pytest.mark.parametrize(("make", "points"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_second_derivatives(make, points):
    codec = make().double()
    x = points(3)
    z = codec.encode(x)
    # 0 is where a formula with |z| would have the wrong derivative.
    z = torch.cat([z, torch.zeros_like(z[:1])]).requires_grad_()
    assert torch.autograd.gradcheck(codec.decode_ladj, (z,))
    assert torch.autograd.gradgradcheck(codec.decode_ladj, (z,))
    assert torch.autograd.gradgradcheck(codec.encode_ladj, (x.requires_grad_(),))


@pytest.mark.parametrize(("make", "points"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_the_map_increases(make, points):
    codec = make().double()
    x = points(20).flatten(1).sort(0).values.unflatten(1, codec.domain.event_shape)
    assert (codec.encode(x).diff(dim=0) > 0).all()


# ----------------------------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("make", "points"), BOUNDED.values(), ids=BOUNDED.keys())
def test_samples_never_leave_the_bounds(make, points, dtype):
    codec = make()
    z = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    z = torch.cat([z * 10.0**k for k in (0, 1, 2, 5, 30)] + [torch.tensor([math.inf, -math.inf, 0.0])]).to(dtype)
    x = codec.decode(z.view(-1, *(1,) * len(codec.event_shape)).expand(-1, *codec.event_shape))
    low, high = (
        torch.as_tensor([b if b is not None else s * math.inf for b in _sides(bounds)], dtype=torch.float64)
        for bounds, s in ((getattr(codec, "low", None), -1), (getattr(codec, "high", None), 1))
    )
    # Compared in double precision with the numbers that were given, not with rounded ones.
    assert torch.isfinite(x).all()
    assert (x.double() >= low).all()
    assert (x.double() <= high).all()


def _sides(bounds):
    return bounds if isinstance(bounds, tuple) else (bounds,)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (-0.7, -0.1), (1000.1, 1000.3), (-math.pi, math.pi), (-1e30, 3e33)])
def test_bounds_that_single_precision_does_not_hold(low, high):
    codec, exact = Bounds((low,), (high,)), Bounds((low,), (high,)).double()
    x = codec.decode(torch.linspace(-200, 200, 4001).unsqueeze(-1)).double()
    assert low <= x.min()
    assert x.max() <= high
    # Data that lie on the bounds are rounded to the nearest number, which may be outside; they have a density all the same.
    for value in (low, high):
        assert torch.isfinite(codec.encode_ladj(torch.tensor([[value]]))[1]).all()
        assert torch.isfinite(exact.encode_ladj(torch.tensor([[value]], dtype=torch.float64))[1]).all()


def test_bounds_are_exact_after_any_change_of_precision():
    codec = Bounds((0.1,), (0.7,)).float().half().double()
    x = torch.tensor([[0.1], [0.7], [0.0999999999]], dtype=torch.float64)
    assert torch.isfinite(codec.encode_ladj(x)[1]).tolist() == [True, True, False]
    assert not [b for b in codec.buffers() if b.is_floating_point()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "inside", "outside"),
    [
        (lambda: Logit(2), (0.0, 1e-45, 0.5, 1.0 - 1e-7, 1.0), (-1e-30, 1.0001, -1e38, 1e38, math.inf, -math.inf)),
        (lambda: Softplus(2, low=-1), (-1.0, -1 + 1e-7, 0.0, 1e38), (-1.001, -1e38, -math.inf, math.inf)),
        (lambda: Log(2), (0.0, 1e-45, 1e-38, 1.0, 1e38), (-1e-45, -1e38, -math.inf, math.inf)),
        (lambda: Bounds((None, 0.0), (1.0, 1.0)), (0.0, 1e-45, 0.3, 1.0), (1.001, 1e38, math.inf)),
        (lambda: Bounds((None, 0.0), (None, None)), (0.0, 3e-39, 1.0, 1e38), (math.inf, -math.inf)),
    ],
)
def test_outside_there_is_no_density_and_nowhere_a_nan(make, inside, outside, dtype):
    codec = make()
    x = torch.tensor([*inside, *outside], dtype=dtype).unsqueeze(-1).repeat(1, 2).requires_grad_()
    z, ladj = codec.encode_ladj(x)
    assert torch.isfinite(z).all()
    assert torch.isfinite(ladj[: len(inside)]).all()
    assert (ladj[len(inside) :] == -math.inf).all()
    torch.testing.assert_close(codec.encode(x), z, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(z.sum() + ladj.sum(), x)
    assert torch.isfinite(slope).all()


def test_one_coordinate_outside_does_not_touch_the_others():
    codec = Bounds(MIXED_LOW, MIXED_HIGH)
    x = mixed(2).float()
    x[1, 0] = 1.5
    x.requires_grad_()
    z, ladj = codec.encode_ladj(x)
    assert ladj[1] == -math.inf
    torch.testing.assert_close(z[1, 1:], codec.encode(x[1:2, :] * torch.tensor([0.1, 1, 1, 1, 1]))[0, 1:])
    (slope,) = torch.autograd.grad(torch.logsumexp(ladj, 0), x)
    assert torch.isfinite(slope).all()
    assert (slope[0].index_select(0, torch.tensor([0, 1, 2, 4])) != 0).all()
    assert (slope[1] == 0).all()


@pytest.mark.parametrize("make", [lambda: Logit(2), lambda: Softplus(2), lambda: Log(2), lambda: Arcsinh(2), lambda: Bounds((0, None), (1, None))])
def test_nan_is_not_hidden(make):
    codec = make()
    x = torch.tensor([[math.nan, 0.5], [0.5, 0.5]])
    z, ladj = codec.encode_ladj(x)
    assert z.isnan().tolist() == [[True, False], [False, False]]
    assert ladj.isnan().tolist() == [True, False]
    assert codec.decode(x).isnan().tolist() == [[True, False], [False, False]]


def test_a_value_on_a_bound_is_read_a_little_inside():
    z = Logit(1).encode(torch.tensor([[0.0], [1.0]])).flatten()
    torch.testing.assert_close(z, torch.tensor([-1.0, 1.0]) * math.log(2**25))
    z = Logit(1, low=-2, high=2, eps=1e-3).encode(torch.tensor([[-2.0], [2.0], [-2.0 + 1e-4]])).flatten()
    torch.testing.assert_close(z, torch.tensor([-math.log(999), math.log(999), math.log(1e-4 / 4)]), rtol=1e-3, atol=0)
    # A wide step of floating-point numbers at the bound counts, not the width of the interval.
    x = torch.tensor([[1000.0], [1000.0 + 2**-14]])
    z = Bounds((1000.0,), (1001.0,)).encode(x).flatten()
    assert z[1] - math.log(4) < z[0] < z[1]
    # Never on the other side, however far the interval is from 0.
    for eps in (None, 0.01, 0.49):
        z = Bounds((1000.0, -1001.0), (1001.0, -1000.0), eps=eps).encode(torch.tensor([[1000.0, -1001.0], [1001.0, -1000.0]]))
        assert (z[0] < 0).all()
        assert (z[1] > 0).all()
    torch.testing.assert_close(Bounds((1000.0,), (1001.0,), eps=0.01).encode(x[:1]).item(), math.log(0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(Log(1, low=1000.0, eps=0.01).encode(x[:1]).item(), math.log(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("one_sided", ["softplus", "log"])
def test_the_density_is_that_of_the_samples(one_sided):
    """Quadrature over the support, and log_prob of samples against that of their latents."""
    flow = Flow(Bounds((0.0, 1.0, None), (2.0, None, 0.0), one_sided=one_sided), Normal(3)).double()
    unit = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for k, (x, weight) in enumerate([(2 * unit, 2 + 0 * unit), (1 + unit / (1 - unit), (1 - unit) ** -2), (-unit / (1 - unit), (1 - unit) ** -2)]):
        rows = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64).repeat(len(x), 1)
        rows[:, k] = x
        z, _ = flow.codec.encode_ladj(rows)
        others = [j for j in range(3) if j != k]
        single = torch.autograd.functional.jacobian(flow.codec.encode, rows[:1])[0].diagonal(dim1=0, dim2=2)[0]
        density = flow.log_prob(rows) - Normal(2).log_prob(z[:, others]) - single[others].log().sum()
        assert (density.exp() * weight).mean().item() == pytest.approx(1.0, abs=1e-5)
    x, log_p = flow.sample_and_log_prob(1000)
    torch.testing.assert_close(flow.log_prob(x), log_p)


# ------------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0])
@pytest.mark.parametrize(("make", "points"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_single_precision_stays_finite_and_inverts(make, points, factor):
    codec = make()
    z = (factor * torch.randn(2000, *codec.domain.event_shape)).clamp(-100, 100)
    z[0], z[1] = 100.0, -100.0
    z.requires_grad_()
    x, ladj = codec.decode_ladj(z)
    assert torch.isfinite(x).all()
    assert torch.isfinite(ladj).all()
    for value in (x, ladj + 0 * z.sum()):
        assert torch.isfinite(torch.autograd.grad(value.sum(), z, retain_graph=True)[0]).all()
    given = x.detach().requires_grad_()
    back, inverse = codec.encode_ladj(given)
    assert torch.isfinite(back).all()
    assert torch.isfinite(inverse).all()
    (slope,) = torch.autograd.grad(back.sum() + inverse.sum(), given)
    assert torch.isfinite(slope).all()
    # Measured: at most 1.1e-6, of |x| or of 1 where x is small.
    again = codec.decode(back)
    error = (again - x).abs() / x.abs().clamp_min(1.0)
    assert error.max() < 5e-6


def test_softplus_is_accurate_over_sixty_orders_of_magnitude():
    x = torch.logspace(-30, 30, 601, dtype=torch.float64).unsqueeze(-1)
    exact = torch.where(x > 40, x, torch.log(torch.expm1(x.clamp_max(40))))
    codec = Softplus(1)
    z, ladj = codec.encode_ladj(x.float())
    torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(ladj.double(), -torch.log(-torch.expm1(-x)).squeeze(-1), rtol=1e-6, atol=2e-7)
    # The step between numbers at z = −69 is 8e-6, and that is the relative error of exp(z).
    torch.testing.assert_close(codec.decode(z), x.float(), rtol=1e-5, atol=0)
    z, _ = Log(1).encode_ladj(x.float())
    torch.testing.assert_close(z.double(), x.log(), rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(Log(1).decode(z), x.float(), rtol=1e-5, atol=0)


def test_arcsinh_is_accurate_over_sixty_orders_of_magnitude():
    x = torch.logspace(-30, 30, 601, dtype=torch.float64).unsqueeze(-1)
    x = torch.cat([-x, x])
    given = x.float().requires_grad_()
    z, ladj = Arcsinh(1).encode_ladj(given)
    torch.testing.assert_close(z.double(), torch.asinh(x), rtol=1e-6, atol=0)
    torch.testing.assert_close(ladj.double(), -0.5 * torch.log1p(x.square()).squeeze(-1), rtol=1e-6, atol=2e-7)
    assert torch.isfinite(torch.autograd.grad(z.sum() + ladj.sum(), given)[0]).all()
    torch.testing.assert_close(Arcsinh(1).decode(z), x.float(), rtol=2e-5, atol=0)
    far = Arcsinh(1, scale=1e30).decode(torch.tensor([[1e30], [-math.inf]]))
    assert torch.isfinite(far).all()


def test_logit_keeps_digits_near_both_bounds():
    x = torch.tensor([[-1e-30], [-1e-10], [-1 + 2**-20]])
    codec = Logit(1, low=-1, high=0)
    z = codec.encode(x)
    torch.testing.assert_close(z.flatten(), torch.tensor([30 * math.log(10), 10 * math.log(10), -math.log(2**20 - 1)]))
    torch.testing.assert_close(codec.decode(z), x, rtol=1e-5, atol=0)


# ----------------------------------------------------------------------------------------------------------------------- rest


def test_dequantised_data_have_a_density_and_samples_go_back_to_the_steps():
    from fluvial.data import Dataset

    steps = torch.randint(0, 16, (5000, 3)).float()
    spec = Dataset(steps, dequantize=1.0).spec
    flow = Flow(Logit(3, low=0, high=16), Normal(3))
    dequantised = torch.cat([spec.perturb(steps), torch.zeros(1, 3), torch.full((1, 3), 16.0)])
    assert torch.isfinite(flow.log_prob(dequantised)).all()
    levels = spec.quantize(flow.sample(5000))
    assert torch.equal(levels, levels.round())
    assert levels.min() >= 0


def test_save_and_load(tmp_path):
    flow = Flow(Bounds(MIXED_LOW, MIXED_HIGH, one_sided="log", eps=1e-4), Normal(5))
    save(flow, tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    x = torch.cat([flow.sample(20), torch.tensor([[0.0, 2.0, -1.0, 0.0, 0.1]])])
    assert (again.codec.low, again.codec.high) == (MIXED_LOW, MIXED_HIGH)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("make", [lambda: Bounds(MIXED_LOW, MIXED_HIGH), lambda: Logit(5), lambda: Arcsinh(5)])
def test_traces_without_a_break(make):
    codec = make()
    z = torch.randn(4, 5)
    compiled = torch.compile(lambda z: codec.encode_ladj(codec.decode_ladj(z)[0]), backend="eager", fullgraph=True)
    expected = codec.encode_ladj(codec.decode_ladj(z)[0])
    for found, value in zip(compiled(z), expected):
        torch.testing.assert_close(found, value)


def test_bounds_from_anything_that_is_a_sequence_of_numbers():
    import numpy as np

    reference = Bounds((0.0, None), (1.0, None))
    for low, high in (([0, -math.inf], [1, math.inf]), (np.array([0, -np.inf]), np.array([1, np.inf])), (torch.tensor([0, -math.inf]), (1, None))):
        codec = Bounds(low, high)
        assert (codec.low, codec.high) == (reference.low, reference.high)
    assert "(0, 1), (-inf, inf)" in repr(reference)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Bounds((0.0,), (1.0, 2.0)), ValueError, "got 1 and 2"),
        (lambda: Bounds((), ()), ValueError, "got 0 and 0"),
        (lambda: Bounds(0.0, 1.0), TypeError, "must be sequences"),
        (lambda: Bounds((0.0, 1.0), (1.0, 1.0)), ValueError, "coordinate 1 has the bounds 1.0 and 1.0; give low < high"),
        (lambda: Bounds((0.0, 2.0), (1.0, 1.0)), ValueError, "coordinate 1"),
        (lambda: Bounds((math.nan,), (1.0,)), ValueError, "low < high"),
        (lambda: Bounds((math.inf,), (None,)), ValueError, "low < high"),
        (lambda: Bounds((1.0,), (1 + 1e-9,)), ValueError, "single precision has hardly a number"),
        (lambda: Bounds((0.0,), (1e39,)), ValueError, "beyond what single precision holds"),
        (lambda: Bounds((0.0,), (None,), one_sided="exp"), ValueError, "'softplus' or 'log'"),
        (lambda: Bounds((0.0,), (1.0,), eps=0.0), ValueError, "eps must be"),
        (lambda: Logit(2, low=1.0, high=0.0), ValueError, "low < high"),
        (lambda: Logit(2, high=math.inf), ValueError, "must be finite"),
        (lambda: Logit(2, low=None), ValueError, "must be finite"),
        (lambda: Softplus(2, low=-math.inf), ValueError, "low must be a finite number"),
        (lambda: Log(2, low=math.nan), ValueError, "low must be a finite number"),
        (lambda: Arcsinh(2, scale=0.0), ValueError, "scale must be a positive"),
        (lambda: Arcsinh(2, scale=math.nan), ValueError, "scale must be a positive"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_wrong_shapes_are_refused_by_the_flow():
    flow = Flow(Bounds(MIXED_LOW, MIXED_HIGH), Normal(5))
    with pytest.raises(ValueError, match=r"expected x of shape"):
        flow.log_prob(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="codomain"):
        Flow(Bounds(MIXED_LOW, MIXED_HIGH), Normal(4))
