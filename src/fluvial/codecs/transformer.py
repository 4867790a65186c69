"""Monotone maps of single coordinates, whose parameters a network gives."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

Boundary = Literal["linear", "interval", "circular"]


class Transformer(nn.Module, ABC):
    r"""An increasing map z = f(x; θ) of one coordinate, applied to many at once.

    Tensors are feature-major: x has shape (F, B) for F features and B rows, the parameters θ (P, F, B). A transformer holds no weights; a
    `Coupling` computes θ from the other coordinates and the condition.

    Attributes:
        n_parameters: P, how many numbers describe the map of one coordinate.
        low: Lower end of the box in which the map bends.
        high: Upper end.
        boundary: What happens at the ends of the box. "linear": the map goes on as a straight line, for coordinates on the whole line;
            "interval": coordinates live in the box only, ladj is −inf outside; "circular": low and high are the same point.
    """

    n_parameters: int
    low: float
    high: float
    boundary: Boundary

    @abstractmethod
    def start(self) -> Tensor:
        """Parameters of the identity, shape (P,), from which training starts."""

    @abstractmethod
    def encode(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log dz/dx, both of shape (F, B)."""

    @abstractmethod
    def decode(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse x and log dx/dz, both of shape (F, B)."""


def check_box(who: str, low: float, high: float, boundary: Boundary, bins: int, fewest: int) -> None:
    """Refuse a box or a number of bins that make no spline."""
    if boundary not in ("linear", "interval", "circular"):
        raise ValueError(f"{who}: boundary must be 'linear', 'interval' or 'circular', got {boundary!r}")
    if not low < high or not abs(low) + abs(high) < float("inf"):
        raise ValueError(f"{who}: expected finite low < high, got low={low}, high={high}")
    if bins < fewest:
        raise ValueError(f"{who}: expected at least {fewest} bins, got {bins}")


def check_ratios(who: str, **ratios: float) -> None:
    """Refuse bounds of slopes and widths that bound nothing, or leave no freedom."""
    if not all(1 < ratio < math.inf for ratio in ratios.values()):
        raise ValueError(f"{who}: ratios must be above 1 and finite, got {', '.join(f'{name}={ratio}' for name, ratio in ratios.items())}")


def middle(floor: float) -> float:
    """The logit whose sigmoid s makes s + floor lie in the middle of its bounds floor and 1 + floor, on a logarithmic scale."""
    s = math.sqrt(floor * (1 + floor)) - floor
    return math.log(s / (1 - s))


def wrap(x: Tensor, low: float, high: float) -> Tensor:
    """The representative of x modulo high − low in [low, high)."""
    wrapped = low + torch.remainder(x - low, high - low)
    # Rounding may hit the upper end, which is the lower one.
    return torch.where(wrapped < high, wrapped, wrapped - (high - low))


def finish(boundary: Boundary, low: float, high: float, x: Tensor, z: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    """What lies outside the box: the identity for linear tails, no density on an interval."""
    if boundary == "circular":
        return z, log_slope
    inside = (x >= low) & (x <= high)
    if boundary == "linear":
        return torch.where(inside, z, x), torch.where(inside, log_slope, 0.0)
    # Rounding must not carry a point out of the box, where the next map would find no density. NaN stays NaN: it is neither inside nor outside.
    return torch.where(torch.isnan(x), x, held(z, low, high)), torch.where(inside, log_slope, -torch.inf)


def held(x: Tensor, low: float, high: float) -> Tensor:
    """The point within [low, high] in value, with its own derivative: what lies outside does so by rounding only."""
    return x + (x.clamp(low, high) - x).detach()
