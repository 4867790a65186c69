"""The contract of an objective."""

from collections.abc import Callable

import torch
from torch import nn

from fluvial.objectives import Batch, Objective, Progress
from fluvial.testing.contract import check_gradients, check_module, close, contract


@contract
def check_objective(make: Callable[[], Objective], flow: Callable[[], nn.Module], batch: Batch) -> None:
    """The contract of an objective: a finite scalar loss with gradients, detached scalars beside it, a monitor, reproducible randomness.

    Args:
        make: Builds the objective.
        flow: Builds a flow that it trains.
        batch: Rows to try it on, float64.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.flows import free_form
        >>> from fluvial.objectives import FreeFormLikelihood
        >>> rows = Batch(torch.randn(8, 2, dtype=torch.float64))
        >>> check_objective(lambda: FreeFormLikelihood(beta=1.0), lambda: free_form(2, width=8, blocks=1), rows)
    """
    objective, trained = make().double(), flow().double()
    objective.prepare(trained, None)
    figures = objective(trained, batch, Progress(generator=torch.Generator().manual_seed(0)))
    again = objective(trained, batch, Progress(generator=torch.Generator().manual_seed(0)))
    loss = figures["loss"]
    assert loss.ndim == 0 and bool(torch.isfinite(loss)), f"the loss is not a finite scalar: {loss}"  # noqa: PT018
    close(again["loss"], loss, rtol=0, atol=0, text="two evaluations under the same generator differ")
    for name, value in figures.items():
        assert value.ndim == 0, f"the entry {name!r} is not a scalar"
        assert name == "loss" or not value.requires_grad, f"the entry {name!r} is logged, but carries a graph"
    check_gradients(trained, lambda: objective(trained, batch, Progress(generator=torch.Generator().manual_seed(0)))["loss"], "loss")
    groups = [id(p) for group in objective.param_groups(trained) for p in group["params"]]
    wanted = {id(p) for p in trained.parameters() if p.requires_grad}
    assert len(groups) == len(set(groups)), "param_groups names a parameter twice"
    assert wanted <= set(groups), "param_groups misses parameters of the flow"
    trained.eval()
    with torch.no_grad():
        found = objective.validate(trained, batch, Progress())
        assert found["monitor"].ndim == 0, "validate: the monitor is not a scalar"
        assert all(value.shape in ((), (len(batch.x),)) for value in found.values()), "validate: entries are scalars or one value per row"
        moved = objective.adapt(trained, batch, Progress())
    assert all(value.ndim == 0 and bool(torch.isfinite(value)) for value in moved.values()), "adapt: entries are finite scalars"
    twin = make().double()
    twin.load_state_dict(objective.state_dict())
    check_module(make)
