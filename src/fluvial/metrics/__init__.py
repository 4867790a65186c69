"""Figures that say how good a density, its samples and its inverse are, each with its error."""

from fluvial.metrics.c2st import C2ST, c2st
from fluvial.metrics.estimate import Estimate, mean_estimate
from fluvial.metrics.importance import Importance, importance
from fluvial.metrics.kernel_density import KernelDensity, kernel_density_nll
from fluvial.metrics.kolmogorov_smirnov import kolmogorov_smirnov
from fluvial.metrics.likelihood import Gap, Reconstruction, encoder_decoder_gap, figures, nll, reconstruction
from fluvial.metrics.mmd import squared_mmd
from fluvial.metrics.monte_carlo import integral_by_sampling
from fluvial.metrics.normalisation import normalisation
from fluvial.metrics.pca_gaussian import PCAGaussian, pca_gaussian
from fluvial.metrics.quadrature import box_grid, circle_grid, hyperbolic_grid, sphere_grid, torus_grid

__all__ = [
    "C2ST",
    "Estimate",
    "Gap",
    "Importance",
    "KernelDensity",
    "PCAGaussian",
    "Reconstruction",
    "box_grid",
    "c2st",
    "circle_grid",
    "encoder_decoder_gap",
    "figures",
    "hyperbolic_grid",
    "importance",
    "integral_by_sampling",
    "kernel_density_nll",
    "kolmogorov_smirnov",
    "mean_estimate",
    "nll",
    "normalisation",
    "pca_gaussian",
    "reconstruction",
    "sphere_grid",
    "squared_mmd",
    "torus_grid",
]
