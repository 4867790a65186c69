"""Rotations with a known density: mixtures of wrapped normals, fixed or given features."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluvial.data.dataset import Dataset
from fluvial.manifolds import SpecialOrthogonal

ROTATIONS = SpecialOrthogonal(3)
# Rows are drawn in blocks of this many, and densities computed in blocks of this many numbers.
ROWS, NUMBERS = 2**18, 2**20
# A wider wrapped normal goes round the sphere of directions so often that its density at the mean is dominated by how it comes back.
WIDEST = 1.0


class Modes(NamedTuple):
    """K wrapped normals, one set for all rows, or one for each of n.

    Attributes:
        mean: Their means, shape (K, 3, 3) or (n, K, 3, 3).
        scale: Standard deviations in radians, shape (K,) or (n, K).
        log_weight: Logarithms of their weights, which sum to 1, shape (K,) or (n, K).
    """

    mean: Tensor
    scale: Tensor
    log_weight: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at rotations (n, 3, 3) in float64, shape (n,)."""
        x, mean = SpecialOrthogonal.to_quaternion(x), SpecialOrthogonal.to_quaternion(self.mean)
        cosine = x @ mean.T if mean.ndim == 2 else (mean @ x.unsqueeze(-1)).squeeze(-1)
        return (self.log_weight + log_wrapped_normal(cosine.abs(), self.scale)).logsumexp(-1)

    def draw(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Rotations (n, 3, 3), and the log-density (n,) of the choices made for them: of the mode, and of the tangent vector at its mean."""
        at = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        tangent = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        k = (self.log_weight.exp().cumsum(-1)[..., :-1] <= at).sum(-1)
        if self.scale.ndim == 1:
            mean, scale, log_weight = self.mean[k], self.scale[k], self.log_weight[k]
        else:
            row = torch.arange(n)
            mean, scale, log_weight = self.mean[row, k], self.scale[row, k], self.log_weight[row, k]
        chosen = log_weight - 0.5 * tangent.square().sum(-1) - 1.5 * torch.log(2 * math.pi * scale.square())
        return mean @ SpecialOrthogonal.from_rotation_vector(scale.unsqueeze(-1) * tangent), chosen

    def choice_entropy(self) -> Tensor:
        """Entropy of the choices that `draw` makes, shape () or (n,)."""
        of_mode = 1.5 * torch.log(2 * math.pi * math.e * self.scale.square())
        return (self.log_weight.exp() * (of_mode - self.log_weight)).sum(-1)


def log_wrapped_normal(cosine: Tensor, scale: Tensor) -> Tensor:
    r"""The wrapped normal on SO(3) at an angle θ from its mean: exp of a Gaussian tangent vector there, per Riemannian volume.

    .. math:: p(\theta) = \sum_{m \in \mathbb Z} N(\theta_m; 0, \sigma^2 1_3)\, \frac{\theta_m^2}{2 - 2\cos\theta}, \qquad \theta_m = \theta + 2\pi m

    Args:
        cosine: cos(θ/2) ≥ 0, the scalar product of two unit quaternions up to sign, float64.
        scale: σ in radians, broadcast with it.

    Returns:
        Shape of both, broadcast.
    """
    half = torch.acos(cosine.clamp(max=1.0)).clamp_min(1e-8)
    turns = 1 + int(float(scale.max()) / 0.8)
    angles = 2 * (half.unsqueeze(-1) + math.pi * torch.arange(-turns, turns + 1, dtype=half.dtype, device=half.device))
    terms = -0.5 * (angles / scale.unsqueeze(-1)).square() + 2 * torch.log((angles / (2 * torch.sin(half)).unsqueeze(-1)).abs())
    return terms.logsumexp(-1) - 1.5 * torch.log(2 * math.pi * scale.square())


class RotationMixture:
    r"""A mixture of wrapped normals on SO(3), with exact density per Riemannian volume, of which there is 8π².

    .. math:: R = \mu_k\,[v]_\times^{\exp}, \quad v \sim N(0, \sigma_k^2 1_3), \quad k \sim w

    v is a rotation vector: σ is in radians of rotation angle in each direction.

    Args:
        mean: Means μ, shape (K, 3, 3).
        scale: Standard deviations σ ≤ 1, shape (K,) or one for all.
        weight: Weights w > 0, shape (K,), scaled to sum to 1; default equal ones.

    Raises:
        ValueError: If shapes do not fit, or a scale or weight is out of range.

    Example:
        >>> single = RotationMixture(torch.eye(3).unsqueeze(0), 0.05)
        >>> value, error = single.entropy()
        >>> abs(value - 1.5 * math.log(2 * math.pi * math.e * 0.05**2)) < 1e-3  # nearly that of a Gaussian
        True
    """

    def __init__(self, mean: Tensor, scale: float | Sequence[float] | Tensor, weight: Sequence[float] | Tensor | None = None) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64)
        if mean.ndim != 3 or mean.shape[1:] != (3, 3) or len(mean) == 0:
            raise ValueError(f"RotationMixture: expected means of shape (K, 3, 3), got {tuple(mean.shape)}")
        scales = torch.as_tensor(scale, dtype=torch.float64)
        weights = torch.ones(len(mean), dtype=torch.float64) if weight is None else torch.as_tensor(weight, dtype=torch.float64)
        for what, values in (("scale", scales.reshape(-1)), ("weight", weights)):
            if values.shape not in ((1,), (len(mean),)) or not bool((values > 0).all()):
                raise ValueError(f"RotationMixture: expected one {what} > 0 for each of {len(mean)} modes, got {values.tolist()}")
        if float(scales.max()) > WIDEST:
            raise ValueError(f"RotationMixture: scale must be at most {WIDEST:g} rad, got {float(scales.max()):g}")
        self.mean = ROTATIONS.project(mean)
        self.scale = scales.expand(len(mean)).clone()
        self.weight = weights.expand(len(mean)) / weights.sum()

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density in nats at rotations x of shape (\*batch, 3, 3), shape (\*batch,), in the dtype of x."""
        rows = _rows(x)
        modes = self._modes(x.device)
        blocks = [modes.log_prob(block) for block in rows.split(max(1, NUMBERS // (3 * len(self.scale))))]
        return torch.cat(blocks).to(x.dtype).view(x.shape[:-2])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N rotations, shape (n, 3, 3), in torch's default dtype."""
        modes, dtype = self._modes(), torch.get_default_dtype()
        return torch.cat([modes.draw(min(ROWS, n - start), generator)[0].to(dtype) for start in range(0, max(n, 1), ROWS)])

    def entropy(self) -> tuple[float, float]:
        """Entropy in nats and its standard error.

        That of modes that do not overlap on flat space is exact; what overlap and curvature change is a mean over 65 536 draws, the same ones
        every time.
        """
        modes = self._modes()
        x, chosen = modes.draw(2**16, torch.Generator().manual_seed(0))
        changes = chosen - self.log_prob(x)
        return float(modes.choice_entropy() + changes.mean()), float(changes.std() / math.sqrt(len(changes)))

    def _modes(self, device: torch.device | None = None) -> Modes:
        modes = Modes(self.mean, self.scale, self.weight.log())
        return modes if device is None else Modes(*(part.to(device) for part in modes))


class RotationsGivenFeatures:
    r"""Rotations whose distribution depends smoothly on a feature vector: a mixture of wrapped normals that turn, widen and trade weight.

    .. math:: R = \mu_k \exp[A_k c]_\times \exp[v]_\times, \quad v \sim N(0, \sigma_k(c)^2 1_3), \quad
              \sigma_k(c) = \sigma e^{\langle s_k, c\rangle}, \quad k \sim \mathrm{softmax}(B c), \quad c \sim U[-1, 1]^f

    μ, A, s and B are drawn once, by the seed: the means are uniform, the entries of A are normal of s.d. 0.6/√f, those of s uniform within
    ±0.4/f, those of B normal of s.d. 1/√f. So a mode turns by about a radian, and σ changes by at most a factor 1.5, over the features' range.

    Args:
        features: Number f of features.
        modes: Number of modes.
        noise: σ in radians, at most 0.6.
        seed: Of what is drawn once.

    Raises:
        ValueError: If a number is not positive, or the noise is too large.

    Example:
        >>> truth = RotationsGivenFeatures()
        >>> c = truth.sample_condition(5)
        >>> truth.log_prob(truth.sample(c), c).shape
        torch.Size([5])
    """

    def __init__(self, features: int = 2, *, modes: int = 2, noise: float = 0.2, seed: int = 0) -> None:
        if features < 1 or modes < 1 or not 0 < noise <= 0.6:
            raise ValueError(
                f"RotationsGivenFeatures: features and modes must be at least 1, noise within 0 … 0.6, got {features}, {modes}, {noise:g}"
            )
        self.features, self.modes, self.noise, self.seed = features, modes, noise, seed
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(features)

        self.mean = ROTATIONS.random_uniform(modes, generator=generator, dtype=torch.float64)
        self.turn = 0.6 * normal(modes, 3, features)
        self.widen = (2 * torch.rand(modes, features, generator=generator, dtype=torch.float64) - 1) * (0.4 / features)
        self.trade = normal(modes, features)

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        r"""Log-density in nats at rotations x (\*batch, 3, 3) given features c (\*batch, f), shape (\*batch,), in the dtype of x.

        Raises:
            ValueError: Without features, or if the shapes do not fit.
        """
        rows = _rows(x)
        given = self.checked(c, x.shape[:-2]).to(rows.device)
        size = max(1, NUMBERS // (12 * self.modes))
        blocks = [self.given(part).log_prob(block) for part, block in zip(given.split(size), rows.split(size))]
        return torch.cat(blocks).to(x.dtype).view(x.shape[:-2])

    def sample_condition(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Features of n rows, shape (n, f), in torch's default dtype."""
        return (2 * torch.rand(n, self.features, generator=generator, dtype=torch.float64) - 1).to(torch.get_default_dtype())

    def sample(self, c: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One rotation for each row of features c (n, f), shape (n, 3, 3), in torch's default dtype."""
        parts = self.checked(c, c.shape[:1]).split(ROWS)
        return torch.cat([self.given(part).draw(len(part), generator)[0].to(torch.get_default_dtype()) for part in parts])

    def entropy(self) -> tuple[float, float]:
        """The conditional entropy, the mean over c of that of R given c, in nats, and its standard error over 262 144 draws."""
        generator = torch.Generator().manual_seed(0)
        c = self.sample_condition(2**18, generator).double()
        modes = self.given(c)
        x, chosen = modes.draw(len(c), generator)
        values = modes.choice_entropy() + chosen - self.log_prob(x, c)
        return float(values.mean()), float(values.std() / math.sqrt(len(values)))

    def given(self, c: Tensor) -> Modes:
        """The modes of every row of c (n, f), float64."""
        mean, turn, widen, trade = (part.to(c.device) for part in (self.mean, self.turn, self.widen, self.trade))
        turned = mean @ SpecialOrthogonal.from_rotation_vector(torch.einsum("kif,nf->nki", turn, c))
        return Modes(turned, self.noise * (c @ widen.T).exp(), torch.log_softmax(c @ trade.T, -1))

    def checked(self, c: Tensor | None, batch: Sequence[int]) -> Tensor:
        """Features of a batch of that shape as rows (n, f) in float64; ValueError where they are none."""
        if c is None or tuple(c.shape) != (*batch, self.features):
            found = "none" if c is None else f"shape {tuple(c.shape)}"
            raise ValueError(f"this density is conditional: expected features of shape {(*batch, self.features)}, got {found}")
        return c.reshape(-1, self.features).double()


def so3_mixture(
    modes: int = 16,
    n: int = 100_000,
    *,
    noise: float = 0.1 / math.sqrt(2),
    spread: float = 0.0,
    seed: int = 0,
    mixture_seed: int = 0,
    held_out: tuple[int, int] | None = None,
) -> Dataset:
    """Rotations of a mixture of equally likely wrapped normals with uniformly distributed means, on ``SpecialOrthogonal(3)``.

    The benchmark has 16, 32 or 64 modes and 10 000 000 rows, of which 1000 are for validation and 5000 for test:
    ``so3_mixture(16, 10_000_000, spread=0.1, held_out=(1000, 5000))``. The entropy of a mixture depends on which means are drawn, because some
    overlap; modes apart have log K − 3.694 nats at the default noise, −0.92, −0.23 and 0.46. ``truth.entropy()`` gives the drawn mixture's own.

    Args:
        modes: Number K of modes.
        n: Number of rows.
        noise: Standard deviation in radians in every direction; that of the benchmark, 0.1/√2, is 0.1 in the entries of a unit tangent vector.
        spread: Relative standard deviation of the modes' precisions 1/σ², which are Gamma distributed; the benchmark has 0.1, 0 makes all equal.
        seed: Of the rows.
        mixture_seed: Of means and precisions.
        held_out: Numbers of rows of the official validation and test split; default none, so that ``split`` cuts 80/10/10.

    Returns:
        A `Dataset` of shape (n, 3, 3) whose ``truth`` is a `RotationMixture` with log_prob, sample and entropy.

    Raises:
        ValueError: If a number is out of range.

    References:
        V. De Bortoli et al., Riemannian score-based generative modelling, 2022, arXiv:2202.02763;
        P. Sorrenson, F. Draxler et al., Learning distributions on manifolds with free-form flows, 2023, arXiv:2312.09852.

    Example:
        >>> data = so3_mixture(16, 1000)
        >>> data
        Dataset so3_mixture 16 (synthetic): 1000 rows on SpecialOrthogonal(3)
        >>> [round(number, 2) for number in data.truth.entropy()]
        [-0.92, 0.0]
    """
    if modes < 1 or n < 1 or not 0 < noise <= WIDEST or not 0 <= spread <= 1:
        raise ValueError(
            f"so3_mixture: modes and n must be at least 1, noise within 0 … {WIDEST:g}, spread within 0 … 1, got {modes}, {n}, {noise:g}, {spread:g}"
        )
    if held_out is not None and (len(held_out) != 2 or min(held_out) < 0 or sum(held_out) >= n):
        raise ValueError(f"so3_mixture: held_out must be the rows for validation and for test, fewer than {n} together, got {held_out}")
    mean = ROTATIONS.random_uniform(modes, generator=torch.Generator().manual_seed(mixture_seed), dtype=torch.float64)
    # A Gamma of shape 1/spread² and mean 1.
    precision = np.random.default_rng(mixture_seed).gamma(spread**-2, spread**2, modes) if spread > 0 else np.ones(modes)
    truth = RotationMixture(mean, torch.as_tensor(noise / np.sqrt(precision)).clamp(max=WIDEST))
    official = None if held_out is None else np.split(np.arange(n), [n - sum(held_out), n - held_out[1]])
    return Dataset(
        truth.sample(n, torch.Generator().manual_seed(seed)),
        manifold=ROTATIONS,
        truth=truth,
        official=official,
        name=f"so3_mixture {modes}",
        synthetic=True,
    )


def so3_given_features(n: int = 100_000, *, features: int = 2, modes: int = 2, noise: float = 0.2, seed: int = 0, mixture_seed: int = 0) -> Dataset:
    """Rotations given features, on ``SpecialOrthogonal(3)``, with a known conditional density: rows of `RotationsGivenFeatures`.

    Args:
        n: Number of rows.
        features: Number of features.
        modes: Number of modes.
        noise: Standard deviation of a mode in radians, at features 0.
        seed: Of the rows.
        mixture_seed: Of how the modes depend on the features.

    Returns:
        A `Dataset` of shape (n, 3, 3) with a condition (n, features); its ``truth`` has ``log_prob(x, c)``, ``sample(c)``, ``sample_condition(n)``
        and ``entropy()``, the conditional entropy, which the mean NLL of no model falls below.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> so3_given_features(1000)
        Dataset so3_given_features (synthetic): 1000 rows on SpecialOrthogonal(3), condition ['c1', 'c2']
    """
    truth = RotationsGivenFeatures(features, modes=modes, noise=noise, seed=mixture_seed)
    generator = torch.Generator().manual_seed(seed)
    c = truth.sample_condition(n, generator)
    return Dataset(
        truth.sample(c, generator),
        c,
        manifold=ROTATIONS,
        condition_names=[f"c{k + 1}" for k in range(features)],
        truth=truth,
        name="so3_given_features",
        synthetic=True,
    )


def _rows(x: Tensor) -> Tensor:
    if x.shape[-2:] != (3, 3):
        raise ValueError(f"log_prob: expected rotations of shape (*batch, 3, 3), got {tuple(x.shape)}")
    return x.reshape(-1, 3, 3).double()
