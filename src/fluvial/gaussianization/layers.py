"""Layers, fitted one after the other."""

import copy
import dataclasses
import math
import time
from typing import Any, Literal

import numpy as np
import torch

from fluvial.bases import Normal
from fluvial.codecs import Bijection, Chain, MarginalSpline
from fluvial.codecs.marginal_spline import Knots
from fluvial.flow import Flow
from fluvial.gaussianization import keyed
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
    seed: int = 0


class LayerwiseFit:
    """A fit that goes on layer by layer; `fit` is the usual way to run one.

    Args:
        workers: Hold the rows.
        plan: What they agree on.
        before: First maps: of bounds, and to mean 0 and variance 1.
        settings: How layers are fitted.
        unit: Sum of the integer weights that is worth one row.

    Attributes:
        codecs: Those of the flow so far: the first maps, then a rotation and splines for every layer.
        history: A row for every layer.
    """

    def __init__(self, workers: Workers, plan: Plan, before: Bijection, settings: Settings, *, unit: float = 1.0) -> None:
        self.workers = workers
        self.plan = plan
        self.settings = settings
        self.unit = unit
        self.codecs: list[list[Any]] = [[before]]
        self.history: list[Row] = []
        self._covariance: np.ndarray | None = None

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.codecs) - 1

    def begin(self) -> None:
        """Look at the rows before the first layer."""
        self._account(self.workers.call("look", covariance=self._wants_covariance(0)), time.perf_counter(), "none")

    def add_layer(self) -> None:
        """Fit one more layer, and send the rows through it."""
        start, layer, settings = time.perf_counter(), self.layers, self.settings
        kind = kind_of(settings.rotation, layer, self.plan.source.features)
        matrix = self._matrix(kind)
        coordinates = self._coordinates(matrix)
        rows = min(one.total for one in coordinates) / self.unit
        bins = 1 if settings.marginal == "affine" else automatic_bins(rows) if settings.bins == "auto" else settings.bins
        alpha = settings.alpha[min(layer, 1)]
        knots = fit_marginals(coordinates, rows=rows, bins=bins, marginal=settings.marginal, tail=settings.tail, alpha=alpha)
        splines = MarginalSpline(self.plan.source.features, bins, tail="pareto" if settings.tail == "pareto" else "straight")
        splines.set_(*knots)
        seed = self._layer_seed()
        added: list[Any] = [splines]
        if matrix is not None:
            added.insert(0, codec_of(kind, matrix, seed=seed, trainable=settings.train_rotations))
        self._apply(added, start, kind)

    def replay(self, codecs: list[Any]) -> None:
        """Add a layer that was fitted before."""
        self._apply(codecs, time.perf_counter(), "none")

    def flow(self, layers: int | None = None) -> Flow:
        """The flow of so many first layers."""
        # Copies, as the flow is its user's, in whatever precision.
        parts: list[Any] = [copy.deepcopy(part) for layer in self.codecs[: 1 + (self.layers if layers is None else layers)] for part in layer]
        return Flow(Chain(parts), Normal(self.plan.source.features))

    def _apply(self, added: list[Any], start: float, kind: str) -> None:
        # What is applied are the parameters as they are stored, in single precision.
        knots = Knots(*(None if part is None else part.detach().contiguous() for part in added[-1].knots))
        rotation = None if len(added) == 1 else _matrix(added[0], self.plan.source.features)
        self.codecs.append(added)
        sums = self.workers.call("apply", Layer(rotation, knots), covariance=self._wants_covariance(self.layers))
        self._account(sums, start, kind)

    def _account(self, nodes: list[Any], start: float, kind: str) -> None:
        sums = merge(nodes, self.plan.source.blocks)
        row: Row = {"layer": self.layers, "step": self.layers, "rotation": kind}
        for name, (weight, first, second), weight2 in zip(("train_nll", "nll"), sums["nll"], sums["weight2"]):
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
        return kind_of(self.settings.rotation, layer, self.plan.source.features) == "pca"

    def _layer_seed(self) -> int:
        return int(keyed.uniform(self.settings.seed, np.array([self.layers]), 0, "rotation")[0] * 2**31)

    def _matrix(self, kind: RotationKind) -> np.ndarray | None:
        if kind == "none":
            return None
        sample = None
        if kind in SAMPLE:
            numbers = keyed.sample_rows(self.settings.seed, self.plan.source.rows, SAMPLE[kind], f"layer {self.layers}")
            parts = self.workers.call("rows", numbers)
            sample = np.concatenate([values for _, values, _ in parts], 1)[:, is_training(self.plan, numbers)]
        return matrix_of(kind, self.plan.source.features, seed=self._layer_seed(), covariance=self._covariance, sample=sample)

    def _coordinates(self, matrix: np.ndarray | None) -> list[Binned]:
        if self.layers == 0:
            bins = self.settings.bins
            rows = self.plan.train_rows * (1 - self.plan.held_out)
            p = probabilities(rows, automatic_bins(rows) if bins == "auto" else bins, self.settings.marginal)
            return raw_coordinates(self.workers, self.plan.source.features, p)
        rotation = None if matrix is None else matrix.astype(np.float32)
        parts = self.workers.call("count_grid", rotation)
        counts = sum(part[0] for part in parts)
        return binned_grid(counts, np.minimum.reduce([part[1] for part in parts]), np.maximum.reduce([part[2] for part in parts]))


def _matrix(codec: Bijection, features: int) -> np.ndarray:
    """The matrix of a rotation as it is applied to columns, float32."""
    with torch.no_grad():
        return codec.encode(torch.eye(features)).T.contiguous().float().numpy()
