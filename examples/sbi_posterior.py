"""The posterior of a simulator with two crescents, twice: by fluvial alone, and by sbi with a flow of fluvial as its density estimator.

    python examples/sbi_posterior.py --steps 2000

The task is "two moons" of the simulation-based inference benchmark, whose posterior can be sampled exactly. A classifier tells samples of the
flow from exact ones with an accuracy of 0.5 where they agree, and of 1 where they do not.
"""

import argparse
import math

import torch
from torch import Tensor

import fluvial as fl

OBSERVED = torch.tensor([0.0, 0.0])


def crescent(n: int) -> Tensor:
    """The noise of the simulator, points (n, 2) of a half ring."""
    angle = math.pi * (torch.rand(n) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def simulate(theta: Tensor) -> Tensor:
    """Parameters (n, 2) -> observations (n, 2)."""
    along, across = (theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]
    return crescent(len(theta)) + torch.stack([-along, across], 1) / math.sqrt(2)


def exact_posterior(x: Tensor, n: int) -> Tensor:
    """Parameters (n, 2) by which an observation x may have come about, drawn from their posterior under a uniform prior."""
    noise = crescent(n)
    along, across = noise[:, 0] - x[0], x[1] - noise[:, 1]
    along = torch.where(torch.rand(n) < 0.5, along, -along)
    return torch.stack([along - across, along + across], 1) / math.sqrt(2)


def build(features: int, context: int) -> fl.Flow:
    """A coupling flow that never leaves the prior's box."""
    return fl.flows.coupling(features, context, blocks=6, bins=8, hidden=(64, 64), bounds=([-1.0] * features, [1.0] * features))


def main() -> None:
    """Simulate, learn the posterior for all observations at once, and look at one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="optimisation steps")
    parser.add_argument("--simulations", type=int, default=10_000, help="how often to simulate")
    parser.add_argument("--sbi", action="store_true", help="do it by sbi too")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    theta = 2 * torch.rand(arguments.simulations, 2) - 1
    x = simulate(theta)
    exact = exact_posterior(OBSERVED, 2000)

    flow = build(2, 2)
    fl.fit(flow, (theta, x), max_steps=arguments.steps, batch_size=256)
    print(f"fluvial alone: classifier's accuracy {fl.metrics.c2st(flow.sample(2000, OBSERVED), exact).accuracy}")

    if arguments.sbi:
        from sbi.inference import NPE
        from sbi.utils import BoxUniform

        from fluvial.interop.sbi import estimator

        epochs = max(1, arguments.steps * 256 // arguments.simulations)
        inference = NPE(BoxUniform(-torch.ones(2), torch.ones(2)), density_estimator=estimator(build), show_progress_bars=False)
        inference.append_simulations(theta, x).train(training_batch_size=256, max_num_epochs=epochs, learning_rate=1e-3)
        samples = inference.build_posterior().sample((2000,), x=OBSERVED, show_progress_bars=False)
        print(f"through sbi:   classifier's accuracy {fl.metrics.c2st(samples, exact).accuracy}")


if __name__ == "__main__":
    main()
