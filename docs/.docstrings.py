"""Docstrings of the sources in the form that the site shows: examples as code, formulas as blocks of LaTeX."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
FORMULA = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring once it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """One module, class, function or attribute."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = FORMULA.sub(fenced, text)


def fenced(match: re.Match[str]) -> str:
    """A formula as a fenced block at the same indentation."""
    indent = match[1]
    lines = [line.strip() for line in match[2].splitlines()]
    return "\n".join([f"{indent}```latex", *(indent + line for line in lines), f"{indent}```"])
