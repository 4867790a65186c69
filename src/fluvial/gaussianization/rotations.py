"""Which way to look at the data next: the rotation before a layer."""

import math
import warnings
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fluvial.codecs import Hadamard, Isometry, Rotation, TrainableRotation
from fluvial.codecs.matrices import random_rotation
from fluvial.codecs.moments import principal_axes

RotationKind = Literal["auto", "none", "haar", "hadamard", "pca", "ica", "max_kswd", "learned"]
SAMPLE = {"ica": 20_000, "max_kswd": 20_000, "learned": 10_000}  # rows that a rotation is found from
_MANY = 128  # coordinates, from which on a Hadamard transform is as random as a rotation, and cheaper


def kind_of(policy: RotationKind, layer: int, features: int) -> RotationKind:
    """The rotation before a layer, counted from 0.

    The first layer has none: the columns of a table are its most particular directions. "auto" then looks along the principal axes, and from
    there on by turns in random directions and along the axes.

    Raises:
        ValueError: If the policy is unknown.
    """
    if policy not in get_args(RotationKind):
        raise ValueError(f"rotation is one of {', '.join(map(repr, get_args(RotationKind)))}, got {policy!r}")
    if layer == 0 or features == 1 or policy == "none":
        return "none"
    if policy != "auto":
        return policy
    if layer % 2:
        return "pca"
    return "hadamard" if features >= _MANY else "haar"


def matrix_of(kind: RotationKind, features: int, *, seed: int, covariance: np.ndarray | None = None, sample: np.ndarray | None = None) -> np.ndarray:
    """The orthogonal matrix of a rotation, float64, determinant 1.

    Args:
        kind: Any but "auto" and "none".
        features: D.
        seed: Of what is drawn.
        covariance: Of the training rows, (D, D), for "pca".
        sample: Some of the training rows, (D, m), for what is found by looking at them.
    """
    if kind == "haar":
        return random_rotation(features, seed=seed).numpy()
    if kind == "hadamard":
        with torch.no_grad():
            return Hadamard(features, seed=seed).double().encode(torch.eye(features, dtype=torch.float64)).numpy().T.copy()
    if kind == "pca":
        matrix = principal_axes(torch.from_numpy(np.asarray(covariance)))[1].numpy().T
    elif sample is None:
        raise ValueError(f"rotation {kind!r} is found from rows")
    else:
        finder = {"ica": _ica, "max_kswd": _most_unusual, "learned": _learned}[kind]
        matrix = finder(sample.astype(np.float64), seed)
    matrix = matrix.copy()
    # A reflection would do as well, but no rotation continues it.
    matrix[-1] *= np.sign(np.linalg.det(matrix))
    return matrix


def codec_of(kind: RotationKind, matrix: np.ndarray, *, seed: int, trainable: bool) -> Isometry:
    """The codec of a rotation: drawn ones by their seed, found ones by their matrix; as a start for training by a `TrainableRotation`."""
    features = len(matrix)
    if trainable:
        codec = TrainableRotation(features, start="random", seed=seed)
        codec.set_(torch.from_numpy(matrix))
        return codec
    if kind == "hadamard":
        return Hadamard(features, seed=seed)
    codec = Rotation(features, seed=seed)
    if kind != "haar":
        codec.set_(torch.from_numpy(matrix))
    return codec


def _ica(x: np.ndarray, seed: int) -> np.ndarray:
    """The orthogonal matrix nearest to that which unmixes independent components."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # A direction that is not quite the best is as good a rotation as any.
        warnings.simplefilter("ignore", ConvergenceWarning)
        unmixing = FastICA(whiten="unit-variance", random_state=seed, max_iter=200).fit(x.T).components_
    left, _, right = np.linalg.svd(unmixing)
    return left @ right


def _most_unusual(x: np.ndarray, seed: int, *, steps: int = 60) -> np.ndarray:
    r"""Directions whose projections are the furthest from normal, Σ W₂², then others at right angles; by gradient ascent with QR retraction."""
    features, rows = x.shape
    many = features if features <= 8 else max(8, features // 8)
    data = torch.from_numpy(x)
    normal = torch.special.ndtri((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)

    def score(frame: Tensor) -> Tensor:
        return (torch.sort(frame @ data, -1)[0] - normal).square().mean(-1).sum()

    start = random_rotation(features, seed=seed)
    frame, step = start[:many].clone(), 1.0
    value = score(frame)
    for _ in range(steps):
        moving = frame.clone().requires_grad_()
        slope = torch.autograd.grad(score(moving), moving)[0]
        along = slope - 0.5 * (slope @ frame.T + frame @ slope.T) @ frame
        size = along.norm() / math.sqrt(many)
        while step > 1e-4:
            tried = torch.linalg.qr((frame + step * along / size).T)[0].T if size > 0 else frame
            found = score(tried)
            if found > value:
                frame, value, step = tried, found, 1.5 * step
                break
            step /= 2
        else:
            break
    return _completed(frame, start).numpy()


def _learned(x: np.ndarray, seed: int, *, steps: int = 60) -> np.ndarray:
    """The rotation after which the coordinates have the least entropy, so that a layer gains most; entropies from spacings of order statistics."""
    features, rows = x.shape
    data = torch.from_numpy(x)
    reach = max(1, round(math.sqrt(rows)))
    codec = TrainableRotation(features, start="random", seed=seed).double()
    # From a random start it would not find one particular direction among a dozen.
    codec.set_(torch.from_numpy(_most_unusual(x, seed)))
    optimizer = torch.optim.Adam(codec.parameters(), lr=0.02)
    for _ in range(steps):
        ordered = torch.sort(codec.matrix() @ data, -1)[0]
        entropy = torch.log((ordered[:, reach:] - ordered[:, :-reach]).clamp_min(1e-12)).mean(-1).sum()
        optimizer.zero_grad()
        entropy.backward()
        optimizer.step()
    return codec.matrix().detach().numpy()


def _completed(frame: Tensor, others: Tensor) -> Tensor:
    """Orthonormal rows, and further ones at right angles to them."""
    whole = torch.linalg.qr(torch.cat([frame, others]).T)[0].T
    # QR keeps the span of the first rows, but may turn their signs.
    return torch.cat([frame, whole[len(frame) :]])
