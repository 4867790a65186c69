"""The likelihood of free-form flows: one objective for full-dimensional, injective and manifold flows."""

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fluvial.codecs import FreeForm
from fluvial.conditions import Condition, as_rows, transform
from fluvial.flow import Flow
from fluvial.linearize import linearize
from fluvial.manifolds import Manifold, has_uniform
from fluvial.objectives.objective import Batch, Objective, Progress, training_mean, weighted_mean
from fluvial.volume import Probe, ProbeScale, Surrogate, surrogate

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset

TERMS = (
    "reconstruction",
    "z_reconstruction",
    "z_reconstruction_encoder",
    "z_sample_reconstruction",
    "x_sample_reconstruction",
    "uniform_reconstruction",
    "shuffled_reconstruction",
    "intermediate_reconstruction",
    "z_projection",
    "x_projection",
)


class FreeFormLikelihood(Objective):
    r"""Maximum likelihood for any pair of networks, by the free-form surrogate.

    .. math:: L(x) = \beta\, d(x, \hat x)^2 - w\,\bigl[\log p_Z(z) + s(x) + \tfrac12 (\log|G_z(z)| - \log|G_x(x)|)\bigr]
                      + \sum_t \lambda_t\, T_t(x)

    s is the surrogate of `fluvial.volume.surrogate`: its gradient is that of log|det J_f|, its value means nothing and is logged as
    ``surrogate``. All terms are in the coordinates of the flow's free-form part (standardised where the flow standardises).

    With ``beta="auto"`` β follows what the validation rows say. Every ``adapt_every`` steps the consistency gap
    |mean log|det J_f J_g|| = |NLL_encoder − NLL_decoder|, plus its standard error, moves log β up where it exceeds the tolerance (half of
    it at the end) and down where it is below. With a bottleneck the two likelihoods measure different things; there β is held at
    5(D − d)/error, so large that the reconstruction stays on its plateau.

    Args:
        beta: Weight of the squared reconstruction error, or "auto".
        probe: Plan of the surrogate: "auto", "data", "latent" or "latent_vjp".
        probes: Number K of orthogonal probes.
        probe_scale: "intrinsic" (unbiased), or "embedding" to repeat the published M-FFF code.
        fraction: Share of each batch on which the surrogate is computed.
        terms: Weights λ of further terms by name:
            ``reconstruction`` d(x₀, x̂)² to the data before noise was added;
            ``z_reconstruction`` d(z, f(x̂))²; ``z_reconstruction_encoder`` the same with x̂ held fixed;
            ``z_sample_reconstruction`` d(z', f(g(z')))² for z' from the base;
            ``x_sample_reconstruction`` d(x', g(f(x')))² for x' = g(z') held fixed;
            ``uniform_reconstruction`` d(u, g(f(u)))² for u uniform on a manifold of finite volume, so that the networks are inverses, and
            ``log_prob`` means something, also where there are no data;
            ``shuffled_reconstruction`` reconstruction of permuted rows under unpermuted conditions;
            ``intermediate_reconstruction`` Σ|hidden state of the encoder − that of the decoder|², networks that have ``states``;
            ``z_projection`` |f(x) − π f(x)|² and ``x_projection`` |g(z) − π g(z)|², which keep raw outputs near their manifold.
        sample_fraction: Share of the batch size for which the terms that draw points do so; their mean is what counts.
        warmup: Epochs (a, b) between which the likelihood's weight w rises from 0 to 1; None for w = 1 throughout.
        geodesic: Squared geodesic instead of embedding distance in all reconstruction terms.
        gap_tolerance: τ per dimension, in nats: a gap up to τ·n counts as consistent.
        beta_start: β at the start under "auto".
        beta_max: What β does not exceed under "auto". A β so large that the networks only mind each other stops them from learning; where a few
            rows keep the gap open it may come to that.
        adapt_every: Steps between two moves of β.

    Raises:
        ValueError: If a name, weight or range is not one of the above.

    References:
        Draxler et al. (2023), arXiv:2310.16624, eq. (8); Sorrenson et al. (2023), arXiv:2306.01843 and arXiv:2312.09852.

    Example:
        >>> FreeFormLikelihood(beta=10.0, terms={"z_sample_reconstruction": 1.0}).beta
        10.0
    """

    log_beta: Tensor
    gap: Tensor

    def __init__(
        self,
        beta: float | Literal["auto"] = "auto",
        *,
        probe: Probe = "auto",
        probes: int = 1,
        probe_scale: ProbeScale = "intrinsic",
        fraction: float = 1.0,
        terms: dict[str, float] | None = None,
        sample_fraction: float = 0.25,
        warmup: tuple[float, float] | None = None,
        geodesic: bool = False,
        gap_tolerance: float = 0.02,
        beta_start: float = 100.0,
        beta_max: float = 1e7,
        adapt_every: int = 50,
    ) -> None:
        super().__init__()
        _check_arguments(beta, probe, probes, probe_scale, (fraction, sample_fraction), terms or {}, warmup, gap_tolerance, (beta_start, beta_max))
        self.beta = beta
        self.probe: Probe = probe
        self.probes = probes
        self.probe_scale: ProbeScale = probe_scale
        self.fraction = fraction
        self.terms = dict(terms or {})
        self.sample_fraction = sample_fraction
        self.warmup = warmup
        self.geodesic = geodesic
        self.gap_tolerance = gap_tolerance
        self.beta_start = beta_start
        self.beta_max = beta_max
        self.adapt_every = adapt_every if beta == "auto" else 0
        self.register_buffer("log_beta", torch.tensor(math.log(beta_start if beta == "auto" else beta)))
        self.register_buffer("gap", torch.tensor(math.nan))

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Refuse flows this objective does not train."""
        _, core, _, space, latent = _free_form(flow).parts
        most = space.dim if self.probe == "data" else latent.dim
        if self.probes > most:
            raise ValueError(f"FreeFormLikelihood: {self.probes} orthogonal probes do not exist in dimension {most}; ask for 1 to {most}")
        if self.terms.get("uniform_reconstruction") and not has_uniform(space):
            raise ValueError(f"FreeFormLikelihood: the term uniform_reconstruction needs a manifold of finite volume, not {space}")
        for manifold in (space, latent) if self.geodesic else ():
            point = manifold.project(torch.ones(1, *manifold.event_shape))
            try:
                manifold.distance(point, point)
            except NotImplementedError as error:
                raise ValueError(f"FreeFormLikelihood: geodesic=True, but {error}") from None
        if self.terms.get("intermediate_reconstruction"):
            nets = (_with_states(core, side) for side in ("encoder", "decoder"))
            sizes = [(getattr(net, "width", None), getattr(net, "blocks", None)) for net in nets]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    "FreeFormLikelihood: intermediate_reconstruction needs a decoder as wide and deep as the encoder, "
                    f"got (width, blocks) {sizes[0]} and {sizes[1]}"
                )

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss, and its unweighted terms."""
        flow = _free_form(flow)
        parts = flow.parts
        c = batch.c if flow.context is None or batch.c is None else flow.context(batch.c)
        h, ladj = parts.before.encode_ladj(batch.x, c) if parts.before is not None else (batch.x, 0.0)
        s = surrogate(
            parts,
            h,
            c,
            probe=self.probe,
            probes=self.probes,
            scale=self.probe_scale,
            fraction=self.fraction,
            # A compiled step draws from the compiler's own generator.
            generator=progress.source,
        )
        z, ladj_after = parts.after.encode_ladj(s.z, c) if parts.after is not None else (s.z, 0.0)
        metric = parts.latent_manifold.log_volume(s.z) - parts.manifold.log_volume(h)
        surrogate_nll = -(flow.base.log_prob(z, as_rows(c)) + s.value + metric + ladj + ladj_after)
        reconstruction = self._square(parts.manifold, h, s.x)
        total = self.log_beta.exp().to(h.dtype) * reconstruction + self._likelihood_weight(progress) * surrogate_nll
        loss = training_mean(total, batch.weight)
        logged = {"reconstruction": training_mean(reconstruction, batch.weight), "surrogate": training_mean(surrogate_nll, batch.weight)}
        for name, weight in self.terms.items():
            if weight == 0:  # as a recipe writes that takes a term away from the one it extends
                continue
            value = self._term(name, flow, batch, h, c, s, progress)
            # Points that are drawn rather than given carry no weights.
            value = training_mean(value, batch.weight) if value.ndim else value
            loss = loss + weight * value
            logged[name if name != "reconstruction" else "clean_reconstruction"] = value
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Exact decoder and encoder NLL, root mean square reconstruction error in the units of the data, and the monitor.

        The monitor takes for every row the larger of the two NLLs, which agree where the networks do, and rises with any excess of the gap:
        the smaller one may owe what it gains to a disagreement. With a bottleneck it is NLL + (D − d)/2 · log(squared reconstruction error), the
        joint likelihood under the best isotropic noise off the manifold, to which every β is comparable.
        """
        flow = _free_form(flow)
        nll = -flow.log_prob(batch.x, batch.c)
        apart = (batch.x - flow.reconstruct(batch.x, batch.c)).flatten(1)
        square = weighted_mean(apart.square().sum(-1), batch.weight)
        reconstruction = square.sqrt()
        mean_nll = weighted_mean(nll, batch.weight)
        if flow.is_bottleneck:
            monitor = mean_nll + 0.5 * (flow.manifold.dim - flow.dim) * torch.log(square.clamp_min(torch.finfo(square.dtype).tiny))
            return {"monitor": monitor, "nll": nll, "reconstruction": reconstruction}
        nll_encoder = -flow.log_prob(batch.x, batch.c, volume="encoder")
        gap = (weighted_mean(nll_encoder, batch.weight) - mean_nll).abs()
        monitor = weighted_mean(torch.maximum(nll, nll_encoder), batch.weight) + 2 * (gap - self._tolerance(flow)).clamp_min(0)
        return {"monitor": monitor, "nll": nll, "nll_encoder": nll_encoder, "reconstruction": reconstruction, "gap": gap}

    @torch.no_grad()
    def adapt(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Move log β: by dual ascent on the gap, or with a bottleneck onto the plateau of the reconstruction."""
        flow = _free_form(flow)
        parts = flow.parts
        c = batch.c if flow.context is None or batch.c is None else flow.context(batch.c)
        h = parts.before.encode(batch.x, c) if parts.before is not None else batch.x
        if flow.is_bottleneck:
            square = weighted_mean(self._square(parts.manifold, h, parts.decode(parts.encode(h, c), c)), batch.weight)
            # At the weight (D − d)/(2 error) a relative gain in reconstruction counts as it does in the monitor's Gaussian likelihood;
            # at ten times that the likelihood has no say in it any more.
            plateau = 10 * 0.5 * (parts.manifold.dim - parts.latent_manifold.dim) / square.clamp_min(1e-12)
            if bool(torch.isfinite(square)):
                self.log_beta.lerp_(plateau.log().to(self.log_beta.dtype), 0.3).clamp_(math.log(1e-3), math.log(self.beta_max))
            return {"beta": self.log_beta.exp()}
        per_row = _log_det_cycle(parts, h, c)
        gap = weighted_mean(per_row, batch.weight)
        if not bool(torch.isfinite(gap)):
            return {"beta": self.log_beta.exp()}
        # Averaged with its sign, since what fluctuates about zero from one step to the next is no inconsistency; and with its standard
        # error on these few rows, since rows that disagree widely only seem to agree in the mean.
        self.gap.copy_(gap if bool(torch.isnan(self.gap)) else 0.7 * self.gap + 0.3 * gap)
        counted = per_row if batch.weight is None else per_row[batch.weight > 0]
        bound = self.gap.abs() + counted.std(correction=0) / math.sqrt(len(counted))
        # Half of the tolerance at the end, where the small learning rate has brought the networks together.
        target = (1 - 0.5 * progress.fraction) * self._tolerance(flow)
        # An inconsistent pair learns nothing true, so that far off β may rise twice as fast as it falls.
        move = torch.log(bound.clamp_min(1e-12) / target).clamp(-1.0, 2.0)
        self.log_beta.add_(0.1 * move).clamp_(math.log(1e-3), math.log(self.beta_max))
        return {"beta": self.log_beta.exp(), "gap": self.gap.abs(), "gap_bound": bound}

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """One group: codec, base and context together."""
        return [{"params": [p for p in flow.parameters() if p.requires_grad]}]

    def _tolerance(self, flow: Flow) -> float:
        return self.gap_tolerance * flow.dim

    def _likelihood_weight(self, progress: Progress) -> float:
        if self.warmup is None:
            return 1.0
        a, b = self.warmup
        return min(max((progress.epoch - a) / (b - a), 0.0), 1.0)

    def _square(self, manifold: Manifold, a: Tensor, b: Tensor) -> Tensor:
        if self.geodesic:
            return manifold.distance(a, b).square()
        return (a - b).flatten(a.ndim - len(manifold.event_shape)).square().sum(-1)

    def _term(self, name: str, flow: Flow, batch: Batch, h: Tensor, c: Condition, s: Surrogate, progress: Progress) -> Tensor:
        parts = flow.parts
        space, latent = parts.manifold, parts.latent_manifold
        if name == "reconstruction":
            clean = batch.x if batch.clean is None else batch.clean
            return self._square(space, parts.before.encode(clean, c) if parts.before is not None else clean, s.x)
        if name in ("z_reconstruction", "z_reconstruction_encoder"):
            x = s.x.detach() if name == "z_reconstruction_encoder" else s.x
            return self._square(latent, s.z, parts.encode(x, c))
        if name in ("z_sample_reconstruction", "x_sample_reconstruction"):
            rows = math.ceil(self.sample_fraction * len(h))
            c = transform(c, lambda leaf: leaf[:rows])
            with torch.no_grad():
                z = flow.base.sample(() if c is not None else rows, as_rows(c), generator=progress.source)
                z = parts.after.decode(z, c) if parts.after is not None else z
            x = parts.decode(z, c)
            if name == "z_sample_reconstruction":
                return self._square(latent, z, parts.encode(x, c)).mean()
            x = x.detach()
            return self._square(space, x, parts.decode(parts.encode(x, c), c)).mean()
        if name == "uniform_reconstruction":
            rows = math.ceil(self.sample_fraction * len(h))
            c = transform(c, lambda leaf: leaf[:rows])
            x = space.random_uniform(rows, generator=progress.source, dtype=h.dtype, device=h.device)
            return self._square(space, x, parts.decode(parts.encode(x, c), c)).mean()
        if name == "shuffled_reconstruction":
            other = h[torch.randperm(len(h), generator=progress.source, device=h.device)]
            return self._square(space, other, parts.decode(parts.encode(other, c), c))
        if name == "intermediate_reconstruction":
            up, down = _with_states(parts.core, "encoder").states(h, c), _with_states(parts.core, "decoder").states(s.z, c)
            return torch.stack([(a - b).square().sum(-1) for a, b in zip(up, reversed(down))]).sum(0)
        raw, projected = (s.z_raw, s.z) if name == "z_projection" else (s.x_raw, s.x)
        return (raw - projected).flatten(1).square().sum(-1)


