"""Convolutional encoder and decoder for images."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.conditions import Condition, as_features, as_rows
from fluvial.nn.activations import push_activation
from fluvial.nn.mlp import activation_of
from fluvial.nn.residual import Residual


class ConvolutionalEncoder(nn.Module):
    r"""Images -> vectors: strided convolutions, then a residual network that also sees the condition.

    Every convolution (kernel 4, stride 2, padding 1) halves the side lengths.

    Args:
        image: Shape (channels, height, width) of x; height and width divisible by 2 ** len(channels).
        out: Length of the output vector.
        context: Length of the condition c, 0 for none.
        channels: Channels after each convolution.
        width: Hidden length of the residual network behind them.
        blocks: Its number of residual steps.
        activation: Name of the activation, "silu" by default.

    Raises:
        ValueError: If the image cannot be halved that often.

    Example:
        >>> import torch
        >>> ConvolutionalEncoder((1, 8, 8), 5, channels=[8, 16])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        image: Sequence[int],
        out: int,
        *,
        context: int = 0,
        channels: Sequence[int] = (32, 64),
        width: int = 256,
        blocks: int = 2,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.image = check_image(type(self).__name__, image, channels)
        self.out = out
        self.context = context
        self.channels = tuple(channels)
        self.width = width
        self.blocks = blocks
        self.activation = activation
        self._phi = activation_of(activation)
        depths = [self.image[0], *self.channels]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(depths, depths[1:]))
        side = 2 ** len(self.channels)
        flat = self.channels[-1] * (self.image[1] // side) * (self.image[2] // side)
        self.flat = nn.Linear(flat, out)
        self.head = Residual(out, out, context=context, width=width, blocks=blocks, activation=activation)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        """X (batch, channels, height, width), c (batch, context) -> (batch, out)."""
        for convolution in self.convolutions:
            x = self._phi(convolution(x))
        return self.head(self.flat(x.flatten(-3)), c)

    def linearize(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output and the function that maps tangents t (K, *x.shape) to the output's (K, batch, out)."""
        inputs = []
        for convolution in self.convolutions:
            a = convolution(x)
            inputs.append(a)
            x = self._phi(a)
        y, push_head = self.head.linearize(self.flat(x.flatten(-3)), c)

        def push(t: Tensor) -> Tensor:
            for a, convolution in zip(inputs, self.convolutions):
                rows = F.conv2d(t.flatten(0, 1), convolution.weight, stride=2, padding=1)
                t = push_activation(self.activation, a, rows.unflatten(0, t.shape[:2]))
            return push_head(F.linear(t.flatten(-3), self.flat.weight))

        return y, push


class ConvolutionalDecoder(nn.Module):
    r"""Vectors -> images: a residual network that also sees the condition, then transposed convolutions; mirror of `ConvolutionalEncoder`.

    Args:
        features: Length of z.
        image: Shape (channels, height, width) of the output.
        context: Length of the condition c, 0 for none.
        channels: Channels of the mirrored encoder, from the image side.
        width: Hidden length of the residual network.
        blocks: Its number of residual steps.
        activation: Name of the activation, "silu" by default.

    Raises:
        ValueError: If the image cannot be halved that often.

    Example:
        >>> import torch
        >>> ConvolutionalDecoder(5, (1, 8, 8), channels=[8, 16])(torch.zeros(2, 5)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        features: int,
        image: Sequence[int],
        *,
        context: int = 0,
        channels: Sequence[int] = (32, 64),
        width: int = 256,
        blocks: int = 2,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.features = features
        self.image = check_image(type(self).__name__, image, channels)
        self.context = context
        self.channels = tuple(channels)
        self.width = width
        self.blocks = blocks
        self.activation = activation
        self._phi = activation_of(activation)
        side = 2 ** len(self.channels)
        self._start = (self.channels[-1], self.image[1] // side, self.image[2] // side)
        self.head = Residual(features, features, context=context, width=width, blocks=blocks, activation=activation)
        self.flat = nn.Linear(features, math.prod(self._start))
        depths = [*reversed(self.channels), self.image[0]]
        self.convolutions = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(depths, depths[1:]))

    def forward(self, z: Tensor, c: Condition = None) -> Tensor:
        """Z (batch, features), c (batch, context) -> (batch, channels, height, width)."""
        h = self.flat(self.head(z, c)).unflatten(-1, self._start)
        for convolution in self.convolutions:
            h = convolution(self._phi(h))
        return h

    def linearize(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output and the function that maps tangents t (K, *z.shape) to the output's (K, batch, *image)."""
        start, push_head = self.head.linearize(z, c)
        h = self.flat(start).unflatten(-1, self._start)
        inputs = []
        for convolution in self.convolutions:
            inputs.append(h)
            h = convolution(self._phi(h))

        def push(t: Tensor) -> Tensor:
            t = F.linear(push_head(t), self.flat.weight).unflatten(-1, self._start)
            for a, convolution in zip(inputs, self.convolutions):
                rows = push_activation(self.activation, a, t).flatten(0, 1)
                rows = F.conv_transpose2d(rows, convolution.weight, stride=2, padding=1)
                t = rows.unflatten(0, t.shape[:2])
            return t

        return h, push


class Flatten(nn.Module):
    """A condition of any structure -> one vector per row, for use as a flow's ``context``."""

    def forward(self, c: Condition) -> Tensor | None:
        """Leaves (batch, *event) -> (batch, features), in the order of their sorted names."""
        return as_features(as_rows(c))


def check_image(who: str, image: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """The image shape as a tuple, if it can be halved len(channels) times."""
    side = 2 ** len(channels)
    if len(image) != 3 or min(image) < 1 or image[1] % side or image[2] % side:
        raise ValueError(
            f"{who}: image must be (channels, height, width) with sides divisible by {side} for {len(channels)} convolutions, got {tuple(image)}"
        )
    return (int(image[0]), int(image[1]), int(image[2]))
