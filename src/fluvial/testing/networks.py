"""The contract of a network with a fused derivative."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition
from fluvial.testing.contract import check_condition_gradient, check_gradients, check_module, check_transforms, close, contract, refuses, row


@contract
def check_network(
    make: Callable[[], nn.Module], points: Callable[[int], Tensor], out: tuple[int, ...], *, condition: Callable[[int], Condition] | None = None
) -> None:
    """The contract of a network with a fused derivative: ``linearize`` equals forward and `torch.func.jvp`, in value and in gradients.

    Args:
        make: Builds the network.
        points: Gives n inputs, float64.
        out: Event shape of its output.
        condition: Gives a condition of batch (n,), for a network that takes one.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.nn import MLP
        >>> check_network(lambda: MLP(3, 2, hidden=[8]), lambda n: torch.randn(n, 3, dtype=torch.float64), (2,))
    """
    net = make().double()
    x, c = points(5), None if condition is None else condition(5)
    y = net(x, c)
    assert y.shape == (5, *out), f"forward has shape {tuple(y.shape)}, expected {(5, *out)}"
    close(torch.cat([net(x[k : k + 1], row(c, k)) for k in range(5)]), y, text="forward: a row depends on the other rows")
    for count in (1, 3):
        t = torch.randn(count, *x.shape, dtype=x.dtype)
        value, push = net.linearize(x, c)
        close(value, y, text="linearize has another value than forward")
        pushed = push(t)
        reference = torch.stack([torch.func.jvp(lambda p: net(p, c), (x,), (one,))[1] for one in t])
        close(pushed, reference, text="linearize has another derivative than torch.func.jvp")
        w = torch.randn_like(pushed)
        parameters = list(net.parameters())
        ours = torch.autograd.grad((w * pushed).sum(), parameters, allow_unused=True)
        theirs = torch.autograd.grad((w * reference).sum(), parameters, allow_unused=True)
        for (name, p), a, b in zip(net.named_parameters(), ours, theirs):
            message = f"gradient of linearize's derivative to {name} differs from that of torch.func.jvp"
            close(torch.zeros_like(p) if a is None else a, torch.zeros_like(p) if b is None else b, message)
    check_gradients(net, lambda: net(x, c).square().sum(), "forward")
    check_transforms(net, x, c, "forward")
    check_condition_gradient(net, x, c, "forward")
    context = getattr(net, "context", 0)
    if context:
        assert refuses(lambda: net(x)), "a network with a context accepts a call without a condition"
        assert refuses(lambda: net(x, torch.zeros(5, context + 1, dtype=x.dtype))), "a condition of the wrong length is accepted"
    check_module(make)
