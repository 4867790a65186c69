"""Run folders: where one training run keeps its recipe, weights, course and figures."""

import contextlib
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.files import write_atomic

if TYPE_CHECKING:
    from fluvial.data import Dataset, Splits
    from fluvial.flow import Flow
    from fluvial.recipes.recipe import Recipe

ROOT = Path("runs")
FILES = (
    "recipe.yaml",
    "environment.json",
    "checkpoint.pt",
    "history.jsonl",
    "model.safetensors",
    "study.json",
    "metrics.json",
    "check.json",
    "report.html",
)
LAYERS = "layers"  # folder in that of a run, for layers that are trained further
PACKAGES = ("fluvial", "torch", "numpy", "lightning", "safetensors", "scikit-learn", "airportsdata")


@dataclass(frozen=True)
class Run:
    """One run folder.

    It holds ``recipe.yaml`` (everything written out), ``environment.json``, ``checkpoint.pt``, ``history.jsonl`` and ``model.safetensors``;
    later also ``metrics.json``, ``check.json`` and ``report.html``.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def find(cls, name: str | os.PathLike[str]) -> "Run":
        """The run of that path, or the newest run of that recipe.

        Args:
            name: A folder, such as ``runs/moons/3``; or a recipe, such as ``moons``; or both without ``runs``, such as ``moons/3``.

        Raises:
            FileNotFoundError: If there is no such run; the message says which there are.
        """
        for path in (Path(name), ROOT / name):
            if (path / "recipe.yaml").is_file():
                return cls(path)
        newest = None if Path(name).is_absolute() else cls.newest(str(name))
        if newest is not None:
            return newest
        if Path(name).exists():
            raise FileNotFoundError(f"{name} is no run folder: there is no recipe.yaml in it; fluvial fit makes run folders")
        there = sorted(f"{path.parent}" for path in ROOT.glob("*/*/recipe.yaml")) if ROOT.is_dir() else []
        known = f"there are {', '.join(there[:8])}{', …' if len(there) > 8 else ''}" if there else f"there is none under {ROOT}/"
        raise FileNotFoundError(f"there is no run {str(name)!r}; {known}; begin one with fluvial fit RECIPE")

    @classmethod
    def newest(cls, recipe: str) -> "Run | None":
        """The run of a recipe with the highest number, or None."""
        numbers = [number for number in _numbers(ROOT / recipe) if (ROOT / recipe / str(number) / "recipe.yaml").is_file()]
        return cls(ROOT / recipe / str(max(numbers))) if numbers else None

    @classmethod
    def create(cls, recipe: str) -> "Run":
        """A new folder for a run of a recipe, with the next number."""
        parent = ROOT / recipe
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / str(max(_numbers(parent), default=0) + 1)
            try:
                path.mkdir()
            except FileExistsError:  # someone else began a run at the same moment
                continue
            return cls(path)

    @property
    def model(self) -> Path:
        """The file of the best weights.

        Raises:
            FileNotFoundError: If training has not come to its first validation yet.
        """
        path = self.path / "model.safetensors"
        if not path.is_file() and (self.path / "study.json").is_file():
            raise FileNotFoundError(f"{self.path} is a study: its result is a table, and there is no flow; fluvial evaluate and report show it")
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} has no model.safetensors: training has not reached a first validation; fluvial fit -o {self.path} --resume"
            )
        return path

    def recipe(self) -> "Recipe":
        """The recipe it was trained by."""
        from fluvial.recipes.recipe import Recipe

        path = self.path / "recipe.yaml"
        name = self.environment([]).get("recipe") or self.path.name
        return Recipe.parse(str(name), path.read_text(encoding="utf-8"))

    def flow(self, *, device: Any = None) -> "Flow":
        """The trained flow. The packages that its own recipe names are trusted, as they were when it was trained."""
        from fluvial.flow import Flow
        from fluvial.io import load

        flow = load(self.model, allow=self.recipe().packages(), device=device)
        if not isinstance(flow, Flow):
            raise ValueError(f"{self.model} holds a {type(flow).__name__}; expected a Flow")
        return flow

    def splits(self) -> "Splits":
        """Training, validation and test rows, made again by the recipe."""
        return self.recipe().splits()

    def test(self) -> "Dataset":
        """Rows that training did not see: those of the split, or without data exact samples of the energy."""
        return self.recipe().test()

    def environment(self, problems: list[str] | None = None) -> dict[str, Any]:
        """Versions and machine it was trained with; empty where that is not known."""
        return self.read("environment.json", problems, fits=_is_environment) or {}

    def history(self, problems: list[str] | None = None) -> list[dict[str, Any]]:
        """The rows of history.jsonl, one for each validation.

        Lines that are no rows, such as one that was cut off, are left out, with one sentence about them in `problems` or as a warning.
        """
        path = self.path / "history.jsonl"
        rows, broken = [], []
        for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], 1):
            if not line.strip():
                continue
            try:
                row = _json(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict) and isinstance(row.get("step"), int) and not isinstance(row["step"], bool):
                rows.append(row)
            else:
                broken.append(number)
        if broken:
            lines = ("line " if len(broken) == 1 else "lines ") + ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
            _tell(problems, f"{path}: {lines} of it left out, because there is no whole row with a step there")
        return rows

    def read(
        self, name: str, problems: list[str] | None = None, *, fits: Callable[[dict[str, Any]], bool] = lambda found: True
    ) -> dict[str, Any] | None:
        """One of its JSON files, or None where there is none.

        Args:
            name: Of the file.
            problems: Takes a sentence about a file that is broken, which counts as missing; without it that is a warning.
            fits: Whether an object is such as belongs into this file.
        """
        path = self.path / name
        if not path.is_file():
            return None
        try:
            found = _json(path.read_bytes())
        except (ValueError, RecursionError) as error:
            _tell(problems, f"{path} counts as missing, because it is no whole JSON file ({error})")
            return None
        if isinstance(found, dict) and fits(found):
            return found
        what = (
            "its entries are not of the kind that belongs there" if isinstance(found, dict) else f"it holds a {type(found).__name__}, not an object"
        )
        _tell(problems, f"{path} counts as missing, because {what}")
        return None

    def write(self, name: str, entries: dict[str, Any]) -> Path:
        """Write one of its JSON files, whole or not at all."""
        path = self.path / name
        write_atomic(path, (json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return path

    def clear(self) -> None:
        """Remove the files of a run, and no others."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
            (self.path / LAYERS / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none, or it holds something else
            (self.path / LAYERS).rmdir()

    def others(self) -> list[str]:
        """Names in the folder that are no files of a run."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.name not in (*FILES, LAYERS)) if self.path.is_dir() else []


def environment(command: Sequence[str], *, recipe: str, device: str) -> dict[str, Any]:
    """With what a run is made: versions, machine, command, and the commits of the working folder and of fluvial where they are under git."""
    import torch

    import fluvial

    source = Path(fluvial.__file__).parent
    return {
        "recipe": recipe,
        "command": list(command),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "git": _git("rev-parse", "HEAD"),
        # Asked only where git tracks the package: a copy in a virtual environment is not what the folder around it is at.
        "git_fluvial": _git("-C", str(source), "rev-parse", "HEAD") if _git("-C", str(source), "ls-files", "__init__.py") else None,
    }


def _is_environment(found: dict[str, Any]) -> bool:
    return isinstance(found.get("versions", {}), dict) and isinstance(found.get("resumed", []), list)


def _json(content: bytes) -> Any:
    # A whole number too long for a column of numbers becomes a float, possibly infinite.
    return json.loads(content.decode("utf-8"), parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))


def _tell(problems: list[str] | None, text: str) -> None:
    if problems is None:
        warnings.warn(text, stacklevel=3)
    else:
        problems.append(text)


def _numbers(folder: Path) -> list[int]:
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir()] if folder.is_dir() else []


def _version(package: str) -> str | None:
    if package == "fluvial":
        import fluvial

        return fluvial.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