def _free_form(flow: nn.Module) -> Flow:
    if not isinstance(flow, Flow) or flow.is_bijective:
        raise TypeError("FreeFormLikelihood trains a Flow with a free-form codec; a bijection knows its log-determinant: use MaximumLikelihood")
    return flow


def _log_det_cycle(parts: Any, h: Tensor, c: Condition) -> Tensor:
    """log|det R_zᵀ J_f(h) J_g(z) R_z| of every row: 0 for consistent networks; NLL_decoder − NLL_encoder where dimensions agree."""
    core, space, latent = parts.core, parts.manifold, parts.latent_manifold
    z, _, push_encoder = linearize(core, "encode", h, c, manifold=latent)
    _, _, push_decoder = linearize(core, "decode", z, c, manifold=space)
    basis = latent.tangent_basis(z)
    columns = space.to_tangent(h, push_decoder(basis.movedim(-1, 0)))
    cycle = push_encoder(columns).flatten(2).permute(1, 2, 0)
    return torch.linalg.slogdet(basis.flatten(1, -2).transpose(1, 2) @ cycle)[1]


def _with_states(core: Any, side: str) -> Any:
    net = getattr(core, side, None) if isinstance(core, FreeForm) else None
    if net is None or not hasattr(net, "states"):
        raise ValueError(
            "FreeFormLikelihood: the term intermediate_reconstruction needs a FreeForm of networks with states, such as nn.Residual; "
            f"its {side} has none"
        )
    return net


