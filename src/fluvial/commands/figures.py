"""The figures of one run on its test rows, beside what they must beat."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fluvial
from fluvial.commands.references import classes_of, of_truth, references
from fluvial.commands.similarity import discrete_similarity, similarity
from fluvial.commands.weighed import of_energy
from fluvial.conditions import Condition, transform
from fluvial.data import Dataset, Splits
from fluvial.manifolds import Euclidean
from fluvial.metrics import Estimate, mean_estimate, normalisation, reconstruction
from fluvial.metrics.likelihood import evaluating, float_of, gap_of, log_prob, placed
from fluvial.metrics.truth import takes_condition
from fluvial.recipes.exact_rows import energy_of, exact_rows, source_of
from fluvial.runs import Run

if TYPE_CHECKING:
    from fluvial.flow import Flow

Figures = dict[str, Any]

PREIMAGE_DIM = 3
PREIMAGE_ROWS = 20_000
# Fresh rows must not be the ones that were drawn to be trained on, whose seeds are small numbers.
FRESH_SEED = 0x5EED0000


def figures(run: Run, *, seed: int = 0, device: Any = None, fresh: int | None = None) -> Figures:
    """Everything that `fluvial evaluate` says about a run, ready for JSON.

    Args:
        run: A run folder with a model.
        seed: Of samples, classifiers and dequantisation.
        device: Where to compute.
        fresh: In place of the test rows, so many new ones drawn from the true density.

    Returns:
        ``figures`` of the flow (named as in `fluvial.metrics.figures`, and more) and ``references`` of what stands beside it, each entry with
        value and standard error; ``by_class``, the same for single classes of a condition; and what they belong to: recipe, data, number of
        rows, seeds, published figures.

    Raises:
        ValueError: If fresh rows are asked for and the true density is not known or cannot be sampled.
        FileNotFoundError: If the data are not there.
    """
    recipe = run.recipe()
    flow, objective = run.flow(device=device), recipe.objective()
    energy = energy_of(objective)
    splits = None if recipe.without_data else recipe.splits()
    if fresh is not None:
        if splits is None:
            raise ValueError(f"evaluate: --fresh draws from the true density of data, and {recipe.name} has none; its test rows are drawn already")
        splits = splits._replace(test=fresh_rows(splits.test, fresh, seed=seed))
    # Without data the rows are exact samples of the energy, where there are such.
    test = splits.test if splits is not None else exact_rows(objective, seed=recipe.split_seed) if objective is not None else None
    weighed = None if energy is None else of_energy(flow, energy, None if test is None else test.c, source_of(objective), seed=seed)
    found: dict[str, Any] = {} if weighed is None else dict(weighed.figures)
    beside: dict[str, dict[str, Estimate]] = {} if weighed is None or not weighed.exact else {"exact": weighed.exact}
    by_class: dict[str, Any] = {}
    if test is not None:
        of_flow, log_p, samples = _of_flow(flow, test, seed)
        found |= of_flow
        kernels = None
        classes = [classes_of(part.c) for part in splits] if splits is not None else [None]
        if splits is not None:
            simpler, kernels = references(flow, splits, seed, classes)
            beside |= simpler
        if not flow.is_bottleneck:
            beside |= of_truth(flow, test, seed, log_p)
        if classes[-1] is not None:
            by_class = _by_class(flow, test, classes[-1], log_p, kernels, samples, seed)
    return {
        "fluvial": fluvial.__version__,
        "recipe": recipe.name,
        "title": recipe.title,
        "note": recipe.note,
        "data": {
            "name": "" if test is None else test.name,
            "synthetic": test is None or test.synthetic,
            "fresh": fresh is not None,
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
        "references": {of: {name: estimate.to_dict() for name, estimate in entries.items()} for of, entries in beside.items()},
        "by_class": by_class,
        "published": recipe.published,
        "warnings": [weighed.warning] if weighed is not None and weighed.warning else [],
    }


def _rows(splits: Splits | None, test: Dataset | None) -> dict[str, int]:
    if splits is not None:
        return {name: len(part) for name, part in zip(splits._fields, splits)}
    return {"train": 0, "validation": 0, "test": 0 if test is None else len(test)}


def fresh_rows(test: Dataset, n: int, *, seed: int = 0) -> Dataset:
    """New rows of synthetic data, drawn from their true density, in place of test rows.

    A conditional truth draws its conditions by ``sample_condition`` where it has that, otherwise they are those of the test rows, drawn again.

    Raises:
        ValueError: If the true density is not known or cannot be sampled.
    """
    truth: Any = test.truth
    draws = getattr(truth, "sample", None)
    if draws is None or (test.c is not None and not takes_condition(draws)):
        what = "is not known" if truth is None else "cannot be sampled"
        raise ValueError(f"evaluate: --fresh needs data whose true density can be sampled; that of {test.name or 'these data'} {what}")
    generator = torch.Generator().manual_seed(FRESH_SEED + seed)
    if test.c is None:
        x, c = draws(n, generator=generator), None
    else:
        if hasattr(truth, "sample_condition"):
            c = truth.sample_condition(n, generator=generator)
        else:
            c = test[torch.randint(len(test), (n,), generator=generator)].c
        x = draws(c=c, generator=generator)
    return Dataset(x, c, spec=test.spec, truth=truth, name=test.name, citation=test.citation, licence=test.licence, synthetic=test.synthetic)


def _of_flow(flow: "Flow", test: Dataset, seed: int) -> tuple[dict[str, Estimate], Tensor, Tensor | None]:
    """Figures of the flow, its log-densities of the rows, and the samples that were compared with them."""
    x, c, weight = placed(flow, test, seed=seed)
    decoder = log_prob(flow, x, c)
    found = {"nll": mean_estimate(-decoder, weight)}
    if not flow.is_bijective:
        encoder = log_prob(flow, x, c, volume="encoder")
        gap = gap_of(encoder, decoder, weight)
        found |= {"nll_encoder": mean_estimate(-encoder, weight), "gap": gap.signed, "gap_rows": gap.absolute}
        if not flow.is_bottleneck and flow.dim <= PREIMAGE_DIM:
            few = slice(PREIMAGE_ROWS)
            found["nll_preimage"] = _at_preimage(flow, x[few], transform(c, lambda leaf: leaf[few]), None if weight is None else weight[few])
    distances = reconstruction(flow, x, c, weight=weight)
    found |= {"reconstruction": distances.rms, "reconstruction_mean": distances.mean}
    samples = None
    if weight is None or bool((weight >= 0).all()):
        generator = torch.Generator(float_of(flow).device).manual_seed(seed)
        with evaluating(flow):
            samples = flow.sample(len(x), generator=generator) if c is None else flow.sample((), c, generator=generator)
        found |= similarity(samples, x, c, weight, seed) | discrete_similarity(samples, test, c, weight, seed)
    if c is None:
        # The density of a bijection costs one pass, so that even a spiky one can be integrated to three digits.
        fineness = {"tolerance": 5e-4, "max_points": 2**21} if flow.is_bijective else {}
        integral = normalisation(flow, x=x if isinstance(flow.manifold, Euclidean) else None, seed=seed, **fineness)
        found |= {} if integral is None else {"normalisation": integral}
    return found, decoder, samples


def _by_class(
    flow: "Flow", test: Dataset, classes: Tensor, log_p: Tensor, kernels: Tensor | None, samples: Tensor | None, seed: int
) -> dict[str, dict[str, Any]]:
    """NLL of the flow and of kernels, and how samples can be told from data, for every class alone."""
    x, _, weight = placed(flow, test, seed=seed)
    names: Sequence[str] = test.spec.condition_names or [f"class {k}" for k in range(int(classes.max()) + 1)]
    found = {}
    for k in classes.unique().tolist():
        rows = (classes == k).nonzero().squeeze(1)
        own = None if weight is None else weight[rows.to(weight.device)]
        entries = {"rows": Estimate(float(len(rows))), "nll": mean_estimate(-log_p[rows.to(log_p.device)], own)}
        if kernels is not None:
            entries["kernel_density"] = mean_estimate(-kernels[rows], own)
        if samples is not None:
            entries |= similarity(samples[rows.to(x.device)], x[rows.to(x.device)], None, own, seed)
        found[names[k]] = {name: estimate.to_dict() for name, estimate in entries.items()}
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
