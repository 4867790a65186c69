"""Change of volume: exact, from Jacobians in tangent bases, and the free-form surrogate whose gradient is that of the log-determinant."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fluvial.codecs import Bijection, Chain, Codec
from fluvial.conditions import Condition, transform
from fluvial.linearize import linearize
from fluvial.manifolds import Manifold, random_tangent

Probe = Literal["auto", "data", "latent", "latent_vjp"]
ProbeScale = Literal["intrinsic", "embedding"]


class Parts(NamedTuple):
    """A codec cut into its free-form core and the bijections around it.

    Attributes:
        before: Bijections between data and core, or None.
        core: Everything from the first to the last part that is not a bijection; None if there is none.
        after: Bijections between core and latent, or None.
        manifold: Where the core's data side lives.
        latent_manifold: Where the core's latent side lives.
    """

    before: Bijection | None
    core: Codec | None
    after: Bijection | None
    manifold: Manifold
    latent_manifold: Manifold

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """The core's encoder, projected onto its latent side."""
        return self.latent_manifold.project(_core(self).encode(x, c))

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The core's decoder, projected onto its data side."""
        return self.manifold.project(_core(self).decode(z, c))


def _core(parts: Parts) -> Codec:
    if parts.core is None:
        raise TypeError("this flow is a bijection, whose log-determinant is known; train it with MaximumLikelihood")
    return parts.core


def split(codec: Codec, manifold: Manifold, latent_manifold: Manifold) -> Parts:
    """Cut a codec between the given manifolds into `Parts`."""
    if isinstance(codec, Bijection):
        return Parts(codec, None, None, manifold, latent_manifold)
    pieces: list[Codec] = list(codec.parts) if isinstance(codec, Chain) else [codec]
    free = [k for k, piece in enumerate(pieces) if not isinstance(piece, Bijection)]
    first, last = free[0], free[-1] + 1
    before = Chain(pieces[:first]) if first else None
    after = Chain(pieces[last:]) if last < len(pieces) else None
    return Parts(
        before,
        pieces[first] if last - first == 1 else Chain(pieces[first:last]),
        after,
        before.codomain if isinstance(before, Bijection) else manifold,
        after.domain if isinstance(after, Bijection) else latent_manifold,
    )


# ---------------------------------------------------------------------------------------------------------------- surrogate


class Surrogate(NamedTuple):
    r"""What one pass of the free-form estimator yields, rows first.

    Attributes:
        z: Latents, projected, shape (B, \*latent event), with graph.
        x: Reconstructions, projected, shape (B, \*event), with graph.
        value: s with ∇_θ E[s] = ∇_θ log|det J_f|; its value is not a log-determinant. Shape (B,).
        z_raw: The encoder's output before projection.
        x_raw: The decoder's output before projection.
    """

    z: Tensor
    x: Tensor
    value: Tensor
    z_raw: Tensor
    x_raw: Tensor


def surrogate(
    parts: Parts,
    x: Tensor,
    c: Condition = None,
    *,
    probe: Probe = "auto",
    probes: int = 1,
    scale: ProbeScale = "intrinsic",
    fraction: float = 1.0,
    generator: torch.Generator | None = None,
) -> Surrogate:
    r"""The estimator behind all free-form flows: full-dimensional, with a bottleneck, and on manifolds.

    .. math:: s(x) = \tfrac1K \sum_k v_k^\top J_f(x)\, \mathrm{SG}\bigl(J_g(z)\, v_k\bigr), \qquad
              \mathrm{E}[v v^\top] = P_T \;\Rightarrow\; \nabla_\theta \mathrm{E}[s] = \mathrm{tr}\bigl((\partial_\theta J_f)\, J_g\bigr)
              \approx \nabla_\theta \log|\det J_f|

    SG stops the gradient, P_T projects onto the tangent space. Three plans cost about the same and agree in expectation:

    - ``data``: w in data space; forward derivative of the encoder, transposed derivative of the decoder.
    - ``latent``: v in latent space; forward derivative of the decoder without graph, then of the encoder. Much less variance with a bottleneck.
    - ``latent_vjp``: v in latent space; forward derivative of the decoder, transposed derivative of the encoder with graph (the published plan).

    Args:
        parts: The flow's parts; x is in the coordinates of its core.
        x: Data in the core's coordinates, shape (B, \*event).
        c: Condition after the flow's context, leaves (B, …).
        probe: Which plan; "auto" takes ``data`` where the latent has at least half the dimensions of the data, else ``latent``.
        probes: Number K of mutually orthogonal probes.
        scale: "intrinsic" for |v|² = intrinsic dimension n, which is unbiased; "embedding" for the |v|² = embedding dimension of the
            code published with M-FFF, which multiplies the volume gradient by (embedding dimension)/n.
        fraction: Share of the batch on which s is computed, the rest counting through it (unbiased for shuffled batches).
        generator: Source of randomness.

    Returns:
        A `Surrogate`.

    References:
        Draxler et al. (2023), arXiv:2310.16624; Sorrenson et al. (2023), arXiv:2306.01843 and arXiv:2312.09852.
    """
    plan = probe if probe != "auto" else ("data" if parts.manifold.dim <= 2 * parts.latent_manifold.dim else "latent")

    def draw(manifold: Manifold, at: Tensor) -> Tensor:
        v = random_tangent(manifold, at, probes, generator=generator)
        return v if scale == "intrinsic" else v * math.sqrt(math.prod(manifold.event_shape) / manifold.dim)

    rows = len(x) if fraction >= 1 else max(1, math.ceil(fraction * len(x)))
    with torch.enable_grad():
        head = _PLANS[plan](parts, x[:rows], transform(c, lambda leaf: leaf[:rows]), draw)
    if rows == len(x):
        return head
    tail = _without_value(parts, x[rows:], transform(c, lambda leaf: leaf[rows:]))
    whole = Surrogate(*(torch.cat(pair) for pair in zip(head, tail)))
    return whole._replace(value=whole.value * (len(x) / rows))


