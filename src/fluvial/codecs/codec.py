"""The two interfaces of all maps between data and latents."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fluvial.conditions import Condition
from fluvial.manifolds import Manifold


class Codec(nn.Module, ABC):
    r"""A pair of maps between data x of shape (batch, \*event) and latents z of shape (batch, \*latent event).

    The two need not be exact inverses. Every codec accepts a condition c, whether it uses it or not.
    """

    @abstractmethod
    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data -> latents."""

    @abstractmethod
    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Latents -> data."""


class Bijection(Codec):
    r"""A codec whose two maps are exact inverses and that knows its log-determinant.

    ``ladj`` is always log|det ∂out/∂in| of the call that returns it, with respect to the Riemannian volumes of
    ``domain`` (where x lives) and ``codomain`` (where z lives). Outside the support it is −inf, with finite z.
    """

    domain: Manifold
    codomain: Manifold

    @abstractmethod
    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        r"""Data -> latents and log|det ∂z/∂x|, shapes (batch, \*event) and (batch,)."""

    @abstractmethod
    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        r"""Latents -> data and log|det ∂x/∂z|, shapes (batch, \*event) and (batch,)."""
