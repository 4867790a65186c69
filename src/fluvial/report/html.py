"""The page itself."""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fluvial.report.blocks import Panel, Section
from fluvial.report.material import Material
from fluvial.report.numbers_in_words import estimate_of, in_words
from fluvial.report.sections import SECTIONS
from fluvial.report.tables import beside, name_of, own_figures


def render(material: Material) -> str:
    """The whole page as text."""
    sections = [section for make in SECTIONS if (section := make(material)) is not None]
    heading = {"summary": summary(material), "tiles": tiles(material), "verdict": verdict(material)}
    return render_sections(sections, title=material.title, note=material.note, citation=material.dataset.citation, **heading)


def render_sections(
    sections: Sequence[Section],
    *,
    title: str,
    summary: str,
    tiles: Sequence[tuple[str, str, str]] = (),
    verdict: tuple[str, str] = ("", ""),
    note: str = "",
    citation: str = "",
) -> str:
    """A page of sections, as text."""
    plots = {f"{section.key}-{k}": panel for section in sections for k, panel in enumerate(section.panels)}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("fluvial.report").joinpath("template.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        summary=summary,
        tiles=tiles,
        verdict=verdict,
        note=note,
        citation=citation,
        sections=sections,
        style={key: _style(panel) for key, panel in plots.items()},
        plots={key: _embedded(panel) for key, panel in plots.items()},
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )


def summary(material: Material) -> str:
    """The page in one sentence."""
    flow, data = material.flow, material.dataset
    kind = "A bijective flow" if flow.is_bijective else "A free-form flow with a bottleneck" if flow.is_bottleneck else "A free-form flow"
    where = f"{flow.manifold}" + (f" from a latent on {flow.latent_manifold}" if flow.is_bottleneck else "")
    rows = f"{material.rows_in_all:,} {material.which}".replace(",", " ")
    named = f" of {data.name}{' (simulated)' if data.synthetic else ''}" if data.name else " of simulated data" if data.synthetic else ""
    shown = f" ({len(material.x):,} of them drawn here)".replace(",", " ") if len(material.x) < material.rows_in_all else ""
    figures = own_figures(material)
    told = (
        (name_of(material, "nll"), estimate_of(figures.get("nll")), " nats"),
        (name_of(material, "reconstruction").replace("reconstruction", "reconstruction error"), estimate_of(figures.get("reconstruction")), ""),
    )
    words = ", ".join(f"{name} {in_words(found)}{unit}" for name, found, unit in told if found is not None)
    return f"{kind} on {where}{': ' + words if words else ', looked at'} on {rows}{named}{shown}."


def tiles(material: Material) -> list[tuple[str, str, str]]:
    """The key figures: name, value, and what to compare it with."""
    found = []
    units = {"nll": "nats", "reconstruction": "root mean square", "gap": "nats, encoder against decoder", "c2st": "0.5 is perfect"}
    for key, unit in units.items():
        estimate = estimate_of(own_figures(material).get(key))
        if estimate is not None:
            found.append((name_of(material, key), in_words(estimate), beside(material, key) or unit))
    return found


def verdict(material: Material) -> tuple[str, str]:
    """Tone and words of the check's verdict."""
    rows = (material.check or {}).get("rows") or []
    if not rows:
        return "", ""
    count = Counter(row.get("verdict", "") for row in rows)
    named = {tone: [row["name"] for row in rows if row.get("verdict") == tone] for tone in ("bad", "doubtful")}
    if named["bad"]:
        return "bad", f"Check: {count['bad']} bad ({', '.join(named['bad'])}), {count['doubtful']} doubtful, {count['good']} good."
    if named["doubtful"]:
        return "doubtful", f"Check: {count['doubtful']} doubtful ({', '.join(named['doubtful'])}), {count['good']} good, none bad."
    return "good", f"Check: all {count['good']} figures good."


def _style(panel: Panel) -> str:
    """How tall a plot is: an aspect where the figure has a width too, else pixels."""
    layout: Any = panel.figures[0].layout
    if layout.width is None:
        return f"height: {layout.height:.0f}px"
    most = f"; max-width: {layout.width:.0f}px" if panel.span == "full" else ""
    # A plot of many plots is moved sideways on a phone rather than shrunk until nothing can be read.
    least = f"; min-width: {0.8 * layout.width:.0f}px" if layout.width > 640 else ""
    return f"aspect-ratio: {layout.width:.0f} / {layout.height:.0f}{most}{least}"


def _embedded(panel: Panel) -> Markup:
    """The figures as JSON that no HTML parser mistakes for a tag; their size is the page's business."""
    described = [_sizeless(figure) for figure in panel.figures]
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _sizeless(figure: go.Figure) -> dict[str, Any]:
    described = json.loads(figure.to_json() or "{}")
    for name in ("width", "height"):
        described["layout"].pop(name, None)
    return described
