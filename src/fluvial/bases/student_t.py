"""Heavy-tailed latents."""

import math

import torch
from torch import Tensor, nn

from fluvial.bases.base import Base, sample_shape
from fluvial.conditions import Condition
from fluvial.manifolds import Euclidean


class StudentT(Base):
    r"""Independent Student-t coordinates of unit scale, for data with heavy tails.

    .. math:: \log p(z) = \sum_i \log\Gamma\tfrac{\nu_i+1}2 - \log\Gamma\tfrac{\nu_i}2 - \tfrac12\log \pi\nu_i
              - \tfrac{\nu_i+1}2 \log\bigl(1 + z_i^2/\nu_i\bigr)

    Args:
        event_shape: An int n, or the shape of one latent.
        df: Degrees of freedom ν > 0 at the start, the same for all coordinates.
        learnable: Train log ν, one for each coordinate.

    Raises:
        ValueError: If df is not positive.

    Example:
        >>> round(StudentT(1, df=1.0).log_prob(torch.zeros(1, 1)).exp().item() * math.pi, 6)
        1.0
    """

    has_rsample = True
    log_df: Tensor

    def __init__(self, event_shape: int | tuple[int, ...], *, df: float = 5.0, learnable: bool = False) -> None:
        super().__init__()
        if not df > 0:
            raise ValueError(f"StudentT: df must be positive, got {df}")
        self.manifold = Euclidean(event_shape)
        self.event_shape = self.manifold.event_shape
        self.df = df
        self.learnable = learnable
        log_df = torch.full(self.event_shape, math.log(df))
        if learnable:
            self.log_df = nn.Parameter(log_df)
        else:
            self.register_buffer("log_df", log_df)

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Log-density of z (\*batch, \*event), shape (\*batch,)."""
        nu = self.log_df.exp()
        constant = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log(math.pi * nu)
        return (constant - (nu + 1) / 2 * torch.log1p(z.square() / nu)).sum(tuple(range(-len(self.event_shape), 0)))

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event), differentiable in ν."""
        nu = self.log_df.exp().expand(*sample_shape(n, c), *self.event_shape)
        gauss = torch.randn(nu.shape, generator=generator, dtype=nu.dtype, device=nu.device)
        chi2 = 2 * torch._standard_gamma(nu / 2, generator=generator)
        return gauss * torch.sqrt(nu / chi2.clamp_min(torch.finfo(nu.dtype).tiny))

    def extra_repr(self) -> str:
        """Event shape and degrees of freedom, for repr."""
        return f"{self.manifold}, df={self.df}{', learnable' if self.learnable else ''}"
