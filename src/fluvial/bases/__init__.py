"""Latent distributions."""

from fluvial.bases.base import Base, sample_shape
from fluvial.bases.categorical import Categorical
from fluvial.bases.independent import Independent
from fluvial.bases.matrix_fisher import MatrixFisher
from fluvial.bases.normal import Normal
from fluvial.bases.student_t import StudentT
from fluvial.bases.truncated_normal import TruncatedNormal
from fluvial.bases.uniform import Uniform
from fluvial.bases.uniform_by_projection import UniformByProjection
from fluvial.bases.uniform_on import UniformOn
from fluvial.bases.von_mises import VonMises
from fluvial.bases.von_mises_fisher import VonMisesFisherMixture
from fluvial.bases.wrapped_normal import WrappedNormal

__all__ = [
    "Base",
    "Categorical",
    "Independent",
    "MatrixFisher",
    "Normal",
    "StudentT",
    "TruncatedNormal",
    "Uniform",
    "UniformByProjection",
    "UniformOn",
    "VonMises",
    "VonMisesFisherMixture",
    "WrappedNormal",
    "sample_shape",
]
