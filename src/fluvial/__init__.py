"""fluvial learns probability distributions for the sciences: samples in, a flow with `log_prob` and one-pass `sample` out."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Importing fluvial imports none of them.
_HOMES = {
    "Flow": "fluvial.flow",
    "Joint": "fluvial.joint",
    "Ensemble": "fluvial.ensemble",
    "Codec": "fluvial.codecs",
    "Bijection": "fluvial.codecs",
    "FreeForm": "fluvial.codecs",
    "Chain": "fluvial.codecs",
    "Inverse": "fluvial.codecs",
    "Manifold": "fluvial.manifolds",
    "Euclidean": "fluvial.manifolds",
    "Sphere": "fluvial.manifolds",
    "Mesh": "fluvial.manifolds",
    "Torus": "fluvial.manifolds",
    "Hyperboloid": "fluvial.manifolds",
    "PoincareBall": "fluvial.manifolds",
    "Product": "fluvial.manifolds",
    "SpecialOrthogonal": "fluvial.manifolds",
    "from_projection": "fluvial.manifolds",
    "Energy": "fluvial.energies",
    "Objective": "fluvial.objectives",
    "Batch": "fluvial.objectives",
    "Progress": "fluvial.objectives",
    "FreeFormLikelihood": "fluvial.objectives",
    "MaximumLikelihood": "fluvial.objectives",
    "ReverseKL": "fluvial.objectives",
    "AlphaDivergence": "fluvial.objectives",
    "LogVariance": "fluvial.objectives",
    "MaximumMeanDiscrepancy": "fluvial.objectives",
    "WeightedSum": "fluvial.objectives",
    "Dataset": "fluvial.data",
    "DataSpec": "fluvial.data",
    "fit": "fluvial.training",
    "save": "fluvial.io",
    "load": "fluvial.io",
    "check": "fluvial.check",
}
_ROOMS = (
    "bases",
    "codecs",
    "data",
    "energies",
    "flows",
    "gaussianization",
    "interop",
    "manifolds",
    "metrics",
    "nn",
    "objectives",
    "report",
    "sklearn",
    "testing",
    "volume",
)

if TYPE_CHECKING:
    from fluvial import (
        bases,
        codecs,
        data,
        energies,
        flows,
        gaussianization,
        interop,
        manifolds,
        metrics,
        nn,
        objectives,
        report,
        sklearn,
        testing,
        volume,
    )
    from fluvial.check import check
    from fluvial.codecs import Bijection, Chain, Codec, FreeForm, Inverse
    from fluvial.data import Dataset, DataSpec
    from fluvial.energies import Energy
    from fluvial.ensemble import Ensemble
    from fluvial.flow import Flow
    from fluvial.io import load, save
    from fluvial.joint import Joint
    from fluvial.manifolds import Euclidean, Hyperboloid, Manifold, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus, from_projection
    from fluvial.objectives import (
        AlphaDivergence,
        Batch,
        FreeFormLikelihood,
        LogVariance,
        MaximumLikelihood,
        MaximumMeanDiscrepancy,
        Objective,
        Progress,
        ReverseKL,
        WeightedSum,
    )
    from fluvial.training import fit

__all__ = [*_HOMES, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"fluvial.{name}")
    raise AttributeError(f"module 'fluvial' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
