"""The contract of an energy."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fluvial.conditions import Condition, leaves, transform
from fluvial.energies import Energy, HasGradC, HasLogZ, HasSample, grad_c
from fluvial.manifolds import Euclidean
from fluvial.testing.contract import STANDARD_ERRORS, check_gradients, check_module, check_seeding, check_transforms, close, contract, points_on, row
from fluvial.testing.quadrature import grid

NODES = 200_000


@contract
def check_energy(make: Callable[[], Energy], *, condition: Callable[[int], Condition] | None = None, draws: int = 20_000) -> None:
    r"""The contract of an energy.

    One value for each point, conditions that broadcast or are ignored, derivatives in x that may be vmapped, ∂E/∂c in closed form as automatic
    differentiation has it; where it says so, a log Z that is that of e^{−E} and samples that follow it (on ℝ¹, ℝ², spheres and tori, by
    quadrature); dtype follows ``.to()``, values stay finite in single precision far from the samples, and it can be written down.

    Args:
        make: Builds the energy.
        condition: Gives a condition of batch (n,), for an energy that needs one.
        draws: How many samples are held against the energy, to 5 standard errors.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.energies import DoubleWell
        >>> check_energy(DoubleWell, draws=2000)
    """
    energy = make().double()
    event, give = energy.manifold.event_shape, condition or (lambda n: torch.randn(n, 2, dtype=torch.float64))
    x, c = _points(energy, 6, give(6) if condition is not None else None), give(6)
    value = energy(x, c)
    assert value.shape == (6,), f"the energy of 6 points has shape {tuple(value.shape)}"
    close(energy(x.view(2, 3, *event), transform(c, lambda leaf: leaf.view(2, 3, *leaf.shape[1:]))), value.view(2, 3), "depends on the batch shape")
    assert energy(x.view(6, 1, *event), give(4)).shape[1:] in ((4,), (1,)), "the batch of c does not broadcast with that of x"
    if condition is None:
        close(energy(x), value, "an energy without condition depends on c")
    check_transforms(lambda p, k: energy(p, k), x, c, "energy")
    check_gradients(energy, lambda: energy(x, c).square().sum(), "energy")
    _check_grad_c(energy, x, c)

    fixed = row(give(1), 0) if condition is not None else None
    if isinstance(energy, HasSample):
        _check_shapes(energy, give if condition is not None else None)
        check_seeding(lambda g: energy.sample((4,), fixed, generator=g).detach(), "sample")
    if isinstance(energy, HasLogZ):
        assert energy.log_z().shape == () if condition is None else energy.log_z(give(4)).shape == (4,), "log_z has not the batch shape of c"
    _check_density(energy, fixed, draws)
    _check_single(make().float(), x, c)
    check_module(make)


def _points(energy: Energy, n: int, c: Condition) -> Tensor:
    with torch.no_grad():
        if isinstance(energy, HasSample):
            return energy.sample(n) if c is None else energy.sample((), c)
        return points_on(energy.manifold, n)


def _check_grad_c(energy: Energy, x: Tensor, c: Condition) -> None:
    if not isinstance(energy, HasGradC):
        return
    given = transform(c, lambda leaf: leaf.clone().requires_grad_())
    total = energy(x, given).sum()
    entries = leaves(given)
    zeros = tuple(torch.zeros_like(leaf) for leaf in entries.values())
    expected = torch.autograd.grad(total, list(entries.values()), materialize_grads=True) if total.requires_grad else zeros
    for found, wanted in zip(leaves(grad_c(energy, x, c)).values(), expected):
        close(found, wanted, "grad_c is not the derivative of the energy in c")


def _check_shapes(energy: Energy, give: Callable[[int], Condition] | None) -> None:
    event = energy.manifold.event_shape
    for n, shape in (((), ()), (5, (5,)), ((2, 3), (2, 3))):
        if give is None:
            found = tuple(energy.sample(n).shape)  # pyright: ignore[reportCallIssue]
            assert found == (*shape, *event), f"sample({n}) has shape {found}, expected {(*shape, *event)}"
        else:
            found = tuple(energy.sample(n, give(4)).shape)  # pyright: ignore[reportCallIssue]
            assert found == (*shape, 4, *event), f"sample({n}, c) with c of batch (4,) has shape {found}, expected {(*shape, 4, *event)}"


@torch.no_grad()
def _check_density(energy: Energy, c: Condition, draws: int) -> None:
    """Log Z against quadrature, and means over samples against means over the quadrature's density."""
    rule = grid(energy.manifold, NODES)
    if rule is None:
        return
    nodes, weights = rule
    log_p = torch.nan_to_num(-energy(nodes, c), nan=-math.inf)
    log_z = float(torch.logsumexp(log_p + weights.log(), 0))
    if isinstance(energy, HasLogZ):
        said = float(energy.log_z(c).sum())
        assert abs(said - log_z) < 1e-6, f"log_z is {said:.8g}, but e^(−E) integrates to exp({log_z:.8g})"
    if not isinstance(energy, HasSample):
        return
    x = energy.sample(draws, c).view(draws, *energy.manifold.event_shape)
    close(energy.manifold.project(x), x, "sample is not on the manifold")
    mass = weights * (log_p - log_z).exp()
    directions = torch.randn(10, math.prod(energy.manifold.event_shape), dtype=torch.float64) * torch.tensor([[0.5], [1.5]]).repeat(5, 1)
    phases = 2 * math.pi * torch.rand(10, dtype=torch.float64)
    probes = [("E", energy(x, c), torch.where(mass > 0, -log_p, 0.0))]
    for w, b in zip(directions, phases):
        values = [torch.cos(p.flatten(1) @ w + b) for p in (x, nodes)]
        probes.append((f"cos(w·x) of |w| = {float(w.norm()):.2g}", values[0], values[1]))
    for name, of_samples, of_nodes in probes:
        expected, error = float((mass * of_nodes).sum()), float(of_samples.std()) / math.sqrt(draws)
        found = float(of_samples.mean())
        assert abs(found - expected) <= STANDARD_ERRORS * error + 1e-6, f"sample: the mean of {name} is {found:.5g}, the energy says {expected:.5g}"


def _check_single(energy: Energy, x: Tensor, c: Condition) -> None:
    """Single precision, at the samples and far from them."""
    c = transform(c, lambda leaf: leaf.float())
    for factor in (1.0, 10.0, 100.0):
        point = (factor * x.float() if isinstance(energy.manifold, Euclidean) else x.float()).requires_grad_()
        value = energy(point, c)
        slope = torch.autograd.grad(value.sum(), point)[0] if value.requires_grad else value
        assert value.dtype == torch.float32, "the energy of float32 points is not float32"
        assert bool(torch.isfinite(value).all() and torch.isfinite(slope).all()), f"the energy or its gradient is not finite at samples × {factor:g}"
    if isinstance(energy, HasSample):
        drawn = energy.sample((3,), row(c, 0) if energy.condition is not None else None)
        assert drawn.dtype == torch.float32, "sample does not follow the dtype of the energy"
