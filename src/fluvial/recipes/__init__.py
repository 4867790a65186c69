"""The recipes that come with the library: one YAML file for each experiment."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

from fluvial.recipes.extends import resolve

_FOLDER = files(__name__)
_ENDINGS = (".yaml", ".yml")


def names() -> list[str]:
    """The packaged recipes, in the order of the alphabet.

    Example:
        >>> "airports" in names()
        True
    """
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def text(name: str) -> str:
    """The YAML of a packaged recipe, with what it extends filled in.

    Raises:
        ValueError: If there is none of that name.
    """
    return resolve(name, _written(name), _written)


def _written(name: str) -> str:
    if name not in names():
        raise ValueError(unknown(name))
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def locate(recipe: str) -> tuple[str, str]:
    """Name and YAML text of a recipe, packaged or in a file; either may say ``extends: NAME`` and then only how it differs from that one.

    Args:
        recipe: The name of a packaged recipe, or the path of a .yaml file.

    Raises:
        ValueError: If there is no such recipe.
        FileNotFoundError: If there is no such file.
    """
    path = Path(recipe)
    if path.suffix in _ENDINGS:
        if not path.is_file():
            raise FileNotFoundError(f"recipe {recipe}: there is no such file")
        try:
            return path.stem, resolve(path.stem, path.read_text(encoding="utf-8"), _written)
        except UnicodeDecodeError:
            raise ValueError(f"recipe {recipe} is not a text file in UTF-8") from None
    return recipe, text(recipe)


def unknown(name: str) -> str:
    """What to say where there is no recipe of that name."""
    near = difflib.get_close_matches(name, names(), 1)
    mend = f"did you mean {near[0]}?" if near else "a file of your own must end in .yaml;"
    return f"there is no recipe {name!r}; {mend} the packaged ones are {', '.join(names())}"


def published(entry: dict[str, Any]) -> str:
    """One published figure in words.

    Example:
        >>> published({"figure": "test NLL", "value": 0.51, "source": "Sorrenson et al. (2023)", "url": "arXiv:2312.09852"})
        'test NLL 0.51 (Sorrenson et al. (2023), arXiv:2312.09852)'
    """
    where = ", ".join(filter(None, (entry.get("source"), entry.get("url"))))
    return f"{entry['figure']} {entry['value']:g} ({where})"


NOT_PUBLISHED = "no verified figure"

__all__ = ["NOT_PUBLISHED", "locate", "names", "published", "text", "unknown"]
