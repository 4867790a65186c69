"""What the contracts share."""

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, leaves, transform
from fluvial.config import verified
from fluvial.flow import Flow
from fluvial.io import load, save
from fluvial.manifolds import Hyperboloid, Manifold, PoincareBall, Product, has_uniform

STANDARD_ERRORS = 5.0  # by how many a Monte Carlo mean may miss its target: by chance one in two million does


def contract(check: Callable[..., None]) -> Callable[..., None]:
    """Run a check on fixed random numbers, as if none had been drawn."""

    @functools.wraps(check)
    def wrapped(*args: Any, seed: int = 0, **kwargs: Any) -> None:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            check(*args, **kwargs)

    return wrapped


def close(actual: Tensor, expected: Tensor, text: str, *, rtol: float | None = None, atol: float | None = None) -> None:
    """Equal up to rounding, or an AssertionError that opens with `text`."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda details: f"{text}\n{details}")


def refuses(call: Callable[[], Any]) -> bool:
    """Whether a call raises ValueError."""
    try:
        call()
    except ValueError:
        return True
    return False


def points_on(manifold: Manifold, n: int) -> Tensor:
    """N random points of a manifold in float64, uniform where that makes sense."""
    if has_uniform(manifold):
        return manifold.random_uniform(n, dtype=torch.float64)
    if isinstance(manifold, PoincareBall):
        return Hyperboloid.to_ball(points_on(Hyperboloid(manifold.dim), n))
    if isinstance(manifold, Product):
        return manifold.join(*(points_on(factor, n) for factor in manifold.factors))
    return manifold.project(torch.randn(n, *manifold.event_shape, dtype=torch.float64))


def row(c: Condition, k: int) -> Condition:
    """The k-th row of a condition, with its batch axis."""
    return transform(c, lambda leaf: leaf[k : k + 1])


def check_seeding(draw: Callable[[torch.Generator], Tensor], name: str) -> None:
    """A draw is a function of its generator."""
    first, again, other = (draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again), f"{name} differs under equally seeded generators"
    assert not torch.equal(first, other), f"{name} is the same under generators of different seeds"


def check_gradients(module: nn.Module, value: Callable[[], Tensor], name: str) -> None:
    """Every parameter gets a finite gradient that is not identically zero."""
    named = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
    if not named:
        return
    found = torch.autograd.grad(value(), [p for _, p in named], allow_unused=True)
    for (key, _), gradient in zip(named, found):
        assert gradient is not None, f"{name}: no gradient reaches the parameter {key}"
        assert bool(torch.isfinite(gradient).all()), f"{name}: the gradient of the parameter {key} is not finite"
        assert bool((gradient != 0).any()), f"{name}: the gradient of the parameter {key} is identically 0"


def check_transforms(fn: Callable[[Tensor, Condition], Tensor], x: Tensor, c: Condition, name: str) -> None:
    """A function of rows may be vmapped, and its forward and reverse derivatives agree."""
    y = fn(x, c)
    if c is None:
        mapped = torch.func.vmap(lambda one: fn(one.unsqueeze(0), None).squeeze(0))(x)
    else:
        mapped = torch.func.vmap(lambda one, k: fn(one.unsqueeze(0), transform(k, lambda leaf: leaf.unsqueeze(0))).squeeze(0))(x, c)
    close(mapped, y, f"{name} under vmap has another value")
    t, w = torch.randn_like(x), torch.randn_like(y)
    pushed = torch.func.jvp(lambda p: fn(p, c), (x,), (t,))[1]
    pulled = torch.func.vjp(lambda p: fn(p, c), x)[1](w)[0]
    close((w * pushed).sum(), (t * pulled).sum(), f"{name}: forward and reverse derivatives differ")


def check_condition_gradient(fn: Callable[[Tensor, Condition], Tensor], x: Tensor, c: Condition, name: str) -> None:
    """∂/∂c is finite, and not zero for every entry of c."""
    if c is None:
        return
    given = transform(c, lambda leaf: leaf.clone().requires_grad_())
    entries = leaves(given)
    found = torch.autograd.grad(fn(x, given).square().sum(), list(entries.values()), allow_unused=True)
    for key, gradient in zip(entries, found):
        assert gradient is not None, f"{name} does not depend on the condition {key}"
        assert bool(torch.isfinite(gradient).all()), f"{name}: the gradient of the condition {key} is not finite"


def check_module(make: Callable[[], nn.Module]) -> None:
    """A module has a repr, can be copied with its tensors, and be written down and built again."""
    module = make()
    assert repr(module), "repr is empty"
    twin = copy.deepcopy(module)
    for (key, a), b in zip(module.state_dict().items(), twin.state_dict().values()):
        assert torch.allclose(a, b, rtol=0, atol=0, equal_nan=True), f"a deep copy differs in {key}"
    try:
        verified(module)
    except ValueError as error:
        raise AssertionError(str(error)) from None


def check_file(flow: Flow, x: Tensor, c: Condition) -> None:
    """log_prob is the same after save and load."""
    allow = sorted({type(part).__module__ for part in (*flow.modules(), flow.manifold, flow.latent_manifold)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        save(flow, path)
        again = load(path, allow=allow).eval()
    close(again.log_prob(x, c), flow.log_prob(x, c), "log_prob differs after save and load", rtol=0, atol=0)
