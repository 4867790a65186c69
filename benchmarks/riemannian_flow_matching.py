"""Riemannian flow matching with the network of a free-form flow: the baseline of `manifold_sampling.py`, and the command that trains it.

    python benchmarks/riemannian_flow_matching.py RUN [--seconds 300] [--output benchmarks/results/flow-matching-floods-seed0]

RUN is the folder of a trained free-form flow. The baseline gets the same data, split and noise, and as velocity field the same network as that flow's
decoder, with the time as one more input. It is trained for as many seconds as the flow was, or until its own validation NLL no longer falls,
whichever is later; then the learning rate falls to 0 and the weights of the best validation are kept.

Path and loss are those of R. T. Q. Chen, Y. Lipman, "Flow matching on general geometries", 2023, arXiv:2302.03660.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fluvial as fl
from fluvial.data import Dataset
from fluvial.manifolds import Manifold, has_uniform
from fluvial.runs import Run


class VelocityField(nn.Module):
    r"""A tangent vector field of time t in [0, 1] that carries the uniform distribution to the data.

    .. math:: v(x, t) = \mathrm{to\_tangent}(x, \mathrm{net}(x, t))

    Args:
        manifold: Of finite volume, with geodesics.
        net: Called net(x, t) with x of shape (batch, prod(event)) and t of shape (batch, 1).

    Raises:
        ValueError: If there is no uniform distribution to start from.
    """

    def __init__(self, manifold: Manifold, net: nn.Module) -> None:
        super().__init__()
        if not has_uniform(manifold):
            raise ValueError(f"VelocityField: {manifold} has no uniform distribution to start from")
        self.manifold: Any = manifold
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r"""Velocities at points x (batch, \*event) and times t, shape (batch, 1) or a scalar; same shape as x."""
        u = self.net(x.flatten(1), t.expand(len(x), 1))
        return self.manifold.to_tangent(x, u.view_as(x))

    def base(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform points in the dtype of the network."""
        return self.manifold.random_uniform(n, generator=generator, dtype=next(self.net.parameters()).dtype)


def field_like(decoder: Any, manifold: Manifold) -> VelocityField:
    """A field whose network is a `Residual` of the sizes of a flow's decoder; t is its condition."""
    size = math.prod(manifold.event_shape)
    options = {name: getattr(decoder, name) for name in ("width", "blocks", "activation", "input_scale", "output_scale")}
    return VelocityField(manifold, fl.nn.Residual(size, context=1, **options))


# ------------------------------------------------------------------------------------------------------------------ the loss


