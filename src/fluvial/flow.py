"""The flow: a codec, a base and the spaces between which they act, as one density."""

import inspect
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fluvial.bases import Base
from fluvial.codecs import Bijection, Chain, Codec, FreeForm
from fluvial.conditions import Condition, as_rows, batch_shape, condition_shape, draw_shape, expand_flat, leaves, transform
from fluvial.distribution import FlowDistribution
from fluvial.manifolds import Euclidean, Manifold
from fluvial.preimage import implicit, preimage
from fluvial.volume import Parts, decoder_jacobian, encoder_jacobian, log_abs_det, rows_per_chunk, split

Volume = Literal["decoder", "encoder"]
At = Literal["reconstruction", "preimage"]


class Flow(nn.Module):
    r"""A probability density on a manifold, with one-pass sampling.

    .. math:: \log p(x|c) = \log p_\mathrm{base}(z|c) + \mathrm{ladj}, \qquad z = \mathrm{encode}(x, c)

    .. math:: \mathrm{ladj} = -\log|\det R_x^\top J_g R_z| + \tfrac12 \bigl(\log|G_z(z)| - \log|G_x(\hat x)|\bigr)

    J_g is the decoder's Jacobian, R are orthonormal tangent bases, G the metrics. For a `Bijection` ladj is known in closed form; with a
    bottleneck R_x spans the range of J_g and the density is that of the decoder's image.

    Args:
        codec: The pair of maps; for free-form networks ``FreeForm(encoder, decoder)``.
        base: The latent distribution.
        manifold: Where the data live; default the codec's domain if it is a bijection, else flat space of the shape the decoder puts out.
        latent_manifold: Onto which the encoder's output is projected; default ``base.manifold``.
        context: Module applied once to every condition before codec and base see it (a scaling, an embedding network).
        condition: Event shape of the condition: an int, a shape, or a dict of them; default one trailing axis of any length.

    Raises:
        TypeError: If a part is not what it should be.
        ValueError: If shapes or manifolds do not fit together.

    Example:
        >>> import fluvial as fl
        >>> pair = fl.FreeForm(fl.nn.Residual(3), fl.nn.Residual(3))
        >>> flow = fl.Flow(pair, fl.bases.UniformOn(fl.Sphere(2)), manifold=fl.Sphere(2))
        >>> flow.sample(5).shape, flow.log_prob(flow.sample(5)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        codec: Codec,
        base: Base,
        *,
        manifold: Manifold | None = None,
        latent_manifold: Manifold | None = None,
        context: nn.Module | None = None,
        condition: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(codec, Codec):
            raise TypeError(f"Flow: codec must be a Codec, got {type(codec).__name__}; wrap two networks as FreeForm(encoder, decoder)")
        if not isinstance(base, Base):
            raise TypeError(f"Flow: base must be a fluvial base such as bases.Normal(n), got {type(base).__name__}")
        self.codec = codec
        self.base = base
        self.context = context
        self.condition = condition_shape(condition)
        self.latent_manifold = latent_manifold if latent_manifold is not None else base.manifold
        self.spec: Any = None
        if (self.latent_manifold.event_shape, self.latent_manifold.dim) != (base.manifold.event_shape, base.manifold.dim):
            raise ValueError(f"Flow: latent_manifold {self.latent_manifold} does not fit the base on {base.manifold}")
        self.manifold = manifold if manifold is not None else self._infer_manifold()
        self._check_fit()
        self._parts = split(codec, self.manifold, self.latent_manifold)

    @property
    def parts(self) -> Parts:
        """The codec, cut into its free-form core and the bijections around it."""
        return self._parts

    @property
    def is_bijective(self) -> bool:
        """Whether ladj is known in closed form."""
        return isinstance(self.codec, Bijection)

    @property
    def is_bottleneck(self) -> bool:
        """Whether the latent has fewer dimensions than the data, so that the density lives on a submanifold."""
        return self.latent_manifold.dim < self.manifold.dim

    @property
    def dim(self) -> int:
        """Intrinsic dimension of the latent."""
        return self.latent_manifold.dim

    # ---------------------------------------------------------------------------------------------------------- public surface

    def log_prob(self, x: Tensor, c: Condition = None, *, volume: Volume = "decoder", at: At = "reconstruction") -> Tensor:
        r"""Log-density with respect to Riemannian volume.

        For a bijection it is exact. For a free-form codec it is the decoder's density, the one that ``sample`` draws from, at
        ``reconstruct(x)``; report the reconstruction error beside it. The Jacobian is computed in chunks of bounded memory. Its graph, like
        that of all methods, is kept only where a gradient is asked for: in training mode (``flow.train()``), or where x or c requires one.

        Args:
            x: Points, shape (\*batch, \*event). They are taken to be on the manifold, which is not checked: call ``manifold.project`` first
                where they are not. (`fluvial.check` and `fluvial.metrics.nll` look, and refuse rows far beside it.)
            c: Condition, whose batch broadcasts against that of x.
            volume: "decoder", or "encoder" for p(f(x))·|det J_f| at x itself, which is not certified to integrate to 1.
            at: "reconstruction", or "preimage" to solve decode(z) = x first; rows without a solution get −inf and are counted in a warning.

        Returns:
            Shape (\*batch,). Outside the support −inf.

        Raises:
            ValueError: If x or c has the wrong shape.
        """
        if volume not in ("decoder", "encoder") or at not in ("reconstruction", "preimage"):
            raise ValueError(f"log_prob: volume is 'decoder' or 'encoder' and at 'reconstruction' or 'preimage', got {volume!r} and {at!r}")
        if volume == "encoder" and at == "preimage":
            raise ValueError("log_prob: at='preimage' belongs to volume='decoder'; the encoder's volume is taken at x itself")
        batch, x, c = self._flatten(x, c, self.manifold, "x")
        differentiable = self._keeps_graph(x, *leaves(c).values())
        with torch.set_grad_enabled(differentiable):
            c = self._embed(c)
            if self.is_bijective:
                z, ladj = self.codec.encode_ladj(x, c)
                return (self.base.log_prob(z, as_rows(c)) + ladj).view(batch)
            one = x.new_zeros(1, *self.latent_manifold.event_shape)
            chunk = rows_per_chunk(self.codec, self.manifold, self.latent_manifold, one, c) if len(x) else 1
            unsolved: list[int] = []
            pieces = [self._log_prob(x[k : k + chunk], _rows(c, slice(k, k + chunk)), volume, at, unsolved) for k in range(0, len(x), chunk)]
        if sum(unsolved):
            warnings.warn(f"log_prob(at='preimage'): {sum(unsolved)} of {len(x)} rows have no preimage and get −inf", stacklevel=2)
        return (torch.cat(pieces) if pieces else x.new_zeros(0)).view(batch)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Independent draws, one pass through the decoder.

        Args:
            n: How many per condition, an int or a shape; ``()`` draws one.
            c: Condition.
            generator: Source of randomness, on the flow's device.

        Returns:
            Shape (\*n, \*batch(c), \*event).
        """
        shape, c = self._expand(n, c)
        with torch.set_grad_enabled(self._keeps_graph(*leaves(c).values())):
            c = self._embed(c)
            z = self._draw(shape, c, generator)
            return self._decode(z, c).view(*shape, *self.manifold.event_shape)

    def sample_and_log_prob(
        self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws and their log-density from the same latent, so that no encoder error enters.

        Returns:
            Samples of shape (\*n, \*batch(c), \*event) and log-densities of shape (\*n, \*batch(c)).
        """
        shape, c = self._expand(n, c)
        differentiable = self._keeps_graph(*leaves(c).values())
        with torch.set_grad_enabled(differentiable):
            c = self._embed(c)
            z = self._draw(shape, c, generator)
            if self.is_bijective:
                x, ladj = self.codec.decode_ladj(z, c)
                return x.view(*shape, *self.manifold.event_shape), (self.base.log_prob(z, as_rows(c)) - ladj).view(shape)
            chunk = rows_per_chunk(self.codec, self.manifold, self.latent_manifold, z, c) if len(z) else 1
            pieces = [self._decode_density(z[k : k + chunk], _rows(c, slice(k, k + chunk))) for k in range(0, len(z), chunk)]
            x = torch.cat([p[0] for p in pieces]) if pieces else z.new_zeros(0, *self.manifold.event_shape)
            log_p = torch.cat([p[1] for p in pieces]) if pieces else z.new_zeros(0)
            return x.view(*shape, *self.manifold.event_shape), log_p.view(shape)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""Data (\*batch, \*event) -> latents (\*batch, \*latent event), projected onto the latent manifold."""
        batch, x, c = self._flatten(x, c, self.manifold, "x")
        with torch.set_grad_enabled(self._keeps_graph(x, *leaves(c).values())):
            return self._encode(x, self._embed(c)).view(*batch, *self.latent_manifold.event_shape)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Latents (\*batch, \*latent event) -> data (\*batch, \*event), projected onto the manifold."""
        batch, z, c = self._flatten(z, c, self.latent_manifold, "z")
        with torch.set_grad_enabled(self._keeps_graph(z, *leaves(c).values())):
            return self._decode(z, self._embed(c)).view(*batch, *self.manifold.event_shape)

    def reconstruct(self, x: Tensor, c: Condition = None) -> Tensor:
        """decode(encode(x)), shape of x."""
        batch, x, c = self._flatten(x, c, self.manifold, "x")
        with torch.set_grad_enabled(self._keeps_graph(x, *leaves(c).values())):
            c = self._embed(c)
            return self._decode(self._encode(x, c), c).view(*batch, *self.manifold.event_shape)

    def distribution(self, c: Condition = None) -> FlowDistribution:
        """The flow at a fixed condition as a `torch.distributions.Distribution`."""
        return FlowDistribution(self, c)

    def forward(self, x: Tensor, c: Condition = None) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x, c)

    # --------------------------------------------------------------------------------------------------- on flat, embedded rows

    def _keeps_graph(self, *inputs: Tensor) -> bool:
        """Whether somebody asks for a gradient: in training, of an input, or by a function transform."""
        transformed = torch._C._functorch.maybe_current_level() is not None
        return torch.is_grad_enabled() and (self.training or transformed or any(tensor.requires_grad for tensor in inputs))

    def _encode(self, x: Tensor, c: Condition) -> Tensor:
        return self.latent_manifold.project(self.codec.encode(x, c))

    def _decode(self, z: Tensor, c: Condition) -> Tensor:
        return self.manifold.project(self.codec.decode(z, c))

    def _log_prob(self, x: Tensor, c: Condition, volume: Volume, at: At, unsolved: list[int]) -> Tensor:
        if volume == "encoder":
            return self._encoder_density(x, c)
        if at == "reconstruction":
            return self._decode_density(self._encode(x, c), c)[1]
        # In the coordinates of the networks, where a common tolerance makes sense; the bijections around them are exact.
        before, core, after, space, latent = self._parts
        # On the space to the last digit: Newton's tolerance is finer than the rounding of a shift from far away.
        h = space.project(before.encode(x, c)) if before is not None else x
        z, solved = preimage(core, space, latent, h, latent.project(core.encode(h, c)), c)  # pyright: ignore[reportOptionalMemberAccess]
        unsolved.append(int((~solved).sum()))
        # Rows without a preimage are left out of the density: its gradient there need not be finite.
        rows = solved.nonzero().squeeze(-1)
        z, c = z[rows], transform(c, lambda leaf: leaf[rows])
        if torch.is_grad_enabled():
            z = implicit(core, space, latent, h[rows], z, c)
        z = after.encode(z, c) if after is not None else z
        return x.new_full((len(x),), -torch.inf).index_copy(0, rows, self._decode_density(z, c)[1])

    def _decode_density(self, z: Tensor, c: Condition) -> tuple[Tensor, Tensor]:
        """x̂ and log p(x̂) = log p_base(z) − log|det R_xᵀ J_g R_z| + ½(log|G_z| − log|G_x|)."""
        log_p = self.base.log_prob(z, as_rows(c))
        if self.is_bottleneck:
            # The volume is that of the whole decoder, in the units of the data.
            x, jacobian = decoder_jacobian(self.codec, self.manifold, self.latent_manifold, z, c)
            return x, log_p - log_abs_det(jacobian) + self.latent_manifold.log_volume(z) - self.manifold.log_volume(x)
        # The ladj of the bijections refer to Riemannian volumes already: the metrics are those of the core's two sides.
        before, core, after, space, latent = self._parts
        if after is not None:
            z, ladj = after.decode_ladj(z, c)
            log_p = log_p - ladj
        x, jacobian = decoder_jacobian(core, space, latent, z, c)
        log_p = log_p - log_abs_det(jacobian) + latent.log_volume(z) - space.log_volume(x)
        if before is not None:
            x, ladj = before.decode_ladj(x, c)
            log_p = log_p - ladj
        return x, log_p

    def _encoder_density(self, x: Tensor, c: Condition) -> Tensor:
        """Log p_base(f(x)) + log|det R_zᵀ J_f R_x| + ½(log|G_z| − log|G_x|) at x itself."""
        if self.is_bottleneck:
            z, jacobian = encoder_jacobian(self.codec, self.manifold, self.latent_manifold, x, c)
            metric = self.latent_manifold.log_volume(z) - self.manifold.log_volume(x)
            return log_abs_det(jacobian) + self.base.log_prob(z, as_rows(c)) + metric
        before, core, after, space, latent = self._parts
        log_p = x.new_zeros(len(x))
        if before is not None:
            x, ladj = before.encode_ladj(x, c)
            log_p = log_p + ladj
        z, jacobian = encoder_jacobian(core, space, latent, x, c)
        log_p = log_p + log_abs_det(jacobian) + latent.log_volume(z) - space.log_volume(x)
        if after is not None:
            z, ladj = after.encode_ladj(z, c)
            log_p = log_p + ladj
        return log_p + self.base.log_prob(z, as_rows(c))

    def _draw(self, shape: tuple[int, ...], c: Condition, generator: torch.Generator | None) -> Tensor:
        """One latent for each of the prod(shape) rows; c is already expanded to rows."""
        z = self.base.sample((), as_rows(c), generator=generator) if c is not None else self.base.sample(_product(shape), generator=generator)
        wanted = (_product(shape), *self.base.manifold.event_shape)
        if tuple(z.shape) != wanted:
            raise ValueError(
                f"Flow: the base drew latents of shape {tuple(z.shape)}, expected {wanted}; its sample(n, c) must return (*n, *batch(c), *event)"
            )
        return z

    # ------------------------------------------------------------------------------------------------------------------ shapes

    def _embed(self, c: Condition) -> Condition:
        return c if self.context is None or c is None else self.context(c)

    def _flatten(self, x: Tensor, c: Condition, space: Manifold, name: str) -> tuple[tuple[int, ...], Tensor, Condition]:
        """Broadcast the batches of x and c and flatten them to rows."""
        event = space.event_shape
        if not isinstance(x, Tensor):
            raise TypeError(f"Flow: {name} must be a torch.Tensor, got {type(x).__name__}; use torch.as_tensor({name}, dtype=torch.float32)")
        parameter = next((p for p in self.codec.parameters() if p.is_floating_point()), None)
        if parameter is not None and x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"Flow: {name} is {x.dtype}, the networks are {parameter.dtype}; convert one, as {name}.to({parameter.dtype})"
                f"{f' or flow.to({x.dtype})' if x.is_floating_point() else ''}"
            )
        if x.ndim < len(event) or tuple(x.shape[x.ndim - len(event) :]) != event:
            wanted = ", ".join(map(str, event))
            raise ValueError(f"Flow: expected {name} of shape (*batch, {wanted}) on {space}, got {tuple(x.shape)}")
        self._check_condition(c)
        batch = tuple(x.shape[: x.ndim - len(event)])
        if c is None and len(batch) == 1 and x.is_contiguous():
            return batch, x, None
        if c is not None:
            of_c = batch_shape(c, self.condition)
            try:
                batch = tuple(torch.broadcast_shapes(batch, of_c))
            except RuntimeError:
                raise ValueError(f"Flow: the batch {batch} of {name} does not broadcast with the batch {of_c} of the condition") from None
        # Contiguous, because forward differentiation refuses rows that share memory.
        rows = x.expand(*batch, *event).reshape(_product(batch), *event).contiguous()
        return batch, rows, expand_flat(c, batch, self.condition)

    def _expand(self, n: int | tuple[int, ...], c: Condition) -> tuple[tuple[int, ...], Condition]:
        """The full sample shape (*n, *batch(c)) and one row of conditions for each sample."""
        self._check_condition(c)
        shape = (*draw_shape(n), *(batch_shape(c, self.condition) if c is not None else ()))
        return shape, expand_flat(c, shape, self.condition)

    def _check_condition(self, c: Condition) -> None:
        if c is None and self.condition is not None:
            raise ValueError(f"Flow: this flow is conditional; give c of event shape {self.condition}")

    def _infer_manifold(self) -> Manifold:
        first = self.codec.parts[0] if isinstance(self.codec, Chain) else self.codec
        if isinstance(first, Bijection):
            return first.domain
        shape = self._trial(self.codec.decode, self.latent_manifold)
        if shape is None:
            raise ValueError(
                "Flow: cannot see the shape of the data, as the networks take a condition of unknown shape; give condition=… or manifold=…"
            )
        return Euclidean(shape)

    def _check_fit(self) -> None:
        """Refuse parts whose shapes or spaces cannot go together, at construction rather than in the first batch."""
        if self.latent_manifold.dim > self.manifold.dim:
            raise ValueError(f"Flow: the latent on {self.latent_manifold} has more dimensions than the data on {self.manifold}")
        if isinstance(self.codec, Bijection):
            if self.codec.domain != self.manifold:
                raise ValueError(f"Flow: the codec's domain {self.codec.domain} is not the manifold {self.manifold}")
            if self.codec.codomain != self.latent_manifold:
                raise ValueError(f"Flow: the codec's codomain {self.codec.codomain} is not the latent manifold {self.latent_manifold}")
            return
        parts = split(self.codec, self.manifold, self.latent_manifold)
        if parts.before is not None and parts.before.domain != self.manifold:
            raise ValueError(f"Flow: the codec's domain {parts.before.domain} is not the manifold {self.manifold}")
        if parts.after is not None and parts.after.codomain != self.latent_manifold:
            raise ValueError(f"Flow: the codec's codomain {parts.after.codomain} is not the latent manifold {self.latent_manifold}")
        for side, source, target in (("decode", self.latent_manifold, self.manifold), ("encode", self.manifold, self.latent_manifold)):
            shape = self._trial(getattr(self.codec, side), source)
            if shape is not None and shape != target.event_shape:
                raise ValueError(f"Flow: codec.{side} maps {source} to shape {shape}, but {target} has points of shape {target.event_shape}")

    @torch.no_grad()
    def _trial(self, fn: Any, source: Manifold) -> tuple[int, ...] | None:
        """Event shape of fn's output for two rows of ones; None where it cannot be tried (an unknown condition)."""
        tensor = next((t for t in (*self.codec.parameters(), *self.codec.buffers()) if t.is_floating_point()), torch.zeros(()))
        x = source.project(torch.ones(2, *source.event_shape, dtype=tensor.dtype, device=tensor.device))
        if isinstance(self.condition, dict):
            c: Condition = {name: tensor.new_zeros(2, *shape) for name, shape in self.condition.items()}
        else:
            c = None if self.condition is None else tensor.new_zeros(2, *self.condition)
        if c is None:
            length = _context_length(self.codec)
            if length is None or (length and self.context is not None):
                return None
            c = tensor.new_zeros(2, length) if length else None
        mode = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return tuple(fn(x, self._embed(c)).shape[1:])
        except RuntimeError as error:
            raise ValueError(f"Flow: the codec fails on points of {source}: {str(error).splitlines()[0]}") from error
        finally:
            for module, training in mode:
                module.training = training


def _context_length(codec: Codec) -> int | None:
    """How long a condition the codec's networks take: 0 where they take none, None where they do not say."""
    nets = [net for module in codec.modules() if isinstance(module, FreeForm) for net in (module.encoder, module.decoder)]
    declared = [length for net in nets if isinstance(length := getattr(net, "context", None), int) and length]
    if declared:
        return declared[0]
    for net in nets:
        required = [p for p in inspect.signature(net.forward).parameters.values() if p.default is p.empty]
        if len([p for p in required if p.kind is p.POSITIONAL_OR_KEYWORD]) > 1:
            return None
    return 0


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _rows(c: Condition, rows: slice) -> Condition:
    return transform(c, lambda leaf: leaf[rows])
