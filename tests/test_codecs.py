"""Every codec keeps the contract; a new one is a line in a table."""

import math

import pytest
import torch
from torch import nn

from fluvial.bases import Normal
from fluvial.codecs import Bijection, Chain, Codec, FreeForm, Inverse, Standardize, fit_codec_
from fluvial.conditions import as_features
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Sphere
from fluvial.nn import MLP, ConvolutionalDecoder, ConvolutionalEncoder, Residual
from fluvial.testing import check_bijection, check_codec


def vectors(*event):
    return lambda n: 1.5 * torch.randn(n, *event, dtype=torch.float64) + 0.5


def sphere_points(n):
    return Sphere(2).random_uniform(n, dtype=torch.float64)


def fitted(event, isotropic=False):
    codec = Standardize(event, isotropic=isotropic)
    codec.fit_(3.0 * torch.randn(50, *codec.event_shape) + 7.0)
    return codec


class Affine(Bijection):
    """z = (x − shift(c)) exp(−scale): a bijection with parameters and a condition."""

    def __init__(self, n, context=2):
        super().__init__()
        self.n = n
        self.context = context
        self.domain = self.codomain = Euclidean(n)
        self.shift = nn.Sequential(nn.Linear(context, 8), nn.Tanh(), nn.Linear(8, n))
        self.scale = nn.Parameter(torch.linspace(-0.5, 0.5, n))

    def encode(self, x, c=None):
        return (x - self.shift(as_features(c))) * torch.exp(-self.scale)

    def decode(self, z, c=None):
        return z * torch.exp(self.scale) + self.shift(as_features(c))

    def encode_ladj(self, x, c=None):
        return self.encode(x, c), -self.scale.sum().expand(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z, c), self.scale.sum().expand(len(z))


class Moebius(Bijection):
    r"""The conformal map of Sⁿ that moves mass towards a: x ↦ (1 − |a|²)/|x + a|² (x + a) + a, whose ladj is n log((1 − |a|²)/|x + a|²)."""

    def __init__(self, dim, strength=0.5):
        super().__init__()
        self.dim = dim
        self.strength = strength
        self.domain = self.codomain = Sphere(dim)
        self.pull = nn.Parameter(torch.full((dim + 1,), strength / math.sqrt(dim + 1)))

    def encode(self, x, c=None):
        return self._move(x, self.pull)[0]

    def decode(self, z, c=None):
        return self._move(z, -self.pull)[0]

    def encode_ladj(self, x, c=None):
        return self._move(x, self.pull)

    def decode_ladj(self, z, c=None):
        return self._move(z, -self.pull)

    def _move(self, x, a):
        factor = (1 - a.square().sum()) / (x + a).square().sum(-1)
        return factor.unsqueeze(-1) * (x + a) + a, self.dim * torch.log(factor)


BIJECTIONS = {
    "standardize": (lambda: Standardize(3), vectors(3), {}),
    "fitted": (lambda: fitted(3), vectors(3), {}),
    "isotropic on images": (lambda: fitted((1, 2, 2), isotropic=True), vectors(1, 2, 2), {}),
    "affine with condition": (lambda: Affine(2), vectors(2), {"condition": lambda n: torch.randn(n, 2, dtype=torch.float64)}),
    "moebius on the circle": (lambda: Moebius(1), lambda n: Sphere(1).random_uniform(n, dtype=torch.float64), {}),
    "moebius on the sphere": (lambda: Moebius(2), sphere_points, {}),
    "chain": (lambda: Chain([fitted(3), Standardize(3)]), vectors(3), {}),
    "chain on the sphere": (lambda: Chain([Moebius(2), Inverse(Moebius(2, 0.3))]), sphere_points, {}),
    "inverse": (lambda: Inverse(fitted(3)), vectors(3), {}),
}

CODECS = {
    "free form": (lambda: FreeForm(MLP(3, 2, hidden=[8]), MLP(2, 3, hidden=[8])), vectors(3), {}),
    "any modules": (lambda: FreeForm(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), nn.Linear(3, 3)), vectors(3), {}),
    "with condition": (
        lambda: FreeForm(Residual(3, context=2, width=8, blocks=1), Residual(3, context=2, width=8, blocks=1)),
        vectors(3),
        {"condition": lambda n: {"a": torch.randn(n, 1, dtype=torch.float64), "b": torch.randn(n, 1, dtype=torch.float64)}},
    ),
    "images": (
        lambda: FreeForm(
            ConvolutionalEncoder((1, 4, 4), 3, channels=[4], width=8, blocks=1), ConvolutionalDecoder(3, (1, 4, 4), channels=[4], width=8, blocks=1)
        ),
        vectors(1, 4, 4),
        {},
    ),
    "chain with a free-form part": (lambda: Chain([fitted(3), FreeForm(MLP(3, hidden=[8]), MLP(3, hidden=[8]))]), vectors(3), {}),
    "inverse of free form": (lambda: Inverse(FreeForm(MLP(2, 3, hidden=[8]), MLP(3, 2, hidden=[8]))), vectors(3), {}),
}


