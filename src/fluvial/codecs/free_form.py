"""Any two networks as a codec."""

import inspect

from torch import Tensor, nn

from fluvial.codecs.codec import Codec
from fluvial.conditions import Condition


class FreeForm(Codec):
    r"""Any two modules as encoder f and decoder g; training makes them inverses of each other.

    .. math:: z = f(x, c), \qquad \hat x = g(z, c)

    The latent may be as large as the data, smaller (an injective flow on a learned submanifold), or live on a manifold,
    onto which the flow projects the networks' output. The density comes from the decoder's Jacobian; in training its
    gradient is estimated by one probe (`fluvial.objectives.FreeFormLikelihood`).

    Args:
        encoder: Module called ``encoder(x, c)``, or ``encoder(x)`` if its forward takes one argument.
        decoder: Module called ``decoder(z, c)`` or ``decoder(z)``.

    Raises:
        TypeError: If one of the two is not a torch module.

    References:
        Draxler, Sorrenson, Zimmermann, Rousselot, Köthe (2023), "Free-form flows: Make any architecture a normalizing flow", arXiv:2310.16624.
        Sorrenson, Draxler, Rousselot, Hummerich, Zimmermann, Köthe (2023), "Lifting architectural constraints of injective flows", arXiv:2306.01843.

    Example:
        >>> import torch
        >>> codec = FreeForm(nn.Linear(3, 2), nn.Linear(2, 3))
        >>> codec.encode(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        for name, net in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(net, nn.Module):
                raise TypeError(f"FreeForm: {name} must be a torch.nn.Module, got {type(net).__name__}")
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        r"""X of shape (batch, \*event) -> f(x, c)."""
        return call(self.encoder, x, c)

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        r"""Z of shape (batch, \*latent event) -> g(z, c)."""
        return call(self.decoder, z, c)


def call(net: nn.Module, x: Tensor, c: Condition = None) -> Tensor:
    """Call a network with its condition, or without one where there is none.

    Raises:
        ValueError: If there is a condition that the network cannot take.
    """
    if c is None:
        return net(x)
    if not takes_condition(net):
        raise ValueError(
            f"{type(net).__name__} was given a condition but its forward takes only x; give it a forward(x, c), or wrap it in a module that has one"
        )
    return net(x, c)


def takes_condition(net: nn.Module) -> bool:
    """Whether forward accepts a second positional argument."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    return len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) >= 2
