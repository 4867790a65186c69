"""fluvial recipes: what can be run."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from fluvial.commands.arguments import command
from fluvial.recipes import NOT_PUBLISHED, locate, names, published

WIDTH = 118


def add(parsers: Any) -> None:
    """Declare the command."""
    parser = command(
        parsers,
        "recipes",
        summary="list the recipes that come with fluvial",
        description="List the packaged recipes: what each is, and the published figure it aims at with where that is printed.\n"
        "With a name, print its YAML; a recipe of your own begins as a copy of it. With --results, print what evaluated runs reached\n"
        "beside every published figure: mean ± standard deviation over seeds, or not run, with the reason. Writes no file.",
        examples="  fluvial recipes\n  fluvial recipes moons > mine.yaml      then: fluvial fit mine.yaml\n  fluvial recipes --results runs",
    )
    parser.add_argument("name", metavar="RECIPE", nargs="?", help="print the YAML of this recipe")
    parser.add_argument(
        "--results",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help="published figures beside those of runs in these folders; default runs/ and benchmarks/results/",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List the recipes, or print one."""
    if arguments.name is not None:
        print(locate(arguments.name)[1], end="")
        return 0
    if arguments.results is not None:
        from fluvial.commands.results import FOLDERS, table

        if lacking := [folder for folder in arguments.results if not folder.is_dir()]:
            raise FileNotFoundError(f"recipes: there is no folder {lacking[0]}")
        print(table(arguments.results or [folder for folder in FOLDERS if folder.is_dir()]))
        return 0
    import yaml

    entries = {name: yaml.safe_load(locate(name)[1]) for name in names()}
    width = max(map(len, entries)) + 2
    print(f"{'recipe':<{width}}what it is, and the published figure it aims at")
    for name, entry in entries.items():
        figures = "; ".join(map(published, entry.get("published") or [])) or NOT_PUBLISHED
        lines = [entry.get("title", name), *filter(None, [entry.get("note", "")]), f"published: {figures}"]
        wrapped = [piece for line in lines for piece in textwrap.wrap(line, WIDTH - width)]
        print(f"{name:<{width}}" + f"\n{'':<{width}}".join(wrapped))
    print("\nbegin one with: fluvial fit RECIPE")
    return 0
