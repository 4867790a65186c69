"""Wells: energies with many separate minima whose normalisation and samples are known all the same."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fluvial.bases.base import sample_shape
from fluvial.conditions import Condition, batch_shape, transform
from fluvial.energies.energy import Energy
from fluvial.energies.tempered import inverse_temperature
from fluvial.manifolds import Euclidean
from fluvial.manifolds.manifold import normals

HALF = 2049  # nodes of each of the two pieces of a table
NODES = 2 * HALF
BISECTIONS = 64
DEPTH = 60.0  # the integrals end where the density is below e⁻⁶⁰ of its largest value
LARGEST = 1e30  # of coefficients, for room in single precision
BLOCK = 64  # temperatures treated at once


class MultiWell(Energy):
    r"""Independent coordinates with two wells each: 2ⁿ modes, of different mass where ``linear`` is not 0.

    .. math:: E(x) = \frac1T \sum_{i=1}^{n} \bigl(a\, d_i + b\, d_i^2 + c\, d_i^4\bigr), \qquad x = M d

    With the defaults the minima are at ±√2 in every coordinate, of depth −4. log Z is a quadrature in one dimension, and samples are exact: drawn
    by inverting the tabulated distribution function of one coordinate.

    Args:
        wells: Number n of coordinates.
        linear: a, which makes one well of each coordinate deeper.
        quadratic: b.
        quartic: c > 0.
        temperature: T, or None where the condition holds it, shape (\*batch, 1).
        mixing: Invertible matrix M (n, n), which turns and stretches the wells; default none.

    Raises:
        ValueError: If there is no coordinate, quartic or temperature is not positive, a number is not finite, the matrix is not invertible, or
            wells are so narrow that numbers in single precision step over them.

    References:
        Noé et al. (2019), Boltzmann generators, arXiv:1812.01729; Midgley et al. (2023), arXiv:2208.01893.

    Example:
        >>> energy = MultiWell(5)
        >>> energy(torch.full((1, 5), 2**0.5)).round(), round(energy.log_z().item(), 3)
        (tensor([-20.]), 21.465)
    """

    _mixing: Tensor | None
    _inverse: Tensor | None

    def __init__(
        self,
        wells: int = 5,
        *,
        linear: float = 0.0,
        quadratic: float = -4.0,
        quartic: float = 1.0,
        temperature: float | None = 1.0,
        mixing: Sequence[Sequence[float]] | Tensor | None = None,
    ) -> None:
        super().__init__()
        if wells < 1:
            raise ValueError(f"MultiWell: wells must be at least 1, got {wells}")
        self._well = _Well("MultiWell", linear, quadratic, quartic, temperature)
        matrix = None if mixing is None else torch.as_tensor(mixing, dtype=torch.float64).detach().cpu()
        if matrix is not None and not (matrix.shape == (wells, wells) and _is_invertible(matrix)):
            raise ValueError(
                f"MultiWell: mixing must be an invertible matrix {wells} × {wells} of finite numbers, got one of shape {tuple(matrix.shape)}"
            )
        self.wells = wells
        self.linear, self.quadratic, self.quartic, self.temperature = linear, quadratic, quartic, temperature
        self.mixing = None if matrix is None else tuple(map(tuple, matrix.tolist()))
        self.manifold = Euclidean(wells)
        self.condition = (1,) if temperature is None else None
        dtype = torch.get_default_dtype()
        self.register_buffer("_mixing", None if matrix is None else matrix.to(dtype), persistent=False)
        self.register_buffer("_inverse", None if matrix is None else torch.linalg.inv(matrix).to(dtype), persistent=False)
        # Holds the device and dtype that samples are drawn on.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""E of x (\*batch, n), shape (\*batch,)."""
        return self._well.inverse(c) * self._potential(x)

    def grad_c(self, x: Tensor, c: Condition) -> Condition:
        r"""−u(x)/T² where the condition is the temperature, else 0, shape (\*batch, 1)."""
        return self._well.slope(self._potential(x), x.ndim - 1, c)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), n)."""
        shape = sample_shape(n, c)
        d = self._well.sample(shape, self.wells, c, self.anchor, generator)
        return d if self._mixing is None else d @ self._mixing.T

    def log_z(self, c: Condition = None) -> Tensor:
        r"""Log Z, shape (\*batch(c),)."""
        value = self.wells * self._well.log_z(c, self.anchor)
        return value if self._mixing is None else value + torch.linalg.slogdet(self._mixing)[1]

    def _potential(self, x: Tensor) -> Tensor:
        d = x if self._inverse is None else x @ self._inverse.T
        return self._well.potential(d).sum(-1)


class DoubleWell(Energy):
    r"""Two wells in the plane: a quartic in the first coordinate, a spring in the second.

    .. math:: E(x) = \frac1T \Bigl(a\, d + b\, d^2 + c\, d^4 + \tfrac12 v^2\Bigr), \qquad x = (d, v)

    With the defaults the minima are at (±√2, 0), of depth −4, with a barrier of height 0 between them.

    Args:
        linear: a, which makes one well deeper.
        quadratic: b.
        quartic: c > 0.
        temperature: T, or None where the condition holds it, shape (\*batch, 1).

    Raises:
        ValueError: If quartic or temperature is not positive, a number is not finite, or wells are so narrow that numbers in single precision
            step over them.

    Example:
        >>> energy = DoubleWell()
        >>> energy(torch.tensor([[2**0.5, 0.0], [0.0, 0.0]])).round(decimals=3)
        tensor([-4., 0.])
    """

    def __init__(self, *, linear: float = 0.0, quadratic: float = -4.0, quartic: float = 1.0, temperature: float | None = 1.0) -> None:
        super().__init__()
        self._well = _Well("DoubleWell", linear, quadratic, quartic, temperature)
        self.linear, self.quadratic, self.quartic, self.temperature = linear, quadratic, quartic, temperature
        self.manifold = Euclidean(2)
        self.condition = (1,) if temperature is None else None
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""E of x (\*batch, 2), shape (\*batch,)."""
        return self._well.inverse(c) * self._potential(x)

    def grad_c(self, x: Tensor, c: Condition) -> Condition:
        r"""−u(x)/T² where the condition is the temperature, else 0, shape (\*batch, 1)."""
        return self._well.slope(self._potential(x), x.ndim - 1, c)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), 2)."""
        shape = sample_shape(n, c)
        d = self._well.sample(shape, 1, c, self.anchor, generator)
        v = normals((*shape, 1), self.anchor, generator) * torch.as_tensor(self._well.inverse(c)).rsqrt().unsqueeze(-1).to(self.anchor)
        return torch.cat([d, v], -1)

    def log_z(self, c: Condition = None) -> Tensor:
        r"""Log Z, shape (\*batch(c),)."""
        spring = 0.5 * (math.log(2 * math.pi) - torch.as_tensor(self._well.inverse(c)).log().to(self.anchor))
        return self._well.log_z(c, self.anchor) + spring

    def _potential(self, x: Tensor) -> Tensor:
        return self._well.potential(x[..., 0]) + 0.5 * x[..., 1].square()


class _Well:
    """One coordinate: u(d) = a d + b d² + c d⁴ at temperature T."""

    def __init__(self, name: str, linear: float, quadratic: float, quartic: float, temperature: float | None) -> None:
        for what, value in {"linear": linear, "quadratic": quadratic, "quartic": quartic, "temperature": temperature}.items():
            if value is not None and not abs(value) <= LARGEST:
                raise ValueError(f"{name}: {what} must be a finite number, no larger than {LARGEST:g}, got {value}")
        if not quartic > 0:
            raise ValueError(f"{name}: quartic must be positive, or there is no density, got {quartic}")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"{name}: temperature must be positive, or None where the condition holds it, got {temperature}")
        for what, value in {"quartic": quartic, "temperature": temperature}.items():
            if value is not None and value < 1 / LARGEST:
                raise ValueError(f"{name}: {what} is too small for single precision, at least {1 / LARGEST:g} is needed, got {value}; rescale x")
        self.coefficients, self.temperature = (linear, quadratic, quartic), temperature
        self.minima, self.barrier = _critical(linear, quadratic, quartic)
        if temperature is not None:
            left, low, high, right = (edge.item() for edge in self._edges(torch.tensor([1 / temperature], dtype=torch.float64)))
            # A well that is not the deepest may be empty.
            if max(low - left, right - high) < 100 * torch.finfo(torch.float32).eps * max(map(abs, self.minima)):
                raise ValueError(
                    f"{name}: the wells at {', '.join(f'{d:g}' for d in self.minima)} are narrower than single precision resolves; "
                    "rescale x, or raise the temperature"
                )

    def potential(self, d: Tensor) -> Tensor:
        a, b, c = self.coefficients
        square = d.square()
        return a * d + (b + c * square) * square

    def inverse(self, c: Condition) -> Tensor | float:
        return 1 / self.temperature if self.temperature is not None else inverse_temperature(c, "temperature")

    def slope(self, potential: Tensor, axes: int, c: Condition) -> Condition:
        if self.temperature is None:
            return (-potential * inverse_temperature(c, "temperature").square()).unsqueeze(-1)
        batch = torch.broadcast_shapes(potential.shape, batch_shape(c))
        return transform(c, lambda leaf: leaf.new_zeros(*batch, *leaf.shape[-1:]))

    def log_z(self, c: Condition, like: Tensor) -> Tensor:
        beta = torch.as_tensor(self.inverse(c), dtype=torch.float64).to(like.device)
        values = [self._table(part)[2] for part in beta.reshape(-1).split(BLOCK)]
        value = torch.cat(values).view(beta.shape).to(like.dtype)
        return value if self.temperature is None else value.expand(batch_shape(c))

    def sample(self, shape: tuple[int, ...], coordinates: int, c: Condition, like: Tensor, generator: torch.Generator | None) -> Tensor:
        u = torch.rand((*shape, coordinates), dtype=torch.float64, device=like.device, generator=generator)
        beta = torch.as_tensor(self.inverse(c), dtype=torch.float64).to(like.device)
        # Every temperature that occurs is tabulated once.
        distinct, which = torch.unique(beta, return_inverse=True)
        which = which.expand(shape).unsqueeze(-1).expand(u.shape)
        d = torch.empty_like(u)
        for start in range(0, len(distinct), BLOCK):
            nodes, cdf, _ = self._table(distinct[start : start + BLOCK])
            here = (which >= start) & (which < start + BLOCK)
            d[here] = _invert(nodes, cdf, which[here] - start, u[here])
        return d.to(like.dtype)

    def _table(self, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes and distribution function at each of (m,) inverse temperatures, shapes (m, nodes), and log Z (m,), by the trapezoidal rule."""
        first_left, first_right, second_left, second_right = (edge.unsqueeze(1) for edge in self._edges(beta))
        share = torch.linspace(0, 1, HALF, dtype=torch.float64, device=beta.device)
        # Both pieces end where there is no density, or where its derivative is 0: there the trapezoidal rule has no error of second order.
        nodes = torch.cat([torch.lerp(first_left, first_right, share), torch.lerp(second_left, second_right, share)], 1)
        log_p = -beta.unsqueeze(1) * self.potential(nodes)
        top = log_p.amax(1, keepdim=True)
        cells = torch.cumulative_trapezoid((log_p - top).exp(), nodes, dim=1)
        total = cells[:, -1:]
        cdf = torch.nn.functional.pad(cells / total, (1, 0))
        return nodes, cdf, (total.log() + top).squeeze(1)

    @torch.no_grad()
    def _edges(self, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two pieces of the line, [0, 1] and [2, 3], outside which the density is below e^−DEPTH of its largest value; each of shape (m,)."""
        a, b, c = self.coefficients
        first, last = self.minima[0], self.minima[-1]
        middle = first if self.barrier is None else self.barrier
        deepest = self.potential(torch.tensor(self.minima, dtype=torch.float64, device=beta.device)).min()
        # |a d| ≤ |a| (1 + d²)/2, so that beyond this d the potential is DEPTH/β above u(0) ≥ its minimum.
        steep, height = abs(b) + abs(a) / 2, DEPTH / beta + abs(a) / 2
        reach = ((steep + (steep**2 + 4 * c * height).sqrt()) / (2 * c)).sqrt()
        inside = torch.tensor([[first], [first], [last], [last]], dtype=torch.float64, device=beta.device).expand(4, len(beta))
        between = torch.full_like(reach, middle)
        outside = torch.stack([-reach, between, between, reach])
        # The potential is monotone between each pair. Where all of it is within DEPTH, as at a low barrier, the end is the outer point.
        for _ in range(BISECTIONS):
            centre = torch.lerp(inside, outside, 0.5)
            within = beta * (self.potential(centre) - deepest) <= DEPTH
            inside, outside = torch.where(within, centre, inside), torch.where(within, outside, centre)
        left, low, high, right = outside.unbind(0)
        return left, low, high, right


def _critical(a: float, b: float, c: float) -> tuple[tuple[float, ...], float | None]:
    """Minima of a d + b d² + c d⁴, in order, and the maximum between them where there are two."""
    # The roots of d³ + p d + q, by Viète and Cardano.
    p, q = b / (2 * c), a / (4 * c)
    radius = 2 * math.sqrt(abs(p) / 3)
    turn = abs(q) / radius * 4 / (radius**2) if radius > 0 else math.inf
    if p < 0 and turn < 1:
        angle = math.acos(turn) / 3
        outer, other, top = (math.copysign(radius, -q) * math.cos(angle - 2 * math.pi * k / 3) for k in (0, 1, 2))
        roots = sorted((outer, other, top))
        return (roots[0], roots[2]), roots[1]
    if math.isinf(turn):
        root = abs(q) ** (1 / 3)
    else:
        root = radius * (math.cosh(math.acosh(turn) / 3) if p < 0 else math.sinh(math.asinh(turn) / 3))
    return (math.copysign(root, -q),), None


def _is_invertible(matrix: Tensor) -> bool:
    """Whether a matrix and its inverse are finite and good to single precision."""
    if not bool(matrix.float().isfinite().all() and torch.linalg.cond(matrix) < 1e6):
        return False
    return bool(torch.linalg.inv(matrix).float().isfinite().all())


def _invert(nodes: Tensor, cdf: Tensor, row: Tensor, u: Tensor) -> Tensor:
    """The points where the distribution functions of the given rows have the values u, shapes (N,)."""
    # One search in one sorted array: row k of the table is shifted by k.
    shift = torch.arange(len(cdf), dtype=cdf.dtype, device=cdf.device).unsqueeze(1)
    index = torch.searchsorted((cdf + 2 * shift).flatten(), u + 2 * row, right=True) - row * NODES
    index = index.clamp(1, NODES - 1)
    low, high = cdf[row, index - 1], cdf[row, index]
    share = (u - low) / (high - low).clamp_min(torch.finfo(cdf.dtype).tiny)
    return torch.lerp(nodes[row, index - 1], nodes[row, index], share)