def _check_arguments(
    beta: Any,
    probe: str,
    probes: int,
    probe_scale: str,
    shares: tuple[float, float],
    terms: dict[str, float],
    warmup: Any,
    tolerance: float,
    betas: tuple[float, float],
) -> None:
    who = "FreeFormLikelihood"
    if beta != "auto" and not (isinstance(beta, (int, float)) and beta > 0 and math.isfinite(beta)):
        raise ValueError(f"{who}: beta must be a positive number or 'auto', got {beta!r}")
    if probe not in ("auto", "data", "latent", "latent_vjp"):
        raise ValueError(f"{who}: probe must be 'auto', 'data', 'latent' or 'latent_vjp', got {probe!r}")
    if probe_scale not in ("intrinsic", "embedding"):
        raise ValueError(f"{who}: probe_scale must be 'intrinsic' or 'embedding', got {probe_scale!r}")
    if probes < 1 or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"{who}: probes must be at least 1, fraction and sample_fraction within (0, 1], got {probes} and {shares}")
    for name, weight in terms.items():
        if name not in TERMS:
            raise ValueError(f"{who}: unknown term {name!r}; the terms are {', '.join(TERMS)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"{who}: the weight of {name} must be a number ≥ 0, got {weight}")
    if warmup is not None and not (len(warmup) == 2 and 0 <= warmup[0] < warmup[1]):
        raise ValueError(f"{who}: warmup must be two epochs 0 ≤ a < b, got {warmup}")
    if not tolerance > 0 or not 0 < betas[0] <= betas[1]:
        start, most = betas
        raise ValueError(f"{who}: gap_tolerance and beta_start must be positive, beta_start at most beta_max, got {tolerance}, {start} and {most}")
