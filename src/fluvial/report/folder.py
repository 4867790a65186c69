"""The page of a run folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.files import write_atomic
from fluvial.report.blocks import Section
from fluvial.report.html import render, render_sections
from fluvial.report.material import Hints, Material
from fluvial.report.scaling import scaling_section

if TYPE_CHECKING:
    from fluvial.runs import Run


def write_report(path: Path, output: Path | None = None) -> Path:
    """See `fluvial.report.write`."""
    from fluvial.runs import Run

    if not (path / "recipe.yaml").is_file():
        what = f"there is no recipe.yaml in {path}" if path.is_dir() else f"there is no folder {path}"
        raise FileNotFoundError(f"report: {what}; fluvial fit makes run folders")
    run = Run(path)
    recipe = run.recipe()
    target = path / "report.html" if output is None else output
    if recipe.is_study:
        write_atomic(target, _study_page(run).encode())
        return target
    flow = run.flow()
    hints = _hints(path)
    of_history, of_check, of_metrics, of_environment = ([], [], [], [])
    history, check = run.history(of_history), run.read("check.json", of_check, fits=_is_check)
    metrics, environment = run.read("metrics.json", of_metrics, fits=_is_metrics), run.environment(of_environment)
    material = Material.of(
        flow,
        run.test(),
        history=history,
        history_note=_sentence(of_history),
        check=check,
        metrics=metrics,
        title=recipe.title,
        published=recipe.published,
        which="rows" if recipe.without_data else "held-out test rows",
        configuration=(path / "recipe.yaml").read_text(encoding="utf-8"),
        environment=_flat(environment),
        hints=Hints(
            history=hints.history if not of_history else f"fluvial fit -o {path} --resume goes on.",
            check=_sentence(of_check, hints.check),
            metrics=_sentence(of_metrics, hints.metrics),
            configuration=_sentence(of_environment, hints.configuration),
        ),
        note=recipe.note,
    )
    write_atomic(target, render(material).encode())
    return target


def _study_page(run: "Run") -> str:
    """The page of a study: its figures and tables, and how it was run."""
    recipe = run.recipe()
    result = recipe.study().read(run.path)
    texts = [("Recipe, with every default", (run.path / "recipe.yaml").read_text(encoding="utf-8"))]
    how = Section("configuration", "Configuration", f"fluvial fit {run.path / 'recipe.yaml'} does it again.", folded=texts)
    return render_sections([scaling_section(result), how], title=recipe.title, summary=result.summary(), note=recipe.note)


def _hints(path: Path) -> Hints:
    return Hints(
        history=f"This run has no history.jsonl: training has not come to its first validation; fluvial fit -o {path} --resume goes on.",
        check=f"This flow has not been checked yet: run fluvial check {path}, then fluvial report {path} again.",
        metrics=f"The test figures have not been computed yet: run fluvial evaluate {path}, then fluvial report {path} again.",
        configuration=f"fluvial fit {path / 'recipe.yaml'} trains it again.",
    )


def _sentence(problems: list[str], *more: str) -> str:
    return " ".join([*(f"{problem}." for problem in problems), *more])


def _is_check(found: dict[str, Any]) -> bool:
    """Whether it can be what `fluvial.Check.to_dict` gave."""
    rows = found.get("rows", [])
    if not isinstance(rows, list) or not isinstance(found.get("title", ""), str):
        return False
    return all(
        isinstance(row, dict)
        and "name" in row
        and all(isinstance(row.get(key) or "", str) for key in ("name", "verdict", "meaning", "detail", "advice"))
        and all(_is_number(row.get(key)) for key in ("value", "error"))
        for row in rows
    )


def _is_metrics(found: dict[str, Any]) -> bool:
    """Whether it can be what `fluvial evaluate` wrote."""
    figures, references, published = found.get("figures"), found.get("references") or {}, found.get("published") or []
    if not isinstance(figures, dict) or not isinstance(references, dict) or not isinstance(published, list):
        return False
    groups = [figures, *references.values()]
    return all(isinstance(group, dict) and all(map(_is_figure, group.values())) for group in groups) and all(
        isinstance(entry, dict) for entry in published
    )


def _is_figure(entry: Any) -> bool:
    return (
        all(map(_is_number, (entry.get("value"), entry.get("standard_error"), entry.get("error")))) if isinstance(entry, dict) else _is_number(entry)
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    """Versions beside the rest, lists as text."""
    versions = environment.get("versions") or {}
    rest = {
        key.replace("_", " "): " ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in environment.items()
        if key != "versions"
    }
    return versions | rest
