"""The contracts of codecs and bijections."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fluvial.bases import Base, Normal, UniformOn
from fluvial.codecs import Bijection, Codec
from fluvial.conditions import Condition
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Manifold
from fluvial.testing.contract import check_condition_gradient, check_gradients, check_module, check_transforms, close, contract, row
from fluvial.testing.flows import check_flow


@contract
def check_codec(make: Callable[[], Codec], points: Callable[[int], Tensor], *, condition: Callable[[int], Condition] | None = None) -> None:
    """The contract of any codec: rows do not see each other, transforms and gradients pass, and the codec can be copied and written down.

    Args:
        make: Builds the codec.
        points: Gives n points of data space, float64.
        condition: Gives a condition of batch (n,), for a codec that takes one.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from torch import nn
        >>> from fluvial.codecs import FreeForm
        >>> check_codec(lambda: FreeForm(nn.Linear(3, 2), nn.Linear(2, 3)), lambda n: torch.randn(n, 3, dtype=torch.float64))
    """
    codec = make().double()
    x, c = points(6), None if condition is None else condition(6)
    z = codec.encode(x, c)
    for name, side, value in (("encode", codec.encode, x), ("decode", codec.decode, z.detach())):
        whole = side(value, c)
        assert len(whole) == 6, f"{name} changes the number of rows"
        rows = torch.cat([side(value[k : k + 1], row(c, k)) for k in range(6)])
        close(rows, whole, text=f"{name}: a row depends on the other rows")
        check_transforms(side, value, c, name)
        check_condition_gradient(side, value, c, name)
    check_gradients(codec, lambda: codec.encode(x, c).square().sum() + codec.decode(z.detach(), c).square().sum(), "encode and decode")
    check_module(make)


@contract
def check_bijection(
    make: Callable[[], Bijection],
    points: Callable[[int], Tensor],
    *,
    condition: Callable[[int], Condition] | None = None,
    base: Callable[[], Base] | None = None,
    tolerance: float = 1e-8,
) -> None:
    r"""The contract of a bijection, in float64.

    Beside that of a codec: round trip, both ladj against the Jacobian by automatic differentiation in tangent bases with respect to the
    Riemannian volumes of domain and codomain, conditions accepted even where ignored, ∂_c log_prob differentiable in θ, and equality of
    log_prob after save and load.

    Args:
        make: Builds the bijection.
        points: Gives n points of its domain, float64.
        condition: Gives a condition of batch (n,), for a bijection that needs one.
        base: Builds a base on its codomain; default standard normal, or uniform where the codomain is curved.
        tolerance: Largest error of the round trip and of ladj.

    Raises:
        AssertionError: If a promise is broken.

    Example:
        >>> from fluvial.codecs import Standardize
        >>> check_bijection(lambda: Standardize(2), lambda n: torch.randn(n, 2, dtype=torch.float64))
    """
    check_codec(make, points, condition=condition)
    codec = make().double()
    x = points(6)
    c = torch.randn(6, 2, dtype=torch.float64) if condition is None else condition(6)
    exact = functools.partial(close, rtol=tolerance, atol=tolerance)
    z, ladj = codec.encode_ladj(x, c)
    back, inverse_ladj = codec.decode_ladj(z, c)
    assert ladj.shape == inverse_ladj.shape == (6,), f"ladj has shapes {tuple(ladj.shape)} and {tuple(inverse_ladj.shape)} for 6 rows"
    exact(back, x, text="decode(encode(x)) is not x")
    exact(inverse_ladj, -ladj, text="ladj of decode is not minus that of encode")
    exact(codec.encode(x, c), z, text="encode and encode_ladj differ")
    exact(codec.decode(z, c), back, text="decode and decode_ladj differ")
    if condition is None:
        exact(codec.encode_ladj(x)[0], z, text="a condition is ignored by the codec, but changes its output")
    exact(codec.domain.project(x), x, text="points are not on the domain")
    exact(codec.codomain.project(z), z, text="encode does not reach the codomain")
    exact(ladj, log_det(codec.encode, codec.domain, codec.codomain, x, z, c), text="encode_ladj is not log|det| of encode's Jacobian")
    exact(inverse_ladj, log_det(codec.decode, codec.codomain, codec.domain, z, x, c), text="decode_ladj is not log|det| of decode's Jacobian")
    check_gradients(codec, lambda: _square(*codec.encode_ladj(x, c)) + _square(*codec.decode_ladj(z.detach(), c)), "encode_ladj and decode_ladj")
    latent = base or (lambda: Normal(codec.codomain.event_shape) if isinstance(codec.codomain, Euclidean) else UniformOn(codec.codomain))
    check_flow(lambda: Flow(make(), latent()), condition=condition)


def log_det(fn: Callable[[Tensor, Condition], Tensor], source: Manifold, target: Manifold, x: Tensor, y: Tensor, c: Condition) -> Tensor:
    """log|det| of fn at x, with respect to Riemannian volumes, from the Jacobian by automatic differentiation; y = fn(x)."""
    rows = []
    for k in range(len(x)):
        jacobian = torch.func.jacrev(lambda one: fn(one.unsqueeze(0), row(c, k)).squeeze(0))(x[k])  # noqa: B023
        jacobian = jacobian.reshape(y[k].numel(), x[k].numel())
        before = source.tangent_basis(x[k : k + 1])[0].reshape(x[k].numel(), -1)
        after = target.tangent_basis(y[k : k + 1])[0].reshape(y[k].numel(), -1)
        rows.append(torch.linalg.slogdet(after.T @ jacobian @ before)[1])
    return torch.stack(rows) + target.log_volume(y) - source.log_volume(x)


def _square(value: Tensor, ladj: Tensor) -> Tensor:
    return value.square().sum() + ladj.square().sum()
