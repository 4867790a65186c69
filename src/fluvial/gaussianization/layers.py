"""Layers, fitted one after the other."""

import copy
import dataclasses
import math
import time
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fluvial.bases import Normal
from fluvial.codecs import AnchorWeights, Bijection, Chain, ConditionalSpline, MarginalSpline, ShearedSpline
from fluvial.codecs.marginal_spline import Knots, Tail
from fluvial.flow import Flow
from fluvial.gaussianization import keyed
from fluvial.gaussianization.conditional import MOST_CLASSES, SAMPLED, Conditioning, anchors_of_kernel, check_classes, network_spline
from fluvial.gaussianization.joint_layers import choose_lean, fit_sheared, joint_bins
from fluvial.gaussianization.marginals import Marginal, TailKind, automatic_bins, fit_marginals, probabilities
from fluvial.gaussianization.raw_counts import raw_coordinates
from fluvial.gaussianization.rotations import SAMPLE, RotationKind, codec_of, kind_of, matrix_of
from fluvial.gaussianization.shard import Layer, Plan, is_training
from fluvial.gaussianization.statistics import Binned, binned_grid
from fluvial.gaussianization.tree import merge
from fluvial.gaussianization.workers import Workers
from fluvial.training.history import Row


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the layers are fitted; see `fit`."""

    rotation: RotationKind = "auto"
    marginal: Marginal = "spline"
    bins: int | Literal["auto"] = "auto"
    alpha: tuple[float, float] = (0.3, 0.8)
    tail: TailKind = "pareto"
    max_layers: int = 200
    patience: int = 15
    min_gain: float = 1e-4
    train_rotations: bool = False
    conditioning: Conditioning = "auto"
    seed: int = 0


class LayerwiseFit:
    """A fit that goes on layer by layer; `fit` is the usual way to run one.

    Args:
        workers: Hold the rows.
        plan: What they agree on.
        before: First maps: of bounds, and to mean 0 and variance 1.
        settings: How layers are fitted.
        unit: Sum of the integer weights that is worth one row.
        context: For a joint fit, what Gaussianizes the conditions; the workers hold them as it puts them out.

    Attributes:
        codecs: Those of the flow so far: the first maps, then a rotation and splines for every layer.
        history: A row for every layer.
    """

    def __init__(
        self, workers: Workers, plan: Plan, before: Bijection, settings: Settings, *, unit: float = 1.0, context: nn.Module | None = None
    ) -> None:
        self.workers = workers
        self.plan = plan
        self.settings = settings
        self.unit = unit
        self.context = context
        self.codecs: list[list[Any]] = [[before]]
        self.history: list[Row] = []
        self._covariance: np.ndarray | None = None
        self._classes: Any = None

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.codecs) - 1

    def begin(self) -> None:
        """Look at the rows before the first layer."""
        self._account(self.workers.call("look", covariance=self._wants_covariance(0)), time.perf_counter(), "none")

    def add_layer(self) -> None:
        """Fit one more layer, and send the rows through it."""
        start, kind = time.perf_counter(), self._kind(self.layers)
        added: list[Any] = []
        rotation = None
        if kind != "none":
            added.append(codec_of(kind, self._matrix(kind), seed=self._layer_seed(), trainable=self.settings.train_rotations))
            rotation = _matrix(added[0], self.plan.source.features)
        # The first layer only brings the coordinates to a known range.
        conditional = self.plan.source.condition_features > 0 and self.layers > 0
        added.append(self._conditional_splines(rotation) if conditional else self._splines(rotation))
        # Of one process, so that all apply the same even where their processors round differently.
        self._apply(self.workers.from_leader(added), start, kind)

    def _splines(self, rotation: np.ndarray | None) -> MarginalSpline:
        coordinates = self._coordinates(rotation)
        knots = self._knots(coordinates, min(one.total for one in coordinates) / self.unit)
        splines = MarginalSpline(self.plan.source.features, knots.x.shape[-1] - 1, tail=self._tail)
        splines.set_(*knots)
        return splines

    def _conditional_splines(self, rotation: np.ndarray | None) -> ConditionalSpline | ShearedSpline:
        conditioning = self._conditioning()
        if conditioning == "joint":
            return self._sheared_splines(rotation)
        if conditioning == "network":
            return self.workers.from_leader(self._network_splines(rotation))
        if conditioning == "classes":
            weights = AnchorWeights(self._classes)
        else:
            _, _, conditions = self._sample("kernel")
            weights = anchors_of_kernel(conditions.T, self.plan.train_rows, self._layer_seed())
        sets = len(weights.anchors)
        counts, low, high, rest = self.workers.counted("count_conditional", rotation, weights, sets)
        sums: Any = merge([nodes for (nodes,) in rest], self.plan.source.blocks)
        rows = sums[0] ** 2 / np.maximum(sums[1], 1e-300) if conditioning == "kernel" else sums[0] / self.unit
        check_classes(np.array(weights.anchors), rows)
        bins = self.settings.bins if self.settings.bins != "auto" else automatic_bins(float(rows.min()))
        each = [self._knots(binned_grid(count, low, high), float(number), bins=bins) for count, number in zip(counts, rows)]
        splines = ConditionalSpline(self.plan.source.features, each[0].x.shape[-1] - 1, weights, sets, tail=self._tail)
        splines.set_(each)
        return splines

    def _network_splines(self, rotation: np.ndarray | None) -> ConditionalSpline:
        _, x, conditions = self._sample("network")
        x = x if rotation is None else rotation @ x
        coordinates = self._coordinates(rotation)
        knots = self._knots(coordinates, min(one.total for one in coordinates) / self.unit)
        return network_spline(x, conditions, knots, bins=knots.x.shape[-1] - 1, tail=self._tail, seed=self._layer_seed())

    def _sheared_splines(self, rotation: np.ndarray | None) -> ShearedSpline:
        _, x, u = self._sample("joint")
        lean = self.workers.from_leader(choose_lean(x if rotation is None else rotation @ x, u, self._layer_seed()))
        cosine = 1 / np.sqrt(1 + (lean**2).sum(1))
        matrix = (cosine[:, None] * lean).astype(np.float32)
        counts, low, high, rest = self.workers.counted("count_sheared", rotation, cosine.astype(np.float32), matrix)
        coordinates, shift = binned_grid(counts, low, high), merge([nodes for (nodes,) in rest], self.plan.source.blocks)
        rows = min(one.total for one in coordinates) / self.unit
        bins = self.settings.bins if self.settings.bins != "auto" else joint_bins(rows)
        bins = 1 if self.settings.marginal == "affine" else bins
        return fit_sheared(coordinates, np.asarray(shift), lean, rows=rows, bins=bins, alpha=self.settings.alpha[1])

    def _knots(self, coordinates: list[Binned], rows: float, *, bins: int | None = None) -> Knots:
        settings = self.settings
        if bins is None:
            bins = automatic_bins(rows) if settings.bins == "auto" else settings.bins
        bins = 1 if settings.marginal == "affine" else bins
        alpha = settings.alpha[min(self.layers, 1)]
        return fit_marginals(coordinates, rows=rows, bins=bins, marginal=settings.marginal, tail=self._tail_kind, alpha=alpha)

    @property
    def _tail(self) -> Tail:
        return "pareto" if self._tail_kind == "pareto" else "straight"

    @property
    def _tail_kind(self) -> TailKind | Literal["affine"]:
        # The tails of the data end in the first layer. Heavy ones after it would lie one inside the other, and sampling overflow; slopes from the
        # few rows out there would multiply over the layers, and a new row far out lose hundreds of nats.
        return self.settings.tail if self.layers == 0 else "affine"

    def _kind(self, layer: int) -> RotationKind:
        # With a condition the second layer is the first one that sees it, and looks along the columns too.
        conditional = self.plan.source.condition_features > 0
        return kind_of(self.settings.rotation, max(layer - conditional, 0), self.plan.source.features)

    def _conditioning(self) -> Conditioning:
        """What "auto" comes to: classes where there are few different conditions, else a kernel."""
        wanted = self.settings.conditioning
        if wanted in ("auto", "classes") and self._classes is None:
            parts = self.workers.call("conditions", MOST_CLASSES)
            merged = None if any(part is None for part in parts) else np.unique(np.concatenate(parts), axis=0)
            self._classes = merged if merged is not None and len(merged) <= MOST_CLASSES else np.empty((0, 0), np.float32)
        if wanted == "classes" and not len(self._classes):
            raise ValueError(f"fit: conditioning='classes', but there are more than {MOST_CLASSES} different conditions; take 'kernel' or 'network'")
        if wanted == "auto":
            return "classes" if len(self._classes) else "kernel"
        return wanted

    def _sample(self, purpose: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, values (D, m) and conditions (f, m) of some training rows, as they stand."""
        size = SAMPLE[purpose] if purpose in SAMPLE else SAMPLED[purpose]
        numbers = keyed.sample_rows(self.settings.seed, self.plan.source.rows, size, f"layer {self.layers}")
        parts = [part for part in self.workers.call("rows", numbers) if len(part[0])]
        numbers = np.concatenate([part[0] for part in parts])
        training = is_training(self.plan, numbers)
        values = np.concatenate([part[1] for part in parts], 1)[:, training]
        if not self.plan.source.condition_features:
            return numbers[training], values, np.empty((0, values.shape[1]), np.float32)
        return numbers[training], values, np.concatenate([part[2] for part in parts], 1)[:, training]

    def replay(self, codecs: list[Any]) -> None:
        """Add a layer that was fitted before."""
        self._apply(codecs, time.perf_counter(), "none")

    def flow(self, layers: int | None = None) -> Flow:
        """The flow of so many first layers."""
        # Copies, as the flow is its user's, in whatever precision.
        parts: list[Any] = [copy.deepcopy(part) for layer in self.codecs[: 1 + (self.layers if layers is None else layers)] for part in layer]
        condition = self.plan.source.condition_features if self.layers > 0 else 0
        context = copy.deepcopy(self.context) if condition else None
        return Flow(Chain(parts), Normal(self.plan.source.features), context=context, condition=condition or None)

    def _apply(self, added: list[Any], start: float, kind: str) -> None:
        # What is applied are the parameters as they are stored, in single precision.
        splines, rotation = added[-1], None if len(added) == 1 else _matrix(added[0], self.plan.source.features)
        if isinstance(splines, MarginalSpline):
            splines = Knots(*(None if part is None else part.detach().contiguous() for part in splines.knots))
        self.codecs.append(added)
        sums = self.workers.call("apply", Layer(rotation, splines), covariance=self._wants_covariance(self.layers))
        self._account(sums, start, kind)

    def _account(self, nodes: list[Any], start: float, kind: str) -> None:
        sums = merge(nodes, self.plan.source.blocks)
        row: Row = {"layer": self.layers, "step": self.layers, "rotation": kind}
        for name, (weight, first, second), weight2 in zip(("train_nll", "nll"), sums["nll"].tolist(), sums["weight2"].tolist()):
            if weight > 0:
                mean = first / weight
                row[name] = mean
                spread = max(second / weight - mean * mean, 0.0)
                row[f"{name}_error"] = math.sqrt(spread * weight2) / weight
        if self._wants_covariance(self.layers):
            weight = sums["nll"][0, 0]
            mean = sums["first"] / weight
            self._covariance = sums["second"] / weight - np.outer(mean, mean)
        row["seconds"] = (self.history[-1]["seconds"] if self.history else 0.0) + time.perf_counter() - start
        self.history.append(row)

    def _wants_covariance(self, layer: int) -> bool:
        return self._kind(layer) == "pca"

    def _layer_seed(self) -> int:
        return int(keyed.uniform(self.settings.seed, np.array([self.layers]), 0, "rotation")[0] * 2**31)

    def _matrix(self, kind: RotationKind) -> np.ndarray:
        sample = self._sample(kind)[1] if kind in SAMPLE else None
        return matrix_of(kind, self.plan.source.features, seed=self._layer_seed(), covariance=self._covariance, sample=sample)

    def _probabilities(self, total: int) -> np.ndarray:
        """At which quantiles must be known, where counts sum to a total."""
        rows, bins = total / self.unit, self.settings.bins
        return probabilities(rows, automatic_bins(rows) if bins == "auto" else bins, self.settings.marginal)

    def _coordinates(self, rotation: np.ndarray | None) -> list[Binned]:
        if self.layers == 0:
            return raw_coordinates(self.workers, self.plan.source.features, self._probabilities)
        return binned_grid(*self.workers.counted("count_grid", rotation)[:3])


def _matrix(codec: Bijection, features: int) -> np.ndarray:
    """The matrix of a rotation as it is applied to columns, float32."""
    with torch.no_grad():
        return codec.encode(torch.eye(features)).T.contiguous().float().numpy()
