"""Flows as scikit-learn estimators; the module imports scikit-learn, which ``import fluvial`` does not."""

from fluvial.sklearn.density import GaussianizationDensity
from fluvial.sklearn.flow_estimator import FlowEstimator
from fluvial.sklearn.transformer import GaussianizationTransformer
from fluvial.sklearn.transport import Transport, transport

__all__ = ["FlowEstimator", "GaussianizationDensity", "GaussianizationTransformer", "Transport", "transport"]
