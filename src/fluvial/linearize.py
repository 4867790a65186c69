"""A map together with its derivative: fused where the network offers it, by function transforms for any other module."""

import itertools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fluvial.codecs import Chain, Codec, FreeForm, Inverse
from fluvial.codecs.free_form import call
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold, linearize_projection

Push = Callable[[Tensor], Tensor]


@runtime_checkable
class HasLinearize(Protocol):
    """A network that returns, with its output, the map of tangents, without a second pass for the value."""

    def linearize(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Push]:
        """Y and push: tangents (K, *x.shape) -> (K, *y.shape)."""
        ...


def linearize(codec: Codec, side: str, x: Tensor, c: Condition = None, *, manifold: Manifold | None = None) -> tuple[Tensor, Tensor, Push]:
    r"""One side of a codec, projected onto the manifold it maps to, with its derivative.

    Args:
        codec: Any codec.
        side: "encode" or "decode".
        x: Its input, shape (B, \*event).
        c: Condition, leaves (B, …).
        manifold: Where the output belongs; None leaves it as it is.

    Returns:
        The projected output, the raw output, and the function push that maps tangents (K, B, \*event) to those of the projected output.
    """
    raw, push_raw = _linearize(codec, side, x, c)
    if manifold is None:
        return raw, raw, push_raw
    x, push = linearize_projection(manifold, raw)
    return x, raw, lambda t: push(push_raw(t))


def _linearize(codec: Codec, side: str, x: Tensor, c: Condition) -> tuple[Tensor, Push]:
    if isinstance(codec, Chain):
        parts: list[Codec] = list(codec.parts)
        pushes = []
        for part in parts if side == "encode" else reversed(parts):
            x, push = _linearize(part, side, x, c)
            pushes.append(push)
        return x, lambda t: _compose(pushes, t)
    if isinstance(codec, Inverse):
        return _linearize(codec.codec, "decode" if side == "encode" else "encode", x, c)
    if isinstance(codec, FreeForm):
        net = codec.encoder if side == "encode" else codec.decoder
        if isinstance(net, HasLinearize):
            return net.linearize(x, c)
        return _by_transform(_same_masks(lambda y: call(net, y, c), net, x.device), x)
    return _by_transform(lambda y: getattr(codec, side)(y, c), x)


def _compose(pushes: list[Push], t: Tensor) -> Tensor:
    for push in pushes:
        t = push(t)
    return t


def _by_transform(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Push]:
    """For any function: the value once, the derivative by forward differentiation."""
    if torch.compiler.is_compiling():
        return _by_double_vjp(fn, x)

    def push(t: Tensor) -> Tensor:
        if len(t) == 1:
            return torch.func.jvp(fn, (x,), (t[0],))[1].unsqueeze(0)
        return torch.func.vmap(lambda one: torch.func.jvp(fn, (x,), (one,))[1], randomness="same")(t)

    return fn(x), push


def _same_masks(fn: Callable[[Tensor], Tensor], net: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """fn, drawing in every later call the random numbers of its first: the derivative of a network with dropout is that of the value drawn."""
    if not net.training or torch.compiler.is_compiling() or not any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in net.modules()):
        return fn
    devices = [device] if device.type == "cuda" else []
    state = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices]
    calls = itertools.count()

    def replayed(x: Tensor) -> Tensor:
        if next(calls) == 0:
            return fn(x)
        with torch.random.fork_rng(devices):
            torch.set_rng_state(state[0])
            for d, s in zip(devices, state[1]):
                torch.cuda.set_rng_state(s, d)
            return fn(x)

    return replayed


def _by_double_vjp(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Push]:
    # The compiler cannot trace a jvp through two linear layers; the derivative of the (linear) vjp is the same map.
    y, pull = torch.func.vjp(fn, x)

    def push(t: Tensor) -> Tensor:
        columns = [torch.func.vjp(lambda g: pull(g)[0], torch.zeros_like(y))[1](one)[0] for one in t.unbind(0)]
        return torch.stack(columns)

    return y, push
