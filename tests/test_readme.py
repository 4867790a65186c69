"""Every Python block of the README and of the documentation runs, and every command line in them exists."""

import argparse
import inspect
import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAKEFILE = ROOT / "Makefile"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """Line number of the first line and text of every fenced block in one of the languages."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in FENCE.finditer(text) if m[1] in languages]


def command_lines(path: Path) -> list[tuple[str, list[str]]]:
    """Where each line of a shell block stands, and its words up to a pipe, a redirection or a comment."""
    found = []
    for first, text in blocks(path, "sh", "console", "bash"):
        for number, line in enumerate(text.splitlines(), first):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            end = next((k for k, word in enumerate(words) if word in (">", ">>", "|", "&&", ";")), len(words))
            if words[:end]:
                found.append((f"{path.relative_to(ROOT)}:{number}", words[:end]))
    return found


COMMANDS = [pytest.param(words, id=f"{where} {' '.join(words)}") for page in PAGES for where, words in command_lines(page)]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty working folder, seeded, on one thread; nothing that a page sets for all of torch outlasts it."""
    monkeypatch.chdir(tmp_path)
    threads, state, dtype = torch.get_num_threads(), torch.get_rng_state(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_python_blocks_run(page, fresh, monkeypatch):
    # As in a script or a notebook, classes that the page defines belong to __main__.
    script = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)
    for line, code in blocks(page, "python"):
        # Blank lines in front, so that an error names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), script.__dict__)


def test_pages_are_found_and_use_known_languages():
    assert len([page for page in PAGES if blocks(page, "python")]) >= 5
    for page in PAGES:
        unknown = {m[1] for m in FENCE.finditer(page.read_text(encoding="utf-8"))} - {"python", "sh", "text", "yaml", "bibtex"}
        assert not unknown, f"{page}: code blocks in {unknown} are neither run nor known"
        assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0, f"{page}: a code block does not end, or is indented"


@pytest.mark.parametrize("words", COMMANDS)
def test_command_lines_exist(words, fresh):
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE))
        asked = [word for word in words[1:] if "=" not in word]
        assert asked, "make without a target"
        assert set(asked) <= targets, f"the Makefile has {sorted(targets)}"
    elif words[0] == "fluvial":
        parse(words[1:])
    else:
        assert words[0] in {"pip", "cd", "export", "git"}, f"{words[0]} is not a command that this test knows"


def parse(words: list[str]) -> None:
    """Let the real parsers read a command line of fluvial, recipe overrides included."""
    from fluvial.cli import COMMANDS
    from fluvial.commands.fit import take_overrides
    from fluvial.recipes import names, text
    from fluvial.recipes.recipe import Recipe

    parser = argparse.ArgumentParser(prog="fluvial", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parsers = parser.add_subparsers(dest="command")
    for command in COMMANDS:
        command.add(parsers)
    rest, overrides = take_overrides(words) if words[:1] == ["fit"] else (words, [])
    if rest[-1] in ("--help", "-h"):
        assert len(rest) == 1 or rest[0] in parsers.choices
        return
    found = parser.parse_args(rest)
    assert callable(found.run)
    recipe = getattr(found, "recipe", None)
    if recipe is not None:
        # A file of the reader's own stands for any recipe.
        assert recipe in names() or recipe.endswith(".yaml") or found.resume, f"there is no recipe {recipe}"
        Recipe.parse(recipe, text(recipe if recipe in names() else "moons"), overrides)


RECIPES = [pytest.param(text, id=f"{named(page)}:{line}") for page in PAGES for line, text in blocks(page, "yaml")]


@pytest.mark.parametrize("text", RECIPES)
def test_yaml_blocks_are_recipes(text, tmp_path):
    from fluvial.recipes import locate
    from fluvial.recipes.recipe import Recipe

    (tmp_path / "mine.yaml").write_text(text)
    recipe = Recipe.parse(*locate(str(tmp_path / "mine.yaml")))
    assert recipe.gaussianize is not None or recipe.flow().manifold is not None
    assert recipe.title != "mine"


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_examples_run(path, fresh, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--steps", "40"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example says what it found"


def test_every_page_of_the_site_is_there():
    nav = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(nav) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])


def test_documented_arguments_of_fit_are_all_there_are():
    import fluvial as fl

    page = (ROOT / "docs/how-to/train.md").read_text(encoding="utf-8")
    mentioned = set(re.findall(r"^\| `(\w+)=", page, re.MULTILINE))
    assert mentioned == set(inspect.signature(fl.fit).parameters) - {"flow", "data", "objective"}
