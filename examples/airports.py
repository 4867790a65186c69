"""The density of the world's airports: a free-form flow on the sphere.

    python examples/airports.py --steps 5000

prints the test figures and what to think of them, and writes airports.safetensors and airports.csv (samples in degrees).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import fluvial as fl


def main() -> None:
    """Fit, judge, save and sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimisation steps; some minutes on a laptop")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder to write to")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    sphere = fl.Sphere(2)
    train, validation, test = fl.data.airports().split()
    # Airports come in clusters: a base of broad bumps leaves less to the networks than a uniform one.
    flow = fl.flows.free_form(manifold=sphere, base=fl.bases.VonMisesFisherMixture(sphere), width=128)
    # The extra term teaches the encoder the places where samples fall and data do not.
    objective = fl.FreeFormLikelihood(terms={"z_sample_reconstruction": 50.0})
    history = fl.fit(flow, train, objective, validation=validation, max_steps=arguments.steps, validate_every=max(1, arguments.steps // 20))

    print(history)
    print(f"uniform density: NLL {np.log(sphere.total_volume):.3f}")
    for name, figure in fl.metrics.figures(flow, test).items():
        print(f"{name}: {figure}")
    print(fl.check(flow, test, samples=500))

    fl.save(flow, arguments.output / "airports.safetensors")
    with torch.no_grad():
        x = flow.sample(10_000).double()
    degrees = torch.rad2deg(torch.stack([torch.asin(x[:, 2].clamp(-1, 1)), torch.atan2(x[:, 1], x[:, 0])], 1))
    np.savetxt(arguments.output / "airports.csv", degrees.numpy(), fmt="%.4f", delimiter=",", header="latitude,longitude", comments="")


if __name__ == "__main__":
    main()
