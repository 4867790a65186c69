"""Supports kept by construction."""

from collections.abc import Sequence

from fluvial.bases.limits import Limit, intervals
from fluvial.codecs.box import Box, OneSided


class Bounds(Box):
    r"""Give every coordinate its own support, so that no sample ever leaves it.

    =================  ===================================================
    bounds             z
    =================  ===================================================
    l < x < h          log(x − l) − log(h − x)
    l < x              softplus⁻¹(x − l), or log(x − l)
    x < h              −softplus⁻¹(h − x), or −log(h − x)
    none               x
    =================  ===================================================

    Every map is increasing. softplus⁻¹(d) = log(eᵈ − 1) leaves numbers far from the bound as they are; the logarithm suits data that
    spread over orders of magnitude.

    ``decode`` gives finite numbers with low ≤ x ≤ high for every z: the bounds are rounded inward to the precision in use, and can be
    reached by rounding only. ``encode`` accepts the same closed intervals, with bounds rounded to the nearest number, as data are.
    A value exactly on a bound would be z = ±∞; it stands for the numbers that were rounded there, and is read as if it lay ``eps`` inside.
    As this concerns the end points only, and inside nothing is clamped, ``log_prob`` is the density of what ``sample`` draws. (Distances
    from a bound below the smallest normal number, 10⁻³⁸ in single precision, are read as that number.)
    Outside ladj is −∞, so that the density is 0; NaN stays NaN. In single precision ``decode(encode(x))`` is x to 1e-6, of |x| or of 1 where
    |x| is smaller; the latent of a sample is lost to rounding where floating-point numbers are sparse at the bound, as at 1 beyond z ≈ 12.

    Args:
        low: Lower bound of each coordinate in the units of the data; None or −inf where there is none.
        high: Upper bound of each coordinate; None or inf where there is none.
        one_sided: The map of coordinates with one bound, "softplus" or "log".
        eps: How far inside a value on a bound is read, in units of h − l (of 1 with one bound), but no less than the bounds are rounded by;
            default a quarter of the step between floating-point numbers at 1, 2⁻²⁵ in single precision.

    Raises:
        ValueError: If the bounds differ in number, or enclose no interval that single precision resolves; the message names the coordinate.

    Example:
        >>> import torch
        >>> codec = Bounds(low=(0.0, 0.0, None), high=(1.0, None, None))
        >>> codec.decode(torch.tensor([[-100.0, -100.0, -100.0], [100.0, 100.0, 100.0]]))
        tensor([[ 1.1755e-38,  1.1755e-38, -1.0000e+02],
                [ 1.0000e+00,  1.0000e+02,  1.0000e+02]])
    """

    def __init__(self, low: Sequence[Limit], high: Sequence[Limit], *, one_sided: OneSided = "softplus", eps: float | None = None) -> None:
        below, above = intervals("Bounds", low, high)
        super().__init__(len(below), below, above, one_sided=one_sided, eps=eps)
        self.low = below
        self.high = above
        self.one_sided = one_sided

    def extra_repr(self) -> str:
        """The supports and the map of half-lines, for repr."""
        shown = [f"({'-inf' if a is None else f'{a:g}'}, {'inf' if b is None else f'{b:g}'})" for a, b in zip(self.low, self.high)]
        return f"{', '.join(shown[:6])}{f', … {len(shown) - 6} more' if len(shown) > 6 else ''}, one_sided={self.one_sided!r}"
