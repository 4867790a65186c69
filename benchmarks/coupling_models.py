"""Spline coupling flows of the same sizes, from fluvial and from other packages: what `coupling.py` compares."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fluvial as fl

BLOCKS, WIDTHS, CONTEXT, BATCH, BOUND = 8, (128, 128, 128), 4, 4096, 5.0
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}
NOTES = {
    "zuko NSF": "passes=2: masked networks, which compute the parameters of all coordinates in every layer",
    "nflows, normflows": "their couplings with the plain network: no residual blocks, no second spline",
}


class Size(NamedTuple):
    """One comparison: d coordinates, K bins, L layers, batch, activation."""

    features: int
    bins: int
    blocks: int = BLOCKS
    widths: tuple[int, ...] = WIDTHS
    context: int = CONTEXT
    batch: int = BATCH
    activation: str = "silu"

    def __str__(self) -> str:
        return f"d={self.features}, {self.bins} bins"


class Contestant(NamedTuple):
    """A model and what is asked of it."""

    module: nn.Module
    log_prob: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[Tensor], Tensor]  # one draw for each condition
    round_trip: Callable[[Tensor, Tensor], Tensor]


class ConditionalMLP(nn.Module):
    """The network that packages get which take any network: plain layers on [x, c]."""

    def __init__(self, features: int, out: int, size: Size) -> None:
        super().__init__()
        widths = (features + size.context, *size.widths, out)
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), ACTIVATIONS[size.activation]()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(x if context is None else torch.cat([x, context], -1))


class Limit(nn.Module):
    """The networks alone."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        half = size.features // 2
        self.networks = nn.ModuleList(ConditionalMLP(half, half * (3 * size.bins - 1), size) for _ in range(size.blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [network(x) for network in self.networks]


def fluvial(size: Size) -> Contestant:
    flow = fl.flows.coupling(
        size.features, size.context, blocks=size.blocks, bins=size.bins, hidden=size.widths, bound=BOUND, activation=size.activation
    )
    return Contestant(flow, flow.log_prob, lambda c: flow.sample((), c), lambda x, c: flow.decode(flow.encode(x, c), c))


def compiled(size: Size) -> Contestant:
    model = fluvial(size)
    return model._replace(log_prob=torch.compile(model.log_prob, dynamic=False), sample=torch.compile(model.sample, dynamic=False))


def zuko_coupling(size: Size) -> Contestant:
    import zuko

    univariate = partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND)
    shapes = [(size.bins,), (size.bins,), (size.bins - 1,)]
    return _zuko(zuko.flows.NICE(size.features, size.context, transforms=size.blocks, univariate=univariate, shapes=shapes, **_zuko_network(size)))


def zuko_nsf(size: Size) -> Contestant:
    import zuko

    return _zuko(zuko.flows.NSF(size.features, size.context, bins=size.bins, transforms=size.blocks, passes=2, **_zuko_network(size)))


def _zuko_network(size: Size) -> dict:
    return {"hidden_features": size.widths, "activation": ACTIVATIONS[size.activation]}


def _zuko(flow: nn.Module) -> Contestant:
    def round_trip(x: Tensor, c: Tensor) -> Tensor:
        transform = flow(c).transform
        return transform.inv(transform(x))

    return Contestant(flow, lambda x, c: flow(c).log_prob(x), lambda c: flow(c).sample(), round_trip)


def nflows(size: Size) -> Contestant:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    layers = [
        PiecewiseRationalQuadraticCouplingTransform(mask, lambda a, b: ConditionalMLP(a, b, size), size.bins, tails="linear", tail_bound=BOUND)
        for mask in _masks(size)
    ]
    flow = Flow(CompositeTransform(layers), StandardNormal([size.features]))

    def round_trip(x: Tensor, c: Tensor) -> Tensor:
        return flow._transform.inverse(flow._transform(x, c)[0], c)[0]

    return Contestant(flow, flow.log_prob, lambda c: flow.sample(1, c).squeeze(1), round_trip)


def normflows(size: Size) -> Contestant:
    """With the plain network and without the second spline of its ready-made layer, which are faster than what that layer brings along."""
    from normflows import ConditionalNormalizingFlow
    from normflows.distributions import DiagGaussian
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    class Layer(nn.Module):
        """Data -> latent is this package's inverse."""

        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.coupling = PiecewiseRationalQuadraticCoupling(
                mask, lambda a, b: ConditionalMLP(a, b, size), size.bins, tails="linear", tail_bound=BOUND
            )

        def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return self.coupling.inverse(z, context)

        def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return self.coupling(x, context)

    flow = ConditionalNormalizingFlow(DiagGaussian(size.features, trainable=False), [Layer(mask) for mask in _masks(size)])
    return Contestant(flow, flow.log_prob, lambda c: flow.sample(len(c), c)[0], lambda x, c: flow(flow.inverse(x, c), c))


def _masks(size: Size) -> list[Tensor]:
    return [(torch.arange(size.features) + k) % 2 for k in range(size.blocks)]


PEERS: dict[str, tuple[str, Callable[[Size], Contestant]]] = {
    "zuko coupling": ("zuko", zuko_coupling),
    "zuko NSF": ("zuko", zuko_nsf),
    "nflows": ("nflows", nflows),
    "normflows": ("normflows", normflows),
}


def absent() -> dict[str, str]:
    """Packages that are not compared, and why."""
    reasons = {package: "not installed" for package, _ in PEERS.values() if importlib.util.find_spec(package) is None}
    reasons["FrEIA"] = f"release {version('FrEIA') or 'not installed; 0.2, the last,'} has no spline couplings (they are in its repository only)"
    return reasons


def version(package: str) -> str | None:
    """Installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@torch.no_grad()
def spread_(module: nn.Module, size: Size) -> None:
    """Weights drawn alike for all, at which spline parameters are of order one; a tenth of that comes from the inputs, so that inverses exist."""
    for layer in module.modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter) and weight.ndim == 2:
            nn.init.kaiming_normal_(weight)
            if len(weight) not in size.widths:
                weight.mul_(0.1)
                bias.add_(torch.randn_like(bias))


def contestants(size: Size, names: Sequence[str]) -> dict[str, Contestant]:
    makers = {"fluvial": fluvial, "fluvial compiled": compiled} | {name: make for name, (_, make) in PEERS.items()}
    found = {}
    for name in names:
        torch.manual_seed(0)
        found[name] = makers[name](size)
        spread_(found[name].module, size)
    return found


@torch.no_grad()
def check(name: str, model: Contestant, x: Tensor, c: Tensor) -> float:
    """Median over the rows of the largest error after a round trip, in single precision.

    Raises:
        RuntimeError: If the model is not what is to be measured, in double precision.
    """
    model.module.eval()
    log_prob, draws = model.log_prob(x, c), model.sample(c)
    error = (model.round_trip(x, c) - x).abs().amax(1).median().item()
    model.module.double()
    worst = (model.round_trip(x.double(), c.double()) - x).abs().max().item()
    model.module.float()
    if log_prob.shape != x.shape[:1] or draws.shape != x.shape or not (torch.isfinite(log_prob).all() and torch.isfinite(draws).all()):
        raise RuntimeError(f"{name}: densities or samples are not finite, or of shapes {tuple(log_prob.shape)} and {tuple(draws.shape)}")
    if not worst < 1e-3:
        raise RuntimeError(f"{name}: comes back from a round trip in double precision with an error of {worst:.1g}")
    return error
