"""What a condition is worth: the NLL of a conditional run against that of an unconditional one, on the same test rows.

fluvial fit top8000-types
fluvial fit top8000-mixed
python benchmarks/conditional_gain.py runs/top8000-types/1 runs/top8000-mixed/1
"""

import argparse
import json
from pathlib import Path

import torch

from fluvial.metrics.estimate import mean_estimate
from fluvial.metrics.likelihood import log_prob
from fluvial.runs import Run


def main() -> None:
    """Compare two runs row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditional", help="folder of the run that is given the condition")
    parser.add_argument("unconditional", help="folder of the run that is not")
    parser.add_argument("--output", type=Path, help="write the figures as JSON there")
    arguments = parser.parse_args()
    runs = [Run.find(arguments.conditional), Run.find(arguments.unconditional)]
    tests = [run.recipe().test() for run in runs]
    if not torch.equal(tests[0].x, tests[1].x):
        raise SystemExit("the two runs have different test rows: give them one data set, in one order, and one split")
    rows = [log_prob(run.flow(), test.x, test.c) for run, test in zip(runs, tests)]
    nlls = [mean_estimate(-row) for row in rows]
    gain = mean_estimate(rows[0].double() - rows[1].double())
    print(f"{len(tests[0])} test rows")
    print(f"  conditional    {nlls[0]}  {runs[0].path}")
    print(f"  unconditional  {nlls[1]}  {runs[1].path}")
    print(f"  gain           {gain}, {gain.value / gain.standard_error:.1f} standard errors")
    if arguments.output is not None:
        found = {"rows": len(tests[0]), "runs": [str(run.path) for run in runs], "nll": [e.value for e in nlls]}
        found |= {"nll_error": [e.standard_error for e in nlls], "gain": gain.value, "gain_error": gain.standard_error}
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
