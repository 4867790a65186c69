"""Data sets: toys with known densities, real data, files; with splits, checks and the description a model keeps."""

from fluvial.data.airports import airports
from fluvial.data.dataset import Dataset, Splits, as_dataset
from fluvial.data.digits import digits
from fluvial.data.earth import earthquakes, fires, floods, volcanoes
from fluvial.data.hyperbolic import hyperbolic_checkerboard, hyperbolic_five_gaussians, hyperbolic_gaussian, hyperbolic_swish
from fluvial.data.latlon import unit_vectors
from fluvial.data.load import load
from fluvial.data.meshes import FaceDensity, bunny, mesh, spot
from fluvial.data.poses import poses
from fluvial.data.ramachandran import Ramachandran
from fluvial.data.rotations import RotationMixture, so3_given_features, so3_mixture
from fluvial.data.spec import DataSpec
from fluvial.data.torsions import protein_torsions, ramachandran, rna_torsions, top8000_torsions
from fluvial.data.toys import checkerboard, eight_gaussians, moons, pinwheel, rings, two_spirals

__all__ = [
    "DataSpec",
    "Dataset",
    "FaceDensity",
    "Ramachandran",
    "RotationMixture",
    "Splits",
    "airports",
    "as_dataset",
    "bunny",
    "checkerboard",
    "digits",
    "earthquakes",
    "eight_gaussians",
    "fires",
    "floods",
    "hyperbolic_checkerboard",
    "hyperbolic_five_gaussians",
    "hyperbolic_gaussian",
    "hyperbolic_swish",
    "load",
    "mesh",
    "moons",
    "pinwheel",
    "poses",
    "protein_torsions",
    "ramachandran",
    "rings",
    "rna_torsions",
    "so3_given_features",
    "so3_mixture",
    "spot",
    "top8000_torsions",
    "two_spirals",
    "unit_vectors",
    "volcanoes",
]
