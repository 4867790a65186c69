"""What training minimises."""

from torch import nn

from fluvial.ensemble import Ensemble
from fluvial.flow import Flow
from fluvial.objectives.alpha_divergence import AlphaDivergence
from fluvial.objectives.each_member import EachMember
from fluvial.objectives.free_form import FreeFormLikelihood
from fluvial.objectives.likelihood import MaximumLikelihood
from fluvial.objectives.log_variance import LogVariance
from fluvial.objectives.mmd import MaximumMeanDiscrepancy
from fluvial.objectives.objective import Batch, Objective, Progress, training_mean, weighted_mean
from fluvial.objectives.reverse_kl import ReverseKL
from fluvial.objectives.weighted_sum import WeightedSum

__all__ = [
    "AlphaDivergence",
    "Batch",
    "EachMember",
    "FreeFormLikelihood",
    "LogVariance",
    "MaximumLikelihood",
    "MaximumMeanDiscrepancy",
    "Objective",
    "Progress",
    "ReverseKL",
    "WeightedSum",
    "natural_objective",
    "training_mean",
    "weighted_mean",
]


def natural_objective(flow: nn.Module) -> Objective:
    """What `fluvial.fit` minimises where nothing is said: the free-form likelihood for free-form codecs, else the exact likelihood.

    For an ensemble the sum of what is natural to its members.
    """
    if isinstance(flow, Ensemble):
        return EachMember([natural_objective(member) for member in flow.flows])
    return FreeFormLikelihood() if isinstance(flow, Flow) and not flow.is_bijective else MaximumLikelihood()
