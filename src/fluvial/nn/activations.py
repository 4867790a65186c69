"""Activations by name, each with the derivatives that the free-form surrogate runs on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Activation(NamedTuple):
    """A function φ with its slope φ', and slope and curvature (φ', φ'') in one go."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    slope_and_curvature: Callable[[Tensor], tuple[Tensor, Tensor]]


def _silu_slope(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return torch.addcmul(s, a * s, 1 - s)  # σ + aσ(1 − σ)


def _silu_curvature(a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(a)
    bump = s * (1 - s)
    return torch.addcmul(s, a, bump), bump * (2 + a * (1 - 2 * s))


def _tanh_slope(a: Tensor) -> Tensor:
    return 1 - torch.tanh(a).square()


def _tanh_curvature(a: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(a)
    slope = 1 - value.square()
    return slope, -2 * value * slope


def _softplus_curvature(a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(a)
    return s, s * (1 - s)


def _gelu_slope(a: Tensor) -> Tensor:
    return _gelu_curvature(a)[0]


def _gelu_curvature(a: Tensor) -> tuple[Tensor, Tensor]:
    density = torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(a / math.sqrt(2)))
    return below + a * density, density * (2 - a.square())


def _relu_slope(a: Tensor) -> Tensor:
    return (a > 0).to(a.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(F.silu, _silu_slope, _silu_curvature),
    "sin": Activation(torch.sin, torch.cos, lambda a: (torch.cos(a), -torch.sin(a))),
    "tanh": Activation(torch.tanh, _tanh_slope, _tanh_curvature),
    "softplus": Activation(F.softplus, torch.sigmoid, _softplus_curvature),
    "gelu": Activation(F.gelu, _gelu_slope, _gelu_curvature),
    "relu": Activation(F.relu, _relu_slope, lambda a: (_relu_slope(a), torch.zeros_like(a))),
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation called `name`.

    Raises:
        ValueError: If there is none; the message lists those that exist.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name].value


def push_activation(name: str, a: Tensor, t: Tensor) -> Tensor:
    """Directional derivatives φ'(a)·t of an activation.

    Args:
        name: Which activation φ.
        a: Pre-activations, shape (B, features).
        t: Their K tangents, shape (K, B, features).

    Returns:
        Shape (K, B, features). Differentiable to any order in a and t.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        # The compiler, and function transforms, differentiate the plain operations themselves.
        return ACTIVATIONS[name].slope(a) * t
    return _Push.apply(a, t, name)  # pyright: ignore[reportReturnType]


class _Push(torch.autograd.Function):
    """push_activation with a backward of few kernels: ∂/∂a φ'(a) t = φ''(a) t, ∂/∂t = φ'(a)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, t: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(a, t)
        ctx.name = name
        return ACTIVATIONS[name].slope(a) * t

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        a, t = ctx.saved_tensors
        slope, curvature = ACTIVATIONS[ctx.name].slope_and_curvature(a)
        pulled = grad * t
        return (pulled[0] if len(t) == 1 else pulled.sum(0)) * curvature, grad * slope, None
