"""Flows fitted layer by layer without backpropagation, and the theory that says how many layers."""

from fluvial.gaussianization.export import export_numpy
from fluvial.gaussianization.fit import fit
from fluvial.gaussianization.information import entropy, kl_divergence, mutual_information, negentropy, total_correlation
from fluvial.gaussianization.joint_scales import tune_jointly
from fluvial.gaussianization.predict import LayerPrediction, predict_layers
from fluvial.gaussianization.scaling import Scaling, ScalingCurve, gaussian_scaling
from fluvial.gaussianization.scaling_result import StudyResult
from fluvial.gaussianization.scaling_study import ScalingStudy
from fluvial.gaussianization.theory import (
    asymptotic_layers,
    expected_reduction,
    gaussian_loss,
    layer_covariance,
    layer_reduction,
    minimum_layers,
    reduction_series,
    simulate_losses,
)

__all__ = [
    "LayerPrediction",
    "Scaling",
    "ScalingCurve",
    "ScalingStudy",
    "StudyResult",
    "asymptotic_layers",
    "entropy",
    "expected_reduction",
    "export_numpy",
    "fit",
    "gaussian_loss",
    "gaussian_scaling",
    "kl_divergence",
    "layer_covariance",
    "layer_reduction",
    "minimum_layers",
    "mutual_information",
    "negentropy",
    "predict_layers",
    "reduction_series",
    "simulate_losses",
    "total_correlation",
    "tune_jointly",
]
