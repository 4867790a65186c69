"""Arguments that several commands share."""

import argparse
from typing import Any


def command(parsers: Any, name: str, *, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A subcommand whose help says what it does, what it writes, and shows how."""
    return parsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_run(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The run or runs a command looks at."""
    text = "a run folder, or the name of a recipe, whose newest run under runs/ is meant"
    if several:
        parser.add_argument("runs", metavar="RUN", nargs="+", help=text)
    else:
        parser.add_argument("name", metavar="RUN", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps; default auto: a card where there is one")


def count(text: str) -> int:
    """A positive whole number, with underscores or an exponent where it is long.

    Example:
        >>> count("1_000_000"), count("1e6")
        (1000000, 1000000)
    """
    try:
        number = int(text)
    except ValueError:
        try:
            number = int(float(text)) if float(text).is_integer() else 0
        except (ValueError, OverflowError):
            number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number such as 1_000_000, got {text!r}")
    return number
