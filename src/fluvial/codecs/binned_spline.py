"""What splines of free bins have in common."""

from torch import Tensor

from fluvial.codecs.bins import Bins, equal_bins
from fluvial.codecs.transformer import Boundary, Transformer, check_box, check_ratios


class BinnedSpline(Transformer):
    """A spline whose bins have learned widths and mean slopes, the first 2K of its parameters (see `fluvial.codecs.bins`).

    Args:
        bins: K.
        low: Lower end of the box.
        high: Upper end.
        boundary: "linear", "interval" or "circular".
        slope_ratio: R, the largest ratio of two bins' mean slopes.
        width_ratio: Largest ratio of the widths of two bins.
        knots: How many knots have a parameter of their own.
        further: How many parameters there are beside those of bins and knots.
    """

    def __init__(
        self,
        bins: int,
        *,
        low: float,
        high: float,
        boundary: Boundary,
        slope_ratio: float,
        width_ratio: float,
        knots: int,
        further: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_box(name, low, high, boundary, bins, 2)
        check_ratios(name, slope_ratio=slope_ratio, width_ratio=width_ratio)
        self.bins = bins
        self.low = low
        self.high = high
        self.boundary: Boundary = boundary
        self.slope_ratio = slope_ratio
        self.width_ratio = width_ratio
        self.n_parameters = 2 * bins + knots + further
        self._layout = Bins(bins, (1 / width_ratio, 1 / slope_ratio), circular=boundary == "circular", knots=knots)

    def start(self) -> Tensor:
        """Bins of equal width and slope 1, each in the middle of its bounds, shape (P,)."""
        return equal_bins(self._layout, self.n_parameters)

    def extra_repr(self) -> str:
        """Bins and box, for repr."""
        return f"{self.bins} bins on [{self.low:g}, {self.high:g}], {self.boundary}"
