"""Principal components with a Gaussian: what an injective flow must beat."""

import torch
from torch import Tensor


class PCAGaussian:
    r"""Affine autoencoder of least squared error, and the Gaussian of its latents.

    .. math:: z = Vᵀ(x - \mu), \qquad \hat x = \mu + V z, \qquad z \sim \mathcal{N}(0, \mathrm{diag}(\lambda_1 \dots \lambda_d))

    Args:
        mean: μ, shape (\*event).
        components: Orthonormal rows Vᵀ, shape (d, D) with D the number of entries of an event.
        deviations: √λ, shape (d,).
    """

    def __init__(self, mean: Tensor, components: Tensor, deviations: Tensor) -> None:
        self.mean = mean
        self.components = components
        self.deviations = deviations

    def encode(self, x: Tensor) -> Tensor:
        r"""X of shape (n, \*event) -> latents (n, d)."""
        return (x - self.mean).flatten(1) @ self.components.T

    def decode(self, z: Tensor) -> Tensor:
        r"""Latents (n, d) -> (n, \*event)."""
        return self.mean + (z @ self.components).unflatten(1, self.mean.shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)), same shape."""
        return self.decode(self.encode(x))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        r"""N independent draws, shape (n, \*event)."""
        noise = torch.randn(n, len(self.deviations), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.decode(noise * self.deviations)


def pca_gaussian(train: Tensor, d: int, *, weight: Tensor | None = None) -> PCAGaussian:
    r"""Fit `PCAGaussian` to data.

    Args:
        train: Shape (n, \*event).
        d: Number of components, 1 … min(n, D).
        weight: Weights of the rows, shape (n,), not negative, or None.

    Raises:
        ValueError: If d is out of range.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0], [1.0, 3.0]])
        >>> bool(torch.allclose(pca_gaussian(x, 1).reconstruct(x), x, atol=1e-5))
        True
    """
    flat = train.detach().flatten(1).double()
    if not 1 <= d <= min(flat.shape):
        raise ValueError(f"pca_gaussian: expected 1 to {min(flat.shape)} components for data of shape {tuple(train.shape)}, got {d}")
    w = torch.full_like(flat[:, :1], 1 / len(flat)) if weight is None else (weight.double() / weight.double().sum()).unsqueeze(1)
    mean = (w * flat).sum(0)
    _, singular, rows = torch.linalg.svd((flat - mean) * w.sqrt(), full_matrices=False)
    return PCAGaussian(mean.view(train.shape[1:]).to(train.dtype), rows[:d].to(train.dtype), singular[:d].to(train.dtype))
