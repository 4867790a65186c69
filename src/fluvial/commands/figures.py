"""The figures of one run on its test rows, beside what they must beat."""

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fluvial
from fluvial.commands.weighed import of_energy
from fluvial.conditions import Condition, leaves
from fluvial.data import Dataset, Splits
from fluvial.manifolds import Euclidean, Sphere, Torus, has_uniform
from fluvial.metrics import (
    Estimate,
    c2st,
    kernel_density_nll,
    mean_estimate,
    normalisation,
    pca_gaussian,
    reconstruction,
)
from fluvial.metrics.likelihood import evaluating, float_of, gap_of, log_prob, placed, rms_estimate
from fluvial.recipes.exact_rows import energy_of, exact_rows, source_of
from fluvial.runs import Run

if TYPE_CHECKING:
    from fluvial.flow import Flow

Figures = dict[str, Any]
Placed = tuple[Tensor, Condition, Tensor | None]

CLASSIFIER_NUMBERS = 640_000  # rows × columns of each set of a two-sample test
KERNELS = 25_000
BANDWIDTH_ROWS = 2_000
KERNEL_DIM = 3
KERNEL_ANGLES = 8  # on tori, where no kernel is far from all points


def figures(run: Run, *, seed: int = 0, device: Any = None) -> Figures:
    """Everything that `fluvial evaluate` says about a run, ready for JSON.

    Args:
        run: A run folder with a model.
        seed: Of samples, classifiers and dequantisation.
        device: Where to compute.

    Returns:
        ``figures`` of the flow (named as in `fluvial.metrics.figures`, and more) and ``references`` of what stands beside it, each entry with
        value and standard error; and what they belong to: recipe, data, number of rows, seeds, published figures.
    """
    recipe = run.recipe()
    flow, objective = run.flow(device=device), recipe.objective()
    energy = energy_of(objective)
    splits = None if recipe.without_data else recipe.splits()
    # Without data the rows are exact samples of the energy, where there are such.
    test = splits.test if splits is not None else exact_rows(objective, seed=recipe.split_seed) if objective is not None else None
    weighed = None if energy is None else of_energy(flow, energy, None if test is None else test.c, source_of(objective), seed=seed)
    found: dict[str, Any] = {} if weighed is None else dict(weighed.figures)
    references: dict[str, dict[str, Estimate]] = {} if weighed is None or not weighed.exact else {"exact": weighed.exact}
    if test is not None:
        found |= _of_flow(flow, test, seed)
        log_prob_of_flow = found.pop("log_prob")
        if splits is not None:
            references |= _references(flow, splits, seed)
        if not flow.is_bottleneck and test.c is None:
            references |= _truth(flow, test, seed, log_prob_of_flow)
    return {
        "fluvial": fluvial.__version__,
        "recipe": recipe.name,
        "title": recipe.title,
        "note": recipe.note,
        "data": {
            "name": "" if test is None else test.name,
            "synthetic": test is None or test.synthetic,
            "citation": "" if test is None else test.citation,
            "manifold": str(flow.manifold),
            "rows": _rows(splits, test),
            "split_seed": recipe.split_seed,
        },
        "fit_seed": recipe.fit["seed"],
        "dim": flow.dim,
        "is_bottleneck": flow.is_bottleneck,
        "is_bijective": flow.is_bijective,
        "figures": {name: estimate.to_dict() for name, estimate in found.items()},
        "references": {of: {name: estimate.to_dict() for name, estimate in entries.items()} for of, entries in references.items()},
        "published": recipe.published,
        "warnings": [weighed.warning] if weighed is not None and weighed.warning else [],
    }


def _rows(splits: Splits | None, test: Dataset | None) -> dict[str, int]:
    if splits is not None:
        return {name: len(part) for name, part in zip(splits._fields, splits)}
    return {"train": 0, "validation": 0, "test": 0 if test is None else len(test)}


def _of_flow(flow: "Flow", test: Dataset, seed: int) -> dict[str, Any]:
    x, c, weight = placed(flow, test, seed=seed)
    decoder = log_prob(flow, x, c)
    found: dict[str, Any] = {"log_prob": decoder, "nll": mean_estimate(-decoder, weight)}
    if not flow.is_bijective:
        encoder = log_prob(flow, x, c, volume="encoder")
        gap = gap_of(encoder, decoder, weight)
        found |= {"nll_encoder": mean_estimate(-encoder, weight), "gap": gap.signed, "gap_rows": gap.absolute}
        if not flow.is_bottleneck and flow.dim <= KERNEL_DIM:
            found["nll_preimage"] = _at_preimage(flow, x, c, weight)
    distances = reconstruction(flow, x, c, weight=weight)
    found |= {"reconstruction": distances.rms, "reconstruction_mean": distances.mean}
    if weight is None or bool((weight >= 0).all()):
        generator = torch.Generator(float_of(flow).device).manual_seed(seed)
        with evaluating(flow):
            samples = flow.sample(len(x), generator=generator) if c is None else flow.sample((), c, generator=generator)
        found |= _similarity(samples, x, c, weight, seed) | _discrete_similarity(samples, test, c, weight, seed)
    if c is None:
        # The density of a bijection costs one pass, so that even a spiky one can be integrated to three digits.
        fineness = {"tolerance": 5e-4, "max_points": 2**21} if flow.is_bijective else {}
        integral = normalisation(flow, x=x if isinstance(flow.manifold, Euclidean) else None, seed=seed, **fineness)
        found |= {} if integral is None else {"normalisation": integral}
    return found


