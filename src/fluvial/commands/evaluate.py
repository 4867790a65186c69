"""fluvial evaluate: the test figures of one run, or of several seeds."""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from fluvial.commands.arguments import add_device, add_run, command, count
from fluvial.recipes import NOT_PUBLISHED, published
from fluvial.runs import Run

# Figure, what it is, and whose figure of the same name stands beside it.
ROWS = (
    ("ess", "effective samples, share", ("exact",)),
    ("ess_forward", "effective samples, by exact samples", ()),
    ("log_z", "log Z", ("exact",)),
    ("log_z_error", "|log Z − exact|, mean over conditions", ()),
    ("coverage", "share of the mass covered", ()),
    ("reverse_kl", "KL(flow ‖ energy), nats", ()),
    ("forward_kl", "KL(energy ‖ flow), nats", ()),
    ("pareto_k", "tail of the weights, Pareto k", ()),
    ("nll", "test NLL{decoder}, nats", ("truth", "uniform", "kernel_density")),
    ("nll_encoder", "test NLL (encoder), nats", ()),
    ("nll_preimage", "test NLL (decoder, at the preimage)", ()),
    ("gap", "encoder − decoder, nats", ()),
    ("reconstruction_mean", "reconstruction, mean distance", ("pca",)),
    ("reconstruction", "reconstruction, root mean square", ("pca",)),
    ("c2st", "C2ST accuracy of samples", ("pca",)),
    ("c2st_auc", "C2ST area under the curve", ("pca",)),
    ("c2st_rounded", "C2ST accuracy, rounded to the data's steps", ("pca",)),
    ("c2st_auc_rounded", "C2ST area under the curve, rounded", ("pca",)),
    ("normalisation", "integral of the density", ()),
)
EXCESS = "  above the true density"
REFERENCES = {"exact": "exact", "truth": "true density", "uniform": "uniform", "kernel_density": "kernel density", "pca": "PCA + Gaussian"}
IDEAL = {
    "ess": "1",
    "ess_forward": "1",
    "coverage": "1",
    "pareto_k": "below 0.7",
    "c2st": "0.5: cannot be told from data",
    "c2st_auc": "0.5",
    "c2st_rounded": "0.5",
    "c2st_auc_rounded": "0.5",
    "normalisation": "1",
}
BY_CLASS = {"rows": "rows", "nll": "test NLL{decoder}", "kernel_density": "kernel density", "c2st": "C2ST accuracy", "c2st_auc": "C2ST area"}
SAME = ("data", "split", "flow", "gaussianize", "objective")


