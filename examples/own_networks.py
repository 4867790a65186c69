"""A conditional density from two networks of your own: p(x | c) of points on an arc whose radius and spread depend on c.

python examples/own_networks.py --steps 3000
"""

import argparse

import torch
from torch import Tensor, nn

import fluvial as fl


class Modulated(nn.Module):
    """A residual network whose hidden layer is shifted and scaled by the condition.

    Every constructor argument is kept under its name: that is all a network needs to be saved.
    """

    def __init__(self, features: int, context: int, *, width: int = 64) -> None:
        super().__init__()
        self.features = features
        self.context = context
        self.width = width
        self.inside = nn.Linear(features, width)
        self.modulation = nn.Linear(context, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.outside = nn.Linear(width, features)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """X (batch, features) and c (batch, context) -> (batch, features)."""
        shift, scale = self.modulation(c).chunk(2, -1)
        h = nn.functional.silu((1 + scale) * self.inside(x) + shift)
        return x + self.outside(nn.functional.silu(self.hidden(h)))


def arcs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on half a circle of radius 1 + c, blurred by 0.05 (1 + c), and c uniform in 0 … 1."""
    c = torch.rand(n, 1, generator=generator)
    angle = torch.pi * torch.rand(n, 1, generator=generator)
    blur = 0.05 * (1 + c) * torch.randn(n, 2, generator=generator)
    return (1 + c) * torch.cat([angle.cos(), angle.sin()], 1) + blur, c


def main() -> None:
    """Fit, and look at the radius of samples for three conditions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimisation steps; a minute or so")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    x, c = arcs(20_000, torch.Generator().manual_seed(0))
    pair = fl.FreeForm(Modulated(2, 1), Modulated(2, 1))
    flow = fl.Flow(fl.Chain([fl.codecs.Standardize(2), pair]), fl.bases.Normal(2), condition=1)
    history = fl.fit(flow, (x, c), max_steps=arguments.steps, validate_every=max(1, arguments.steps // 10))
    print(history)

    test_x, test_c = arcs(2000, torch.Generator().manual_seed(1))
    print("test NLL", fl.metrics.nll(flow, test_x, test_c), "· reconstruction", fl.metrics.reconstruction(flow, test_x, test_c).rms)
    at = torch.tensor([[0.0], [0.5], [1.0]])
    radius = flow.sample(2000, at).norm(dim=-1)
    for k, value in enumerate(at.flatten().tolist()):
        print(f"c = {value}: radius {radius[:, k].mean():.3f} ± {radius[:, k].std():.3f}, true {1 + value} ± {0.05 * (1 + value):.3f}")


if __name__ == "__main__":
    main()
