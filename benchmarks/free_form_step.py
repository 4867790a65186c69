"""What a free-form training step costs beside an autoencoder step of the same networks.

Four bare loops over one batch, interleaved A B C D, D C B A, … in one process and on one thread, process CPU time:
(a) a plain autoencoder; (b) the plan of the published code (QR probe in latent space, decoder jvp, encoder vjp with double backward);
(c) fluvial eager; (d) fluvial compiled (--compile). Networks, batch and fused Adam are the same for all.

    python benchmarks/free_form_step.py [--rounds 15] [--compile] [--output benchmarks/results/free_form_step.json]
"""

import argparse
import copy
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import fluvial as fl

BATCH = 512
SIZES = ((8, 8), (64, 64), (64, 8))  # data dimension D, latent dimension d


def networks(data: int, latent: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return fl.nn.Residual(data, latent), fl.nn.Residual(latent, data)


class Autoencoder(nn.Module):
    """Reconstruction only: the limit."""

    def __init__(self, data: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(data, latent)

    def forward(self, x: Tensor) -> Tensor:
        return 100 * (x - self.decoder(self.encoder(x))).square().sum(-1).mean()


class Published(nn.Module):
    """The plan of the published implementation, written from the papers (arXiv:2310.16624, arXiv:2306.01843)."""

    def __init__(self, data: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(data, latent)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        z = self.encoder(x)
        v = math.sqrt(z.shape[-1]) * torch.linalg.qr(torch.randn(*z.shape, 1))[0].squeeze(-1)
        x_rec, tangent = torch.func.jvp(self.decoder, (z,), (v,))
        (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
        surrogate = (pulled * tangent.detach()).sum(-1)
        nll = 0.5 * z.square().sum(-1) - surrogate
        return (100 * (x - x_rec).square().sum(-1) + nll).mean()


class Ours(nn.Module):
    """fluvial's objective on a hand-made flow of the same two networks."""

    def __init__(self, data: int, latent: int) -> None:
        super().__init__()
        self.flow = fl.Flow(fl.FreeForm(*networks(data, latent)), fl.bases.Normal(latent), manifold=fl.Euclidean(data))
        self.objective = fl.FreeFormLikelihood(beta=100.0)
        self.progress = fl.Progress()

    def forward(self, x: Tensor) -> Tensor:
        return self.objective(self.flow, fl.Batch(x), self.progress)["loss"]


def contestants(data: int, latent: int, *, compiled: bool) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    models: dict[str, nn.Module] = {"autoencoder": Autoencoder(data, latent), "published": Published(data, latent), "fluvial": Ours(data, latent)}
    if compiled:
        models["fluvial compiled"] = copy.deepcopy(models["fluvial"])
    found = {}
    for name, model in models.items():
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        found[name] = (torch.compile(model, fullgraph=True) if name.endswith("compiled") else model, optimizer)
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    model(x).backward()
    optimizer.step()


def measure(data: int, latent: int, *, rounds: int, compiled: bool) -> dict[str, float]:
    """Median of the per-round ratios to the autoencoder, and its milliseconds."""
    x = torch.randn(BATCH, data)
    runners = contestants(data, latent, compiled=compiled)
    compile_seconds = 0.0
    for name, runner in runners.items():
        start = time.perf_counter()
        step(*runner, x)
        if name.endswith("compiled"):
            compile_seconds = time.perf_counter() - start
        for _ in range(3):
            step(*runner, x)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for k in range(rounds):
        for name in list(runners) if k % 2 == 0 else list(runners)[::-1]:
            start = time.process_time()
            for _ in range(3):
                step(*runners[name], x)
            times[name].append((time.process_time() - start) / 3)
    base = times["autoencoder"]
    figures = {name: statistics.median(t / b for t, b in zip(own, base)) for name, own in times.items()}
    figures["autoencoder ms"] = 1e3 * statistics.median(base)
    if compiled:
        figures["compile s"] = compile_seconds
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also the compiled objective (minutes of compiling)")
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for data, latent in SIZES:
        figures = measure(data, latent, rounds=arguments.rounds, compiled=arguments.compile)
        results[f"D={data} d={latent}"] = figures
        print(f"D={data:2d} d={latent:2d}  " + "  ".join(f"{name} {value:.2f}" for name, value in figures.items()), flush=True)
    if arguments.output is not None:
        record = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), "batch": BATCH, "rounds": arguments.rounds}
        arguments.output.write_text(json.dumps({**record, "ratios to the autoencoder step": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