def add(parsers: Any) -> None:
    """Declare the command."""
    parser = command(
        parsers,
        "evaluate",
        summary="test figures with errors, beside baselines and published figures",
        description="""\
Compute the figures of a run on the test rows, which training never saw: negative log-likelihood of the decoder (the density that
sample draws from) and of the encoder, reconstruction error, a classifier two-sample test (C2ST) of samples, the integral of the
density; beside them the uniform density, a kernel density estimate on the same split, the true density of synthetic data, and
PCA of the same dimension for bottlenecks. Where the condition is one of few classes, also class by class. For a flow trained on an energy:
effective samples, log Z and divergences by importance weights, and the test rows are exact samples of the energy, where there are such.
Errors (±) are one standard error over the test rows.

Writes metrics.json into the run folder. With several runs of one recipe (other fit.seed) it also gives mean ± standard deviation; of several
recipes, those whose run or data are missing are named as not run.""",
        examples="  fluvial evaluate airports-quick\n  fluvial evaluate runs/moons/1 runs/moons/2 runs/moons/3 --json\n"
        "  fluvial evaluate moons --fresh 50_000       new rows of the true density in place of the test rows",
    )
    add_run(parser, several=True)
    parser.add_argument("--seed", type=int, default=0, help="of samples, classifiers and dequantisation; default 0")
    parser.add_argument("--fresh", metavar="N", type=count, help="synthetic data: N new rows of the true density in place of the test rows")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate."""
    from fluvial.commands.figures import figures
    from fluvial.commands.results import departures
    from fluvial.training.settings import training_device

    runs, not_run = _find(arguments.runs)
    studies = [place for place in runs if place.recipe().is_study]
    if studies:
        return _tables(studies, runs, arguments)
    recipes = _by_recipe(runs)
    device = training_device(arguments.device, "32")
    found: dict[str, list[dict[str, Any]]] = {}
    for recipe, places in recipes.items():
        for place in places:
            try:
                entries = figures(place, seed=arguments.seed, device=device, fresh=arguments.fresh)
            except FileNotFoundError as error:
                if len(runs) + len(not_run) == 1:
                    raise
                not_run[str(place.path)] = str(error)
                continue
            place.write("metrics.json", entries)
            found.setdefault(recipe, []).append(entries | {"path": str(place.path)})
            if not arguments.json:
                print(f"{place.path}\n{table(entries, departures(place, entries['recipe']))}\n", flush=True)
        if not arguments.json and len(found.get(recipe, ())) > 1:
            print(_table_together(found[recipe], summary(found[recipe])) + ("\n" if len(recipes) > 1 else ""), flush=True)
    if arguments.json:
        print(json.dumps(_as_json(found, not_run), indent=2, ensure_ascii=False, allow_nan=False))
    for name, reason in {} if arguments.json else not_run.items():
        print(f"{name}\n  not run: {reason}")
    return 0 if found else 2


def _tables(studies: Sequence[Run], runs: Sequence[Run], arguments: argparse.Namespace) -> int:
    """What studies have found."""
    if len(studies) < len(runs):
        raise ValueError(f"evaluate: {studies[0].path} is a study, which has a table and no flow; evaluate it by itself")
    results = {str(place.path): place.recipe().study().read(place.path) for place in studies}
    if arguments.json:
        print(json.dumps({path: result.to_dict() for path, result in results.items()}, indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    for path, result in results.items():
        print(f"{path}\n{result}\n")
    return 0


def _find(names: Sequence[str]) -> tuple[list[Run], dict[str, str]]:
    """The runs of the names, and why some have none; of a single name that is an error."""
    runs, not_run = [], {}
    for name in names:
        try:
            runs.append(Run.find(name))
        except FileNotFoundError as error:
            if len(names) == 1:
                raise
            not_run[name] = str(error)
    return runs, not_run


def _as_json(found: dict[str, list[dict[str, Any]]], not_run: dict[str, str]) -> dict[str, Any]:
    """The figures of a single run as they are; of several by folder, with their means: of one recipe at once, of several by recipe."""
    every = [entries for runs in found.values() for entries in runs]
    bare = {entries["path"]: {key: value for key, value in entries.items() if key != "path"} for entries in every}
    if len(bare) == 1 and not not_run:
        return next(iter(bare.values()))
    means = {recipe: summary(runs) for recipe, runs in found.items() if len(runs) > 1}
    together: dict[str, Any] = means if len(found) != 1 else next(iter(means.values()), {})
    return {"runs": bare, "together": together} | ({"not_run": not_run} if not_run else {})


def table(entries: dict[str, Any], differences: Sequence[str] = ()) -> str:
    """The figures of one run as text.

    Args:
        entries: What is written to ``metrics.json``.
        differences: How the run departs from the packaged recipe. The recipe's note, which is about the run as packaged, is then left out.
    """
    references = entries["references"]
    lines = [
        f"{entries['recipe']}: {entries['title']}",
        f"{_where(entries)} · fit seed {entries['fit_seed']}",
    ]
    cells = []
    for name, label, beside in ROWS:
        if name not in entries["figures"]:
            continue
        notes = [f"{REFERENCES[of]} {_text(references[of][name])}" for of in beside if name in references.get(of, {})]
        notes += [f"ideal {IDEAL[name]}"] if name in IDEAL else []
        cells.append((_label(label, entries), _text(entries["figures"][name]), " · ".join(notes)))
        if name == "nll" and "truth" in references:
            truth = references["truth"]
            entropy = f"; its entropy is {_text(truth['entropy'])}" if "entropy" in truth else ""
            cells.append((EXCESS, _text(truth["excess"]), f"row by row{entropy}"))
    first, second = (max(len(cell[k]) for cell in cells) for k in (0, 1))
    lines += [f"  {label:<{first}}  {value:<{second}}  {note}".rstrip() for label, value, note in cells]
    lines += _table_by_class(entries)
    lines += [f"  {name}: {entry['note']}" for name, entry in entries["figures"].items() if entry.get("bad_rows")]
    lines += [f"  warning: {text}" for text in entries.get("warnings", [])]
    if entries["is_bottleneck"]:
        lines.append(f"  The density is that on the image of the decoder, of dimension {entries['dim']}: comparable only with the same dimension.")
    lines.append(f"  published: {'; '.join(map(published, entries['published'])) or NOT_PUBLISHED}")
    if differences:
        from fluvial.commands.results import not_as_packaged

        lines.append(f"  {not_as_packaged(differences)}")
    elif entries["note"]:
        lines.append(f"  note: {entries['note']}")
    return "\n".join(lines)


def _table_by_class(entries: dict[str, Any]) -> list[str]:
    """The lines about single classes of the condition."""
    found = entries.get("by_class") or {}
    if not found:
        return []
    columns = [(name, label) for name, label in BY_CLASS.items() if any(name in of_class for of_class in found.values())]
    cells = [["by class", *(_label(label, entries) for _, label in columns)]]
    cells += [[name, *(_text(of_class[key]) if key in of_class else "–" for key, _ in columns)] for name, of_class in found.items()]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]


def _where(entries: dict[str, Any]) -> str:
    """Which rows the figures belong to."""
    data, rows = entries["data"], entries["data"]["rows"]
    if rows["train"]:
        return (
            f"{data['name'] or 'data'}{', synthetic' if data['synthetic'] else ''} on {data['manifold']}: {rows['test']} "
            f"{'fresh rows of the true density' if data.get('fresh') else 'test rows'} "
            f"({rows['train']} training, {rows['validation']} validation) · split seed {data['split_seed']}"
        )
    beside = f"beside {rows['test']} {data['name']}" if rows["test"] else "its energy cannot be sampled exactly, so no NLL and no C2ST"
    return f"trained without data on {data['manifold']}; {beside}"


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over runs of every figure that all of them have, the excess over the true NLL among them.

    Example:
        >>> runs = [{"figures": {"nll": {"value": value}}, "references": {}} for value in (1.0, 2.0, 3.0)]
        >>> summary(runs)["nll"]
        {'mean': 2.0, 'standard_deviation': 1.0, 'runs': 3}
    """
    sections = [entries["figures"] | {"excess": entries["references"].get("truth", {}).get("excess", {"value": None})} for entries in found]
    means = {}
    for name in sections[0]:
        values = [section[name]["value"] for section in sections if name in section]
        if len(values) == len(sections) and None not in values:
            means[name] = {"mean": statistics.fmean(values), "standard_deviation": statistics.stdev(values), "runs": len(values)}
    return means


