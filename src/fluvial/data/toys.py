"""Distributions in the plane whose density is known exactly, and data sets drawn from them."""

import math

import torch
from torch import Tensor

from fluvial.data.dataset import Dataset
from fluvial.data.toy import Toy, check_plane, choice, in_blocks, legendre, normal, peak_integral, positive, rotate, uniform


class Moons(Toy):
    r"""Two interleaved half circles of radius 1 with Gaussian noise: scikit-learn's ``make_moons`` with random angles.

    .. math:: p(x) = \frac12 \sum_\pm \frac1\pi \int_0^\pi N\bigl(x;\, m_\pm(t), \sigma^2\bigr)\, dt, \qquad
              m_+ = (\cos t, \sin t), \quad m_- = (1 - \cos t, \tfrac12 - \sin t)

    In polar coordinates (r, φ) about the centre of an arc the integrand is exp(−(r − 1)²/2σ²) exp(−2κ sin²((t − φ)/2)) with κ = r/σ²; it is
    integrated by Gauss–Legendre on each side of its peak, over just the stretch where it is above e⁻⁴⁰ of its largest value.

    Args:
        noise: Standard deviation σ of the noise.

    Example:
        >>> value, error = Moons(noise=0.1).entropy()
        >>> round(value, 3), error < 1e-6
        (1.008, True)
    """

    name = "moons"

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = positive(noise, "moons")
        reach = 8 * noise
        self.box = ((-1 - reach, 2 + reach), (-0.5 - reach, 1 + reach))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2); each moon with probability ½."""
        angle = math.pi * uniform(n, generator)
        arc = torch.stack([angle.cos(), angle.sin()], -1)
        upper = uniform(n, generator) < 0.5
        centre = torch.where(upper.unsqueeze(1), arc, torch.tensor([1.0, 0.5], dtype=torch.float64) - arc)
        return (centre + self.noise * normal(n, generator)).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""

        def moons(points: Tensor) -> Tensor:
            lower = points.new_tensor([1.0, 0.5]) - points
            return torch.logaddexp(self._half_circle(points), self._half_circle(lower)) - math.log(2)

        return in_blocks(moons, x, 96)

    def _half_circle(self, x: Tensor) -> Tensor:
        radius, angle = x.norm(dim=-1), torch.atan2(x[:, 1], x[:, 0])
        kappa = radius / self.noise**2
        # The arc 0 … π, as intervals of the distance u = |t − φ| on either side of φ, or on either way round to the far side.
        inside = angle >= 0
        first = peak_integral(kappa, torch.where(inside, 0.0, -angle), torch.where(inside, angle, math.pi))
        second = peak_integral(kappa, torch.where(inside, 0.0, math.pi + angle), torch.where(inside, math.pi - angle, math.pi))
        radial = -0.5 * ((radius - 1) / self.noise) ** 2 - math.log(2 * math.pi * self.noise**2)
        return radial + torch.logaddexp(first, second) - math.log(math.pi)


class Rings(Toy):
    r"""Concentric circles with Gaussian noise, each with the same mass.

    .. math:: p(x) = \frac1K \sum_k \frac{1}{2\pi\sigma^2} \exp\Bigl(-\frac{(r - R_k)^2}{2\sigma^2}\Bigr)\, e^{-\kappa_k} I_0(\kappa_k),
              \qquad \kappa_k = \frac{r R_k}{\sigma^2}

    Args:
        noise: Standard deviation σ of the noise.
        radii: Radii R of the circles.

    Example:
        >>> round(Rings(noise=0.5, radii=(0.0,)).log_prob(torch.zeros(2)).item(), 4) == round(-math.log(2 * math.pi * 0.25), 4)
        True
    """

    name = "rings"

    def __init__(self, noise: float = 0.08, radii: tuple[float, ...] = (0.75, 1.5, 2.25, 3.0)) -> None:
        self.noise, self.radii = positive(noise, "rings"), tuple(radii)
        reach = max(self.radii) + 8 * noise
        self.box = ((-reach, reach), (-reach, reach))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        angle = 2 * math.pi * uniform(n, generator)
        radius = torch.tensor(self.radii, dtype=torch.float64)[choice(len(self.radii), n, generator)]
        return (torch.stack([radius * angle.cos(), radius * angle.sin()], -1) + self.noise * normal(n, generator)).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""

        def rings(points: Tensor) -> Tensor:
            radius = points.norm(dim=-1, keepdim=True)
            radii = points.new_tensor(self.radii)
            terms = torch.special.i0e(radius * radii / self.noise**2).log() - 0.5 * ((radius - radii) / self.noise) ** 2
            return terms.logsumexp(-1) - math.log(2 * math.pi * self.noise**2 * len(self.radii))

        return in_blocks(rings, x, len(self.radii))


class EightGaussians(Toy):
    r"""Eight equal round Gaussians on a circle.

    .. math:: p(x) = \frac18 \sum_k N\bigl(x;\, R\,(\cos\tfrac{k\pi}{4}, \sin\tfrac{k\pi}{4}), \sigma^2\bigr)

    Args:
        noise: Standard deviation σ of each Gaussian.
        radius: Radius R of the circle.
    """

    name = "eight_gaussians"

    def __init__(self, noise: float = 0.1, radius: float = 2.0) -> None:
        self.noise, self.radius = positive(noise, "eight_gaussians"), radius
        reach = radius + 8 * noise
        self.box = ((-reach, reach), (-reach, reach))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        return (self._means()[choice(8, n, generator)] + self.noise * normal(n, generator)).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""

        def gaussians(points: Tensor) -> Tensor:
            square = (points.unsqueeze(1) - self._means().to(points.device)).square().sum(-1)
            return (-0.5 * square / self.noise**2).logsumexp(-1) - math.log(16 * math.pi * self.noise**2)

        return in_blocks(gaussians, x, 16)

    def _means(self) -> Tensor:
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], -1)


class Checkerboard(Toy):
    """The dark squares of a board of 4 × 4 on [−4, 4]², uniformly: eight squares of side 2, entropy log 32."""

    name = "checkerboard"
    noise = 2.0
    box = ((-4.0, 4.0), (-4.0, 4.0))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        column, half = choice(4, n, generator), choice(2, n, generator)
        corner = torch.stack([column, 2 * half + column % 2], -1)
        within = torch.stack([uniform(n, generator), uniform(n, generator)], -1)
        return (2 * (corner + within) - 4).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""−log 32 on the dark squares, −∞ elsewhere, shape (\*batch,)."""
        check_plane(x)
        cell = torch.floor(x / 2 + 2)
        dark = ((cell >= 0) & (cell <= 3)).all(-1) & (cell.sum(-1) % 2 == 0)
        return torch.where(dark, -math.log(32), -math.inf).to(x.dtype)

    def entropy(self) -> tuple[float, float]:
        """Log 32, exactly."""
        return math.log(32), 0.0


