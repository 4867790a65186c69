"""The maximum mean discrepancy."""

import math

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Normal
from fluvial.codecs import Bijection
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean
from fluvial.metrics import squared_mmd
from fluvial.objectives import MaximumMeanDiscrepancy


@pytest.fixture(autouse=True)
def _double(double):
    pass


class ShiftScale(Bijection):
    """x = m + e^s z, whose divergences from a Gaussian are known."""

    def __init__(self, loc, scale):
        super().__init__()
        self.domain = self.codomain = Euclidean(len(loc))
        self.loc, self.scale = tuple(loc), tuple(scale)
        self.m = nn.Parameter(torch.tensor(self.loc))
        self.s = nn.Parameter(torch.tensor(self.scale).log())

    def encode(self, x, c=None):
        return (x - self.m) * torch.exp(-self.s)

    def decode(self, z, c=None):
        return self.m + z * torch.exp(self.s)

    def encode_ladj(self, x, c=None):
        return self.encode(x), -self.s.sum().expand(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z), self.s.sum().expand(len(z))


def gaussian(loc=(0.9, -0.6), scale=(0.7, 1.2)):
    return Flow(ShiftScale(loc, scale), Normal(2))


def by_hand(x, y, widths, weight):
    def k(a, b):
        return sum(math.exp(-float((a - b).square().sum()) / (2 * h**2)) for h in widths) / len(widths)

    n, m = range(len(x)), range(len(y))
    data = sum(float(weight[i] * weight[j]) * k(x[i], x[j]) for i in n for j in n if i != j)
    data /= sum(float(weight[i] * weight[j]) for i in n for j in n if i != j)
    drawn = sum(k(y[i], y[j]) for i in m for j in m if i != j) / (len(y) * (len(y) - 1))
    return data + drawn - 2 * sum(float(weight[i]) * k(x[i], y[j]) for i in n for j in m) / (float(weight.sum()) * len(y))


def test_mmd_by_hand():
    x, y, weight = torch.randn(5, 1, 2), torch.randn(7, 1, 2) + 3.0, torch.rand(5)
    assert squared_mmd(x, y, bandwidths=(0.5, 2.0), weight=weight).item() == pytest.approx(by_hand(x, y, (0.5, 2.0), weight), abs=1e-12)
    one = squared_mmd(x, y, bandwidths=[0.7], kernel="multiquadric", weight=weight)
    kernel = lambda a, b: 1 / (1 + torch.cdist(a.flatten(1), b.flatten(1)).square() / (2 * 0.49))  # noqa: E731
    outer = weight.outer(weight).fill_diagonal_(0)
    expected = (outer * kernel(x, x)).sum() / outer.sum() + (kernel(y, y).sum() - 7) / 42 - 2 * (weight @ kernel(x, y)).sum() / (weight.sum() * 7)
    torch.testing.assert_close(one, expected)


def test_mmd_has_no_bias():
    generator = torch.Generator().manual_seed(0)
    h, delta = 0.8, 0.7
    values = {0.0: [], delta: []}
    for _ in range(400):
        for shift, found in values.items():
            x, y = torch.randn(30, 1, generator=generator), torch.randn(20, 1, generator=generator) + shift
            found.append(squared_mmd(x, y, bandwidths=[h]))
    for shift, found in values.items():
        table = torch.stack(found)
        # Gaussians in a Gaussian kernel: E k = h/√(h² + 2) · exp(−δ²/2(h² + 2)).
        expected = 2 * h / math.sqrt(h**2 + 2) * (1 - math.exp(-(shift**2) / (2 * (h**2 + 2))))
        assert abs(table.mean().item() - expected) < 5 * table.std().item() / 20


def test_paired_mmd_compares_joint_distributions():
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(2000, 1, generator=generator)
    noise = [0.1 * torch.randn(2000, 1, generator=generator) for _ in range(2)]
    shuffled = c[torch.randperm(2000, generator=generator)]
    alike = squared_mmd(c + noise[0], c + noise[1], bandwidths=[0.3], paired=2 * c)
    apart = squared_mmd(c + noise[0], shuffled + noise[1], bandwidths=[0.3], paired=2 * c)
    assert abs(alike) < 2e-3
    assert apart > 0.05
    assert squared_mmd(c + noise[0], shuffled + noise[1], bandwidths=[0.3]).abs() < 2e-3
    with pytest.raises(ValueError, match="two samples of one event shape"):
        squared_mmd(torch.zeros(3, 2), torch.zeros(3, 1))


def test_mmd_measures_in_units_of_the_data():
    data = fl.data.moons(500)
    objectives = [MaximumMeanDiscrepancy((0.2,)) for _ in range(2)]
    for objective, factor in zip(objectives, (1.0, 100.0)):
        objective.prepare(gaussian(), fl.Dataset(factor * data.x))
    assert objectives[1].unit.item() == pytest.approx(100 * objectives[0].unit.item(), rel=1e-5)
    conditional = MaximumMeanDiscrepancy()
    conditional.prepare(gaussian(), fl.Dataset(data.x, 5 * data.x[:, :1] + 1))
    assert conditional.condition_scale.shape == (1,)


def test_weighted_pairs_have_their_optimum_at_the_conditional():
    # x|c ~ N(c, 0.1²), and rows of large c count more: y from the same conditional is as good as x itself.
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(3000, 1, generator=generator)
    weight = torch.exp(3 * c[:, 0])
    x, y = (c + 0.1 * torch.randn(3000, 1, generator=generator) for _ in range(2))
    assert squared_mmd(x, y, bandwidths=[0.3], weight=weight, paired=c / 0.5).abs() < 2e-4
    # A weight of 3 says what three copies of the row say, up to the few pairs of copies.
    often = torch.tensor([1.0, 3.0]).repeat(300)
    x, y, c = x[:600], y[:600] + 0.3, c[:600]
    repeated = torch.repeat_interleave(torch.arange(600), often.long())
    found = squared_mmd(x, y, bandwidths=[0.3], weight=often, paired=c)
    assert found.item() == pytest.approx(squared_mmd(x[repeated], y[repeated], bandwidths=[0.3], paired=c[repeated]).item(), abs=5e-3)
