"""A rotation that is learned."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fluvial.codecs.isometry import Isometry, turned_space
from fluvial.codecs.matrices import checked_orthogonal, orthonormal, product, random_rotation, solve
from fluvial.conditions import Condition
from fluvial.manifolds import Manifold

Method = Literal["exponential", "householder"]
Start = Literal["identity", "random"]


class TrainableRotation(Isometry):
    r"""A rotation whose matrix is learned, and which stays exactly orthogonal while it is.

    .. math:: z = Q x, \qquad Q = Q_0\, e^{A}, \; A = -A^\top
              \quad\text{or}\quad Q = \prod_{i=1}^{k} \Bigl(1 - 2 \frac{v_i v_i^\top}{|v_i|^2}\Bigr), \qquad \log|\det| = 0

    Decoding is a product with Qᵀ: nothing is solved for. The reflections are multiplied at once, as 1 − V S⁻¹ Vᵀ with a triangular S.

    Args:
        features: Length n of the vectors.
        method: "exponential" reaches every rotation with n (n − 1)/2 numbers; "householder" has as many as its reflections want, and differs
            from the identity by a matrix of that rank.
        reflections: How many reflections "householder" multiplies, an even number; default the smallest that reaches every rotation, n or n − 1.
        start: "identity", or "random": a uniformly drawn Q₀, or random reflections.
        seed: Of a random start, and of the directions of the reflections, which at the identity cancel in pairs.
        manifold: Where the vectors live, Euclidean(n) or Sphere(n − 1); default the first.

    Raises:
        ValueError: If features is not positive, the method or start is unknown, the reflections are odd or given without "householder", or the
            manifold has points of another shape.

    References:
        Tomczak, Welling (2016), "Improving variational auto-encoders using Householder flow", arXiv:1611.09630.
        Joffrain, Low, Quintana-Ortí, van de Geijn, Van Zee (2006), "Accumulating Householder transformations, revisited" (the product at once).

    Example:
        >>> rotation = TrainableRotation(3)
        >>> rotation.encode(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[1.0, 2.0, 3.0]]
        >>> sum(p.numel() for p in rotation.parameters())
        3
    """

    weight: nn.Parameter | None
    origin: Tensor | None
    anchor: Tensor

    def __init__(
        self,
        features: int,
        *,
        method: Method = "exponential",
        reflections: int | None = None,
        start: Start = "identity",
        seed: int = 0,
        manifold: Manifold | None = None,
    ) -> None:
        super().__init__()
        self.manifold = self.domain = self.codomain = turned_space("TrainableRotation", features, manifold)
        if method not in get_args(Method) or start not in get_args(Start):
            raise ValueError(
                f"TrainableRotation: method is 'exponential' or 'householder' and start 'identity' or 'random', got {method!r} and {start!r}"
            )
        if method == "exponential" and reflections is not None:
            raise ValueError(f"TrainableRotation: reflections={reflections} belongs to method='householder'")
        if method == "householder" and reflections is None:
            reflections = max(2, features // 2 * 2)
        if reflections is not None and (reflections < 2 or reflections % 2):
            raise ValueError(f"TrainableRotation: an even number of reflections, 2 or more, makes a rotation; got {reflections}")
        self.features = features
        self.method = method
        self.reflections = reflections
        self.start = start
        self.seed = seed
        origin = random_rotation(features, seed=seed).to(torch.get_default_dtype()) if method == "exponential" and start == "random" else None
        self.register_buffer("origin", origin)
        # One coordinate cannot be turned: there is nothing to learn, and a buffer holds dtype and device.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)
        self.weight = nn.Parameter(self._weight()) if features > 1 else None

    def _weight(self) -> Tensor:
        if self.reflections is None:
            return torch.zeros(self.features * (self.features - 1) // 2)
        generator = torch.Generator().manual_seed(self.seed)
        vectors = torch.randn(self.reflections, self.features, dtype=torch.float64, generator=generator)
        if self.start == "identity":
            vectors[1::2] = vectors[::2]
        return nn.functional.normalize(vectors, dim=-1).to(torch.get_default_dtype())

    @torch.no_grad()
    def set_(self, matrix: Tensor) -> None:
        """Start from this rotation matrix (n, n): as Q₀, with nothing learned yet. For the exponential with a random start, which keeps a Q₀.

        Raises:
            ValueError: If there is no Q₀, or the matrix is not orthogonal or has another size.
        """
        if self.features == 1:
            return
        if self.origin is None or self.weight is None:
            raise ValueError("TrainableRotation: only method='exponential' with start='random' can be set to a matrix")
        self.origin.copy_(checked_orthogonal("TrainableRotation", matrix, self.features))
        self.weight.zero_()

    def matrix(self) -> Tensor:
        """The matrix Q, shape (n, n)."""
        if self.weight is None:
            return self.anchor.new_ones(1, 1)
        return self._exponential(self.weight) if self.method == "exponential" else self._reflected(self.weight)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Q x."""
        return x if self.weight is None else product(x, self.matrix().mT)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Qᵀ z."""
        return z if self.weight is None else product(z, self.matrix())

    def _exponential(self, angles: Tensor) -> Tensor:
        rows, columns = torch.triu_indices(self.features, self.features, 1, device=angles.device)
        upper = angles.new_zeros(self.features, self.features).index_put((rows, columns), angles)
        with torch.autocast(angles.device.type, enabled=False):
            turn = torch.linalg.matrix_exp(upper - upper.mT)
        # Repeated squaring has multiplied the rounding, and Q₀ may have been stored in single precision.
        return orthonormal(turn if self.origin is None else product(self.origin, turn))

    def _reflected(self, vectors: Tensor) -> Tensor:
        v = nn.functional.normalize(vectors, dim=-1)
        # H₁ … H_k = 1 − Vᵀ S⁻¹ V with rows v_i of V: S has the products ⟨v_i, v_j⟩ above the diagonal, and ½ on it.
        eye = torch.eye(len(v), dtype=v.dtype, device=v.device)
        gram = product(v, v.mT).triu(1) + 0.5 * eye
        whole = torch.eye(self.features, dtype=v.dtype, device=v.device)
        return whole - product(v.mT, solve(gram, v.mT, upper=True).mT)

    def extra_repr(self) -> str:
        """Size and method, for repr."""
        return f"{self.features}, {self.method}{f' of {self.reflections} reflections' if self.reflections else ''}"
