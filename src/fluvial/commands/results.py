"""What was published and what runs have reached, side by side."""

import math
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fluvial.metrics.estimate import Estimate
from fluvial.recipes import locate, names
from fluvial.recipes.recipe import Recipe
from fluvial.runs import ROOT, Run

FOLDERS = (ROOT, Path("benchmarks/results"))
HEAD = ("recipe", "figure", "published", "ours", "kernel density", "truth")
WIDTH = 118
# A published figure is the flow's figure of this name where these letters are in its own.
FIGURES = {"nll": "nll", "c2st": "c2st"}
# Of a recipe, what a result depends on, and entries of it that only say where and how comfortably it was made.
SECTIONS = ("flow", "gaussianize", "data", "objective", "split", "fit")
INDIFFERENT = (
    *(f"fit.{name}" for name in ("seed", "device", "progress", "checkpoint_every", "compile")),
    *("gaussianize.device", "memory", "scratch", "threads", "root", "path", "cache"),
)
DIFFERENCES = 3
_FILE = re.compile(r"FLUVIAL_DATA .*to a folder with (\S+)")


@dataclass
class Result:
    """Runs of a recipe that differ in the seed of training only.

    Attributes:
        recipe: Its name.
        differences: How they depart from the packaged recipe, such as "fit.max_time 60".
        runs: What `fluvial evaluate` wrote, by that seed.
    """

    recipe: str
    differences: tuple[str, ...] = ()
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)


