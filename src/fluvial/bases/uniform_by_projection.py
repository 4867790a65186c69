"""The uniform distribution on a manifold that is known by its projection."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fluvial.bases.base import Base, count, sample_shape
from fluvial.bases.limits import Limit, box_arguments
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold
from fluvial.manifolds.manifold import normals, tangent_dual

_ROWS = 8192  # points that are handled at once
_MOST_POINTS = 10**8
_SAFETY = 1.2  # by which the largest weight that was seen is raised for rejection
_TRIALS, _NEWTON, _MISSING = 2000, 12, 0.002  # points and steps of the search along fibres, and the share of it that may fail
_DEVIATIONS = 6.0  # standard errors by which the two laws of the offset may be missed


class UniformByProjection(Base):
    r"""Constant density on a manifold that is known by its projection π; its volume is measured once, with an error bar.

    .. math:: \mathrm{vol}(M) = \frac{\mathrm{vol}(B)}{\mathrm{vol}(\text{ball of radius } \rho \text{ in } \mathbb{R}^{D-n})}\;
              \mathbb{E}_{u \sim U(B)}\, 1\{|\nu(u)| < \rho\}\; |\det Q^\top D\pi(u)\, Q|,
              \qquad \nu(u) = N^\top (u - \pi(u))

    B is a box of the surrounding space ℝᴰ around the manifold, Q and N are orthonormal bases of the tangent and the normal space at π(u). By the
    coarea formula this holds for every smooth projection, nearest point or not, of whose fibres one thing is asked: that ν maps the part of
    each fibre π⁻¹(x) within the box, and within \|ν\| < ρ, one to one onto the ball of radius ρ. For the nearest point that holds for any ρ
    below the distance to where it is not unique; in general for ρ small enough. It is tried out: by solving for points of fibres over random
    offsets, and by two means under the weights, ½ for (\|ν\|/ρ)^(D−n) and 0 for ⟨ν, π(u)⟩. The box is checked to hold the manifold and its tube.

    The same weights, which are near 1 for small ρ, make uniform draws by rejection, under 1.2 times the largest weight among the points. A
    draw costs one projection and its n derivatives, divided by the share of the box that the tube fills. The volume is Riemannian.

    Args:
        manifold: What `from_projection` makes, or any manifold; it must be bounded.
        low: Lower corner of the box, one number or one for each coordinate.
        high: Upper corner.
        reach: ρ, in units of the surrounding space. A large one uses more of the points.
        points: How many points measure the volume.
        seed: Of these points.

    Raises:
        ValueError: If the box is none, the manifold fills the space, no point of the box is within reach, the manifold with its tube does not
            fit into the box, or fibres or offsets show that the reach is too large.

    References:
        Federer (1959), "Curvature measures" (reach and coarea formula).

    Example:
        >>> from fluvial.manifolds import from_projection
        >>> sphere = from_projection(lambda x: x / x.norm(dim=-1, keepdim=True), 2)
        >>> base = UniformByProjection(sphere, low=-1.5, high=1.5, reach=0.4, points=20_000)
        >>> abs(float(base.log_volume) - math.log(4 * math.pi)) < 5 * float(base.log_volume_error)
        True
    """

    has_rsample = True
    log_volume: Tensor
    log_volume_error: Tensor
    log_bound: Tensor

    def __init__(
        self,
        manifold: Manifold,
        *,
        low: float | Sequence[float],
        high: float | Sequence[float],
        reach: float,
        points: int = 200_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.manifold = manifold
        self.low, self.high, _ = box_arguments("UniformByProjection", low, high, manifold.event_shape, finite=True)
        self.reach, self.points, self.seed = float(reach), points, seed
        size = math.prod(manifold.event_shape)
        if manifold.dim >= size:
            raise ValueError(f"UniformByProjection: {manifold} fills its space of dimension {size}; use bases.Uniform on a box instead")
        if not 0 < self.reach < math.inf or not 2 <= points <= _MOST_POINTS:
            raise ValueError(f"UniformByProjection: reach must be positive and points within 2 … {_MOST_POINTS:.0e}, got {reach} and {points}")
        self.codim = size - manifold.dim
        x, log_weight, offset = self._tube(points, torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(seed))
        if len(x) < 2:
            raise ValueError(
                f"UniformByProjection: of {points} points in the box {len(x)} are within reach {reach:g} of {manifold}; enlarge reach or points"
            )
        self._check_box(x, torch.Generator().manual_seed(seed))
        # Where the manifold ends, what lies beyond is projected onto its edge, with weight 0.
        self._check_fibres(x[log_weight > log_weight.max() - 15][:_TRIALS], torch.Generator().manual_seed(seed))
        weight = log_weight.exp()
        _check_offsets(x, weight, offset, self.reach, self.codim)
        mean = weight.sum() / points
        spread = (weight.square().sum() / points - mean.square()).clamp_min(0).sqrt()
        box = sum(math.log(b - a) for a, b in self._sides())
        ball = self.codim * math.log(math.pi * self.reach**2) / 2 - math.lgamma(self.codim / 2 + 1)
        dtype = torch.get_default_dtype()
        self.register_buffer("log_volume", (box - ball + mean.log()).to(dtype))
        self.register_buffer("log_volume_error", (spread / mean / math.sqrt(points)).to(dtype))
        self.register_buffer("log_bound", (log_weight.max() + math.log(_SAFETY)).to(dtype))

    def log_prob(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""−log vol for every z (\*batch, \*event), shape (\*batch,)."""
        return -self.log_volume.to(z.dtype).expand(z.shape[: z.ndim - len(self.manifold.event_shape)])

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws of shape (\*n, \*batch(c), \*event)."""
        shape = sample_shape(n, c)
        total, found, tried = count(shape), [], 0
        have = 0
        while have < total:
            # As many as the share that was kept so far asks for.
            rate = max(have, 1) / max(tried, 16)
            rows = min(_ROWS, math.ceil(1.1 * (total - have) / rate) + 16)
            x, log_weight, _ = self._tube(rows, self.log_volume, generator)
            u = 1 - torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
            x = x[log_weight - self.log_bound >= torch.log(u)]
            found.append(x)
            have, tried = have + len(x), tried + rows
        empty = self.log_volume.new_zeros(0, *self.manifold.event_shape)
        return torch.cat([empty, *found])[:total].view(*shape, *self.manifold.event_shape)

    def extra_repr(self) -> str:
        """The manifold and what was measured, for repr."""
        return f"{self.manifold}, log_volume={float(self.log_volume):.4f} ± {float(self.log_volume_error):.1g}"

    def _sides(self) -> list[tuple[float, float]]:
        size = math.prod(self.manifold.event_shape)
        return [(float(a or 0), float(b or 0)) for a, b in zip(_repeated(self.low, size), _repeated(self.high, size))]

    def _tube(self, rows: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of uniform points u in the box those within reach: π(u), their log-weights, and their offsets ν in the ambient space, flat."""
        event, kept = self.manifold.event_shape, []
        low, high = (torch.tensor(side, dtype=like.dtype, device=like.device) for side in zip(*self._sides()))
        for start in range(0, rows, _ROWS):
            share = min(_ROWS, rows - start)
            u = torch.rand(share, len(low), generator=generator, dtype=like.dtype, device=like.device)
            u = (low + (high - low) * u).view(share, *event)
            kept.append(self._weigh(u))
        x, log_weight, offset = (torch.cat(parts) for parts in zip(*kept))
        return x, log_weight, offset

    @torch.no_grad()
    def _weigh(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.manifold.project(u)
        basis = self.manifold.tangent_basis(x)
        flat = basis.flatten(1, -2)
        step = (u - x).flatten(1)
        offset = step - (flat @ (flat.transpose(1, 2) @ step.unsqueeze(-1))).squeeze(-1)
        near = offset.square().sum(-1) < self.reach**2
        u, x, basis, flat, offset = u[near], x[near], basis[near], flat[near], offset[near]
        moved = tangent_dual(self.manifold, u, basis.movedim(-1, 0))[1].flatten(2)
        log_det = torch.linalg.slogdet(torch.einsum("bdi,jbd->bij", flat, moved))[1]
        return x, log_det + self.manifold.log_volume(x), offset

    def _check_box(self, x: Tensor, generator: torch.Generator) -> None:
        """Points of the manifold moved by ρ, along it and then away from it, must still be in the box."""
        tangent = self.manifold.to_tangent(x, normals(x.shape, x, generator)).flatten(1)
        y = self.manifold.project(x + self.reach * torch.nn.functional.normalize(tangent, dim=-1).view_as(x))
        ambient = normals(y.shape, y, generator)
        normal = (ambient - self.manifold.to_tangent(y, ambient)).flatten(1)
        y = y.flatten(1) + self.reach * torch.nn.functional.normalize(normal, dim=-1)
        for k, ((a, b), least, most) in enumerate(zip(self._sides(), y.amin(0).tolist(), y.amax(0).tolist())):
            if least < a or most > b:
                raise ValueError(
                    f"UniformByProjection: the manifold, with its tube of radius {self.reach:g}, reaches from about {least:.3g} to {most:.3g} in "
                    f"coordinate {k}, out of the box ({a:g}, {b:g}); widen the box by some margin, or lower the reach"
                )

    @torch.no_grad()
    def _check_fibres(self, x: Tensor, generator: torch.Generator) -> None:
        """Whether over random offsets ν within reach the fibres have points u, within the box; found by Newton's method from x + ν."""
        size, event = math.prod(self.manifold.event_shape), self.manifold.event_shape
        basis = self.manifold.tangent_basis(x)
        flat = basis.flatten(1, -2)
        gauss = torch.randn(len(x), size, generator=generator, dtype=x.dtype)
        normal = torch.nn.functional.normalize(gauss - (flat @ (flat.transpose(1, 2) @ gauss.unsqueeze(-1))).squeeze(-1), dim=-1)
        radius = self.reach * torch.rand(len(x), 1, generator=generator, dtype=x.dtype) ** (1 / self.codim)
        u = x.flatten(1) + radius * normal
        for _ in range(_NEWTON):
            y, moved = tangent_dual(self.manifold, u.view(-1, *event), basis.movedim(-1, 0))
            miss = (flat.transpose(1, 2) @ (y - x).flatten(1).unsqueeze(-1)).squeeze(-1)
            slope = torch.einsum("bdi,jbd->bij", flat, moved.flatten(2))
            step = (flat @ torch.linalg.lstsq(slope, miss.unsqueeze(-1)).solution).squeeze(-1)
            u = u - step
        apart = (self.manifold.project(u.view(-1, *event)) - x).flatten(1).norm(dim=-1)
        low, high = (torch.tensor(side, dtype=x.dtype) for side in zip(*self._sides()))
        missing = 1 - float(((apart < 1e-3 * self.reach) & ((u >= low) & (u <= high)).all(-1)).double().mean())
        if missing > _MISSING:
            raise ValueError(
                f"UniformByProjection: {missing:.1%} of the tube of radius {self.reach:g} about {self.manifold} is not projected back to where it "
                "belongs, or lies out of the box; lower the reach, or widen the box"
            )


def _check_offsets(x: Tensor, weight: Tensor, offset: Tensor, reach: float, codim: int) -> None:
    """Whether, under the weights, the offsets are uniform in balls of the normal spaces, as far as two means tell."""
    place = x.flatten(1)
    place = place - place.mean(0)
    for what, values in (("their lengths", (offset.norm(dim=-1) / reach) ** codim - 0.5), ("their directions", (offset * place).sum(-1))):
        mean = (weight * values).sum() / weight.sum()
        error = (weight * (values - mean)).square().sum().sqrt() / weight.sum()
        if not bool(mean.abs() <= _DEVIATIONS * error + 1e-12):
            raise ValueError(
                f"UniformByProjection: the points within reach {reach:g} do not fill balls about the manifold: {what} are off by "
                f"{float(mean.abs() / error):.0f} standard errors; lower the reach, or widen the box"
            )


def _repeated(side: tuple[Limit, ...], size: int) -> tuple[Limit, ...]:
    return side * size if len(side) == 1 else side
