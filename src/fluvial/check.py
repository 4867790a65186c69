"""Is this flow to be believed?"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fluvial.codecs.standardize import wants_fit
from fluvial.conditions import Condition, leaves, transform
from fluvial.data import DataSpec, as_dataset
from fluvial.data.problems import check_finite, check_on_manifold, check_rank
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Manifold, Product, SpecialOrthogonal, Sphere, Torus, has_uniform
from fluvial.metrics.c2st import c2st
from fluvial.metrics.estimate import Estimate, mean_estimate
from fluvial.metrics.kolmogorov_smirnov import kolmogorov_smirnov
from fluvial.metrics.likelihood import Gap, evaluating, float_of, gap_of, log_prob, placed, reconstruction, rms_estimate
from fluvial.metrics.normalisation import normalisation
from fluvial.metrics.pca_gaussian import pca_gaussian
from fluvial.metrics.plainest import plainest
from fluvial.metrics.report import Report, Row, Threshold, Verdict
from fluvial.metrics.truth import true_log_prob
from fluvial.volume import decoder_jacobian, rows_per_chunk

THRESHOLDS = {
    "NLL": Threshold(0.02, 0.2, "nats per dimension above the plainest model: a flow that does not beat it has learned nothing of the shape"),
    "NLL against the truth": Threshold(0.02, 0.1, "nats per dimension above the true density, where the data set knows it"),
    "rows without density": Threshold(0.0, 1e-3, "share of rows: one in a thousand may be an outlier, more are a part of the distribution"),
    "reconstruction": Threshold(0.02, 0.1, "parts of the data's spread: the density is that of the reconstruction; finer detail is lost"),
    "reconstruction against PCA": Threshold(1.05, 1.5, "ratio of root mean squares: a curved surface must not fit worse than a flat one"),
    "encoder/decoder gap": Threshold(0.02, 0.1, "nats per dimension: what training holds beta to; rows may differ by five times as much"),
    "smallest singular value": Threshold(1e4, 1e6, "how much smaller than data spread over latent spread: float32 keeps seven digits"),
    "condition number": Threshold(1e4, 1e6, "the log-determinant loses as many of float32's seven digits as this has"),
    "latent marginals": Threshold(0.03, 0.1, "beyond what chance makes: this share of the latents is misplaced"),
    "latents against base": Threshold(0.55, 0.65, "accuracy beyond two standard errors: one row in ten, three in ten, gives itself away"),
    "cycle": Threshold(0.02, 0.1, "parts of the latent spread: samples and densities belong together only where the encoder undoes the decoder"),
    "normalisation": Threshold(0.02, 0.1, "distance of the integral from 1: the error of a log-density in nats"),
    "samples against data": Threshold(0.55, 0.65, "accuracy beyond two standard errors: one row in ten, three in ten, gives itself away"),
}
CHANCE = 0.01  # of a latent marginal being called different although it is not, over all coordinates
JACOBIAN_ROWS = 256
CLASSIFIER_ENTRIES = 1_280_000  # rows × columns of each set: keeps a two-sample test within about 20 seconds


def check(flow: Flow, data: Any, *, samples: int = 10_000, seed: int = 0) -> Report:
    r"""Look at a trained flow from all sides, and say what each figure means and what to do about it.

    Args:
        flow: A `Flow`.
        data: Data that were not trained on, ideally: the flow's own training rows look better than new ones will. Anything that
            `fluvial.data.as_dataset` takes. If the flow's data were dequantised, so are these.
        samples: How many samples of the flow and of the base to draw, and at most how many rows of data to use.
        seed: Of everything drawn; the same seed gives the same report.

    Returns:
        A `Report`; print it, or ask ``report.ok``, ``report.rows``, ``report["NLL"]``, ``report.to_dict()``.

    Raises:
        TypeError: If flow is not a `Flow`.
        ValueError: If the data have another event shape than the flow, fewer than 20 rows, or NaN or infinite entries.

    Example:
        >>> from fluvial.bases import Normal
        >>> from fluvial.codecs import Standardize
        >>> report = check(Flow(Standardize(1), Normal(1)), torch.randn(500, 1, generator=torch.Generator().manual_seed(0)))
        >>> report.ok, report["normalisation"].verdict, report["encoder/decoder gap"].verdict
        (True, 'good', 'not applicable')
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"check: expected a Flow, got {type(flow).__name__}; check the factors of a Joint, or the members of an Ensemble, one by one")
    dataset = as_dataset(data)
    if tuple(dataset.x.shape[1:]) != flow.manifold.event_shape:
        shape = ", ".join(map(str, flow.manifold.event_shape))
        raise ValueError(f"check: expected data of shape (n, {shape}), got {tuple(dataset.x.shape)}{_mend(flow.manifold, dataset.x)}")
    dataset = as_dataset(dataset, manifold=None if isinstance(flow.manifold, Euclidean) else flow.manifold)
    if len(dataset) < 20 or samples < 20:
        raise ValueError(f"check: expected at least 20 rows of data and 20 samples, got {len(dataset)} and {samples}")
    check_finite(dataset.x, dataset.c, dataset.spec)
    check_on_manifold(dataset.x, dataset.spec)
    if len(dataset) > samples:
        dataset = dataset[torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:samples].sort().values.to(dataset.x.device)]
    with evaluating(flow):
        truth = dataset.truth if dataset.spec.dequantize is None else None
        facts = _Facts(flow, *placed(flow, dataset, seed=seed), truth, samples, seed)
        rows = [row for section in SECTIONS for row in section(facts)]
    rows = _believed_only_so_far(rows)
    kind = "a bijection" if flow.is_bijective else "free-form with a bottleneck" if flow.is_bottleneck else "free-form"
    return Report(
        tuple(rows), f"Flow on {flow.manifold} ({kind}, latent on {flow.latent_manifold}): {len(dataset)} rows of data, {facts.drawn} samples"
    )


