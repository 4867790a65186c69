"""Figures with a verdict each, as a table and as JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fluvial.metrics.estimate import Estimate, finite_or_none

Verdict = Literal["good", "doubtful", "bad", "not applicable"]


@dataclass(frozen=True)
class Threshold:
    """Up to ``good`` a figure is good, above ``bad`` it is bad, between them doubtful."""

    good: float
    bad: float
    reason: str

    def verdict(self, value: float, slack: float = 0.0) -> Verdict:
        """The word for a value, of which `slack` may be chance."""
        if not math.isfinite(value):
            return "bad"
        return "good" if value - slack <= self.good else "bad" if value - slack > self.bad else "doubtful"


@dataclass(frozen=True)
class Row:
    """One line of a report.

    Attributes:
        name: What was looked at.
        value: The figure; None where it does not exist.
        error: Its standard error; None where it is not known.
        verdict: "good", "doubtful", "bad" or "not applicable".
        meaning: What the figure is.
        advice: What to do where it is not good.
        detail: Further figures and what they are compared with.
    """

    name: str
    value: float | None
    error: float | None
    verdict: Verdict
    meaning: str
    advice: str
    detail: str = ""

    @property
    def text(self) -> str:
        """Value and error as text."""
        if self.value is None:
            return "–"
        return f"{self.value:.4g}" if self.error is None else str(Estimate(self.value, self.error))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        entries = asdict(self)
        for key in ("value", "error"):
            entries[key] = None if entries[key] is None else finite_or_none(entries[key])
        return entries


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        rows: One `Row` for every question.
        title: Which flow, and on how many rows.
    """

    rows: tuple[Row, ...]
    title: str

    @property
    def ok(self) -> bool:
        """Whether nothing is bad. Look at what is doubtful all the same."""
        return all(row.verdict != "bad" for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of that name."""
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"{name!r}; this report has {[row.name for row in self.rows]}")
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"title": self.title, "ok": self.ok, "rows": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        names, values = (max(len(text) for text in column) for column in zip(*((row.name, row.text) for row in self.rows)))
        table = [f"  {row.name:<{names}}  {row.text:>{values}}  {row.verdict:<14}  {row.meaning}" for row in self.rows]
        notes = []
        for row in self.rows:
            if row.verdict in ("doubtful", "bad"):
                notes.append(f"  {row.name} ({row.verdict}{'; ' + row.detail if row.detail else ''}): {row.advice}")
        closing = ["What to do"] + notes if notes else ["Nothing here speaks against it."]
        return "\n".join([self.title, *table, *closing])
