"""What fit costs beyond a bare training loop, per step: the same flow, objective and batches in both, one thread, interleaved.

The bare loop draws batches by index, runs the objective forwards and backwards and steps fused Adam; it clips nothing, guards nothing,
counts nothing. Figures are process CPU time between the first and the last step of a run, so neither set-up nor validation counts.

    python benchmarks/fit_overhead.py [--rounds 7]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fluvial as fl
from fluvial.objectives import Batch, Objective, Progress

BATCH = 512


class Autoencode(Objective):
    """Reconstruction error; notes the CPU time at which every step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """One forward pass."""
        self.times.append(time.process_time())
        loss = (batch.x - flow.reconstruct(batch.x)).square().sum(-1).mean()
        return {"loss": loss, "error": loss.detach()}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Nothing that costs."""
        return {"monitor": torch.zeros(())}

    def per_step(self) -> float:
        """Mean CPU seconds of a step."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def make_flow(features: int, width: int, blocks: int) -> fl.Flow:
    """A residual network each way."""
    nets = [fl.nn.Residual(features, width=width, blocks=blocks) for _ in range(2)]
    return fl.Flow(fl.FreeForm(*nets), fl.bases.Normal(features))


def bare(flow: fl.Flow, x: Tensor, steps: int) -> float:
    """The least a training loop can do."""
    objective = Autoencode()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=True)
    progress = Progress()
    flow.train()
    for k in range(steps):
        if k % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x))
        start = k % (len(x) // BATCH) * BATCH
        objective(flow, Batch(x.index_select(0, order[start : start + BATCH])), progress)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective.per_step()


def fitted(flow: fl.Flow, x: Tensor, steps: int) -> float:
    """The same under fit."""
    objective = Autoencode()
    fl.fit(flow, x, objective, max_steps=steps, batch_size=BATCH, validate_every=steps, progress=False, device="cpu")
    return objective.per_step()


def compare(name: str, make: Callable[[], fl.Flow], features: int, steps: int, rounds: int) -> None:
    """Interleaved rounds, the order reversed every other time; prints the ratio of minima and the median ratio."""
    x = torch.randn(20_000, features)
    runs = {"bare": bare, "fit": fitted}
    seconds: dict[str, list[float]] = {"bare": [], "fit": []}
    for k in range(rounds):
        for kind in sorted(runs, reverse=bool(k % 2)):
            seconds[kind].append(runs[kind](make(), x, steps))
    ratios = [b / a for a, b in zip(seconds["bare"], seconds["fit"])]
    extra = 1e3 * (min(seconds["fit"]) - min(seconds["bare"]))
    print(
        f"{name:28s} bare {1e3 * min(seconds['bare']):6.2f} ms   fit / bare {min(seconds['fit']) / min(seconds['bare']):.3f} | "
        f"{statistics.median(ratios):.3f}   (+{extra:.2f} ms per step)"
    )


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fitted(make_flow(2, 8, 1), torch.randn(2000, 2), 20)  # loads Lightning
    print("CPU time per step: ratio of minima | median of ratios")
    compare("residual 4 x 256, 8 features", lambda: make_flow(8, 256, 4), 8, 40, rounds)
    compare("residual 1 x 32, 2 features", lambda: make_flow(2, 32, 1), 2, 300, rounds)


if __name__ == "__main__":
    main()
