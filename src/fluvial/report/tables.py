"""The sections of a page that are tables."""

from collections.abc import Mapping
from typing import Any

from fluvial.manifolds import Euclidean
from fluvial.report.blocks import Cell, Section, Table
from fluvial.report.material import Material
from fluvial.report.numbers_in_words import KNOWN, REFERENCES, estimate_of, in_words

Row = list[Cell]


def check(material: Material) -> Section:
    """The table of `fluvial.check`."""
    found = material.check
    if not found or not found.get("rows"):
        return Section("check", "Check", missing=material.hints.check)
    rows = []
    for row in found["rows"]:
        value = estimate_of({"value": row["value"], "error": row.get("error")}) if row.get("value") is not None else None
        verdict = row.get("verdict", "")
        advice = row.get("advice", "") if verdict in ("doubtful", "bad") else ""
        detail = "; ".join(filter(None, (row.get("meaning", ""), row.get("detail", ""))))
        figure = Cell("–" if value is None else in_words(value))
        rows.append([Cell(row["name"]), figure, Cell(verdict, verdict.replace(" ", "-")), Cell(detail), Cell(advice)])
    return Section("check", "Check", found.get("title", ""), tables=[Table(["question", "figure", "verdict", "what it is", "what to do"], rows)])


def figures(material: Material) -> Section:
    """The numbers, beside those of simpler models and published ones."""
    if not material.metrics:
        return Section("figures", "Figures", missing=material.hints.metrics)
    own = own_figures(material)
    rows: list[Row] = []
    for key, entry in own.items():
        found = estimate_of(entry)
        if found is not None:
            meaning = KNOWN.get(key, ("", ""))[1]
            rows.append(
                [
                    Cell(name_of(material, key)),
                    Cell(in_words(found)),
                    Cell(beside(material, key)),
                    Cell("; ".join(filter(None, (meaning, found.note)))),
                ]
            )
    for of, entries in references(material).items():
        for key in entries.keys() - own.keys():
            found = estimate_of(entries[key])
            if found is not None:
                meaning = KNOWN.get(key, ("", ""))[1]
                rows.append([Cell(name_of(material, key)), Cell(in_words(found)), Cell(""), Cell(meaning or f"of the {REFERENCES.get(of, of)}")])
    caption = "± is one standard error."
    if material.flow.is_bottleneck:
        caption += f" The density is that on the image of the decoder: comparable only with flows of the same latent dimension, {material.flow.dim}."
    tables = [Table(["figure", "this flow", "beside it", "what it is"], rows, caption)]
    if printed := published(material):
        tables.append(Table(["published figure", "value", "where"], printed))
    return Section("figures", "Figures", tables=tables)


def configuration(material: Material) -> Section:
    """How to make it again."""
    folded = [("Recipe, with every default written out", material.configuration)] if material.configuration else []
    folded.append(("Network and base", str(material.flow)))
    rows = [[Cell(str(key)), Cell(str(value))] for key, value in material.environment.items() if value not in (None, "", {}, [])]
    return Section("configuration", "Configuration", material.hints.configuration, tables=[Table(["made with", ""], rows)], folded=folded)


def name_of(material: Material, key: str) -> str:
    """What to call a figure; the NLL says whose change of volume it is, distances between points of a curved space that they are straight."""
    name = KNOWN.get(key, (key.replace("_", " "), ""))[0]
    if key in ("reconstruction", "reconstruction_mean") and not isinstance(material.flow.manifold, Euclidean):
        return f"{name} (chord)"
    return f"{name} (decoder)" if key == "nll" and not material.flow.is_bijective else name


def own_figures(material: Material) -> Mapping[str, Any]:
    """The flow's own figures by name."""
    metrics = material.metrics or {}
    found = metrics.get("figures")
    return found if isinstance(found, Mapping) else metrics


def references(material: Material) -> dict[str, Mapping[str, Any]]:
    """The figures of simpler models and of the truth: model -> name -> figure."""
    found = (material.metrics or {}).get("references")
    return {of: entries for of, entries in found.items() if isinstance(entries, Mapping)} if isinstance(found, Mapping) else {}


def beside(material: Material, key: str) -> str:
    """What simpler models, the truth and publications say of the same figure, in one line."""
    parts = []
    for of, entries in references(material).items():
        found = estimate_of(entries.get(key))
        if found is not None:
            parts.append(f"{REFERENCES.get(of, of.replace('_', ' '))} {found.value:.3g}")
    if key == "nll":
        parts += [f"published {value.text}" for name, value, _ in published(material) if "nll" in name.text.lower() and value.text]
    return ", ".join(parts)


def published(material: Material) -> list[Row]:
    """Name, value and source of every published figure."""
    rows = []
    for entry in material.published or (material.metrics or {}).get("published") or []:
        value = entry.get("value")
        where = ", ".join(str(entry[key]) for key in ("source", "url") if entry.get(key))
        rows.append([Cell(str(entry.get("figure", ""))), Cell(f"{value:g}" if isinstance(value, int | float) else str(value or "")), Cell(where)])
    return rows
