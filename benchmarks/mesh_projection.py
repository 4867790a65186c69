"""What the projection onto a triangle mesh costs, and whether it is that of brute force.

On the Stanford bunny (5 000 faces; once subdivided, 20 000) from FLUVIAL_DATA/meshes/bunny.npz, scaled to about 2 in size, on one thread:
seconds for 100 000 points on the surface, near it (2 % of its size), off it (10 %), around its centre, and far away (100 times its size);
the largest difference to brute force in distance and in position; milliseconds for a training batch of 1024 points; and the ratio to brute force.

    python benchmarks/mesh_projection.py [--points 100000] [--compared 2000] [--output benchmarks/results/mesh_projection.json]
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fluvial as fl


def bunny() -> fl.Mesh:
    folder = Path(os.environ.get("FLUVIAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    with np.load(folder / "meshes" / "bunny.npz") as file:
        return fl.Mesh(file["vertices"] / 250, file["faces"])


def point_sets(mesh: fl.Mesh, n: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    size = float(np.ptp(mesh.vertex_array, axis=0).max())
    centre = torch.as_tensor(mesh.vertex_array.mean(0))
    on, noise = mesh.random_uniform(n, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)
    return {
        "on the surface": on,
        "near (0.02)": on + 0.02 * size * noise,
        "off (0.1)": on + 0.1 * size * noise,
        "around the centre (0.05)": centre + 0.05 * size * noise,
        "far (100)": centre + 100 * size * noise,
    }


def brute_force(mesh: fl.Mesh, x: Tensor) -> Tensor:
    """Every point against every face: the foot in its plane where that lies in the triangle, else the best foot on an edge."""
    a, b, c = (torch.as_tensor(mesh.vertex_array[mesh.face_array[:, k]], dtype=x.dtype) for k in range(3))
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    nearest = []
    for points in x.split(max(1, 400_000 // len(a))):
        p = points.unsqueeze(1)
        foot = p - normal * ((p - a) * normal).sum(-1, keepdim=True)
        inside = torch.ones(foot.shape[:2], dtype=torch.bool)
        best, square = foot, torch.full(foot.shape[:2], torch.inf, dtype=x.dtype)
        for s, e in ((a, b), (b, c), (c, a)):
            inside &= (torch.linalg.cross((e - s).expand_as(foot), foot - s) * normal).sum(-1) >= 0
            on_edge = s + (((p - s) * (e - s)).sum(-1, keepdim=True) / (e - s).square().sum(-1, keepdim=True)).clamp(0, 1) * (e - s)
            own = (on_edge - p).square().sum(-1)
            best, square = torch.where((own < square).unsqueeze(-1), on_edge, best), torch.minimum(own, square)
        best = torch.where(inside.unsqueeze(-1), foot, best)
        square = (best - p).square().sum(-1)
        nearest.append(best.gather(1, square.argmin(1)[:, None, None].expand(-1, 1, 3)).squeeze(1))
    return torch.cat(nearest)


def seconds(fn: Callable[[], object], repeats: int) -> float:
    """The fastest of some runs, process CPU time."""
    fn()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        fn()
        times.append(time.process_time() - start)
    return min(times)


def measure(mesh: fl.Mesh, *, points: int, compared: int) -> dict[str, dict[str, float]]:
    figures = {}
    for name, x in point_sets(mesh, points).items():
        few = x[:compared]
        start = time.process_time()
        expected = brute_force(mesh, few)
        brute = time.process_time() - start
        y = mesh.project(few)
        ours = seconds(lambda: mesh.project(few), 2)  # noqa: B023
        batch = x[:1024].float()
        figures[name] = {
            f"seconds for {points} points": seconds(lambda: mesh.project(x), 1),  # noqa: B023
            "ms for 1024 points, float32": 1e3 * seconds(lambda: mesh.project(batch), 10),  # noqa: B023
            f"brute force / ours on the first {compared}": brute / ours,
            "largest difference in distance": float(((y - few).norm(dim=-1) - (expected - few).norm(dim=-1)).abs().max()),
            "largest difference in position": float((y - expected).norm(dim=-1).max()),
        }
        print(f"  {name:25s}" + "  ".join(f"{key}: {value:.3g}" for key, value in figures[name].items()), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--compared", type=int, default=2000, help="how many points of each set go through brute force")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mesh_projection.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, object] = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), "threads": 1}
    mesh = bunny()
    for each in (mesh, mesh.subdivide()):
        start = time.process_time()
        fresh = fl.Mesh(each.vertex_array + 0.0, each.face_array)
        fresh.project(torch.zeros(1, 3))
        print(each, flush=True)
        record[f"{len(each.face_array)} faces"] = {
            "seconds to build": time.process_time() - start,
            **measure(each, points=arguments.points, compared=arguments.compared),
        }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
