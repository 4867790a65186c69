"""Normal densities of a tangent space, laid onto the manifold by the exponential map."""

import math

import torch
from torch import Tensor


def log_isotropic(radius: Tensor, scale: Tensor | float, dim: int) -> Tensor:
    """Log-density of N(0, σ² 1) in dim dimensions at a distance from 0."""
    scale = torch.as_tensor(scale, dtype=radius.dtype, device=radius.device)
    return -0.5 * (radius / scale).square() - dim * (torch.log(scale) + 0.5 * math.log(2 * math.pi))


def log_periodic(angle: Tensor, scale: Tensor | float, *, windings: int, dim: int, power: int = 0, rate: float = 1.0) -> Tensor:
    r"""Log-density at a distance θ where geodesics close after 2π, and exp stretches by (sin ρr / ρr) to some power at radius r.

    .. math:: \log \sum_{k=-w}^{w} N(r_k; 0, \sigma^2)\, \left|\frac{\rho r_k}{\sin \rho r_k}\right|^p, \qquad r_k = |\theta + 2\pi k|

    ρ is 1 on spheres and ½ on rotations of space, so that \|sin ρ r_k\| = \|sin ρθ\| for all k. Where that vanishes, whole spheres of tangent
    vectors lead to one point and the density is truly infinite, though integrable; it is kept finite there by a floor on the sine.

    Args:
        angle: θ within [−π, π], shape (\*batch,).
        scale: σ, broadcast against the angles.
        windings: w.
        dim: Dimension of the tangent space.
        power: p.
        rate: ρ.
    """
    turns = torch.arange(-windings, windings + 1, device=angle.device).to(angle.dtype).view(-1, *(1,) * angle.ndim)
    radius = angle + 2 * math.pi * turns
    log_p = log_isotropic(radius, scale, dim)
    if power:
        floor = 1e-7 if angle.dtype == torch.float64 else 1e-4
        # The shortest way has ρr/sin ρr → 1 at r = 0, where all others meet the zero of the sine.
        shortest = -torch.log(torch.sinc(rate / math.pi * angle).abs().clamp_min(floor))
        around = torch.log(rate * torch.where(turns == 0, 1.0, radius.abs())) - torch.log(torch.sin(rate * angle).abs().clamp_min(floor))
        log_p = log_p + power * torch.where(turns == 0, shortest, around)
    return torch.logsumexp(log_p, 0)


def log_hyperbolic(radius: Tensor, scale: Tensor | float, dim: int) -> Tensor:
    """Log-density at a distance r where exp stretches by (sinh r / r)ⁿ⁻¹."""
    small = radius < 1e-3
    r = torch.where(small, 1.0, radius)
    stretch = torch.where(small, radius.square() / 6, r + torch.log(-torch.expm1(-2 * r)) - torch.log(2 * r))
    return log_isotropic(radius, scale, dim) - (dim - 1) * stretch
