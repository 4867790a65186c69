"""Poses of a rigid body, given features: one flow on rotations and positions together, against its known entropy.

python examples/poses.py --steps 4000
"""

import argparse

import torch

import fluvial as fl


def main() -> None:
    """Train, compare with the truth, and read off rotations and positions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    steps = parser.parse_args().steps
    data = fl.data.poses(20_000)
    train, validation, test = data.split()
    space = fl.Product(fl.SpecialOrthogonal(3), fl.Euclidean(3))
    flow = fl.flows.free_form(manifold=space, context=2, width=128, blocks=3)
    objective = fl.FreeFormLikelihood(terms={"z_sample_reconstruction": 5.0, "x_projection": 1.0, "z_projection": 1.0})
    fl.fit(flow, train, objective, validation=validation, max_steps=steps, learning_rate=2e-3)

    entropy, _ = data.truth.entropy()
    print(f"test NLL {fl.metrics.nll(flow, test.x, test.c)} nats; the conditional entropy is {entropy:.3f}")
    features = torch.tensor([0.5, -0.5])
    rotation, position = space.split(flow.sample(1000, features))
    angle = torch.rad2deg(space.factors[0].norm(rotation, space.factors[0].log(rotation[:1], rotation)))
    print(f"given {features.tolist()}: rotations within {angle.median():.0f} degrees of the first (median), position {position.mean(0).tolist()}")


if __name__ == "__main__":
    main()
