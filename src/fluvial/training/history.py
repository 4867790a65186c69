"""What a training run leaves behind to read."""

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluvial.files import write_atomic
from fluvial.metrics.estimate import finite_or_none

Row = dict[str, Any]


@dataclass
class History:
    """The course of one training run.

    Attributes:
        rows: One dict per validation: ``step``, ``epoch``, ``seconds`` (of training, validations included), ``learning_rate``,
            ``skipped`` (steps left out so far because something was not finite), ``loss`` and the objective's other training terms (means since
            the last row; called ``train_…`` where a validation figure has the same name), what its controllers say, and the validation
            figures; one that is known row by row has its standard error beside it as ``…_error``.
        stopped: Why training ended: ``"max_steps"``, ``"max_epochs"``, ``"max_time"``, ``"patience: …"``, ``"interrupted"`` or ``"non-finite: …"``.
        best: The row whose weights the flow now has, or None where no validation gave a finite monitor.

    Example:
        >>> history = History(rows=[{"step": 10, "loss": 1.5, "nll": 1.0}, {"step": 20, "loss": 1.2, "nll": 0.9}], stopped="max_steps")
        >>> history.column("nll")
        [1.0, 0.9]
        >>> history
        History(2 rows, stopped by max_steps at step 20)
    """

    rows: list[Row] = field(default_factory=list)
    stopped: str = ""
    best: Row | None = None

    def column(self, name: str) -> list[Any]:
        """The values of one figure, None in rows that lack it.

        Raises:
            KeyError: If no row has it; the message names those there are.
        """
        names = self.names()
        if name not in names:
            raise KeyError(f"history: no column {name!r}; there are {names}")
        return [row.get(name) for row in self.rows]

    def names(self) -> list[str]:
        """All columns in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line per row, with a header; absent figures are empty."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.names())
            writer.writeheader()
            writer.writerows(self.rows)

    def __repr__(self) -> str:
        step = f" at step {self.rows[-1]['step']}" if self.rows else ""
        best = f", best monitor {self.best['monitor']:.6g} at step {self.best['step']}" if self.best else ""
        ended = "interrupted" if self.stopped == "interrupted" else f"stopped by {self.stopped.partition(':')[0] or 'nothing'}"
        return f"History({len(self.rows)} rows, {ended}{step}{best})"


def append_row(path: Path, row: Row) -> None:
    """Add one line of JSON; what is not finite becomes null, as JSON knows neither infinity nor NaN."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(_line(row))


def rewrite_rows(path: Path, rows: list[Row]) -> None:
    """Make the file hold exactly these rows."""
    write_atomic(path, "".join(map(_line, rows)).encode())


def _line(row: Row) -> str:
    return json.dumps({name: finite_or_none(value) if isinstance(value, float) else value for name, value in row.items()}) + "\n"
