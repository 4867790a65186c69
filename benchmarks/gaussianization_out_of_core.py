"""What memory a layerwise fit takes for a folder of Parquet files that is larger than the memory it is given.

A folder of float32 columns is written into a temporary directory (deleted at the end), and a few layers are fitted to it in a fresh process. Judged
is the peak resident memory of that process less what it had after `import fluvial.gaussianization`, which loads torch: it must stay within what the
fit was given. What is loaded later (pyarrow, numba, scipy) counts. The rows live in a scratch file, so that the disk needs room for them twice.

    python benchmarks/gaussianization_out_of_core.py [--size 2G] [--memory 500M] [--layers 3] [--threads 1] [--output FILE.json]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEATURES = 32
FILE_ROWS, GROUP_ROWS = 500_000, 100_000


def write(folder: Path, size: int, features: int) -> int:
    """Correlated, skewed rows in files that take at least so many bytes together; how many rows."""
    import numpy as np
    from pyarrow import parquet, table

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(features, features)).astype(np.float32)
    written = number = 0
    while written < size:
        x = rng.standard_normal((FILE_ROWS, features), np.float32) @ mixing
        x[:, 0] += x[:, 1] ** 2 / features
        path = folder / f"part-{number:04}.parquet"
        parquet.write_table(table({f"x{k}": column for k, column in enumerate(x.T)}), path, row_group_size=GROUP_ROWS)
        written += path.stat().st_size
        number += 1
    return number * FILE_ROWS


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def fit_folder(folder: Path, memory: str, layers: int, threads: int) -> dict[str, object]:
    """Fit in this process, and say what it took."""
    import torch

    from fluvial.gaussianization.fit import fit

    torch.set_num_threads(threads)
    before, begun = resident("VmRSS"), time.perf_counter()
    rows: list[dict[str, float]] = []
    peaks: list[float] = []
    fit(
        folder,
        memory=memory,
        scratch=folder.parent,
        max_layers=layers,
        threads=threads,
        progress=False,
        on_layer=lambda row: (rows.append(row), peaks.append((resident("VmHWM") - before) / 1e6)),
    )
    seconds = time.perf_counter() - begun
    return {
        "after imports, MB": before / 1e6,
        "peak above that, MB": (resident("VmHWM") - before) / 1e6,
        "peak above that after each layer, MB": peaks,
        "seconds": seconds,
        "seconds of layers": rows[-1]["seconds"],
        "CPU seconds": time.process_time(),
        "nll after each layer": [row["nll"] for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2G", help="of the folder")
    parser.add_argument("--memory", default="500M", help="that the fit is given")
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--temporary", type=Path, help="where the folder is written; default the system's")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit is not None:
        print(json.dumps(fit_folder(arguments.fit, arguments.memory, arguments.layers, arguments.threads)))
        return

    from fluvial.gaussianization.store import parse_size

    size, memory = parse_size(arguments.size), parse_size(arguments.memory)
    with tempfile.TemporaryDirectory(dir=arguments.temporary) as temporary:
        free = shutil.disk_usage(temporary).free
        if free < 3 * size:
            sys.exit(f"{temporary} has {free / 1e9:.1f} GB free, {3 * size / 1e9:.1f} GB are needed for a folder of {size / 1e9:.1f} GB")
        folder = Path(temporary) / "rows"
        folder.mkdir()
        rows = write(folder, size, arguments.features)
        written = sum(path.stat().st_size for path in folder.iterdir())
        command = [sys.executable, __file__, "--fit", str(folder)]
        options = {"--memory": arguments.memory, "--layers": arguments.layers, "--threads": arguments.threads}
        command += [str(word) for option in options.items() for word in option]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    elements = rows * arguments.features
    result = {
        "folder, MB": written / 1e6,
        "rows": rows,
        "features": arguments.features,
        "layers": arguments.layers,
        "threads": arguments.threads,
        "memory given, MB": memory / 1e6,
        **measured,
        "M elements/s, layers": elements * arguments.layers / measured["seconds of layers"] / 1e6,
        "M elements/s, all": elements * arguments.layers / measured["seconds"] / 1e6,
        "within the memory given": measured["peak above that, MB"] <= memory / 1e6,
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if not result["within the memory given"]:
        sys.exit("more memory was taken than given")


if __name__ == "__main__":
    main()
