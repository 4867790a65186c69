"""Fully connected networks."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.conditions import Condition, as_features
from fluvial.nn.activations import activation, push_activation


class MLP(nn.Module):
    r"""A fully connected network of (x, c).

    .. math:: h_0 = [x, c], \quad h_{k+1} = \varphi(W_k h_k + b_k), \quad y = W_K h_K + b_K

    Args:
        features: Length of x.
        out: Length of the output; default features.
        context: Length of the condition c, 0 for none.
        hidden: Widths of the hidden layers.
        activation: "silu", "sin", "tanh", "softplus", "gelu" or "relu". Free-form training wants a smooth one: the log-det of a piecewise
            linear network has no gradient through its kinks.

    Raises:
        ValueError: If a length is not positive or the activation is unknown.

    Example:
        >>> MLP(2, 3, context=1, hidden=[16])(torch.zeros(5, 2), torch.ones(5, 1)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, features: int, out: int | None = None, *, context: int = 0, hidden: Sequence[int] = (256, 256), activation: str = "silu"
    ) -> None:
        super().__init__()
        out = features if out is None else out
        check_sizes(type(self).__name__, features=features, out=out, context=context, hidden=hidden)
        self.features = features
        self.out = out
        self.context = context
        self.hidden = tuple(hidden)
        self.activation = activation
        self._phi = activation_of(activation)
        widths = [features + context, *self.hidden, out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        """X (*batch, features), c (*batch, context) -> (*batch, out)."""
        h = join(self, x, c)
        for layer in self.layers[:-1]:
            h = self._phi(layer(h))
        return self.layers[-1](h)

    def columns(self, h: Tensor) -> Tensor:
        """The same network with one column for each row: [x, c] of shape (features + context, B) -> (out, B), contiguous."""
        # Where no graph is recorded nobody needs the pre-activations: fresh memory costs more than the arithmetic on it.
        phi = self._phi if torch.is_grad_enabled() else _IN_PLACE.get(self.activation, self._phi)
        for layer in self.layers[:-1]:
            h = phi(torch.addmm(layer.bias.unsqueeze(1), layer.weight, h))
        last = self.layers[-1]
        return torch.addmm(last.bias.unsqueeze(1), last.weight, h)

    def linearize(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output, shape (*batch, out), and the function that maps tangents t (K, *x.shape) to the output's (K, *batch, out)."""
        h = join(self, x, c)
        inputs = []
        for layer in self.layers[:-1]:
            a = layer(h)
            inputs.append(a)
            h = self._phi(a)

        def push(t: Tensor) -> Tensor:
            t = F.linear(t, self.layers[0].weight[:, : self.features])  # c does not move
            for a, layer in zip(inputs, self.layers[1:]):
                t = F.linear(push_activation(self.activation, a, t), layer.weight)
            return t

        return self.layers[-1](h), push


activation_of = activation
_IN_PLACE = {"silu": partial(F.silu, inplace=True), "relu": torch.relu_, "tanh": torch.tanh_, "sin": torch.sin_}


def check_sizes(who: str, *, features: int, out: int, context: int, hidden: Sequence[int]) -> None:
    """Refuse lengths that make no network."""
    if min(features, out, *hidden) < 1 or context < 0:
        raise ValueError(f"{who}: lengths must be positive, got features={features}, out={out}, context={context}, hidden={tuple(hidden)}")


def join(net: nn.Module, x: Tensor, c: Condition) -> Tensor:
    """[x, c] for a network that declares ``features`` and ``context``.

    Raises:
        ValueError: If x or c do not have the declared lengths.
    """
    features: int = net.features if isinstance(net.features, int) else math.prod(net.features)
    context: int = net.context
    if x.shape[-1] != features:
        raise ValueError(f"{type(net).__name__}: expected x of shape (*batch, {features}), got {tuple(x.shape)}")
    if context == 0 and c is None:
        return x
    condition = as_features(c)
    if context == 0:
        raise ValueError(f"{type(net).__name__}: got a condition but was built without one; build it with context=… (free_form: context=…)")
    if condition is None or condition.shape[-1] != context:
        got = "none" if condition is None else tuple(condition.shape)
        raise ValueError(f"{type(net).__name__}: expected a condition of shape (*batch, {context}), got {got}")
    return torch.cat([x, condition.to(x.dtype).expand(*x.shape[:-1], context)], -1)
