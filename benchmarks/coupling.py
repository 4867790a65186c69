"""What exact spline couplings cost beside their bare networks, and beside other packages.

Rational-quadratic couplings of the same sizes in every package: 8 layers, networks 3×128, a condition of 4 numbers, box [−5, 5], float32, batch 4096.
Limit: the eight networks alone, on inputs of the same length (training: forward, backward with input gradients, Adam). All run alternately in
one process on one thread, A B C … C B A; process CPU time; figures are medians over the rounds of the ratio to the limit in the same round, with
the ratio of the two fastest rounds beside it. Every model starts from weights of the same distribution, at which its spline parameters are of
order one; before anything is timed, each must return from a round trip and give finite densities.

    python benchmarks/coupling.py [--rounds 9] [--compile] [--memory] [--activation relu] [--output benchmarks/results/coupling.json]
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coupling_models import ACTIVATIONS, NOTES, PEERS, Contestant, Limit, Size, absent, check, contestants, spread_, version

SIZES = ((8, 8), (32, 16))  # coordinates d, bins K
OPERATIONS = ("training", "log_prob", "sampling")


def trainer(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """A training step."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        module.train()
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def tasks(model: Contestant, x: Tensor, c: Tensor) -> dict[str, Callable[[], object]]:
    """The three operations as functions without arguments."""

    def still(operation: Callable[[], Tensor]) -> Tensor:
        model.module.eval()
        with torch.no_grad():
            return operation()

    return {
        "training": trainer(model.module, lambda: -model.log_prob(x, c).mean()),
        "log_prob": lambda: still(lambda: model.log_prob(x, c)),
        "sampling": lambda: still(lambda: model.sample(c)),
    }


class _Pull(torch.autograd.Function):
    """Lets go of a network's output, as a flow does once it has used it, and hands back a fixed gradient.

    Keeping the outputs of all networks until the end would cost fresh pages in some rounds, which no flow pays, and flatter everything measured
    against it.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return out.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def limit_tasks(size: Size) -> dict[str, Callable[[], object]]:
    """Training step and forward pass of the networks alone."""
    torch.manual_seed(0)
    module = Limit(size)
    spread_(module, size)
    x = torch.randn(size.batch, size.features // 2 + size.context)
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        gradient = torch.randn_like(module.networks[0](x)) / size.batch

    def loss() -> Tensor:
        leaf.grad = None
        return torch.stack([_Pull.apply(network(leaf), gradient) for network in module.networks]).sum()

    def forward() -> None:
        with torch.no_grad():
            for network in module.networks:
                network(x)

    return {"training": trainer(module, loss), "log_prob": forward, "sampling": forward}


def interleaved(runners: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Process CPU seconds of each, for every round; forwards and backwards in turn."""
    for run in runners.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for k in range(rounds):
        for name in list(runners) if k % 2 == 0 else list(runners)[::-1]:
            runners[name]()  # brings its data into the cache; not counted
            start = time.process_time()
            for _ in range(repeats):
                runners[name]()
            times[name].append((time.process_time() - start) / repeats)
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median of the ratios per round, and ratio of the fastest rounds."""
    base = times["limit"]
    return {
        name: {"median": statistics.median(t / b for t, b in zip(own, base)), "min": min(own) / min(base)}
        for name, own in times.items()
        if name != "limit"
    }


def compile_seconds(model: Contestant, x: Tensor, c: Tensor) -> dict[str, float]:
    """Seconds, of this process and the compilers it starts, until each operation has run once, from an empty cache."""
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    found = {}
    for name, run in tasks(model, x, c).items():
        with fresh_cache():
            start = sum(os.times()[:4])
            run()
            found[name] = sum(os.times()[:4]) - start
    return found


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of different storages that a forward pass keeps for backward, parameters included."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def memory(models: dict[str, Contestant], size: Size, x: Tensor, c: Tensor) -> dict[str, float]:
    """Kept for backward, as multiples of what the networks alone keep."""
    module = Limit(size)
    leaf = torch.randn(size.batch, size.features // 2 + size.context, requires_grad=True)
    base = saved_bytes(lambda: module(leaf))
    found = {}
    for name, model in models.items():
        if name != "fluvial compiled":
            model.module.train()
            found[name] = saved_bytes(lambda model=model: model.log_prob(x, c)) / base
    return {**found, "limit MB": base / 1e6}


def measure(size: Size, names: Sequence[str], *, rounds: int, with_memory: bool = False) -> dict:
    """All figures of one size."""
    x, c = 1.3 * torch.randn(size.batch, size.features), torch.randn(size.batch, size.context)
    models = contestants(size, names)
    errors = {name: check(name, model, x, c) for name, model in models.items() if name != "fluvial compiled"}
    result: dict = {"round trip": errors}
    if "fluvial compiled" in models:
        result["compile s"] = compile_seconds(models["fluvial compiled"], x, c)
    runners = {name: tasks(model, x, c) for name, model in models.items()}
    runners = {"limit": limit_tasks(size), **runners}
    for operation in OPERATIONS:
        times = interleaved({name: runner[operation] for name, runner in runners.items()}, rounds, 1 if operation == "training" else 2)
        result[operation] = ratios(times)
        result[operation]["limit ms"] = 1e3 * statistics.median(times["limit"])
        if "fluvial" in models and "fluvial compiled" in models:
            saved = statistics.median(a - b for a, b in zip(times["fluvial"], times["fluvial compiled"]))
            result[operation]["pays after"] = result["compile s"][operation] / saved if saved > 0 else None
    if with_memory:
        result["memory"] = memory(models, size, x, c)
    return result


def gates(results: dict[str, dict]) -> dict[str, str]:
    """The goals, each with what was found."""
    found = {}
    for (d, bins), training, log_prob, share in zip(SIZES, (1.8, 2.0), (1.7, 2.3), (0.7, 0.55)):
        figures = results.get(str(Size(d, bins)))
        if figures is None:
            continue

        def of(operation: str, name: str = "fluvial", figures: dict = figures) -> float:
            return figures[operation][name]["median"]

        rows = [
            ("training ≤ {} × limit", of("training"), training),
            ("log_prob ≤ {} × limit", of("log_prob"), log_prob),
            ("sampling ≤ {} × limit", of("sampling"), 1.7),
            ("sampling ≤ {} × log_prob", of("sampling") / of("log_prob"), 1.1),
        ]
        if "zuko coupling" in figures["training"]:
            rows.append(("training ≤ {} × zuko coupling", of("training") / of("training", "zuko coupling"), share))
            rows.append(("log_prob ≤ {} × zuko coupling", of("log_prob") / of("log_prob", "zuko coupling"), 0.6))
        peers = [of("training", name) for name in PEERS if name in figures["training"]]
        if peers:
            rows.append(("best peer's training ≥ {} × ours", min(peers) / of("training"), 1.4))
        if "memory" in figures and d == 32:
            rows.append(("kept for backward ≤ {} × limit", figures["memory"]["fluvial"], 3.5))
        for text, value, goal in rows:
            holds = value >= goal if "≥" in text else value <= goal
            found[f"d={d}: {text.format(goal)}"] = f"{'PASS' if holds else 'MISS'} ({value:.2f})"
    return found


def table(results: dict[str, dict]) -> str:
    """The figures as Markdown."""
    lines = []
    for size, figures in results.items():
        lines += [
            f"**{size}** (limit {figures['training']['limit ms']:.0f} ms a training step, {figures['log_prob']['limit ms']:.0f} ms forward)",
            "",
        ]
        columns = [*OPERATIONS, *(["kept for backward"] if "memory" in figures else []), "round trip, float32"]
        lines += [f"| model | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for name in (name for name, value in figures["training"].items() if isinstance(value, dict)):
            cells = [f"{figures[o][name]['median']:.2f} ({figures[o][name]['min']:.2f})" for o in OPERATIONS]
            if "memory" in figures:
                cells.append(f"{figures['memory'][name]:.1f}" if name in figures["memory"] else "–")
            cells.append(f"{figures['round trip'][name]:.0e}" if name in figures["round trip"] else "–")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        if "compile s" in figures:
            for operation in OPERATIONS:
                pays = figures[operation]["pays after"]
                after = f"pays after {pays:.0f} calls" if pays else "is not faster than eager"
                lines += ["", f"Compiling {operation}: {figures['compile s'][operation]:.0f} CPU s; {after}."]
        lines.append("")
    return "\n".join(lines)


def processor() -> str:
    """What the figures were measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown")
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, one thread"