def _table_together(found: Sequence[dict[str, Any]], together: dict[str, Any]) -> str:
    seeds = ", ".join(str(entries["fit_seed"]) for entries in found)
    lines = [f"{found[0]['recipe']}: mean ± standard deviation over {len(found)} runs, fit seeds {seeds}"]
    rows = [(name, _label(label, found[0])) for name, label, _ in ROWS]
    rows.insert(1, ("excess", EXCESS))
    width = max(len(label) for _, label in rows)
    for name, label in rows:
        if name in together:
            lines.append(f"  {label:<{width}}  {_number(together[name]['mean'], together[name]['standard_deviation'])}")
    return "\n".join(lines)


def _by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by the name of their recipe. Those of one recipe, which are averaged, differ in how they were trained at most.

    Raises:
        ValueError: Naming what differs.
    """
    if len({place.path.resolve() for place in runs}) < len(runs):
        raise ValueError("evaluate: a run is given twice")
    recipes = [place.recipe() for place in runs] if len(runs) > 1 else []
    first: dict[str, tuple[Run, Any]] = {}
    for place, recipe in zip(runs, recipes):
        other, its_recipe = first.setdefault(recipe.name, (place, recipe))
        for section in SAME:
            if recipe.section(section) != its_recipe.section(section):
                raise ValueError(
                    f"evaluate: {place.path} has another {section} than {other.path}, so there is no mean of the two; evaluate them one by one"
                )
    groups: dict[str, list[Run]] = {}
    for k, place in enumerate(runs):
        groups.setdefault(recipes[k].name if recipes else "", []).append(place)
    return groups


def _label(label: str, entries: dict[str, Any]) -> str:
    return label.format(decoder="" if entries["is_bijective"] else " (decoder)")


def _text(entry: dict[str, Any]) -> str:
    value, error = entry["value"], entry.get("standard_error")
    return "not finite" if value is None else _number(value, math.nan if error is None else error)


def _number(value: float, error: float) -> str:
    from fluvial.metrics.estimate import Estimate

    # An error far below the digits anyone reads only lengthens the line.
    return f"{value:.5g}" if error < 1e-5 * abs(value) else str(Estimate(value, error))