def _mend(manifold: Manifold, x: Tensor) -> str:
    """How to turn angles and quaternions into points."""
    event = tuple(x.shape[1:])
    if isinstance(manifold, Torus) and event == (manifold.dim,):
        return "; angles become points by Torus.from_angles (radians) or Torus.from_degrees"
    if isinstance(manifold, SpecialOrthogonal) and manifold.n == 3 and event in ((3,), (4,)):
        return f"; rotations become matrices by SpecialOrthogonal.from_{'quaternion' if event == (4,) else 'rotation_vector'}"
    if isinstance(manifold, Sphere) and manifold.dim == 2 and event == (2,):
        return "; latitude and longitude become points by data.load(…, latlon=(…))"
    return ""


def _believed_only_so_far(rows: list[Row]) -> list[Row]:
    """No likelihood is good whose networks are not inverses of each other."""
    broken = [row.name for row in rows if row.verdict == "bad" and row.name in ("reconstruction", "cycle", "encoder/decoder gap", "normalisation")]
    if not broken:
        return rows
    why = f"not to be believed while these rows are bad: {', '.join(broken)}"
    advice = "mend the rows that are bad first"
    return [
        replace(row, verdict="doubtful", advice=advice, detail="; ".join(filter(None, (row.detail, why))))
        if row.name == "NLL" and row.verdict == "good"
        else row
        for row in rows
    ]


