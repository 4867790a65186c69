"""The command line: ``fluvial recipes | fit | sample | evaluate | check | report``."""

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import fluvial
from fluvial.commands import check, evaluate, fit, recipes, report, sample

COMMANDS = (recipes, fit, sample, evaluate, check, report)
INTERRUPTED = 130
TERMINATED = 143

DESCRIPTION = """\
Learn a probability distribution from samples, and use it: one recipe is one experiment, one folder is one run of it.
"""
EPILOG = """\
from data to figures:
  fluvial recipes                                 what can be run
  fluvial fit airports-quick                      train; the run is kept in runs/airports-quick/1
  fluvial evaluate airports-quick                 test figures with their errors, beside baselines
  fluvial check airports-quick                    can it be believed?
  fluvial sample airports-quick -n 1_000_000 -o airports.parquet
  fluvial report airports-quick                   all of it on one page

RUN is a folder or the name of a recipe, whose newest run is meant. Each command explains itself: fluvial fit --help
"""


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print over several lines."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, so that files in the making are removed as on Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its words; default those of the process.

    Returns:
        The exit code: 0, 1 where ``check --strict`` found something bad, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.

    Example:
        >>> main(["--version"]) == 0
        fluvial ...
        True
    """
    # Threads that spin while they wait are fast alone, and a hundred times slower where another process wants the core. OpenMP reads
    # this when torch is loaded, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _surroundings():
            code = _run(words)
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # how argparse ends after --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:
        # Whoever read the output has closed it, as `head` does; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        said = f"; {interrupt}" if str(interrupt) else ""
        print(f"\nfluvial: interrupted{said}", file=sys.stderr)
        return TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            traceback.print_exc()
        print(f"fluvial: error: {_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, OverflowError, RuntimeError) as error:
        if not _is_too_large(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"fluvial: error: too large for this machine: {_line(error)}; give smaller sizes", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    parser = _Parser(prog="fluvial", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fluvial {fluvial.__version__}")
    parser.add_argument("--debug", action="store_true", help="after an error, show where it happened")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=_Parser)
    for command in COMMANDS:
        command.add(parsers)
    if not words:
        parser.print_help()
        return 0
    rest, overrides = fit.take_overrides(words) if words[0] == "fit" else (words, [])
    rest = sample.with_signs(rest) if rest[:1] == ["sample"] else rest
    arguments = parser.parse_args(rest, argparse.Namespace(words=words, overrides=overrides))
    if arguments.command is None:
        parser.error("say a command")
    return arguments.run(arguments)


@contextmanager
def _surroundings() -> Iterator[None]:
    """Warnings in one line, SIGTERM as an interrupt, and modules of the working folder importable, as with python -m."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    previous: Any = None
    try:
        previous = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        previous = None
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
            if added and folder in sys.path:
                sys.path.remove(folder)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    print(f"fluvial: warning: {_line(message)}", file=sys.stderr)


def _is_too_large(error: Exception) -> bool:
    """Whether memory, or the integers that count it, did not suffice; torch says so by a RuntimeError."""
    signs = ("allocate memory", "out of memory", "not enough memory", "storage size calculation overflowed", "overflow when unpacking")
    return isinstance(error, MemoryError | OverflowError) or any(sign in str(error).lower() for sign in signs)


def _line(error: BaseException | str) -> str:
    """What it says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error).partition("Exception raised from")[0].rstrip(" ;\n")  # what follows is a trace through torch
    return " ".join(text.split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
