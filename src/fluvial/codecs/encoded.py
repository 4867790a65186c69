"""Conditions in the coordinates of a codec."""

from torch import Tensor, nn

from fluvial.codecs.codec import Codec
from fluvial.conditions import Condition, as_features


class Encoded(nn.Module):
    """Conditions as a codec encodes them: the ``context`` of a flow whose codec wants them Gaussianized, say.

    Args:
        codec: From conditions (n, f) to what takes their place, (n, …).

    Raises:
        TypeError: If it is no codec.

    Example:
        >>> import torch
        >>> from fluvial.codecs import Standardize
        >>> scaling = Standardize(1)
        >>> scaling.fit_(torch.tensor([[1.0], [3.0]]))
        >>> Encoded(scaling)(torch.tensor([[2.0], [4.0]])).tolist()
        [[0.0], [2.0]]
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        if not isinstance(codec, Codec):
            raise TypeError(f"Encoded: expected a codec, got {type(codec).__name__}")
        self.codec = codec

    def forward(self, c: Condition) -> Tensor:
        """Conditions (n, f), or several by name, to the codec's latents."""
        features = as_features(c)
        if features is None:
            raise ValueError("Encoded: it encodes a condition, and none was given")
        return self.codec.encode(features)
