"""The contract of a flow."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from fluvial.conditions import Condition, as_rows, batch_shape, leaves, transform
from fluvial.flow import Flow
from fluvial.testing.contract import check_file, check_gradients, check_module, close, contract


@contract
def check_flow(make: Callable[[], Flow], *, condition: Callable[[int], Condition] | None = None) -> None:
    """The contract of a flow, in float64: shapes and broadcasting, agreement of samples and log_prob, gradients, save and load.

    Args:
        make: Builds the flow.
        condition: Gives a condition of batch (n,), for a conditional flow.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.flows import free_form
        >>> check_flow(lambda: free_form(2, width=8, blocks=1))
    """
    flow = make().double().eval()
    event, n = flow.manifold.event_shape, 4
    c = None if condition is None else condition(n)
    with torch.no_grad():
        x, log_p = flow.sample_and_log_prob((3,) if c is not None else (3, n), c, generator=torch.Generator().manual_seed(0))
        again = flow.sample((3,) if c is not None else (3, n), c, generator=torch.Generator().manual_seed(0))
    assert x.shape == (3, n, *event), f"sample has shape {tuple(x.shape)}, expected {(3, n, *event)}"
    assert log_p.shape == (3, n), f"sample_and_log_prob: log_prob has shape {tuple(log_p.shape)}, expected {(3, n)}"
    assert flow.sample((), c).shape == (*batch_shape(c, flow.condition), *event), "sample(()) does not draw one per condition"
    close(again, x, text="sample and sample_and_log_prob differ under the same generator")
    close(flow.manifold.project(x), x, text="sample is not on the manifold")
    value = flow.log_prob(x, c)
    close(value, _by_hand(flow, x, c), text="log_prob is not the base's density over the decoder's volume", rtol=1e-6, atol=1e-6)
    if flow.is_bijective:
        close(value, log_p, text="log_prob of samples is not what sample_and_log_prob says", rtol=1e-6, atol=1e-6)
    rows = torch.stack([torch.stack([flow.log_prob(x[i, j], _row(c, j)) for j in range(n)]) for i in range(3)])
    close(value, rows, text="log_prob of a batch is not that of its rows")
    assert not value.requires_grad, "log_prob keeps a graph in eval mode though no gradient is asked"
    given = x[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_prob(given, c).sum(), given)
    assert bool(torch.isfinite(slope).all()), "log_prob has a gradient in x that is not finite"
    check_gradients(flow.train(), lambda: flow.log_prob(x[0], c).sum() + flow.sample(() if c is not None else n, c).square().sum(), "log_prob")
    if c is not None:
        check_second_derivatives(flow, x[0, :2], transform(c, lambda leaf: leaf[:2]))
    distribution = flow.eval().distribution(c)
    close(distribution.log_prob(x), value, text="distribution().log_prob is not log_prob")
    assert distribution.sample(torch.Size([2])).shape == (2, *batch_shape(c, flow.condition), *event), "distribution().sample has the wrong shape"
    twin = copy.deepcopy(flow)
    close(twin.log_prob(x, c), value, rtol=0, atol=0, text="a deep copy has another log_prob")
    check_module(make)
    check_file(flow, x, c)


def _by_hand(flow: Flow, x: Tensor, c: Condition) -> Tensor:
    """Log p_base(z) − ½ log det JᵀJ + metric, J the decoder's Jacobian by automatic differentiation, for x of batch (3, n)."""
    with torch.no_grad():
        z = flow.encode(x, c)
        rebuilt = flow.decode(z, c)
        volume = torch.zeros(x.shape[:2], dtype=x.dtype)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                jacobian = torch.func.jacrev(lambda one: flow.decode(one, _row(c, j)))(z[i, j])  # noqa: B023
                jacobian = jacobian.reshape(x[i, j].numel(), -1) @ flow.latent_manifold.tangent_basis(z[i : i + 1, j])[0].flatten(0, -2)
                volume[i, j] = 0.5 * torch.linalg.slogdet(jacobian.T @ jacobian)[1]
        embedded = c if flow.context is None or c is None else flow.context(c)
        rows = None if embedded is None else as_rows(transform(embedded, lambda leaf: leaf.repeat(3, *(1,) * (leaf.ndim - 1))))
        log_base = flow.base.log_prob(z.flatten(0, 1), rows).view(x.shape[:2])
        return log_base - volume + flow.latent_manifold.log_volume(z) - flow.manifold.log_volume(rebuilt)


def _row(c: Condition, k: int) -> Condition:
    return transform(c, lambda leaf: leaf[k])


def check_second_derivatives(flow: Flow, x: Tensor, c: Condition, *, step: float = 1e-5) -> None:
    """∂_c log_prob is differentiable in the parameters: its derivative along a random direction against a central difference."""
    given = transform(c, lambda leaf: leaf.clone().requires_grad_())
    entries = list(leaves(given).values())
    weights = [torch.randn_like(leaf) for leaf in entries]
    parameters = [p for p in flow.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in parameters]

    def slope() -> Tensor:
        log_p = flow.log_prob(x, given).sum()
        found = torch.autograd.grad(log_p, entries, create_graph=True, allow_unused=True)
        return torch.stack([(w * g).sum() for w, g in zip(weights, found) if g is not None] or [log_p.detach() * 0]).sum()

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, direction in zip(parameters, directions):
                p.add_(direction, alpha=by)
        value = slope().detach()
        with torch.no_grad():
            for p, direction in zip(parameters, directions):
                p.sub_(direction, alpha=by)
        return value

    here = slope()
    if not here.requires_grad or not parameters:
        return
    found = torch.autograd.grad(here, parameters, allow_unused=True)
    exact = torch.stack([(d * g).sum() for d, g in zip(directions, found) if g is not None]).sum()
    difference = (moved(step) - moved(-step)) / (2 * step)
    close(exact.detach(), difference, "∂_c log_prob: its derivative in the parameters is not that of finite differences", rtol=1e-4, atol=1e-6)
