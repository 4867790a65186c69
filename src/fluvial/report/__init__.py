"""Looking at a flow: plotly figures, and one HTML page that holds them all and needs no network."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluvial.data import Dataset
    from fluvial.flow import Flow
    from fluvial.report.angular import circle
    from fluvial.report.corner_plot import corner
    from fluvial.report.draws import latent, samples
    from fluvial.report.globe import world_map
    from fluvial.report.histograms import marginal
    from fluvial.report.inversion import distances
    from fluvial.report.learning import curves
    from fluvial.report.mesh_plot import surfaces
    from fluvial.report.pictures import images
    from fluvial.report.plane import density, scatter
    from fluvial.report.poincare_disc import disc
    from fluvial.report.ramachandran import class_maps, torus_map
    from fluvial.report.rotations import rotation_map

# Figure -> module that defines it. plotly is loaded when the first one is asked for.
_HOMES = {
    "circle": "angular",
    "class_maps": "ramachandran",
    "corner": "corner_plot",
    "curves": "learning",
    "density": "plane",
    "disc": "poincare_disc",
    "distances": "inversion",
    "images": "pictures",
    "latent": "draws",
    "marginal": "histograms",
    "rotation_map": "rotations",
    "samples": "draws",
    "scatter": "plane",
    "surfaces": "mesh_plot",
    "torus_map": "ramachandran",
    "world_map": "globe",
}

__all__ = [
    "circle",
    "class_maps",
    "corner",
    "curves",
    "density",
    "disc",
    "distances",
    "images",
    "latent",
    "marginal",
    "page",
    "rotation_map",
    "samples",
    "scatter",
    "surfaces",
    "torus_map",
    "world_map",
    "write",
]


def write(run: str | Path, *, output: str | Path | None = None) -> Path:
    """Make the HTML page of a run folder, from what the folder holds.

    Figures and checks are taken from ``metrics.json`` and ``check.json`` as they are; where one is missing, the page says which command
    makes it. The data are built again from the recipe and cut as in training, and the page shows the held-out test rows.

    Args:
        run: The folder, with ``recipe.yaml`` and ``model.safetensors``; ``history.jsonl``, ``metrics.json``, ``check.json`` and
            ``environment.json`` are shown where present.
        output: Where to write; default ``report.html`` in the folder.

    Returns:
        The path of the page, written whole or not at all.

    Raises:
        FileNotFoundError: If the folder, its recipe or its model is missing.
        OSError: If the page cannot be written.
    """
    from fluvial.report.folder import write_report

    return write_report(Path(run), None if output is None else Path(output))


def page(
    flow: "Flow",
    dataset: "Dataset | Any",
    *,
    history: Any = None,
    check: Any = None,
    metrics: dict[str, Any] | None = None,
    title: str = "",
    seed: int = 0,
) -> str:
    """One self-contained HTML page about a flow, as text: nothing in it asks the network for anything.

    Args:
        flow: The flow.
        dataset: Data that were not trained on, anything that ``fluvial.data.as_dataset`` takes.
        history: What ``fluvial.fit`` returned, or its rows.
        check: What ``fluvial.check`` returned, or its ``to_dict()``.
        metrics: What ``fluvial.metrics.figures`` returned: name -> number or estimate.
        title: Heading; default the name of the data set.
        seed: Of all samples drawn.

    Returns:
        The page; about 5 MB, most of it the plotting library.

    Raises:
        TypeError: If flow is not a Flow.
        ValueError: If the data have another shape than the flow, or no condition where the flow wants one.

    Example:
        >>> import fluvial as fl
        >>> flow = fl.Flow(fl.codecs.Standardize(2), fl.bases.Normal(2))
        >>> text = page(flow, fl.data.moons(200, seed=0), title="Two moons")
        >>> "<h1>Two moons</h1>" in text
        True
    """
    from fluvial.report.html import render
    from fluvial.report.material import Material

    return render(Material.of(flow, dataset, history=history, check=check, metrics=metrics, title=title, seed=seed))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"fluvial.report.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fluvial.report' has no attribute {name!r}")
