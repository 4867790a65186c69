"""Monotone maps of one coordinate: every one keeps the same promises, at every size of its parameters."""

import math

import pytest
import torch

from fluvial.codecs import Affine, Cubic, RationalQuadratic, Smooth

PI = math.pi
TRANSFORMERS = {
    "affine": lambda: Affine(),
    "rqs": lambda: RationalQuadratic(8),
    "rqs of two bins": lambda: RationalQuadratic(2),
    "rqs of 60 bins": lambda: RationalQuadratic(60, low=-10, high=10),
    "rqs on an interval": lambda: RationalQuadratic(8, low=-1, high=1, boundary="interval"),
    "rqs on the circle": lambda: RationalQuadratic(8, low=-PI, high=PI, boundary="circular"),
    "cubic": lambda: Cubic(8),
    "cubic of 60 bins": lambda: Cubic(60, low=-10, high=10),
    "cubic on an interval": lambda: Cubic(8, low=0, high=1, boundary="interval"),
    "cubic on the circle": lambda: Cubic(8, low=-PI, high=PI, boundary="circular"),
    "smooth": lambda: Smooth(12),
}
BENT = {name: make for name, make in TRANSFORMERS.items() if name != "affine"}


@pytest.fixture(params=TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def transformer(request):
    return request.param()


@pytest.fixture(params=BENT.values(), ids=BENT.keys())
def spline(request):
    return request.param()


def points(transformer, rows, dtype=torch.float64):
    """Points of the transformer's domain, for lines also beyond the box."""
    low, high = (transformer.low, transformer.high) if math.isfinite(transformer.low) else (-5.0, 5.0)
    x = low + (high - low) * torch.rand(3, rows, dtype=dtype)
    return 1.2 * x if transformer.boundary == "linear" else x


def theta_of(transformer, rows, scale=1.0, dtype=torch.float64):
    return transformer.start().to(dtype).view(-1, 1, 1) + scale * torch.randn(transformer.n_parameters, 3, rows, dtype=dtype)


def apart(transformer, a, b):
    """Distance, on a circle the shorter way round."""
    if transformer.boundary != "circular":
        return (a - b).abs()
    return torch.remainder(a - b + PI, 2 * PI).sub(PI).abs()


def test_starts_as_the_identity(transformer):
    x = points(transformer, 50)
    theta = transformer.start().double().view(-1, 1, 1).expand(-1, 3, 50)
    z, log_slope = transformer.encode(theta, x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_round_trip_and_slope(transformer, scale):
    torch.manual_seed(0)
    x, theta = points(transformer, 400), theta_of(transformer, 400, scale)
    x.requires_grad_()
    z, log_slope = transformer.encode(theta, x)
    back, inverse_slope = transformer.decode(theta, z.detach())
    assert apart(transformer, back, x.detach()).max() < 1e-8
    # Where the slope varies quickly it knows the position no better than rounding leaves it.
    tolerance = 1e-8 if scale == 1 else 1e-6
    torch.testing.assert_close(inverse_slope, -log_slope, rtol=0, atol=tolerance)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-8)
    y = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(transformer.decode(theta, y)[0].sum(), y)
    torch.testing.assert_close(inverse_slope, slope.log(), rtol=0, atol=tolerance)


def test_derivatives_in_the_parameters(transformer):
    if transformer.n_parameters > 50:
        pytest.skip("the same code as with fewer bins, and slow to differentiate numerically")
    torch.manual_seed(1)
    x, theta = points(transformer, 2), theta_of(transformer, 2).requires_grad_()
    x.requires_grad_()
    for side in (transformer.encode, transformer.decode):
        torch.autograd.gradcheck(side, (theta, x))
    z = transformer.encode(theta, x)[0].detach().requires_grad_()
    # The gradient itself, as a function with a gradient.
    torch.autograd.gradgradcheck(transformer.encode, (theta, x))
    torch.autograd.gradgradcheck(transformer.decode, (theta, z), atol=1e-4, rtol=1e-3)


def test_forward_and_reverse_derivatives_agree(transformer):
    torch.manual_seed(2)
    x, theta = points(transformer, 5), theta_of(transformer, 5)
    direction = torch.randn_like(theta), torch.randn_like(x)
    for side in (transformer.encode, transformer.decode):
        (z, log_slope), (dz, dlog) = torch.func.jvp(side, (theta, x), direction)
        weights = torch.randn_like(z), torch.randn_like(z)
        pulled = torch.func.vjp(side, theta, x)[1](weights)
        forward = (weights[0] * dz).sum() + (weights[1] * dlog).sum()
        torch.testing.assert_close(forward, sum((p * d).sum() for p, d in zip(pulled, direction)))
        mapped = torch.func.vmap(side, in_dims=(2, 1), out_dims=1)(theta.unsqueeze(3), x.unsqueeze(2))
        torch.testing.assert_close(mapped[0].squeeze(-1), z)
        torch.testing.assert_close(mapped[1].squeeze(-1), log_slope)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_single_precision_at_any_size(transformer, scale):
    torch.manual_seed(3)
    x = points(transformer, 20_000, torch.float32).requires_grad_()
    theta = theta_of(transformer, 20_000, scale, torch.float32).requires_grad_()
    z, log_slope = transformer.encode(theta, x)
    back, inverse_slope = transformer.decode(theta, z)
    for value in (z, log_slope, back, inverse_slope):
        assert torch.isfinite(value).all()
        for gradient in torch.autograd.grad(value.sum(), (theta, x), retain_graph=True, allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()
    if scale <= 10:
        assert apart(transformer, back, x).max() < 1e-3
        there = transformer.encode(theta, transformer.decode(theta, x)[0])[0]
        assert apart(transformer, there, x).max() < 1e-3


def test_slopes_stay_within_their_bounds(spline):
    torch.manual_seed(4)
    theta = theta_of(spline, 20_000, 100.0)
    if isinstance(spline, Smooth):
        theta[-2:] = 0
    log_slope = spline.encode(theta, points(spline, 20_000))[1]
    assert log_slope.abs().max() < 2 * math.log(spline.slope_ratio)
    assert log_slope.abs().max() > math.log(spline.slope_ratio) / 2


def test_every_box_is_mapped_onto_itself(spline):
    theta = theta_of(spline, 100, 3.0)
    theta[-2:] = 0
    ends = torch.tensor([spline.low, spline.high], dtype=torch.float64).expand(3, 2)
    for k in range(0, 100, 10):
        z = spline.encode(theta[..., k : k + 1].expand(-1, 3, 2), ends)[0]
        assert apart(spline, z, ends).max() < 1e-12


def test_continuous_at_the_ends_of_the_box(spline):
    """Value and, by the boundary, slope."""
    step = 1e-9
    theta = theta_of(spline, 1, 2.0)
    if isinstance(spline, Smooth):
        theta[-2:] = 0
    if spline.boundary == "interval":
        x = torch.full((3, 1), spline.high + 0.1, dtype=torch.float64)
        z, log_slope = spline.encode(theta, x)
        assert torch.isfinite(z).all()
        assert (log_slope == -torch.inf).all()
        return
    edge = torch.full((3, 1), spline.high, dtype=torch.float64)
    (before, slope_before), (after, slope_after) = (spline.encode(theta, edge + sign * step) for sign in (-1, 1))
    assert apart(spline, before, after).max() < 1e-5
    assert (slope_before - slope_after).abs().max() < 1e-5


def test_smooth_has_two_continuous_derivatives_and_rqs_has_not():
    def worst_jump(spline):
        torch.manual_seed(5)
        theta = spline.start().double().view(-1, 1, 1) + 2 * torch.randn(spline.n_parameters, 1, 1, dtype=torch.float64)
        x = torch.linspace(-6, 6, 200_001, dtype=torch.float64).unsqueeze(0).requires_grad_()
        z, log_slope = spline.encode(theta.expand(-1, 1, x.shape[1]), x)
        (bend,) = torch.autograd.grad(log_slope.sum(), x)
        return bend.diff(dim=1).abs().max()

    assert worst_jump(Smooth(12)) < 0.02
    assert worst_jump(RationalQuadratic(12)) > 0.2


def test_points_that_are_not_finite_stay_what_they_are(transformer):
    theta = theta_of(transformer, 3, dtype=torch.float32)
    x = torch.tensor([[math.nan, math.inf, -math.inf]]).expand(3, 3)
    for side in (transformer.encode, transformer.decode):
        z, _ = side(theta, x)
        assert torch.isnan(z[:, 0]).all()
        if transformer.boundary == "linear":
            assert torch.isinf(z[:, 1:]).all()
    broken = torch.full_like(theta, math.nan)
    assert not torch.isfinite(transformer.encode(broken, torch.zeros(3, 3))[1]).any()


@pytest.mark.parametrize("knots", ["none", "inner", "all"])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_bins_found_in_one_sweep_are_those_of_the_plain_operations(count, circular, knots):
    from fluvial.codecs.bins import Bins, find_bin, find_bin_plainly

    torch.manual_seed(6)
    bins = Bins(count, (1e-3, 1e-2), circular=circular, knots={"none": 0, "inner": count - 1, "all": count if circular else count + 1}[knots])
    for by_height in (False, True):
        # One row more than it takes.
        theta = torch.randn(2 * count + bins.knots + 1, 3, 50, dtype=torch.float64, requires_grad=True)
        t = torch.rand(3, 50, dtype=torch.float64)
        t[0, :2] = torch.tensor([0.0, 1.0])
        swept, plain = (find(theta, t, bins, by_height=by_height) for find in (find_bin, find_bin_plainly))
        gradients = []
        for found in (swept, plain):
            torch.manual_seed(7)
            total = sum((torch.randn_like(value) * value).sum() for value in found[1:] if value is not None)
            gradients.append(torch.autograd.grad(total, theta)[0])
        for a, b in zip(swept, plain):
            if a is not None or b is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
        if count == 2:
            few = theta[..., :2].detach().requires_grad_()
            torch.autograd.gradcheck(
                lambda theta: [v for v in find_bin(theta, t[:, :2], bins, by_height=by_height)[1:] if v is not None],  # noqa: B023
                few,
                check_forward_ad=True,
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RationalQuadratic(1), "at least 2 bins"),
        (lambda: RationalQuadratic(8, low=1, high=1), "low < high"),
        (lambda: RationalQuadratic(8, high=math.inf), "finite"),
        (lambda: RationalQuadratic(8, boundary="round"), "boundary must be"),
        (lambda: Cubic(8, slope_ratio=1.0), "ratios must be above 1"),
        (lambda: Smooth(3), "at least 4 bins"),
        (lambda: Affine(max_log_scale=0.0), "positive"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("spline_class", [RationalQuadratic, Cubic])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.3, 0.9), (-1.1, 2.3), (0.1, 0.7)])
