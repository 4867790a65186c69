"""Five flows instead of one: their mean is the better density, and their spread says where it is not to be trusted.

python examples/ensemble.py --steps 600
"""

import argparse

import torch

import fluvial as fl


def main() -> None:
    """Fit, compare the mixture with its members, and look at the spread near and far from the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimisation steps of each member")
    parser.add_argument("--members", type=int, default=5, help="how many flows")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    # Few data: this is where one flow is too sure of itself.
    train, validation, test = fl.data.moons(4000, seed=0).split((0.2, 0.1, 0.7))
    ensemble = fl.Ensemble([fl.flows.coupling(2, blocks=4, bins=8, hidden=(32, 32)) for _ in range(arguments.members)])
    objective = fl.objectives.EachMember([fl.MaximumLikelihood() for _ in ensemble.flows], bootstrap=True)
    fl.fit(ensemble, train, objective, validation=validation, max_steps=arguments.steps)

    with torch.no_grad():
        alone = -ensemble.members(test.x).mean(1)
        print("test NLL of the members:", ", ".join(f"{nll:.3f}" for nll in alone.tolist()))
        print(f"test NLL of the mixture: {fl.metrics.nll(ensemble, test.x)}; the truth has {-test.truth.log_prob(test.x).mean():.4f}")
        far = test.x.mean(0) + 3 * (test.x - test.x.mean(0))
        print(f"spread of log p: {ensemble.spread(test.x).median():.2f} nats among the data, {ensemble.spread(far).median():.2f} far from them")


if __name__ == "__main__":
    main()
