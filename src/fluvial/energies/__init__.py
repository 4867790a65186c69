"""Densities that are known up to a factor: E(x, c) = −log of an unnormalised density."""

from fluvial.energies.density import DensityEnergy
from fluvial.energies.energy import Energy, HasGradC, HasLogZ, HasSample, grad_c
from fluvial.energies.function import FunctionEnergy
from fluvial.energies.gaussian_mixture import GaussianMixture
from fluvial.energies.tempered import Tempered
from fluvial.energies.wells import DoubleWell, MultiWell

__all__ = [
    "DensityEnergy",
    "DoubleWell",
    "Energy",
    "FunctionEnergy",
    "GaussianMixture",
    "HasGradC",
    "HasLogZ",
    "HasSample",
    "MultiWell",
    "Tempered",
    "grad_c",
]
