"""Half-lines mapped onto the real line."""

import math

from fluvial.codecs.box import Box


class Softplus(Box):
    r"""Map numbers above a bound l onto the real line: their logarithm where they are small, themselves where they are large.

    .. math:: z_i = \log(e^{x_i - l} - 1), \qquad x_i = l + \log(1 + e^{z_i}), \qquad \log|\det| = -\sum_i \log(1 - e^{-(x_i - l)})

    The bend lies at x − l ≈ 1 in the units of the data. For data that spread over orders of magnitude `Log` is better suited.

    Args:
        event_shape: An int n, or the shape of one sample.
        low: The bound l, in the units of the data.
        eps: How far inside a value on the bound is read, in the units of the data, but no less than l is rounded by, as `Bounds` says;
            default 2⁻²⁵ in single precision.

    Raises:
        ValueError: If the bound is not finite.

    Example:
        >>> import torch
        >>> Softplus(1).encode(torch.tensor([[1e-30], [1.0], [1e30]])).flatten()
        tensor([-6.9078e+01,  5.4132e-01,  1.0000e+30])
    """

    def __init__(self, event_shape: int | tuple[int, ...], *, low: float = 0.0, eps: float | None = None) -> None:
        if not math.isfinite(low):
            raise ValueError(f"Softplus: low must be a finite number, got {low}")
        super().__init__(event_shape, (low,), (None,), one_sided="softplus", eps=eps)
        self.low = float(low)

    def extra_repr(self) -> str:
        """Shape and bound, for repr."""
        return f"{self.domain}, low={self.low:g}"


class Log(Box):
    r"""Map numbers above a bound l onto the real line by the logarithm, for positive data that spread over orders of magnitude.

    .. math:: z_i = \log(x_i - l), \qquad \log|\det| = -\sum_i \log(x_i - l)

    Args:
        event_shape: An int n, or the shape of one sample.
        low: The bound l, in the units of the data.
        eps: How far inside a value on the bound is read, in the units of the data, but no less than l is rounded by, as `Bounds` says;
            default 2⁻²⁵ in single precision.

    Raises:
        ValueError: If the bound is not finite.

    Example:
        >>> import torch
        >>> Log(1).encode(torch.tensor([[1e-30], [1.0], [1e30]])).flatten()
        tensor([-69.0776,   0.0000,  69.0776])
    """

    def __init__(self, event_shape: int | tuple[int, ...], *, low: float = 0.0, eps: float | None = None) -> None:
        if not math.isfinite(low):
            raise ValueError(f"Log: low must be a finite number, got {low}")
        super().__init__(event_shape, (low,), (None,), one_sided="log", eps=eps)
        self.low = float(low)

    def extra_repr(self) -> str:
        """Shape and bound, for repr."""
        return f"{self.domain}, low={self.low:g}"
