"""One line out of the tree of explanations in which jsonargparse says what is wrong with a recipe."""

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence
from typing import NamedTuple

from fluvial.recipes.spelling import PRODUCT

_KEY = re.compile(r'Parser key "(.+)":')
_CLASS = re.compile(r"Problem with given class_path '(.+)':")
_OPTION = re.compile(r"Option '(.+)' is not accepted")
_GROUP_OPTION = re.compile(r"Group '(.+)' does not accept option '(.+)'")
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?")
_NOT_A_CLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
_NOT_A_MAPPING = re.compile(r"Unable to load config ['\"](.*)['\"]")
_NO_CLASS = re.compile(r"Not a valid subclass of (\w+)\. Got value: (.*)")
_UNION = "Does not validate against any of the Union subtypes"
_WORDS = {
    "NoneType": "null",
    "str": "a text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "dict": "a mapping",
}
_PLAIN = "fluvial.recipes.recipe."  # records of the schema itself, which are written without class_path


class _Node(NamedTuple):
    """A line and what stands indented below it; bullets are nodes without text."""

    text: str
    children: list["_Node"]


def complaint(message: str, known: Sequence[str] = ()) -> str:
    r"""Say in one line which key is wrong, what was expected and what was received.

    Args:
        message: What jsonargparse raised.
        known: The keys there are, dotted, for suggestions.

    Example:
        >>> complaint("Parser key \"fit.seed\":\n  Expected a <class 'int'>. Got value: 1.5")
        'fit.seed: expected a whole number, got 1.5'
    """
    if found := re.match(r"unrecognized arguments: (?:--)?([^\s=]+)", message):
        section, _, key = found[1].partition(".")
        within = [name.removeprefix(f"{section}.") for name in known if name.startswith(f"{section}.")]
        return f"there is no key {found[1]}{_nearest(key, within) or (f'; {section} has ' + ', '.join(within) if within else '')}"
    if found := re.match(r"the following arguments are required: (.*)", message):
        return f"missing: {found[1]}"
    if found := re.match(r"argument --(\S+): expected one argument", message):
        return f"{found[1]}: a value is missing"
    path, text = _explain(_tree(message), "", known)
    return f"{path}: {text}" if path else text


def _tree(message: str) -> list[_Node]:
    root = _Node("", [])
    above = [(-1, root)]

    def add(indent: int, text: str) -> None:
        while above[-1][0] >= indent:
            above.pop()
        node = _Node(text, [])
        above[-1][1].children.append(node)
        above.append((indent, node))

    for line in message.splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if text.startswith("- "):
            add(indent, "")
            add(indent + 2, text[2:])
        elif text:
            add(indent, text)
    return root.children


def _explain(nodes: Sequence[_Node], class_path: str, known: Sequence[str]) -> tuple[str, str]:
    """Path of the key that is wrong, and what is wrong with it."""
    if not nodes:
        return "", "its value is not what it must be"
    node = nodes[0]
    if node.text == _UNION:
        return _explain_union(nodes, known)
    if found := _KEY.fullmatch(node.text):
        # A section as a whole is refused on lines that are not indented below its name.
        path, text = _explain(node.children or nodes[1:], "", known)
        return _joined(found[1], path), text
    if found := _CLASS.fullmatch(node.text):
        path, text = _explain(node.children, found[1], known)
        if found[1].startswith(_PLAIN):
            return path, text
        if re.search(r"No module named|has no attribute", text):
            return "class_path", text
        return _joined("init_args", path), text
    if found := _GROUP_OPTION.fullmatch(node.text):
        return found[1], f"there is no key {found[2]!r}{_nearest(found[2], [key.removeprefix(f'{found[1]}.') for key in known])}"
    if found := _OPTION.fullmatch(node.text):
        if not class_path:
            return "", f"there is no key {found[1]!r}; a recipe has {', '.join(dict.fromkeys(key.partition('.')[0] for key in known))}"
        takes = _arguments(class_path)
        if class_path.startswith("fluvial.") and class_path.endswith(".Product"):
            return "", f"{class_path} takes its factors one by one, which a recipe cannot write; {PRODUCT} takes them as init_args: {{factors: […]}}"
        return "", f"{_called(class_path)} has no argument {found[1]!r}{_nearest(found[1], takes) or '; it takes ' + (', '.join(takes) or 'none')}"
    if class_path and (found := re.match(r"the following arguments are required: (.*)", node.text)):
        return "", f"{_called(class_path)} needs {found[1]}"
    if found := _NOT_A_MAPPING.fullmatch(node.text):
        return "", f"expected a mapping, got {_short(found[1])}"
    if found := _NOT_A_CLASS.fullmatch(node.text):
        return "class_path", f"{found[1]} is neither a {found[2]} nor a function declared to return one"
    if found := _NO_CLASS.fullmatch(node.text):
        return "", f"expected a {found[1]} as class_path and init_args, got {_short(found[2])}"
    if "is abstract" in node.text:
        return "class_path", "missing; say which class is meant"
    if found := _EXPECTED.fullmatch(node.text):
        return "", f"expected {_type(found[1])}" + (f", got {_short(found[2])}" if found[2] is not None else "")
    return "", "; ".join(line.text for line in nodes)


def _explain_union(nodes: Sequence[_Node], known: Sequence[str]) -> tuple[str, str]:
    """Several types are possible: the first one that got further than its own name says what is wrong."""
    bullets = [bullet.children for node in nodes if node.text == "Errors:" for bullet in node.children]
    value = next((node.text.removeprefix("Given value: ") for node in nodes if node.text.startswith("Given value: ")), "")
    types = []
    for lines in bullets:
        found = _EXPECTED.fullmatch(lines[0].text)
        if found is None or found[2] is not None or "is abstract" in lines[0].text:
            return _explain(lines, "", known)
        types.append(_type(found[1]))
    return "", f"expected {' or '.join(dict.fromkeys(types))}, got {_short(value)}"


def _called(class_path: str) -> str:
    return "it" if class_path.startswith(_PLAIN) else class_path


def _type(text: str) -> str:
    if found := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", text):
        return _WORDS.get(found[1], found[1])
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}" if "," in found[1] else found[1]
    if text.startswith("dot import path"):
        return "a class_path such as package.module.Class"
    return f"a {text}"


def _arguments(class_path: str) -> list[str]:
    """What the class or function of that path takes."""
    module, _, name = class_path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        # What has no name of its own cannot be written in a recipe.
        return [key for key, parameter in parameters.items() if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
