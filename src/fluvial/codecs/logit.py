"""An interval mapped onto the real line."""

from fluvial.bases.limits import intervals
from fluvial.codecs.box import Box


class Logit(Box):
    r"""Stretch the open interval (l, h) onto the real line, the same for all coordinates.

    .. math:: z_i = \log\frac{x_i - l}{h - x_i}, \qquad
              \log|\det| = \sum_i \log\frac{h - l}{(x_i - l)(h - x_i)}

    Supports that differ between coordinates are the business of `Bounds`, which also says how values on a bound are read: here ``eps``
    of h − l inside, so that dequantised data, which may be 0 exactly, have a density.

    Args:
        event_shape: An int n, or the shape of one sample.
        low: Lower bound l, in the units of the data.
        high: Upper bound h > l.
        eps: How far inside a value on a bound is read, in units of h − l, but no less than the bounds are rounded by; default half of the
            smallest step of `torch.rand`, 2⁻²⁵ in single precision, which is z = ∓17.3.

    Raises:
        ValueError: If the bounds are not finite, or enclose no interval that single precision resolves.

    Example:
        >>> import torch
        >>> codec = Logit(2, low=-1.0, high=1.0)
        >>> z, ladj = codec.encode_ladj(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> z.tolist(), ladj.tolist()
        ([[0.0, 0.0], [0.0, 0.0]], [1.3862943649291992, -inf])
    """

    def __init__(self, event_shape: int | tuple[int, ...], *, low: float = 0.0, high: float = 1.0, eps: float | None = None) -> None:
        below, above = intervals("Logit", (low,), (high,), finite=True)
        super().__init__(event_shape, below, above, one_sided="softplus", eps=eps)
        self.low = float(low)
        self.high = float(high)

    def extra_repr(self) -> str:
        """Shape and interval, for repr."""
        return f"{self.domain}, low={self.low:g}, high={self.high:g}"
