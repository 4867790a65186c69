"""A flow as the guide of a Pyro model: variational inference where the posterior is curved and no normal distribution fits it.

python examples/pyro_guide.py --steps 1500

The observation y = w₁² + w₂ + noise leaves a banana of weights. The evidence lower bound of the flow is printed beside the log-evidence by
quadrature, and beside the bound that the best normal guide reaches.
"""

import argparse
import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

import fluvial as fl
from fluvial.interop.pyro import distribution

OBSERVED, NOISE = 1.0, 0.1


def model() -> None:
    """Prior and observation."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w[..., 0] ** 2 + w[..., 1], NOISE), obs=torch.tensor(OBSERVED))


def log_evidence() -> float:
    """Log ∫ p(w) p(y|w) dw on a fine grid."""
    side = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    a, b = torch.meshgrid(side, side, indexing="ij")
    log_joint = -0.5 * (a**2 + b**2) - 0.5 * ((OBSERVED - a**2 - b) / NOISE) ** 2 - 1.5 * math.log(2 * math.pi) - math.log(NOISE)
    return float(log_joint.logsumexp((0, 1)) + 2 * torch.log(side[1] - side[0]))


def train(guide: object, steps: int) -> float:
    """Maximise the evidence lower bound; returns what it is at the end."""
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
    decay = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.01 ** (1 / steps)}
    svi = SVI(model, guide, pyro.optim.ExponentialLR(decay), elbo)
    for _ in range(steps):
        svi.step()
        svi.optim.step()
    return -sum(svi.evaluate_loss() for _ in range(50)) / 50


def main() -> None:
    """Fit two guides and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="optimisation steps of each guide")
    arguments = parser.parse_args()

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    flow = fl.flows.coupling(2, blocks=4, bins=8, hidden=(32, 32), standardize=False)

    def guide() -> None:
        pyro.module("flow", flow)
        pyro.sample("w", distribution(flow))

    print(f"log-evidence                      {log_evidence():.3f}")
    print(f"bound of the flow                 {train(guide, arguments.steps):.3f}")
    print(f"bound of the best normal          {train(AutoMultivariateNormal(model), arguments.steps):.3f}")


if __name__ == "__main__":
    main()
