"""fluvial fit: train by a recipe."""

import argparse
import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.commands.arguments import command
from fluvial.commands.layers import fit_layers
from fluvial.files import write_atomic
from fluvial.recipes import locate
from fluvial.runs import FILES, LAYERS, Run, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fluvial.data import Splits
    from fluvial.recipes.recipe import Recipe
    from fluvial.training import History

_OVERRIDE = re.compile(r"--(title|note|published|flow|gaussianize|study|data|objective|fit|split)([.=+].*)?")
# A resumed run is the same run; these may change all the same.
_FREE_ON_RESUME = (
    *(f"fit.{name}" for name in ("max_epochs", "max_steps", "max_time", "checkpoint_every", "device", "progress")),
    *(f"gaussianize.{name}" for name in ("max_layers", "patience", "min_gain", "memory", "scratch", "threads", "device")),
)
_INTERRUPTED = 130


def add(parsers: Any) -> None:
    """Declare the command."""
    parser = command(
        parsers,
        "fit",
        summary="train a flow by a recipe",
        description="""\
Train a flow by a packaged recipe (see: fluvial recipes) or a YAML file with the same keys: title, note, published, flow,
data, objective, fit, split. In place of flow there may be gaussianize: layers that are fitted one after the other, without a gradient,
and trained further where fit says how long (max_steps, max_epochs, max_time). Every value can be changed from here, by its path in the YAML:

  --fit.max_epochs 20   --fit.seed 1   --flow.init_args.width 128   --data.init_args.noise 0.01   --objective.init_args.beta 10
  (init_args may be left out: --flow.width 128)

--show prints all there are; python -m pydoc explains what is named there, for instance: python -m pydoc fluvial.flows.free_form

Writes a run folder, runs/RECIPE/1, runs/RECIPE/2, … or the one given by -o:
  recipe.yaml        all that was run, with every default       history.jsonl      one line for each validation
  environment.json   versions and machine                       model.safetensors  the best weights so far
  checkpoint.pt      to go on from
Ctrl-C ends training in good order, with the best weights kept; --resume goes on exactly there.""",
        examples="  fluvial fit airports-quick\n"
        "  fluvial fit mine.yaml -o runs/wide --flow.width 512 --fit.max_time 600\n"
        "  fluvial fit airports --resume",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a packaged recipe, or the path of a .yaml file")
    parser.add_argument("-o", "--output", metavar="DIR", help="run folder; default runs/RECIPE/N with the next N")
    parser.add_argument("--resume", action="store_true", help="go on where the newest run of the recipe, or the one in DIR, stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
    parser.add_argument("--show", action="store_true", help="print the whole recipe with all changes and defaults, and do nothing")
    parser.set_defaults(run=run)


def take_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Part the words of the command from those that change the recipe; each of the latter takes one value.

    Example:
        >>> take_overrides(["fit", "--fit.max_epochs", "20", "moons", "--flow.width=64"])
        (['fit', 'moons'], ['--fit.max_epochs', '20', '--flow.width=64'])
    """
    rest, overrides, remaining = [], [], iter(words)
    for word in remaining:
        if _OVERRIDE.fullmatch(word) is None:
            rest.append(word)
            continue
        value = None if "=" in word else next(remaining, None)
        overrides += [word] if value is None else [word, value]
    return rest, overrides


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    if arguments.resume and arguments.overwrite:
        raise ValueError("fit: --resume goes on with a run and --overwrite replaces it; give one of them")
    started = _resumed(arguments) if arguments.resume else None
    recipe = _read(arguments, started)
    if arguments.show:
        print(recipe.to_yaml(), end="")
        return 0
    folder = Path(arguments.output) if arguments.output is not None else None
    if folder is not None and started is None:
        _check_free(folder, overwrite=arguments.overwrite)
    if recipe.is_study:
        return _run_study(arguments, recipe, started)
    # All that can be wrong with a recipe is found before a folder is touched.
    flow, objective = None if recipe.gaussianize is not None else recipe.flow(), recipe.objective()
    splits = None if recipe.without_data else recipe.splits()
    if splits is None and flow is not None:
        from fluvial.data import DataSpec

        flow.spec = DataSpec(flow.manifold.event_shape, manifold=flow.manifold, condition=flow.condition)
    elif splits is not None and flow is not None:  # what layers need is asked where they are fitted
        splits.train.check()

    from fluvial.training.settings import training_device

    device = str(training_device(recipe.fit["device"], recipe.fit["precision"] or "32"))
    with _folder(arguments, recipe, started, device) as place:
        _announce(recipe, place, flow, objective, splits, device)
        history = _trained(recipe, place, flow, objective, splits, resume=started is not None)
    _conclude(recipe, place, history)
    return _INTERRUPTED if history.stopped == "interrupted" else 0


def _run_study(arguments: argparse.Namespace, recipe: "Recipe", started: Run | None) -> int:
    study = recipe.study()
    with _folder(arguments, recipe, started, "cpu") as place:
        print(f"{recipe.name}: {recipe.title}{f' ({recipe.note})' if recipe.note else ''}\n{place.path}", flush=True)
        result = study.run(place.path, resume=started is not None, progress=recipe.fit["progress"])
    print(result)
    if not result.complete:
        print(f"go on: fluvial fit {place.path} --resume")
        return _INTERRUPTED
    print(f"next:  fluvial report {place.path}")
    return 0


@contextlib.contextmanager
def _folder(arguments: argparse.Namespace, recipe: "Recipe", started: Run | None, device: str) -> "Iterator[Run]":
    """The folder of the run, with its recipe and environment."""
    from fluvial.training.checkpoint import locked

    if started is None:
        place = Run.create(recipe.name) if arguments.output is None else Run(Path(arguments.output))
    else:
        place = started
    with locked(place.path):  # asked before anything is removed; fit asks again and keeps it
        if started is None:
            place.clear()
    # Figures of earlier weights would be taken for those of the new ones.
    for name in ("metrics.json", "check.json", "report.html"):
        (place.path / name).unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        if started is None:
            stack.callback(_forget_empty, place)
        write_atomic(place.path / "recipe.yaml", recipe.to_yaml().encode())
        now = environment(["fluvial", *arguments.words], recipe=recipe.name, device=device)
        before = place.environment()
        place.write("environment.json", {**before, "resumed": [*before.get("resumed", []), now]} if before else now)
        yield place


def _trained(recipe: "Recipe", place: Run, flow: Any, objective: Any, splits: "Splits | None", *, resume: bool) -> "History":
    """Fit the layers, where there are such, and train, where that is asked for."""
    from fluvial.training.fit import fit

    if flow is None and splits is not None:
        flow, history = fit_layers(recipe, place, splits, resume=resume)
        if not recipe.is_trained or history.stopped == "interrupted":
            return history
    rows = {} if splits is None else {"validation": splits.validation}
    return fit(flow, None if splits is None else splits.train, objective, directory=place.path, resume=resume, **rows, **recipe.fit)


def _resumed(arguments: argparse.Namespace) -> Run | None:
    """The run to go on with; None where the folder given by -o has none yet, so that the same command starts and continues."""
    if arguments.output is not None:
        found = Run(Path(arguments.output))
        if not (found.path / "recipe.yaml").is_file():
            _check_free(found.path, overwrite=False)
            return None
    elif (Path(arguments.recipe) / "recipe.yaml").is_file():
        return Run(Path(arguments.recipe))
    else:
        name = locate(arguments.recipe)[0]
        newest = Run.newest(name)
        if newest is None:
            raise FileNotFoundError(f"fit: there is no run of {name} under runs/ to go on with; leave out --resume")
        return newest
    name, stored = locate(arguments.recipe)[0], found.environment().get("recipe")
    if stored not in (None, name):
        raise ValueError(f"fit: {found.path} is a run of {stored}, not of {name}; name another folder by -o")
    return found


def _read(arguments: argparse.Namespace, started: Run | None) -> "Recipe":
    from fluvial.recipes.recipe import Recipe

    if started is None:
        return Recipe.parse(*locate(arguments.recipe), arguments.overrides)
    free = re.compile(rf"--({'|'.join(map(re.escape, _FREE_ON_RESUME))})(=|$)")
    name, text = started.recipe().name, (started.path / "recipe.yaml").read_text(encoding="utf-8")
    stored = Recipe.parse(name, text, []).to_yaml()
    for override in _pairs(arguments.overrides):
        # One that says what the run is anyway does no harm: the command that began it may be repeated.
        if not free.match(override[0]) and Recipe.parse(name, text, override).to_yaml() != stored:
            sections = ("fit", "gaussianize") if "--gaussianize" in override[0] else ("fit",)
            allowed = ", ".join(f"--{name}" for name in _FREE_ON_RESUME if name.partition(".")[0] in sections)
            raise ValueError(f"fit: {override[0]} cannot change a run that is resumed, only {allowed} can; begin a new run with it")
    return Recipe.parse(name, text, arguments.overrides)


def _pairs(overrides: list[str]) -> list[list[str]]:
    """Every override with its value."""
    pairs: list[list[str]] = []
    for word in overrides:
        if word.startswith("--") or not pairs:
            pairs.append([word])
        else:
            pairs[-1].append(word)
    return pairs


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder whose contents would be lost or mixed with the run.

    Raises:
        ValueError: Saying how to go on.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"fit: {folder} is a file; -o names a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "recipe.yaml").is_file() and not all(entry.name in FILES for entry in folder.iterdir()):
        raise ValueError(f"fit: {folder} holds files that are not of a run ({', '.join(Run(folder).others()[:3])}); name another folder by -o")
    if not overwrite:
        raise ValueError(f"fit: {folder} holds a run already; go on with it by --resume, replace it by --overwrite, or name another folder by -o")


def _forget_empty(place: Run) -> None:
    """Where training failed before it began, leave no folder that looks like a run."""
    if not any((place.path / name).exists() for name in ("checkpoint.pt", "history.jsonl", "model.safetensors", LAYERS, "study.json")):
        place.clear()
        with contextlib.suppress(OSError):
            place.path.rmdir()


def _announce(recipe: "Recipe", place: Run, flow: Any, objective: Any, splits: "Splits | None", device: str) -> None:
    if flow is None:
        size = "layer by layer" + (", then trained" if recipe.is_trained else "")
    else:
        size = f"{sum(p.numel() for p in flow.parameters() if p.requires_grad):,}".replace(",", " ") + " parameters"
    if splits is None:
        source = (
            f"no data: learns from {type(objective.energy).__name__} by {type(objective).__name__}" if hasattr(objective, "energy") else "no data"
        )
    else:
        sizes = " + ".join(f"{len(part):,} {name}".replace(",", " ") for name, part in zip(("training", "validation", "test"), splits))
        source = f"{splits.train.name or 'data'}: {sizes} rows"
    print(f"{recipe.name}: {recipe.title}{f' ({recipe.note})' if recipe.note else ''}")
    print(f"{source} · {size} · {device} · {place.path}", flush=True)


def _conclude(recipe: "Recipe", place: Run, history: "History") -> None:
    from fluvial.metrics.estimate import Estimate

    last = history.rows[-1] if history.rows else None
    unit, work = ("layers", "fitting") if last is not None and "layer" in last else ("steps", "training")
    course = "before the first validation" if last is None else f"after {last['step']} {unit}, {last['seconds']:.3g} s of {work}"
    print(f"{'interrupted' if history.stopped == 'interrupted' else f'stopped by {history.stopped}'} {course}")
    best = history.best
    if best is not None and "ess" in best:
        print(f"best validation: effective samples {100 * best['ess']:.1f} %, log Z {best['log_z']:.4f} at step {best['step']}")
    if best is not None and "nll" in best:
        figures = [f"best validation NLL {Estimate(best['nll'], best.get('nll_error', math.nan))} nats at {unit.removesuffix('s')} {best['step']}"]
        if "reconstruction" in best:
            figures.append(f"reconstruction {Estimate(best['reconstruction'], best.get('reconstruction_error', math.nan))}")
        print(" · ".join(figures))
    print(f"in {place.path}: {', '.join(sorted(entry.name for entry in place.path.iterdir() if entry.name in FILES))}")
    if history.stopped == "interrupted":
        print(f"go on: fluvial fit {place.path} --resume")
    if (place.path / "model.safetensors").is_file():
        print(f"next:  fluvial evaluate {place.path}\n       fluvial check {place.path}\n       fluvial report {place.path}")
        print(f"       fluvial sample {place.path} -n 10_000 -o samples.parquet")
