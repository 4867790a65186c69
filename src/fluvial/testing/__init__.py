"""The contracts that every manifold, base, codec, network, flow and objective obeys, for use in your own tests.

Each ``check_…`` raises `AssertionError` that says which promise is broken. The checks run in float64 on fixed random numbers (another set with
``seed=…``) and leave torch's random state as it was.
"""

from fluvial.testing.bases import check_base
from fluvial.testing.codecs import check_bijection, check_codec
from fluvial.testing.energies import check_energy
from fluvial.testing.flows import check_flow
from fluvial.testing.manifolds import check_manifold
from fluvial.testing.networks import check_network
from fluvial.testing.objectives import check_objective
from fluvial.testing.quadrature import integrate

__all__ = [
    "check_base",
    "check_bijection",
    "check_codec",
    "check_energy",
    "check_flow",
    "check_manifold",
    "check_network",
    "check_objective",
    "integrate",
]