def _at_preimage(flow: "Flow", x: Tensor, c: Condition, weight: Tensor | None) -> Estimate:
    """The decoder's NLL at the rows themselves rather than at their reconstructions, over the rows whose preimage is found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the rows without a preimage are counted here
        exact = log_prob(flow, x, c, at="preimage")
    solved = torch.isfinite(exact)
    if not bool(solved.any()):
        return Estimate(math.nan, n=len(x), bad_rows=len(x), note="no row has a finite density at its preimage")
    estimate = mean_estimate(-exact[solved], None if weight is None else weight[solved])
    lost = int((~solved).sum())
    return replace(estimate, bad_rows=lost, note=f"{lost} of {len(x)} rows without a preimage are left out" if lost else "")


def _similarity(samples: Tensor, x: Tensor, c: Any, weight: Tensor | None, seed: int) -> dict[str, Estimate]:
    """Accuracy and AUC of a classifier between samples and data; nothing where there are too few rows, NaN where samples are not finite."""
    if len(x) < 20:
        return {}
    if not bool(torch.isfinite(samples).all()):
        return {"c2st": Estimate(math.nan, note="some samples are not finite")}
    columns = x[0].numel() + sum(leaf[0].numel() for leaf in leaves(c).values())
    rows = max(500, CLASSIFIER_NUMBERS // columns)
    score = c2st(samples, x, c=c, reference_c=c, reference_weight=weight, max_rows=rows, seed=seed)
    return {"c2st": score.accuracy, "c2st_auc": score.auc}


def _discrete_similarity(samples: Tensor, test: Dataset, c: Any, weight: Tensor | None, seed: int) -> dict[str, Estimate]:
    """The same after samples of dequantised data have gone back to the steps and the range of the data."""
    if test.spec.dequantize is None:
        return {}
    raw = test.x.to(samples)
    rounded = test.spec.quantize(samples).clamp(raw.amin(), raw.amax())
    return {f"{name}_rounded": estimate for name, estimate in _similarity(rounded, raw, c, weight, seed).items()}


def _truth(flow: "Flow", test: Dataset, seed: int, log_prob_of_flow: Tensor) -> dict[str, dict[str, Estimate]]:
    """Figures of the true density on the same rows, where it is known."""
    truth: Any = test.truth
    if truth is None:
        return {}
    x, _, weight = placed(flow, test, seed=seed)
    true = truth.log_prob(x.cpu()).double()
    # The excess is taken row by row, so that the chance in the choice of rows cancels.
    found = {"nll": mean_estimate(-true, weight), "excess": mean_estimate(true - log_prob_of_flow.cpu().double(), weight)}
    return {"truth": found | ({"entropy": Estimate(*truth.entropy())} if hasattr(truth, "entropy") else {})}


def _references(flow: "Flow", splits: Splits, seed: int) -> dict[str, dict[str, Estimate]]:
    """Figures of simpler models on the same rows."""
    train, held_out, test = (placed(flow, part, seed=seed) for part in splits)
    x, c, weight = test
    found: dict[str, dict[str, Estimate]] = {}
    if c is not None:
        return found
    positive = all(part is None or bool((part >= 0).all()) for _, _, part in (train, held_out, test))
    if flow.is_bottleneck:
        if positive and isinstance(flow.manifold, Euclidean) and flow.dim <= min(train[0].flatten(1).shape):
            found["pca"] = _of_pca(train[0], train[2], x, weight, flow.dim, splits.test, seed)
        return found
    if has_uniform(flow.manifold):
        found["uniform"] = {"nll": Estimate(math.log(flow.manifold.total_volume), 0.0)}
    kernels = isinstance(flow.manifold, Euclidean | Sphere) and flow.manifold.dim <= KERNEL_DIM
    if positive and (kernels or (isinstance(flow.manifold, Torus) and flow.manifold.dim <= KERNEL_ANGLES)):
        found["kernel_density"] = {"nll": _of_kernels(flow.manifold, train, held_out, test)}
    return found


def _of_kernels(manifold: Any, train: Placed, held_out: Placed, test: Placed) -> Estimate:
    """A kernel density estimate, on so many rows that it takes seconds."""
    points, widths = slice(KERNELS), slice(BANDWIDTH_ROWS)
    estimate, bandwidth = kernel_density_nll(
        train[0][points],
        held_out[0][widths],
        test[0],
        manifold,
        weight=None if train[2] is None else train[2][points],
        validation_weight=None if held_out[2] is None else held_out[2][widths],
        test_weight=test[2],
    )
    what = f"width {bandwidth:.3g} standard deviations" if isinstance(manifold, Euclidean) else f"κ = {bandwidth:g}"
    note = "; ".join(filter(None, (f"{what}, on {min(len(train[0]), KERNELS)} training rows", estimate.note)))
    return Estimate(estimate.value, estimate.standard_error, estimate.n, estimate.bad_rows, note)


def _of_pca(train: Tensor, train_weight: Tensor | None, x: Tensor, weight: Tensor | None, d: int, test: Dataset, seed: int) -> dict[str, Estimate]:
    """Principal components of the same dimension, and samples of the Gaussian of their coordinates."""
    pca = pca_gaussian(train, d, weight=train_weight)
    distance = (x - pca.reconstruct(x)).flatten(1).norm(dim=1)
    samples = pca.sample(len(x), generator=torch.Generator(x.device).manual_seed(seed))
    return {
        "reconstruction": rms_estimate(distance, weight),
        "reconstruction_mean": mean_estimate(distance, weight),
        **_similarity(samples, x, None, weight, seed),
        **_discrete_similarity(samples, test, None, weight, seed),
    }