Draw = Callable[[Manifold, Tensor], Tensor]  # K probes (K, *at.shape) in the tangent spaces of a manifold


def _data_plan(parts: Parts, x: Tensor, c: Condition, draw: Draw) -> Surrogate:
    w = draw(parts.manifold, x)
    z, z_raw, push = linearize(_core(parts), "encode", x, c, manifold=parts.latent_manifold)
    x_rec, x_raw, u = _decode_and_pull(parts, z, c, w)
    return Surrogate(z, x_rec, _inner(u, push(w)), z_raw, x_raw)


def _latent_plan(parts: Parts, x: Tensor, c: Condition, draw: Draw) -> Surrogate:
    z, z_raw, push = linearize(_core(parts), "encode", x, c, manifold=parts.latent_manifold)
    v = draw(parts.latent_manifold, z.detach())
    x_rec, x_raw, t = _decode_and_push(parts, z, c, v)
    # J_g v is tangent at x̂; the encoder is differentiated at x.
    return Surrogate(z, x_rec, _inner(v, push(parts.manifold.to_tangent(x, t))), z_raw, x_raw)


def _latent_vjp_plan(parts: Parts, x: Tensor, c: Condition, draw: Draw) -> Surrogate:
    def encode(y: Tensor) -> tuple[Tensor, Tensor]:
        raw = _core(parts).encode(y, c)
        return parts.latent_manifold.project(raw), raw

    if torch.compiler.is_compiling():
        z, pull, z_raw = torch.func.vjp(encode, x, has_aux=True)
    else:
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        z, z_raw = encode(x)

        def pull(one: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(z, x, one, create_graph=True)

    v = draw(parts.latent_manifold, z.detach())
    x_rec, x_raw, t = _decode_and_push(parts, z, c, v)
    rows = torch.stack([pull(one)[0] for one in v.unbind(0)])
    return Surrogate(z, x_rec, _inner(rows, parts.manifold.to_tangent(x.detach(), t)), z_raw, x_raw)


def _without_value(parts: Parts, x: Tensor, c: Condition) -> Surrogate:
    z_raw = _core(parts).encode(x, c)
    z = parts.latent_manifold.project(z_raw)
    x_raw = _core(parts).decode(z, c)
    return Surrogate(z, parts.manifold.project(x_raw), x.new_zeros(len(x)), z_raw, x_raw)


_PLANS: dict[str, Callable[[Parts, Tensor, Condition, Draw], Surrogate]] = {
    "data": _data_plan,
    "latent": _latent_plan,
    "latent_vjp": _latent_vjp_plan,
}


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of (K, B, *event) tensors, averaged over the K probes: shape (B,)."""
    return (a * b).flatten(2).sum(-1).mean(0)


def _decode_and_pull(parts: Parts, z: Tensor, c: Condition, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ and g(z) with graph, and SG(J_gᵀ w) for the K cotangents w."""
    core, space = _core(parts), parts.manifold
    if torch.compiler.is_compiling():
        # autograd.grad cannot be traced; the compiler shares what the second forward pass repeats.
        x_raw = core.decode(z, c)
        _, pull = torch.func.vjp(lambda y: space.project(core.decode(y, c)), z.detach())
        return space.project(x_raw), x_raw, torch.stack([pull(one)[0] for one in w.unbind(0)]).detach()
    if not z.requires_grad:
        z = z.detach().requires_grad_()
    x_raw = core.decode(z, c)
    x_rec = space.project(x_raw)
    return x_rec, x_raw, torch.stack([torch.autograd.grad(x_rec, z, one, retain_graph=True)[0] for one in w.unbind(0)])


def _decode_and_push(parts: Parts, z: Tensor, c: Condition, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ and g(z) with graph, and SG(J_g v) for the K tangents v."""
    x_rec, x_raw, push = linearize(_core(parts), "decode", z, c, manifold=parts.manifold)
    if torch.compiler.is_compiling():
        return x_rec, x_raw, push(v).detach()
    with torch.no_grad():
        return x_rec, x_raw, push(v)


# -------------------------------------------------------------------------------------------------------------------- exact


def decoder_jacobian(codec: Codec, space: Manifold, latent: Manifold, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
    r"""The decoder's Jacobian on the latent tangent bases.

    Args:
        codec: Its ``decode`` is differentiated, projected onto ``space``.
        space: Where its output lives.
        latent: Where z lives.
        z: Latents, shape (B, \*latent event).
        c: Condition, leaves (B, …).

    Returns:
        x̂ of shape (B, \*event) and J_g R_z of shape (B, ambient dimension of x, n), its columns the images of an orthonormal tangent basis at z.
    """
    x, _, push = linearize(codec, "decode", z, c, manifold=space)
    columns = push(latent.tangent_basis(z).movedim(-1, 0))
    return x, columns.flatten(2).permute(1, 2, 0)


def encoder_jacobian(codec: Codec, space: Manifold, latent: Manifold, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
    r"""The encoder's Jacobian between tangent bases.

    Returns:
        z of shape (B, \*latent event) and R_zᵀ J_f R_x of shape (B, latent n, data n).
    """
    if latent.dim < space.dim:
        z, pull = torch.func.vjp(lambda y: latent.project(codec.encode(y, c)), x)
        # Few outputs, many inputs: one transposed product for each latent direction.
        rows = torch.func.vmap(lambda one: pull(one)[0])(latent.tangent_basis(z).movedim(-1, 0))
        jacobian = rows.flatten(2).permute(1, 0, 2)
        return z, jacobian @ space.tangent_basis(x).flatten(1, -2)
    z, _, push = linearize(codec, "encode", x, c, manifold=latent)
    columns = push(space.tangent_basis(x).movedim(-1, 0)).flatten(2).permute(1, 2, 0)
    return z, latent.tangent_basis(z).flatten(1, -2).transpose(1, 2) @ columns


def log_abs_det(jacobian: Tensor) -> Tensor:
    """½ log det JᵀJ of tall (or JJᵀ of wide) matrices (B, a, b), shape (B,): log|det J| where they are square.

    The Gram matrix itself, whose condition number is that of J squared, is never formed.
    """
    rows, columns = jacobian.shape[-2:]
    if rows == columns:
        return torch.linalg.slogdet(jacobian)[1]
    tall = jacobian if rows > columns else jacobian.transpose(-1, -2)
    # Reduced, not mode="r", which has no derivative.
    return torch.linalg.qr(tall)[1].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def rows_per_chunk(codec: Codec, space: Manifold, latent: Manifold, z: Tensor, c: Condition, *, memory: int = 64 * 2**20) -> int:
    """How many rows' Jacobians fit into `memory` bytes, judged by the activations of one decoder pass over one row."""
    floats = _activations(codec, z[:1], transform(c, lambda leaf: leaf[:1]))
    per_row = (1 + latent.dim) * max(floats, math.prod(space.event_shape)) * z.element_size()
    return max(1, memory // per_row)


@torch.no_grad()
def _activations(codec: Codec, z: Tensor, c: Condition) -> int:
    """How many numbers the leaf modules put out in one pass of the decoder."""
    sizes = []
    leaves = [m for m in codec.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda _m, _in, out: sizes.append(out.numel() if isinstance(out, Tensor) else 0)) for m in leaves]
    # In eval mode: this pass must not draw random numbers, nor count in a running mean.
    modes = [(m, m.training) for m in codec.modules()]
    codec.eval()
    try:
        codec.decode(z, c)
    finally:
        for m, training in modes:
            m.training = training
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def singular_values(codec: Codec, space: Manifold, latent: Manifold, z: Tensor, c: Condition = None) -> Tensor:
    """Singular values of J_g R_z, the decoder's Jacobian on the latent tangent bases, largest first: shape (B, n)."""
    return torch.linalg.svdvals(decoder_jacobian(codec, space, latent, z, c)[1])
