"""A recipe: flow, data, objective and training of one experiment, read from YAML and checked before anything runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

import fluvial.data
from fluvial import gaussianization
from fluvial.data import Dataset, Splits
from fluvial.flow import Flow
from fluvial.objectives import Objective
from fluvial.recipes.complaint import complaint
from fluvial.recipes.exact_rows import exact_rows
from fluvial.recipes.spelling import with_named_factors
from fluvial.study import Study
from fluvial.training import fit

SECTIONS = ("title", "note", "published", "flow", "gaussianize", "study", "data", "objective", "fit", "split")
GIVEN_BY_THE_RUN = {"flow", "data", "objective", "validation", "directory", "resume"}
# Of a layerwise fit: the data set knows its columns, and fit.seed is the seed of the run.
GIVEN_TO_LAYERS = {"data", "validation", "columns", "condition", "weight", "seed", "client", "directory", "resume", "on_layer", "on_end", "progress"}
BUDGETS = ("max_epochs", "max_steps", "max_time")


@dataclass
class Published:
    """A figure that was printed somewhere.

    Attributes:
        figure: What it is, such as "test NLL".
        value: The number.
        source: Who printed it.
        url: Where.
    """

    figure: str
    value: float
    source: str
    url: str = ""


class Recipe:
    r"""One experiment, checked; nothing of it is built before it is asked for.

    Args:
        name: What to call it.
        tree: The checked configuration.

    Example:
        >>> recipe = Recipe.parse("mine", "flow: {class_path: fluvial.flows.free_form, init_args: {features: 2}}\ndata: fluvial.data.moons")
        >>> recipe.fit["batch_size"], recipe.flow().manifold
        (512, Euclidean(2))
    """

    def __init__(self, name: str, tree: Namespace) -> None:
        self.name = name
        self._tree = tree

    @classmethod
    def parse(cls, name: str, text: str, overrides: Sequence[str] = ()) -> "Recipe":
        """Read YAML and then the options that change it.

        Args:
            name: What to call the recipe, also in messages.
            text: YAML with the keys `SECTIONS`.
            overrides: Options such as ``["--fit.max_epochs", "20"]``.

        Raises:
            ValueError: In one line, if a key is unknown or a value is not what it must be.
        """
        _check_mapping(name, text)
        layerwise = _has_layers(text, overrides)
        try:
            tree = _parser(layerwise=layerwise).parse_args([f"--config={with_named_factors(text)}", *overrides])
        except ArgumentError as error:
            _refuse(name, error)
        tree.pop("config", None)
        _check_complete(name, tree)
        _absolute(tree)
        return cls(name, tree)

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return self._tree.title or self.name

    @property
    def note(self) -> str:
        """What a reader of its figures should know."""
        return self._tree.note

    @property
    def published(self) -> list[dict[str, Any]]:
        """Published figures to compare with: figure, value, source, url."""
        return [entry.as_dict() for entry in self._tree.published]

    @property
    def fit(self) -> dict[str, Any]:
        """Arguments of `fluvial.fit`."""
        return self._tree.fit.as_dict()

    @property
    def gaussianize(self) -> dict[str, Any] | None:
        """Arguments of `fluvial.gaussianization.fit`, where the flow is one that is fitted layer by layer; else None."""
        if "gaussianize" not in self._tree:
            return None
        return {**self._tree.gaussianize.as_dict(), "seed": self._tree.fit.seed}

    @property
    def is_study(self) -> bool:
        """Whether it makes a table and no flow."""
        return self._tree.study is not None

    def study(self) -> Study:
        """The experiment that makes a table."""
        return self._built("study")

    @property
    def is_trained(self) -> bool:
        """Whether the flow is trained by gradient: after layers that were fitted, only where the section fit says how long."""
        return self.gaussianize is None or any(self.fit[name] is not None for name in BUDGETS)

    @property
    def split_seed(self) -> int:
        """Seed of the split into training, validation and test rows."""
        return self._tree.split.seed

    def section(self, name: str) -> Any:
        """One of `SECTIONS` as plain values, for comparisons."""
        value = self._tree.get(name)
        return value.as_dict() if isinstance(value, Namespace) else value

    def to_yaml(self) -> str:
        """The whole recipe with every default written out; it parses to the same again."""
        return _parser(layerwise=self.gaussianize is not None).dump(self._tree, skip_unset=False)

    def flow(self) -> Flow:
        """The flow with fresh weights, the same ones for the same ``fit.seed``.

        Raises:
            ValueError: If it is made layer by layer, from the data.
        """
        if self.gaussianize is not None:
            raise ValueError(f"recipe {self.name} has no flow before its layers are fitted")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._tree.fit.seed)
            return self._built("flow")

    @property
    def without_data(self) -> bool:
        """Whether it learns from an energy alone."""
        return self._tree.data is None and not self.is_study

    def dataset(self) -> Dataset:
        """All rows; without data, exact samples of the energy, which training does not see.

        Raises:
            ValueError: If there are no data and the energy cannot be sampled.
        """
        if not self.without_data:
            return self._built("data")
        rows = exact_rows(self._built("objective"), seed=self.split_seed)
        if rows is None:
            raise ValueError(
                f"recipe {self.name} has no data, and its energy cannot be sampled exactly: there are no rows to compare with; "
                "fluvial evaluate gives effective sample size and log Z all the same"
            )
        return rows

    def missing_data(self) -> str | None:
        """Why its data cannot be read here; None where they can, or need no files.

        Data that are drawn, rather than read, from a file are not asked for where a folder of data is known: that may take long.
        """
        arguments = {} if self.without_data else self._tree.data.get("init_args") or {}
        if "root" not in arguments or ("n" in arguments and os.environ.get("FLUVIAL_DATA")):
            return None
        try:
            self._built("data")
        except FileNotFoundError as error:
            return str(error).removeprefix(f"recipe {self.name}: data: ")
        return None

    def test(self) -> Dataset:
        """Rows that training does not see: those of the split, or without data exact samples of the energy.

        Raises:
            ValueError: If there are none.
        """
        return self.dataset() if self.without_data else self.splits().test

    def objective(self) -> Objective | None:
        """What to minimise; None for the flow's natural one."""
        return None if self._tree.objective is None else self._built("objective")

    def splits(self) -> Splits:
        """Training, validation and test rows.

        Raises:
            ValueError: If there are no data, or the fractions leave no rows to train, validate or test on.
        """
        if self.without_data:
            raise ValueError(f"recipe {self.name} has no data to split: it learns from an energy")
        parts = self.dataset().split(self._tree.split.fractions, self._tree.split.seed)
        for name, part in zip(parts._fields, parts):
            if len(part) == 0:
                raise ValueError(f"recipe {self.name}: split.fractions {self._tree.split.fractions} leave no {name} rows")
        return parts

    def packages(self) -> list[str]:
        """The packages, other than fluvial and torch, from which the flow is made."""
        found = {path.partition(".")[0] for path in _class_paths(self._tree.flow)}
        return sorted(found - {"fluvial", "torch"})

    def _built(self, section: str) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{section}", type=TYPES[section])
        try:
            return parser.instantiate(Namespace({section: self._tree[section]}))[section]
        except (ArgumentError, ValueError, TypeError) as error:
            _refuse(self.name, error, section)


