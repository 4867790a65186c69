"""The layers of a recipe, fitted into its run folder."""

from typing import TYPE_CHECKING, Any, cast

from fluvial.runs import LAYERS, Run

if TYPE_CHECKING:
    from fluvial.data import Splits
    from fluvial.flow import Flow
    from fluvial.recipes.recipe import Recipe
    from fluvial.training import History


def fit_layers(recipe: "Recipe", place: Run, splits: "Splits", *, resume: bool) -> tuple["Flow", "History"]:
    """The flow that the section gaussianize describes.

    Where it is to be trained further, the layers have a folder of their own in that of the run, and are fitted once.

    Args:
        recipe: One with that section.
        place: The run.
        splits: Its rows; those of validation say when to stop.
        resume: Go on with the layers that are there.

    Returns:
        The flow and the course of its layers; an empty one if they were there already and training had begun.
    """
    from fluvial import gaussianization
    from fluvial.io import load
    from fluvial.training import History

    folder = place.path / LAYERS if recipe.is_trained else place.path
    if resume and recipe.is_trained and (place.path / "checkpoint.pt").is_file():
        return cast("Flow", load(folder / "model.safetensors")), History()
    courses: list[History] = []
    arguments: dict[str, Any] = recipe.gaussianize or {}
    folder.mkdir(parents=True, exist_ok=True)
    flow = gaussianization.fit(
        splits.train,
        validation=splits.validation,
        directory=folder,
        resume=resume,
        on_end=courses.append,
        progress=recipe.fit["progress"],
        **arguments,
    )
    return flow, courses[0]
