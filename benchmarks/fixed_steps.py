"""Fixed steps of an ODE as maps of a manifold into itself: their samples, and their exact density where they are one to one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.manifolds import Manifold
from riemannian_flow_matching import VelocityField, push_basis


def euler(field: VelocityField, x: Tensor, t: Tensor, h: float) -> Tensor:
    """Along the geodesic."""
    return field.manifold.exp(x, h * field(x, t))


def projected_euler(field: VelocityField, x: Tensor, t: Tensor, h: float) -> Tensor:
    """Along the straight line of the embedding, and back."""
    return field.manifold.retract(x, h * field(x, t))


def midpoint(field: VelocityField, x: Tensor, t: Tensor, h: float) -> Tensor:
    """Second order: a Runge–Kutta step of the field v ∘ project, which keeps to the manifold, and a projection."""
    half = field.manifold.retract(x, h / 2 * field(x, t))
    return field.manifold.retract(x, h * field(half, t + h / 2))


def rk4(field: VelocityField, x: Tensor, t: Tensor, h: float) -> Tensor:
    """Fourth order, as `midpoint`."""
    retract = field.manifold.retract
    k1 = field(x, t)
    k2 = field(retract(x, h / 2 * k1), t + h / 2)
    k3 = field(retract(x, h / 2 * k2), t + h / 2)
    k4 = field(retract(x, h * k3), t + h)
    return retract(x, h / 6 * (k1 + 2 * (k2 + k3) + k4))


Step = Callable[[VelocityField, Tensor, Tensor, float], Tensor]
STEPS: dict[str, tuple[Step, int]] = {"euler": (euler, 1), "projected euler": (projected_euler, 1), "midpoint": (midpoint, 2), "rk4": (rk4, 4)}
"""The steps, and how many times each calls the network."""


def starts(n: int, like: Tensor) -> Tensor:
    """Times at which n equal steps begin."""
    return torch.arange(n, dtype=like.dtype, device=like.device) / n


@torch.no_grad()
def sample_steps(field: VelocityField, x0: Tensor, step: Step, n: int) -> Tensor:
    """Points at t = 1 from those at t = 0 by n equal steps."""
    for t in starts(n, x0):
        x0 = step(field, x0, t, 1 / n)
    return x0


def step_jacobian(field: VelocityField, step: Step, x: Tensor, t: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """One step y and its Jacobian R_yᵀ DΦ R_x between orthonormal tangent bases, shape (batch, n, n)."""
    manifold = field.manifold
    y, columns = push_basis(lambda p: step(field, p, t, h), manifold, x)
    return y, manifold.tangent_basis(y).flatten(1, -2).transpose(1, 2) @ columns.flatten(2).permute(1, 2, 0)


def keeps_orientation(manifold: Manifold, x: Tensor, y: Tensor, jacobian: Tensor) -> Tensor:
    """Whether a Jacobian between the tangent bases at x and y turns no basis inside out, shape (batch,).

    The bases of a manifold need not have the same orientation everywhere (there is no such choice that is simple), so that of x is carried to y in
    four parts of a geodesic, short enough for each projection to keep it.
    """
    towards = manifold.log(x, y)
    vectors = manifold.tangent_basis(x).movedim(-1, 0)
    for part in (0.25, 0.5, 0.75):
        vectors = manifold.to_tangent(manifold.exp(x, part * towards), vectors)
    carried = manifold.tangent_basis(y).flatten(1, -2).transpose(1, 2) @ vectors.flatten(2).permute(1, 2, 0)
    return torch.linalg.det(jacobian) * torch.linalg.det(carried) > 0


@torch.no_grad()
def folds(field: VelocityField, x0: Tensor, step: Step, n: int) -> Tensor:
    """Whether some step on the way from x0 is singular or turns a tangent basis inside out, shape (batch,)."""
    found = torch.zeros(len(x0), dtype=torch.bool)
    for t in starts(n, x0):
        y, jacobian = step_jacobian(field, step, x0, t, 1 / n)
        found |= ~keeps_orientation(field.manifold, x0, y, jacobian)
        x0 = y
    return found


def invert_step(field: VelocityField, step: Step, y: Tensor, t: Tensor, h: float, *, iterations: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method for Φ(x) = y.

    Returns:
        x, whether |Φ(x) − y| came to rounding error, shape (batch,), and the Jacobian of the step at x.
    """
    manifold = field.manifold
    tolerance = torch.finfo(y.dtype).eps ** 0.5
    x = manifold.retract(y, -h * field(y, t + h))
    while True:
        image, jacobian = step_jacobian(field, step, x, t, h)
        apart = (y - image).flatten(1)
        solved = torch.linalg.vector_norm(apart, dim=1) < tolerance
        if iterations == 0 or bool(solved.all()):
            return x, solved, jacobian
        iterations -= 1
        rest = (manifold.tangent_basis(image).flatten(1, -2).transpose(1, 2) @ apart.unsqueeze(2)).squeeze(2)
        change = torch.linalg.solve_ex(jacobian, rest)[0].nan_to_num(0.0, 0.0, 0.0)
        # Near a fold Newton's step is too long by far.
        change = change * (0.5 / torch.linalg.vector_norm(change, dim=1, keepdim=True).clamp_min(0.5))
        moved = manifold.retract(x, torch.einsum("b...k,bk->b...", manifold.tangent_basis(x), change))
        x = torch.where(solved.view(-1, *[1] * (x.ndim - 1)), x, moved)


class StepsDensity(NamedTuple):
    """Log-densities of a map of fixed steps, and the rows for which they are that: one preimage was found and no step folds there."""

    log_prob: Tensor
    solved: Tensor
    upright: Tensor


@torch.no_grad()
def log_prob_steps(field: VelocityField, x: Tensor, step: Step, n: int) -> StepsDensity:
    """Log-density −log vol − Σ log|det Φ_k′| of the composed steps at points x: exact where the map is one to one.

    Every step is inverted by Newton's method, so use float64; rows where that fails get −∞.
    """
    manifold = field.manifold
    x = manifold.project(x)  # rounded to float32, points are farther off than Newton's method comes close
    log_p = x.new_full((len(x),), -math.log(manifold.total_volume))
    solved, upright = torch.ones(len(x), dtype=torch.bool), torch.ones(len(x), dtype=torch.bool)
    for t in starts(n, x).flip(0):
        y = x
        x, found, jacobian = invert_step(field, step, y, t, 1 / n)
        solved &= found
        upright &= keeps_orientation(manifold, x, y, jacobian)
        log_p = log_p - torch.linalg.slogdet(jacobian)[1]
    return StepsDensity(torch.where(solved, log_p, -torch.inf), solved, upright)
