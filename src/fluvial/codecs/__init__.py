"""Maps between data and latents."""

from fluvial.codecs.act_norm import ActNorm
from fluvial.codecs.affine import Affine
from fluvial.codecs.angles import Angles
from fluvial.codecs.arcsinh import Arcsinh
from fluvial.codecs.bounds import Bounds
from fluvial.codecs.chain import Chain, Inverse
from fluvial.codecs.codec import Bijection, Codec
from fluvial.codecs.conditional_spline import AnchorWeights, ConditionalSpline
from fluvial.codecs.coupling import Coupling
from fluvial.codecs.cubic import Cubic
from fluvial.codecs.cylinder import Cylinder
from fluvial.codecs.encoded import Encoded
from fluvial.codecs.factorwise import Factorwise
from fluvial.codecs.free_form import FreeForm
from fluvial.codecs.hadamard import Hadamard
from fluvial.codecs.isometry import Isometry
from fluvial.codecs.logit import Logit
from fluvial.codecs.lu import LU
from fluvial.codecs.marginal_spline import MarginalSpline
from fluvial.codecs.permutation import Permutation
from fluvial.codecs.principal_axes import PrincipalAxes
from fluvial.codecs.rational_quadratic import RationalQuadratic
from fluvial.codecs.rotation import Rotation
from fluvial.codecs.sheared_spline import ShearedSpline
from fluvial.codecs.similarity import Similarity
from fluvial.codecs.smooth import Smooth
from fluvial.codecs.softplus import Log, Softplus
from fluvial.codecs.standardize import HasFit, Standardize, fit_codec_
from fluvial.codecs.trainable_rotation import TrainableRotation
from fluvial.codecs.transformer import Transformer
from fluvial.codecs.whiten import Whiten
from fluvial.codecs.wrap import Wrap

__all__ = [
    "ActNorm",
    "Affine",
    "AnchorWeights",
    "Angles",
    "Arcsinh",
    "Bijection",
    "Bounds",
    "Chain",
    "Codec",
    "ConditionalSpline",
    "Coupling",
    "Cubic",
    "Cylinder",
    "Encoded",
    "Factorwise",
    "FreeForm",
    "Hadamard",
    "HasFit",
    "Inverse",
    "Isometry",
    "Log",
    "Logit",
    "LU",
    "MarginalSpline",
    "Permutation",
    "PrincipalAxes",
    "RationalQuadratic",
    "Rotation",
    "ShearedSpline",
    "Similarity",
    "Smooth",
    "Softplus",
    "Standardize",
    "TrainableRotation",
    "Transformer",
    "Whiten",
    "Wrap",
    "fit_codec_",
]