TYPES: dict[str, Any] = {"flow": Flow, "study": Study | None, "data": Dataset | None, "objective": Objective | None}


@cache
def _parser(*, layerwise: bool = False) -> ArgumentParser:
    parser = ArgumentParser(prog="fluvial fit", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--title", type=str, default="")
    parser.add_argument("--note", type=str, default="")
    parser.add_argument("--published", type=list[Published], default=[])
    parser.add_argument("--flow", type=TYPES["flow"], default=None)
    parser.add_argument("--study", type=TYPES["study"], default=None)
    if layerwise:
        parser.add_function_arguments(gaussianization.fit, "gaussianize", skip=GIVEN_TO_LAYERS)
    parser.add_argument("--data", type=TYPES["data"], default=None)
    parser.add_argument("--objective", type=TYPES["objective"], default=None)
    parser.add_function_arguments(fit, "fit", skip=GIVEN_BY_THE_RUN)
    parser.add_argument("--split.fractions", type=tuple[float, float, float] | None, default=None)
    parser.add_argument("--split.seed", type=int, default=0)
    return parser


def keys() -> list[str]:
    """The fixed keys of the schema, dotted; class_path and init_args add theirs."""
    dotted = [action.dest for action in _parser(layerwise=True)._actions if not action.dest.endswith(".help")]
    return [key for key in dotted if key.partition(".")[0] in SECTIONS]


def _names_energy(tree: Any) -> bool:
    """Whether somewhere in the tree of an objective stands an energy."""
    entries = tree.as_dict() if isinstance(tree, Namespace) else tree
    if not isinstance(entries, dict):
        return False
    return entries.get("energy") is not None or any(map(_names_energy, entries.values()))


def _has_layers(text: str, overrides: Sequence[str]) -> bool:
    """Whether the recipe has the section gaussianize."""
    tree = yaml.safe_load(text)
    given = tree.get("gaussianize", {})
    if not isinstance(given, dict):
        raise ValueError(f"recipe: gaussianize must be a mapping of arguments, {{}} for all defaults, got {given!r}")
    return "gaussianize" in tree or any(word.startswith("--gaussianize") for word in overrides)


def _check_complete(name: str, tree: Namespace) -> None:
    if tree.study is not None:
        others = [section for section in ("flow", "gaussianize", "data", "objective") if tree.get(section) is not None]
        if others:
            raise ValueError(f"recipe {name}: a study makes its own flows and data; leave out {', '.join(others)}")
        return
    if "gaussianize" in tree:
        if tree.flow is not None:
            raise ValueError(f"recipe {name}: gaussianize makes the flow; leave out flow")
        if tree.data is None:
            raise ValueError(f"recipe {name}: missing: data")
        return
    missing = [section for section in ("flow", "data") if tree[section] is None]
    if missing == ["data"] and _names_energy(tree.objective):
        return
    if missing:
        why = "; only an objective with an energy, such as fluvial.objectives.ReverseKL, does without data" if tree.objective is not None else ""
        raise ValueError(f"recipe {name}: missing: {', '.join(missing)}{why}")


def _check_mapping(name: str, text: str) -> None:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"recipe {name}: no valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"recipe {name}: expected a mapping with the keys {', '.join(SECTIONS)}, got {'nothing' if found is None else type(found).__name__}"
        )


