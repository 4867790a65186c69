"""The exact preimage of a point under a decoder, by a damped Newton or Gauss–Newton iteration."""

import torch
from torch import Tensor

from fluvial.codecs import Codec
from fluvial.conditions import Condition, transform
from fluvial.manifolds import Manifold
from fluvial.volume import decoder_jacobian


@torch.no_grad()
def preimage(
    codec: Codec,
    space: Manifold,
    latent: Manifold,
    x: Tensor,
    start: Tensor,
    c: Condition = None,
    *,
    iterations: int = 30,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Solve decode(z) = x from a start near the solution.

    .. math:: z \leftarrow \pi_Z\bigl(z + \eta R_z\, J^{+} (x - \hat x)\bigr), \qquad J = J_g R_z

    with J⁺ the least-squares inverse and η halved for the rows whose residual would grow.

    Args:
        codec: Its decode, projected onto ``space``, is inverted.
        space: Where x lives.
        latent: Where z lives.
        x: Targets, shape (B, \*event).
        start: First guesses, shape (B, \*latent event).
        c: Condition, leaves (B, …).
        iterations: Newton steps at most.
        tolerance: Largest |x − decode(z)| that counts as solved; default 100 machine epsilons times the size of x (at least 1).

    Returns:
        z of shape (B, \*latent event) and, for every row, whether it was solved, shape (B,).
    """
    flat = x.flatten(1)
    if tolerance is None:
        tolerance = 100 * torch.finfo(x.dtype).eps
    allowed = tolerance * flat.norm(dim=-1).clamp_min(1.0)
    z = start.clone()
    decoded, jacobian = decoder_jacobian(codec, space, latent, z, c)
    error = (flat - decoded.flatten(1)).norm(dim=-1)
    step = torch.ones_like(error)
    for _ in range(iterations):
        left = (error > allowed).nonzero().squeeze(-1)
        if len(left) == 0:
            break
        c_left = transform(c, lambda leaf: leaf[left])  # noqa: B023
        residual = (flat[left] - decoded[left].flatten(1)).unsqueeze(-1)
        direction = _least_squares(jacobian[left], residual, latent.tangent_basis(z[left])).view_as(z[left])
        proposal = latent.project(z[left] + step[left].view(-1, *(1,) * (z.ndim - 1)) * direction)
        new_decoded, new_jacobian = decoder_jacobian(codec, space, latent, proposal, c_left)
        new_error = (flat[left] - new_decoded.flatten(1)).norm(dim=-1)
        better = new_error < error[left]
        moved = left[better]
        z[moved], decoded[moved], jacobian[moved], error[moved] = proposal[better], new_decoded[better], new_jacobian[better], new_error[better]
        step[left] = torch.where(better, (2 * step[left]).clamp_max(1.0), step[left] / 2)
    return z, error <= allowed


def implicit(codec: Codec, space: Manifold, latent: Manifold, x: Tensor, z: Tensor, c: Condition = None) -> Tensor:
    """A solution z of decode(z) = x that carries no graph -> the same with its derivatives in x, c and the decoder's parameters.

    Two Newton steps with graph: each squares the error of what it starts from, so that all derivatives up to the third are those of the
    implicit function.
    """
    for _ in range(2):
        decoded, jacobian = decoder_jacobian(codec, space, latent, z, c)
        residual = (x - decoded).flatten(1).unsqueeze(-1)
        z = latent.project(z + _least_squares(jacobian, residual, latent.tangent_basis(z)).view_as(z))
    return z


def _least_squares(jacobian: Tensor, residual: Tensor, basis: Tensor) -> Tensor:
    """R J⁺ r by QR, flattened to ambient vectors (B, ambient).

    The diagonal is kept off zero, so that a singular row stays finite and is reported as unsolved.
    """
    q, r = torch.linalg.qr(jacobian)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    tiny = torch.finfo(r.dtype).tiny
    floor = torch.finfo(r.dtype).eps * diagonal.abs().amax(-1, keepdim=True).clamp_min(tiny)
    r = r + torch.diag_embed(torch.where(diagonal.abs() < floor, floor, 0.0))
    direction = torch.linalg.solve_triangular(r, q.transpose(-1, -2) @ residual, upper=True)
    return (basis.flatten(1, -2) @ direction).squeeze(-1)
