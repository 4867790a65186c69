"""Residual networks, the usual encoder and decoder of a free-form flow."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.conditions import Condition
from fluvial.nn.activations import push_activation
from fluvial.nn.mlp import activation_of, check_sizes, join


class Residual(nn.Module):
    r"""A residual network of (x, c) that starts close to its linear skip.

    .. math:: h_0 = W_0 (a\,[x, c]) + b_0, \quad h_{k+1} = h_k + \varphi(W_k h_k + b_k), \quad y = S x + W_K h_K + b_K

    S is the identity where input and output are equally long, else a trainable linear map.

    Args:
        features: Length of x, or the shape of one x, such as (3, 3) for a matrix, which is flattened.
        out: Length or shape of the output; default features.
        context: Length of the condition c, 0 for none.
        width: Length of the hidden state h.
        blocks: Number of residual steps K.
        activation: "silu", "sin", "tanh", "softplus", "gelu" or "relu"; "sin" resolves sharp structure on compact manifolds.
        input_scale: The factor a; above 1 the first layer sees finer structure.
        output_scale: Factor on the output layer's weights at the start; small values start near the skip.

    Raises:
        ValueError: If a length is not positive or the activation is unknown.

    Example:
        >>> Residual(3)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
        >>> Residual((3, 3))(torch.zeros(5, 3, 3)).shape
        torch.Size([5, 3, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        out: int | Sequence[int] | None = None,
        *,
        context: int = 0,
        width: int = 256,
        blocks: int = 4,
        activation: str = "silu",
        input_scale: float = 1.0,
        output_scale: float = 0.1,
    ) -> None:
        super().__init__()
        out = features if out is None else out
        self.features = features if isinstance(features, int) else tuple(features)
        self.out = out if isinstance(out, int) else tuple(out)
        self._in_shape = (features,) if isinstance(features, int) else tuple(features)
        self._out_shape = (out,) if isinstance(out, int) else tuple(out)
        size, size_out = math.prod(self._in_shape), math.prod(self._out_shape)
        check_sizes(type(self).__name__, features=size, out=size_out, context=context, hidden=[width])
        if blocks < 0:
            raise ValueError(f"Residual: blocks must be at least 0, got {blocks}")
        self.context = context
        self.width = width
        self.blocks = blocks
        self.activation = activation
        self.input_scale = input_scale
        self.output_scale = output_scale
        self._phi = activation_of(activation)
        self.first = nn.Linear(size + context, width)
        self.steps = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, size_out)
        self.skip = None if size_out == size else nn.Linear(size, size_out, bias=False)
        with torch.no_grad():
            self.last.weight.mul_(output_scale)
            self.last.bias.zero_()
            if self.skip is not None:
                nn.init.orthogonal_(self.skip.weight)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""X (\*batch, \*features), c (\*batch, context) -> (\*batch, \*out)."""
        x = self._flat(x)
        h = self.first(self.input_scale * join(self, x, c))
        for step in self.steps:
            h = h + self._phi(step(h))
        return self._shaped((x if self.skip is None else self.skip(x)) + self.last(h))

    def states(self, x: Tensor, c: Condition = None) -> list[Tensor]:
        r"""The hidden states h_0 … h_K, each of shape (\*batch, width)."""
        h = [self.first(self.input_scale * join(self, self._flat(x), c))]
        for step in self.steps:
            h.append(h[-1] + self._phi(step(h[-1])))
        return h

    def linearize(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        r"""The output, shape (\*batch, \*out), and the function that maps tangents t (K, \*x.shape) to the output's (K, \*batch, \*out)."""
        x = self._flat(x)
        h = self.first(self.input_scale * join(self, x, c))
        inputs = []
        for step in self.steps:
            a = step(h)
            inputs.append(a)
            h = h + self._phi(a)

        def push(t: Tensor) -> Tensor:
            t = self._flat(t)
            dh = F.linear(self.input_scale * t, self.first.weight[:, : x.shape[-1]])  # c does not move
            for a, step in zip(inputs, self.steps):
                dh = dh + push_activation(self.activation, a, F.linear(dh, step.weight))
            skip = t if self.skip is None else F.linear(t, self.skip.weight)
            return self._shaped(skip + F.linear(dh, self.last.weight))

        return self._shaped((x if self.skip is None else self.skip(x)) + self.last(h)), push

    def _flat(self, x: Tensor) -> Tensor:
        axes = len(self._in_shape)
        if axes == 1:
            return x
        if tuple(x.shape[max(0, x.ndim - axes) :]) != self._in_shape:
            raise ValueError(f"Residual: expected x of shape (*batch, {', '.join(map(str, self._in_shape))}), got {tuple(x.shape)}")
        return x.flatten(x.ndim - axes)

    def _shaped(self, y: Tensor) -> Tensor:
        return y if len(self._out_shape) == 1 else y.unflatten(-1, self._out_shape)