def settle_allocator() -> None:
    """Large blocks are from now on taken from the heap and kept; else the first sizes measured pay for fresh pages and the later ones do not."""
    torch.empty(2**23 - 2**10)  # glibc raises its threshold to the largest block freed so far, up to 32 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also ours compiled (minutes of compiling)")
    parser.add_argument("--memory", action="store_true", help="also what is kept for backward")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="silu")
    parser.add_argument("--only", nargs="*", help="models to run, default all")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settle_allocator()
    missing = absent()
    for package, reason in missing.items():
        print(f"{package}: {reason}")
    names = ["fluvial", *(["fluvial compiled"] if arguments.compile else []), *(n for n, (package, _) in PEERS.items() if package not in missing)]
    names = [name for name in names if not arguments.only or name in arguments.only]
    load = os.getloadavg()
    results = {}
    for d, bins in SIZES:
        size = Size(d, bins, activation=arguments.activation)
        with warnings.catch_warnings(action="ignore"):  # of other packages
            results[str(size)] = measure(size, names, rounds=arguments.rounds, with_memory=arguments.memory)
        print(table({str(size): results[str(size)]}), flush=True)
    versions = {package: version(package) for package in ("torch", *dict.fromkeys(package for package, _ in PEERS.values()))}
    record = {
        "processor": processor(),
        "load": {"before": load, "after": os.getloadavg()},
        "versions": versions,
        "absent": missing,
        "notes": NOTES,
        "sizes": Size(0, 0, activation=arguments.activation)._asdict() | {"features": None, "bins": None},
        "rounds": arguments.rounds,
        "ratios to the limit": results,
        "gates": gates(results) if "fluvial" in names else {},
    }
    print("\n".join(f"{verdict[:4]}  {text}  {verdict[5:]}" for text, verdict in record["gates"].items()))
    print(f"{record['processor']}; load {load[0]:.1f} → {os.getloadavg()[0]:.1f}; {versions}")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
