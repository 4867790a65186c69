"""What a layer of Gaussianization costs: rotation, histogram and spline of blocks, compiled and eager, beside a copy of the memory.

32 coordinates, 200 000 rows in blocks of 8192, splines of 64 knots, one thread. In every round each task passes once over all blocks, forwards and
backwards in turn. Times are process CPU time, figures medians over the rounds, ratios medians of the ratios within a round. Before anything is
timed, compiled and eager results must agree. "layer" is what a fit does with a block: rotate, count, encode with log-determinants. "copy" is of a
block that is in the cache already: the hardest yardstick.

    python benchmarks/gaussianization_kernel.py [--rounds 9] [--features 32] [--output benchmarks/results/gaussianization_kernel.json]
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fluvial.codecs.spline_kernel import Tables, decode_, encode_, prepare, rotate
from fluvial.codecs.spline_loops import Engine, compiled, has_numba
from fluvial.gaussianization.kernel_histogram import histogram_, key_histogram_, refine_histogram_

BLOCK = 8192
# Million elements per second and core, and over the eager layer.
REQUIRED, GOAL, REQUIRED_GAIN, EAGER = 20.0, 100.0, 3.0, 7.0


def splines(features: int, knots: int) -> Tables:
    """Images equally spaced, as in a fit; knots a little bent."""
    y = np.broadcast_to(np.linspace(-3.5, 3.5, knots), (features, knots))
    x = y + 0.1 * np.sin(2 * y + np.linspace(0, 6, features)[:, None])
    return Tables(*(np.float32(t) for t in (x, y, np.gradient(y, axis=1) / np.gradient(x, axis=1))))


def heavy_tailed(features: int, knots: int) -> Tables:
    """Most knots close together in the middle of their range."""
    y = np.broadcast_to(np.linspace(-3.5, 3.5, knots), (features, knots))
    x = np.sinh(1.8 * y)
    return Tables(*(np.float32(t) for t in (x, y, np.gradient(y, axis=1) / np.gradient(x, axis=1))))


def tasks(blocks: list[np.ndarray], knots: int) -> dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], object]]:
    """What is timed: functions of a block that may be overwritten, another like it to be written to, and log-determinants to be added to."""
    features = len(blocks[0])
    near, heavy = prepare(splines(features, knots)), prepare(heavy_tailed(features, knots))
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(features, features)))[0].astype(np.float32)
    counts = np.zeros((features, 4098), np.int64)
    coarse = np.zeros((features, 2**16), np.int64)
    fine = np.zeros((features, knots, 256), np.int64)
    selected = np.full((features, 2**16), -1, np.int32)
    selected[:, 49024 : 49024 + knots] = np.arange(knots)  # from 0.5 on

    def layer(x: np.ndarray, out: np.ndarray, ladj: np.ndarray, engine: Engine) -> None:
        rotate(q, x, out)
        histogram_(out, counts, engine=engine)
        encode_(out, near, ladj, engine=engine)

    named = {}
    for engine in ["compiled", "eager"] if has_numba() else ["eager"]:
        named |= {
            f"layer, {engine}": functools.partial(layer, engine=engine),
            f"encode, {engine}": lambda x, out, ladj, engine=engine: encode_(x, near, ladj, engine=engine),
            f"encode heavy tails, {engine}": lambda x, out, ladj, engine=engine: encode_(x, heavy, ladj, engine=engine),
            f"decode, {engine}": lambda x, out, ladj, engine=engine: decode_(x, near, ladj, engine=engine),
            f"histogram, {engine}": lambda x, out, ladj, engine=engine: histogram_(x, counts, engine=engine),
            f"key histogram, {engine}": lambda x, out, ladj, engine=engine: key_histogram_(x, coarse, engine=engine),
            f"refined histogram, {engine}": lambda x, out, ladj, engine=engine: refine_histogram_(x, selected, fine, engine=engine),
        }
    return named | {"rotation": lambda x, out, ladj: rotate(q, x, out), "copy": lambda x, out, ladj: np.copyto(out, x)}


def measure(blocks: list[np.ndarray], knots: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each task for each round."""
    named = tasks(blocks, knots)
    spent: dict[str, list[float]] = {name: [] for name in named}
    for number in range(rounds + 1):
        for name in list(named) if number % 2 else list(named)[::-1]:
            seconds = 0.0
            for block in blocks:
                x, out, ladj = block.copy(), np.empty_like(block), np.zeros(block.shape[1])
                out[:] = 0  # its pages are there before the clock starts
                start = time.process_time()
                named[name](x, out, ladj)
                seconds += time.process_time() - start
            if number:  # the first round warms up
                spent[name].append(seconds)
    return spent