class _Facts:
    """What several rows of the report need, computed once, under no_grad and in evaluation mode."""

    def __init__(self, flow: Flow, x: Tensor, c: Condition, weight: Tensor | None, truth: Any, samples: int, seed: int) -> None:
        self.flow, self.x, self.c, self.weight, self.truth, self.seed = flow, x, c, weight, truth, seed
        generator = torch.Generator(float_of(flow).device).manual_seed(seed)
        # With conditions, one draw for each row of data; without, as many as asked for.
        self.drawn = len(x) if c is not None else samples
        embedded = c if flow.context is None or c is None else flow.context(c)
        self.embedded = embedded
        self.base = flow.base.sample(samples, generator=generator) if c is None else flow.base.sample((), embedded, generator=generator)
        self.samples = flow.decode(self.base, c)
        self.z = flow.encode(x, c)
        self.z_again = flow.encode(self.samples, c)
        self.log_prob = log_prob(flow, x, c)

    @cached_property
    def gap(self) -> Gap:
        """Of a flow that is no bijection."""
        return gap_of(log_prob(self.flow, self.x, self.c, volume="encoder"), self.log_prob, self.weight)

    def similarity(self, samples: Tensor, reference: Tensor) -> tuple[Estimate, str] | None:
        """C2ST accuracy of weighted data-like rows (`reference`) against unweighted draws, with its AUC in words; None where weights forbid it."""
        if self.weight is not None and bool((self.weight < 0).any()):
            return None
        if not bool(torch.isfinite(samples).all() and torch.isfinite(reference).all()):
            return Estimate(math.nan), "some rows are not finite"
        columns = reference[0].numel() + sum(leaf[0].numel() for leaf in leaves(self.c).values())
        most = max(500, CLASSIFIER_ENTRIES // columns)
        score = c2st(samples, reference, c=self.c, reference_c=self.c, reference_weight=self.weight, max_rows=most, seed=self.seed)
        return score.accuracy, f"AUC {score.auc}"


def _spread(x: Tensor, weight: Tensor | None = None) -> float:
    """Root mean square distance from the mean, in the embedding."""
    flat = x.flatten(1).double()
    w = torch.ones_like(flat[:, 0]) if weight is None else weight.double()
    w = (w / w.sum()).unsqueeze(1)
    return max(float((w * (flat - (w * flat).sum(0)).square()).sum().clamp_min(0).sqrt()), 1e-12)


def _row(name: str, found: Estimate, verdict: Verdict, meaning: str, advice: str, detail: str = "") -> Row:
    error = found.standard_error if math.isfinite(found.standard_error) else None
    return Row(name, found.value, error, verdict, meaning, advice, "; ".join(filter(None, (detail, found.note))))


def _likelihood(facts: _Facts) -> list[Row]:
    flow, n = facts.flow, len(facts.x)
    found = mean_estimate(-facts.log_prob, facts.weight)
    where = (
        "on the decoder's image, not comparable with other latent dimensions"
        if flow.is_bottleneck
        else "of the decoder"
        if not flow.is_bijective
        else "exact"
    )
    meaning = f"mean negative log-likelihood in nats ({where})"
    advice = "train longer or with a larger network: the plainest model describes these data better"
    plain = None if flow.is_bottleneck else plainest(flow.manifold, facts.x, facts.c, facts.weight)
    true = None if flow.is_bottleneck else true_log_prob(facts.truth, facts.x, facts.c)
    if found.bad_rows:
        nll = _row("NLL", found, "doubtful", meaning, "see the rows without density")
    elif true is not None:
        above = mean_estimate(true - facts.log_prob.double().cpu(), facts.weight)
        verdict = THRESHOLDS["NLL against the truth"].verdict(above.value / flow.manifold.dim, 2 * above.standard_error / flow.manifold.dim)
        advice = "train longer or with a larger network: the true density gives these data more likelihood"
        detail = f"the true density gives {mean_estimate(-true, facts.weight).value:.4g}; the flow lies {above} above it"
        nll = _row("NLL", found, verdict, meaning, advice, detail)
    elif plain is None:
        nll = _row("NLL", found, "not applicable" if flow.is_bottleneck else "good", meaning, advice)
    else:
        excess = (found.value - plain.nll) / flow.manifold.dim
        verdict = THRESHOLDS["NLL"].verdict(excess, (2 * found.standard_error + plain.optimism) / flow.manifold.dim)
        nll = _row("NLL", found, verdict, meaning, advice, f"{plain.name} gives {plain.nll:.4g}")
    if not flow.is_bottleneck and (why := _dependence(facts)):
        nll = replace(nll, verdict="bad", advice=why)
    share = found.bad_rows / n
    lost = Row(
        "rows without density",
        float(found.bad_rows),
        None,
        THRESHOLDS["rows without density"].verdict(share),
        "number of rows whose log-density is not finite",
        "look at these rows: values at a bound want a codec whose support holds them, outliers a base with heavier tails (StudentT)",
        found.note,
    )
    return [nll, lost]


def _dependence(facts: _Facts) -> str:
    """Which columns are linear combinations of each other, so that any NLL can be had; nothing where none are."""
    if not isinstance(facts.flow.manifold, Euclidean):
        return ""
    try:
        check_rank(facts.x.cpu(), DataSpec(tuple(facts.x.shape[1:])))
    except ValueError as error:
        return str(error)
    return ""


def _inversion(facts: _Facts) -> list[Row]:
    flow, name = facts.flow, "reconstruction"
    found = reconstruction(flow, facts.x, facts.c, weight=facts.weight).rms
    spread = _spread(facts.x, facts.weight)
    relative = Estimate(found.value / spread, found.standard_error / spread, note=found.note)
    chord = "" if isinstance(flow.manifold, Euclidean) else ", as chord"
    meaning = f"root mean square of |x − decode(encode(x))|{chord}, in parts of the data's spread"
    absolute = f"{found} in the units of the data"
    pca = _pca_rms(facts) if flow.is_bottleneck else None
    if flow.is_bijective:
        advice = "the inverse is numerically unstable: use float64, or a codec with bounded slopes"
        verdict = THRESHOLDS[name].verdict(relative.value, 2 * relative.standard_error)
    elif flow.is_bottleneck:
        advice = "raise the latent dimension or beta, train longer, or use larger networks"
        verdict = THRESHOLDS[name].verdict(relative.value, 2 * relative.standard_error)
        if pca is not None and verdict != "good":
            verdict = THRESHOLDS["reconstruction against PCA"].verdict(found.value / pca, 2 * found.standard_error / pca)
            absolute += f", {pca:.4g} by as many principal components"
    else:
        advice = "raise beta, or train longer; if that does not help, use larger networks"
        verdict = THRESHOLDS[name].verdict(relative.value, 2 * relative.standard_error)
    return [_row(name, relative, verdict, meaning, advice, absolute), *_cycle(facts), *_gap(facts)]


def _pca_rms(facts: _Facts) -> float | None:
    """What as many principal components leave out, each row judged by components that have not seen it; None where that cannot be said."""
    n, weight = len(facts.x), facts.weight
    if not isinstance(facts.flow.manifold, Euclidean) or n < 4 * facts.flow.dim or (weight is not None and bool((weight < 0).any())):
        return None
    half = torch.arange(n, device=facts.x.device) % 2 == 0
    distance = torch.empty(n, dtype=torch.float64, device=facts.x.device)
    for fold in (half, ~half):
        model = pca_gaussian(facts.x[~fold].double(), facts.flow.dim, weight=None if weight is None else weight[~fold])
        distance[fold] = (facts.x[fold].double() - model.reconstruct(facts.x[fold].double())).flatten(1).norm(dim=1)
    return rms_estimate(distance, weight).value or None


def _cycle(facts: _Facts) -> list[Row]:
    found = rms_estimate((facts.z_again - facts.base).flatten(1).norm(dim=1))
    spread = _spread(facts.base)
    relative = Estimate(found.value / spread, found.standard_error / spread, note=found.note)
    advice = "raise beta or train longer, and let the objective reconstruct latents drawn from the base too"
    if facts.flow.is_bijective:
        advice = "the inverse is numerically unstable: use float64, or a codec with bounded slopes"
    meaning = "root mean square of |z − encode(decode(z))| for z from the base, in parts of the latent spread"
    return [_row("cycle", relative, THRESHOLDS["cycle"].verdict(relative.value, 2 * relative.standard_error), meaning, advice)]


def _gap(facts: _Facts) -> list[Row]:
    flow, name = facts.flow, "encoder/decoder gap"
    meaning = "NLL with the encoder's volume minus NLL with the decoder's, in nats; 0 where they are inverses"
    advice = "raise beta (beta='auto' does so until they agree) and train longer: until then log_prob is no density"
    if flow.is_bijective:
        return [Row(name, None, None, "not applicable", meaning, "the log-determinant of a bijection is exact")]
    gap, verdict = facts.gap, _gap_verdict(facts)
    if flow.is_bottleneck:
        meaning += "; with a bottleneck only a bound"
        verdict = "doubtful" if verdict == "bad" and math.isfinite(gap.signed.value) else verdict
        advice = "look at reconstruction and cycle first: if they are good, the encoder is merely not the decoder's shortest inverse"
    return [_row(name, gap.signed, verdict, meaning, advice, f"mean |gap| of single rows {gap.absolute}")]


def _gap_verdict(facts: _Facts) -> Verdict:
    """Of the mean, and of single rows."""
    limit, gap, dim = THRESHOLDS["encoder/decoder gap"], facts.gap, facts.flow.dim
    mean = limit.verdict(abs(gap.signed.value) / dim, 2 * gap.signed.standard_error / dim)
    each = limit.verdict(gap.absolute.value / dim / 5, 2 * gap.absolute.standard_error / dim / 5)
    order: tuple[Verdict, ...] = ("good", "doubtful", "bad")
    return order[max(order.index(mean), order.index(each))]


def _jacobian(facts: _Facts) -> list[Row]:
    flow = facts.flow
    chosen = torch.randperm(len(facts.x), generator=torch.Generator().manual_seed(facts.seed))[:JACOBIAN_ROWS].to(facts.x.device)
    z, c = facts.z[chosen], transform(facts.embedded, lambda leaf: leaf[chosen])
    size = rows_per_chunk(flow.codec, flow.manifold, flow.latent_manifold, z, c)
    pieces = []
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        jacobian = decoder_jacobian(flow.codec, flow.manifold, flow.latent_manifold, z[rows], transform(c, lambda leaf: leaf[rows]))[1]  # noqa: B023
        pieces.append(torch.linalg.svdvals(jacobian.double()) if bool(torch.isfinite(jacobian).all()) else torch.full((1, flow.dim), math.nan))
    values = torch.cat([piece.cpu() for piece in pieces])
    smallest, ratio = values[:, -1], values[:, 0] / values[:, -1]
    typical = _spread(facts.x, facts.weight) / _spread(facts.base)
    shrunk = typical / float(smallest.min()) if float(smallest.min()) > 0 else math.inf
    advice = "where the data lie on a surface, add noise (noise=…) or lower the latent dimension; else raise beta"
    cure = f"{_standardising(flow)}add noise (noise=…) or lower the latent dimension; else evaluate in float64"
    return [
        Row(
            "smallest singular value",
            float(smallest.min()),
            None,
            THRESHOLDS["smallest singular value"].verdict(shrunk),
            f"of the decoder's Jacobian in tangent bases, over {len(values)} rows: how far it flattens space",
            advice,
            f"median {float(smallest.median()):.3g}; data spread / latent spread is {typical:.3g}",
        ),
        Row(
            "condition number",
            float(ratio.max()),
            None,
            THRESHOLDS["condition number"].verdict(float(ratio.max())),
            f"largest over smallest singular value, worst of {len(values)} rows",
            cure,
            f"median {float(ratio.median()):.3g}",
        ),
    ]


def _standardising(flow: Flow) -> str:
    """The advice to bring flat data to scale, for flows that do not do it themselves."""
    if any(wants_fit(part) for part in flow.codec.modules()):
        return ""
    if isinstance(flow.manifold, Euclidean):
        return "standardise the data (flows.free_form does), "
    flat = isinstance(flow.manifold, Product) and any(isinstance(factor, Euclidean) for factor in flow.manifold.factors)
    return "give the flat factors of the points a spread near 1, " if flat else ""


def _latent(facts: _Facts) -> list[Row]:
    advice = "train longer or with larger networks; separate clusters or heavy tails want another base (a mixture, StudentT)"
    distance, chance = kolmogorov_smirnov(facts.z, facts.base, weight=facts.weight, chance=CHANCE)
    marginals = Row(
        "latent marginals",
        distance,
        None,
        THRESHOLDS["latent marginals"].verdict(distance, chance),
        "largest Kolmogorov–Smirnov distance between a coordinate of encoded data and of base samples",
        advice,
        f"chance alone makes up to {chance:.2g}",
    )
    meaning = "accuracy of a classifier that tells encoded data from base samples; 0.5 if it cannot"
    return [marginals, _similarity_row("latents against base", facts.similarity(facts.base, facts.z), meaning, advice)]


def _similarity_row(name: str, score: tuple[Estimate, str] | None, meaning: str, advice: str) -> Row:
    if score is None:
        return Row(name, None, None, "not applicable", meaning, "negative weights: no classifier can be trained on them")
    accuracy, detail = score
    slack = 2 * accuracy.standard_error if math.isfinite(accuracy.standard_error) else 0.0
    threshold = THRESHOLDS["samples against data" if name.startswith("samples") else name]
    return _row(name, accuracy, threshold.verdict(accuracy.value, slack), meaning, advice, detail)


def _mass(facts: _Facts) -> list[Row]:
    name, meaning = "normalisation", "integral of exp(log_prob) over the space; 1 for a density"
    advice = "raise beta until encoder and decoder agree (beta='auto'): where they disagree, log_prob is not the density of the samples"
    curved = not isinstance(facts.flow.manifold, Euclidean)
    if curved and not facts.flow.is_bijective and not facts.flow.is_bottleneck and _gap_verdict(facts) == "good":
        also = ", uniform_reconstruction" if has_uniform(facts.flow.manifold) else ""
        advice = f"encoder and decoder agree on the data, but not elsewhere: add the terms x_projection, z_projection{also}, or train longer"
    if facts.flow.is_bijective:
        advice = "a bijection's density is exact: give the integral more points, or float64; if that does not help, a codec's ladj is wrong"
    n = len(facts.x)
    rows = [0, n // 3, 2 * n // 3]
    conditions = [None] if facts.c is None else [transform(facts.c, lambda leaf: leaf[row]) for row in rows]  # noqa: B023
    masses = [normalisation(facts.flow, c, x=facts.x if facts.c is None else None, seed=facts.seed) for c in conditions]
    found = [mass for mass in masses if mass is not None]
    if not found:
        why = "the density lives on the decoder's image" if facts.flow.is_bottleneck else f"on {facts.flow.manifold} there is no rule for it"
        return [Row(name, None, None, "not applicable", meaning, why)]
    worst = max(found, key=lambda mass: abs(mass.value - 1) - _chance(mass) if math.isfinite(mass.value) else math.inf)
    verdict = THRESHOLDS[name].verdict(abs(worst.value - 1), _chance(worst))
    if verdict == "good" and worst.standard_error > THRESHOLDS[name].good:
        verdict = "doubtful"
        advice = "the integral is not known well enough: call metrics.normalisation with more max_points"
        if worst.n is not None:
            advice = "the integral is not known well enough, because samples of the flow hardly tell where its density is: train longer"
    return [_row(name, worst, verdict, meaning, advice, f"worst of {len(found)} conditions" if facts.c is not None else "")]


def _chance(mass: Estimate) -> float:
    """How far an integral may be off: two standard errors of a sample, or the change between grids."""
    error = mass.standard_error if math.isfinite(mass.standard_error) else 0.0
    return error if mass.n is None else 2 * error


def _samples(facts: _Facts) -> list[Row]:
    advice = "look at samples beside data (fluvial report) for what differs; train longer, use a larger network, or more data"
    meaning = "accuracy of a classifier that tells samples from data; 0.5 if it cannot"
    row = _similarity_row("samples against data", facts.similarity(facts.samples, facts.x), meaning, advice)
    if not facts.flow.is_bottleneck:
        return [row]
    # Samples lie on the decoder's image, data beside it: a classifier sees that, which is no fault of the density.
    capped = "doubtful" if row.verdict == "bad" and row.value is not None and math.isfinite(row.value) else row.verdict
    reason = "samples lack what the bottleneck leaves out: raise the latent dimension if it matters, and judge the density by the reconstructions"
    data = Row(row.name, row.value, row.error, capped, meaning, reason, row.detail)
    meaning = "accuracy of a classifier that tells samples from reconstructed data, all on the decoder's image"
    rebuilt = facts.flow.reconstruct(facts.x, facts.c)
    return [data, _similarity_row("samples against reconstructions", facts.similarity(facts.samples, rebuilt), meaning, advice)]


SECTIONS: tuple[Callable[[_Facts], list[Row]], ...] = (_likelihood, _inversion, _jacobian, _latent, _mass, _samples)


class _Callable(ModuleType):
    """``fluvial.check`` names this module once it has been imported, and the function before: calling either is the same."""

    def __call__(self, flow: Flow, data: Any, *, samples: int = 10_000, seed: int = 0) -> Report:
        return check(flow, data, samples=samples, seed=seed)


sys.modules[__name__].__class__ = _Callable
