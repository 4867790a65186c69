"""What sampling from a free-form flow on a manifold costs: beside its bare network, and beside flow matching with the same network.

1. Overhead: `flow.decode(z)`, and `flow.sample(n)` less the base's draw, beside one bare call of the decoder and a projection. What the draw costs
   in place is what project(decoder(base.sample(n))), by hand, costs more than the bare call. Timed alone it is faster, which leaves more to the rest:
   both are judged.
2. `flow.sample(n)` beside 100 Euler steps of Riemannian flow matching with the same network, which takes the time as one more input.
3. The honest ratio: the fewest steps of a solver whose test NLL is no higher than the flow's. The NLL of N steps is exact, by the log-det of the
   composed steps, each inverted by Newton's method. Where a step folds, so that the density would be a sum over several preimages, a classifier
   decides: 10 000 samples must be told from held-out rows no better than the flow's own, within a standard error.

All run alternately in one process on one thread; process CPU time; figures are medians over the rounds of ratios within a round.

    python benchmarks/manifold_sampling.py [RUN] [--baseline FOLDER] [--rounds 31] [--output benchmarks/results/manifold_sampling.json]
    python benchmarks/manifold_sampling.py --manifold so3 [--data NAME] [--train-seconds 120]

RUN is the folder of a trained flow, and the baseline is what riemannian_flow_matching.py made of it. With --manifold, a flow with the networks of the
floods recipe is built instead; without seconds to train in, only speed is measured, which does not depend on the weights.
"""

import argparse
import copy
import datetime
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fluvial as fl
from coupling import processor, settle_allocator
from fixed_steps import STEPS, folds, log_prob_steps, sample_steps
from fluvial.data import Dataset, Splits
from fluvial.manifolds import Manifold, SpecialOrthogonal, Sphere, Torus
from fluvial.metrics import c2st, nll
from fluvial.runs import Run
from riemannian_flow_matching import VelocityField, field_like, log_prob_ode, restore, sample_ode, summary, train

BATCHES = (100, 10_000)
LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200)
MOST_CALLS = 200
CONVERGED = 0.01  # nats from the ODE's NLL, from where on more steps change nothing
MANIFOLDS = {"sphere": (Sphere(2), "floods"), "torus": (Torus(2), "ramachandran"), "so3": (SpecialOrthogonal(3), "so3_mixture")}
SAMPLES = 10_000
OVERHEAD, EULER = 1.15, 80  # the goals
OVERHEADS = ("decode", "sample less base", "sample less base alone", "base in place", "base alone")


class Rivals(NamedTuple):
    """A flow and its baseline; test rows and what is known of the baseline's training, or None where the two are not trained."""

    name: str
    flow: fl.Flow
    field: VelocityField
    splits: Splits | None
    training: dict[str, Any] | None


# ---------------------------------------------------------------------------------------------------------------------- speed