def agree(block: np.ndarray, knots: int) -> dict[str, float]:
    """Largest differences between compiled and eager results."""
    tables = splines(len(block), knots)
    found = {}
    for name, function in {"encode": encode_, "decode": decode_}.items():
        (z, ladj), (expected, expected_ladj) = ((block.copy(), np.zeros(block.shape[1])) for _ in range(2))
        function(z, tables, ladj, engine="compiled")
        function(expected, tables, expected_ladj, engine="eager")
        found |= {name: float(np.abs(z - expected).max()), f"{name} ladj": float(np.abs(ladj - expected_ladj).max())}
    if found["encode"] > 1e-5 or found["encode ladj"] > 1e-4:
        raise SystemExit(f"compiled and eager results differ: {found}")
    return found


def compile_seconds() -> dict[str, float]:
    """CPU seconds until each loop is there: compiled, or loaded where it was compiled before."""
    found = {}
    for name in ("spline", "histogram", "key_histogram", "refine_histogram"):
        start = time.process_time()
        compiled(name)
        found[name] = time.process_time() - start
    return found


def gates(speed: dict[str, float], gain: float | None) -> dict[str, str]:
    """The figures that must hold."""
    fast = speed.get("layer, compiled")
    eager = speed["encode, eager"]
    found = {f"eager encode ≥ {EAGER:g} M elements/s": f"{'met' if eager >= EAGER else 'MISSED'}: {eager:.1f}"}
    if fast is not None and gain is not None:
        found[f"layer ≥ {REQUIRED:g} M elements/s"] = f"{'met' if fast >= REQUIRED else 'MISSED'}: {fast:.0f}"
        found[f"layer ≥ {GOAL:g} M elements/s (goal)"] = f"{'met' if fast >= GOAL else 'MISSED'}: {fast:.0f}"
        found[f"layer ≥ {REQUIRED_GAIN:g} × the eager layer"] = f"{'met' if gain >= REQUIRED_GAIN else 'MISSED'}: {gain:.1f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--knots", type=int, default=64)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    generator = np.random.default_rng(0)
    sizes = [min(BLOCK, arguments.rows - first) for first in range(0, arguments.rows, BLOCK)]
    blocks = [generator.normal(size=(arguments.features, size)).astype(np.float32) for size in sizes]
    elements = arguments.rows * arguments.features
    with threadpool_limits(1):
        compiling = compile_seconds() if has_numba() else {}
        differences = agree(blocks[0], arguments.knots) if has_numba() else {}
        spent = measure(blocks, arguments.knots, arguments.rounds)
    speed = {name: elements / statistics.median(seconds) / 1e6 for name, seconds in spent.items()}
    over_copy = {name: statistics.median(a / b for a, b in zip(seconds, spent["copy"])) for name, seconds in spent.items()}
    gain = statistics.median(a / b for a, b in zip(spent["layer, eager"], spent["layer, compiled"])) if has_numba() else None
    for name in sorted(speed, key=lambda name: -speed[name]):
        print(f"{name:30} {speed[name]:8.1f} M elements/s   {over_copy[name]:7.1f} × a copy")
    verdicts = gates(speed, gain)
    print("\n".join(f"{text:40} {verdict}" for text, verdict in verdicts.items()))
    record = {
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, one thread",
        "load": {"before": load, "after": os.getloadavg()},
        "versions": {"numpy": np.__version__, "torch": torch.__version__, "numba": __import__("numba").__version__ if has_numba() else None},
        "features": arguments.features,
        "rows": arguments.rows,
        "knots": arguments.knots,
        "rounds": arguments.rounds,
        "M elements per CPU second": speed,
        "CPU time over that of a copy": over_copy,
        "eager layer over compiled": gain,
        "CPU seconds to compile or load": compiling,
        "largest differences": differences,
        "gates": verdicts,
    }
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
