"""Keep what a finished run is worth under benchmarks/results: its figures, course, configuration and weights, without the checkpoint.

    python benchmarks/keep.py runs/airports/1 [more runs ...]

A run becomes benchmarks/results/<recipe>-seed<seed>/; files above 5 MB are left out and named.
"""

import argparse
import json
import shutil
from pathlib import Path

import yaml

RESULTS = Path(__file__).parent / "results"
FILES = ("metrics.json", "check.json", "history.jsonl", "recipe.yaml", "environment.json", "model.safetensors")
LARGEST = 5 * 2**20


def keep(run: Path) -> Path:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    name = json.loads((run / "environment.json").read_text())["recipe"]
    target = RESULTS / f"{name}{_variant(recipe)}-seed{recipe['fit']['seed']}"
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run / name).exists():
            if (run / name).stat().st_size > LARGEST:
                print(f"left out: {run / name} is larger than 5 MB")
                continue
            shutil.copyfile(run / name, target / name)
    return target


def _variant(recipe: dict) -> str:
    """Bottlenecks of different width are different results."""
    latent = (recipe.get("flow") or {}).get("init_args", {}).get("latent")
    return f"-d{latent}" if latent else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        print(keep(run))


if __name__ == "__main__":
    main()
