"""Spaces on which data and latents live: one small file each."""

from fluvial.manifolds.euclidean import Euclidean
from fluvial.manifolds.hyperboloid import Hyperboloid
from fluvial.manifolds.manifold import HasUniform, Manifold, has_uniform, linearize_projection, random_tangent, tangent_dual
from fluvial.manifolds.mesh import Mesh
from fluvial.manifolds.poincare_ball import PoincareBall
from fluvial.manifolds.product import Product, product
from fluvial.manifolds.projected import Projected, from_projection
from fluvial.manifolds.special_orthogonal import SpecialOrthogonal
from fluvial.manifolds.sphere import Sphere
from fluvial.manifolds.torus import Torus

__all__ = [
    "Euclidean",
    "HasUniform",
    "Hyperboloid",
    "Manifold",
    "Mesh",
    "PoincareBall",
    "Product",
    "Projected",
    "SpecialOrthogonal",
    "Sphere",
    "Torus",
    "from_projection",
    "has_uniform",
    "linearize_projection",
    "product",
    "random_tangent",
    "tangent_dual",
]