def alternate(runners: dict[str, Callable[[], object]], rounds: int, *, shortest: float = 0.02) -> dict[str, list[float]]:
    """Process CPU seconds of each in every round, forwards and backwards in turn; quick ones are repeated until `shortest` seconds have passed."""
    repeats = {}
    for name, run in runners.items():
        run()
        start = time.process_time()
        run()
        repeats[name] = max(1, round(shortest / max(time.process_time() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for k in range(rounds):
        for name in list(runners) if k % 2 == 0 else list(runners)[::-1]:
            runners[name]()  # brings its data into the cache; not counted
            start = time.process_time()
            for _ in range(repeats[name]):
                runners[name]()
            times[name].append((time.process_time() - start) / repeats[name])
    return times


def middle(values: list[float]) -> dict[str, float]:
    """Median and quartiles over the rounds."""
    lower, median, upper = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "lower quartile": lower, "upper quartile": upper}


@torch.no_grad()
def overhead(flow: fl.Flow, n: int, rounds: int) -> dict[str, Any]:
    """Ratios to one bare network call and a projection."""
    decoder, manifold, z = flow.codec.decoder, flow.manifold, flow.base.sample(n)
    times = alternate(
        {
            "bare": lambda: manifold.project(decoder(z)),
            "decode": lambda: flow.decode(z),
            "sample": lambda: flow.sample(n),
            "base": lambda: flow.base.sample(n),
            "by hand": lambda: manifold.project(decoder(flow.base.sample(n))),
        },
        rounds,
    )
    rows = list(zip(*times.values()))
    return {
        "decode": middle([decode / bare for bare, decode, _, _, _ in rows]),
        "sample less base": middle([1 + (sample - by_hand) / bare for bare, _, sample, _, by_hand in rows]),
        "sample less base alone": middle([(sample - base) / bare for bare, _, sample, base, _ in rows]),
        "base in place": middle([by_hand / bare - 1 for bare, _, _, _, by_hand in rows]),
        "base alone": middle([base / bare for bare, _, _, base, _ in rows]),
        "bare ms": 1e3 * statistics.median(times["bare"]),
        "base ms": 1e3 * statistics.median(times["base"]),
    }


@torch.no_grad()
def against(rivals: Rivals, n: int, rounds: int, solvers: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Times of solvers (a step and how many), relative to `flow.sample(n)`; draws of both bases are counted, and left out in a second figure."""
    flow, field = rivals.flow, rivals.field
    x0 = field.base(n)
    runners: dict[str, Callable[[], object]] = {
        "sample": lambda: flow.sample(n),
        "base": lambda: flow.base.sample(n),
        "uniform": lambda: field.base(n),
    }
    for name, (step, count) in solvers.items():
        runners[name] = lambda step=step, count=count: sample_steps(field, x0, STEPS[step][0], count)
    times = alternate(runners, rounds)
    result: dict[str, Any] = {}
    for name in solvers:
        rows = list(zip(times["sample"], times["base"], times["uniform"], times[name]))
        result[name] = {
            "with base draws": middle([(uniform + solver) / sample for sample, _, uniform, solver in rows]),
            "without": middle([solver / (sample - base) for sample, base, _, solver in rows]),
            "ms": 1e3 * statistics.median(times[name]),
        }
    return result | {"sample ms": 1e3 * statistics.median(times["sample"])}


# -------------------------------------------------------------------------------------------------------------------- quality


def estimate(log_p: Tensor) -> dict[str, Any]:
    """Mean NLL, its standard error, and how many rows it is of."""
    return {"value": -float(log_p.mean()), "standard error": float(log_p.std() / len(log_p) ** 0.5), "rows": len(log_p)}


def quality(rivals: Rivals) -> dict[str, Any]:
    """Test NLLs in nats: the flow's (density of its decoder), and the baseline's by the ODE."""
    assert rivals.splits is not None
    flow, x = rivals.flow, rivals.splits.test.x
    figures = {}
    with warnings.catch_warnings(action="ignore"):  # rows without a preimage, which make the mean infinite
        for at in ("reconstruction", "preimage"):
            found = nll(flow, x, at=at)
            figures[f"flow, at {at}"] = {"value": found.value, "standard error": found.standard_error, "rows": len(x)}
    figures["flow matching, ODE"] = estimate(log_prob_ode(copy.deepcopy(rivals.field).double(), x.double()))
    figures["dopri5 calls"] = sample_ode(rivals.field, rivals.field.base(1000))[1]
    return figures


class Judge:
    """Says whether a number of steps is as good as the flow."""

    def __init__(self, rivals: Rivals, ours: float, limit: float, *, samples: int = SAMPLES) -> None:
        assert rivals.splits is not None
        self.ours = ours
        self.limit = limit
        self.flow = rivals.flow
        self.field = rivals.field
        self.double = copy.deepcopy(rivals.field).double()
        self.test = rivals.splits.test.x.double()
        # Neither of the two was trained on these.
        self.held_out = torch.cat([rivals.splits.validation.x, rivals.splits.test.x])
        self.x0 = self.field.base(samples, torch.Generator().manual_seed(1))
        self.own: dict[str, float] | None = None

    def auc(self, samples: Tensor) -> dict[str, float]:
        """Mean over up to four parts of the samples, each as large as the held-out set; the error is that of one, as they share that set."""
        size = min(len(self.held_out), len(samples))
        found = [c2st(part, self.held_out, max_rows=size).auc for part in samples.split(size)[: min(4, len(samples) // size)]]
        return {"value": statistics.mean(f.value for f in found), "standard error": statistics.mean(f.standard_error for f in found)}

    @torch.no_grad()
    def __call__(self, name: str, count: int) -> dict[str, Any]:
        """The figures of `count` steps, and whether they reach the flow's; or whether they are those of the ODE already, and higher."""
        step, calls = STEPS[name]
        density = log_prob_steps(self.double, self.test, step, count)
        folding = float(folds(self.field, self.x0[:2000], step, count).double().mean())
        row: dict[str, Any] = {
            "steps": count,
            "calls": calls * count,
            "folding samples": folding,
            "rows without preimage": int((~density.solved).sum()),
            "rows at a fold": int((density.solved & ~density.upright).sum()),
        }
        if folding == 0 and bool((density.solved & density.upright).all()):
            found = estimate(density.log_prob)
            return row | {"nll": found, "reached": found["value"] <= self.ours, "converged": abs(found["value"] - self.limit) < CONVERGED}
        if self.own is None:
            self.own = self.auc(self.flow.sample(len(self.x0), generator=torch.Generator().manual_seed(2)))
        auc = self.auc(sample_steps(self.field, self.x0, step, count))
        reached = auc["value"] <= self.own["value"] + self.own["standard error"]
        return row | {"c2st auc": auc, "c2st auc of the flow": self.own, "reached": reached, "converged": False}


def fewest(judge: Judge, name: str, ladder: tuple[int, ...] = LADDER) -> list[dict[str, Any]]:
    """The rows of all numbers of steps up to the first that reaches the flow, or from which on more steps change nothing."""
    rows = []
    for count in ladder:
        if count * STEPS[name][1] > MOST_CALLS:
            break
        rows.append(judge(name, count))
        if rows[-1]["reached"] or rows[-1]["converged"]:
            break
    return rows


# --------------------------------------------------------------------------------------------------------------------- output


def gates(record: dict[str, Any]) -> dict[str, str]:
    """The goals, each with what was found."""
    found = {}

    def judge(text: str, value: float, holds: bool) -> None:
        found[text] = f"{'PASS' if holds else 'MISS'} ({value:.2f})"

    for n, figures in record["overhead"].items():
        for name in OVERHEADS[:3]:
            value = figures[name]["median"]
            judge(f"batch {n}: {name} ≤ {OVERHEAD} × bare", value, value <= OVERHEAD)
    for n, figures in record["against"].items():
        # The faster of the two forms of Euler is the rival.
        value = min(figures[name]["with base draws"]["median"] for name in ("euler 100", "projected euler 100"))
        judge(f"batch {n}: Euler-100 ≥ {EULER} × sample", value, value >= EULER)
    return found


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"**{record['name']}**", "", "| batch | bare, ms | decode | sample less base | less base alone | base | base alone |"]
    lines.append("|---|---|---|---|---|---|---|")
    for n, figures in record["overhead"].items():
        cells = [f"{figures[name]['median']:.2f}" for name in OVERHEADS]
        lines.append(f"| {n} | {figures['bare ms']:.2f} | {' | '.join(cells)} |")
    lines += ["", "| batch | solver | × flow.sample | × without base draws |", "|---|---|---|---|"]
    for n, figures in record["against"].items():
        for name, row in figures.items():
            if isinstance(row, dict):
                lines.append(f"| {n} | {name} | {row['with base draws']['median']:.1f} | {row['without']['median']:.1f} |")
    if record["quality"] is None:
        return "\n".join([*lines, "", "Not trained: no likelihoods, and no fewest steps."])
    lines += ["", "| test NLL | nats |", "|---|---|"]
    for name, row in record["quality"].items():
        if isinstance(row, dict):
            lines.append(f"| {name} | {row['value']:.3f} ± {row['standard error']:.3f} |")
    lines += ["", "| steps until the flow's NLL | calls | by | figure |", "|---|---|---|---|"]
    for name, rows in record["fewest"].items():
        row = rows[-1]
        by, figure = ("log-det", row["nll"]) if "nll" in row else ("C2ST", row["c2st auc"])
        verdict = "" if row["reached"] else ": never, as the ODE's is higher; converged by" if row["converged"] else ": not by"
        steps = f"{name}{verdict} {row['steps']}"
        lines.append(f"| {steps} | {row['calls']} | {by} | {figure['value']:.3f} ± {figure['standard error']:.3f} |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------- set-up


def trained(run: Run, baseline: Path, train_seconds: float | None) -> Rivals:
    """A run and its baseline, trained now where it is not there and there are seconds to do it in."""
    flow, splits = run.flow().eval(), run.splits()
    decoder = flow.codec.decoder
    if train_seconds:
        field = field_like(decoder, flow.manifold)
        course = train(field, splits.train, splits.validation.x, seconds=train_seconds, batch=run.recipe().fit["batch_size"])
        return Rivals(run.path.name, flow, field, splits, summary(course))
    if not baseline.is_dir():
        print(f"there is no baseline {baseline}: speed only; python benchmarks/riemannian_flow_matching.py {run.path} trains one")
        return Rivals(run.path.name, flow, field_like(decoder, flow.manifold), None, None)
    field, training = restore(decoder, flow.manifold, baseline)
    return Rivals(run.path.name, flow, field, splits, training)


def fresh(manifold: Manifold, data: Dataset | None, train_seconds: float | None) -> Rivals:
    """A flow with the networks of the floods recipe, and its baseline, both trained for some seconds if there are data."""
    torch.manual_seed(0)
    flow = fl.flows.free_form(manifold=manifold, width=128, blocks=4, activation="sin", input_scale=3.0)
    field = field_like(flow.codec.decoder, manifold)
    if data is None or not train_seconds:
        return Rivals(f"{manifold}, untrained", flow.eval(), field, None, None)
    splits = data.split()
    fl.fit(flow, splits.train, validation=splits.validation, max_time=train_seconds, learning_rate=2e-3, batch_size=256, patience=float("inf"))
    course = train(field, splits.train, splits.validation.x, seconds=train_seconds)
    return Rivals(f"{data.spec.manifold}, {data.name}", flow.eval(), field, splits, summary(course))


def honest(figures: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The cheapest of the solvers that reach the flow, how many times `flow.sample` it takes, and what says that it reaches it."""
    last = {f"{name} {rows[-1]['steps']}": rows[-1] for name, rows in found.items() if rows[-1]["reached"]}
    if not last:
        return None
    name = min(last, key=lambda name: figures[name]["with base draws"]["median"])
    row = figures[name]
    by = "exact log-det" if "nll" in last[name] else "C2ST"
    return {
        "solver": name,
        "calls": last[name]["calls"],
        "by": by,
        "ratio": row["with base draws"]["median"],
        "without base draws": row["without"]["median"],
    }


def measure(rivals: Rivals, *, rounds: int, batches: tuple[int, ...] = BATCHES, ladder: tuple[int, ...] = LADDER, samples: int = SAMPLES) -> dict:
    """All figures of one pair."""
    record: dict[str, Any] = {"name": rivals.name, "training of the baseline": rivals.training, "quality": None, "fewest": {}}
    record["overhead"] = {n: overhead(rivals.flow, n, rounds) for n in batches}
    solvers = {"euler 100": ("euler", 100), "projected euler 100": ("projected euler", 100)}
    if rivals.splits is not None:
        record["quality"] = quality(rivals)
        ours, limit = (record["quality"][name]["value"] for name in ("flow, at reconstruction", "flow matching, ODE"))
        judge = Judge(rivals, ours, limit, samples=samples)
        for name in STEPS:
            record["fewest"][name] = rows = fewest(judge, name, ladder)
            if rows[-1]["reached"]:
                solvers[f"{name} {rows[-1]['steps']}"] = (name, rows[-1]["steps"])
    # A hundred steps take as long as a hundred rounds of anything else.
    record["against"] = {n: against(rivals, n, max(3, rounds // 4), solvers) for n in batches}
    record["honest ratio"] = {n: honest(figures, record["fewest"]) for n, figures in record["against"].items()}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="benchmarks/results/floods-quick-seed0", help="folder of a trained flow")
    parser.add_argument("--baseline", type=Path, help="folder of its baseline; default flow-matching-… beside it")
    parser.add_argument("--manifold", choices=MANIFOLDS, help="build a flow on this manifold instead")
    parser.add_argument("--data", help="name of the function of fluvial.data to train on, with --manifold")
    parser.add_argument("--train-seconds", type=float, help="train the baseline now; with --manifold, the flow too")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settle_allocator()
    load = os.getloadavg()
    if arguments.manifold:
        manifold, name = MANIFOLDS[arguments.manifold]
        name = arguments.data or name
        rivals = fresh(manifold, getattr(fl.data, name)() if name and arguments.train_seconds else None, arguments.train_seconds)
    else:
        run = Run.find(arguments.run)
        rivals = trained(run, arguments.baseline or run.path.parent / f"flow-matching-{run.path.name}", arguments.train_seconds)
    record = measure(rivals, rounds=arguments.rounds)
    record["gates"] = gates(record)
    record |= {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": {"before": load, "after": os.getloadavg()},
        "torch": torch.__version__,
        "rounds": arguments.rounds,
    }
    print(table(record))
    print("\n".join(f"{verdict[:4]}  {text}  {verdict[5:]}" for text, verdict in record["gates"].items()))
    for n, found in record["honest ratio"].items():
        if found is not None:
            ratios = f"{found['ratio']:.1f} × flow.sample, {found['without base draws']:.1f} × without base draws"
            print(f"batch {n}: honest ratio: {found['solver']} steps ({found['calls']} calls) reach the flow, by {found['by']}: {ratios}")
    print(f"baseline: {rivals.training}; {record['processor']}; load {load[0]:.1f} → {os.getloadavg()[0]:.1f}; torch {torch.__version__}")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
