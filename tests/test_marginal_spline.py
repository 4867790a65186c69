"""Splines of single coordinates: contracts, Pareto tails against the distribution they are named after, extremes of single precision."""

import math
import warnings

import pytest
import torch
from scipy.stats import genpareto, norm

from fluvial.bases import Normal
from fluvial.codecs import MarginalSpline
from fluvial.flow import Flow
from fluvial.testing import check_bijection

DOUBLE = torch.float64
EXTREMES = [0.0, 1e-30, 2.999999, 3.0, 3.000001, -3.000001, 10.0, -1e3, 1e3, 1e10, -1e20, 1e20]


def bent(features=3, bins=5, tail="straight"):
    """Splines off the identity, so far that some of their knots lie on either side of 0."""
    generator = torch.Generator().manual_seed(features + bins)
    codec = MarginalSpline(features, bins, tail=tail)
    with torch.no_grad():
        for p in codec.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=generator).to(p))
        # A third as wide as at the start, so that many points lie in the tails.
        for p in (codec.left, codec.bottom):
            p.add_(2.0)
        for p in (codec.log_widths, codec.log_heights):
            p.sub_(math.log(3))
    return codec


def wide(n, features=3):
    """Points within the knots and far beyond them."""
    return 4 * torch.randn(n, features, dtype=DOUBLE)


BIJECTIONS = {
    "straight": (lambda: bent(), wide),
    "pareto": (lambda: bent(tail="pareto"), wide),
    "one coordinate, pareto": (lambda: bent(1, 3, "pareto"), lambda n: wide(n, 1)),
    "one bin": (lambda: bent(2, 1), lambda n: wide(n, 2)),
    "many bins, pareto": (lambda: bent(2, 200, "pareto"), lambda n: wide(n, 2)),
}


