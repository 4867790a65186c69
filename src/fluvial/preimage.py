"""The exact preimage of a point under a decoder, by a damped Newton or Gauss–Newton iteration."""

import torch
from torch import Tensor

from fluvial.codecs import Codec
from fluvial.conditions import Condition
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
    step = torch.ones(len(x), dtype=x.dtype, device=x.device)
    decoded, jacobian = decoder_jacobian(codec, space, latent, z, c)
    error = (flat - decoded.flatten(1)).norm(dim=-1)
    for _ in range(iterations):
        if bool((error <= allowed).all()):
            break
        residual = (flat - decoded.flatten(1)).unsqueeze(-1)
        # A least-squares solve by QR; the diagonal is kept off zero so that a singular row stays finite and is reported as unsolved.
        q, r = torch.linalg.qr(jacobian)
        diagonal = r.diagonal(dim1=-2, dim2=-1)
        floor = torch.finfo(x.dtype).eps * diagonal.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        r = r + torch.diag_embed(torch.where(diagonal.abs() < floor, floor, 0.0))
        direction = torch.linalg.solve_triangular(r, q.transpose(-1, -2) @ residual, upper=True)
        ambient = (latent.tangent_basis(z).flatten(1, -2) @ direction).squeeze(-1).view_as(z)
        proposal = latent.project(z + step.view(-1, *(1,) * (z.ndim - 1)) * ambient)
        new_decoded, new_jacobian = decoder_jacobian(codec, space, latent, proposal, c)
        new_error = (flat - new_decoded.flatten(1)).norm(dim=-1)
        better = new_error < error
        pick = better.view(-1, *(1,) * (z.ndim - 1))
        z = torch.where(pick, proposal, z)
        decoded = torch.where(better.view(-1, *(1,) * (x.ndim - 1)), new_decoded, decoded)
        jacobian = torch.where(better.view(-1, 1, 1), new_jacobian, jacobian)
        error = torch.where(better, new_error, error)
        step = torch.where(better, (2 * step).clamp_max(1.0), step / 2)
    return z, error <= allowed
