"""A bijection on every factor of a product."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fluvial.codecs.codec import Bijection
from fluvial.codecs.standardize import fit_codec_, wants_fit
from fluvial.conditions import Condition
from fluvial.manifolds import Product


class Factorwise(Bijection):
    r"""One bijection for each factor of a product of manifolds, for instance a standardisation of the positions in poses.

    .. math:: z_k = f_k(x_k), \qquad \log|\det| = \sum_k \log|\det f_k'|

    `fit_codec_`, and with it `fluvial.fit`, fits the inner bijections, each on its own factor of the data.

    Args:
        manifold: The product on which x lives.
        codecs: One bijection for each factor, from that factor to any manifold; None leaves a factor as it is.

    Raises:
        TypeError: If the manifold is no product, or a codec is neither a bijection nor None.
        ValueError: If there is not one codec for each factor, or one does not start on its factor.

    Example:
        >>> from fluvial.codecs import Standardize
        >>> from fluvial.manifolds import Euclidean, Sphere
        >>> codec = Factorwise(Product(Sphere(1), Euclidean(1)), [None, Standardize(1)])
        >>> codec.fit_(torch.tensor([[1.0, 0.0, 5000.0], [0.0, 1.0, 7000.0]]))
        >>> codec.encode(torch.tensor([[1.0, 0.0, 7000.0]]))
        tensor([[1., 0., 1.]])
    """

    domain: Product
    codomain: Product

    def __init__(self, manifold: Product, codecs: Sequence[Bijection | None]) -> None:
        super().__init__()
        if not isinstance(manifold, Product):
            raise TypeError(f"Factorwise: manifold must be a Product, got {manifold!r}; on a single space use the codec itself")
        if len(codecs) != len(manifold.factors):
            raise ValueError(f"Factorwise: expected {len(manifold.factors)} codecs, one for each factor of {manifold}, got {len(codecs)}")
        for k, (codec, factor) in enumerate(zip(codecs, manifold.factors)):
            if codec is None:
                continue
            if not isinstance(codec, Bijection):
                raise TypeError(f"Factorwise: codec {k} must be a Bijection or None, got {type(codec).__name__}")
            if codec.domain != factor:
                raise ValueError(f"Factorwise: codec {k} starts on {codec.domain}, factor {k} is {factor}")
        self.manifold = self.domain = manifold
        self.codecs = nn.ModuleList(codecs)  # pyright: ignore[reportArgumentType]  # it takes None, though its annotation does not say so
        self.codomain = Product(*(factor if codec is None else codec.codomain for codec, factor in zip(codecs, manifold.factors)))

    @property
    def is_fitted(self) -> Tensor:
        """Whether no part still wants data."""
        return torch.tensor(all(bool(part.is_fitted) for codec in self.codecs if codec is not None for part in codec.modules() if _wants(part)))

    def fit_(self, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
        """Fit the parts that have had no data, each on its factor of x (n, size), rows counting with weight (n,)."""
        if x.shape[1:] != self.domain.event_shape:
            raise ValueError(f"Factorwise: expected data of shape (n, {self.domain.event_shape[0]}), got {tuple(x.shape)}")
        for codec, part in zip(self.codecs, self.domain.split(x)):
            if isinstance(codec, Bijection):
                fit_codec_(codec, part, c, weight)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """Factor by factor."""
        return self.codomain.join(*(p if f is None else f.encode(p, c) for f, p in zip(self.codecs, self.domain.split(x))))

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """Factor by factor."""
        return self.domain.join(*(p if f is None else f.decode(p, c) for f, p in zip(self.codecs, self.codomain.split(z))))

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Latents and the sum of the factors' ladj."""
        return _apply(self.codomain, [None if f is None else f.encode_ladj for f in self.codecs], self.domain.split(x), c)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Data and the sum of the factors' ladj."""
        return _apply(self.domain, [None if f is None else f.decode_ladj for f in self.codecs], self.codomain.split(z), c)


Side = Callable[[Tensor, Condition], tuple[Tensor, Tensor]]


def _apply(target: Product, sides: Sequence[Side | None], parts: Sequence[Tensor], c: Condition) -> tuple[Tensor, Tensor]:
    pairs = [(part, None) if side is None else side(part, c) for side, part in zip(sides, parts)]
    y = target.join(*(part for part, _ in pairs))
    total = y.new_zeros(y.shape[:-1])
    for _, ladj in pairs:
        total = total if ladj is None else total + ladj
    return y, total


def _wants(part: nn.Module) -> bool:
    return isinstance(part, Bijection) and wants_fit(part)
