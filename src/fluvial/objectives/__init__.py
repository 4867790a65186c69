"""What training minimises."""

from torch import nn

from fluvial.flow import Flow
from fluvial.objectives.free_form import FreeFormLikelihood
from fluvial.objectives.likelihood import MaximumLikelihood
from fluvial.objectives.objective import Batch, Objective, Progress, training_mean, weighted_mean
from fluvial.objectives.weighted_sum import WeightedSum

__all__ = [
    "Batch",
    "FreeFormLikelihood",
    "MaximumLikelihood",
    "Objective",
    "Progress",
    "WeightedSum",
    "natural_objective",
    "training_mean",
    "weighted_mean",
]


def natural_objective(flow: nn.Module) -> Objective:
    """What `fluvial.fit` minimises where nothing is said: the free-form likelihood for free-form codecs, else the exact likelihood."""
    return FreeFormLikelihood() if isinstance(flow, Flow) and not flow.is_bijective else MaximumLikelihood()
