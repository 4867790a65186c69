"""The contract of a latent distribution."""

from collections.abc import Callable

import torch

from fluvial.bases import Base
from fluvial.conditions import Condition, transform
from fluvial.manifolds import Euclidean
from fluvial.testing.contract import check_gradients, check_module, check_seeding, check_transforms, close, contract
from fluvial.testing.quadrature import check_expectations


@contract
def check_base(make: Callable[[], Base], *, condition: Callable[[int], Condition] | None = None, draws: int = 20_000) -> None:
    r"""The contract of a base distribution.

    The density integrates to 1 and describes the samples (checked on ℝ¹, ℝ² and spheres by quadrature, on other manifolds of finite
    volume by Monte Carlo), shapes follow n and c, the generator is obeyed, dtype follows ``.to()``, gradients reach every parameter.

    Args:
        make: Builds the base.
        condition: Gives a condition of batch (n,), for a base that needs one; default one that the base may ignore.
        draws: How many samples are held against the density, to 5 standard errors.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.bases import Normal
        >>> check_base(lambda: Normal(2), draws=2000)
    """
    base = make().double()
    event = base.manifold.event_shape
    give = condition or (lambda n: torch.randn(n, 2, dtype=torch.float64))
    if condition is None:
        for n, shape in (((), ()), (5, (5,)), ((2, 3), (2, 3)), (0, (0,))):
            assert base.sample(n).shape == (*shape, *event), f"sample({n}) has shape {tuple(base.sample(n).shape)}, expected {(*shape, *event)}"
    for n, shape in (((), ()), (5, (5,)), ((2, 3), (2, 3))):
        found = tuple(base.sample(n, give(4)).shape)
        assert found == (*shape, 4, *event), f"sample({n}, c) with c of batch (4,) has shape {found}, expected {(*shape, 4, *event)}"
    fixed = None if condition is None else give(1)

    def one(n: int) -> Condition:
        return transform(fixed, lambda leaf: leaf.expand(n, *leaf.shape[1:]))

    c = one(draws)
    z = base.sample(draws if c is None else (), c)
    close(base.manifold.project(z), z, text="sample is not on the manifold")
    log_p = base.log_prob(z, c)
    assert log_p.shape == (draws,), f"log_prob has shape {tuple(log_p.shape)} for {draws} points"
    if condition is None:
        close(base.log_prob(z[:6].view(2, 3, *event)), log_p[:6].view(2, 3), text="log_prob depends on the batch shape")
    check_seeding(lambda g: base.sample(() if condition else 4, one(4), generator=g), "sample")
    check_expectations(base.manifold, z, lambda p: base.log_prob(p, one(len(p))), "log_prob")

    few, c = z[:8].detach(), one(8)
    check_gradients(base, lambda: base.log_prob(few, c).square().sum(), "log_prob")
    check_transforms(lambda p, k: base.log_prob(p, k), few, c, "log_prob")
    single = make().float()
    assert single.sample(() if condition else 3, to_float(one(3))).dtype == torch.float32, "sample does not follow the dtype of the base"
    for factor in (1.0, 10.0, 100.0):
        point = (factor * few.float() if isinstance(base.manifold, Euclidean) else few.float()).requires_grad_()
        value = single.log_prob(point, to_float(c))
        slope = torch.autograd.grad(value.sum(), point)[0] if value.requires_grad else value
        assert value.dtype == torch.float32, "log_prob of float32 points is not float32"
        assert bool(torch.isfinite(value).all() and torch.isfinite(slope).all()), f"log_prob or its gradient is not finite at samples × {factor:g}"
    check_module(make)


def to_float(c: Condition) -> Condition:
    """The condition in single precision."""
    return transform(c, lambda leaf: leaf.float())