def geodesic(manifold: Manifold, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point x_t = exp_{x0}(t log_{x0}(x1)) and its velocity there; t of shape (batch, 1, …)."""
    x = manifold.exp(x0, t * manifold.log(x0, x1))
    # Towards the end that is farther away: log_{x_t}(x1)/(1 − t) or −log_{x_t}(x0)/t, never divided by something small.
    early = t < 0.5
    return x, manifold.log(x, torch.where(early, x1, x0)) / torch.where(early, 1 - t, -t)


def matching_loss(field: VelocityField, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mean squared Riemannian length of v(x_t, t) − dx_t/dt over one batch."""
    manifold = field.manifold
    x0 = field.base(len(x1), generator)
    # One time in each of equally long intervals: the same expectation, less noise.
    t = (torch.randperm(len(x1), generator=generator) + torch.rand(len(x1), generator=generator, dtype=x1.dtype)) / len(x1)
    x, velocity = geodesic(manifold, x0, x1, t.view(-1, *[1] * (x1.ndim - 1)))
    return manifold.norm(x, field(x, t.unsqueeze(1)) - velocity).square().mean()


# ------------------------------------------------------------------------------------------------ the ODE, solved to tolerance


def push_basis(fn: Callable[[Tensor], Tensor], manifold: Manifold, x: Tensor) -> tuple[Tensor, Tensor]:
    """fn(x) and its derivatives along an orthonormal tangent basis at x, shape (n, batch, *event)."""
    basis = manifold.tangent_basis(x).movedim(-1, 0)
    values, derivatives = torch.func.vmap(lambda e: torch.func.jvp(fn, (x,), (e,)))(basis)
    return values[0], derivatives


def divergence(field: VelocityField, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """V(x, t) and Σ_i ⟨e_i, D_{e_i} v⟩ over an orthonormal tangent basis, shape (batch,): exact.

    Where ½ log|G| is the same everywhere, as on all manifolds with a uniform distribution here, this is the Riemannian divergence too.
    """
    v, derivatives = push_basis(lambda y: field(y, t), field.manifold, x)
    basis = field.manifold.tangent_basis(x).movedim(-1, 0)
    return v, (basis * derivatives).flatten(2).sum((0, 2))


def odeint(fn: Callable[..., Any], state: Any, times: tuple[float, float], tolerance: float) -> Any:
    """The state at the last time, by dopri5 of torchdiffeq."""
    from torchdiffeq import odeint as solve

    like = state[0] if isinstance(state, tuple) else state
    path = solve(fn, state, torch.tensor(times, dtype=like.dtype), rtol=tolerance, atol=tolerance, method="dopri5")
    return tuple(part[-1] for part in path) if isinstance(path, tuple) else path[-1]


@torch.no_grad()
def sample_ode(field: VelocityField, x0: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, int]:
    """Points at t = 1 from those at t = 0, and how many times the network was called; solved in the embedding, projected at every evaluation."""
    calls = 0

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return field(field.manifold.project(x), t)

    return field.manifold.project(odeint(velocity, x0, (0.0, 1.0), tolerance)), calls


@torch.no_grad()
def log_prob_ode(field: VelocityField, x: Tensor, tolerance: float = 1e-5, *, chunk: int = 8192) -> Tensor:
    """Log-density log p(x) = −log vol − ∫₀¹ div v dt along the path that ends in x, shape (batch,)."""
    manifold = field.manifold

    def rates(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return divergence(field, manifold.project(state[0]), t)

    pieces = [odeint(rates, (part, part.new_zeros(len(part))), (1.0, 0.0), tolerance)[1] for part in x.split(chunk)]
    # The integral ran from 1 to 0.
    return torch.cat(pieces) - math.log(manifold.total_volume)


# ------------------------------------------------------------------------------------------------------------------- training


class Course(NamedTuple):
    """How training went."""

    rows: list[dict[str, float]]
    ended: str
    steps: int
    seconds: float
    best: float


@torch.no_grad()
def validation_nll(field: VelocityField, x: Tensor) -> float:
    """Mean NLL in nats, to about 0.001."""
    return -float(log_prob_ode(field, x, 1e-4).mean())


def train(
    field: VelocityField,
    data: Dataset,
    validation: Tensor,
    *,
    seconds: float,
    steps: int = 0,
    longest: float | None = None,
    batch: int = 256,
    learning_rate: float = 2e-3,
    validate_every: int = 1000,
    patience: int = 5,
    least: float = 0.005,
    seed: int = 0,
    tell: Callable[[str], object] = print,
) -> Course:
    """Train in place, and leave the averaged weights of the best validation.

    Adam at a constant learning rate until `seconds` and `steps` are over and the validation NLL of the averaged weights has reached its plateau:
    `patience` validations without falling by `least` nats. Then the learning rate falls to 0, linearly, in half as many steps as there were.

    Args:
        field: What is trained.
        data: Training rows; noise is added as its ``spec`` says.
        validation: Rows, of which the first 512 are used.
        seconds: At least so long.
        steps: And at least so many.
        longest: Give up waiting for the plateau after so many seconds; default four times `seconds`.
        batch: Rows in a batch.
        learning_rate: Of Adam, after 200 steps of warmup.
        validate_every: Steps between validations.
        patience: See above.
        least: See above.
        seed: Of batches, times and starting points.
        tell: Called with a line for every validation.

    Returns:
        The course, with what ended it: "seconds" or "steps" (the plateau had come before), "plateau", or "limit".
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(field.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    average = copy.deepcopy(field).requires_grad_(False)
    x, held_out = data.x, validation[:512]
    begin, longest = time.monotonic(), 4 * seconds if longest is None else longest
    rows: list[dict[str, float]] = []
    best, best_weights = math.inf, copy.deepcopy(average.state_dict())
    lowest, since, waited, ended = math.inf, 0, False, ""
    order, at, step = torch.zeros(0, dtype=torch.long), 0, 0
    stable, last = math.inf, math.inf  # the step after which the learning rate falls, and the last one
    while step < last:
        if at + batch > len(order):
            order, at = torch.randperm(len(x), generator=generator), 0
        chosen = order[at : at + batch]
        at += batch
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / 200, (last - step) / (last - stable) if ended else 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss = matching_loss(field, data.spec.perturb(x[chosen], generator), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(field.parameters(), 10.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            # Weights ∝ step⁹: an average over the last tenth of all steps, whatever their number (Karras et al. 2024, arXiv:2312.02696).
            torch._foreach_lerp_(list(average.parameters()), list(field.parameters()), 1 - (1 - 1 / step) ** 10)
        if step % validate_every and step < last:
            continue
        nll, passed = validation_nll(average, held_out), time.monotonic() - begin
        rows.append({"step": step, "seconds": passed, "loss": float(loss.detach()), "nll": nll})
        tell(f"step {step:7d}  {passed:6.0f} s  loss {rows[-1]['loss']:.3f}  validation NLL {nll:.3f}{'  cooling' if ended else ''}")
        if nll < best:
            best, best_weights = nll, copy.deepcopy(average.state_dict())
        lowest, since = (nll, 0) if nll < lowest - least else (lowest, since + 1)
        if not ended and passed >= seconds and step >= steps:
            if since >= patience:
                ended = "plateau" if waited else "time"
            elif passed >= longest:
                ended = "limit"
            waited = True
            if ended:
                stable, last = step, step + max(1, step // 2)
    field.load_state_dict(best_weights)
    return Course(rows, ended, step, time.monotonic() - begin, best)


# -------------------------------------------------------------------------------------------------------------------- command


def store(field: VelocityField, course: Course, figures: dict[str, Any], folder: Path) -> None:
    """Weights, course and figures in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(field.state_dict(), folder / "model.safetensors")
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in course.rows))
    (folder / "metrics.json").write_text(json.dumps(figures | {"training": summary(course)}, indent=2) + "\n")


def restore(decoder: Any, manifold: Manifold, folder: Path) -> tuple[VelocityField, dict[str, Any]]:
    """The field of a folder, its network of the sizes of `decoder`, and what is known of its training."""
    field = field_like(decoder, manifold)
    field.load_state_dict(load_file(folder / "model.safetensors"))
    return field, json.loads((folder / "metrics.json").read_text())["training"]


def summary(course: Course) -> dict[str, Any]:
    """What the figures of a trained field are quoted with."""
    return {"ended by": course.ended, "steps": course.steps, "seconds": course.seconds, "validation NLL": course.best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a trained free-form flow, such as benchmarks/results/floods-quick-seed0")
    parser.add_argument("--seconds", type=float, help="train at least so long; default as long as the flow")
    parser.add_argument("--steps", type=int, default=0, help="train at least so many steps")
    parser.add_argument("--longest", type=float, help="seconds after which the plateau is no longer waited for; default four times as long")
    parser.add_argument("--batch", type=int, help="default that of the flow")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder; default flow-matching-… beside the run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    run = Run.find(arguments.run)
    flow, splits, recipe = run.flow(), run.splits(), run.recipe()
    seconds = arguments.seconds if arguments.seconds is not None else run.history()[-1]["seconds"]
    field = field_like(flow.codec.decoder, flow.manifold)
    course = train(
        field,
        splits.train,
        splits.validation.x,
        seconds=seconds,
        steps=arguments.steps,
        longest=arguments.longest,
        batch=arguments.batch or recipe.fit["batch_size"],
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    log_p = log_prob_ode(copy.deepcopy(field).double(), splits.test.x.double())
    figures = {"test NLL": -float(log_p.mean()), "standard error": float(log_p.std() / len(log_p) ** 0.5), "rows": len(log_p)}
    folder = arguments.output or run.path.parent / f"flow-matching-{run.path.name}"
    store(field, course, figures, folder)
    print(
        f"ended by {course.ended} after {course.steps} steps, {course.seconds:.0f} s; test NLL {figures['test NLL']:.3f} ± "
        f"{figures['standard error']:.3f}; {folder}"
    )


if __name__ == "__main__":
    main()
