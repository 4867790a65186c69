"""Downscaled pictures of digits, on which layers are counted."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

_GREYS = 16  # the largest grey value; those of finer scales are brought to this one


class Pictures(NamedTuple):
    """Grey values from 0 to 16.

    Attributes:
        images: Shape (n, side, side), float64.
        held_out: How many of the last rows are an official test set; 0 where there is none.
    """

    images: np.ndarray
    held_out: int


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures of side × side pixels, each the mean of the area it covers of the larger picture; pixels on an edge count in part.

    Args:
        images: Shape (n, s, s).
        side: k ≤ s.

    Returns:
        Shape (n, k, k), float64.

    Example:
        >>> shrink(np.arange(16.0).reshape(1, 4, 4), 2).tolist()
        [[[2.5, 4.5], [10.5, 12.5]]]
    """
    large = images.shape[1]
    ends = np.linspace(0, large, side + 1)
    pixel = np.arange(large)
    share = np.clip(np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel), 0, None) * side / large
    return share @ images @ share.T


def dequantize(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (n, k²) of (x + u)/17, with grey values x from 0 to 16 and u uniform in [0, 1)."""
    rows = images.reshape(len(images), -1)
    return (rows + rng.random(rows.shape)) / (_GREYS + 1)


def digits() -> Pictures:
    """1797 digits of 8 × 8 pixels, from scikit-learn."""
    from sklearn.datasets import load_digits

    return Pictures(load_digits().images.astype(np.float64), 0)


def mnist() -> Pictures:
    """60 000 digits of 28 × 28 pixels, and 10 000 to test on, from the folder ``images`` of the environment variable FLUVIAL_DATA.

    Raises:
        FileNotFoundError: If they are not there.
    """
    names = "mnist_train.npz", "mnist_test.npz"
    root = os.environ.get("FLUVIAL_DATA")
    if not root:
        raise FileNotFoundError(f"MNIST: set the environment variable FLUVIAL_DATA to a folder with images/{names[0]} and images/{names[1]}")
    parts = []
    for name in names:
        path = Path(root, "images", name)
        if not path.is_file():
            raise FileNotFoundError(f"MNIST: there is no {path.parent.name}/{name} in the folder of the environment variable FLUVIAL_DATA")
        with np.load(path) as file:
            parts.append(file["images"])
    return Pictures(np.concatenate(parts) * (_GREYS / 255), len(parts[1]))


IMAGES: Mapping[str, Callable[[], Pictures]] = MappingProxyType({"digits": digits, "MNIST": mnist})
"""Pictures by name."""
