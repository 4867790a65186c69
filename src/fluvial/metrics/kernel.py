"""What a kernel of density estimates must say about itself."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Kernel(ABC):
    r"""A bump around every point of a manifold.

    .. math:: k(x, y) = h_\tau(y)\, e^{-\frac\tau2 |\phi(x) - \phi(y)|^2}

    The length in feature space may be that of Minkowski space, with the time coordinates first; τ is 1/width² or a concentration.

    Attributes:
        is_relative: Whether a bandwidth is a width, τ = 1/width², in units of the spread of the points; otherwise it is τ itself.
        times: Which features are times and count negatively, or None.
    """

    is_relative: bool = False
    times: Tensor | None = None

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        r"""φ of points (n, \*event) in float64, shape (n, features)."""

    @abstractmethod
    def log_height(self, tau: float, points: Tensor) -> Tensor:
        r"""Log h of kernels around points (m, \*event), shape (m,) or (1,) where all are alike."""

    @abstractmethod
    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        r"""One draw from the kernel around each of the points (n, \*event), same shape."""

    def square(self, features: Tensor) -> Tensor:
        """|φ|², shape (n,)."""
        signed = features if self.times is None else torch.where(self.times, -features, features)
        return (signed * features).sum(1)