class Pinwheel(Toy):
    r"""Five elongated Gaussians on a circle, twisted about the centre by an angle ω(r) that grows outwards.

    .. math:: p(x) = \frac{1}{20} \sum_k N\bigl(Q(-\theta_k - \omega(r))\,\tfrac{x}{2};\, (1, 0), \mathrm{diag}(s^2, \sigma^2)\bigr), \qquad
              \omega(r) = \tfrac14 e^{r}, \quad r = |x|/2, \quad \theta_k = \tfrac{2\pi k}{5}

    A rotation by an angle that depends on the radius alone preserves area, so the density is exact.

    Args:
        noise: Standard deviation σ across an arm; along it s = 3σ.
    """

    name = "pinwheel"

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = positive(noise, "pinwheel")
        reach = 2 * (1 + 24 * noise)
        self.box = ((-reach, reach), (-reach, reach))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        straight = normal(n, generator) * torch.tensor([3 * self.noise, self.noise]) + torch.tensor([1.0, 0.0])
        arm = 2 * math.pi / 5 * choice(5, n, generator)
        return (2 * rotate(straight, arm + 0.25 * straight.norm(dim=-1).exp())).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""

        def arms(points: Tensor) -> Tensor:
            half = points / 2
            arm = 2 * math.pi / 5 * torch.arange(5, dtype=torch.float64, device=points.device)
            angle = -arm - 0.25 * half.norm(dim=-1, keepdim=True).exp()
            straight = rotate(half.unsqueeze(1).expand(-1, 5, 2), angle) - points.new_tensor([1.0, 0.0])
            square = (straight / points.new_tensor([3 * self.noise, self.noise])).square().sum(-1)
            return (-0.5 * square).logsumexp(-1) - math.log(5 * 4 * 2 * math.pi * 3 * self.noise**2)

        return in_blocks(arms, x, 20)


