"""Poses of a rigid body given features, with a known density."""

import math

import torch
from torch import Tensor

from fluvial.data.dataset import Dataset
from fluvial.data.rotations import RotationsGivenFeatures
from fluvial.manifolds import Euclidean, Product, SpecialOrthogonal

POSES = Product(SpecialOrthogonal(3), Euclidean(3))


class PosesGivenFeatures:
    r"""Rotation R and position t of a body given features c: the position is that of the end of a lever that turns with the body.

    .. math:: p(R, t|c) = p(R|c)\, N\bigl(t;\, R\,a + D c,\, \tau^2 1\bigr), \qquad a = (\ell, 0, 0)

    p(R|c) is a `RotationsGivenFeatures`; the entries of D are drawn once, normal of s.d. 0.5/√f. Densities are per radian³ and unit length³.

    Args:
        rotations: p(R|c).
        lever: Length ℓ of the lever.
        position_noise: Standard deviation τ of the position.

    Raises:
        ValueError: If the noise is not positive.

    Example:
        >>> truth = PosesGivenFeatures(RotationsGivenFeatures())
        >>> c = truth.sample_condition(5)
        >>> x = truth.sample(c)
        >>> x.shape, truth.log_prob(x, c).shape
        (torch.Size([5, 12]), torch.Size([5]))
    """

    def __init__(self, rotations: RotationsGivenFeatures, *, lever: float = 1.0, position_noise: float = 0.15) -> None:
        if not 0 < position_noise < math.inf:
            raise ValueError(f"PosesGivenFeatures: position_noise must be positive, got {position_noise}; without it there is no density")
        self.rotations, self.lever, self.position_noise = rotations, lever, position_noise
        f = rotations.features
        self.drift = torch.randn(3, f, generator=torch.Generator().manual_seed(rotations.seed), dtype=torch.float64) * (0.5 / math.sqrt(f))

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        r"""Log-density in nats at poses x (\*batch, 12) given features c (\*batch, f), shape (\*batch,), in the dtype of x.

        Raises:
            ValueError: Without features, or if the shapes do not fit.
        """
        if x.shape[-1:] != POSES.event_shape:
            raise ValueError(f"log_prob: expected poses of shape (*batch, 12), rotation and position, got {tuple(x.shape)}")
        given = self.rotations.checked(c, x.shape[:-1]).to(x.device)
        rotation, position = POSES.split(x.reshape(-1, 12).double())
        away = (position - self._place(rotation, given)) / self.position_noise
        of_position = -0.5 * away.square().sum(-1) - 1.5 * math.log(2 * math.pi * self.position_noise**2)
        return (self.rotations.log_prob(rotation, given) + of_position).to(x.dtype).view(x.shape[:-1])

    def sample_condition(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Features of n rows, shape (n, f), in torch's default dtype."""
        return self.rotations.sample_condition(n, generator)

    def sample(self, c: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One pose for each row of features c (n, f), shape (n, 12), in torch's default dtype."""
        rotation = self.rotations.sample(c, generator).double()
        noise = torch.randn(len(c), 3, generator=generator, dtype=torch.float64)
        return POSES.join(rotation, self._place(rotation, c) + self.position_noise * noise).to(torch.get_default_dtype())

    def entropy(self) -> tuple[float, float]:
        """The conditional entropy in nats, and its standard error."""
        value, error = self.rotations.entropy()
        return value + 1.5 * math.log(2 * math.pi * math.e * self.position_noise**2), error

    def _place(self, rotation: Tensor, c: Tensor) -> Tensor:
        return self.lever * rotation[..., 0] + c.double() @ self.drift.to(rotation.device).T


def poses(
    n: int = 100_000,
    *,
    features: int = 2,
    modes: int = 2,
    noise: float = 0.2,
    position_noise: float = 0.15,
    lever: float = 1.0,
    seed: int = 0,
    mixture_seed: int = 0,
) -> Dataset:
    """Poses given features, on ``Product(SpecialOrthogonal(3), Euclidean(3))``, with a known conditional density: rows of `PosesGivenFeatures`.

    Args:
        n: Number of rows.
        features: Number of features.
        modes: Number of modes of the rotation.
        noise: Standard deviation of a mode of the rotation in radians, at features 0.
        position_noise: Standard deviation of the position, given rotation and features.
        lever: Length of the lever whose end is the position.
        seed: Of the rows.
        mixture_seed: Of how the modes depend on the features.

    Returns:
        A `Dataset` of shape (n, 12), the rotation row by row and the position, with a condition (n, features); its ``truth`` has
        ``log_prob(x, c)``, ``sample(c)``, ``sample_condition(n)`` and ``entropy()``, the conditional entropy.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> poses(1000)
        Dataset poses (synthetic): 1000 rows on Product(SpecialOrthogonal(3), Euclidean(3)), condition ['c1', 'c2']
    """
    truth = PosesGivenFeatures(
        RotationsGivenFeatures(features, modes=modes, noise=noise, seed=mixture_seed), lever=lever, position_noise=position_noise
    )
    generator = torch.Generator().manual_seed(seed)
    c = truth.sample_condition(n, generator)
    return Dataset(
        truth.sample(c, generator),
        c,
        manifold=POSES,
        names=[*(f"R_{i}_{j}" for i in range(3) for j in range(3)), "x", "y", "z"],
        condition_names=[f"c{k + 1}" for k in range(features)],
        truth=truth,
        name="poses",
        synthetic=True,
    )
