"""Standardisation as part of the model."""

import math
from typing import Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fluvial.codecs.blocks import BlockMap
from fluvial.codecs.chain import Chain
from fluvial.codecs.codec import Bijection, Codec
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class Standardize(Bijection):
    r"""Shift and scale every coordinate to mean 0 and standard deviation 1 of the data it is fitted on.

    .. math:: z_i = (x_i - \mu_i)/\sigma_i, \qquad \log|\det| = -\sum_i \log\sigma_i

    It is the identity until ``fit_`` is called; `fluvial.fit` does so on the training split, and the result is part of
    ``log_prob``, so that densities are in the units of the data. A coordinate without spread keeps its scale.

    Args:
        event_shape: An int n, or the shape of one sample.
        isotropic: One common scale σ for all coordinates (for images, where each pixel's own scale would blow up noise).

    Example:
        >>> codec = Standardize(2)
        >>> codec.fit_(torch.tensor([[0.0, 0.0], [2.0, 20.0]]))
        >>> codec.encode(torch.tensor([[1.0, 20.0]]))
        tensor([[0., 1.]])
    """

    loc: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, event_shape: int | tuple[int, ...], *, isotropic: bool = False) -> None:
        super().__init__()
        self.domain = self.codomain = Euclidean(event_shape)
        self.event_shape = self.domain.event_shape
        self.isotropic = isotropic
        self.register_buffer("loc", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit_(self, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
        r"""Take mean and spread from x of shape (n, \*event), each row counting with its weight (n,).

        Raises:
            ValueError: If x has the wrong event shape or no rows.
        """
        if x.shape[1:] != self.event_shape or len(x) == 0:
            raise ValueError(f"Standardize: expected data of shape (n, {', '.join(map(str, self.event_shape))}) with n ≥ 1, got {tuple(x.shape)}")
        x64 = x.to(torch.float64)
        w = torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device) if weight is None else weight.to(torch.float64) / weight.sum()
        w = w.view(-1, *(1,) * len(self.event_shape))
        loc = (w * x64).sum(0)
        variance = (w * (x64 - loc) ** 2).sum(0)
        if self.isotropic:
            variance = variance.mean().expand_as(variance)
        # Below this the spread is rounding of the mean, not spread.
        floor = (torch.finfo(x.dtype).eps * loc.abs()).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        scale = variance.sqrt()
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(scale > floor, scale, 1.0))
        self.is_fitted.fill_(1)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """(x − μ)/σ."""
        return (x - self.loc) / self.scale

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse: μ + σ z."""
        return self.loc + self.scale * z

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z and −Σ log σ."""
        return self.encode(x), -self._log_scale(x)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """The inverse and Σ log σ."""
        return self.decode(z), self._log_scale(z)

    def block_map(self, *, inverse: bool) -> BlockMap | None:
        """The map of blocks."""
        if len(self.event_shape) != 1:
            return None
        loc, scale = self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)
        change = float(self.scale.log().sum()) * (1 if inverse else -1)

        def moved(block: Tensor, ladj: np.ndarray | None) -> Tensor:
            if ladj is not None:
                ladj += change
            return block.mul_(scale).add_(loc) if inverse else block.sub_(loc).div_(scale)

        return moved

    def _log_scale(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return self.scale.log().sum().to(x.dtype).expand(batch)

    def extra_repr(self) -> str:
        """Shape and size, for repr."""
        return f"{math.prod(self.event_shape)} coordinates{', isotropic' if self.isotropic else ''}"


class HasFit(Protocol):
    """A codec that takes something from the data before training."""

    is_fitted: Tensor

    def fit_(self, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
        """Fill parameters and buffers from data."""
        ...


def wants_fit(codec: Codec) -> TypeGuard[HasFit]:
    """Whether a codec takes something from the data; a buffer counts as an attribute, which a runtime protocol would not see."""
    return hasattr(codec, "is_fitted") and hasattr(codec, "fit_")


def fit_codec_(codec: Codec, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
    """Fit every part of `codec` that wants data and has had none, each on what the parts before it make of x.

    Parts behind one that is not a bijection are left alone: an untrained network's output says nothing about them.
    """
    if isinstance(codec, Chain):
        for part in codec.parts:
            fit_codec_(part, x, c, weight)
            if not isinstance(part, Bijection):
                return
            if part is not codec.parts[-1]:
                with torch.no_grad():
                    x = part.encode(x, c)
    elif wants_fit(codec) and not bool(codec.is_fitted):
        codec.fit_(x, c, weight)