def _refuse(name: str, error: Exception, section: str = "") -> NoReturn:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FileNotFoundError):
        cause = cause.__cause__
    if cause is not None:
        raise FileNotFoundError(f"recipe {name}: {section}: {cause}") from error
    text = complaint(str(error), keys())
    if isinstance(error, TypeError) and not isinstance(error, ArgumentError):
        raise TypeError(f"recipe {name}: {section}: {text}") from error
    raise ValueError(f"recipe {name}: {section + ': ' if section and not text.startswith(section) else ''}{text}") from error


def _absolute(tree: Namespace) -> None:
    """Files of the data are found again from any working folder."""
    if tree.data is None:
        return
    arguments = tree.data.get("init_args")
    if arguments is None or not str(tree.data.class_path).startswith(f"{fluvial.data.__name__}."):
        return
    for key in ("path", "root"):
        if arguments.get(key) is not None:
            arguments[key] = str(Path(os.path.abspath(arguments[key])))


def _class_paths(value: Any) -> list[str]:
    if isinstance(value, Namespace | dict):
        entries = value.as_dict() if isinstance(value, Namespace) else value
        own = [entries["class_path"]] if isinstance(entries.get("class_path"), str) else []
        return own + [path for entry in entries.values() for path in _class_paths(entry)]
    return [path for entry in value for path in _class_paths(entry)] if isinstance(value, list | tuple) else []