def test_nothing_leaves_an_interval_by_rounding(spline_class, dtype, box):
    low, high = (torch.tensor(end, dtype=dtype).item() for end in box)
    spline = spline_class(16, low=box[0], high=box[1], boundary="interval")
    for rows in (1, 3, 16, 40, 4096):
        theta = theta_of(spline, rows, 1.0, dtype)
        ends = torch.tensor([low, high, (low + high) / 2], dtype=dtype).unsqueeze(1).expand(3, rows)
        for side in (spline.encode, spline.decode):
            z, log_slope = side(theta, ends)
            assert (z >= low).all()
            assert (z <= high).all()
            assert torch.isfinite(log_slope).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_at_the_knots_are_those_of_log_slope(spline, dtype):
    """Where rounding puts a point a little outside its bin the derivative is still there."""
    bins = spline.bins
    knots = spline.low + (spline.high - spline.low) * torch.arange(1, bins, dtype=dtype) / bins
    x = knots.expand(1, -1).clone().requires_grad_()
    theta = spline.start().to(dtype).view(-1, 1, 1).expand(-1, 1, bins - 1)
    for side in (spline.encode, spline.decode):
        z, log_slope = side(theta, x)
        torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0].log(), log_slope, rtol=0, atol=1e-4)


def test_gradients_may_be_mapped_over(spline):
    theta = theta_of(spline, 2).requires_grad_()
    x = points(spline, 2)
    z = spline.encode(theta, x)[0]
    weights = torch.randn(4, *z.shape, dtype=z.dtype)
    together = torch.autograd.grad(z, theta, weights, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = torch.stack([torch.autograd.grad(z, theta, w, retain_graph=True)[0] for w in weights])
    torch.testing.assert_close(together, one_by_one)


def test_the_tails_of_a_cubic_are_straight_however_many_bins_there_are():
    torch.manual_seed(7)
    spline = Cubic(200)
    theta = theta_of(spline, 500, 30.0, torch.float32)
    x = torch.cat([torch.full((3, 250), 5.9), torch.full((3, 250), -6.1)], 1)
    z, log_slope = spline.encode(theta, x)
    back, inverse = spline.decode(theta, z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)
    torch.testing.assert_close(inverse, -log_slope)
