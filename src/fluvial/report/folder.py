"""The page of a run folder."""

from pathlib import Path
from typing import Any

from fluvial.files import write_atomic
from fluvial.report.html import render
from fluvial.report.material import Hints, Material


def write_report(path: Path, output: Path | None = None) -> Path:
    """See `fluvial.report.write`."""
    from fluvial.runs import Run

    if not (path / "recipe.yaml").is_file():
        what = f"there is no recipe.yaml in {path}" if path.is_dir() else f"there is no folder {path}"
        raise FileNotFoundError(f"report: {what}; fluvial fit makes run folders")
    run = Run(path)
    recipe, flow = run.recipe(), run.flow()
    material = Material.of(
        flow,
        run.splits().test,
        history=run.history(),
        check=run.read("check.json"),
        metrics=run.read("metrics.json"),
        title=recipe.title,
        published=recipe.published,
        which="held-out test rows",
        configuration=(path / "recipe.yaml").read_text(encoding="utf-8"),
        environment=_flat(run.environment()),
        hints=_hints(path),
        note=recipe.note,
    )
    target = path / "report.html" if output is None else output
    write_atomic(target, render(material).encode())
    return target


def _hints(path: Path) -> Hints:
    return Hints(
        history=f"This run has no history.jsonl: training has not come to its first validation; fluvial fit -o {path} --resume goes on.",
        check=f"This flow has not been checked yet: run fluvial check {path}, then fluvial report {path} again.",
        metrics=f"The test figures have not been computed yet: run fluvial evaluate {path}, then fluvial report {path} again.",
        configuration=f"fluvial fit {path / 'recipe.yaml'} trains it again.",
    )


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    """Versions beside the rest, lists as text."""
    versions = environment.get("versions") or {}
    rest = {
        key.replace("_", " "): " ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in environment.items()
        if key != "versions"
    }
    return versions | rest
