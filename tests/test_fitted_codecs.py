"""Linear bijections that take something from the data: weights, odd data, whiteness."""

import pytest
import torch

from fluvial.codecs import (
    ActNorm,
    Chain,
    PrincipalAxes,
    Rotation,
    Whiten,
    fit_codec_,
)


def mixed(n, d):
    """Correlated data with coordinates in very different units."""
    x = torch.randn(n, d, dtype=torch.float64) @ (torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, dtype=torch.float64))
    return x * torch.logspace(-3, 3, d, dtype=torch.float64).add(0.5) + 10.0


FITTED = {
    "act norm": ActNorm,
    "principal axes": PrincipalAxes,
    "pca": lambda n: Whiten(n),
    "zca": lambda n: Whiten(n, method="zca"),
    "cholesky": lambda n: Whiten(n, method="cholesky"),
}


def covariance(z):
    return torch.cov(z.T, correction=0)


@pytest.mark.parametrize("make", FITTED.values(), ids=FITTED.keys())
def test_weights_equal_repeated_rows(double, make):
    x, times = mixed(40, 3), torch.randint(0, 4, (40,))
    weighted, repeated = make(3), make(3)
    weighted.fit_(x, None, 0.1 * times.double())
    repeated.fit_(x.repeat_interleave(times, 0))
    for (name, a), b in zip(weighted.state_dict().items(), repeated.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("make", FITTED.values(), ids=FITTED.keys())
def test_what_cannot_be_fitted_is_named(make):
    x = torch.randn(20, 3)
    cases = [
        (x[:, :2], None, r"expected data of shape \(n, 3\) with n ≥ 1, got \(20, 2\)"),
        (x[:0], None, r"got \(0, 3\)"),
        (x.index_put((torch.tensor(4), torch.tensor(1)), torch.tensor(torch.nan)), None, "row 4, coordinate 1 is nan"),
        (x.index_put((torch.tensor(0), torch.tensor(2)), torch.tensor(-torch.inf)), None, "row 0, coordinate 2 is -inf"),
        (x, torch.linspace(-1, 1, 20), "weight must be 20 finite numbers, none negative and not all 0"),
        (x, torch.zeros(20), "not all 0"),
        (x, torch.ones(19), r"got a tensor of shape \(19,\)"),
    ]
    for data, weight, message in cases:
        codec = make(3)
        with pytest.raises(ValueError, match=message):
            codec.fit_(data, None, weight)
        assert not bool(codec.is_fitted)


@pytest.mark.parametrize("make", FITTED.values(), ids=FITTED.keys())
def test_fit_takes_the_training_rows_once(make):
    codec = Chain([make(3), make(3)])
    x = torch.randn(50, 3) @ torch.randn(3, 3)
    fit_codec_(codec, x)
    assert all(bool(part.is_fitted) for part in codec.parts)
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    fit_codec_(codec, x + 1)
    assert all(torch.equal(before[name], value) for name, value in codec.state_dict().items())


def test_act_norm_starts_standardised_and_learns(double):
    x = mixed(200, 3)
    codec = ActNorm(3)
    codec.fit_(x)
    z = codec.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3))
    assert not codec.shift.any()
    assert not codec.log_scale.any()
    assert {name for name, _ in codec.named_parameters()} == {"shift", "log_scale"}


