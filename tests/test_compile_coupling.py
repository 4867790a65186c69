"""Spline coupling flows under torch.compile: values, gradients and forward derivatives are those of the eager flow."""

import warnings

import pytest
import torch

from fluvial.flows import coupling

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def flow_of(transform, bins):
    """A small flow off its identity, with a batch of points and conditions."""
    torch.manual_seed(0)
    flow = coupling(4, 2, transform=transform, blocks=1, bins=bins, hidden=[4]).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return flow.train(), 2 * torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)


def both_ways(flow):
    """(x, c) to what encodes x and to what decodes from x, each with its log-determinant."""
    return lambda x, c: (*flow.codec.encode_ladj(x, c), *flow.codec.decode_ladj(x, c))


def one_way(flow):
    return lambda x, c: flow.codec.encode_ladj(x, c)


def density(flow):
    return lambda x, c: (flow.log_prob(x, c),)


def same(function, inputs, backend):
    """What a function returns, compiled and not; both are equal."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own advice
        found = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*inputs)
    expected = function(*inputs)
    torch.testing.assert_close(found, expected, **EXACT)
    return found, expected


def check_gradients(flow, x, c, maps, backend):
    """In points, condition and weights."""
    wanted = [x.requires_grad_(), c.requires_grad_(), *flow.parameters()]
    results = same(maps(flow), (x, c), backend)
    gradients = [torch.autograd.grad(sum(value.square().sum() for value in values), wanted) for values in results]
    torch.testing.assert_close(*gradients, **EXACT)


def check_tangents(flow, x, c, maps, backend):
    """Forward derivatives in points and condition, taken inside of what is compiled, and not zero: a compiler may drop a rule without a word."""
    dx, dc = torch.randn_like(x), torch.randn_like(c)
    found, _ = same(lambda x, c: torch.func.jvp(maps(flow), (x, c), (dx, dc)), (x, c), backend)
    assert all((tangent != 0).any() for tangent in found[1])


@pytest.mark.parametrize("transform", ["rqs", "affine"])
@pytest.mark.parametrize(("check", "maps"), [(check_gradients, density), (check_gradients, both_ways), (check_tangents, both_ways)])
def test_traced(transform, check, maps):
    """Everything but the generation of code."""
    check(*flow_of(transform, 3), maps, "aot_eager")


@pytest.mark.long
@pytest.mark.parametrize(("transform", "maps"), [("rqs", both_ways), ("cubic", one_way), ("smooth", one_way), ("affine", both_ways)])
@pytest.mark.parametrize("check", [check_gradients, check_tangents])
def test_compiled(transform, maps, check):
    check(*flow_of(transform, 4), maps, "inductor")


@pytest.mark.long
def test_without_a_graph():
    flow, x, c = flow_of("rqs", 4)
    flow.eval()
    same(density(flow), (x, c), "inductor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = torch.compile(flow.sample, dynamic=False)((), c)
    assert draws.shape == x.shape
    torch.testing.assert_close(flow.decode(flow.encode(draws, c), c), draws, **EXACT)