@pytest.mark.parametrize(("make", "points", "options"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_bijection(make, points, options):
    check_bijection(make, points, **options)


@pytest.mark.parametrize(("make", "points", "options"), CODECS.values(), ids=CODECS.keys())
def test_codec(make, points, options):
    check_codec(make, points, **options)


class WrongDeterminant(Standardize):
    """Forgets one coordinate."""

    def encode_ladj(self, x, c=None):
        return self.encode(x), -self.scale.log()[1:].sum().expand(len(x))


class Leaky(FreeForm):
    """Rows that see each other."""

    def encode(self, x, c=None):
        return super().encode(x - x.mean(0, keepdim=True), c)


def test_contract_finds_what_is_broken():
    def wrong():
        codec = WrongDeterminant(3)
        codec.fit_(3.0 * torch.randn(50, 3))
        return codec

    with pytest.raises(AssertionError, match="ladj of decode is not minus"):
        check_bijection(wrong, vectors(3))
    with pytest.raises(AssertionError, match="depends on the other rows"):
        check_codec(lambda: Leaky(nn.Linear(3, 3), nn.Linear(3, 3)), vectors(3))


def test_chain_is_a_bijection_if_and_only_if_all_parts_are():
    free = FreeForm(nn.Linear(2, 2), nn.Linear(2, 2))
    assert isinstance(Chain([Standardize(2), Standardize(2)]), Bijection)
    assert not isinstance(Chain([Standardize(2), free]), Bijection)
    assert isinstance(Inverse(Standardize(2)), Bijection)
    assert not isinstance(Inverse(free), Bijection)
    assert not isinstance(Chain([Chain([free]), Standardize(2)]), Bijection)


def test_chain_applies_its_parts_from_the_data_side(double):
    first, second = fitted(2), Standardize(2)
    second.fit_(torch.randn(20, 2) + 3)
    x = torch.randn(4, 2)
    torch.testing.assert_close(Chain([first, second]).encode(x), second.encode(first.encode(x)))
    torch.testing.assert_close(Chain([first, second]).decode(x), first.decode(second.decode(x)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Chain([]), ValueError, "at least one"),
        (lambda: Chain([nn.Linear(2, 2)]), TypeError, "part 0 must be a Codec, got Linear"),
        (lambda: Chain([Standardize(2), Standardize(3)]), ValueError, "part 0 ends on Euclidean"),
        (lambda: Inverse(nn.Linear(2, 2)), TypeError, "expected a Codec, got Linear"),
        (lambda: FreeForm(lambda x: x, nn.Linear(2, 2)), TypeError, "encoder must be a torch.nn.Module, got function"),
        (lambda: FreeForm(nn.Linear(2, 2), None), TypeError, "decoder must be a torch.nn.Module, got NoneType"),
        (lambda: Codec(), TypeError, "abstract"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_network_without_condition_says_so():
    codec = FreeForm(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"Linear was given a condition but its forward takes only x; give it a forward\(x, c\)"):
        codec.encode(torch.zeros(1, 2), torch.zeros(1, 1))


# ------------------------------------------------------------------------------------------------------------- standardisation


def test_standardize_gives_mean_zero_and_spread_one(double):
    x = torch.randn(200, 3) * torch.tensor([0.01, 1.0, 1e5]) + torch.tensor([5.0, 0.0, -1e6])
    codec = Standardize(3)
    codec.fit_(x)
    z = codec.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-8)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3))


def test_standardize_weights_equal_repeated_rows(double):
    x, times = torch.randn(20, 2), torch.randint(0, 4, (20,))
    weighted, repeated = Standardize(2), Standardize(2)
    weighted.fit_(x, None, times.double())
    repeated.fit_(x.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.loc, repeated.loc)
    torch.testing.assert_close(weighted.scale, repeated.scale)


def test_standardize_leaves_a_constant_column_its_scale():
    x = torch.stack([torch.full((100,), 3.1), torch.randn(100)], -1)
    codec = Standardize(2)
    codec.fit_(x)
    assert codec.scale[0] == 1
    assert torch.isfinite(codec.encode_ladj(x)[1]).all()


def test_standardize_keeps_its_digits_far_from_zero():
    x = 1e4 + torch.randn(1000, 1)
    codec = Standardize(1)
    codec.fit_(x)
    assert codec.scale.item() == pytest.approx(x.double().std(correction=0).item(), rel=1e-3)


def test_standardize_refuses_other_shapes_and_no_rows():
    with pytest.raises(ValueError, match=r"expected data of shape \(n, 2\)"):
        Standardize(2).fit_(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="n ≥ 1"):
        Standardize(2).fit_(torch.zeros(0, 2))


def test_fit_codec_fits_each_part_on_what_reaches_it_and_none_twice(double):
    x = 4 * torch.randn(300, 2) + 2
    inner, behind = Standardize(2), Standardize(2)
    codec = Chain([Affine(2), inner, FreeForm(nn.Linear(2, 2), nn.Linear(2, 2)), behind])
    c = torch.randn(300, 2)
    fit_codec_(codec, x, c)
    reached = codec.parts[0].encode(x, c)
    torch.testing.assert_close(inner.loc, reached.mean(0).detach())
    assert bool(inner.is_fitted)
    assert not bool(behind.is_fitted)
    fit_codec_(codec, x + 100, c)
    torch.testing.assert_close(inner.loc, reached.mean(0).detach())


def test_moebius_flow_is_normalised():
    from fluvial.bases import UniformOn
    from fluvial.testing import integrate

    for n in (1, 2):
        flow = Flow(Moebius(n), UniformOn(Sphere(n))).double().eval()
        assert integrate(Sphere(n), lambda p: flow.log_prob(p).exp())[0] == pytest.approx(1, abs=1e-8)  # noqa: B023
    assert Flow(Standardize(2), Normal(2)).is_bijective