class TwoSpirals(Toy):
    r"""Two spirals of one and a half turns, each the other's mirror image through the centre, with Gaussian noise.

    .. math:: p(x) = \frac12 \sum_\pm \int_0^1 2s\, N\bigl(x;\, \pm m(s), \sigma^2\bigr)\, ds, \qquad
              m(s) = \pi s\,(\cos 3\pi s, \sin 3\pi s)

    The weight 2s spreads the points almost evenly along the spiral. The integral is a sum over nodes closer than the noise, accurate to
    1e-6 within the box.

    Args:
        noise: Standard deviation σ of the noise.
    """

    name = "two_spirals"

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = positive(noise, "two_spirals")
        reach = math.pi + 8 * noise
        self.box = ((-reach, reach), (-reach, reach))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N points, shape (n, 2)."""
        sign = 1 - 2 * choice(2, n, generator)
        return (sign.unsqueeze(1) * self._curve(uniform(n, generator).sqrt()) + self.noise * normal(n, generator)).to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density, shape (\*batch,)."""
        # 64 nodes per stretch of at most 40 σ of the spiral, whose speed in s is at most π √(1 + 9π²).
        stretches = math.ceil(math.pi * math.hypot(1, 3 * math.pi) / (40 * self.noise))
        nodes, weights = (torch.tensor(part, dtype=torch.float64, device=x.device) for part in legendre(64))
        s = ((torch.arange(stretches, dtype=torch.float64, device=x.device).unsqueeze(1) + nodes) / stretches).flatten()
        arm, log_mass = self._curve(s), (s * weights.repeat(stretches) / stretches).log()
        constant = log_mass - 0.5 * arm.square().sum(-1) / self.noise**2 - math.log(2 * math.pi * self.noise**2)

        def spirals(points: Tensor) -> Tensor:
            along = points @ arm.T / self.noise**2
            both = torch.logaddexp((constant + along).logsumexp(-1), (constant - along).logsumexp(-1))
            return both - 0.5 * points.square().sum(-1) / self.noise**2

        return in_blocks(spirals, x, 2 * len(s))

    @staticmethod
    def _curve(s: Tensor) -> Tensor:
        return math.pi * torch.stack([s * torch.cos(3 * math.pi * s), s * torch.sin(3 * math.pi * s)], -1)


def moons(n: int = 100_000, *, seed: int = 0, noise: float = 0.1) -> Dataset:
    """N points of `Moons`; the entropy at noise 0.1 is 1.008 nats, at 0.05 it is 0.289."""
    return _drawn(Moons(noise), n, seed)


def rings(n: int = 100_000, *, seed: int = 0, noise: float = 0.08) -> Dataset:
    """N points of `Rings`; the entropy at noise 0.08 is 2.623 nats."""
    return _drawn(Rings(noise), n, seed)


def eight_gaussians(n: int = 100_000, *, seed: int = 0, noise: float = 0.1) -> Dataset:
    """N points of `EightGaussians`; the entropy at noise 0.1 is 0.312 nats."""
    return _drawn(EightGaussians(noise), n, seed)


def checkerboard(n: int = 100_000, *, seed: int = 0) -> Dataset:
    """N points of `Checkerboard`; the entropy is log 32 = 3.466 nats."""
    return _drawn(Checkerboard(), n, seed)


def pinwheel(n: int = 100_000, *, seed: int = 0, noise: float = 0.1) -> Dataset:
    """N points of `Pinwheel`; the entropy at noise 0.1 is 2.321 nats."""
    return _drawn(Pinwheel(noise), n, seed)


def two_spirals(n: int = 100_000, *, seed: int = 0, noise: float = 0.1) -> Dataset:
    """N points of `TwoSpirals`; the entropy at noise 0.1 is 2.541 nats."""
    return _drawn(TwoSpirals(noise), n, seed)


def _drawn(toy: Toy, n: int, seed: int) -> Dataset:
    """A data set of n points, the same for the same seed; its ``truth`` is the toy."""
    x = toy.sample(n, torch.Generator().manual_seed(seed))
    return Dataset(x, names=("x1", "x2"), truth=toy, name=toy.name, synthetic=True)
