"""Gaussianizations of other packages, under one roof, and the data on which `gaussianization.py` compares them with ours."""

import importlib.metadata
import importlib.util
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from fluvial.flow import Flow
from fluvial.gaussianization.fit import fit

HELD_OUT = 0.1


class Fitted(NamedTuple):
    """A fitted density.

    Attributes:
        score: Log-density of rows.
        layers: How many it has.
        splines: One-dimensional maps in all layers together.
        model: The package's own object.
    """

    score: Callable[[np.ndarray], np.ndarray]
    layers: int
    splines: int
    model: Any


class Peer(NamedTuple):
    """A class of another package.

    Attributes:
        package: To install.
        title: The class and its settings.
        fit: Takes rows, number of layers (None for as many as its own rule takes) and seed.
        note: What its layers are.
        largest: Number of rows that it is tried with, where more would only repeat what another entry shows.
    """

    package: str
    title: str
    fit: Callable[[np.ndarray, int | None, int], Fitted]
    note: str
    largest: int = 100_000


class TooLongError(Exception):
    """CPU time is over."""


def fit_ours(x: np.ndarray, layers: int | None, seed: int, **settings: Any) -> Fitted:
    """Layers of ours, exactly so many, on one thread."""
    if layers is not None:
        settings |= {"max_layers": layers, "patience": layers, "min_gain": -math.inf}
    flow = fit(x, validation=HELD_OUT, seed=seed, threads=1, progress=False, **settings)
    splines = [type(part).__name__ for part in flow.codec.parts].count("MarginalSpline")
    return Fitted(lambda rows: scores(flow, rows), splines, splines * x.shape[1], flow)


def scores(flow: Flow, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return flow.log_prob(torch.from_numpy(np.asarray(rows, np.float32))).double().numpy()


def _fit_sinflow(x: np.ndarray, layers: int | None, seed: int, *, directions: int | None = None) -> Fitted:
    from sinflow import Flow as SlicedFlow

    np.random.seed(seed)  # it draws from the global generator
    directions = x.shape[1] // 2 if directions is None else directions
    wanted = {} if layers is None else {"n_transforms": directions * (layers - 1), "early_stopping": False}
    model = SlicedFlow(validation_fraction=HELD_OUT, **wanted)
    model.fit(x.astype(np.float64))  # a copy: it shuffles the rows in place
    along = len(model.transforms) - 2  # whitening and the splines of the coordinates come first
    return Fitted(lambda rows: model.log_prob(rows.astype(np.float64)), 1 + math.ceil(along / directions), x.shape[1] + along, model)


def _fit_sinflow_by_direction(x: np.ndarray, layers: int | None, seed: int) -> Fitted:
    return _fit_sinflow(x, layers, seed, directions=1)


def _fit_rbig(x: np.ndarray, layers: int | None, seed: int) -> Fitted:
    from rbig import AnnealedRBIG

    wanted = {} if layers is None else {"n_layers": layers, "patience": layers}
    model = AnnealedRBIG(rotation="pca", random_state=seed, **wanted).fit(x.astype(np.float64))
    return Fitted(lambda rows: model.score_samples(rows.astype(np.float64)), len(model.layers_), len(model.layers_) * x.shape[1], model)


PEERS = {
    "rbig": Peer("rbig", "rbig.AnnealedRBIG(rotation='pca')", _fit_rbig, "a layer: splines of D coordinates, then a rotation"),
    "sinflow": Peer(
        "sinflow",
        "sinflow.Flow()",
        _fit_sinflow,
        "whitening, a layer of D splines of the coordinates, then layers of D/2 splines along directions that are found together",
    ),
    "sinflow by direction": Peer(
        "sinflow",
        "sinflow.Flow()",
        _fit_sinflow_by_direction,
        "the same, with every direction counted as a layer: one spline where a layer of ours has D",
        largest=20_000,
    ),
}


def version(package: str) -> str | None:
    """That is installed, or None."""
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else None


class Mixed:
    """Independent sources, by turns Laplace, two normals, Gumbel and Student t with 5 degrees of freedom, mixed by a matrix: the density is known.

    Args:
        features: D.
    """

    def __init__(self, features: int = 32) -> None:
        generator = np.random.default_rng(0)
        left, right = (np.linalg.qr(generator.normal(size=(features, features)))[0] for _ in range(2))
        self.matrix = left * np.linspace(0.5, 2, features) @ right
        self.features = features

    def draw(self, n: int, seed: int) -> np.ndarray:
        """Rows, float32."""
        generator = np.random.default_rng(seed)
        shape = (n, self.features)
        normals = generator.normal(size=shape) * 0.5 + np.where(generator.random(shape) < 0.5, -1.5, 1.5)
        kinds = [generator.laplace(size=shape), normals, generator.gumbel(size=shape), generator.standard_t(5, size=shape)]
        sources = np.stack([kinds[k % 4][:, k] for k in range(self.features)], 1)
        return (sources @ self.matrix.T).astype(np.float32)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        from scipy import stats

        sources = np.linalg.solve(self.matrix, x.astype(np.float64).T)
        normals = stats.norm(0, 0.5)
        kinds = [
            stats.laplace.logpdf,
            lambda s: np.logaddexp(normals.logpdf(s + 1.5), normals.logpdf(s - 1.5)) - math.log(2),
            stats.gumbel_r.logpdf,
            stats.t(5).logpdf,
        ]
        return sum(kinds[k % 4](row) for k, row in enumerate(sources)) - np.linalg.slogdet(self.matrix)[1]


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TooLongError` once the process has spent so many CPU seconds in the body; never for 0."""

    def over(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Spent(NamedTuple):
    """CPU and wall-clock seconds."""

    cpu: float
    wall: float


def timed(function: Callable[[], Any]) -> tuple[Any, Spent]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, Spent(time.process_time() - cpu, time.perf_counter() - wall)
