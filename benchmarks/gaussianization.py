"""Gaussianization beside other packages, beside its own parts, and beside a copy of the memory.

Peers: fit and scores with the same number of layers on the same rows, in turns with ours, one thread; scores on all cores too. A peer is tried with
more and more rows, up to 100 000 x 32, as long as its fit takes no more than 600 CPU seconds; the figures are those of the largest size it finished.
Nothing is extrapolated.
Throughput: what a fit does with a block, as in `gaussianization_kernel.py`; whole layers within a real fit; scores of a fitted flow.
Normalisation: the integral of fitted densities over the plane, on moons. Times are process CPU times; wall-clock times are recorded beside them.

    python benchmarks/gaussianization.py [--quick] [--peers rbig sinflow …] [--output benchmarks/results/gaussianization.json]
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import gaussianization_kernel as kernel
from fluvial.codecs.spline_loops import has_numba
from fluvial.data import moons
from gaussianization_peers import PEERS, Fitted, Mixed, Peer, TooLongError, fit_ours, limited, scores, timed, version

# Ratios to peers; million elements per CPU second; over our own eager path.
FASTER, LAYER, GOAL, GAIN, SCORES, MASS = 20.0, 20.0, 100.0, 3.0, 7.0, 0.01
LONG = 5.0  # CPU seconds after which a peer's fit is not timed again
SCORED = 7  # times, in turns
WHITENED = "ours, whitened, ICA"
TIMES = ("fit cpu", "fit wall", "score cpu", "score wall", "score, all cores wall")


class Size(NamedTuple):
    """How much is done."""

    sizes: tuple[int, ...] = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
    features: int = 32
    layers: int = 3
    limit: float = 600.0
    rounds: int = 3
    kernel_rows: int = 65_536
    fit_rows: int = 1_000_000
    fit_layers: int = 10
    fit_rounds: int = 2
    score_rows: int = 24_576
    moons: int = 2_000
    step: float = 0.02


QUICK = Size((500,), 8, 3, 60.0, 1, 8_192, 20_000, 4, 1, 4_096, 1_000, 0.05)


def against(peer: Peer, size: Size) -> dict[str, Any]:
    """The peer at the largest number of rows that it finishes, beside ours; and how it ended before, if it did."""
    data, found, ended, k = Mixed(size.features), None, "", 0
    sizes = [n for n in size.sizes if n <= peer.largest]
    while k < len(sizes):
        try:
            found = beside(peer, data, sizes[k], size)
        except TooLongError:
            ended = f"{sizes[k]} rows: more than {size.limit:g} CPU s"
            break
        except MemoryError as error:
            ended = f"{sizes[k]} rows: {error}"
            break
        # On to the largest size that will probably be finished; the sizes between would only take time.
        expected = [found["peer"]["fit cpu"] * n / sizes[k] for n in sizes]
        k = max([k + 1, *(i for i, seconds in enumerate(expected) if i > k and 1.5 * seconds < size.limit)])
    return {"class": peer.title, "package": peer.package, "version": version(peer.package), "note": peer.note, "ended": ended} | (found or {})


def beside(peer: Peer, data: Mixed, n: int, size: Size) -> dict[str, Any]:
    """Fit and scores on n rows each, in turns, beginning and ending with ours."""
    x, test = data.draw(n, seed=0), data.draw(n, seed=1)
    contestants: dict[str, Callable[[], Fitted]] = {
        "ours": lambda: fit_ours(x, size.layers, 0),
        # As the peer does: a linear map to variance 1 first, and then directions that are looked for.
        WHITENED: lambda: fit_ours(x, size.layers, 0, whiten=True, rotation="ica"),
        "peer": lambda: peer.fit(x, size.layers, 0),
    }
    spent: dict[str, dict[str, list[Any]]] = {name: {"fit": [], "score": [], "score, all cores": []} for name in contestants}
    models: dict[str, Fitted] = {}
    told: dict[str, dict[str, Any]] = {}

    def turn(name: str) -> None:
        with limited(size.limit if name == "peer" else 0.0):
            fitted, seconds = timed(contestants[name])
        models[name] = fitted
        spent[name]["fit"].append(seconds)
        told[name] = {"layers": fitted.layers, "splines": fitted.splines, "test log-likelihood": float(fitted.score(test).mean())}

    for _ in range(size.rounds):
        for name in contestants:
            turn(name)
        if spent["peer"]["fit"][-1].cpu > LONG:
            break
    turn("ours")
    for part, threads in (("score", 1), ("score, all cores", os.cpu_count() or 1)):
        torch.set_num_threads(threads)
        for _ in range(SCORED):
            for name, fitted in models.items():
                spent[name][part].append(timed(lambda fitted=fitted: fitted.score(test))[1])
    torch.set_num_threads(1)
    for name, parts in spent.items():
        for part, seconds in parts.items():
            told[name] |= {f"{part} {kind}": statistics.median(getattr(one, kind) for one in seconds) for kind in ("cpu", "wall")}
    return {
        "rows": n,
        "times measured": len(spent["peer"]["fit"]),
        "truth": float(data.log_prob(test).mean()),
        **told,
        "ratios": {key: told["peer"][key] / told["ours"][key] for key in TIMES},
        f"ratios, {WHITENED}": {key: told["peer"][key] / told[WHITENED][key] for key in TIMES},
    }


def own_rule(size: Size) -> dict[str, Any]:
    """Ours with as many layers as it takes by itself, at the largest size: where the likelihood ends, and what that costs."""
    data, n = Mixed(size.features), size.sizes[-1]
    fitted, seconds = timed(lambda: fit_ours(data.draw(n, seed=0), None, 0))
    test = data.draw(min(n, 10_000), seed=1)
    return {"rows": n, "layers": fitted.layers, "fit cpu": seconds.cpu, "test log-likelihood": float(fitted.score(test).mean())}


def blocks(size: Size) -> dict[str, Any]:
    """What a fit does with blocks, compiled and eager, beside a copy: million elements per CPU second."""
    generator = np.random.default_rng(0)
    rows = [min(kernel.BLOCK, size.kernel_rows - first) for first in range(0, size.kernel_rows, kernel.BLOCK)]
    made = [generator.normal(size=(size.features, n)).astype(np.float32) for n in rows]
    with threadpool_limits(1):
        differences = kernel.agree(made[0], 64) if has_numba() else {}
        spent = kernel.measure(made, 64, size.rounds)
    elements = size.kernel_rows * size.features
    wanted = ("layer, compiled", "layer, eager", "encode, compiled", "encode, eager", "rotation", "histogram, compiled", "copy")
    speed = {name: elements / statistics.median(spent[name]) / 1e6 for name in wanted if name in spent}
    gain = statistics.median(a / b for a, b in zip(spent["layer, eager"], spent["layer, compiled"])) if has_numba() else None
    return {"rows": size.kernel_rows, "M elements per CPU second": speed, "eager layer over compiled": gain, "largest differences": differences}


def whole_fit(size: Size) -> dict[str, Any]:
    """Whole layers within a fit: million elements x layers per CPU second, with all that comes before them and without the first one."""
    x = Mixed(size.features).draw(size.fit_rows, seed=2)
    elements, stamps = size.fit_rows * size.features / 1e6, []

    def run() -> None:
        stamps.clear()
        stamps.append(time.process_time())
        fit_ours(x, size.fit_layers, 0, on_layer=lambda row: stamps.append(time.process_time()))
        stamps.append(time.process_time())

    rounds: dict[str, list[float]] = {"first layer": [], "other layers": [], "after": [], "all": []}
    for _ in range(size.fit_rounds):
        run()
        begun, first, *_, last, ended = stamps
        for name, seconds in (("first layer", first - begun), ("other layers", last - first), ("after", ended - last), ("all", ended - begun)):
            rounds[name].append(seconds)
    seconds = {name: statistics.median(values) for name, values in rounds.items()}
    with cProfile.Profile() as profile:
        run()
    return {
        "rows": size.fit_rows,
        "layers": size.fit_layers,
        "CPU seconds": seconds,
        "M elements per CPU second": {
            "without the first layer": elements * (size.fit_layers - 1) / seconds["other layers"],
            "whole fit": elements * size.fit_layers / seconds["all"],
        },
        "share of own time, profiled": hot_spots(profile),
    }


def hot_spots(profile: cProfile.Profile, many: int = 14) -> dict[str, float]:
    """Functions by the share of the time that passes in them and not in those they call."""
    found: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in found.values())
    largest = sorted(found.items(), key=lambda item: -item[1][2])[:many]
    return {f"{Path(file).name}:{line} {name}": round(entry[2] / total, 4) for (file, line, name), entry in largest}


def scoring(size: Size) -> dict[str, dict[str, float]]:
    """``flow.log_prob`` of fitted flows: million elements x layers per CPU second."""
    data = Mixed(size.features)
    x, rows = data.draw(max(size.score_rows, 2_000), seed=0), data.draw(size.score_rows, seed=1)
    found = {}
    for tail in ("pareto", "gaussian"):
        fitted = fit_ours(x, size.fit_layers, 0, tail=tail)
        spent = [timed(lambda flow=fitted.model: scores(flow, rows))[1].cpu for _ in range(size.rounds + 1)][1:]
        found[tail] = size.score_rows * size.features * size.fit_layers / statistics.median(spent) / 1e6
    return found


def masses(size: Size, peers: list[str]) -> dict[str, dict[str, Any]]:
    """Integrals over the plane of densities fitted to moons, each with as many layers as its own rule takes, and its test log-likelihood."""
    x, test = (moons(n, seed=seed).x.numpy() for n, seed in ((size.moons, 0), (4 * size.moons, 1)))
    low, high = x.min(0) - 3, x.max(0) + 3
    axes = [np.arange(a, b, size.step) + size.step / 2 for a, b in zip(low, high)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    found = {}
    for name in ["ours", *(name for name in peers if name != "sinflow by direction")]:
        fitted = fit_ours(x, None, 0) if name == "ours" else PEERS[name].fit(x, None, 0)
        mass = sum(float(np.exp(fitted.score(part)).sum()) for part in np.array_split(grid, max(1, len(grid) // 10_000))) * size.step**2
        found[name] = {"integral": mass, "layers": fitted.layers, "test log-likelihood": float(fitted.score(test).mean())}
    return found


def gates(record: dict[str, Any]) -> dict[str, str]:
    """The figures that must hold."""

    def verdict(value: float | None, least: float) -> str:
        return "not measured" if value is None else f"{'met' if value >= least else 'MISSED'}: {value:.3g}"

    found = {}
    for name, one in record["peers"].items():
        for part, key in (("fit", "fit cpu"), ("score, one thread,", "score cpu"), ("score, all cores,", "score, all cores wall")):
            value = one.get("ratios", {}).get(key)
            where = f" at {one['rows']} rows" if value is not None else ""
            found[f"{part} ≥ {FASTER:g} × faster than {name}{where}"] = verdict(value, FASTER)
    for name in record["missing"]:
        found[f"≥ {FASTER:g} × faster than {name}"] = "not measured: not installed"
    speed, real = record["blocks"]["M elements per CPU second"], record["fit"]["M elements per CPU second"]["without the first layer"]
    found |= {
        f"layer of blocks ≥ {LAYER:g} M elements/s": verdict(speed.get("layer, compiled"), LAYER),
        f"layer of blocks ≥ {GOAL:g} M elements/s (goal)": verdict(speed.get("layer, compiled"), GOAL),
        f"layer of blocks ≥ {GAIN:g} × eager": verdict(record["blocks"]["eager layer over compiled"], GAIN),
        f"layer in a fit ≥ {LAYER:g} M elements/s": verdict(real, LAYER),
        f"layer in a fit ≥ {GOAL:g} M elements/s (goal)": verdict(real, GOAL),
        f"eager encode ≥ {SCORES:g} M elements/s": verdict(speed["encode, eager"], SCORES),
    }
    found |= {f"log_prob, {tail} tails, ≥ {SCORES:g} M elements/s": verdict(value, SCORES) for tail, value in record["scores"].items()}
    mass = record["moons"]["ours"]["integral"]
    return found | {f"moons: integral 1 ± {MASS:g}": f"{'met' if abs(mass - 1) <= MASS else 'MISSED'}: {mass:.4f}"}


def table(record: dict[str, Any]) -> str:
    lines = ["", "| | rows | layers | splines | fit CPU s | × ours | score CPU s | × ours | test log-likelihood (truth) |", "|---" * 9 + "|"]
    for name, one in record["peers"].items():
        if "rows" not in one:
            lines.append(f"| {name}: {one['class']} | {one['ended']} |" + " |" * 7)
            continue
        for who in ("ours", WHITENED, "peer"):
            side = one[who]
            title = f"{name}: {one['class']} {one['version']}" if who == "peer" else who
            times = [f"{side[key] / one['ours'][key]:.3g}" for key in ("fit cpu", "score cpu")]
            lines.append(
                f"| {title} | {one['rows']} | {side['layers']} | {side['splines']} | {side['fit cpu']:.2f} | {times[0]} | {side['score cpu']:.3f} | "
                f"{times[1]} | {side['test log-likelihood']:.2f} ({one['truth']:.2f}) |"
            )
        if one["ended"]:
            lines.append(f"| {name} ended: {one['ended']} |" + " |" * 8)
    own = record["own rule"]
    lines.append(
        f"| ours, layers by its own rule | {own['rows']} | {own['layers']} | | {own['fit cpu']:.2f} | | | | {own['test log-likelihood']:.2f} |"
    )
    lines += [f"{name} is not installed: not measured" for name in record["missing"]]
    lines += ["", *(f"{name:26} {value:8.1f} M elements/s" for name, value in record["blocks"]["M elements per CPU second"].items())]
    lines += [f"{name:26} {value:8.1f} M elements/s" for name, value in record["fit"]["M elements per CPU second"].items()]
    lines += [f"  {share:6.1%}  {name}" for name, share in record["fit"]["share of own time, profiled"].items()]
    lines += [f"{'log_prob, ' + tail + ' tails':26} {value:8.1f} M elements/s" for tail, value in record["scores"].items()]
    lines += [""] + [
        f"moons, {name}: integral {one['integral']:.4f}, {one['layers']} layers, test log-likelihood {one['test log-likelihood']:.3f}"
        for name, one in record["moons"].items()
    ]
    return "\n".join([*lines, "", *(f"{text:58} {verdict}" for text, verdict in record["gates"].items())])


def run(size: Size, peers: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    load = os.getloadavg()
    missing = sorted({PEERS[name].package for name in peers if version(PEERS[name].package) is None})
    present = [name for name in peers if PEERS[name].package not in missing]
    fit_ours(Mixed(size.features).draw(2_000, seed=0), 2, 0)  # compiles
    with threadpool_limits(1):
        record: dict[str, Any] = {
            "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, one thread",
            "versions": {name: version(name) for name in ("numpy", "scipy", "torch", "numba", *sorted({p.package for p in PEERS.values()}))},
            "seeds": {"fit": 0, "training rows": 0, "test rows": 1, "rows of the whole fit": 2},
            "size": size._asdict(),
            "missing": missing,
            "blocks": blocks(size),
            "scores": scoring(size),
            "fit": whole_fit(size),
            "moons": masses(size, present),
            "own rule": own_rule(size),
            "peers": {name: against(PEERS[name], size) for name in present},
        }
    record["load"] = {"before": load, "after": os.getloadavg()}
    record["gates"] = gates(record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing about speed")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    record = run(QUICK if arguments.quick else Size(), arguments.peers)
    print(table(record))
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
