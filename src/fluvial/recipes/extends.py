"""Recipes that say only how they differ from another."""

from typing import Any

import yaml


def merged(base: Any, change: Any) -> Any:
    """Two trees as one: mappings key by key, everything else, and every class with another class_path, as the change has it.

    Example:
        >>> merged({"fit": {"max_steps": 10, "seed": 0}}, {"fit": {"max_steps": 20}})
        {'fit': {'max_steps': 20, 'seed': 0}}
    """
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    if change.get("class_path", base.get("class_path")) != base.get("class_path"):
        return change
    return base | {key: merged(base[key], value) if key in base else value for key, value in change.items()}


def resolve(name: str, text: str, read: Any, seen: tuple[str, ...] = ()) -> str:
    """The YAML of a recipe with what it extends filled in.

    Args:
        name: The recipe, for messages.
        text: Its YAML.
        read: Gives the YAML of the recipe that `extends` names.
        seen: Packaged recipes on the way here. The first one is not yet among them: a file of the user's may have the name of what it extends.

    Returns:
        The text as it is where it extends nothing, or is no mapping: that is complained about elsewhere.

    Raises:
        ValueError: If recipes extend each other in a circle, or `extends` is no name.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if not isinstance(tree, dict) or "extends" not in tree:
        return text
    parent = tree.pop("extends")
    if not isinstance(parent, str):
        raise ValueError(f"recipe {name}: extends must be the name of a packaged recipe, got {parent!r}")
    if parent in seen:
        raise ValueError(f"recipe {name}: extends goes in a circle, {' → '.join((*seen, parent))}")
    whole = merged(yaml.safe_load(resolve(parent, read(parent), read, (*seen, parent))), tree)
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
