"""Data that are images."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fluvial.report.theme import as_rows, blank

_PIXEL = re.compile(r"(?:pixel|px|pix)\D*(\d+)\D+(\d+)$", re.IGNORECASE)
_MOST_PIXELS = 260  # along a side of the mosaic


@dataclass(frozen=True)
class Frame:
    """Where the entries of a flattened sample lie in an image.

    Attributes:
        shape: (channels, height, width), with 1 or 3 channels.
        where: For each entry of the sample its place in the flattened image.
    """

    shape: tuple[int, int, int]
    where: tuple[int, ...]

    def fill(self, rows: np.ndarray) -> np.ndarray:
        """Samples (n, entries) -> images (n, channels, height, width); pixels that were left out of the data are 0."""
        image = np.zeros((len(rows), math.prod(self.shape)))
        image[:, list(self.where)] = rows
        return image.reshape(len(rows), *self.shape)


def image_frame(event_shape: Sequence[int], names: Sequence[str] | None = None) -> Frame | None:
    """How samples of this shape are images, or None: (h, w), (1, h, w), (3, h, w), or columns called pixel_0_0, pixel_0_1, ….

    Example:
        >>> image_frame((1, 8, 8)).shape, image_frame((3,), ("pixel_0_0", "pixel_0_1", "pixel_1_1")).where, image_frame((64,))
        ((1, 8, 8), (0, 1, 3), None)
    """
    shape = tuple(event_shape)
    if len(shape) == 2 and min(shape) >= 4:
        shape = (1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return Frame((shape[0], shape[1], shape[2]), tuple(range(math.prod(shape))))
    found = [_PIXEL.search(name) for name in names or ()]
    if len(shape) != 1 or not found:
        return None
    places = [(int(match[1]), int(match[2])) for match in found if match is not None]
    if len(places) != len(found):
        return None
    # Columns that were left out may be a border: digits are square.
    side = max(max(row for row, _ in places), max(column for _, column in places)) + 1
    height, width = (side, side) if side <= 64 else (max(row for row, _ in places) + 1, max(column for _, column in places) + 1)
    return Frame((1, height, width), tuple(row * width + column for row, column in places))


def images(x: Any, frame: Frame, *, columns: int = 6, most: int = 36, limits: tuple[float, float] | None = None) -> go.Figure:
    """A mosaic of the first images.

    Args:
        x: Samples, shape (n, *event).
        frame: What `image_frame` said of them.
        columns: Images in a row.
        most: How many images at most.
        limits: Values that are drawn white and black (for colours: dark and bright); default the smallest and the largest.

    Example:
        >>> images(np.zeros((4, 16)), Frame((1, 4, 4), tuple(range(16))), columns=2).data[0].z.shape
        (9, 9)
    """
    channels, height, width = frame.shape
    columns = max(1, min(columns, _MOST_PIXELS // (width + 1)))
    rows = min(math.ceil(most / columns), max(1, _MOST_PIXELS // (height + 1)))
    pictures = frame.fill(as_rows(x)[: columns * rows])
    rows = max(1, math.ceil(len(pictures) / columns))
    finite = pictures[np.isfinite(pictures)]
    low, high = limits if limits is not None else (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    gap = 1 if max(height, width) < 40 else 2
    mosaic = np.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for k, picture in enumerate(pictures):
        top, left = (k // columns) * (height + gap), (k % columns) * (width + gap)
        mosaic[:, top : top + height, left : left + width] = picture
    figure = blank(width=360, height=round(360 * mosaic.shape[1] / mosaic.shape[2]))
    figure.update_layout(margin={"l": 2, "r": 2, "t": 2, "b": 2})
    scaled = np.clip((mosaic - low) / ((high - low) or 1.0), 0, 1)
    if channels == 3:
        opaque = np.where(np.isnan(scaled[:1]), 0, 255)
        figure.add_trace(
            go.Image(z=np.concatenate([np.nan_to_num(scaled) * 255, opaque]).transpose(1, 2, 0).astype(np.uint8), colormodel="rgba", hoverinfo="skip")
        )
    else:
        ink = [[0, "#ffffff"], [1, "#101418"]]
        figure.add_trace(go.Heatmap(z=scaled[0].astype(np.float32), zmin=0, zmax=1, colorscale=ink, showscale=False, hoverinfo="skip"))
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    return figure
