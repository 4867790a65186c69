"""fluvial report: one page about a run."""

import argparse
from typing import Any

from fluvial.commands.arguments import add_run, command
from fluvial.runs import Run


def add(parsers: Any) -> None:
    """Declare the command."""
    parser = command(
        parsers,
        "report",
        summary="one self-contained HTML page about a run",
        description="""\
Make one HTML page about a run: loss and exact NLL over training, samples beside data, reconstruction, latent, the figures of
evaluate and check, configuration and versions. The page holds all it needs and asks the network for nothing.

Writes report.html into the run folder.""",
        examples="  fluvial report airports-quick\n  fluvial report runs/mine/2",
    )
    add_run(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the page."""
    from fluvial.report import write

    place = Run.find(arguments.name)
    if not place.recipe().is_study:
        place.model  # noqa: B018  says what is missing before anything is loaded
    print(f"the report is in {write(place.path)}")
    return 0
