"""Maps between data and latents."""

from fluvial.codecs.chain import Chain, Inverse
from fluvial.codecs.codec import Bijection, Codec
from fluvial.codecs.free_form import FreeForm
from fluvial.codecs.standardize import HasFit, Standardize, fit_codec_

__all__ = ["Bijection", "Chain", "Codec", "FreeForm", "HasFit", "Inverse", "Standardize", "fit_codec_"]
