"""Composition and reversal of codecs."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fluvial.codecs.blocks import runs, send
from fluvial.codecs.codec import Bijection, Codec
from fluvial.codecs.marginal_spline import MarginalSpline
from fluvial.conditions import Condition


class Chain(Codec):
    r"""Codecs one after the other, from the data side to the latent side.

    .. math:: z = f_K(\dots f_2(f_1(x))), \qquad \log|\det| = \sum_k \log|\det f_k'|

    A chain is itself a `Bijection` if and only if all its parts are; then it has ``encode_ladj``, ``domain`` and so on.

    Args:
        parts: At least one codec, the one that touches the data first.

    Raises:
        ValueError: If there are no parts, or a part's codomain is not the next one's domain.
        TypeError: If a part is not a codec.

    Example:
        >>> from fluvial.codecs import FreeForm, Standardize
        >>> free = FreeForm(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> isinstance(Chain([Standardize(2)]), Bijection), isinstance(Chain([Standardize(2), free]), Bijection)
        (True, False)
    """

    def __new__(cls, parts: Sequence[Codec] = (), *args: Any, **kwargs: Any) -> "Chain":
        """A chain of bijections is one itself."""
        bijective = len(parts) > 0 and all(isinstance(part, Bijection) for part in parts)
        return super().__new__(_BijectiveChain if cls is Chain and bijective else cls)

    def __init__(self, parts: Sequence[Codec]) -> None:
        super().__init__()
        if len(parts) == 0:
            raise ValueError("Chain: expected at least one codec, got none")
        for k, part in enumerate(parts):
            if not isinstance(part, Codec):
                raise TypeError(f"Chain: part {k} must be a Codec, got {type(part).__name__}; wrap two networks as FreeForm(encoder, decoder)")
        for k, (left, right) in enumerate(zip(parts, parts[1:])):
            if isinstance(left, Bijection) and isinstance(right, Bijection) and left.codomain != right.domain:
                raise ValueError(f"Chain: part {k} ends on {left.codomain}, part {k + 1} starts on {right.domain}")
        self.parts = nn.ModuleList(parts)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Apply the parts' encoders in order."""
        for run in runs(_flat(self)):
            sent = _by_blocks(run, x, inverse=False, ladj=False)
            if sent is not None:
                x = sent[0]
                continue
            for part in run:
                x = part.encode(x, c)
        return x

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Apply the parts' decoders in reverse order."""
        for run in runs(_flat(self)[::-1]):
            sent = _by_blocks(run, z, inverse=True, ladj=False)
            if sent is not None:
                z = sent[0]
                continue
            for part in run:
                z = part.decode(z, c)
        return z


class _BijectiveChain(Chain, Bijection):
    """A chain all of whose parts are bijections: their ladj add."""

    def __init__(self, parts: Sequence[Codec]) -> None:
        super().__init__(parts)
        self.domain = parts[0].domain
        self.codomain = parts[-1].codomain

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for run in runs(_flat(self)):
            sent = _by_blocks(run, x, inverse=False)
            if sent is not None:
                x, ladj = sent
                total = total + ladj
                continue
            for part in run:
                x, ladj = part.encode_ladj(x, c)
                total = total + ladj
        return x, total

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=z.dtype, device=z.device)
        for run in runs(_flat(self)[::-1]):
            sent = _by_blocks(run, z, inverse=True)
            if sent is not None:
                z, ladj = sent
                total = total + ladj
                continue
            for part in run:
                z, ladj = part.decode_ladj(z, c)
                total = total + ladj
        return z, total


def _flat(chain: Chain) -> list[Codec]:
    """The parts, with those of chains among them in their place."""
    found: list[Codec] = []
    for part in chain.parts:
        found.extend(_flat(part) if isinstance(part, Chain) else [cast(Codec, part)])
    return found


def _by_blocks(run: Sequence[Codec], x: Tensor, *, inverse: bool, ladj: bool = True) -> tuple[Tensor, Tensor] | None:
    """A run of rotations and splines in one go, where that is faster; see `send`."""
    if len(run) == 1:
        return None
    return send(run, x, splines=sum(isinstance(part, MarginalSpline) for part in run), inverse=inverse, ladj=ladj)


class Inverse(Codec):
    """A codec the other way round: its encode is the other's decode. Of a `Bijection` it is a `Bijection`.

    Args:
        codec: The codec to reverse.

    Raises:
        TypeError: If it is not a codec.
    """

    def __new__(cls, codec: Codec | None = None, *args: Any, **kwargs: Any) -> "Inverse":
        """The inverse of a bijection is one itself."""
        return super().__new__(_BijectiveInverse if cls is Inverse and isinstance(codec, Bijection) else cls)

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        if not isinstance(codec, Codec):
            raise TypeError(f"Inverse: expected a Codec, got {type(codec).__name__}")
        self.codec = codec

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """The codec's decode."""
        return self.codec.decode(x, c)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The codec's encode."""
        return self.codec.encode(z, c)


class _BijectiveInverse(Inverse, Bijection):
    def __init__(self, codec: Codec) -> None:
        super().__init__(codec)
        self.domain = codec.codomain
        self.codomain = codec.domain

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        return self.codec.decode_ladj(x, c)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        return self.codec.encode_ladj(z, c)
