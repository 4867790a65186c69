"""Spaces on which data and latents live: one small file each."""

from fluvial.manifolds.euclidean import Euclidean
from fluvial.manifolds.manifold import HasUniform, Manifold, random_tangent, tangent_dual
from fluvial.manifolds.sphere import Sphere
from fluvial.manifolds.torus import Torus

__all__ = ["Euclidean", "HasUniform", "Manifold", "Sphere", "Torus", "random_tangent", "tangent_dual"]
