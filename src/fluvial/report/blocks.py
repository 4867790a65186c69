"""What a page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Panel:
    """A plot in the page.

    Attributes:
        title: Above it.
        figures: One, or one for each setting of the condition.
        caption: What one sees, and what good looks like.
        span: "third", "half" or "full" of the page's width, where the window is wide enough.
    """

    title: str
    figures: Sequence[go.Figure]
    caption: str = ""
    span: str = "half"


@dataclass(frozen=True)
class Cell:
    """An entry of a table, with a tone (a verdict) that colours it."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table in the page; its first column names the row."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its anchor.
        title: Its heading.
        lead: What it is about, in a sentence or two.
        panels: Plots.
        tables: Tables.
        settings: Labels of the conditions between which its panels switch.
        missing: What makes the section, where it is not there.
        folded: Titles and texts shown on demand.
    """

    key: str
    title: str
    lead: str = ""
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    settings: Sequence[str] = ()
    missing: str = ""
    folded: Sequence[tuple[str, str]] = ()
