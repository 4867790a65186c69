"""Every network keeps the contract; a new one is a line in the table."""

import pytest
import torch
from torch import nn

from fluvial.nn import ACTIVATIONS, MLP, ConvolutionalDecoder, ConvolutionalEncoder, Flatten, Residual, activation, push_activation
from fluvial.testing import check_network


def normal(*event):
    return lambda n: torch.randn(n, *event, dtype=torch.float64)


def several(n):
    return {"b": torch.randn(n, 1, dtype=torch.float64), "a": torch.randn(n, 2, dtype=torch.float64)}


NETWORKS = {
    "MLP": (lambda: MLP(3, 2, hidden=[8, 8, 8]), normal(3), (2,), {}),
    "MLP without hidden layers": (lambda: MLP(3, 2, hidden=[]), normal(3), (2,), {}),
    "MLP with condition": (lambda: MLP(3, context=3, hidden=[8, 8]), normal(3), (3,), {"condition": several}),
    "residual": (lambda: Residual(3, width=8, blocks=3, input_scale=2.0), normal(3), (3,), {}),
    "residual with a linear skip": (lambda: Residual(4, 2, context=3, width=8, blocks=2, activation="sin"), normal(4), (2,), {"condition": several}),
    "residual without steps": (lambda: Residual(2, 3, width=8, blocks=0), normal(2), (3,), {}),
    "convolutional encoder": (
        lambda: ConvolutionalEncoder((2, 8, 4), 3, context=3, channels=[3, 4], width=8, blocks=1),
        normal(2, 8, 4),
        (3,),
        {"condition": several},
    ),
    "convolutional decoder": (
        lambda: ConvolutionalDecoder(3, (2, 8, 4), channels=[3, 4], width=8, blocks=1, activation="gelu"),
        normal(3),
        (2, 8, 4),
        {},
    ),
}


@pytest.mark.parametrize(("make", "points", "out", "options"), NETWORKS.values(), ids=NETWORKS.keys())
def test_contract(make, points, out, options):
    check_network(make, points, out, **options)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_contract_for_every_activation(name):
    if name == "relu":  # its slope jumps, which finite differences at random points do not hit
        check_network(lambda: MLP(3, 2, hidden=[8, 8], activation=name), normal(3), (2,))
    else:
        check_network(lambda: Residual(3, width=8, blocks=2, activation=name), normal(3), (3,))


class Forgetful(MLP):
    """A fused derivative that leaves out the last activation's slope."""

    def linearize(self, x, c=None):
        y, _ = super().linearize(x, c)
        return y, lambda t: nn.functional.linear(nn.functional.linear(t, self.layers[0].weight), self.layers[1].weight)


def test_contract_finds_what_is_broken():
    with pytest.raises(AssertionError, match="linearize has another derivative"):
        check_network(lambda: Forgetful(3, 2, hidden=[8]), normal(3), (2,))


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"relu"}))
@pytest.mark.parametrize("count", [1, 2])
def test_slopes_and_curvatures_are_derivatives(name, count, double):
    a = torch.cat([torch.linspace(-3, 3, 5), torch.tensor([0.0])]).unsqueeze(0).requires_grad_()
    t = torch.randn(count, 1, 6, requires_grad=True)
    torch.testing.assert_close(push_activation(name, a, t), torch.func.jvp(activation(name), (a.repeat(count, 1, 1),), (t,))[1])
    assert torch.autograd.gradcheck(lambda a, t: push_activation(name, a, t), (a, t))
    assert torch.autograd.gradgradcheck(lambda a, t: push_activation(name, a, t), (a, t))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_finite_at_extremes(name):
    a = torch.tensor([[-1e6, -100.0, -1.0, 0.0, 1.0, 100.0, 1e6]], requires_grad=True)
    t = torch.ones(1, 1, 7, requires_grad=True)
    pushed = push_activation(name, a, t)
    gradients = torch.autograd.grad((activation(name)(a) + pushed).sum(), (a, t))
    assert all(torch.isfinite(value).all() for value in (pushed, *gradients))


def test_push_activation_works_inside_function_transforms(double):
    a, t = torch.randn(4, 3), torch.randn(2, 4, 3)
    expected = ACTIVATIONS["silu"].slope(a) * t
    mapped = torch.func.vmap(lambda one: push_activation("silu", a, one.unsqueeze(0)).squeeze(0))(t)
    torch.testing.assert_close(mapped, expected)
    slope = torch.func.grad(lambda b: push_activation("silu", b, t).sum())(a)
    torch.testing.assert_close(slope, ACTIVATIONS["silu"].slope_and_curvature(a)[1] * t.sum(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0), "features=0"),
        (lambda: MLP(2, hidden=[8, 0]), r"hidden=\(8, 0\)"),
        (lambda: MLP(2, context=-1), "context=-1"),
        (lambda: MLP(2, activation="swish"), "silu, sin, tanh"),
        (lambda: Residual(2, width=0), "hidden"),
        (lambda: ConvolutionalEncoder((1, 6, 8), 2, channels=[4, 4]), "divisible by 4"),
        (lambda: ConvolutionalDecoder(2, (8, 8), channels=[4]), "channels, height, width"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "c", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 1), r"expected x of shape \(\*batch, 2\), got \(4, 3\)"),
        (torch.zeros(4, 2), None, r"expected a condition of shape \(\*batch, 1\), got none"),
        (torch.zeros(4, 2), torch.zeros(4, 2), r"expected a condition of shape \(\*batch, 1\), got \(4, 2\)"),
    ],
)
def test_wrong_inputs_are_named(x, c, message):
    with pytest.raises(ValueError, match=message):
        MLP(2, context=1, hidden=[4])(x, c)


def test_dict_conditions_are_joined_by_sorted_name(double):
    net = MLP(2, context=3, hidden=[8])
    c = several(4)
    x = torch.randn(4, 2)
    torch.testing.assert_close(net(x, c), net(x, torch.cat([c["a"], c["b"]], -1)))


def test_one_condition_is_broadcast_over_the_batch(double):
    net = MLP(2, context=1, hidden=[8])
    x, c = torch.randn(3, 4, 2), torch.randn(4, 1)
    torch.testing.assert_close(net(x, c)[1], net(x[1], c))


def test_flatten_takes_leaves_of_any_shape():
    c = {"T": torch.arange(2.0), "field": torch.ones(2, 3, 2)}
    assert Flatten()(c).shape == (2, 7)
    assert Flatten()(c)[:, 0].tolist() == [0, 1]  # "T" sorts before "field"
    assert Flatten()(torch.zeros(0, 3, 2)).shape == (0, 6)
    assert Flatten()(None) is None


def test_residual_starts_close_to_its_skip(double):
    x = torch.randn(50, 3)
    assert (Residual(3, width=64)(x) - x).abs().max() < 0.5
    states = Residual(3, width=16, blocks=2).states(x)
    assert [h.shape for h in states] == [(50, 16)] * 3
