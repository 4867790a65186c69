"""fluvial check: is a run to be believed?"""

import argparse
import json
from typing import Any

from fluvial.commands.arguments import add_device, add_run, command, count
from fluvial.runs import Run


def add(parsers: Any) -> None:
    """Declare the command."""
    parser = command(
        parsers,
        "check",
        summary="is the flow to be believed? every figure with a verdict and what to do",
        description="""\
Look at a trained flow from all sides on the test rows: likelihood against the plainest model, reconstruction, agreement of encoder
and decoder, singular values, latent distribution, normalisation, samples against data. Every line has a verdict (good, doubtful, bad), what
it means and, where it is not good, what to do.

Writes check.json into the run folder. The exit code is 0 whatever the verdicts; with --strict it is 1 where one of them is bad.""",
        examples="  fluvial check airports-quick\n  fluvial check runs/moons/2 --strict --json",
    )
    add_run(parser)
    parser.add_argument("--samples", metavar="N", type=count, default=10_000, help="samples to draw, and most rows to use; default 10000")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn; default 0")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a verdict is bad")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the report")
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check."""
    from fluvial.check import check
    from fluvial.training.settings import training_device

    place = Run.find(arguments.name)
    flow = place.flow(device=training_device(arguments.device, "32"))
    report = check(flow, place.test(), samples=arguments.samples, seed=arguments.seed)
    path = place.write("check.json", report.to_dict())
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(f"{report}\nin {path}")
    return 1 if arguments.strict and not report.ok else 0