@pytest.mark.parametrize(("make", "points"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_contract(make, points):
    check_bijection(make, points)


class BothWays(torch.nn.Module):
    def __init__(self, codec):
        super().__init__()
        self.codec = codec

    def forward(self, x):
        return (*self.codec.encode_ladj(x), *self.codec.decode_ladj(x))


@pytest.mark.parametrize("tail", ["straight", "pareto"])
def test_second_derivatives(tail):
    codec = bent(2, 3, tail).double()
    values = [p.detach().requires_grad_() for p in codec.parameters()]
    names = [name for name, _ in codec.named_parameters()]
    points = torch.tensor([[0.3, -1.2], [7.0, -0.4], [-9.0, 6.0]], dtype=DOUBLE, requires_grad=True)

    def both(x, *parameters):
        given = dict(zip(names, parameters))
        return torch.func.functional_call(BothWays(codec), {f"codec.{name}": value for name, value in given.items()}, (x,))

    assert torch.autograd.gradcheck(both, (points, *values))
    assert torch.autograd.gradgradcheck(both, (points, *values))


@pytest.mark.parametrize(
    ("tail", "backend"),
    [("straight", "eager"), ("pareto", "eager"), pytest.param("straight", "inductor", marks=pytest.mark.long)],
)
def test_compiled(tail, backend):
    codec, x = bent(tail=tail), wide(50).float()

    def density(x):
        z, ladj = codec.encode_ladj(x)
        back, inverse = codec.decode_ladj(z)
        return z.square().sum(-1) - ladj, back, inverse

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own advice
        found = torch.compile(density, backend=backend, fullgraph=True, dynamic=False)(x)
    for compiled, eager in zip(found, density(x)):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
    compiled, eager = (torch.autograd.grad(value[0].sum(), list(codec.parameters())) for value in (found, density(x)))
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [1e-3, 0.05, 0.45])
def test_pareto_tail_is_the_pareto_distribution(shape):
    """What is beyond the outer knots of z, put through the spline, is a generalised Pareto distribution beyond the knots of x."""
    codec = MarginalSpline(1, 2, tail="pareto").double()
    parts = ([-2.0, 1.0, 5.0], [-1.2, 0.0, 1.7], [0.3, 1.0, 0.6], [shape, shape])
    codec.set_(*(torch.tensor([part], dtype=DOUBLE) for part in parts))
    excess = torch.logspace(-3, 6, 50, dtype=DOUBLE).unsqueeze(-1)
    for side, x, z_knot, rate in ((1, 5.0 + excess, 1.7, 0.6), (-1, -2.0 - excess, 1.2, 0.3)):
        z, ladj = codec.encode_ladj(x)
        scale = math.exp(norm.logsf(z_knot) - norm.logpdf(z_knot)) / rate
        tail = genpareto(shape, scale=scale)
        expected = norm.logsf(z_knot) + tail.logsf(excess[:, 0].numpy())
        torch.testing.assert_close(torch.from_numpy(norm.logsf(side * z[:, 0].detach().numpy())), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
        density = Flow(codec, Normal(1).double()).log_prob(x)
        torch.testing.assert_close(density, torch.from_numpy(norm.logsf(z_knot) + tail.logpdf(excess[:, 0].numpy())), rtol=1e-9, atol=1e-9)
        back, inverse = codec.decode_ladj(z)
        torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(inverse, -ladj, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("middle", [-4.0, 0.0, 4.0])
def test_pareto_tails_begin_anywhere(middle):
    """Also where the outer knot lies on the other side of 0, after much shrinkage of very skew data."""
    codec = MarginalSpline(1, 2, tail="pareto").double()
    x = torch.linspace(-1, 1, 3, dtype=DOUBLE).unsqueeze(0)
    codec.set_(x, middle + x, torch.ones(1, 3, dtype=DOUBLE), torch.full((1, 2), 0.2, dtype=DOUBLE))
    points = torch.linspace(-40, 40, 401, dtype=DOUBLE).unsqueeze(-1)
    z, ladj = codec.encode_ladj(points)
    torch.testing.assert_close(codec.decode(z), points, rtol=1e-9, atol=1e-9)
    numeric = torch.autograd.functional.jacobian(lambda p: codec.encode(p).sum(), points)
    torch.testing.assert_close(ladj, numeric[:, 0].log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tail", ["straight", "pareto"])
def test_value_and_slope_are_continuous(tail):
    codec = bent(4, 6, tail).double()
    knots = codec.knots
    step = 1e-9
    for k in range(7):
        at = knots.x[:, k].detach().unsqueeze(0)
        (left, right), (z, _) = (codec.encode_ladj(at + side * step) for side in (-1, 1)), codec.encode_ladj(at)
        torch.testing.assert_close(z[0], knots.y[:, k], rtol=0, atol=1e-12)
        torch.testing.assert_close(left[0], right[0], rtol=0, atol=1e-7)
        torch.testing.assert_close(left[1], right[1], rtol=0, atol=1e-6)
        torch.testing.assert_close(right[1], knots.slope[:, k].log().sum().unsqueeze(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [None, 1e-3, 0.45])
def test_extremes_in_single_precision(shape):
    codec = MarginalSpline(1, 8, tail="straight" if shape is None else "pareto")
    if shape is not None:
        codec.set_(*codec.knots[:3], torch.full((1, 2), shape))
    flow = Flow(codec, Normal(1))
    x = torch.tensor(EXTREMES).unsqueeze(-1).requires_grad_()
    z, ladj = codec.encode_ladj(x)
    log_prob = flow.log_prob(x)
    log_prob[x[:, 0].abs() < 1e15].sum().backward()
    # The square of 1e20 is more than single precision holds, where the tail is straight.
    within = log_prob if shape is not None else log_prob[x[:, 0].abs() < 1e15]
    assert all(torch.isfinite(value).all() for value in (z, ladj, within, x.grad, *(p.grad for p in codec.parameters())))
    torch.testing.assert_close(codec.decode(z), x, rtol=5e-4, atol=1e-6)
    exact = Flow(codec, Normal(1)).double().log_prob(x.detach().double())
    codec.float()
    torch.testing.assert_close(log_prob[:-2].double(), exact[:-2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tail", ["straight", "pareto"])
def test_what_is_not_finite_has_no_density(tail):
    flow = Flow(MarginalSpline(2, 8, tail=tail), Normal(2))
    x = torch.tensor([[math.inf, 0.0], [0.0, -math.inf], [math.nan, 0.0], [0.5, 0.5]])
    found = flow.log_prob(x)
    assert (found[:2] < -1e28).all(), "there is no density at infinity"
    assert torch.isnan(found[2]), "NaN is not hidden"
    torch.testing.assert_close(found[3], Normal(2).log_prob(x[3:])[0])
    assert flow.decode(torch.tensor([[math.inf, -math.inf]])).tolist() == [[math.inf, -math.inf]]


@pytest.mark.parametrize("tail", ["straight", "pareto"])
def test_knots_nearly_equal(tail):
    """A step of the distribution function, as narrow as single precision holds."""
    codec = MarginalSpline(1, 4, tail=tail)
    x = torch.tensor([[-1.0, 1.0, 1.0 + 5e-7, 1.0 + 1e-6, 2.0]], dtype=DOUBLE)
    y = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]], dtype=DOUBLE)
    codec.set_(x, y, torch.tensor([[0.5, 1e6, 2e6, 1e6, 1.0]]), None if tail == "straight" else torch.full((1, 2), 0.1))
    assert (codec.knots.x.diff() > 0).all()
    z, ladj = codec.encode_ladj(torch.linspace(-3, 3, 10_001).unsqueeze(-1))
    # Increasing up to rounding.
    assert torch.isfinite(ladj).all()
    assert (z.diff(dim=0) > -1e-6).all()
    back, inverse = codec.decode_ladj(torch.linspace(-4, 4, 10_001).unsqueeze(-1))
    assert torch.isfinite(inverse).all()
    assert (back.diff(dim=0) > -1e-6).all()


def test_bins_that_training_made_vanish():
    """The first and last bin narrower than their knots' rounding: values stay finite, and so do gradients."""
    codec = MarginalSpline(1, 4)
    with torch.no_grad():
        for logs in (codec.log_widths, codec.log_heights):
            logs[:, [0, -1]] = -60.0
    x = torch.tensor([[-3.0], [0.1], [codec.knots.x[0, -1].item()], [9.0]], requires_grad=True)
    z, ladj = codec.encode_ladj(x)
    back, inverse = codec.decode_ladj(z)
    (z.sum() + ladj.sum() + back.sum() + inverse.sum()).backward()
    assert all(torch.isfinite(value).all() for value in (z, ladj, back, inverse, x.grad, *(p.grad for p in codec.parameters())))


def test_batches_of_any_shape():
    codec = bent(tail="pareto")
    x = wide(12).float()
    z, ladj = codec.encode_ladj(x)
    for shape in ((3, 4), (1, 12), (2, 3, 2)):
        found, found_ladj = codec.encode_ladj(x.view(*shape, 3))
        assert torch.equal(found.view(12, 3), z)
        assert torch.equal(found_ladj.view(12), ladj)
    single, single_ladj = codec.encode_ladj(x[0])
    torch.testing.assert_close((single, single_ladj, codec.decode(single)), (z[0], ladj[0], codec.decode(z[:1])[0]))
    assert codec.encode(x[:0]).shape == (0, 3)


def test_set_keeps_what_it_is_given():
    codec = MarginalSpline(2, 3, tail="pareto").double()
    x, y = (torch.rand(2, 4, dtype=DOUBLE).cumsum(-1) - 3 for _ in range(2))
    slope, shape = torch.rand(2, 4, dtype=DOUBLE) + 0.1, torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=DOUBLE)
    codec.set_(x, y, slope, shape)
    torch.testing.assert_close(tuple(codec.knots), (x, y, slope, shape))
    torch.testing.assert_close(codec.encode(x.T), y.T)


def good(**other):
    knots = torch.tensor([[0.0, 1.0, 2.0]])
    return {"x": knots, "y": knots, "slope": torch.ones(1, 3)} | other


@pytest.mark.parametrize(
    ("given", "tail", "message"),
    [
        (good(x=torch.zeros(1, 4)), "straight", r"x must be finite, of shape \(1, 3\), got shape \(1, 4\)"),
        (good(y=torch.tensor([[0.0, math.nan, 2.0]])), "straight", "y must be finite"),
        (good(slope=torch.tensor([[1.0, 0.0, 1.0]])), "straight", "slopes must be positive"),
        (good(x=torch.tensor([[0.0, 2.0, 1.0]])), "straight", "x must increase .* coordinate 0 has 2, 1 at knots 1, 2"),
        (good(x=torch.tensor([[1.0, 1.0 + 1e-9, 2.0]], dtype=DOUBLE)), "straight", "x must increase by more than rounding"),
        (good(y=torch.tensor([[0.0, 0.0, 1.0]])), "straight", "y must increase"),
        (good(shape=torch.full((1, 2), 0.1)), "straight", "belong to tail='pareto'"),
        (good(), "pareto", r"positive shapes of shape \(1, 2\)"),
        (good(shape=torch.tensor([[0.1, 0.0]])), "pareto", "positive shapes"),
        (good(shape=torch.full((2, 2), 0.1)), "pareto", "positive shapes"),
    ],
)
def test_wrong_knots_are_refused(given, tail, message):
    codec = MarginalSpline(1, 2, tail=tail)
    before = codec.knots
    with pytest.raises(ValueError, match=message):
        codec.set_(**given)
    assert all(after is None or torch.equal(after, first) for after, first in zip(codec.knots, before)), "refused knots change nothing"


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 4), "must be positive"), ((2, 0), "must be positive"), ((2, 4, "cauchy"), "'straight' or 'pareto'")]
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MarginalSpline(*arguments[:2], **({"tail": arguments[2]} if len(arguments) > 2 else {}))
