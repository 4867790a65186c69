"""One line that says how training goes."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from fluvial.metrics.estimate import Estimate

INTERVAL = 0.5
QUIET_STEPS = 10
FIGURES = 4
FIRST = ("nll", "reconstruction")


Line = Callable[[int, float, dict[str, float], dict[str, Any] | None], str]


class Display(Protocol):
    """Where progress is shown."""

    def update(self, step: int, fraction: float, loss: float, figures: dict[str, float], best: dict[str, Any] | None) -> None:
        """Show where training stands, if it is time to."""
        ...

    def note(self, text: str) -> None:
        """Say something that happens once."""
        ...

    def close(self) -> None:
        """Leave the last line as it is."""
        ...


class Silent:
    """Shows nothing."""

    def update(self, step: int, fraction: float, loss: float, figures: dict[str, float], best: dict[str, Any] | None) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Bar:
    """A progress bar on a terminal, rewritten at most twice a second."""

    def __init__(self, fraction: float, text: Line) -> None:
        self._text = text
        # Comes with Lightning, and is not worth loading before it.
        from tqdm.std import tqdm

        layout = "{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining} {desc}"
        self._bar = tqdm(total=1.0, initial=fraction, bar_format=layout, file=sys.stderr, dynamic_ncols=True)
        self._next = 0.0

    def update(self, step: int, fraction: float, loss: float, figures: dict[str, float], best: dict[str, Any] | None) -> None:
        """Rewrite the line, if the last time is half a second ago."""
        now = time.perf_counter()
        if now < self._next and fraction < 1:
            return
        self._next = now + INTERVAL
        self._bar.n = fraction
        self._bar.set_description_str(self._text(step, loss, figures, best))

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar where it ended."""
        self._next = 0.0
        self._bar.close()


class Lines:
    """Where there is no terminal: a line at every tenth of the way."""

    def __init__(self, fraction: float, text: Line) -> None:
        self._text = text
        self._next = math.floor(fraction * QUIET_STEPS) + 1

    def update(self, step: int, fraction: float, loss: float, figures: dict[str, float], best: dict[str, Any] | None) -> None:
        """Write a line, if another tenth is done."""
        if fraction * QUIET_STEPS >= self._next:
            self._next = math.floor(fraction * QUIET_STEPS) + 1
            self.note(f"{fraction:4.0%}  {self._text(step, loss, figures, best)}")

    def note(self, text: str) -> None:
        """A line of its own."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to do."""


def line(step: int, loss: float, figures: dict[str, float], best: dict[str, Any] | None) -> str:
    """Step, training loss, the latest validation figures with their errors, and the best monitor so far.

    Example:
        >>> line(200, 1.5, {"nll": 0.91234, "nll_error": 0.0123, "gap": 0.01, "monitor": 0.91}, {"monitor": 0.8, "step": 100})
        'step 200 · loss 1.5 · best monitor 0.8 at 100 · nll 0.912 ± 0.012 · gap 0.01'
    """
    parts = [f"step {step}", f"loss {loss:.4g}"]
    if best is not None:
        parts.append(f"best monitor {best['monitor']:.4g} at {best['step']}")
    shown = [name for name in figures if name != "monitor" and not name.endswith(("_error", "_bad_rows"))]
    shown.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    parts += [f"{name} {Estimate(figures[name], figures.get(f'{name}_error', math.nan))}" for name in shown[:FIGURES]]
    return " · ".join(parts)


def display(shown: bool, fraction: float, text: Line = line) -> Display:  # noqa: FBT001
    """The display that suits standard error; ``text`` is what it says."""
    if not shown:
        return Silent()
    return Bar(fraction, text) if sys.stderr.isatty() else Lines(fraction, text)