def table(folders: Sequence[Path]) -> str:
    """Every published figure of a packaged recipe, or of a recipe among the runs, with what the runs in the folders reached.

    Args:
        folders: Where ``metrics.json`` files are looked for, each beside the ``recipe.yaml`` of its run. Where runs in several folders
            have one recipe and seed, those of the first folder count, and of these the one with the highest number.

    Returns:
        A table. ± is the standard deviation over the runs, or for a single one the standard error over its test rows.
    """
    packaged = {name: yaml.safe_load(locate(name)[1]) for name in names()}
    results = collect(folders)
    rows: list[tuple[str, ...]] = [HEAD]
    notes: list[list[str]] = [[]]
    lacking: dict[str, list[str]] = {}
    for name in [*packaged, *sorted({result.recipe for result in results} - packaged.keys())]:
        own = [result for result in results if result.recipe == name]
        entry = packaged.get(name) or next(iter(own[0].runs.values()))
        for published in entry.get("published") or []:
            for result in own or [Result(name)]:
                rows.append(_row(result, published))
                below, missing = _notes(result)
                notes.append(below)
                if missing:
                    lacking.setdefault(missing, []).append(name)
    if len(rows) == 1:
        return "no recipe has a published figure"
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row, below in zip(rows, notes):
        lines.append("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
        lines += [f"    {piece}" for note in below for piece in textwrap.wrap(note, WIDTH)]
    lines += [piece for text in _lacking(lacking) for piece in ("", *textwrap.wrap(text, WIDTH, break_on_hyphens=False))]
    return "\n".join([*lines, "", f"± over runs (or over the test rows of a single one); runs in {', '.join(map(str, folders))}"])


def collect(folders: Sequence[Path]) -> list[Result]:
    """The runs in the folders that have been evaluated, put together by recipe and settings."""
    found: dict[tuple[str, tuple[str, ...]], Result] = {}
    for folder in folders:
        there: dict[tuple[str, tuple[str, ...]], Result] = {}
        for run in _runs(folder):
            entries = run.read("metrics.json", fits=_fits)
            if entries is None or not (run.path / "recipe.yaml").is_file():
                continue
            name = entries["recipe"]
            differences = departures(run, name)
            differences += ("fresh rows",) if entries["data"].get("fresh") else ()
            there.setdefault((name, differences), Result(name, differences)).runs[entries["fit_seed"]] = entries
        for key, result in there.items():
            result.runs |= found[key].runs if key in found else {}
            found[key] = result
    return [found[key] for key in sorted(found)]


def departures(run: Run, recipe: str) -> tuple[str, ...]:
    """How the settings of a run depart from those of the packaged recipe, such as "fit.max_time 60"; () where none has that name."""
    return _differences(_flat(yaml.safe_load((run.path / "recipe.yaml").read_text(encoding="utf-8"))), _packaged(recipe))


@cache
def _packaged(recipe: str) -> dict[str, Any]:
    return _flat(yaml.safe_load(Recipe.parse(*locate(recipe)).to_yaml())) if recipe in names() else {}


def not_as_packaged(differences: Sequence[str]) -> str:
    """The first few differences in words.

    Example:
        >>> not_as_packaged(["fit.max_time 60", "fit.patience 3", "flow.width 64", "split.seed 1"])
        'not as packaged: fit.max_time 60, fit.patience 3, flow.width 64 and 1 more'
    """
    more = len(differences) - DIFFERENCES
    return f"not as packaged: {', '.join(differences[:DIFFERENCES])}" + (f" and {more} more" if more > 0 else "")


def _runs(folder: Path) -> Iterator[Run]:
    """Run folders in order of their numbers."""
    paths = [path.parent for path in folder.rglob("metrics.json")] if folder.is_dir() else []
    return (Run(path) for path in sorted(paths, key=lambda path: (path.parent, int(path.name) if path.name.isdecimal() else -1, path.name)))


def _fits(found: dict[str, Any]) -> bool:
    kinds = {"recipe": str, "fit_seed": int, "figures": dict, "references": dict, "data": dict}
    return all(isinstance(found.get(key), kind) for key, kind in kinds.items())


def _row(result: Result, published: dict[str, Any]) -> tuple[str, ...]:
    figure = next((ours for letters, ours in FIGURES.items() if letters in published["figure"].lower()), None)
    runs = [result.runs[seed] for seed in sorted(result.runs)]
    count = "" if not runs else f" ({len(runs)} runs)" if len(runs) > 1 else " (1 run)"
    ours = "not run" if not runs else _mean([entries["figures"].get(figure) for entries in runs]) + count
    beside = [_mean([entries["references"].get(of, {}).get(figure) for entries in runs]) if runs else "" for of in ("kernel_density", "truth")]
    kind = ", synthetic" if runs and runs[0]["data"].get("synthetic") else ""
    return (result.recipe, published["figure"] + kind, f"{published['value']:g}", ours, *beside)


def _notes(result: Result) -> tuple[list[str], str | None]:
    """What stands below a row, and what its data lack, which is said once for all recipes."""
    if result.runs:
        return ([not_as_packaged(result.differences)] if result.differences else []), None
    missing = Recipe.parse(*locate(result.recipe)).missing_data()
    return ([f"fluvial fit {result.recipe}"] if missing is None else []), missing


def _lacking(recipes: dict[str, list[str]]) -> list[str]:
    """Why recipes were not run, each reason once: the files of the folder of data together, anything else as it was said."""
    files: dict[str, None] = {}
    others = []
    for reason, concerned in recipes.items():
        if found := _FILE.search(reason):
            files[found[1]] = None
        else:
            others.append(f"not run ({', '.join(dict.fromkeys(concerned))}): {reason}")
    together = f"not run for want of data: set the environment variable FLUVIAL_DATA to a folder with {', '.join(files)}"
    return ([f"{together}; fluvial fit RECIPE says where to get them"] if files else []) + others


def _mean(figures: Sequence[dict[str, Any] | None]) -> str:
    """Mean and standard deviation of one figure of several runs; of one run, the figure and its standard error."""
    if any(figure is None for figure in figures):
        return "–"
    values = [figure["value"] for figure in figures if figure is not None]
    if None in values:
        return "not finite"
    if len(values) == 1:
        error = figures[0].get("standard_error") if figures[0] is not None else None
        return _text(values[0], math.nan if error is None else error)
    return _text(statistics.fmean(values), statistics.stdev(values))


def _text(value: float, error: float) -> str:
    # An error far below the digits anyone reads only lengthens the line.
    return f"{value:.4g}" if not error > 1e-4 * abs(value) else str(Estimate(value, error))


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    """Dotted keys and values of what a result depends on, class paths and their arguments on one level."""
    if not at:
        tree = {key: tree.get(key) for key in SECTIONS} if isinstance(tree, dict) else {}
    if not isinstance(tree, dict):
        return {at: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, at if key == "init_args" and at else f"{at}.{key}" if at else str(key))
    return flat


def _differences(ours: dict[str, Any], packaged: dict[str, Any]) -> tuple[str, ...]:
    """What is set otherwise, in entries that both have; entries that only one knows come from another version or another class."""
    changed = [key for key in ours.keys() & packaged.keys() if ours[key] != packaged[key] and not _is_indifferent(key)]
    return tuple(f"{key.removesuffix('.class_path')} {ours[key]}" for key in sorted(changed))


def _is_indifferent(key: str) -> bool:
    return key in INDIFFERENT or key.rpartition(".")[2] in INDIFFERENT
