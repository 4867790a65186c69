"""Monotone maps of the coordinates whose knots depend on the condition."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.codecs.bins import is_mapped
from fluvial.codecs.codec import Bijection
from fluvial.codecs.marginal_spline import LEAST_SHAPE, Knots, MarginalSpline, Tail, spline_decode, spline_encode
from fluvial.conditions import Condition, as_features
from fluvial.manifolds import Euclidean

Side = Callable[[Tensor, Knots], tuple[Tensor, Tensor]]


class AnchorWeights(nn.Module):
    r"""How much every anchor counts at a condition, from how near it is.

    .. math:: w_j(c) = \frac{\exp(-|c - a_j|^2 / 2h^2)}{\sum_k \exp(-|c - a_k|^2 / 2h^2)}, \qquad
              |c|^2 = \sum_i (c_i / s_i)^2

    With h = 0 the nearest anchor counts alone: for classes.

    Args:
        anchors: Conditions a_j, shape (J, f).
        bandwidth: h, in units of the scales.
        scale: s, one for each entry of the condition; default 1.

    Raises:
        ValueError: If there are no anchors, or numbers are not positive.

    Example:
        >>> AnchorWeights([[0.0], [1.0]])(torch.tensor([[0.2], [0.9]]))
        tensor([[1., 0.],
                [0., 1.]])
    """

    places: Tensor
    scales: Tensor

    def __init__(self, anchors: Any, *, bandwidth: float = 0.0, scale: Sequence[float] | None = None) -> None:
        super().__init__()
        places = torch.as_tensor(anchors).detach().float()
        if places.ndim != 2 or not len(places) or not bool(torch.isfinite(places).all()):
            raise ValueError(f"AnchorWeights: anchors must be finite and have the shape (J, features), got {tuple(places.shape)}")
        scales = torch.ones(places.shape[1]) if scale is None else torch.as_tensor(scale).float()
        if scales.shape != places.shape[1:] or not bool((scales > 0).all()) or not 0 <= bandwidth < math.inf:
            raise ValueError(f"AnchorWeights: expected {places.shape[1]} positive scales and bandwidth ≥ 0, got {scale} and {bandwidth}")
        self.anchors = _tuples(places)
        self.bandwidth = float(bandwidth)
        self.scale = tuple(scales.tolist())
        self.register_buffer("places", places.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("scales", scales.to(torch.get_default_dtype()), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        """Weights (n, J), of sum 1, at conditions c (n, f)."""
        square = ((c.unsqueeze(1) - self.places) / self.scales).square().sum(-1)
        if self.bandwidth:
            return torch.softmax(-0.5 * square / self.bandwidth**2, -1)
        return nn.functional.one_hot(square.argmin(-1), len(self.places)).to(c.dtype)

    def extra_repr(self) -> str:
        """Number of anchors and bandwidth, for repr."""
        return f"{len(self.anchors)} anchors, bandwidth={self.bandwidth:g}"


class ConditionalSpline(Bijection):
    r"""A `MarginalSpline` whose parameters are an average of several sets, with weights that depend on the condition.

    .. math:: \theta(c) = \sum_j w_j(c)\, \theta_j, \qquad w_j(c) \ge 0, \quad \sum_j w_j(c) = 1

    θ are the place of the first knot, its value, and the logarithms of widths, heights and slopes, so that every average is increasing again.

    Args:
        features: Number D of coordinates.
        bins: Number of bins.
        weights: Module from conditions (n, f) to weights (n, J), such as `AnchorWeights`.
        sets: J.
        tail: "straight" or "pareto".

    Raises:
        ValueError: If sizes are not positive, or the tail is unknown.

    Example:
        >>> codec = ConditionalSpline(2, 4, AnchorWeights([[0.0], [1.0]]), 2)
        >>> codec.encode(torch.tensor([[0.5, 10.0]]), torch.tensor([[1.0]])).round(decimals=4).tolist()
        [[0.5, 10.0]]
    """

    def __init__(self, features: int, bins: int, weights: nn.Module, sets: int, *, tail: Tail = "straight") -> None:
        super().__init__()
        if sets < 1:
            raise ValueError(f"ConditionalSpline: sets must be positive, got {sets}")
        one = MarginalSpline(features, bins, tail=tail)
        self.domain = self.codomain = Euclidean(features)
        self.features = features
        self.bins = bins
        self.weights = weights
        self.sets = sets
        self.tail = tail
        self.sizes = [1, 1, bins, bins, bins + 1] + ([2] if tail == "pareto" else [])
        self.table = nn.Parameter(_table(one).unsqueeze(0).repeat(sets, 1, 1))

    @torch.no_grad()
    def set_(self, knots: Sequence[Knots]) -> None:
        """Give every set its knots; see `MarginalSpline.set_`.

        Raises:
            ValueError: If there are more or fewer sets, or knots make no spline.
        """
        if len(knots) != self.sets:
            raise ValueError(f"ConditionalSpline: expected knots of {self.sets} sets, got {len(knots)}")
        for row, given in zip(self.table, knots):
            one = MarginalSpline(self.features, self.bins, tail=self.tail)
            one.set_(*given)
            row.copy_(_table(one))

    def knots(self, c: Condition) -> Knots:
        """Knots at every condition (n, f), of shape (n, D, bins + 1)."""
        features = as_features(c)
        if features is None:
            raise ValueError("ConditionalSpline: its knots depend on a condition, and none was given")
        return self._unpacked(torch.einsum("nj,jdk->ndk", self.weights(features).to(self.table.dtype), self.table))

    def knots_of(self, number: int) -> Knots:
        """Knots of one set, of shape (D, bins + 1)."""
        return self._unpacked(self.table[number])

    def _sent(self, side: Side, t: Tensor, c: Condition) -> tuple[Tensor, Tensor]:
        features = as_features(c)
        hard = isinstance(self.weights, AnchorWeights) and self.weights.bandwidth == 0
        if not hard or features is None or is_mapped(t) or is_mapped(features) or torch.compiler.is_compiling():
            value, log_slope = side(t.unsqueeze(-1), self.knots(c).to(t.dtype))
            return value.squeeze(-1), log_slope.sum((-2, -1))
        # Rows of one class share their knots: one set after the other is many times faster than knots for every row.
        chosen = self.weights(features).argmax(-1)
        value, ladj = torch.empty_like(t), t.new_empty(len(t))
        for k in torch.unique(chosen).tolist():
            rows = (chosen == k).nonzero()[:, 0]
            part, log_slope = side(t[rows].mT, self.knots_of(k).to(t.dtype))
            value, ladj = value.index_copy(0, rows, part.mT), ladj.index_copy(0, rows, log_slope.sum(0))
        return value, ladj

    def _unpacked(self, table: Tensor) -> Knots:
        left, bottom, widths, heights, slopes, *shapes = table.split(self.sizes, -1)
        x, y = (nn.functional.pad(logs.exp().cumsum(-1), (1, 0)) + start for logs, start in ((widths, left), (heights, bottom)))
        return Knots(x, y, slopes.exp(), shapes[0].exp().clamp_min(LEAST_SHAPE) if shapes else None)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Data (batch, D) -> z of the same shape."""
        return self.encode_ladj(x, c)[0]

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse."""
        return self.decode_ladj(z, c)[0]

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z (batch, D) and Σ log dz/dx, (batch,)."""
        return self._sent(spline_encode, x, c)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """X (batch, D) and Σ log dx/dz, (batch,)."""
        return self._sent(spline_decode, z, c)

    def extra_repr(self) -> str:
        """Sizes and kind of tail, for repr."""
        return f"{self.features}, bins={self.bins}, sets={self.sets}, tail={self.tail!r}"


def _table(one: MarginalSpline) -> Tensor:
    """All parameters of a coordinate in one row, shape (D, …)."""
    parts = [one.left.unsqueeze(-1), one.bottom.unsqueeze(-1), one.log_widths, one.log_heights, one.log_slopes]
    return torch.cat(parts + ([] if one.log_shapes is None else [one.log_shapes]), -1).detach()


def _tuples(places: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in places.tolist())