def test_act_norm_takes_constant_columns_and_one_row():
    x = torch.stack([torch.full((50,), 3.1), torch.randn(50)], -1)
    for rows in (x, x[:1]):
        codec = ActNorm(2)
        codec.fit_(rows)
        z, ladj = codec.encode_ladj(rows)
        assert torch.isfinite(z).all()
        assert torch.isfinite(ladj).all()
        torch.testing.assert_close(z[:, 0], torch.zeros(len(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["pca", "zca", "cholesky"])
def test_white_data_have_mean_zero_and_covariance_one(double, method):
    x, weight = mixed(500, 5), torch.rand(500)
    codec = Whiten(5, method=method)
    codec.fit_(x, None, weight)
    z, ladj = codec.encode_ladj(x)
    share = (weight / weight.sum()).unsqueeze(1)
    torch.testing.assert_close((share * z).sum(0), torch.zeros(5), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.T @ (share * z), torch.eye(5), rtol=0, atol=1e-9)
    torch.testing.assert_close(-2 * ladj[0], torch.linalg.slogdet(torch.cov(x.T, correction=0, aweights=weight))[1])


def test_the_three_ways_to_whiten(double):
    x = mixed(500, 4)
    codecs = {method: Whiten(4, method=method) for method in ("pca", "zca", "cholesky")}
    y = (x - x.mean(0)) / x.std(0, correction=0)
    for codec in codecs.values():
        codec.fit_(x)
    # Triangular: the first coordinates do not see the later ones.
    changed = x.clone()
    changed[:, 2:] += torch.randn(500, 2)
    torch.testing.assert_close(codecs["cholesky"].encode(changed)[:, :2], codecs["cholesky"].encode(x)[:, :2])
    # Symmetric: nearest to the standardised data.
    zca = torch.linalg.lstsq(y, codecs["zca"].encode(x)).solution
    torch.testing.assert_close(zca, zca.T, rtol=0, atol=1e-8)
    assert (codecs["zca"].encode(x) - y).square().sum() < min((codecs[name].encode(x) - y).square().sum() for name in ("pca", "cholesky"))
    # Principal: correlations with the standardised data add up to decreasing eigenvalues.
    shares = (codecs["pca"].encode(x).T @ y / 500).square().sum(1)
    torch.testing.assert_close(shares, torch.linalg.eigvalsh(torch.corrcoef(x.T)).flip(0))


def test_whitening_does_not_depend_on_units(double):
    x = mixed(100, 3)
    for method in ("pca", "zca", "cholesky"):
        here, there = Whiten(3, method=method), Whiten(3, method=method)
        here.fit_(x)
        there.fit_(x * torch.tensor([1e6, 1e-6, 1.0]) + 5)
        torch.testing.assert_close(there.encode(x * torch.tensor([1e6, 1e-6, 1.0]) + 5), here.encode(x), rtol=0, atol=1e-6)


def deficient(kind):
    x = torch.randn(300, 4)
    if kind == "constant":
        x[:, 2] = 3.7
    elif kind == "sum":
        x[:, 3] = x[:, 0] - 2 * x[:, 1]
    elif kind == "far sum":
        x = x + 1e4
        x[:, 3] = x[:, 0] + x[:, 1]
    elif kind == "few rows":
        x = x[:3]
    elif kind == "one row":
        x = x[:1]
    return x


@pytest.mark.parametrize("method", ["pca", "zca", "cholesky"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("constant", "span 3 of 4 directions: coordinate 2 is constant; leave it out, or allow for it with ridge"),
        ("sum", "span 3 of 4 directions: coordinates 0, 1, 3 depend on each other linearly; leave one of them out"),
        ("far sum", "span 3 of 4 directions: coordinates 0, 1, 3 depend"),
        ("few rows", "span 2 of 4 directions: there are no more rows than coordinates; give more rows"),
        ("one row", "span 0 of 4 directions"),
    ],
)
def test_data_of_lower_rank_are_refused_with_the_mend(method, kind, message):
    x = deficient(kind)
    codec = Whiten(4, method=method)
    with pytest.raises(ValueError, match=message):
        codec.fit_(x)
    assert not bool(codec.is_fitted)
    assert torch.equal(codec.encode(x), x)
    mended = Whiten(4, method=method, ridge=1e-3)
    mended.fit_(x)
    z, ladj = mended.encode_ladj(x)
    assert torch.isfinite(z).all()
    assert torch.isfinite(ladj).all()
    torch.testing.assert_close(mended.decode(z), x, rtol=1e-5, atol=1e-5)


def test_nearly_dependent_data_are_whitened():
    x = torch.randn(2000, 3)
    x[:, 2] = x[:, 0] + x[:, 1] + 1e-3 * torch.randn(2000)
    for method in ("pca", "zca", "cholesky"):
        codec = Whiten(3, method=method)
        codec.fit_(x)
        z = codec.encode(x)
        torch.testing.assert_close(covariance(z), torch.eye(3), rtol=0, atol=5e-3)
        torch.testing.assert_close(codec.decode(z), x, rtol=0, atol=2e-5)


def test_a_constant_coordinate_keeps_its_scale_under_a_ridge(double):
    x = torch.stack([torch.full((50,), 3.0), torch.randn(50)], -1)
    codec = Whiten(2, ridge=0.25)
    codec.fit_(x)
    z = codec.encode(x)
    torch.testing.assert_close(covariance(z), torch.diag(torch.tensor([1 / 1.25, 0.0])))
    torch.testing.assert_close(codec.encode(x + torch.tensor([1.0, 0.0]))[:, 1].abs() - z[:, 1].abs(), torch.full((50,), 2.0))


def test_whiten_refusals():
    with pytest.raises(ValueError, match="method must be one of pca, zca, cholesky, got 'ica'"):
        Whiten(3, method="ica")
    with pytest.raises(ValueError, match="ridge must be finite and not negative, got -1"):
        Whiten(3, ridge=-1.0)


def test_principal_axes_come_in_order_with_certain_signs(double):
    truth = Rotation(4, seed=2).matrix
    x = torch.randn(4000, 4) * torch.tensor([0.5, 3.0, 0.0, 1.0]) @ truth.T + 7
    codec = PrincipalAxes(4)
    codec.fit_(x)
    z = codec.encode(x)
    spread = covariance(z)
    torch.testing.assert_close(spread, torch.diag(spread.diag()), rtol=0, atol=1e-9)
    torch.testing.assert_close(spread.diag().sqrt(), torch.tensor([3.0, 1.0, 0.5, 0.0]), rtol=0, atol=0.1)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cdist(z[:9], z[:9]), torch.cdist(x[:9], x[:9]))
    again = PrincipalAxes(4)
    again.fit_(x.flip(0) @ torch.eye(4))
    torch.testing.assert_close(again.axes, codec.axes, rtol=0, atol=1e-6)
    for axis in codec.axes.T:
        assert axis[(axis.abs() >= axis.abs().max() / 2).nonzero()[0]] > 0


def test_principal_axes_of_images_of_one_row_and_of_few_rows():
    x = torch.randn(20, 1, 8, 8)
    x[:, :, 0] = 0
    for rows in (x, x[:5], x[:1]):
        codec = PrincipalAxes((1, 8, 8))
        codec.fit_(rows)
        z = codec.encode(rows)
        assert z.shape == rows.shape
        torch.testing.assert_close(codec.decode(z), rows, rtol=0, atol=1e-5)
        # All that varies is in the first entries.
        assert z.flatten(1)[:, len(rows) - 1 :].abs().max() < 1e-5
    torch.testing.assert_close(codec.axes, torch.eye(64))


def test_moments_of_many_rows_are_those_of_all_at_once(double):
    from fluvial.codecs import moments

    x, weight = torch.randn(3 * 2**15 + 5, 64), torch.rand(3 * 2**15 + 5)
    assert len(x) > 2**22 // 64
    rows, share = moments.checked_rows("it", x, (64,), weight)
    mean, cov = moments.mean_and_covariance(rows, share)
    torch.testing.assert_close(mean, (share @ x))
    torch.testing.assert_close(cov, torch.cov(x.T, correction=0, aweights=weight))
