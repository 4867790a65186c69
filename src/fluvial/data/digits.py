"""Handwritten digits, 8 × 8 pixels."""

from collections.abc import Sequence

import numpy as np

from fluvial.data.dataset import Dataset


def digits(
    *,
    condition: str | None = None,
    event_shape: int | Sequence[int] = 64,
    dequantize: float | None = 1.0,
    noise: float = 0.0,
    drop_constant: bool = False,
) -> Dataset:
    """1797 handwritten digits, 64 pixels each, with the raw grey values 0, 1, …, 16.

    The values are integers and some border pixels are always 0, so training adds uniform noise of width 1 unless told otherwise:
    log-densities are those of the dequantised pixels, in the units of the grey values.

    Args:
        condition: "label" for the digit as a one-hot condition of shape (n, 10), or None.
        event_shape: 64 for vectors, (1, 8, 8) for images.
        dequantize: Width of the uniform noise, or None.
        noise: Standard deviation of additional Gaussian noise.
        drop_constant: Leave out the pixels that are 0 in every image; for vectors.

    Returns:
        A `Dataset` of 1797 rows.

    Raises:
        ValueError: If the condition is another than "label", or the event shape has not 64 entries.

    References:
        E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (CC BY 4.0);
        distributed with scikit-learn.

    Example:
        >>> digits(condition="label")
        Dataset digits: 1797 rows of 64 (pixel_0_0, pixel_0_1, pixel_0_2, pixel_0_3, …), condition (10,), dequantize 1
    """
    from sklearn.datasets import load_digits

    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if np.prod(shape) != 64:
        raise ValueError(f"digits: event_shape must have 64 entries, such as 64 or (1, 8, 8); got {event_shape}")
    if condition not in (None, "label"):
        raise ValueError(f"digits: condition must be 'label' or None, got {condition!r}")
    bunch = load_digits()
    return Dataset(
        bunch.data.reshape(-1, *shape),
        None if condition is None else np.eye(10)[bunch.target],
        names=bunch.feature_names if len(shape) == 1 else None,
        noise=noise,
        dequantize=dequantize,
        drop_constant=drop_constant,
        name="digits",
        citation="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998",
        licence="CC BY 4.0",
    )
