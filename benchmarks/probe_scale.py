"""Does the right length of the probe help? |v|² = intrinsic dimension against |v|² = embedding dimension, as in the published M-FFF code.

The second multiplies the gradient of the volume by (embedding dimension)/(intrinsic dimension): 1.5 on S², 2 on tori, 3 on SO(3). Everything else
is the recipe's; both are trained on the same rows from the same weights, one after the other for every seed.

    FLUVIAL_DATA=… python benchmarks/probe_scale.py floods-quick --steps 6000
    FLUVIAL_DATA=… python benchmarks/probe_scale.py ramachandran-glycine --steps 2000 --beta 1000
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import fluvial as fl
from fluvial.metrics import figures, normalisation
from fluvial.recipes import locate
from fluvial.recipes.recipe import Recipe

SCALES = ("intrinsic", "embedding")


def run(name: str, scale: str, seed: int, steps: int, beta: str | None) -> dict[str, float]:
    """Train once and look at the test rows."""
    overrides = [f"--objective.probe_scale={scale}", f"--fit.seed={seed}", f"--fit.max_steps={steps}", "--fit.max_epochs=null"]
    overrides += [f"--objective.beta={beta}"] if beta is not None else []
    recipe = Recipe.parse(*locate(name), overrides)
    flow, objective = recipe.flow(), recipe.objective()
    train, validation, test = recipe.splits()
    started = time.perf_counter()
    fl.fit(flow, train, objective, validation=validation, **recipe.fit | {"progress": False})
    seconds = time.perf_counter() - started
    found = figures(flow, test)
    whole = normalisation(flow)
    nll = {key: found[key].value for key in ("nll", "nll_encoder", "reconstruction")} | {"nll_error": found["nll"].standard_error}
    integral = {} if whole is None else {"integral": whole.value, "integral_error": whole.standard_error}
    return nll | integral | {"seconds": round(seconds, 1), "steps": steps}


def main() -> None:
    """Train with both scales and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--beta", help="in place of the recipe's: a number, or auto")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/probe_scale_RECIPE[_beta].json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {scale: [] for scale in SCALES}
    suffix = "" if arguments.beta is None else f"_beta_{arguments.beta}"
    output = arguments.output or Path(__file__).parent / "results" / f"probe_scale_{arguments.recipe}{suffix}.json"
    for seed in range(arguments.seeds):
        for scale in SCALES:
            found[scale].append(run(arguments.recipe, scale, seed, arguments.steps, arguments.beta))
            print(f"seed {seed}  {scale:<10}  " + "  ".join(f"{key} {value:.4g}" for key, value in found[scale][-1].items()), flush=True)
        output.write_text(json.dumps({"recipe": arguments.recipe, "beta": arguments.beta, "runs": found}, indent=2) + "\n")
    for scale in SCALES:
        nlls = [entry["nll"] for entry in found[scale]]
        print(f"{scale:<10}  test NLL {statistics.fmean(nlls):.4f} ± {statistics.stdev(nlls) if len(nlls) > 1 else 0:.4f} over {len(nlls)} seeds")
    gains = [b["nll"] - a["nll"] for a, b in zip(found["intrinsic"], found["embedding"])]
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    print(f"embedding − intrinsic, seed by seed: {statistics.fmean(gains):+.4f} ± {spread:.4f} (positive: the corrected length is better)")


if __name__ == "__main__":
    main()
