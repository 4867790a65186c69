"""What the plainest model of a space makes of some rows."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.conditions import Condition, leaves
from fluvial.manifolds import Euclidean, Manifold, has_uniform


class Plainest(NamedTuple):
    """A model without a network.

    Attributes:
        name: What it is.
        nll: Its mean negative log-likelihood, in nats.
        optimism: How much better than on new rows that is expected to be, because the model was fitted to these very rows.
    """

    name: str
    nll: float
    optimism: float


def plainest(manifold: Manifold, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> Plainest | None:
    r"""The uniform density where the volume is finite; in flat space a Gaussian fitted to these rows, around a mean linear in the condition.

    Args:
        manifold: Where the rows lie.
        x: Shape (n, \*event).
        c: Conditions of the rows, or None.
        weight: Weights of the rows, shape (n,), or None.

    Returns:
        The model, or None where there is none: on other spaces, for too few rows, and where they have no density.

    Example:
        >>> from fluvial.manifolds import Sphere
        >>> round(plainest(Sphere(2), torch.eye(3)).nll, 4)
        2.531
    """
    if has_uniform(manifold):
        return Plainest("the uniform density", math.log(manifold.total_volume), 0.0)
    if not isinstance(manifold, Euclidean) or manifold.dim > 512 or len(x) < 4 * manifold.dim:
        return None
    flat, w = x.flatten(1).double(), torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double()
    w = (w / w.sum()).to(flat.device).unsqueeze(1)
    centred = flat - (w * flat).sum(0)
    name = "a Gaussian"
    if c is not None:
        # Around a mean that is linear in the condition: what the plainest conditional model knows.
        given = torch.cat([leaf.flatten(1).double() for leaf in leaves(c).values()], 1)
        given = given - (w * given).sum(0)
        centred = centred - given @ torch.linalg.lstsq(w.sqrt() * given, w.sqrt() * centred).solution
        name = "a Gaussian with a mean linear in the condition"
    covariance = (w * centred).T @ centred
    sign, log_det = torch.linalg.slogdet(2 * math.pi * math.e * covariance)
    if float(sign) <= 0 or not math.isfinite(float(log_det)):
        return None
    # Fitted to the rows it is judged on, it gains half a nat per parameter in the summed likelihood, twice over.
    return Plainest(name, float(log_det) / 2, manifold.dim * (manifold.dim + 3) / 2 / len(x))
